//! What the members of an eventual namespace say: how far behind each is, and whether those that claim the same hold
//! the same.

use std::collections::BTreeMap;

use duet_proto::{ClockFault, EventualStatus, GroupRole, Mode, NamespaceStatus, NodeId};
use serde::Serialize;

use super::{MemberRow, NamespaceRow, Replica, dash, mark, word};
use crate::output::{count, span, table};

/// What only a member of an eventual namespace has to say. Counts are since the start of its node.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Eventual {
    /// Whether it has received its first copy; before that it serves nobody.
    pub whole: bool,
    /// Whether it holds nothing beyond its frontier.
    pub clean: bool,
    /// The version of the members that it goes by.
    pub version: u64,
    pub copies: u32,
    /// For each origin: up to when it holds every write.
    pub frontier: BTreeMap<NodeId, String>,
    /// Age of the oldest of its own writes that is not known to be everywhere.
    pub lag_ms: u64,
    /// How many of its own writes are not known to be everywhere.
    pub lag_writes: u64,
    /// How long its own writes took until they were known to be everywhere.
    pub convergence: Convergence,
    /// Why it refuses writes, if its clock is out of line.
    pub clock: Option<ClockFault>,
    /// The attempt at a switch for which it takes no writes.
    pub fence: Option<u64>,
    pub conflicts_won: u64,
    pub conflicts_lost: u64,
    pub digest_mismatches: u64,
    pub conflicting_markers: u64,
    pub damaged: u64,
    pub healed: u64,
    pub clock_refused: u64,
    pub strangers: u64,
    pub below_floor: u64,
    pub gaps: u64,
    pub sessions: u64,
    pub interrupted: u64,
    pub forgotten: u64,
}

/// A histogram. Percentiles are the upper bounds of their buckets; `None` where nothing was measured, or it took
/// longer than the last bound.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Convergence {
    pub writes: u64,
    pub mean_ms: Option<f64>,
    pub p50_ms: Option<u64>,
    pub p99_ms: Option<u64>,
    /// Upper bound in milliseconds (none for the last) and number of writes.
    pub buckets: Vec<(Option<u64>, u64)>,
}

impl From<&EventualStatus> for Eventual {
    fn from(s: &EventualStatus) -> Eventual {
        Eventual {
            whole: s.whole,
            clean: s.clean,
            version: s.version,
            copies: s.copies,
            frontier: s.frontier.iter().map(|(origin, hlc)| (*origin, hlc.to_string())).collect(),
            lag_ms: s.lag_ms,
            lag_writes: s.lag_writes,
            convergence: Convergence::new(&s.converged_ms, s.converged_sum_ms),
            clock: s.clock,
            fence: s.fence,
            conflicts_won: s.conflicts_won,
            conflicts_lost: s.conflicts_lost,
            digest_mismatches: s.digest_mismatches,
            conflicting_markers: s.conflicting_markers,
            damaged: s.damaged,
            healed: s.healed,
            clock_refused: s.clock_refused,
            strangers: s.strangers,
            below_floor: s.below_floor,
            gaps: s.gaps,
            sessions: s.sessions,
            interrupted: s.interrupted,
            forgotten: s.forgotten,
        }
    }
}

impl Convergence {
    /// From writes by how long they took: up to 1, 2, 4, … milliseconds, and longer.
    fn new(buckets: &[u64], sum_ms: u64) -> Convergence {
        let last = buckets.len().saturating_sub(1);
        let bound = |at: usize| (at < last).then(|| 1u64 << at);
        let writes: u64 = buckets.iter().sum();
        let percentile = |percent: u64| {
            let mut left = (writes * percent).div_ceil(100);
            let at = buckets.iter().position(|in_it| {
                left = left.saturating_sub(*in_it);
                left == 0
            });
            at.filter(|_| writes > 0).and_then(bound)
        };
        Convergence {
            writes,
            mean_ms: (writes > 0).then(|| sum_ms as f64 / writes as f64),
            p50_ms: percentile(50),
            p99_ms: percentile(99),
            buckets: buckets.iter().enumerate().map(|(at, writes)| (bound(at), *writes)).collect(),
        }
    }
}

