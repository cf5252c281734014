//! What was measured, and how.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;

use crate::{
    Load,
    seen::{Seen, Tally},
};

/// What a load has shown. Its JSON is described in `specs/command-line.md`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The workload's name.
    pub workload: &'static str,
    /// How keys were chosen.
    pub keys_chosen: &'static str,
    /// Clients, each with one request in flight.
    pub clients: u32,
    /// Connections that they shared.
    pub connections: usize,
    /// Keys at the beginning.
    pub keys: u64,
    /// Bytes of a value.
    pub value_size: usize,
    /// Requests a second that were asked for; none in a closed loop.
    pub rate: Option<u64>,
    /// For how long requests were measured.
    pub seconds: f64,
    /// Requests that were due and never sent, because all clients were waiting for answers.
    pub unsent: u64,
    /// All requests.
    pub all: Line,
    /// By kind.
    pub kinds: BTreeMap<&'static str, Line>,
    /// Failures by code.
    pub errors: BTreeMap<Cow<'static, str>, u64>,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Line {
    /// Those that succeeded.
    pub requests: u64,
    /// Those that failed: nothing was done.
    pub errors: u64,
    /// Those of which nobody knows whether they were done.
    pub unknown: u64,
    /// Reads that found nothing.
    pub absent: u64,
    /// Successes in a second.
    pub per_second: f64,
    /// Of those that succeeded.
    pub latency_us: Latency,
}

/// Latencies in microseconds, to three digits.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Report {
    pub(crate) fn new(load: &Load, connections: usize, seconds: f64, unsent: u64, seen: Seen) -> Report {
        let mut all = Tally::default();
        seen.kinds.values().for_each(|tally| all.add(tally));
        Report {
            workload: load.workload.name(),
            keys_chosen: load.spread().name(),
            clients: load.clients,
            connections,
            keys: load.keys,
            value_size: load.value_size,
            rate: load.rate,
            seconds,
            unsent,
            all: Line::new(&all, seconds),
            kinds: seen.kinds.iter().map(|(kind, tally)| (kind.name(), Line::new(tally, seconds))).collect(),
            errors: seen.errors,
        }
    }
}

impl Line {
    fn new(tally: &Tally, seconds: f64) -> Line {
        let times = &tally.times;
        let at = |quantile| times.value_at_quantile(quantile);
        Line {
            requests: times.len(),
            errors: tally.errors,
            unknown: tally.unknown,
            absent: tally.absent,
            per_second: times.len() as f64 / seconds.max(1e-9),
            latency_us: Latency {
                mean: times.mean(),
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: times.max(),
            },
        }
    }
}
