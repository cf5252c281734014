//! Three engines over links in memory, on paused time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use duet_proto::{
    Answer, Boot, Consistency, Epoch, Expect, GroupRole, KeyRange, Mutation, NamespaceId, NamespaceName, Op, Outcome,
    QuorumHealth, ScanLimit, SessionId, Stamp, Try,
};
use duet_store::{Family, View, WallClock, layout, memory::MemoryStore};

use super::*;
use crate::{Call, GroupSpec};

mod epochs;
mod replicas;
mod requests;

const NS: NamespaceId = NamespaceId(1);
const E1: Epoch = Epoch(1);
const RESERVE: u64 = 1 << 20;

/// Which links are cut: from, to.
type Cuts = Arc<Mutex<BTreeSet<(u32, u32)>>>;
type Inlets = Arc<Mutex<BTreeMap<u32, (mpsc::Sender<(NodeId, Bytes)>, mpsc::Sender<(NodeId, Bytes)>)>>>;

struct Wall;

impl WallClock for Wall {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000
    }
}

struct Node {
    store: Arc<MemoryStore>,
    handle: Handle,
    committer: Committer,
    task: tokio::task::JoinHandle<()>,
    boot: u64,
}

struct Cluster {
    nodes: BTreeMap<u32, Node>,
    cuts: Cuts,
    inlets: Inlets,
    configure: fn(&mut Config),
    sequence: u64,
}

/// Carries what one node sends, with a delay.
async fn carry(from: u32, bulk: bool, mut out: mpsc::Receiver<(NodeId, Bytes)>, cuts: Cuts, inlets: Inlets) {
    while let Some((to, bytes)) = out.recv().await {
        tokio::time::sleep(Duration::from_micros(200)).await;
        if cuts.lock().unwrap().contains(&(from, to.0)) {
            continue;
        }
        let inlet = inlets.lock().unwrap().get(&to.0).cloned();
        if let Some((raft, other)) = inlet {
            let _ = if bulk { other } else { raft }.send((NodeId(from), bytes)).await;
        }
    }
}

impl Cluster {
    async fn start(ids: &[u32], configure: fn(&mut Config)) -> Cluster {
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            cuts: Cuts::default(),
            inlets: Inlets::default(),
            configure,
            sequence: 0,
        };
        for id in ids {
            cluster.boot(*id, MemoryStore::new(), 1);
        }
        cluster
    }

    fn boot(&mut self, id: u32, store: Arc<MemoryStore>, boot: u64) {
        let (raft_out, raft) = mpsc::channel(4096);
        let (bulk_out, bulk) = mpsc::channel(16);
        let (raft_to, raft_in) = mpsc::channel(4096);
        let (bulk_to, bulk_in) = mpsc::channel(16);
        self.inlets.lock().unwrap().insert(id, (raft_to, bulk_to));
        tokio::spawn(carry(id, false, raft, self.cuts.clone(), self.inlets.clone()));
        tokio::spawn(carry(id, true, bulk, self.cuts.clone(), self.inlets.clone()));
        let mut config = Config::new(NodeId(id), Boot(boot));
        config.piece_bytes = 400;
        (self.configure)(&mut config);
        let committer = Committer::start_task(store.clone(), Duration::from_micros(300));
        let clock = HybridClock::open(store.clone(), Arc::new(Wall), 500).unwrap();
        let disk = DiskGuard::new(store.clone(), RESERVE);
        let link = PeerLink { raft_out, raft_in, bulk_out, bulk_in };
        let (handle, driver) =
            StrongEngine::start(config, store.clone(), committer.clone(), clock, disk, link).unwrap();
        let task = tokio::spawn(driver);
        self.nodes.insert(id, Node { store, handle, committer, task, boot });
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

    async fn found(&self, namespace: u64, voters: &[u32]) {
        for id in voters {
            self.handle(*id).create(spec(namespace, voters)).await.unwrap();
        }
    }

    /// The node that leads, once one does and knows it.
    async fn leader(&self, namespace: u64) -> u32 {
        for _ in 0..2000 {
            for (id, node) in &self.nodes {
                let status = node.handle.status(NamespaceId(namespace)).await;
                if status.is_some_and(|s| s.role == GroupRole::Leader && s.quorum != QuorumHealth::Lost) {
                    return *id;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no leader");
    }

    /// A write as the client makes it: with a session, so that it can be tried again.
    async fn put(&mut self, at: u32, key: &str, value: impl Into<Bytes>) -> Result<Answer, Error> {
        self.sequence += 1;
        let attempt =
            Try { session: SessionId(7), sequence: self.sequence, answered_below: self.sequence, seen: 0, epoch: E1 };
        let op = Op::Write { mutation: Mutation::put(key.to_owned(), value) };
        let call = Call { op, attempt: Some(attempt), consistency: Consistency::Linearizable };
        self.handle(at).call(NS, E1, call, in_seconds(20)).await
    }

    async fn get(&self, at: u32, key: &str) -> Result<Option<Bytes>, Error> {
        let call = Call::once(Op::Get { key: key.to_owned().into() });
        match self.handle(at).call(NS, E1, call, in_seconds(20)).await?.outcome {
            Outcome::Value(found) => Ok(found.map(|(_, value)| value)),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until all these replicas have applied the same.
    async fn settle(&self, ids: &[u32]) {
        for _ in 0..3000 {
            let mut seen = BTreeSet::new();
            for id in ids {
                let status = self.handle(*id).status(NS).await.unwrap();
                seen.insert((status.applied, status.digest.0, status.last));
            }
            if seen.len() == 1 && seen.iter().all(|(applied, _, last)| applied == last && *applied > 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for id in ids {
            println!("{id}: {:?}", self.handle(*id).status(NS).await);
        }
        panic!("the replicas do not come together");
    }
}

fn spec(namespace: u64, voters: &[u32]) -> GroupSpec {
    GroupSpec {
        namespace: NamespaceId(namespace),
        epoch: E1,
        name: NamespaceName::new(format!("ns{namespace}")).unwrap(),
        voters: voters.iter().copied().map(NodeId).collect(),
        learners: BTreeSet::new(),
        base: None,
    }
}

fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn others(leader: u32) -> [u32; 2] {
    match leader {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    }
}

async fn three(configure: fn(&mut Config)) -> (Cluster, u32) {
    let cluster = Cluster::start(&[1, 2, 3], configure).await;
    cluster.found(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    (cluster, leader)
}

fn small(config: &mut Config) {
    (config.keep_entries, config.tail_bytes) = (50, 1000);
}
