//! What a node counts, in a registry of its own: many nodes can live in one test process.
//!
//! Counters and histograms are fed where things happen; the state of the replicas, the store and the peers is read
//! when it is asked for, so that a node that nobody watches spends nothing on it. Names begin with `duet_` and use
//! base units.

use std::sync::atomic::{AtomicU64, Ordering};

use duet_engine_strong::Metrics as EngineMetrics;
use duet_proto::{GroupRole, NodeStatus, QuorumHealth, Request, Response};
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

/// The metrics of one node.
pub(crate) struct Metrics {
    registry: Registry,
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
    lag: Family<Member, Gauge<u64, AtomicU64>>,
    groups: Family<InState, Gauge<u64, AtomicU64>>,
    engine: Family<Event, Counter>,
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
        let r = &mut registry;
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
            lag: add(r, "raft_member_lag_entries", "On the leader: entries that the member lacks", Family::default()),
            groups: add(r, "raft_groups", "Raft groups held, by what they do", Family::default()),
            engine: add(r, "raft_events", "What the strong engine did, by kind", Family::default()),
            lanes: add(r, "lane_bytes", "Bytes between nodes, by lane and direction", Family::default()),
            refusals: add(r, "connections_refused", "Connections refused or ended, by reason", Family::default()),
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
    pub(crate) fn render(
        &self,
        ready: bool,
        status: &NodeStatus,
        engine: &EngineMetrics,
        transport: &Stats,
    ) -> Result<String, std::fmt::Error> {
        self.refresh(ready, status);
        self.mirror(engine, transport);
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// Puts what others count into the registry.
    fn mirror(&self, engine: &EngineMetrics, transport: &Stats) {
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

    fn refresh(&self, ready: bool, status: &NodeStatus) {
        self.ready.set(ready.into());
        self.peers.set(status.connected.len() as i64);
        self.disk_free.set(status.disk_free);
        self.disk_full.set(status.disk_full.into());
        self.replica.clear();
        self.epoch.clear();
        self.leader.clear();
        self.keys.clear();
        self.lag.clear();
        let indices = [&self.term, &self.last, &self.committed, &self.applied];
        indices.iter().for_each(|family| family.clear());
        for state in &status.namespaces {
            let namespace = state.name.to_string();
            let is = ReplicaIs {
                namespace: namespace.clone(),
                mode: state.mode.to_string(),
                role: role(state.role),
                quorum: quorum(state.quorum),
            };
            self.replica.get_or_create(&is).set(1);
            for member in &state.members {
                let member_of = Member { namespace: namespace.clone(), member: member.node.0 };
                self.lag.get_or_create(&member_of).set(member.lag);
            }
            let replica = Replica { namespace };
            self.epoch.get_or_create(&replica).set(state.epoch.0.into());
            self.leader.get_or_create(&replica).set(state.leader.map_or(0, |node| node.0.into()));
            self.keys.get_or_create(&replica).set(state.keys);
            let values = [state.term, state.last, state.committed, state.applied];
            for (family, value) in indices.iter().zip(values) {
                family.get_or_create(&replica).set(value);
            }
        }
    }
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
    use duet_proto::{Boot, NodeId};

    use super::*;

    #[test]
    fn the_text_shows_counts_and_state() {
        let metrics = Metrics::new("1.2.3", 7, "c");
        metrics.answered("get", &Response::Done, 0.001);
        let status = NodeStatus {
            node: NodeId(7),
            address: String::new(),
            version: String::new(),
            boot: Boot(1),
            uptime_ms: 0,
            disk_free: 5,
            disk_full: false,
            connected: vec![NodeId(1)],
            namespaces: vec![],
        };
        let text = metrics.render(true, &status, &EngineMetrics::default(), &Stats::default()).unwrap();
        for line in [
            "duet_build_info{version=\"1.2.3\",node=\"7\",cluster=\"c\"} 1",
            "duet_requests_total{kind=\"get\",outcome=\"ok\"} 1",
            "duet_request_duration_seconds_count{kind=\"get\"} 1",
            "duet_ready 1",
            "duet_peers_connected 1",
            "duet_disk_free_bytes 5",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
