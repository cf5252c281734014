//! Clients that write and read, and a ledger of what each of them was told: the judge of every promise.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use duet_client::{ClientError, Namespace};
use duet_proto::{Class, KeyRange};
use futures::TryStreamExt;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::PATIENCE;
use crate::failure::Failure;

/// Where all runs' writes are.
pub(super) const PREFIX: &str = "ledger/";
/// Every so many writes of a task, one deletes what the one before it has put.
const DELETES: u64 = 8;
/// The pause after an error, and between two reads of a task.
const PAUSE: Duration = Duration::from_millis(4);

/// What was there before, and must still be: keys and values.
pub(super) type Known = Arc<Vec<(Bytes, Bytes)>>;

/// Tasks that write to one namespace, and perhaps read from it. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Load(Arc<Shared>);

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    seen: Mutex<Seen>,
    tasks: Mutex<JoinSet<Result<(), Failure>>>,
}

/// What the tasks were told.
#[derive(Default)]
struct Seen {
    ledger: BTreeMap<Bytes, Due>,
    writes: Vec<Answer>,
    reads: Vec<Answer>,
    wrong: u64,
    unknown: u64,
    errors: BTreeMap<&'static str, u64>,
}

/// What must be found under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    Value(Bytes),
    Nothing,
    /// A write of it ended as unknown, after so many that were acknowledged.
    Anything(u64),
}

/// An answer: when it came, and how long it took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) at: Instant,
    pub(super) took: Duration,
}

/// What a load has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Writes that were acknowledged: puts and deletes.
    pub(super) acknowledged: u64,
    pub(super) reads: u64,
    /// Reads that returned something else than what is there.
    pub(super) wrong: u64,
    /// Writes whose outcome nobody knows, and whose clients were told so.
    pub(super) unknown: u64,
    /// Errors by code: nothing was done.
    pub(super) errors: BTreeMap<&'static str, u64>,
}

/// What of a ledger is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Keys that hold what was put last.
    pub(super) held: u64,
    /// Keys that stay deleted.
    pub(super) gone: u64,
    /// Acknowledged puts that nobody can miss: a delete behind them ended as unknown.
    pub(super) open: u64,
    /// Acknowledged puts that are not there.
    pub(super) lost: u64,
    /// Deleted keys that are there.
    pub(super) back: u64,
}

impl Load {
    /// Begins to write: so many tasks through each of these handles. `who` tells loads of one namespace apart.
    pub(super) fn start(who: &str, namespaces: &[Namespace], writers: u32) -> Load {
        let load = Load::default();
        for (client, namespace) in namespaces.iter().enumerate() {
            for task in 0..writers {
                let prefix = format!("{}{who}/{client}.{task}/", prefix());
                load.spawn(load.clone().write(namespace.clone(), prefix));
            }
        }
        load
    }

    /// Begins to read what is there already, too. Nothing that is written meanwhile may harm it.
    pub(super) fn read(self, namespaces: &[Namespace], readers: usize, known: &Known) -> Load {
        for (client, namespace) in namespaces.iter().enumerate() {
            // Without a session: a read that has to wait for a dead member's writes is a promise kept, not a stall.
            let namespace = namespace.session(false);
            for task in 0..readers {
                let first = (client * readers + task) * 97;
                self.spawn(self.clone().reads(namespace.clone(), known.clone(), first));
            }
        }
        self
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<Result<(), Failure>>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = Result<(), Failure>> + Send + 'static) {
        self.tasks().spawn(task);
    }

    /// Begins nothing more.
    pub(super) fn halt(&self) {
        self.0.over.store(true, Ordering::Relaxed);
    }

    /// Ends it once whatever is under way was answered.
    ///
    /// # Errors
    /// If a task was told of an error that no client should see.
    pub(super) async fn stop(&self) -> Result<Tally, Failure> {
        self.halt();
        let mut tasks = std::mem::take(&mut *self.tasks());
        while let Some(task) = tasks.join_next().await {
            task.map_err(|e| Failure::failed(e.to_string()))??;
        }
        Ok(self.tally())
    }

    pub(super) fn tally(&self) -> Tally {
        let seen = self.seen();
        Tally {
            acknowledged: seen.writes.len() as u64,
            reads: seen.reads.len() as u64,
            wrong: seen.wrong,
            unknown: seen.unknown,
            errors: seen.errors.clone(),
        }
    }

