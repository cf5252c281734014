//! What clients have seen: how often, how long, and what went wrong.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

use crate::{Failure, Kind};

/// The longest latency that is told apart: an hour, in microseconds.
const LONGEST: u64 = 3_600_000_000;
/// Clients share this many tallies: a histogram for each of thousands would not stay in the cache.
const SHARDS: usize = 8;

/// The answers to one kind of request.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Of requests that succeeded, in microseconds, to three digits.
    pub(crate) times: Histogram<u64>,
    /// Those that failed for certain.
    pub(crate) errors: u64,
    /// Those that failed and may have been done all the same.
    pub(crate) unknown: u64,
    /// Reads that found nothing.
    pub(crate) absent: u64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { times: histogram(3), errors: 0, unknown: 0, absent: 0 }
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Tally) {
        // All have the same bounds, so that one always takes the other.
        let _ = self.times.add(&other.times);
        self.errors += other.errors;
        self.unknown += other.unknown;
        self.absent += other.absent;
    }
}

fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, digits).expect("bounds and digits are within what the library takes")
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) kind: Kind,
    pub(crate) took: Duration,
    /// Whether it belongs to the time that is measured.
    pub(crate) measured: bool,
    /// Whether what was read was there.
    pub(crate) result: Result<bool, Failure>,
}

/// What some clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) kinds: BTreeMap<Kind, Tally>,
    pub(crate) errors: BTreeMap<Cow<'static, str>, u64>,
}

impl Seen {
    fn take(&mut self, answer: Answer) {
        let tally = self.kinds.entry(answer.kind).or_default();
        match answer.result {
            Ok(found) => {
                tally.times.saturating_record(micros(answer.took));
                tally.absent += u64::from(!found);
            }
            Err(failure) => {
                *if failure.unknown && answer.kind.writes() { &mut tally.unknown } else { &mut tally.errors } += 1;
                *self.errors.entry(failure.code).or_default() += 1;
            }
        }
    }

    fn merge(&mut self, other: Seen) {
        for (kind, tally) in other.kinds {
            self.kinds.entry(kind).or_default().add(&tally);
        }
        for (code, number) in other.errors {
            *self.errors.entry(code).or_default() += number;
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// What was seen since somebody last looked.
#[derive(Debug)]
struct Lately {
    times: Histogram<u64>,
    failed: u64,
}

/// What all clients have seen.
#[derive(Debug)]
pub(crate) struct Record {
    shards: Vec<Mutex<(Seen, Lately)>>,
}

impl Record {
    pub(crate) fn new() -> Record {
        let shard = || Mutex::new((Seen::default(), Lately { times: histogram(2), failed: 0 }));
        Record { shards: (0..SHARDS).map(|_| shard()).collect() }
    }

    /// Takes an answer to a client.
    pub(crate) fn take(&self, client: usize, answer: Answer) {
        let mut shard = lock(&self.shards[client % SHARDS]);
        let (seen, lately) = &mut *shard;
        match &answer.result {
            Ok(_) => lately.times.saturating_record(micros(answer.took)),
            Err(_) => lately.failed += 1,
        }
        if answer.measured {
            seen.take(answer);
        }
    }

    /// The answers since the last time this was asked: successes with their p99 in microseconds, and failures.
    pub(crate) fn lately(&self) -> (u64, u64, u64) {
        let mut times = histogram(2);
        let mut failed = 0;
        for shard in &self.shards {
            let lately = &mut lock(shard).1;
            let _ = times.add(&lately.times);
            lately.times.reset();
            failed += std::mem::take(&mut lately.failed);
        }
        (times.len(), times.value_at_quantile(0.99), failed)
    }

    /// Everything.
    pub(crate) fn all(&self) -> Seen {
        let mut all = Seen::default();
        for shard in &self.shards {
            all.merge(std::mem::take(&mut lock(shard).0));
        }
        all
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_saw_adds_up() {
        let record = Record::new();
        let tell = |client, kind, took, measured, result| {
            record.take(client, Answer { kind, took, measured, result });
        };
        for client in 0..40 {
            for us in 1..=1000 {
                tell(client, Kind::Put, Duration::from_micros(us), true, Ok(true));
            }
            tell(client, Kind::Put, Duration::ZERO, true, Err(Failure::unknown("outcome_unknown")));
            tell(client, Kind::Put, Duration::ZERO, true, Err(Failure::refused("no_quorum")));
            // A read that failed has changed nothing, whatever is known of it.
            tell(client, Kind::Get, Duration::ZERO, true, Err(Failure::unknown("outcome_unknown")));
            tell(client, Kind::Scan, Duration::from_secs(3), true, Ok(false));
            tell(client, Kind::Cas, Duration::from_secs(3), false, Ok(true));
        }
        let (done, p99, failed) = record.lately();
        assert_eq!((done, failed), (40 * 1002, 120));
        assert!(p99.abs_diff(990) < 20, "{p99}");
        assert_eq!(record.lately(), (0, 0, 0));

        let all = record.all();
        let put = &all.kinds[&Kind::Put];
        assert_eq!((put.times.len(), put.errors, put.unknown, put.absent), (40_000, 40, 40, 0));
        assert_eq!((put.times.value_at_quantile(0.5), put.times.max()), (500, 1000));
        assert_eq!((all.kinds[&Kind::Get].errors, all.kinds[&Kind::Get].unknown), (40, 0));
        assert_eq!(all.kinds[&Kind::Scan].absent, 40);
        assert!(!all.kinds.contains_key(&Kind::Cas), "it was not within what is measured");
        assert_eq!((all.errors["outcome_unknown"], all.errors["no_quorum"]), (80, 40));
    }
}
