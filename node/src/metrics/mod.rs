//! What a node counts, in a registry of its own: many nodes can live in one test process.
//!
//! Counters and histograms are fed where things happen; the state of the replicas, the store and the peers is read
//! when it is asked for, so that a node that nobody watches spends nothing on it. Names begin with `duet_` and use
//! base units.

mod durable;
mod eventual;
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
use duet_proto::{
    GroupRole, Mode, NamespaceInfo, NamespaceName, NamespaceStatus, NodeId, NodeStatus, QuorumHealth, Request,
    Response,
};
use duet_router::Metrics as SwitchMetrics;
use duet_transport::{Lane, Stats};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets_range},
        info::Info,
    },
    registry::Registry,
};

pub(crate) use durable::Durable;
use eventual::Convergence;
use switch::Switches;

/// From 50 µs to 10 s.
type Seconds = Family<Kind, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    kind: &'static str,
    outcome: &'static str,
}

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
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Event {
    event: &'static str,
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
    requests: Family<Finished, Counter>,
    seconds: Seconds,
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
    groups: Family<InState, Gauge<u64, AtomicU64>>,
    engine: Family<Event, Counter>,
    spaces: Family<InState, Gauge<u64, AtomicU64>>,
    eventual: Family<Event, Counter>,
    alive: Family<Peer, Gauge>,
    word_lag: Family<Member, Gauge<f64, AtomicU64>>,
    word_epoch: Family<Member, Gauge>,
    lanes: Family<LaneOf, Counter>,
    refusals: Family<Reason, Counter>,
}

