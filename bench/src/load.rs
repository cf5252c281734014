//! The generator.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Choice, Failure, Kind, Report, Spread, Target, Workload,
    seen::{Answer, Record},
};

/// Tokio's timer wakes up to this much late. A client that waited for its time is not blamed for that.
const TICK: Duration = Duration::from_millis(1);
/// After a failure in a closed loop, so that what refuses at once is not asked without a pause.
const BREATH: Duration = Duration::from_millis(5);
/// Random bytes that values are cut from.
const POOL: usize = 64 << 10;
/// Most keys written in one step while a target is filled, and bytes.
const STEP_KEYS: u64 = 100;
const STEP_BYTES: usize = 256 << 10;
/// Steps under way at a time, and how often one is tried.
const FILLERS: usize = 64;
const FILL_TRIES: u32 = 30;
/// The pause before the second try; each further one is as much longer.
const FILL_PAUSE: Duration = Duration::from_millis(20);

/// What is asked of a target, and how.
#[derive(Clone, Debug)]
pub struct Load {
    /// What is asked for.
    pub workload: Workload,
    /// How keys are chosen; none: as the workload has it.
    pub spread: Option<Spread>,
    /// Clients, each with one request in flight. At least 1.
    pub clients: u32,
    /// Keys that there are at first. At least 1.
    pub keys: u64,
    /// Bytes of a value.
    pub value_size: usize,
    /// How long it is measured.
    pub duration: Duration,
    /// How long it runs before.
    pub warm_up: Duration,
    /// Requests in a second, over all clients: an open loop. None: a closed loop, where a client asks again when it has
    /// its answer.
    pub rate: Option<u64>,
    /// Percentage of reads in [`Workload::Mixed`].
    pub reads: u8,
    /// Entries of a scan; the most where lengths differ. At least 1.
    pub scan_entries: u32,
    /// What keys and values are drawn from.
    pub seed: u64,
}

impl Default for Load {
    fn default() -> Load {
        Load {
            workload: Workload::Put,
            spread: None,
            clients: 64,
            keys: 100_000,
            value_size: 256,
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(2),
            rate: None,
            reads: 50,
            scan_entries: 100,
            seed: 1,
        }
    }
}

impl Load {
    /// How keys are chosen.
    #[must_use]
    pub fn spread(&self) -> Spread {
        self.spread.unwrap_or(self.workload.spread())
    }
}

/// What the last second was like.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse {
    /// Since the beginning, of [`Glimpse::whole`].
    pub elapsed: Duration,
    /// Warm-up and measurement.
    pub whole: Duration,
    /// Whether it is measured yet.
    pub warming: bool,
    /// Requests that succeeded, in a second.
    pub per_second: f64,
    /// Their latency.
    pub p99: Duration,
    /// Requests that failed.
    pub failed: u64,
}

/// A load that did not run to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// Nothing to load.
    #[error("there is no target")]
    NoTarget,
    /// The keys could not be written.
    #[error("writing the keys: {0}")]
    Fill(Failure),
    /// A client of the generator ended by a bug.
    #[error("a client of the benchmark failed: {0}")]
    Client(String),
}

/// A key.
#[must_use]
pub fn key(number: u64) -> Bytes {
    format!("key{number:012}").into()
}

/// Writes every key once.
///
/// # Errors
/// If one cannot be written, though tried again.
pub async fn fill<T: Target>(load: &Load, targets: &[T]) -> Result<(), LoadError> {
    let step = (STEP_BYTES / (load.value_size + 1)).clamp(1, STEP_KEYS as usize) as u64;
    let next = Arc::new(AtomicU64::new(0));
    let values = Values::new(load);
    let mut fillers = JoinSet::new();
    for (number, target) in targets.iter().cycle().take(FILLERS).enumerate() {
        let (target, next, values, keys) = (target.clone(), Arc::clone(&next), values.clone(), load.keys);
        let mut rng = rng(load.seed, u64::MAX - number as u64);
        fillers.spawn(async move {
            loop {
                let first = next.fetch_add(step, Relaxed);
                if first >= keys {
                    return Ok(());
                }
                let entries: Vec<_> =
                    (first..keys.min(first + step)).map(|n| (key(n), values.next(&mut rng))).collect();
                fill_step(&target, entries).await?;
            }
        });
    }
    if fillers.is_empty() {
        return Err(LoadError::NoTarget);
    }
    while let Some(done) = fillers.join_next().await {
        done.map_err(|e| LoadError::Client(e.to_string()))?.map_err(LoadError::Fill)?;
    }
    Ok(())
}