/// Whether every one of them holds the same, as far as they say: all whole and clean, equal frontiers, equal digests.
/// `None` for a strong namespace.
pub(super) fn converged(mode: Mode, members: usize, replicas: &[(NodeId, &NamespaceStatus)]) -> Option<bool> {
    if mode == Mode::Strong {
        return None;
    }
    let settled = |r: &NamespaceStatus| r.eventual.as_ref().is_some_and(|e| e.whole && e.clean);
    let same = replicas.windows(2).all(|pair| {
        let (a, b) = (pair[0].1, pair[1].1);
        a.epoch == b.epoch && a.digest == b.digest && frontier(a) == frontier(b)
    });
    Some(replicas.len() == members && same && replicas.iter().all(|(_, r)| settled(r)))
}

/// Two members that hold nothing beyond what they claim, and claim the same, must hold the same.
pub(super) fn odds(mine: &NamespaceStatus, node: NodeId, theirs: &NamespaceStatus) -> Option<String> {
    let sure = |r: &NamespaceStatus| r.eventual.as_ref().is_some_and(|e| e.whole && e.clean);
    let differs = sure(mine) && sure(theirs) && frontier(mine) == frontier(theirs) && mine.digest != theirs.digest;
    differs.then(|| format!("has other data than node {node}, though both claim the same writes"))
}

fn frontier(replica: &NamespaceStatus) -> Option<&[(NodeId, duet_proto::Hlc)]> {
    replica.eventual.as_ref().map(|e| &e.frontier[..])
}

/// The members of eventual namespaces, for people.
pub(super) fn render<'a>(namespaces: impl Iterator<Item = &'a NamespaceRow>) -> String {
    let rows = namespaces.flat_map(|namespace| {
        namespace.members.iter().enumerate().map(|(at, member)| cells(namespace, member, at == 0))
    });
    let headers = [
        "NAMESPACE",
        "MODE",
        ">EPOCH",
        ">COPIES",
        "NODE",
        "STATE",
        ">LAG",
        ">WRITES",
        ">KEYS",
        ">TOMBSTONES",
        ">WON",
        ">LOST",
        ">P99",
        "DIGEST",
        "",
    ];
    table(&headers, rows)
}

fn cells(namespace: &NamespaceRow, member: &MemberRow, first: bool) -> Vec<String> {
    let head = |text: String| if first { text } else { String::new() };
    let mut cells = vec![
        head(namespace.name.clone()),
        head(namespace.mode_and_phase()),
        head(namespace.epoch.to_string()),
        head(namespace.copies.to_string()),
        member.node.to_string(),
    ];
    match (&member.replica, member.replica.as_ref().and_then(|r| r.eventual.as_ref())) {
        (Some(r), Some(e)) => cells.extend([
            state(r, e).into(),
            span(e.lag_ms),
            count(e.lag_writes),
            count(r.keys),
            count(r.tombstones),
            count(e.conflicts_won),
            count(e.conflicts_lost),
            e.convergence.p99_ms.map_or_else(dash, |ms| format!("≤ {}", span(ms))),
            r.digest[..8].to_owned(),
        ]),
        (replica, _) => {
            cells.push(match replica {
                Some(r) => word(r.role),
                None => super::no_replica(member).into(),
            });
            cells.extend(std::iter::repeat_with(dash).take(8));
        }
    }
    cells.push(notes(member));
    cells
}

fn state(replica: &Replica, eventual: &Eventual) -> &'static str {
    match eventual {
        _ if replica.role == GroupRole::Failed => "✗ failed",
        Eventual { clock: Some(_), .. } => "✗ clock",
        Eventual { fence: Some(_), .. } => "fenced",
        Eventual { whole: false, .. } => "first copy",
        Eventual { clean: false, .. } => "catching up",
        _ => "whole",
    }
}

