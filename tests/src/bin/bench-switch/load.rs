//! Clients that write and read at a steady rate, and remember when they were answered.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use duet_client::Namespace;
use duet_tests::process::{Cluster, Ledger};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

/// Clients.
const CLIENTS: u64 = 4;
/// Between two requests of one kind of a client.
const PERIOD: Duration = Duration::from_millis(4);
/// Keys that each client writes again and again.
const KEYS: u64 = 500;
/// How long a request may take: longer than any switch here.
const PATIENCE: Duration = Duration::from_secs(10);

/// A record's key.
pub(super) fn key(n: u64) -> String {
    format!("record/{n:09}")
}

/// A record's value, of 256 bytes.
pub(super) fn value(n: u64) -> Bytes {
    format!("{n:0256}").into()
}

/// When a task was answered.
type Answers = Arc<Mutex<Vec<Instant>>>;

/// Clients at work.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    writes: Vec<Answers>,
    reads: Vec<Answers>,
    errors: Arc<Mutex<Vec<String>>>,
    ledger: Ledger,
}

/// The longest times without an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gaps {
    pub(super) writes: Duration,
    pub(super) reads: Duration,
}

impl Load {
    /// Starts them, each a client of its own.
    pub(super) async fn start(cluster: &mut Cluster, namespace: &str, records: u64) -> Result<Load> {
        let mut load = Load {
            stop: Arc::default(),
            tasks: JoinSet::new(),
            writes: Vec::new(),
            reads: Vec::new(),
            errors: Arc::default(),
            ledger: Ledger::new(),
        };
        for number in 0..CLIENTS {
            let namespace = cluster.client().await?.namespace(namespace)?.timeout(PATIENCE);
            let (writes, reads) = (Answers::default(), Answers::default());
            load.writes.push(writes.clone());
            load.reads.push(reads.clone());
            load.tasks.spawn(write(number, namespace.clone(), load.ledger.clone(), load.teller(writes)));
            load.tasks.spawn(read(number, namespace, records, load.teller(reads)));
        }
        Ok(load)
    }

    fn teller(&self, answers: Answers) -> Teller {
        Teller { stop: self.stop.clone(), answers, errors: self.errors.clone() }
    }

    /// The longest time within these in which one client was not answered.
    pub(super) fn gaps(&self, from: Instant, to: Instant) -> Gaps {
        let longest = |tasks: &[Answers]| tasks.iter().map(|answers| gap(&lock(answers), from, to)).max();
        Gaps { writes: longest(&self.writes).unwrap_or_default(), reads: longest(&self.reads).unwrap_or_default() }
    }

    /// Ends them. What they were told of their writes, and every error.
    pub(super) async fn finish(mut self) -> Result<(Ledger, Vec<String>)> {
        self.stop.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        Ok((self.ledger, lock(&self.errors).clone()))
    }
}

/// The longest time between two answers, or between one and either end.
fn gap(answers: &[Instant], from: Instant, to: Instant) -> Duration {
    let first = answers.partition_point(|at| *at < from).saturating_sub(1);
    let last = (answers.partition_point(|at| *at < to) + 1).min(answers.len());
    let pairs = answers[first.min(last)..last].windows(2);
    pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or(to - from)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Teller {
    stop: Arc<AtomicBool>,
    answers: Answers,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Teller {
    fn told<T>(&self, what: &str, answer: Result<T, duet_client::ClientError>) {
        match answer {
            Ok(_) => lock(&self.answers).push(Instant::now()),
            Err(error) => lock(&self.errors).push(format!("{what}: {error}")),
        }
    }
}

async fn write(number: u64, namespace: Namespace, ledger: Ledger, teller: Teller) {
    let mut ticks = steady();
    for n in 0_u64.. {
        ticks.tick().await;
        if teller.stop.load(Relaxed) {
            break;
        }
        let key = format!("load/{number}/{:04}", n % KEYS);
        teller.told("a write", ledger.put(&namespace, &key, value(n)).await);
    }
}

async fn read(number: u64, namespace: Namespace, records: u64, teller: Teller) {
    let mut ticks = steady();
    for n in 0_u64.. {
        ticks.tick().await;
        if teller.stop.load(Relaxed) {
            break;
        }
        // A stride that visits them all.
        teller.told("a read", namespace.get(key((number + n * 7919) % records)).await);
    }
}

fn steady() -> tokio::time::Interval {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
