//! What a node counts, in a registry of its own: many nodes can live in one test process.
//!
//! Counters and histograms are fed where things happen; the state of the replicas, the store and the peers is read
//! when it is asked for, so that a node that nobody watches spends nothing on it. Names begin with `duet_` and use
//! base units.

mod durable;
mod eventual;
mod requests;
mod switch;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use duet_engine_eventual::{Metrics as EventualMetrics, NodeWord};
use duet_engine_strong::Metrics as StrongMetrics;
use duet_proto::{GroupRole, Mode, NamespaceInfo, NamespaceName, NamespaceStatus, NodeId, NodeStatus, QuorumHealth};
use duet_router::Metrics as SwitchMetrics;
use duet_transport::{Lane, Stats};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

pub(crate) use durable::Durable;
use eventual::Convergence;
pub(crate) use requests::Requests;
use switch::Switches;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Replica {
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplicaIs {
    namespace: String,
    mode: String,
    role: &'static str,
    quorum: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Member {
    namespace: String,
    member: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Peer {
    peer: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneOf {
    lane: String,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneFrames {
    lane: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Event {
    event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Engine {
    engine: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// What is looked at when the metrics are asked for.
pub(crate) struct Seen<'a> {
    pub(crate) ready: bool,
    pub(crate) hlc_drift_ms: u64,
    pub(crate) status: &'a NodeStatus,
    /// What the catalog has.
    pub(crate) catalog: &'a [NamespaceInfo],
    /// Late writes that wait here.
    pub(crate) late: &'a [(NamespaceName, u64)],
    pub(crate) strong: &'a StrongMetrics,
    pub(crate) eventual: &'a EventualMetrics,
    pub(crate) switches: &'a SwitchMetrics,
    pub(crate) gossip: &'a BTreeMap<NodeId, NodeWord>,
    pub(crate) transport: &'a Stats,
}

/// The metrics of one node.
pub(crate) struct Metrics {
    registry: Registry,
    /// Held while the state is put in and shown: whoever asks meanwhile would see half of it.
    rendering: Mutex<()>,
    convergence: Convergence,
    switches: Switches,
    /// Requests that have been served.
    pub(crate) requests: Requests,
    /// Requests being served.
    pub(crate) in_flight: Gauge,
    connections: Gauge<u64, AtomicU64>,
    ready: Gauge,
    peers: Gauge,
    disk_free: Gauge<u64, AtomicU64>,
    disk_full: Gauge,
    replica: Family<ReplicaIs, Gauge>,
    epoch: Family<Replica, Gauge>,
    term: Family<Replica, Gauge<u64, AtomicU64>>,
    leader: Family<Replica, Gauge>,
    last: Family<Replica, Gauge<u64, AtomicU64>>,
    committed: Family<Replica, Gauge<u64, AtomicU64>>,
    applied: Family<Replica, Gauge<u64, AtomicU64>>,
    keys: Family<Replica, Gauge<u64, AtomicU64>>,
    tombstones: Family<Replica, Gauge<u64, AtomicU64>>,
    hlc_drift: Gauge<f64, AtomicU64>,
    lag: Family<Member, Gauge<u64, AtomicU64>>,
    waiting: Family<Engine, Gauge<u64, AtomicU64>>,
    groups: Family<InState, Gauge<u64, AtomicU64>>,
    engine: Family<Event, Counter>,
    spaces: Family<InState, Gauge<u64, AtomicU64>>,
    eventual: Family<Event, Counter>,
    alive: Family<Peer, Gauge>,
    word_lag: Family<Member, Gauge<f64, AtomicU64>>,
    word_epoch: Family<Member, Gauge>,
    lanes: Family<LaneOf, Counter>,
    frames: Family<LaneFrames, Counter>,
    handshakes: Counter,
    links: Counter,
    streams: Counter,
    refusals: Family<Reason, Counter>,
}

impl Metrics {
    /// Everything at zero.
    pub(crate) fn new(version: &str, commit: &str, node: u32, cluster: &str) -> Metrics {
        let mut registry = Registry::with_prefix("duet");
        let build = Info::new(vec![
            ("version", version.to_owned()),
            ("commit", commit.to_owned()),
            ("node", node.to_string()),
            ("cluster", cluster.to_owned()),
        ]);
        registry.register("build", "The version, the node and its cluster", build);
        let convergence = Convergence::default();
        registry.register_collector(Box::new(convergence.clone()));
        let requests = Requests::default();
        registry.register_collector(Box::new(requests.clone()));
        let r = &mut registry;
        let switches = Switches::new(r);
        Metrics {
            in_flight: add(r, "requests_in_flight", "Requests being served", Gauge::default()),
            connections: add(r, "client_connections", "Client connections", Gauge::default()),
            ready: add(r, "ready", "1 if the node serves", Gauge::default()),
            peers: add(r, "peers_connected", "Peers with a connection", Gauge::default()),
            disk_free: add(r, "disk_free_bytes", "Free space on the disk of the data", Gauge::default()),
            disk_full: add(r, "disk_full", "1 if the reserve is reached and writes are refused", Gauge::default()),
            replica: add(r, "replica_state", "1 for what the replica is now", Family::default()),
            epoch: add(r, "namespace_epoch", "The epoch", Family::default()),
            term: add(r, "raft_term", "The Raft term", Family::default()),
            leader: add(
                r,
                "raft_leader",
                "The leader's node id as this node sees it, 0 without one",
                Family::default(),
            ),
            last: add(r, "raft_last_index", "The last index of the log", Family::default()),
            committed: add(r, "raft_committed_index", "The highest index known to be committed", Family::default()),
            applied: add(r, "raft_applied_index", "The highest index applied", Family::default()),
            keys: add(r, "namespace_keys", "Live keys", Family::default()),
            tombstones: add(r, "namespace_tombstones", "Tombstones held", Family::default()),
            hlc_drift: add(
                r,
                "hlc_drift_seconds",
                "How far the hybrid clock is ahead of the wall clock",
                Gauge::default(),
            ),
            lag: add(r, "raft_member_lag_entries", "On the leader: entries that the member lacks", Family::default()),
            waiting: add(r, "engine_queue", "Commands that wait in front of an engine", Family::default()),
            groups: add(r, "raft_groups", "Raft groups held, by what they do", Family::default()),
            engine: add(r, "raft_events", "What the strong engine did, by kind", Family::default()),
            spaces: add(r, "eventual_replicas", "Eventual replicas held, by what they do", Family::default()),
            eventual: add(r, "eventual_events", "What the eventual engine did, by kind", Family::default()),
            alive: add(r, "gossip_peer_alive", "1 if the peer lives, as gossip has it", Family::default()),
            word_lag: add(
                r,
                "gossip_lag_seconds",
                "What the member said last of its lag, as gossip has it",
                Family::default(),
            ),
            word_epoch: add(r, "gossip_epoch", "The member's epoch, as gossip has it", Family::default()),
            lanes: add(r, "lane_bytes", "Bytes between nodes, by lane and direction", Family::default()),
            frames: add(
                r,
                "lane_frames",
                "Frames from other nodes, by lane and what became of them",
                Family::default(),
            ),
            handshakes: add(r, "handshakes", "Handshakes begun by others", Counter::default()),
            links: add(r, "peer_connections", "Connections with peers that came up", Counter::default()),
            streams: add(r, "client_streams", "Streams of clients for one large request each", Counter::default()),
            refusals: add(r, "connections_refused", "Connections refused or ended, by reason", Family::default()),
            rendering: Mutex::default(),
            requests,
            convergence,
            switches,
            // Evaluated last: by now everything is in it.
            registry,
        }
    }

    /// Adds what is read elsewhere when it is asked for.
    pub(crate) fn collect(&mut self, collector: impl prometheus_client::collector::Collector) {
        self.registry.register_collector(Box::new(collector));
    }

    /// Everything as text, with the state as it is now.
    ///
    /// # Errors
    /// If a metric cannot be formatted.
    pub(crate) fn render(&self, seen: &Seen<'_>) -> Result<String, std::fmt::Error> {
        let _rendering = self.rendering.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(seen);
        self.switches.refresh(seen);
        self.refresh_gossip(seen);
        self.mirror_strong(seen.strong);
        self.mirror_eventual(seen.eventual);
        self.mirror_transport(seen.transport);
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// Puts what the endpoint counts into the registry.
    fn mirror_transport(&self, transport: &Stats) {
        self.connections.set(transport.clients);
        for (counter, value) in [
            (&self.handshakes, transport.handshakes),
            (&self.links, transport.links),
            (&self.streams, transport.streams),
        ] {
            counter.inner().store(value, Ordering::Relaxed);
        }
        for (lane, stats) in Lane::ALL.iter().zip(&transport.lanes) {
            for (result, frames) in [("received", stats.received), ("dropped", stats.full)] {
                let label = LaneFrames { lane: lane.to_string(), result };
                self.frames.get_or_create(&label).inner().store(frames, Ordering::Relaxed);
            }
            for (direction, bytes) in [("sent", stats.sent_bytes), ("received", stats.received_bytes)] {
                let label = LaneOf { lane: lane.to_string(), direction };
                self.lanes.get_or_create(&label).inner().store(bytes, Ordering::Relaxed);
            }
        }
        for (refusal, count) in &transport.refusals {
            let label = Reason { reason: refusal.label() };
            self.refusals.get_or_create(&label).inner().store(*count, Ordering::Relaxed);
        }
    }

    fn mirror_strong(&self, engine: &StrongMetrics) {
        let groups = [
            ("held", engine.groups),
            ("leading", engine.leading),
            ("quiet", engine.quiet),
            ("failed", engine.failed),
        ];
        for (state, count) in groups {
            self.groups.get_or_create(&InState { state }).set(count);
        }
        self.waiting.get_or_create(&Engine { engine: "strong" }).set(engine.waiting);
        for (event, count) in [
            ("proposed", engine.proposed),
            ("reproposed", engine.reproposed),
            ("applied", engine.applied),
            ("appended", engine.appended),
            ("read_rounds", engine.read_rounds),
            ("reads", engine.reads),
            ("no_quorum", engine.no_quorum),
            ("outcome_unknown", engine.unknown),
            ("elections", engine.elections),
            ("snapshots_sent", engine.snapshots_sent),
            ("snapshots_installed", engine.snapshots_installed),
            ("messages_refused", engine.refused),
            ("frames", engine.frames),
            ("steps", engine.steps),
        ] {
            self.engine.get_or_create(&Event { event }).inner().store(count, Ordering::Relaxed);
        }
    }

    fn mirror_eventual(&self, engine: &EventualMetrics) {
        for (state, count) in [("held", engine.spaces), ("failed", engine.failed), ("open", engine.open)] {
            self.spaces.get_or_create(&InState { state }).set(count);
        }
        self.waiting.get_or_create(&Engine { engine: "eventual" }).set(engine.waiting);
        for (event, count) in [
            ("writes", engine.writes),
            ("not_enough_copies", engine.not_enough_copies),
            ("clock_skew", engine.clock_skew),
            ("reads", engine.reads),
            ("token_waits", engine.token_waits),
            ("token_not_covered", engine.token_not_covered),
            ("steps", engine.steps),
            ("commits", engine.commits),
            ("frames_sent", engine.frames_out),
            ("frames_received", engine.frames_in),
            ("frames_dropped", engine.dropped),
            ("frames_malformed", engine.malformed),
            ("messages_unknown", engine.unknown),
            ("messages_refused_disk_full", engine.disk_refused),
            ("gossip_restarts", engine.gossip_restarts),
            ("gossip_malformed", engine.gossip_malformed),
        ] {
            self.eventual.get_or_create(&Event { event }).inner().store(count, Ordering::Relaxed);
        }
    }

    /// What gossip says of the others, of the namespaces that this node holds too: it knows no other names.
    fn refresh_gossip(&self, seen: &Seen<'_>) {
        self.alive.clear();
        self.word_lag.clear();
        self.word_epoch.clear();
        for (node, word) in seen.gossip {
            self.alive.get_or_create(&Peer { peer: node.0 }).set(word.alive.into());
            for state in seen.status.namespaces.iter().filter(|state| state.mode == Mode::Eventual) {
                let Some(space) = word.namespaces.get(&state.id) else { continue };
                let member = Member { namespace: state.name.to_string(), member: node.0 };
                self.word_lag.get_or_create(&member).set(space.lag_ms as f64 / 1e3);
                self.word_epoch.get_or_create(&member).set(space.epoch.0.into());
            }
        }
    }

    fn refresh(&self, seen: &Seen<'_>) {
        let status = seen.status;
        self.ready.set(seen.ready.into());
        self.hlc_drift.set(seen.hlc_drift_ms as f64 / 1e3);
        self.peers.set(status.connected.len() as i64);
        self.disk_free.set(status.disk_free);
        self.disk_full.set(status.disk_full.into());
        self.convergence.show(&status.namespaces);
        self.replica.clear();
        self.epoch.clear();
        self.leader.clear();
        self.lag.clear();
        let figures = [&self.term, &self.last, &self.committed, &self.applied, &self.keys, &self.tombstones];
        figures.iter().for_each(|family| family.clear());
        for state in &status.namespaces {
            let namespace = state.name.to_string();
            let is = ReplicaIs {
                namespace: namespace.clone(),
                mode: state.mode.to_string(),
                role: role(state.role),
                quorum: quorum(state.quorum),
            };
            self.replica.get_or_create(&is).set(1);
            let replica = Replica { namespace };
            self.epoch.get_or_create(&replica).set(state.epoch.0.into());
            self.keys.get_or_create(&replica).set(state.keys);
            self.tombstones.get_or_create(&replica).set(state.tombstones);
            if state.mode == Mode::Strong {
                self.refresh_group(&replica, state);
            }
        }
    }

    /// The figures of a Raft group.
    fn refresh_group(&self, replica: &Replica, state: &NamespaceStatus) {
        for member in &state.members {
            let member_of = Member { namespace: replica.namespace.clone(), member: member.node.0 };
            self.lag.get_or_create(&member_of).set(member.lag);
        }
        self.leader.get_or_create(replica).set(state.leader.map_or(0, |node| node.0.into()));
        self.term.get_or_create(replica).set(state.term);
        self.last.get_or_create(replica).set(state.last);
        self.committed.get_or_create(replica).set(state.committed);
        self.applied.get_or_create(replica).set(state.applied);
    }
}

/// Counts by powers of two as buckets: number i counts what came to up to 2^i units, the last what came to more.
fn powers(counts: &[u64], unit: f64) -> Vec<(f64, u64)> {
    let bounds = (0i32..).map(|i| 2f64.powi(i) * unit);
    let mut buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
    if let Some(last) = buckets.last_mut() {
        last.0 = f64::INFINITY;
    }
    buckets
}

/// Registers a metric and keeps a handle of it.
fn add<M>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M
where
    M: prometheus_client::registry::Metric + Clone,
{
    registry.register(name, help, metric.clone());
    metric
}

fn role(role: GroupRole) -> &'static str {
    match role {
        GroupRole::Leader => "leader",
        GroupRole::Follower => "follower",
        GroupRole::Candidate => "candidate",
        GroupRole::Learner => "learner",
        GroupRole::Member => "member",
        GroupRole::Failed => "failed",
    }
}

fn quorum(health: QuorumHealth) -> &'static str {
    match health {
        QuorumHealth::Healthy => "healthy",
        QuorumHealth::Degraded => "degraded",
        QuorumHealth::Lost => "lost",
        QuorumHealth::NotNeeded => "not_needed",
    }
}

#[cfg(test)]
mod tests;