    /// Acknowledged writes so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.seen().writes.len() as u64
    }

    /// Every acknowledged write.
    pub(super) fn writes(&self) -> Vec<Answer> {
        self.seen().writes.clone()
    }

    /// Every read that was answered.
    pub(super) fn reads_answered(&self) -> Vec<Answer> {
        self.seen().reads.clone()
    }

    /// Waits for so many more acknowledged writes.
    ///
    /// # Errors
    /// If they take too long, or a task has failed.
    pub(super) async fn progress(&self, more: u64) -> Result<(), Failure> {
        let (until, deadline) = (self.acknowledged() + more, Instant::now() + PATIENCE);
        while self.acknowledged() < until {
            if let Some(ended) = self.tasks().try_join_next() {
                ended.map_err(|e| Failure::failed(e.to_string()))??;
            }
            if Instant::now() > deadline {
                return Err(Failure::failed(format!("writes do not go on within {} s", PATIENCE.as_secs())));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Looks for everything that was acknowledged; `namespace` says where and how.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) async fn verify(&self, namespace: &Namespace) -> Result<Found, Failure> {
        let there: BTreeMap<Bytes, Bytes> =
            namespace.scan(KeyRange::prefix(prefix())).map_ok(|entry| (entry.key, entry.value)).try_collect().await?;
        Ok(judge(&self.seen().ledger, &there))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(self, namespace: Namespace, prefix: String) -> Result<(), Failure> {
        let mut put = Bytes::new();
        for number in 1u64.. {
            if self.0.over.load(Ordering::Relaxed) {
                break;
            }
            let deletes = number.is_multiple_of(DELETES) && !put.is_empty();
            let (key, due) = if deletes {
                (put.clone(), Due::Nothing)
            } else {
                (Bytes::from(format!("{prefix}{number:08}")), Due::Value(format!("write {number}").into()))
            };
            let began = Instant::now();
            let result = match &due {
                Due::Value(value) => namespace.put(key.clone(), value.clone()).await,
                _ => namespace.delete(key.clone()).await,
            };
            match result {
                Ok(_) => {
                    put = if deletes { Bytes::new() } else { key.clone() };
                    let mut seen = self.seen();
                    seen.ledger.insert(key, due);
                    seen.writes.push(Answer::since(began));
                }
                Err(error) => {
                    put = Bytes::new();
                    self.refused(&error, Some(key))?;
                    sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    async fn reads(self, namespace: Namespace, known: Known, first: usize) -> Result<(), Failure> {
        // Steps of a prime that divides no length here: all over the keys.
        for at in (first..).step_by(7919).map(|n| n % known.len().max(1)) {
            let Some((key, value)) = known.get(at).filter(|_| !self.0.over.load(Ordering::Relaxed)) else { break };
            let began = Instant::now();
            match namespace.get(key.clone()).await {
                Ok(held) => {
                    let mut seen = self.seen();
                    seen.wrong += u64::from(held.is_none_or(|held| held.value != *value));
                    seen.reads.push(Answer::since(began));
                }
                Err(error) => self.refused(&error, None)?,
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Remembers what a client was told; `key` is what it was writing.
    fn refused(&self, error: &ClientError, key: Option<Bytes>) -> Result<(), Failure> {
        let mut seen = self.seen();
        match (error.class(), key) {
            (Class::Unknown, Some(key)) => {
                seen.unknown += 1;
                let before = u64::from(seen.ledger.contains_key(&key));
                seen.ledger.insert(key, Due::Anything(before));
            }
            // Refused: nothing was done, and the task goes on.
            (Class::Retry | Class::Unknown, _) => *seen.errors.entry(error.code()).or_default() += 1,
            _ => return Err(error.clone().into()),
        }
        Ok(())
    }
}

impl Answer {
    fn since(began: Instant) -> Answer {
        let at = Instant::now();
        Answer { at, took: at - began }
    }
}

impl Tally {
    /// With that of another load.
    pub(super) fn plus(mut self, other: Tally) -> Tally {
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.wrong += other.wrong;
        self.unknown += other.unknown;
        other.errors.into_iter().for_each(|(code, number)| *self.errors.entry(code).or_default() += number);
        self
    }
}

impl Found {
    /// With that of another load.
    pub(super) fn plus(self, other: Found) -> Found {
        Found {
            held: self.held + other.held,
            gone: self.gone + other.gone,
            open: self.open + other.open,
            lost: self.lost + other.lost,
            back: self.back + other.back,
        }
    }

    /// Acknowledged writes that left what they should: where a key is gone, its put and its delete.
    pub(super) fn writes(self) -> u64 {
        self.held + 2 * self.gone + self.open
    }

    /// # Errors
    /// If something is lost, or back.
    pub(super) fn check(self) -> Result<Found, Failure> {
        if self.lost + self.back == 0 {
            return Ok(self);
        }
        let Found { lost, back, .. } = self;
        Err(Failure::failed(format!("{lost} acknowledged writes are missing, {back} deleted keys are back")))
    }
}

/// Where this run's writes are: those of another run over the same directory could hide a loss.
fn prefix() -> String {
    format!("{PREFIX}{}/", std::process::id())
}

fn judge(ledger: &BTreeMap<Bytes, Due>, there: &BTreeMap<Bytes, Bytes>) -> Found {
    let mut found = Found::default();
    for (key, due) in ledger {
        match (due, there.get(key)) {
            (Due::Value(value), Some(held)) if value == held => found.held += 1,
            (Due::Value(_), _) => found.lost += 1,
            (Due::Nothing, None) => found.gone += 1,
            (Due::Nothing, Some(_)) => found.back += 1,
            (Due::Anything(before), _) => found.open += before,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_back_is_found() {
        let ledger = [
            ("kept", Due::Value("a".into())),
            ("lost", Due::Value("a".into())),
            ("another", Due::Value("a".into())),
            ("gone", Due::Nothing),
            ("back", Due::Nothing),
            ("here", Due::Anything(1)),
            ("not here", Due::Anything(1)),
            ("never", Due::Anything(0)),
        ];
        let ledger = ledger.into_iter().map(|(key, due)| (Bytes::from(key), due)).collect();
        let there = ["kept", "back", "here", "of another run"].into_iter().map(|key| (key.into(), "a".into()));
        let there = there.chain([("another".into(), "b".into())]).collect();
        let found = judge(&ledger, &there);
        assert_eq!(found, Found { held: 1, gone: 1, open: 2, lost: 2, back: 1 });
        assert_eq!(found.writes(), 5);
        let failure = found.check().unwrap_err();
        assert_eq!(failure.message, "2 acknowledged writes are missing, 1 deleted keys are back");
        assert!(Found { lost: 0, back: 0, ..found }.check().is_ok());
    }
}