/// The same keys and values again and again, until they are there: whatever became of the tries before does not matter.
async fn fill_step<T: Target>(target: &T, entries: Vec<(Bytes, Bytes)>) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        match target.fill(entries.clone()).await {
            Ok(()) => return Ok(()),
            Err(failure) if tries == FILL_TRIES => return Err(failure),
            Err(_) => {
                tries += 1;
                sleep(FILL_PAUSE * tries).await;
            }
        }
    }
}

/// Loads the targets, among which the clients are divided. `told` hears of every second that passes.
///
/// # Errors
/// If there is no target, or a client ended by a bug. Failures of requests are in the report.
pub async fn run<T: Target>(load: &Load, targets: &[T], mut told: impl FnMut(Glimpse)) -> Result<Report, LoadError> {
    let choice = Choice::new(load.spread(), load.keys);
    let (record, held) = (Arc::new(Record::new()), Arc::new(Held::new(load.keys)));
    let values = Values::new(load);
    let begin = Instant::now();
    let (from, whole) = (begin + load.warm_up, load.warm_up + load.duration);
    let mut clients = JoinSet::new();
    for (number, target) in (0..load.clients.max(1)).zip(targets.iter().cycle()) {
        let client = Client {
            number,
            target: target.clone(),
            load: load.clone(),
            choice: choice.clone(),
            values: values.clone(),
            rng: rng(load.seed, u64::from(number)),
            record: Arc::clone(&record),
            held: Arc::clone(&held),
            begin,
            from,
            until: begin + whole,
        };
        clients.spawn(client.run());
    }
    if clients.is_empty() {
        return Err(LoadError::NoTarget);
    }
    let mut looked = begin;
    while begin.elapsed() < whole {
        sleep_until((looked + Duration::from_secs(1)).min(begin + whole)).await;
        let (done, p99, failed) = record.lately();
        let span = looked.elapsed().as_secs_f64().max(1e-9);
        looked = Instant::now();
        let elapsed = begin.elapsed().min(whole);
        let (warming, p99) = (looked <= from, Duration::from_micros(p99));
        told(Glimpse { elapsed, whole, warming, per_second: done as f64 / span, p99, failed });
    }
    let mut unsent = 0;
    while let Some(ended) = clients.join_next().await {
        unsent += ended.map_err(|e| LoadError::Client(e.to_string()))?;
    }
    // In an open loop what was sent in time is waited for.
    let seconds = if load.rate.is_some() { from.elapsed() } else { load.duration };
    Ok(Report::new(load, targets.len(), seconds.as_secs_f64(), unsent, record.all()))
}

fn rng(seed: u64, number: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1 << 20).wrapping_add(number))
}

/// Values: slices of a pool, so that none is made while it counts.
#[derive(Clone, Debug)]
struct Values {
    pool: Bytes,
    size: usize,
}

impl Values {
    fn new(load: &Load) -> Values {
        let mut pool = vec![0; load.value_size + POOL];
        rng(load.seed, u64::MAX / 2).fill_bytes(&mut pool);
        Values { pool: pool.into(), size: load.value_size }
    }

    fn next(&self, rng: &mut ChaCha8Rng) -> Bytes {
        let first = rng.random_range(0..=self.pool.len() - self.size);
        self.pool.slice(first..first + self.size)
    }
}

/// The keys that there are: numbers below `known` have been written, those below `next` at least begun.
#[derive(Debug)]
struct Held {
    known: AtomicU64,
    next: AtomicU64,
}

