//! What the text shows.

use std::time::Duration;

use duet_engine_eventual::SpaceWord;
use duet_proto::{
    Boot, ClockFault, Digest, Epoch, EventualStatus, Hlc, MemberProgress, NamespaceId, NodeId, Phase, Request,
    Response,
};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn status(namespaces: Vec<NamespaceStatus>) -> NodeStatus {
    NodeStatus { disk_free: 5, connected: vec![NodeId(1)], namespaces, ..NodeStatus::default() }
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
        eventual: &EventualMetrics { writes: 9, spaces: 1, waiting: 4, ..EventualMetrics::default() },
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
    let metrics = Metrics::new("1.2.3", "abc", 7, "c");
    metrics.requests.answered(&metrics.requests.asked(&Request::Topology, |_| false), &Response::Done, MS);
    let text = shown(&metrics, &status(vec![]));
    holds(
        &text,
        &[
            "duet_build_info{version=\"1.2.3\",commit=\"abc\",node=\"7\",cluster=\"c\"} 1",
            "duet_requests_total{kind=\"topology\",outcome=\"ok\"} 1",
            "duet_request_duration_seconds_count{kind=\"topology\"} 1",
            "duet_ready 1",
            "duet_peers_connected 1",
            "duet_disk_free_bytes 5",
            "duet_hlc_drift_seconds 0.25",
        ],
    );
}

#[test]
fn each_mode_has_its_own_figures() {
    let metrics = Metrics::new("1.2.3", "abc", 7, "c");
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
            "duet_engine_queue{engine=\"eventual\"} 4",
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
