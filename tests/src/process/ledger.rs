//! An independent ledger of acknowledged writes: what the cluster promised, kept outside of it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use duet_client::{Class, ClientError, Namespace, Stamp};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::PATIENCE;

/// What clients were told about their writes. Clones share it.
///
/// Each key belongs to one writer, which writes it again only after an answer, so that the last acknowledged value is
/// the one that must be there. A write of unknown outcome may take effect at any later time: its key is left alone from
/// then on, and may hold either value.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Shared>);

#[derive(Default)]
struct Shared {
    keys: Mutex<BTreeMap<String, Promise>>,
    tally: watch::Sender<Tally>,
}

/// What a key may hold.
#[derive(Clone, Debug, Default)]
struct Promise {
    /// The version and value acknowledged last.
    acknowledged: Option<(Stamp, Bytes)>,
    /// A later value that may be there.
    unknown: Option<Bytes>,
}

/// How many writes ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Done, the cluster says.
    pub acknowledged: u64,
    /// Not done, the cluster says.
    pub refused: u64,
    /// Nobody knows.
    pub unknown: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} acknowledged, {} refused, {} unknown", self.acknowledged, self.refused, self.unknown)
    }
}

impl Ledger {
    /// An empty one.
    #[must_use]
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// How many writes ended how, so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        *self.0.tally.borrow()
    }

    /// Waits until `more` further writes are acknowledged.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn progress(&self, more: u64) -> Result<()> {
        let mut tally = self.0.tally.subscribe();
        let target = tally.borrow_and_update().acknowledged + more;
        match timeout(PATIENCE, tally.wait_for(|now| now.acknowledged >= target)).await {
            Ok(reached) => reached.map(drop).context("the ledger is gone"),
            Err(_) => bail!("writes do not go on: {} more were wanted; {}", more, self.tally()),
        }
    }

    /// Writes a value and keeps what came of it. The caller must be the only one who writes this key.
    ///
    /// # Errors
    /// What the cluster answered.
    pub async fn put(&self, namespace: &Namespace, key: &str, value: Bytes) -> Result<Stamp, ClientError> {
        let written = namespace.put(key.to_owned(), value.clone()).await;
        self.note(key, value, written.as_ref().map(|stamp| *stamp).map_err(ClientError::class));
        written
    }

    /// Keeps what came of a write that was made in another way.
    pub fn note(&self, key: &str, value: Bytes, outcome: Result<Stamp, Class>) {
        let mut keys = self.keys();
        let promise = keys.entry(key.to_owned()).or_default();
        match outcome {
            Ok(stamp) => promise.acknowledged = Some((stamp, value)),
            Err(Class::Unknown) => promise.unknown = Some(value),
            Err(_) => {}
        }
        drop(keys);
        self.0.tally.send_modify(|tally| match outcome {
            Ok(_) => tally.acknowledged += 1,
            Err(Class::Unknown) => tally.unknown += 1,
            Err(_) => tally.refused += 1,
        });
    }

    /// How many keys it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys().len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys().is_empty()
    }

    /// Reads every key back: each must hold the last acknowledged value in the acknowledged version, or the later one
    /// whose outcome is unknown, or, if nothing was acknowledged, nothing. Returns how many were read.
    ///
    /// # Errors
    /// The keys that hold something else, or a read that does not succeed for too long.
    pub async fn verify(&self, namespace: &Namespace) -> Result<usize> {
        let promises = self.keys().clone();
        let count = promises.len();
        let wrong: Vec<String> = stream::iter(promises)
            .map(|(key, promise)| async move {
                let found =
                    patiently(|| namespace.get(key.clone())).await.with_context(|| format!("reading {key}"))?;
                let found = found.map(|held| (held.stamp, held.value));
                anyhow::Ok((!promise.allows(found.as_ref())).then(|| format!("{key}: {promise:?}, found {found:?}")))
            })
            .buffer_unordered(64)
            .try_filter_map(|wrong| async move { Ok(wrong) })
            .try_collect()
            .await?;
        let (number, first) = (wrong.len(), wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n  "));
        ensure!(wrong.is_empty(), "{number} of {count} keys do not hold what was acknowledged:\n  {first}");
        Ok(count)
    }

    /// The value that a key must hold, if its last write was acknowledged.
    #[must_use]
    pub fn acknowledged(&self, key: &str) -> Option<(Stamp, Bytes)> {
        let promise = self.keys().get(key).cloned()?;
        if promise.unknown.is_some() { None } else { promise.acknowledged }
    }

    /// Every key that has one acknowledged value and no other that it may hold.
    #[must_use]
    pub fn settled(&self) -> Vec<String> {
        let keys = self.keys();
        let settled = keys.iter().filter(|(_, promise)| promise.acknowledged.is_some() && promise.unknown.is_none());
        settled.map(|(key, _)| key.clone()).collect()
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<String, Promise>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promise {
    fn allows(&self, found: Option<&(Stamp, Bytes)>) -> bool {
        let maybe = found.is_some_and(|(_, value)| self.unknown.as_ref() == Some(value));
        maybe || found == self.acknowledged.as_ref()
    }
}

/// Asks until there is an answer that is not "later, or elsewhere".
///
/// # Errors
/// Any other error, or the last one when it takes too long.
pub async fn patiently<T>(ask: impl AsyncFn() -> Result<T, ClientError>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.class() == Class::Retry && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Tasks that write without a pause until they are told to stop. Dropping them ends them at once.
pub struct Writers {
    ledger: Ledger,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Result<()>>,
}

impl Writers {
    /// Starts `count` writers. Every second write is of a new key, the others write an older key anew.
    #[must_use]
    pub fn start(namespace: &Namespace, ledger: &Ledger, count: usize) -> Writers {
        let stop: Arc<AtomicBool> = Arc::default();
        let mut tasks = JoinSet::new();
        // Writers of one ledger that start later get other keys.
        let first = ledger.keys().len();
        for writer in 0..count {
            let (namespace, ledger, stop) = (namespace.clone(), ledger.clone(), stop.clone());
            tasks.spawn(async move { write(&format!("w{first}-{writer}"), &namespace, &ledger, &stop).await });
        }
        Writers { ledger: ledger.clone(), stop, tasks }
    }

    /// Lets every writer end its write, and returns what came of all of them.
    ///
    /// # Errors
    /// If a writer was told something that no fault explains.
    pub async fn finish(mut self) -> Result<Tally> {
        self.stop.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(self.ledger.tally())
    }
}

async fn write(name: &str, namespace: &Namespace, ledger: &Ledger, stop: &AtomicBool) -> Result<()> {
    let mut last: BTreeMap<String, Stamp> = BTreeMap::new();
    for number in 0_u64.. {
        if stop.load(Relaxed) {
            break;
        }
        // An older key is one of the first of this writer, by a stride that visits them all.
        let older = last.keys().nth((number as usize * 7) % last.len().max(1)).cloned();
        let key = older.filter(|_| number % 2 == 1).unwrap_or_else(|| format!("{name}-{number:06}"));
        match ledger.put(namespace, &key, format!("{name}#{number}").into()).await {
            Ok(stamp) => {
                let before = last.insert(key.clone(), stamp);
                ensure!(before.is_none_or(|before| before < stamp), "{key}: {stamp} was written over {before:?}");
            }
            // Whether it was done shows later or never: write that key no more.
            Err(error) if error.class() == Class::Unknown => drop(last.remove(&key)),
            Err(error) if error.class() == Class::Retry => {}
            // The disk of a leader may be full; nothing was done.
            Err(ClientError::Cluster(duet_client::Error::DiskFull { .. })) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => bail!("{key}: {error:?}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use duet_proto::{Epoch, Hlc, NodeId};

    use super::*;

    #[test]
    fn a_promise_allows_what_was_told_and_nothing_else() {
        let at = |hlc| Stamp { epoch: Epoch(1), hlc: Hlc(hlc), node: NodeId(1) };
        let held = |hlc, value: &'static str| (at(hlc), Bytes::from_static(value.as_bytes()));
        let mut promise = Promise::default();
        assert!(promise.allows(None) && !promise.allows(Some(&held(1, "a"))), "nothing was acknowledged");
        promise.acknowledged = Some(held(1, "a"));
        assert!(promise.allows(Some(&held(1, "a"))));
        assert!(!promise.allows(None), "it is lost");
        assert!(!promise.allows(Some(&held(2, "a"))), "it was written again");
        assert!(!promise.allows(Some(&held(1, "b"))), "it is another value");
        promise.unknown = Some("b".into());
        assert!(promise.allows(Some(&held(1, "a"))) && promise.allows(Some(&held(9, "b"))));
        assert!(!promise.allows(None) && !promise.allows(Some(&held(9, "c"))));
    }
}
