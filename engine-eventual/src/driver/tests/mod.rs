//! Three engines over links in memory, on paused time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use duet_proto::{
    Answer, Boot, Digest, Epoch, Expect, KeyRange, Mode, Mutation, NamespaceId, NamespaceStatus, Op, Outcome,
    ScanLimit, Stamp, Token,
};
use duet_store::{Family, WallClock, layout, memory::MemoryStore};

use super::*;
use crate::{Call, Members, SpaceSpec, Start};

mod data;
mod ending;
mod life;
mod load;

const NS: NamespaceId = NamespaceId(1);
const E1: Epoch = Epoch(1);
const ID: SpaceId = SpaceId { namespace: NS, epoch: E1 };
const RESERVE: u64 = 1 << 20;

/// Which links are cut: from, to.
type Cuts = Arc<Mutex<BTreeSet<(u32, u32)>>>;
type Inlets = Arc<Mutex<BTreeMap<u32, mpsc::Sender<(NodeId, Bytes)>>>>;

/// Hands that a test moves; it also goes with tokio's clock.
struct Wall {
    begin: Instant,
    ahead_ms: AtomicU64,
}

impl WallClock for Wall {
    fn now_ms(&self) -> u64 {
        let since = self.begin.elapsed().as_millis() as u64;
        1_700_000_000_000 + since + self.ahead_ms.load(Ordering::Relaxed)
    }
}

struct Node {
    store: Arc<MemoryStore>,
    handle: Handle,
    committer: Committer,
    task: tokio::task::JoinHandle<StoreError>,
    wall: Arc<Wall>,
    boot: u64,
}

struct Cluster {
    nodes: BTreeMap<u32, Node>,
    cuts: Cuts,
    inlets: Inlets,
    configure: fn(&mut crate::EngineConfig),
    /// How long a sync takes.
    latency: Duration,
    begin: Instant,
}

/// Carries what one node sends, with a delay.
async fn carry(from: u32, mut out: mpsc::Receiver<(NodeId, Bytes)>, cuts: Cuts, inlets: Inlets) {
    while let Some((to, bytes)) = out.recv().await {
        tokio::time::sleep(Duration::from_micros(200)).await;
        if cuts.lock().unwrap().contains(&(from, to.0)) {
            continue;
        }
        let inlet = inlets.lock().unwrap().get(&to.0).cloned();
        if let Some(inlet) = inlet {
            let _ = inlet.send((NodeId(from), bytes)).await;
        }
    }
}

fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn members(version: u64, nodes: &[u32], copies: u32) -> Members {
    let nodes = nodes.iter().copied().map(NodeId).collect();
    Members { version, nodes, copies, ..Members::default() }
}

fn spec(namespace: u64, start: Start, members: Members) -> SpaceSpec {
    let name = NamespaceName::new(format!("ns{namespace}")).unwrap();
    SpaceSpec { namespace: NamespaceId(namespace), epoch: E1, name, start, members, base: None }
}

fn put_op(key: &str, value: impl Into<Bytes>) -> Op {
    Op::Write { mutation: Mutation::put(key.to_owned(), value) }
}

fn stamp(answer: &Answer) -> Stamp {
    match answer.outcome {
        Outcome::Written(stamp) => stamp,
        ref other => panic!("{other:?}"),
    }
}

fn value(answer: &Answer) -> Option<Bytes> {
    match &answer.outcome {
        Outcome::Value(found) => found.as_ref().map(|(_, value)| value.clone()),
        other => panic!("{other:?}"),
    }
}

impl Cluster {
    fn start(ids: &[u32], configure: fn(&mut crate::EngineConfig)) -> Cluster {
        let (cuts, inlets, latency) = (Cuts::default(), Inlets::default(), Duration::from_micros(300));
        let mut cluster = Cluster { nodes: BTreeMap::new(), cuts, inlets, configure, latency, begin: Instant::now() };
        for id in ids {
            cluster.boot(*id, MemoryStore::new(), 1);
        }
        cluster
    }

