//! Whole routers over in-memory engines, on one thread and a paused clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use duet_engine_eventual::{
    EngineConfig as EventualConfig, EventualEngine, Handle as Eventual, PeerLink as EventualLink, SpaceId,
};
use duet_engine_strong::{Config as EngineConfig, Handle, PeerLink, StrongEngine};
use duet_proto::{
    Admin, Answer, Boot, Consistency, DataRequest, Epoch, Error, Mode, Mutation, NamespaceInfo, NamespaceName,
    NodeId, Op, Outcome, Response, limits,
};
use duet_router::{Config, Founder, Router};
use duet_store::{Committer, DiskGuard, HybridClock, WallClock, memory::MemoryStore};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Generous: the clock is virtual, only a hang is to be found.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

type Lane = mpsc::Sender<(NodeId, Bytes)>;

/// Who can be reached, and where: the lanes of Raft, of snapshots, and between eventual replicas.
#[derive(Default)]
struct Board {
    lanes: BTreeMap<NodeId, [Lane; 3]>,
    /// These reach nobody and nobody reaches them.
    cut: BTreeSet<NodeId>,
}

type Switchboard = Arc<Mutex<Board>>;

struct VirtualClock(Instant);

impl WallClock for VirtualClock {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.0.elapsed().as_millis() as u64
    }
}

pub(crate) struct Node {
    pub(crate) router: Router,
    pub(crate) engine: Handle,
    pub(crate) eventual: Eventual,
    pub(crate) peers: Arc<Mutex<BTreeMap<NodeId, String>>>,
    boot: Boot,
    store: Arc<MemoryStore>,
    tasks: Vec<JoinHandle<()>>,
    /// What the router's future ended with.
    pub(crate) ended: Arc<Mutex<Option<Error>>>,
}

pub(crate) struct Cluster {
    founders: Vec<Founder>,
    started: Instant,
    board: Switchboard,
    pub(crate) nodes: BTreeMap<u32, Node>,
    disks: BTreeMap<u32, (Boot, Arc<MemoryStore>)>,
}

impl Cluster {
    /// A cluster that is ready, founded by nodes 1 to `n`.
    pub(crate) async fn start(n: u32) -> Cluster {
        let founders = (1..=n).map(|id| Founder { id: NodeId(id), address: address(id) }).collect();
        let mut cluster = Cluster {
            founders,
            started: Instant::now(),
            board: Switchboard::default(),
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
        };
        (1..=n).for_each(|id| cluster.run(id));
        for id in 1..=n {
            cluster.ready(id).await;
        }
        cluster
    }

    /// Starts a node on its disk, or on a new one.
    pub(crate) fn run(&mut self, id: u32) {
        let (boot, store) = self.disks.remove(&id).unwrap_or_else(|| (Boot(0), MemoryStore::new()));
        let (me, boot) = (NodeId(id), Boot(boot.0 + 1));
        let committer = Committer::start_task(store.clone(), Duration::from_micros(200));
        let clock =
            HybridClock::open(store.clone(), Arc::new(VirtualClock(self.started)), limits::CLOCK_DRIFT_MS).unwrap();
        let (raft_out, raft_sent) = mpsc::channel(4096);
        let (bulk_out, bulk_sent) = mpsc::channel(4096);
        let (sync_out, sync_sent) = mpsc::channel(4096);
        let (raft_to, raft_in) = mpsc::channel(4096);
        let (bulk_to, bulk_in) = mpsc::channel(4096);
        let (sync_to, sync_in) = mpsc::channel(4096);
        self.board.lock().unwrap().lanes.insert(me, [raft_to, bulk_to, sync_to]);
        let (engine, driver) = StrongEngine::start(
            EngineConfig::new(me, boot),
            store.clone(),
            committer.clone(),
            clock.clone(),
            DiskGuard::new(store.clone(), 0),
            PeerLink { raft_out, raft_in, bulk_out, bulk_in },
        )
        .unwrap();
        let (gossip_out, gossip_in) = mpsc::channel(1);
        let (eventual, eventual_driver) = EventualEngine::start(
            EventualConfig::new(me, boot),
            store.clone(),
            committer,
            clock.clone(),
            DiskGuard::new(store.clone(), 0),
            EventualLink { sync_out, sync_in, gossip_out, gossip_in },
        );
        let config = Config {
            cluster: "test".parse().unwrap(),
            me,
            boot,
            address: address(id),
            founders: self.founders.clone(),
            value_max: limits::VALUE_DEFAULT,
            #[cfg(feature = "planted")]
            planted: None,
        };
        let peers = Arc::new(Mutex::new(BTreeMap::new()));
        let told = peers.clone();
        let (router, follow) = Router::start(config, engine.clone(), eventual.clone(), clock, move |now| {
            *told.lock().unwrap() = now.clone()
        });
        let ended = Arc::new(Mutex::new(None));
        let end = ended.clone();
        let tasks = vec![
            tokio::spawn(driver),
            tokio::spawn(async move { drop(eventual_driver.await) }),
            tokio::spawn(async move { *end.lock().unwrap() = Some(follow.await) }),
            tokio::spawn(carry(me, raft_sent, self.board.clone(), 0)),
            tokio::spawn(carry(me, bulk_sent, self.board.clone(), 1)),
            tokio::spawn(carry(me, sync_sent, self.board.clone(), 2)),
        ];
        self.nodes.insert(id, Node { router, engine, eventual, peers, boot, store, tasks, ended });
    }

