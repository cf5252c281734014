//! Nodes, their disks, clocks and network, and the faults that befall them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use duet_client::Client;
use duet_node::{Node, Parts, config::Resolved};
use duet_proto::{ClusterName, GroupRole, Mode, NamespaceStatus, NodeId, Role};
use duet_store::{Committer, WallClock, memory::MemoryStore};
use duet_transport::{
    CertificateAuthority, Identity, Principal, Tls, Validity,
    sim::{Link, SimNet},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep, sleep_until};

pub use duet_engine_strong::Planted;

use super::{
    audit::Disks,
    plan::{Fault, Plan},
    watch::Watch,
};

/// Where all nodes listen.
const PORT: u16 = 7400;
/// The simulated Unix time at which a run begins, in milliseconds.
const BEGIN_MS: i64 = 1_900_000_000_000;
/// How often the replicas are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A running simulation.
pub struct World {
    /// The network.
    pub net: SimNet,
    began: Instant,
    rng: ChaCha8Rng,
    cluster: ClusterName,
    authority: CertificateAuthority,
    founders: BTreeMap<NodeId, String>,
    pub(super) machines: BTreeMap<u32, Machine>,
    pub(super) clients: u32,
    watch: Watch,
    pub(super) calm: Link,
    sync: Duration,
    #[cfg_attr(not(feature = "planted"), allow(dead_code, reason = "without the feature it is always none"))]
    planted: Option<Bug>,
    disks: Disks,
}

/// A bug that is planted in one of the engines or in the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// In the strong one.
    Strong(Planted),
    /// In the eventual one.
    Eventual(duet_engine_eventual::Planted),
    /// In the router.
    Router(duet_router::Planted),
}

/// One host: what survives a crash of its node, and the node while it runs.
pub(super) struct Machine {
    disk: Arc<MemoryStore>,
    tls: Tls,
    pub(super) clock: Arc<Clock>,
    pub(super) node: Option<Node>,
    starts: u64,
}

/// A wall clock that is tokio's time, an offset that faults move, and a rate that is not quite right.
pub(super) struct Clock {
    began: Instant,
    pub(super) offset_ms: AtomicI64,
    /// How much too fast it goes, in millionths.
    drift_ppm: AtomicI64,
}

impl WallClock for Clock {
    fn now_ms(&self) -> u64 {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let drift = elapsed.saturating_mul(self.drift_ppm.load(Ordering::Relaxed)) / 1_000_000;
        u64::try_from(BEGIN_MS + elapsed + drift + self.offset_ms.load(Ordering::Relaxed)).unwrap_or_default()
    }
}

/// What a fault will undo later.
#[derive(Debug)]
pub(super) enum Undo {
    Restart(u32),
    Reopen { side: Vec<u32>, one_way: bool },
    Calm,
}

impl World {
    /// Starts every node of a plan.
    ///
    /// # Errors
    /// If one does not start.
    pub async fn start(plan: &Plan, planted: Option<Bug>) -> Result<World, String> {
        if planted.is_some() && !cfg!(feature = "planted") {
            return Err("bugs are planted only with the feature `planted`".into());
        }
        let cluster = ClusterName::new("sim").map_err(|e| e.to_string())?;
        let mut authority = CertificateAuthority::from_seed(&cluster, plan.seed).map_err(|e| e.to_string())?;
        let net = SimNet::new(plan.seed);
        let calm = Link {
            delay: plan.delay.0..plan.delay.1,
            loss: f64::from(plan.loss_permille) / 1000.0,
            duplicate: f64::from(plan.duplicate_permille) / 1000.0,
            reorder: f64::from(plan.reorder_permille) / 1000.0,
        };
        net.set_default(calm.clone());
        let began = Instant::now();
        let (mut machines, disks) = (BTreeMap::new(), Disks::default());
        for id in 1..=plan.nodes {
            let tls = tls(&mut authority, &cluster, Principal::Node(NodeId(id)))?;
            let clock = Arc::new(Clock { began, offset_ms: AtomicI64::new(0), drift_ppm: AtomicI64::new(0) });
            let disk = MemoryStore::new();
            disks.put(NodeId(id), disk.clone());
            machines.insert(id, Machine { disk, tls, clock, node: None, starts: 0 });
        }
        let founders = machines.keys().map(|id| (NodeId(*id), address(*id).to_string())).collect();
        let rng = ChaCha8Rng::seed_from_u64(plan.seed ^ 0x5eed);
        let sync = plan.sync;
        let mut world = World {
            net,
            began,
            rng,
            cluster,
            authority,
            founders,
            machines,
            clients: plan.clients,
            watch: Watch::default(),
            calm,
            sync,
            planted,
            disks,
        };
        for id in 1..=plan.nodes {
            world.boot(id).await?;
        }
        Ok(world)
    }

