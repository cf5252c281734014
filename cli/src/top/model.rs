//! What the screen shows, worked out of what the cluster says now and said a moment ago. No terminal, no clock.

use std::time::Duration;

use duet_proto::{Mode, NodeId, Phase, QuorumHealth};
use serde::Serialize;

use super::traffic::{self, Traffic};
use crate::status::{NamespaceRow, NodeRow, Report};

/// What the cluster said, and when.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Since some moment before the first one.
    pub(super) at: Duration,
    pub(super) report: Report,
}

/// Everything that is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Screen {
    pub(super) cluster: String,
    pub(super) nodes: Vec<NodeLine>,
    pub(super) namespaces: Vec<NamespaceLine>,
    /// Switches under way, and late writes that are awaited.
    pub(super) notes: Vec<String>,
    pub(super) problems: Vec<String>,
}

/// A node. What is `None` is not known, because it did not answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct NodeLine {
    pub(super) id: NodeId,
    pub(super) address: String,
    pub(super) reachable: bool,
    pub(super) disk_full: bool,
    pub(super) version: Option<String>,
    pub(super) uptime_ms: Option<u64>,
    pub(super) disk_free: Option<u64>,
    /// Other nodes that it has a connection with, and how many there are.
    pub(super) connected: usize,
    pub(super) others: usize,
    /// Namespaces that it leads.
    pub(super) leads: usize,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct NamespaceLine {
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) epoch: u32,
    pub(super) phase: Phase,
    pub(super) leader: Option<NodeId>,
    pub(super) quorum: QuorumHealth,
    /// Whether a member is at odds with the others, or its clock is out of line.
    pub(super) alarmed: bool,
    /// Members that answer and hold a replica, and how many there are.
    pub(super) present: usize,
    pub(super) members: usize,
    /// Of the member that has the most.
    pub(super) keys: Option<u64>,
    /// Of the member that is behind the furthest.
    pub(super) lag: Option<Lag>,
    /// What clients got between the two samples; `None` where they cannot be compared.
    pub(super) requests: Option<Traffic>,
}

/// How far behind a member is, in what its mode measures that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Lag {
    /// Committed entries that are not applied.
    Entries(u64),
    /// Age of the oldest write that is not known to be everywhere, in milliseconds.
    Ms(u64),
}

impl Lag {
    /// The number alone, for sorting.
    pub(super) fn number(self) -> u64 {
        match self {
            Lag::Entries(number) | Lag::Ms(number) => number,
        }
    }
}

impl Screen {
    /// What to show of `now`, with rates since `before`.
    pub(super) fn new(before: Option<&Sample>, now: &Sample) -> Screen {
        let report = &now.report;
        let elapsed = before.map_or(Duration::ZERO, |sample| now.at.saturating_sub(sample.at));
        let traffic = before.and_then(|before| traffic::between(&before.report.nodes, &report.nodes, elapsed));
        let namespaces = report
            .namespaces
            .iter()
            .map(|row| {
                let requests = traffic.as_ref().map(|all| all.get(&row.name).copied().unwrap_or_default());
                NamespaceLine { requests, ..namespace(row) }
            })
            .collect();
        let unexplained = report.namespaces.iter().filter(|r| r.phase == Phase::Switching && r.switching.is_none());
        let mut notes = report.notes.clone();
        // A client that is no admin is not told how far it is.
        notes.extend(unexplained.map(|row| format!("namespace {} is being switched", row.name)));
        Screen {
            cluster: report.cluster.clone(),
            nodes: report.nodes.iter().map(|row| node(row, report)).collect(),
            namespaces,
            notes,
            problems: report.problems.clone(),
        }
    }
}

