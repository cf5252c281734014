use duet_proto::{Boot, Digest, Epoch, SwitchProgress, SwitchStep};

use super::*;

pub(crate) fn replica(node: u32, applied: u64, digest: u128) -> NamespaceStatus {
    let leads = node == 1;
    NamespaceStatus {
        id: NamespaceId(1),
        name: "orders".parse().unwrap(),
        mode: Mode::Strong,
        epoch: Epoch(1),
        phase: Phase::Stable,
        role: if leads { GroupRole::Leader } else { GroupRole::Follower },
        quorum: QuorumHealth::Healthy,
        term: 3,
        leader: Some(NodeId(1)),
        last: applied,
        committed: applied,
        applied,
        first: 1,
        keys: 2,
        tombstones: 0,
        digest: Digest(digest),
        members: vec![],
        eventual: None,
    }
}

pub(crate) fn cluster(mode: Mode, replicas: [Option<NamespaceStatus>; 3]) -> Report {
    cluster_where_node_3_expects(&[], mode, replicas)
}

type Answers = BTreeMap<NodeId, Result<NodeStatus, String>>;

/// A topology, and what three nodes that agree say of it.
pub(crate) fn answers() -> (Topology, Answers) {
    asked(Mode::Strong, [1, 2, 3].map(|node| Some(replica(node, 9, 5))))
}

fn cluster_where_node_3_expects(
    expected: &[(&str, Mode)],
    mode: Mode,
    replicas: [Option<NamespaceStatus>; 3],
) -> Report {
    let (topology, mut answers) = asked(mode, replicas);
    if let Some(Ok(status)) = answers.get_mut(&NodeId(3)) {
        status.expected = expected.iter().map(|(name, mode)| (name.parse().unwrap(), *mode)).collect();
    }
    Report::new(&topology, &answers)
}

fn asked(mode: Mode, replicas: [Option<NamespaceStatus>; 3]) -> (Topology, Answers) {
    let nodes = (1..=3).map(|id| NodeInfo { id: NodeId(id), address: format!("host:{id}"), boot: Boot(1) });
    let topology = Topology {
        cluster: "test".parse().unwrap(),
        me: NodeId(1),
        nodes: nodes.clone().collect(),
        namespaces: vec![NamespaceInfo {
            id: NamespaceId(1),
            name: "orders".parse().unwrap(),
            mode,
            epoch: Epoch(1),
            phase: Phase::Stable,
            members: nodes.clone().map(|n| n.id).collect(),
            copies: 1,
            leader: None,
        }],
        version: 1,
    };
    let answers = nodes.zip(replicas).map(|(node, replica)| {
        let status = replica.map(|replica| NodeStatus {
            node: node.id,
            address: node.address,
            version: "0.1.0".into(),
            boot: Boot(2),
            uptime_ms: 61_000,
            disk_free: 1 << 30,
            namespaces: vec![replica],
            ..NodeStatus::default()
        });
        (node.id, status.ok_or_else(|| "timed out".to_owned()))
    });
    let answers = answers.collect();
    (topology, answers)
}

#[test]
fn agreement_is_healthy() {
    let report = cluster(Mode::Strong, [Some(replica(1, 9, 5)), Some(replica(2, 9, 5)), Some(replica(3, 7, 4))]);
    assert!(report.healthy && report.namespaces[0].agreed, "{:?}", report.problems);
    assert_eq!(report.namespaces[0].members[2].replica.as_ref().unwrap().lag, 2);
    assert!(report.render().ends_with("cluster test is healthy\n"));
}

#[test]
fn other_data_at_the_same_position_is_marked() {
    let report = cluster(Mode::Strong, [Some(replica(1, 9, 5)), Some(replica(2, 9, 6)), Some(replica(3, 9, 5))]);
    assert!(!report.healthy && !report.namespaces[0].agreed);
    assert!(report.render().contains("✗ has other data than node 1 at position 9"), "{}", report.render());
}

#[test]
fn a_lost_leader_and_node_are_told() {
    let mut two = replica(2, 9, 5);
    two.role = GroupRole::Candidate;
    let report = cluster(Mode::Strong, [None, Some(two), None]);
    assert_eq!(report.namespaces[0].quorum, QuorumHealth::Lost);
    let text = report.render();
    assert!(
        text.contains("node 1 at host:1 is unreachable: timed out") && text.contains("orders: no quorum"),
        "{text}"
    );
}

#[test]
fn another_epoch_is_marked() {
    let mut two = replica(2, 9, 5);
    two.epoch = Epoch(2);
    let report = cluster(Mode::Strong, [Some(replica(1, 9, 5)), Some(two), Some(replica(3, 9, 5))]);
    assert_eq!(report.namespaces[0].members[1].disagrees.as_deref(), Some("is in epoch 2, the catalog in 1"));
}

#[test]
fn a_mode_that_is_not_expected_is_a_problem() {
    let member = |node| NamespaceStatus { mode: Mode::Eventual, ..replica(node, 9, 5) };
    let replicas = || [1, 2, 3].map(|node| Some(member(node)));
    let expects = |expected| cluster_where_node_3_expects(&[expected], Mode::Eventual, replicas());
    assert!(expects(("orders", Mode::Eventual)).healthy && expects(("nowhere", Mode::Strong)).healthy);
    let report = expects(("orders", Mode::Strong));
    assert_eq!(report.problems, ["namespace orders is eventual, the configuration of node 3 expects strong"]);
    assert_eq!((report.healthy, &report.namespaces[0].unexpected[..]), (false, &[NodeId(3)][..]));
}

#[test]
fn a_switch_and_who_is_owed_are_told_and_are_no_problem() {
    let mut report = cluster(Mode::Strong, [1, 2, 3].map(|node| Some(replica(node, 9, 5))));
    let info = SwitchInfo {
        namespace: NamespaceInfo {
            id: NamespaceId(1),
            name: "orders".parse().unwrap(),
            mode: Mode::Strong,
            epoch: Epoch(1),
            phase: Phase::Switching,
            members: vec![],
            copies: 1,
            leader: None,
        },
        progress: Some(SwitchProgress {
            to: Mode::Eventual,
            step: SwitchStep::Ending,
            attempts: 1,
            asked_ms: 5,
            without: vec![],
            done: vec![],
            waits_for: vec![],
        }),
        base: None,
        owed: vec![(NodeId(3), Epoch(1))],
        history: vec![],
    };
    report.tell_of(&BTreeMap::from([(NamespaceId(1), info)]));
    let text = report.render();
    assert!(report.healthy && text.contains("· namespace orders is being switched to eventual: ending: "), "{text}");
    assert!(text.contains("· namespace orders: late writes of epoch 1 are awaited from node 3;"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["namespaces"][0]["owed"][0]["node"], 3);
}

#[test]
fn members_that_follow_a_switch_are_given_time() {
    let follows = |epoch: u32, at: u32| {
        let two = NamespaceStatus { epoch: Epoch(at), ..replica(2, 9, 5) };
        let mut report = cluster(Mode::Strong, [Some(replica(1, 9, 5)), Some(two), None]);
        report.namespaces[0].epoch = epoch;
        report.following()
    };
    assert!(follows(2, 2) && !follows(2, 1) && !follows(1, 2), "the first epoch follows nothing");
}