    /// Simulated microseconds since the run began.
    pub fn clock(&self) -> impl Fn() -> i64 + Send + Sync + Clone + 'static {
        let began = self.began;
        move || i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// A client on a host of its own.
    ///
    /// # Errors
    /// If it has no certificate, or its settings are refused.
    pub async fn client(&mut self, number: u32, role: Role) -> Result<Client, String> {
        let name = format!("client-{number}");
        let tls = tls(&mut self.authority, &self.cluster, Principal::Client { name, role })?;
        let host = self.net.host(client_address(number));
        Client::builder()
            .endpoints(self.founders.values().cloned())
            .tls(tls)
            .network(Arc::new(host))
            .seed(self.rng.random())
            .timeout(Duration::from_secs(4))
            .connect()
            .await
            .map_err(|error| format!("client {number} cannot connect: {error}"))
    }

    pub(super) async fn boot(&mut self, id: u32) -> Result<(), String> {
        let seed = self.rng.random();
        let founders = self.founders.clone();
        let Some(machine) = self.machines.get_mut(&id) else { return Ok(()) };
        let config = Resolved::in_memory(NodeId(id), self.cluster.clone(), address(id), founders);
        machine.starts += 1;
        let parts = Parts {
            store: machine.disk.clone(),
            committer: Committer::start_task(machine.disk.clone(), self.sync),
            network: Arc::new(self.net.host(address(id).ip())),
            wall: machine.clock.clone(),
            tls: machine.tls.clone(),
            seed: Some(seed),
            log_piece_bytes: Some(1 << 10),
            #[cfg(feature = "planted")]
            planted: self.planted.map(|bug| match bug {
                Bug::Strong(bug) => bug.into(),
                Bug::Eventual(bug) => bug.into(),
                Bug::Router(bug) => bug.into(),
            }),
        };
        let node = Node::start(config, parts).await.map_err(|error| format!("node {id} did not start: {error}"))?;
        machine.node = Some(node);
        Ok(())
    }

    pub(super) fn crash(&mut self, id: u32) -> bool {
        let seed = self.rng.random();
        let Some(machine) = self.machines.get_mut(&id) else { return false };
        let Some(node) = machine.node.take() else { return false };
        node.kill();
        self.net.crash(address(id).ip());
        machine.disk = machine.disk.crash(seed);
        self.disks.put(NodeId(id), machine.disk.clone());
        true
    }

    /// Lets the plan's faults happen until its working time is over.
    ///
    /// # Errors
    /// If a node fails by itself or does not start again.
    pub async fn live_through(&mut self, plan: &Plan) -> Result<(), String> {
        let mut agenda: BTreeMap<(Duration, u64), Step> = BTreeMap::new();
        let mut order = 0..;
        let mut note = |agenda: &mut BTreeMap<_, _>, at: Duration, step: Step| {
            agenda.insert((at, order.next().unwrap_or(u64::MAX)), step);
        };
        for (at, fault) in &plan.faults {
            note(&mut agenda, *at, Step::Fault(fault.clone()));
        }
        let start = Instant::now();
        while let Some(((at, _), step)) = agenda.pop_first() {
            if at >= plan.work {
                break;
            }
            self.pass(start + at).await?;
            match step {
                Step::Fault(fault) => {
                    if let Some((after, undo)) = self.suffer(fault).await? {
                        note(&mut agenda, at + after, Step::Undo(undo));
                    }
                }
                Step::Undo(undo) => self.undo(undo).await?,
            }
        }
        self.pass(start + plan.work).await?;
        self.failures()
    }

    /// Lets time pass, with an eye on the replicas.
    ///
    /// # Errors
    /// What a replica says that contradicts what was said before.
    pub(super) async fn pass(&mut self, until: Instant) -> Result<(), String> {
        while Instant::now() < until {
            sleep_until(until.min(Instant::now() + LOOK)).await;
            self.look().await?;
        }
        Ok(())
    }

    /// Looks at every replica once. Answers the leaders of the user's namespaces, by term.
    pub(super) async fn look(&mut self) -> Result<Vec<(u64, u32)>, String> {
        let mut leaders = Vec::new();
        for (id, machine) in &self.machines {
            let Some(node) = &machine.node else { continue };
            for status in node.status().await.namespaces {
                self.watch.note(*id, &status)?;
                if status.role == GroupRole::Leader && !status.name.is_system() {
                    leaders.push((status.term, *id));
                }
            }
        }
        leaders.sort_unstable();
        Ok(leaders)
    }

    async fn undo(&mut self, undo: Undo) -> Result<(), String> {
        match undo {
            Undo::Restart(node) => self.boot(node).await,
            Undo::Reopen { side, one_way } => {
                self.cut(&side, one_way, false);
                Ok(())
            }
            Undo::Calm => {
                self.net.set_default(self.calm.clone());
                Ok(())
            }
        }
    }