    /// Cuts a node's power.
    pub(crate) fn crash(&mut self, id: u32) {
        let node = self.nodes.remove(&id).unwrap();
        node.tasks.iter().for_each(JoinHandle::abort);
        self.board.lock().unwrap().lanes.remove(&NodeId(id));
        self.disks.insert(id, (node.boot, node.store.crash(u64::from(id))));
    }

    /// Cuts a node off from all others, or lets it in again.
    pub(crate) fn isolate(&self, id: u32, cut: bool) {
        let cuts = &mut self.board.lock().unwrap().cut;
        let _ = if cut { cuts.insert(NodeId(id)) } else { cuts.remove(&NodeId(id)) };
    }

    /// Flips a bit on the disk of a node that is down; twice, and it is as it was.
    pub(crate) fn damage(&mut self, id: u32, key: &[u8]) {
        assert!(self.disks[&id].1.damage(duet_store::Family::Namespace, key));
    }

    /// Makes a node that is down forget how often it has started.
    pub(crate) fn rewind(&mut self, id: u32) {
        self.disks.get_mut(&id).unwrap().0 = Boot(0);
    }

    pub(crate) async fn ready(&self, id: u32) {
        self.until(|cluster| cluster.nodes[&id].router.ready()).await;
    }

    /// Waits, in virtual time.
    pub(crate) async fn until(&self, holds: impl Fn(&Cluster) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "this never came about; the nodes: {}", self.picture());
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn picture(&self) -> String {
        let node = |(id, node): (&u32, &Node)| {
            let (groups, spaces) = (node.engine.groups(), node.eventual.spaces());
            format!("\n{id}: {:?}\n  {groups:?}\n  {spaces:?}", node.router.view())
        };
        self.nodes.iter().map(node).collect()
    }

    pub(crate) async fn admin(&self, at: u32, admin: Admin) -> Result<Response, Error> {
        self.nodes[&at].router.admin(admin, Instant::now() + PATIENCE).await
    }

    pub(crate) async fn create(&self, at: u32, namespace: &str, members: &[u32]) -> Result<NamespaceInfo, Error> {
        let members = members.iter().copied().map(NodeId).collect();
        let create =
            Admin::CreateNamespace { name: name(namespace), mode: Mode::Strong, replicas: None, members, copies: 1 };
        self.info(at, create).await
    }

    pub(crate) async fn create_eventual(
        &self,
        at: u32,
        namespace: &str,
        members: &[u32],
        copies: u32,
    ) -> NamespaceInfo {
        let members = members.iter().copied().map(NodeId).collect();
        let (name, mode) = (name(namespace), Mode::Eventual);
        let create = Admin::CreateNamespace { name, mode, replicas: None, members, copies };
        self.info(at, create).await.unwrap()
    }

