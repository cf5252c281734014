//! Figures of switches.

use std::{sync::PoisonError, time::Duration};

use crate::router::Inner;

/// Figures since the start of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Steps of switches that this node has taken.
    pub steps: u64,
    /// Switches that this node has completed: those whose last word was its own.
    pub completed: u64,
    /// Times that this node has lifted everybody's fences because an attempt did not end in time.
    pub given_up: u64,
    /// Writes that waited here for a change of their namespace.
    pub held: u64,
    /// How long they did, in milliseconds, all together.
    pub held_ms: u64,
    /// How long the one did that waited the longest, in milliseconds.
    pub held_longest_ms: u64,
    /// Late writes that this node has brought.
    pub late_brought: u64,
    /// Late writes that nobody waited for any more.
    pub late_refused: u64,
}

impl Metrics {
    /// A write waited so long for a change of its namespace.
    pub(crate) fn waited(&mut self, held: Duration) {
        let ms = held.as_millis() as u64;
        self.held += 1;
        self.held_ms += ms;
        self.held_longest_ms = self.held_longest_ms.max(ms);
    }

    /// What has become of late writes.
    pub(crate) fn late(&mut self, writes: u64, brought: bool) {
        *(if brought { &mut self.late_brought } else { &mut self.late_refused }) += writes;
    }
}

impl Inner {
    /// Changes the figures. Every change is whole whatever panics.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Metrics)) {
        change(&mut self.figures.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