    fn boot(&mut self, id: u32, store: Arc<MemoryStore>, boot: u64) {
        let (sync_out, sync) = mpsc::channel(4096);
        let (sync_to, sync_in) = mpsc::channel(64);
        let (gossip_out, _) = mpsc::channel(1);
        let (_, gossip_in) = mpsc::channel(1);
        self.inlets.lock().unwrap().insert(id, sync_to);
        tokio::spawn(carry(id, sync, self.cuts.clone(), self.inlets.clone()));
        let mut config = crate::EngineConfig::new(NodeId(id), Boot(boot));
        (self.configure)(&mut config);
        let committer = Committer::start_task(store.clone(), self.latency);
        let wall = Arc::new(Wall { begin: self.begin, ahead_ms: AtomicU64::new(0) });
        let clock = HybridClock::open(store.clone(), wall.clone(), 500).unwrap();
        let disk = DiskGuard::new(store.clone(), RESERVE);
        let link = PeerLink { sync_out, sync_in, gossip_out, gossip_in };
        let (handle, driver) = EventualEngine::start(config, store.clone(), committer.clone(), clock, disk, link);
        let task = tokio::spawn(driver);
        self.nodes.insert(id, Node { store, handle, committer, task, wall, boot });
    }

    /// Cuts the power of a node and gives its disk.
    fn crash(&mut self, id: u32, seed: u64) -> (Arc<MemoryStore>, u64) {
        let node = self.nodes.remove(&id).unwrap();
        self.inlets.lock().unwrap().remove(&id);
        node.task.abort();
        (node.store.crash(seed), node.boot)
    }

    fn restart(&mut self, id: u32, disk: (Arc<MemoryStore>, u64)) {
        self.boot(id, disk.0, disk.1 + 1);
    }

    fn isolate(&self, id: u32) {
        let mut cuts = self.cuts.lock().unwrap();
        for other in 1..=9 {
            cuts.extend([(id, other), (other, id)]);
        }
    }

    fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }

    fn handle(&self, id: u32) -> Handle {
        self.nodes[&id].handle.clone()
    }

    async fn found(&self, namespace: u64, nodes: &[u32], copies: u32) {
        for id in nodes {
            self.handle(*id).create(spec(namespace, Start::Founder, members(1, nodes, copies))).await.unwrap();
        }
    }

    async fn call(&self, at: u32, op: Op, token: Option<Token>) -> Result<Answer, Error> {
        self.handle(at).call(NS, E1, Call { op, token }, in_seconds(5)).await
    }

    async fn put(&self, at: u32, key: &str, value: impl Into<Bytes>) -> Result<Answer, Error> {
        self.call(at, put_op(key, value), None).await
    }

    async fn delete(&self, at: u32, key: &str) -> Result<Answer, Error> {
        self.call(at, Op::Write { mutation: Mutation::delete(key.to_owned()) }, None).await
    }

    async fn get(&self, at: u32, key: &str) -> Result<Option<Bytes>, Error> {
        let answer = self.call(at, Op::Get { key: key.to_owned().into() }, None).await?;
        Ok(value(&answer))
    }

    async fn status(&self, at: u32) -> NamespaceStatus {
        self.handle(at).statuses().await.into_iter().find(|s| s.id == NS).unwrap()
    }

    /// Waits until all these replicas are whole and clean, and claim and hold the same.
    async fn settle(&self, ids: &[u32]) {
        for _ in 0..3000 {
            let (mut seen, mut clean) = (Vec::new(), true);
            for id in ids {
                let status = self.status(*id).await;
                let eventual = status.eventual.unwrap();
                clean &= eventual.whole && eventual.clean;
                seen.push((eventual.frontier, status.digest, status.keys));
            }
            if clean && seen.windows(2).all(|w| w[0] == w[1]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for id in ids {
            println!("{id}: {:?} {:?}", self.status(*id).await, self.handle(*id).metrics());
        }
        panic!("the replicas do not converge");
    }
}

async fn three(copies: u32) -> Cluster {
    let cluster = Cluster::start(&[1, 2, 3], |_| {});
    cluster.found(1, &[1, 2, 3], copies).await;
    cluster
}