impl Metrics {
    /// Everything at zero.
    pub(crate) fn new(version: &str, node: u32, cluster: &str) -> Metrics {
        let mut registry = Registry::with_prefix("duet");
        let build = Info::new(vec![
            ("version", version.to_owned()),
            ("node", node.to_string()),
            ("cluster", cluster.to_owned()),
        ]);
        registry.register("build", "The version, the node and its cluster", build);
        let convergence = Convergence::default();
        registry.register_collector(Box::new(convergence.clone()));
        let r = &mut registry;
        let switches = Switches::new(r);
        let seconds = Seconds::new_with_constructor(|| Histogram::new(exponential_buckets_range(50e-6, 10.0, 16)));
        Metrics {
            requests: add(r, "requests", "Requests answered, by kind and outcome", Family::default()),
            seconds: add(r, "request_duration_seconds", "Time from a request's arrival to its answer", seconds),
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
            refusals: add(r, "connections_refused", "Connections refused or ended, by reason", Family::default()),
            rendering: Mutex::default(),
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

    /// Counts an answered request.
    pub(crate) fn answered(&self, kind: &'static str, response: &Response, seconds: f64) {
        let outcome = match response {
            Response::Error(error) => error.code(),
            _ => "ok",
        };
        self.requests.get_or_create(&Finished { kind, outcome }).inc();
        self.seconds.get_or_create(&Kind { kind }).observe(seconds);
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
        for (lane, stats) in Lane::ALL.iter().zip(&transport.lanes) {
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

/// Counts by whole milliseconds as buckets in seconds: number i counts what took up to 2^i ms, the last what took
/// longer.
fn buckets_of_ms(counts: &[u64]) -> Vec<(f64, u64)> {
    let bounds = (0i32..).map(|i| 2f64.powi(i) / 1e3);
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

/// The label of a request.
pub(crate) fn kind(request: &Request) -> &'static str {
    use duet_proto::Op;
    match request {
        Request::Topology => "topology",
        Request::Status => "status",
        Request::Admin(_) => "admin",
        Request::Data(data) => match data.op {
            Op::Get { .. } => "get",
            Op::Scan { .. } => "scan",
            Op::Write { .. } => "write",
            Op::CompareAndSet { .. } => "cas",
            Op::Transaction { .. } => "txn",
        },
    }
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
mod tests {
    use duet_engine_eventual::SpaceWord;
    use duet_proto::{
        Boot, ClockFault, Digest, Epoch, EventualStatus, Hlc, MemberProgress, NamespaceId, NodeId, Phase,
    };

    use super::*;

    fn status(namespaces: Vec<NamespaceStatus>) -> NodeStatus {
        NodeStatus {
            node: NodeId(7),
            address: String::new(),
            version: String::new(),
            boot: Boot(1),
            uptime_ms: 0,
            disk_free: 5,
            disk_full: false,
            connected: vec![NodeId(1)],
            namespaces,
            expected: Vec::new(),
            certificates: Default::default(),
        }
    }

    fn namespace(name: &str, eventual: Option<EventualStatus>) -> NamespaceStatus {
        let member =
            MemberProgress { node: NodeId(2), matched: 8, lag: 3, active: true, snapshot: false, learner: false };
        NamespaceStatus {
            id: NamespaceId(1),
            name: NamespaceName::new(name).unwrap(),
            mode: if eventual.is_some() { Mode::Eventual } else { Mode::Strong },
            epoch: Epoch(1),
            phase: Phase::Stable,
            role: GroupRole::Member,
            quorum: QuorumHealth::NotNeeded,
            term: 1,
            leader: None,
            last: 11,
            committed: 11,
            applied: 11,
            first: 1,
            keys: 4,
            tombstones: 2,
            digest: Digest::default(),
            members: vec![member],
            eventual,
        }
    }

    fn shown(metrics: &Metrics, status: &NodeStatus) -> String {
        let word =
            SpaceWord { epoch: Epoch(1), mode: Mode::Eventual, frontier: 0, digest: Digest::default(), lag_ms: 2500 };
        let word = NodeWord { alive: true, boot: Boot(1), namespaces: BTreeMap::from([(NamespaceId(1), word)]) };
        let seen = Seen {
            ready: true,
            hlc_drift_ms: 250,
            status,
            catalog: &[],
            late: &[(NamespaceName::new("orders").unwrap(), 5)],
            strong: &StrongMetrics::default(),
            eventual: &EventualMetrics { writes: 9, spaces: 1, ..EventualMetrics::default() },
            switches: &SwitchMetrics::default(),
            gossip: &BTreeMap::from([(NodeId(3), word), (NodeId(4), NodeWord::default())]),
            transport: &Stats::default(),
        };
        metrics.render(&seen).unwrap()
    }

    #[track_caller]
    fn holds(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_text_shows_counts_and_state() {
        let metrics = Metrics::new("1.2.3", 7, "c");
        metrics.answered("get", &Response::Done, 0.001);
        let text = shown(&metrics, &status(vec![]));
        holds(
            &text,
            &[
                "duet_build_info{version=\"1.2.3\",node=\"7\",cluster=\"c\"} 1",
                "duet_requests_total{kind=\"get\",outcome=\"ok\"} 1",
                "duet_request_duration_seconds_count{kind=\"get\"} 1",
                "duet_ready 1",
                "duet_peers_connected 1",
                "duet_disk_free_bytes 5",
                "duet_hlc_drift_seconds 0.25",
            ],
        );
    }

    #[test]
    fn each_mode_has_its_own_figures() {
        let metrics = Metrics::new("1.2.3", 7, "c");
        let mut converged_ms = [0; 16];
        (converged_ms[0], converged_ms[3], converged_ms[15]) = (5, 2, 1);
        let eventual = EventualStatus {
            whole: true,
            lag_ms: 1500,
            lag_writes: 3,
            frontier: vec![(NodeId(2), Hlc::from_millis(2500))],
            clock: Some(ClockFault { ahead_ms: 700, allowed_ms: 500 }),
            converged_ms,
            converged_sum_ms: 40_000,
            conflicts_won: 6,
            conflicts_lost: 7,
            fence: Some(9),
            ..EventualStatus::default()
        };
        let both = status(vec![namespace("carts", Some(eventual)), namespace("orders", None)]);
        let text = shown(&metrics, &both);
        holds(
            &text,
            &[
                "duet_replica_state{namespace=\"carts\",mode=\"eventual\",role=\"member\",quorum=\"not_needed\"} 1",
                "duet_namespace_tombstones{namespace=\"carts\"} 2",
                "duet_namespace_mode{namespace=\"carts\",mode=\"eventual\"} 1",
                "duet_namespace_mode{namespace=\"orders\",mode=\"strong\"} 1",
                "duet_namespace_switching{namespace=\"orders\"} 0",
                "duet_namespace_fenced{namespace=\"carts\"} 1",
                "duet_late_writes_waiting{namespace=\"orders\"} 5",
                "duet_eventual_whole{namespace=\"carts\"} 1.0",
                "duet_eventual_clean{namespace=\"carts\"} 0.0",
                "duet_eventual_lag_seconds{namespace=\"carts\"} 1.5",
                "duet_eventual_lag_writes{namespace=\"carts\"} 3.0",
                "duet_eventual_clock_fault_seconds{namespace=\"carts\"} 0.7",
                "duet_eventual_member_lag_writes{namespace=\"carts\",member=\"2\"} 3.0",
                "duet_eventual_frontier_timestamp_seconds{namespace=\"carts\",origin=\"2\"} 2.5",
                "duet_eventual_conflicts_total{namespace=\"carts\",result=\"won\"} 6",
                "duet_eventual_conflicts_total{namespace=\"carts\",result=\"lost\"} 7",
                "duet_eventual_digest_mismatches_total{namespace=\"carts\"} 0",
                "duet_eventual_sessions_total{namespace=\"carts\",outcome=\"interrupted\"} 0",
                "duet_eventual_convergence_seconds_bucket{le=\"0.008\",namespace=\"carts\"} 7",
                "duet_eventual_convergence_seconds_bucket{le=\"+Inf\",namespace=\"carts\"} 8",
                "duet_eventual_convergence_seconds_sum{namespace=\"carts\"} 40.0",
                "duet_eventual_replicas{state=\"held\"} 1",
                "duet_eventual_events_total{event=\"writes\"} 9",
                "duet_gossip_peer_alive{peer=\"3\"} 1",
                "duet_gossip_peer_alive{peer=\"4\"} 0",
                "duet_gossip_lag_seconds{namespace=\"carts\",member=\"3\"} 2.5",
                "duet_gossip_epoch{namespace=\"carts\",member=\"3\"} 1",
                "duet_raft_applied_index{namespace=\"orders\"} 11",
                "duet_raft_member_lag_entries{namespace=\"orders\",member=\"2\"} 3",
            ],
        );
        assert!(!text.contains("duet_raft_term{namespace=\"carts\""), "{text}");
        assert!(!text.contains("duet_raft_member_lag_entries{namespace=\"carts\""), "{text}");
        // What is gone is not shown any more.
        assert!(!shown(&metrics, &status(vec![])).contains("carts"));
    }
}