fn node(row: &NodeRow, report: &Report) -> NodeLine {
    NodeLine {
        id: row.id,
        address: row.address.clone(),
        reachable: row.reachable,
        disk_full: row.disk_full == Some(true),
        version: row.version.clone(),
        uptime_ms: row.uptime_ms,
        disk_free: row.disk_free,
        connected: row.connected.len(),
        others: report.nodes.len().saturating_sub(1),
        leads: report.namespaces.iter().filter(|namespace| namespace.leader == Some(row.id)).count(),
    }
}

/// What a namespace is now.
fn namespace(row: &NamespaceRow) -> NamespaceLine {
    let replicas = || row.members.iter().filter_map(|member| member.replica.as_ref());
    let lag = replicas().filter_map(|replica| match row.mode {
        Mode::Strong => Some(Lag::Entries(replica.lag)),
        Mode::Eventual => replica.eventual.as_ref().map(|eventual| Lag::Ms(eventual.lag_ms)),
    });
    NamespaceLine {
        name: row.name.clone(),
        mode: row.mode,
        epoch: row.epoch,
        phase: row.phase,
        leader: row.leader,
        quorum: row.quorum,
        alarmed: row.alarmed(),
        present: replicas().count(),
        members: row.members.len(),
        keys: replicas().map(|replica| replica.keys).max(),
        lag: lag.max(),
        requests: None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use duet_proto::{EventualStatus, GroupRole, NamespaceStatus};

    use super::*;
    use crate::status::tests::{cluster, replica};

    pub(crate) fn strong(applied: [Option<u64>; 3]) -> Report {
        let [one, two, three] = applied;
        let of = |node, applied: Option<u64>| applied.map(|applied| replica(node, applied, applied.into()));
        cluster(Mode::Strong, [of(1, one), of(2, two), of(3, three)])
    }

    fn eventual(present: [bool; 3]) -> Report {
        let mut node = 0;
        let replicas = present.map(|present| {
            node += 1;
            let status = EventualStatus { lag_ms: 40, ..EventualStatus::default() };
            let (mode, role) = (Mode::Eventual, GroupRole::Member);
            present.then(|| NamespaceStatus { mode, role, eventual: Some(status), ..replica(node, 0, 5) })
        });
        cluster(Mode::Eventual, replicas)
    }

    fn at(seconds: u64, report: Report) -> Sample {
        Sample { at: Duration::from_secs(seconds), report }
    }

    #[test]
    fn what_clients_got_needs_two_looks() {
        let before = at(1, strong([Some(1); 3]));
        let requests = |before| Screen::new(before, &at(3, strong([Some(1); 3]))).namespaces[0].requests;
        assert_eq!((requests(None), requests(Some(&before))), (None, Some(Traffic::default())));
    }

    #[test]
    fn the_lag_of_an_eventual_namespace_is_a_time() {
        let now = at(1, eventual([true, true, false]));
        assert_eq!(Screen::new(None, &now).namespaces[0].lag, Some(Lag::Ms(40)));
    }

    #[test]
    fn what_is_down_is_counted_as_down() {
        let screen = Screen::new(None, &at(0, strong([Some(9), Some(7), None])));
        let [up, _, down] = &screen.nodes[..] else { panic!("three nodes") };
        assert!(up.reachable && up.leads == 1 && up.others == 2);
        assert!(!down.reachable && down.uptime_ms.is_none() && down.disk_free.is_none());
        let orders = &screen.namespaces[0];
        assert_eq!((orders.present, orders.members, orders.lag), (2, 3, Some(Lag::Entries(2))));
        assert!(screen.problems[0].starts_with("node 3 at host:3 is unreachable"), "{:?}", screen.problems);
    }

    #[test]
    fn a_switch_is_noted_for_those_who_are_not_told_more() {
        let mut sample = at(0, strong([Some(1), Some(1), Some(1)]));
        sample.report.namespaces[0].phase = Phase::Switching;
        assert_eq!(Screen::new(None, &sample).notes, ["namespace orders is being switched"]);
        sample.report.namespaces[0].switching = Some("gathering".into());
        assert!(Screen::new(None, &sample).notes.is_empty());
    }
}