/// What is wrong with a member, and what has been wrong since its node started.
fn notes(member: &MemberRow) -> String {
    let mut notes = mark(member);
    let Some(e) = member.replica.as_ref().and_then(|r| r.eventual.as_ref()) else { return notes };
    for (number, what) in [
        (e.digest_mismatches, "digest mismatches"),
        (e.conflicting_markers, "stamps with two values"),
        (e.damaged, "damaged records"),
        (e.healed, "healed"),
        (e.clock_refused, "stamps refused"),
    ] {
        if number > 0 {
            notes += &format!("{}{} {what}", if notes.is_empty() { "" } else { ", " }, count(number));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use duet_proto::Hlc;

    use super::{
        super::tests::{cluster, replica},
        *,
    };

    fn member(node: u32, frontier: u64, digest: u128) -> NamespaceStatus {
        let eventual = EventualStatus {
            whole: true,
            clean: true,
            copies: 2,
            frontier: vec![(NodeId(1), Hlc(frontier))],
            lag_ms: 12,
            lag_writes: 3,
            conflicts_won: 1234,
            ..EventualStatus::default()
        };
        let strong = replica(node, 0, digest);
        NamespaceStatus { mode: Mode::Eventual, role: GroupRole::Member, eventual: Some(eventual), ..strong }
    }

    fn with(mut status: NamespaceStatus, change: impl Fn(&mut EventualStatus)) -> Option<NamespaceStatus> {
        change(status.eventual.as_mut().unwrap());
        Some(status)
    }

    #[test]
    fn members_that_hold_the_same_have_converged() {
        let report = cluster(Mode::Eventual, [Some(member(1, 9, 5)), Some(member(2, 9, 5)), Some(member(3, 9, 5))]);
        assert!(report.healthy && report.namespaces[0].converged == Some(true), "{:?}", report.problems);
        let text = report.render();
        assert!(text.contains("1,234") && text.contains("12 ms"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        let eventual = &json["namespaces"][0]["members"][0]["replica"]["eventual"];
        assert_eq!((&eventual["lag_writes"], &eventual["frontier"]["1"]), (&3.into(), &"0.9".into()));
    }

    #[test]
    fn members_that_are_behind_are_well_and_have_not_converged() {
        let ahead = with(member(3, 9, 7), |e| e.clean = false);
        for third in [Some(member(3, 8, 4)), ahead, with(member(3, 9, 4), |e| e.whole = false)] {
            let report = cluster(Mode::Eventual, [Some(member(1, 9, 5)), Some(member(2, 9, 5)), third]);
            assert!(report.healthy, "{:?}", report.problems);
            assert_eq!(report.namespaces[0].converged, Some(false));
        }
    }

    #[test]
    fn other_data_under_the_same_claim_is_marked() {
        let report = cluster(Mode::Eventual, [Some(member(1, 9, 5)), Some(member(2, 9, 6)), Some(member(3, 8, 4))]);
        assert!(!report.healthy && !report.namespaces[0].agreed && report.namespaces[0].converged == Some(false));
        assert!(report.namespaces[0].alarmed());
        let text = report.render();
        assert!(text.contains("✗ has other data than node 1, though both claim the same writes"), "{text}");
        assert_eq!(report.namespaces[0].members[2].disagrees, None, "the third claims less");
    }

    #[test]
    fn a_clock_out_of_line_is_a_problem_and_a_past_alarm_is_told() {
        let fault = ClockFault { ahead_ms: 3_600_000, allowed_ms: 500 };
        let two = with(member(2, 9, 5), |e| (e.clock, e.digest_mismatches, e.healed) = (Some(fault), 1, 1));
        let report = cluster(Mode::Eventual, [Some(member(1, 9, 5)), two, Some(member(3, 9, 5))]);
        assert!(!report.healthy && report.namespaces[0].agreed && report.namespaces[0].alarmed());
        let text = report.render();
        assert!(text.contains("orders, node 2: refuses writes") && text.contains("1 digest mismatches, 1 healed"));
        let healed = with(member(2, 9, 5), |e| (e.digest_mismatches, e.healed) = (1, 1));
        assert!(cluster(Mode::Eventual, [Some(member(1, 9, 5)), healed, Some(member(3, 9, 5))]).healthy);
    }

    #[test]
    fn percentiles_are_the_bounds_of_their_buckets() {
        let mut buckets = [0; 16];
        let of = |buckets: &[u64; 16]| {
            let c = Convergence::new(buckets, 500);
            (c.writes, c.p50_ms, c.p99_ms)
        };
        assert_eq!(of(&buckets), (0, None, None));
        (buckets[0], buckets[3]) = (98, 2);
        assert_eq!(of(&buckets), (100, Some(1), Some(8)));
        buckets[15] = 900;
        assert_eq!(of(&buckets), (1000, None, None), "longer than the last bound");
    }
}