impl Held {
    fn new(keys: u64) -> Held {
        Held { known: AtomicU64::new(keys), next: AtomicU64::new(keys) }
    }
}

/// One client, with one request in flight.
struct Client<T> {
    number: u32,
    target: T,
    load: Load,
    choice: Choice,
    values: Values,
    rng: ChaCha8Rng,
    record: Arc<Record>,
    held: Arc<Held>,
    begin: Instant,
    from: Instant,
    until: Instant,
}

impl<T: Target> Client<T> {
    /// Runs to the end; the number of requests that were due and not sent.
    async fn run(mut self) -> u64 {
        match self.load.rate {
            None => {
                self.closed().await;
                0
            }
            Some(rate) => self.open(rate.max(1) as f64).await,
        }
    }

    /// Asks again as soon as it has its answer. What was begun while warming up, or is answered after the end, is not
    /// of the time that is measured.
    async fn closed(&mut self) {
        loop {
            let begun = Instant::now();
            if begun >= self.until {
                return;
            }
            let (kind, result) = self.request().await;
            let now = Instant::now();
            let failed = result.is_err();
            let measured = begun >= self.from && now <= self.until;
            self.tell(kind, now - begun, measured, result);
            if failed {
                sleep(BREATH).await;
            }
        }
    }

    /// Asks when it is time to. A request counts from when it was due, however long this client was held up by the one
    /// before: a target that stalls for a second has let all wait that were due in it, and not only those that were on
    /// their way (*coordinated omission*). What was due within the time that is measured is of it, whenever it is answered.
    async fn open(&mut self, rate: f64) -> u64 {
        let period = f64::from(self.load.clients.max(1)) / rate;
        let first = f64::from(self.number) / rate;
        for turn in 0_u64.. {
            let due = self.begin + Duration::from_secs_f64(first + period * turn as f64);
            if due >= self.until {
                break;
            }
            let mut begun = due;
            if Instant::now() < due {
                sleep_until(due).await;
                begun = Instant::now().clamp(due, due + TICK);
            } else if Instant::now() >= self.until {
                let late = (self.until - due).as_secs_f64() / period;
                return late.ceil() as u64;
            }
            let (kind, result) = self.request().await;
            self.tell(kind, begun.elapsed(), due >= self.from, result);
        }
        0
    }

    fn tell(&self, kind: Kind, took: Duration, measured: bool, result: Result<bool, Failure>) {
        self.record.take(self.number as usize, Answer { kind, took, measured, result });
    }

    async fn request(&mut self) -> (Kind, Result<bool, Failure>) {
        let kind = self.load.workload.next(self.load.reads, &mut self.rng);
        let number = match kind {
            Kind::Insert => self.held.next.fetch_add(1, Relaxed),
            _ => self.choice.next(&mut self.rng, self.held.known.load(Relaxed)),
        };
        let key = key(number);
        let value = if kind.writes() { self.values.next(&mut self.rng) } else { Bytes::new() };
        let result = match kind {
            Kind::Get => self.target.get(key).await,
            Kind::Put | Kind::Insert => self.target.put(key, value).await.map(|()| true),
            Kind::Modify => self.modify(key, value).await,
            Kind::Cas => self.target.cas(key, value).await.map(|()| true),
            Kind::Scan => {
                let most = self.load.scan_entries.max(1);
                let entries = if self.load.workload.scans_vary() { self.rng.random_range(1..=most) } else { most };
                self.target.scan(key, entries).await.map(|found| found > 0)
            }
        };
        if kind == Kind::Insert && result.is_ok() {
            self.held.known.fetch_max(number + 1, Relaxed);
        }
        (kind, result)
    }

    async fn modify(&self, key: Bytes, value: Bytes) -> Result<bool, Failure> {
        // That a read broke off says nothing of a write.
        let read = self.target.get(key.clone()).await.map_err(|failure| Failure { unknown: false, ..failure });
        let found = read?;
        self.target.put(key, value).await?;
        Ok(found)
    }
}
