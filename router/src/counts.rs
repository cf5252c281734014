//! Figures of switches.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

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

#[derive(Debug, Default)]
pub(crate) struct Counts {
    steps: AtomicU64,
    completed: AtomicU64,
    given_up: AtomicU64,
    held: AtomicU64,
    held_ms: AtomicU64,
    held_longest_ms: AtomicU64,
    late_brought: AtomicU64,
    late_refused: AtomicU64,
}

impl Counts {
    pub(crate) fn read(&self) -> Metrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metrics {
            steps: read(&self.steps),
            completed: read(&self.completed),
            given_up: read(&self.given_up),
            held: read(&self.held),
            held_ms: read(&self.held_ms),
            held_longest_ms: read(&self.held_longest_ms),
            late_brought: read(&self.late_brought),
            late_refused: read(&self.late_refused),
        }
    }

    /// A write waited so long for a change of its namespace.
    pub(crate) fn waited(&self, held: Duration) {
        let ms = held.as_millis() as u64;
        add(&self.held, 1);
        add(&self.held_ms, ms);
        self.held_longest_ms.fetch_max(ms, Ordering::Relaxed);
    }

    pub(crate) fn step(&self, completed: bool, given_up: bool) {
        add(&self.steps, 1);
        add(&self.completed, u64::from(completed));
        add(&self.given_up, u64::from(given_up));
    }

    pub(crate) fn late(&self, writes: u64, brought: bool) {
        add(if brought { &self.late_brought } else { &self.late_refused }, writes);
    }
}

fn add(counter: &AtomicU64, much: u64) {
    counter.fetch_add(much, Ordering::Relaxed);
}
