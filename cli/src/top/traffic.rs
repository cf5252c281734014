//! What clients got between two looks, out of the counts that every node keeps since its start.

use std::{collections::BTreeMap, time::Duration};

use duet_proto::Answered;
use serde::Serialize;

use crate::status::NodeRow;

/// What clients got of one namespace, from all nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Traffic {
    pub(super) per_second: f64,
    pub(super) written_per_second: f64,
    pub(super) refused_per_second: f64,
    /// Half of the requests took at most so long; `None` where there were none.
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
}

/// The traffic of all namespaces of which there was some, by name. `None` if it cannot be told: no node has answered
/// both times without a new start in between.
pub(super) fn between(before: &[NodeRow], now: &[NodeRow], elapsed: Duration) -> Option<BTreeMap<String, Traffic>> {
    let earlier: BTreeMap<_, &NodeRow> = before.iter().map(|node| (node.id, node)).collect();
    let same =
        |node: &&NodeRow| earlier.get(&node.id).is_some_and(|before| node.boot.is_some() && before.boot == node.boot);
    let mut nodes = now.iter().filter(same).peekable();
    if elapsed.is_zero() || nodes.peek().is_none() {
        return None;
    }
    let mut sums: BTreeMap<&str, Answered> = BTreeMap::new();
    for node in nodes {
        let before: BTreeMap<_, _> =
            earlier[&node.id].answered.iter().map(|answered| (&answered.namespace, answered)).collect();
        for now in &node.answered {
            // What was deleted and made anew meanwhile counts from its beginning.
            let grown =
                before.get(&now.namespace).and_then(|before| grown(before, now)).unwrap_or_else(|| now.clone());
            sums.entry(now.namespace.as_str()).and_modify(|sum| add(sum, &grown)).or_insert(grown);
        }
    }
    Some(sums.into_iter().map(|(name, sum)| (name.to_owned(), traffic(&sum, elapsed))).collect())
}

/// What has come since; `None` if counts have fallen.
fn grown(before: &Answered, now: &Answered) -> Option<Answered> {
    let mut grown = now.clone();
    grown.refused = now.refused.checked_sub(before.refused)?;
    grown.written = now.written.checked_sub(before.written)?;
    for (now, before) in grown.took.iter_mut().zip(before.took) {
        *now = now.checked_sub(before)?;
    }
    Some(grown)
}

fn add(sum: &mut Answered, more: &Answered) {
    sum.refused += more.refused;
    sum.written += more.written;
    sum.took.iter_mut().zip(more.took).for_each(|(sum, more)| *sum += more);
}

fn traffic(sum: &Answered, elapsed: Duration) -> Traffic {
    let per_second = |count: u64| count as f64 / elapsed.as_secs_f64();
    Traffic {
        per_second: per_second(sum.took.iter().sum()),
        written_per_second: per_second(sum.written),
        refused_per_second: per_second(sum.refused),
        p50_us: quantile(&sum.took, 0.5),
        p99_us: quantile(&sum.took, 0.99),
    }
}

/// Estimated as Prometheus's `histogram_quantile` does, so that both tell the same: evenly within its bucket; of those
/// that took longer than the last bound, that bound.
fn quantile(took: &[u64], quantile: f64) -> Option<u64> {
    let rank = quantile * took.iter().sum::<u64>() as f64;
    let (mut below, mut from) = (0.0, 0.0);
    let bounds = Answered::BOUNDS_US.iter().map(|bound| *bound as f64);
    for (bound, count) in bounds.zip(took).map(|(bound, count)| (bound, *count as f64)) {
        if count > 0.0 && below + count >= rank {
            return Some((from + (bound - from) * (rank - below) / count) as u64);
        }
        (below, from) = (below + count, bound);
    }
    (rank > 0.0).then_some(from as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{status::Report, top::model::tests::strong};

    const SECOND: Duration = Duration::from_secs(1);

    /// Counts of a namespace: refused, twice as many written, and by bucket.
    fn answered(name: &str, refused: u64, buckets: &[(usize, u64)]) -> Answered {
        let mut took = [0; Answered::BOUNDS_US.len() + 1];
        buckets.iter().for_each(|(at, count)| took[*at] = *count);
        Answered { namespace: name.parse().unwrap(), refused, written: 2 * refused, took }
    }

    fn told(by_node: [Vec<Answered>; 3]) -> Report {
        let mut report = strong([Some(1); 3]);
        report.nodes.iter_mut().zip(by_node).for_each(|(node, answered)| node.answered = answered);
        report
    }

    #[test]
    fn what_came_between_two_looks_is_summed_over_the_nodes() {
        let before = told([vec![answered("orders", 5, &[(0, 900), (4, 10)])], vec![], vec![]]);
        let now = told([
            vec![answered("orders", 7, &[(0, 900), (4, 60)])],
            // Asked for the first time, and of something else too.
            vec![answered("carts", 0, &[(1, 4)]), answered("orders", 0, &[(4, 50)])],
            vec![],
        ]);
        let all = between(&before.nodes, &now.nodes, 2 * SECOND).unwrap();
        // A hundred of between 500 and 1000 µs.
        let orders = Traffic {
            per_second: 50.0,
            written_per_second: 2.0,
            refused_per_second: 1.0,
            p50_us: Some(750),
            p99_us: Some(995),
        };
        assert_eq!(all["orders"], orders);
        assert_eq!((all["carts"].per_second, all.len()), (2.0, 2));
        let idle = between(&now.nodes, &now.nodes, SECOND).unwrap();
        assert_eq!(idle["orders"], Traffic::default(), "nothing came");
    }

    #[test]
    fn what_cannot_be_compared_is_left_out() {
        let before = told([vec![answered("orders", 0, &[(4, 10)])], vec![answered("orders", 0, &[(4, 80)])], vec![]]);
        let mut now =
            told([vec![answered("orders", 0, &[(4, 30)])], vec![answered("orders", 0, &[(4, 90)])], vec![]]);
        assert_eq!(between(&before.nodes, &now.nodes, Duration::ZERO), None, "no time has passed");
        now.nodes[1].boot = Some(3);
        assert_eq!(between(&before.nodes, &now.nodes, SECOND).unwrap()["orders"].per_second, 20.0, "node 2 is new");
        now.nodes.iter_mut().for_each(|node| node.boot = None);
        assert_eq!(between(&before.nodes, &now.nodes, SECOND), None, "nobody answers");
        let made_anew = told([vec![answered("orders", 0, &[(4, 3)])], vec![], vec![]]);
        assert_eq!(between(&before.nodes, &made_anew.nodes, SECOND).unwrap()["orders"].per_second, 3.0);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let of = |buckets: &[(usize, u64)], q| quantile(&answered("a", 0, buckets).took, q);
        assert_eq!(of(&[], 0.99), None);
        assert_eq!(of(&[(0, 1)], 0.5), Some(25), "from nothing up to the first bound");
        assert_eq!(of(&[(0, 90), (9, 10)], 0.5), Some(27));
        assert_eq!(of(&[(0, 90), (9, 10)], 0.9), Some(50));
        assert_eq!(of(&[(0, 90), (9, 10)], 0.99), Some(47_000), "between 20 and 50 ms");
        assert_eq!(of(&[(17, 3)], 0.5), Some(10_000_000), "longer than all bounds");
    }
}
