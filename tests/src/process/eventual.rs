//! What the members of an eventual namespace say of it, and writers that each keep to one member.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use duet_client::{Class, Client, NamespaceStatus, Stamp};
use duet_proto::{Answer, Error, NodeId, Outcome};
use duet_transport::Tls;
use tokio::{task::JoinSet, time::sleep};

use super::{Direct, Ledger, PATIENCE, leader::replicas};

/// Waits until so many members hold and claim the same, owe each other nothing, and remember no delete any more. Returns
/// what they say.
///
/// # Errors
/// If they differ for too long, or one has raised an alarm.
pub async fn settled(client: &Client, namespace: &str, members: usize) -> Result<BTreeMap<u32, NamespaceStatus>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let replicas: BTreeMap<_, _> = replicas(client, namespace).await.into_iter().collect();
        if replicas.len() == members && settles(replicas.values()) {
            return Ok(replicas);
        }
        if Instant::now() >= deadline {
            let told: Vec<_> = replicas.iter().map(|(node, replica)| tell(*node, replica)).collect();
            bail!("the members of {namespace} do not agree: {}", told.join("; "));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn tell(node: u32, replica: &NamespaceStatus) -> String {
    let NamespaceStatus { keys, tombstones, digest, eventual, .. } = replica;
    format!("node {node} has {keys} keys, {tombstones} tombstones, digest {digest}, {eventual:?}")
}

fn settles<'a>(replicas: impl Iterator<Item = &'a NamespaceStatus>) -> bool {
    let mut before = None;
    for replica in replicas {
        let Some(eventual) = &replica.eventual else { return false };
        let state = (&eventual.frontier, replica.digest, replica.keys);
        let quiet = eventual.whole && eventual.clean && eventual.lag_writes == 0 && replica.tombstones == 0;
        if !quiet || before.replace(state).is_some_and(|before| before != state) {
            return false;
        }
    }
    true
}

/// Tasks that each write through one member, without a pause, until they are told to stop. Dropping them ends them.
pub struct LocalWriters {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Result<()>>,
}

impl LocalWriters {
    /// Starts `count` writers for each member. Every second write is of a new key, the others write an older key anew.
    #[must_use]
    pub fn start(members: &BTreeMap<u32, (String, Tls)>, namespace: &str, ledger: &Ledger, count: usize) -> Self {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let round = ledger.len();
        for (node, (address, tls)) in members {
            for number in 0..count {
                let writer = Writer {
                    name: format!("n{node}-r{round}-w{number}"),
                    address: address.clone(),
                    tls: tls.clone(),
                    namespace: namespace.to_owned(),
                    ledger: ledger.clone(),
                };
                tasks.spawn(writer.write(stop.clone()));
            }
        }
        LocalWriters { stop, tasks }
    }

    /// Lets every writer end its write.
    ///
    /// # Errors
    /// If a writer was told something that no fault explains.
    pub async fn finish(mut self) -> Result<()> {
        self.stop.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

struct Writer {
    name: String,
    address: String,
    tls: Tls,
    namespace: String,
    ledger: Ledger,
}

impl Writer {
    async fn write(self, stop: Arc<AtomicBool>) -> Result<()> {
        let mut last: BTreeMap<String, Stamp> = BTreeMap::new();
        let mut direct = None;
        for number in 0_usize.. {
            if stop.load(Relaxed) {
                break;
            }
            let Some(line) = &mut direct else {
                direct = Direct::connect(&self.address, self.tls.clone()).await.ok();
                if direct.is_none() {
                    sleep(Duration::from_millis(20)).await;
                }
                continue;
            };
            let older = last.keys().nth((number * 7) % last.len().max(1)).cloned();
            let key = older.filter(|_| number % 2 == 1).unwrap_or_else(|| format!("{}-{number:06}", self.name));
            let value = Bytes::from(format!("{}#{number}", self.name));
            let outcome = match line.put(&self.namespace, &key, value.clone()).await {
                Ok(Ok(Answer { outcome: Outcome::Written(stamp), .. })) => Ok(stamp),
                Ok(Ok(other)) => bail!("{key}: {other:?}"),
                Ok(Err(error)) => Err(error.class()),
                // The connection broke; whether it was done nobody knows.
                Err(_) => {
                    direct = None;
                    Err(Class::Unknown)
                }
            };
            match outcome {
                Ok(stamp) => {
                    let before = last.insert(key.clone(), stamp);
                    ensure!(before.is_none_or(|before| before < stamp), "{key}: {stamp} over {before:?}");
                }
                Err(Class::Unknown) => drop(last.remove(&key)),
                Err(Class::Retry) => sleep(Duration::from_millis(5)).await,
                Err(class) => bail!("{key}: an error of the class {class:?}"),
            }
            self.ledger.note(&key, value, outcome);
        }
        Ok(())
    }
}

/// Waits until one member answers a read of `key` with something of which `enough` is true.
///
/// # Errors
/// If it does not for too long.
pub async fn shown(
    direct: &mut Direct,
    namespace: &str,
    key: &str,
    enough: impl Fn(&Result<Option<(Stamp, Bytes)>, Error>) -> bool,
) -> Result<Option<(Stamp, Bytes)>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = direct.get(namespace, key, duet_proto::Consistency::Local).await?;
        if enough(&found) {
            return Ok(found?);
        }
        ensure!(Instant::now() < deadline, "{key} is {found:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The status of one member's replica.
///
/// # Errors
/// If it does not say.
pub async fn status_of(client: &Client, namespace: &str, node: u32) -> Result<NamespaceStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some((_, status)) = replicas(client, namespace).await.into_iter().find(|(of, _)| *of == node) {
            return Ok(status);
        }
        ensure!(Instant::now() < deadline, "{} does not speak of {namespace}", NodeId(node));
        sleep(Duration::from_millis(20)).await;
    }
}
