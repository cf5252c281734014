//! What the driver asks between steps: whether a replica needs time soon, and what stands between it and the others.

use std::collections::BTreeSet;

use duet_proto::{ClockFault, Digest, Hlc, NodeId};
use duet_store::{StoreError, View};

use super::{Counters, Replica};
use crate::{Clock, Frontier, Members, rows::Standing};

impl Replica {
    /// Whether something is under way that needs a step soon, though nothing arrives: a write that waits, a session,
    /// a report that is due, something to heal.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let sessions =
            self.pull.is_some() || !self.wanted.is_empty() || !self.early.is_empty() || !self.serving.is_empty();
        let told = self.reported.as_ref().is_some_and(|(_, told)| *told == self.synced);
        !told
            || sessions
            || !self.waiting.is_empty()
            || self.heal.is_open()
            || self.converge.as_ref().is_some_and(|converge| converge.over().is_none())
            || self.synced.standing != Standing::Whole
    }

    /// Whether some member is not known to claim exactly what this one does, or tombstones wait to be forgotten.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        self.synced.tombstones > 0 || self.synced.members.everyone().any(|node| !self.is_with(node))
    }

    /// Whether that is so of a member that seems to be there: a word to it may change it.
    #[must_use]
    pub fn is_apart_within_reach(&self) -> bool {
        let mut there = self.synced.members.everyone().filter(|node| !self.silent.contains(node));
        there.any(|node| !self.is_with(node))
    }

    /// Whether a member is known to claim exactly what this one does.
    fn is_with(&self, node: NodeId) -> bool {
        let report = self.peers.get(&node).and_then(|peer| peer.report.as_ref());
        let same = report.is_some_and(|report| {
            (&report.frontier, report.summary.digest) == (&self.synced.frontier, self.synced.digest)
        });
        same || node == self.config.node
    }

    /// Whether it holds nothing beyond its frontier. `view` shows what is durable.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn is_clean(&self, view: &dyn View) -> Result<bool, StoreError> {
        self.clean(view)
    }

    /// What it durably claims, and the digest of its live values.
    #[must_use]
    pub fn claims(&self) -> (&Frontier, Digest) {
        (&self.synced.frontier, self.synced.digest)
    }

    /// These peers seem not to be there, by whatever tells: sessions begin with the others first.
    pub fn set_silent(&mut self, silent: &BTreeSet<NodeId>) {
        self.silent.clone_from(silent);
    }

    /// Says with the next step what is durable, whatever was said before.
    pub fn report_soon(&mut self) {
        self.reported = None;
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The members that it durably goes by.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.synced.members
    }

    /// Why it would refuse a write, if its clock is out of line.
    #[must_use]
    pub fn clock_fault(&self, now_ms: u64, clock: &dyn Clock) -> Option<ClockFault> {
        self.clocks.check(now_ms, self.config.clock_word_ms, clock).err()
    }

    /// The end of its own writes that it durably holds.
    #[must_use]
    pub fn written(&self) -> Hlc {
        self.synced.frontier.get(self.config.node)
    }

    /// How far every other member is known to hold its writes; without others, all of them.
    #[must_use]
    pub fn held_everywhere(&self) -> Hlc {
        let others = self.synced.members.nodes.iter().filter(|node| **node != self.config.node);
        others.map(|node| self.held_by(*node)).min().unwrap_or(Hlc::MAX)
    }

    /// How far one other member is known to hold its writes.
    #[must_use]
    pub fn held_by(&self, node: NodeId) -> Hlc {
        self.peers.get(&node).map_or(Hlc::ZERO, |peer| peer.frontier.get(self.config.node))
    }

    /// Whether a session with `node` is under way, this replica being the one that sends.
    #[must_use]
    pub fn is_serving(&self, node: NodeId) -> bool {
        self.serving.contains_key(&node)
    }
}
