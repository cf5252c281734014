//! How far the others are behind this replica's own writes, and how long it takes them to catch up.

use std::collections::VecDeque;

use duet_proto::Hlc;
use tokio::time::Instant;

/// Groups of writes told apart; beyond it neighbours become one, so that a long partition costs no memory.
const GROUPS: usize = 4096;

/// The own writes of one replica that are not known to be held by every member.
///
/// Invariant: groups are in order of time, and do not overlap.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    groups: VecDeque<Group>,
    /// Writes by how long they took: up to 1, 2, 4, … 2^14 milliseconds, and longer.
    pub(crate) converged_ms: [u64; 16],
    pub(crate) converged_sum_ms: u64,
}

/// The writes of one step, or of neighbouring ones.
#[derive(Clone, Copy, Debug)]
struct Group {
    first: Hlc,
    last: Hlc,
    count: u64,
    /// When they were durable here; `None` for those from before the start of the node.
    since: Option<Instant>,
}

impl Lag {
    /// Of a replica that was opened with own writes up to `written`: how many is not known, so they count as one.
    pub(crate) fn new(written: Hlc) -> Lag {
        let mut lag = Lag::default();
        if written > Hlc::ZERO {
            lag.groups.push_back(Group { first: written, last: written, count: 1, since: None });
        }
        lag
    }

    /// Writes became durable here.
    pub(crate) fn wrote(&mut self, first: Hlc, last: Hlc, count: u64, now: Instant) {
        self.groups.push_back(Group { first, last, count, since: Some(now) });
        if self.groups.len() > GROUPS {
            self.halve();
        }
    }

    fn halve(&mut self) {
        let mut halved = VecDeque::with_capacity(GROUPS);
        while let Some(mut group) = self.groups.pop_front() {
            if let Some(next) = self.groups.pop_front() {
                (group.last, group.count) = (next.last, group.count + next.count);
            }
            halved.push_back(group);
        }
        self.groups = halved;
    }

    /// Every member holds this replica's writes up to `hlc`.
    pub(crate) fn held(&mut self, hlc: Hlc, now: Instant) {
        while let Some(group) = self.groups.front().copied().filter(|group| group.last <= hlc) {
            self.groups.pop_front();
            if let Some(since) = group.since {
                let took = now.saturating_duration_since(since);
                let bucket = took.as_micros().div_ceil(1000).max(1).next_power_of_two().ilog2() as usize;
                self.converged_ms[bucket.min(15)] += group.count;
                self.converged_sum_ms += took.as_millis() as u64 * group.count;
            }
        }
    }

    /// The oldest write that some member is not known to hold.
    fn oldest(&self) -> Option<Hlc> {
        self.groups.front().map(|group| group.first)
    }

    /// The age of that, in milliseconds.
    pub(crate) fn age_ms(&self, wall_ms: u64) -> u64 {
        self.oldest().map_or(0, |oldest| wall_ms.saturating_sub(oldest.millis()))
    }

    /// How many writes lie beyond `hlc`, as far as they are told apart.
    pub(crate) fn beyond(&self, hlc: Hlc) -> u64 {
        self.groups.iter().rev().take_while(|group| group.last > hlc).map(|group| group.count).sum()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.beyond(Hlc::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn writes_are_counted_until_everyone_holds_them() {
        let begin = Instant::now();
        let mut lag = Lag::new(Hlc(5));
        lag.wrote(Hlc(10), Hlc(19), 10, begin);
        lag.wrote(Hlc(20), Hlc(29), 10, begin);
        assert_eq!((lag.count(), lag.beyond(Hlc(19)), lag.oldest()), (21, 10, Some(Hlc(5))));
        lag.held(Hlc(25), begin + Duration::from_millis(3));
        assert_eq!((lag.count(), lag.oldest()), (10, Some(Hlc(20))), "a group is held when its last write is");
        lag.held(Hlc(29), begin + Duration::from_secs(60));
        assert_eq!((lag.count(), lag.oldest()), (0, None));
        assert_eq!((lag.converged_ms[2], lag.converged_ms[15]), (10, 10), "up to 4 ms, and the longest");
        assert_eq!(lag.converged_sum_ms, 600_030);
    }

    #[test]
    fn a_long_partition_costs_no_memory() {
        let (begin, mut lag) = (Instant::now(), Lag::default());
        for at in 1..=100_000 {
            lag.wrote(Hlc(at), Hlc(at), 1, begin);
        }
        assert!(lag.groups.len() <= GROUPS);
        assert_eq!((lag.count(), lag.oldest()), (100_000, Some(Hlc(1))));
    }
}