    pub(crate) async fn set_members(
        &self,
        at: u32,
        namespace: &str,
        members: &[u32],
    ) -> Result<NamespaceInfo, Error> {
        let members = members.iter().copied().map(NodeId).collect();
        self.info(at, Admin::SetMembers { name: name(namespace), members }).await
    }

    pub(crate) async fn info(&self, at: u32, admin: Admin) -> Result<NamespaceInfo, Error> {
        match self.admin(at, admin).await? {
            Response::Namespace(info) => Ok(info),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn names(&self, at: u32) -> Vec<String> {
        match self.admin(at, Admin::ListNamespaces).await.unwrap() {
            Response::Namespaces(infos) => infos.iter().map(|info| info.name.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn call(&self, at: u32, namespace: &str, op: Op) -> Result<Answer, Error> {
        self.call_within(at, namespace, op, PATIENCE).await
    }

    async fn call_within(&self, at: u32, namespace: &str, op: Op, patience: Duration) -> Result<Answer, Error> {
        self.nodes[&at].router.call(&request(namespace, op), Instant::now() + patience).await
    }

    /// A request as a client of a session makes it.
    pub(crate) async fn ask(&self, at: u32, request: DataRequest) -> Result<Answer, Error> {
        self.nodes[&at].router.call(&request, Instant::now() + PATIENCE).await
    }

    /// Puts, again as long as that does not succeed: the write that was on its way to a leader that died stays unknown.
    pub(crate) async fn put(&self, at: u32, namespace: &str, key: &str, value: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mutation = Mutation::put(key.to_owned(), value.to_owned());
        let op = Op::Write { mutation };
        while let Err(error) = self.call_within(at, namespace, op.clone(), PATIENCE / 10).await {
            assert!(Instant::now() < deadline, "{error}");
        }
    }

    pub(crate) async fn get(&self, at: u32, namespace: &str, key: &str) -> Result<Option<String>, Error> {
        let answer = self.call(at, namespace, Op::Get { key: key.to_owned().into() }).await?;
        match answer.outcome {
            Outcome::Value(value) => Ok(value.map(|(_, bytes)| String::from_utf8(bytes.to_vec()).unwrap())),
            other => panic!("{other:?}"),
        }
    }

    /// Whether a node holds a replica of what the catalog calls by this id.
    pub(crate) fn holds(&self, at: u32, info: &NamespaceInfo) -> bool {
        let space = SpaceId { namespace: info.id, epoch: info.epoch };
        self.nodes[&at].engine.group(info.id, info.epoch).is_some() || self.nodes[&at].eventual.space(space).is_some()
    }

    /// Waits until a node reads this.
    pub(crate) async fn reads(&self, at: u32, namespace: &str, key: &str, value: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let read = self.get(at, namespace, key).await;
            if read == Ok(Some(value.into())) {
                return;
            }
            assert!(Instant::now() < deadline, "node {at} reads {read:?} of {key}, not {value}; {}", self.picture());
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A request of a client that knows nothing.
pub(crate) fn request(namespace: &str, op: Op) -> DataRequest {
    DataRequest {
        namespace: name(namespace),
        epoch: Epoch::default(),
        op,
        attempt: None,
        tokens: Vec::new(),
        consistency: Consistency::Linearizable,
    }
}

pub(crate) fn name(text: &str) -> NamespaceName {
    text.parse().unwrap()
}

fn address(id: u32) -> String {
    format!("node{id}:7000")
}

/// Takes what a node sends to where it goes, or nowhere.
async fn carry(me: NodeId, mut sent: mpsc::Receiver<(NodeId, Bytes)>, board: Switchboard, lane: usize) {
    while let Some((to, bytes)) = sent.recv().await {
        let lane = {
            let board = board.lock().unwrap();
            let cut = board.cut.contains(&me) || board.cut.contains(&to);
            board.lanes.get(&to).filter(|_| !cut).map(|lanes| lanes[lane].clone())
        };
        if let Some(lane) = lane {
            let _ = lane.send((me, bytes)).await;
        }
    }
}