    /// Cuts the nodes of `side` off from the other nodes, or lets them together again. Clients reach everyone.
    pub(super) fn cut(&mut self, side: &[u32], one_way: bool, cut: bool) {
        for inner in side {
            for outer in self.machines.keys().filter(|id| !side.contains(id)) {
                let (inner, outer) = (address(*inner).ip(), address(*outer).ip());
                let ways = [Some((inner, outer)), (!one_way).then_some((outer, inner))];
                for (from, to) in ways.into_iter().flatten() {
                    if cut { self.net.block(from, to) } else { self.net.unblock(from, to) }
                }
            }
        }
    }

    /// Ends every fault: links whole, all nodes up, clocks right.
    ///
    /// # Errors
    /// If a node does not start, or has failed by itself.
    pub async fn heal(&mut self) -> Result<(), String> {
        self.net.heal();
        self.net.set_default(Link::CALM);
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            if self.machines.get(&id).is_some_and(|machine| machine.node.is_none()) {
                self.boot(id).await?;
            }
        }
        self.failures()
    }

    /// The disks, as they are at any time.
    #[must_use]
    pub fn disks(&self) -> Disks {
        self.disks.clone()
    }

    /// Makes a node's wall clock go too fast, or too slow, by so many millionths.
    pub fn drift(&self, node: u32, ppm: i64) {
        if let Some(machine) = self.machines.get(&node) {
            machine.clock.drift_ppm.store(ppm, Ordering::Relaxed);
        }
    }

    /// Sets every wall clock to the same time, so many milliseconds ahead of what has passed in the simulation, and lets
    /// it go right from now on.
    pub fn set_clocks(&self, ahead_ms: i64) {
        for machine in self.machines.values() {
            machine.clock.offset_ms.store(ahead_ms, Ordering::Relaxed);
            machine.clock.drift_ppm.store(0, Ordering::Relaxed);
        }
    }

    /// What each node that runs says of its replicas.
    pub async fn statuses(&self) -> BTreeMap<NodeId, Vec<NamespaceStatus>> {
        let mut statuses = BTreeMap::new();
        for (id, machine) in &self.machines {
            if let Some(node) = &machine.node {
                statuses.insert(NodeId(*id), node.status().await.namespaces);
            }
        }
        statuses
    }

    /// Waits until every member of every strong namespace has applied the same and has the same digest.
    ///
    /// # Errors
    /// What they disagree on, if the deadline comes first; at once if one holds another digest at the same position.
    pub async fn agree(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            let disagreement = match self.disagreement().await {
                Ok(()) => return self.failures(),
                Err(what) => what,
            };
            if disagreement.starts_with("diverged") || Instant::now() >= deadline {
                return Err(disagreement);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn disagreement(&self) -> Result<(), String> {
        let mut replicas: BTreeMap<String, Vec<(u32, NamespaceStatus)>> = BTreeMap::new();
        for (id, machine) in &self.machines {
            let Some(node) = &machine.node else { return Err(format!("node {id} is down")) };
            for status in node.status().await.namespaces.into_iter().filter(|s| s.mode == Mode::Strong) {
                replicas.entry(status.name.to_string()).or_default().push((*id, status));
            }
        }
        for (name, members) in &replicas {
            for (id, status) in members {
                if let Some((other, it)) =
                    members.iter().find(|(_, it)| it.applied == status.applied && it.digest != status.digest)
                {
                    let position = status.applied;
                    return Err(format!(
                        "diverged: {name} at position {position} is {} on node {id} and {} on node {other}",
                        status.digest, it.digest
                    ));
                }
            }
            let applied: Vec<_> = members.iter().map(|(id, status)| (*id, status.applied)).collect();
            if applied.windows(2).any(|pair| pair[0].1 != pair[1].1) {
                return Err(format!("{name}: members have applied (node, position) {applied:?}"));
            }
        }
        Ok(())
    }

    /// No node may end by itself.
    fn failures(&self) -> Result<(), String> {
        for (id, machine) in &self.machines {
            if let Some(Err(why)) = machine.node.as_ref().map(Node::healthy) {
                return Err(format!("node {id} has failed: {why}"));
            }
        }
        Ok(())
    }

    /// A number that depends on every packet so far.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.net.fingerprint()
    }

    /// Ends all nodes at once.
    pub fn stop(&mut self) {
        for machine in self.machines.values_mut() {
            if let Some(node) = machine.node.take() {
                node.kill();
            }
        }
    }
}

enum Step {
    Fault(Fault),
    Undo(Undo),
}

pub(super) fn client_address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from([10, 0, 1, number as u8]))
}

pub(super) fn address(node: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from([10, 0, 0, node as u8])), PORT)
}

fn tls(authority: &mut CertificateAuthority, cluster: &ClusterName, principal: Principal) -> Result<Tls, String> {
    let identity = Identity { cluster: cluster.clone(), principal };
    let issued = authority.issue(&identity, Validity::days(3650), &[]).map_err(|e| e.to_string())?;
    Tls::from_pem(authority.cert().as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes())
        .map_err(|e| e.to_string())
}
