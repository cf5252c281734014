//! The strong half: real data, a leader that is killed, a ledger of what was acknowledged.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use duet_client::{Client, Namespace, NewNamespace};
use duet_proto::{Class, GroupRole, KeyRange, NamespaceName, NodeId};
use futures::{StreamExt, TryStreamExt};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{PATIENCE, create, detail, step};
use crate::{
    args::{Demo, Import},
    cluster,
    failure::Failure,
    files::{Format, Records},
    output::count,
    playground::Playground,
    transfer,
};

pub(super) const NAMESPACE: &str = "unicode";
/// Tasks that write while the leader is killed.
const WRITERS: u32 = 8;

/// Steps 2 to 5.
pub(super) async fn show(options: &Demo, client: &Client, nodes: &mut Playground) -> Result<(), Failure> {
    step(2, "A strong namespace takes real data");
    let name = NamespaceName::new(NAMESPACE).map_err(|e| Failure::failed(e.to_string()))?;
    create(client, NAMESPACE, NewNamespace::strong()).await?;
    let namespace = client.namespace(NAMESPACE)?;
    let leader = leader(client).await?;
    detail(&format!("{name}: a Raft group on nodes 1, 2 and 3; node {leader} leads"));
    let records = import(client, &name, options).await?;
    verify(&namespace, &records).await?;

    step(3, "The leader dies while clients write");
    let ledger = Ledger::default();
    let writers = ledger.start(&namespace);
    // Enough is in flight, and answered, for the loss to hurt if there was one.
    wait_until(|| ledger.acknowledged() > 500).await?;
    let killed_at = Instant::now();
    nodes.kill(leader).await?;
    detail(&format!("node {leader} was ended by SIGKILL after {} acknowledged writes", count(ledger.acknowledged())));
    let before = ledger.acknowledged();
    wait_until(|| ledger.acknowledged() > before + 500).await?;
    let pause = ledger.longest_pause(killed_at);
    let new = self::leader(client).await?;
    detail(&format!("node {new} leads now; writes went on after {} ms", count(pause.as_millis() as u64)));
    ledger.stop(writers).await?;

    step(4, "Nothing that was acknowledged is missing");
    let held = ledger.verify(&namespace).await?;
    detail(&format!("all {} acknowledged writes of step 3 are present{}", count(held), ledger.doubts()));
    verify(&namespace, &records).await?;

    step(5, "The dead node comes back");
    let back = Instant::now();
    nodes.spawn(leader)?;
    nodes.ready(&[leader]).await?;
    let ready = back.elapsed();
    caught_up(client, leader).await?;
    detail(&format!(
        "node {leader} was ready after {} ms and caught up after {} ms: same position, same digest",
        count(ready.as_millis() as u64),
        count(back.elapsed().as_millis() as u64),
    ));
    Ok(())
}

/// Who leads, as soon as someone does.
async fn leader(client: &Client) -> Result<NodeId, Failure> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let report = cluster::report(client).await?;
        let leader = report.namespaces.iter().find(|n| n.name == NAMESPACE).and_then(|n| n.leader);
        if let Some(leader) = leader {
            return Ok(leader);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(Failure::failed("nobody leads the namespace"))
}

type Known = Arc<Vec<(Bytes, Bytes)>>;

async fn import(client: &Client, name: &NamespaceName, options: &Demo) -> Result<Known, Failure> {
    let import = Import {
        namespace: name.clone(),
        file: options.data.clone(),
        format: Some(Format::Tsv),
        delimiter: b';',
        state: None,
        concurrency: 512,
    };
    let done = transfer::import_file(&client.namespace(NAMESPACE)?, &import).await?;
    let rate = count((done.records as f64 / done.seconds.max(1e-9)) as u64);
    let file = options.data.file_name().map(PathBuf::from).unwrap_or_default();
    detail(&format!(
        "{}: {} records, each synced by a majority, in {:.1} s ({rate} a second)",
        file.display(),
        count(done.records),
        done.seconds,
    ));
    let text = std::fs::read(&options.data).map_err(crate::failure::about(&options.data))?;
    let records = Records::new(&text[..], Format::Tsv, b';', 0).map(|r| r.map(|r| (r.key, r.value)));
    let records: BTreeMap<Bytes, Bytes> =
        records.collect::<Result<_, _>>().map_err(|e| Failure::failed(e.to_string()))?;
    Ok(Arc::new(records.into_iter().collect()))
}

/// Reads every record, linearizably, and compares.
async fn verify(namespace: &Namespace, records: &Known) -> Result<(), Failure> {
    let began = Instant::now();
    let wrong = futures::stream::iter(0..records.len())
        .map(|at| async move {
            let (key, value) = &records[at];
            let found = namespace.get(key.clone()).await?;
            Ok::<_, Failure>(u64::from(found.is_none_or(|found| found.value != *value)))
        })
        .buffer_unordered(512)
        .try_fold(0, |sum, wrong| async move { Ok(sum + wrong) })
        .await?;
    let (all, seconds) = (records.len() as u64, began.elapsed().as_secs_f64());
    if wrong > 0 {
        return Err(Failure::failed(format!("{} of {} records are missing or wrong", count(wrong), count(all))));
    }
    detail(&format!("{} linearizable reads in {seconds:.1} s: every record is as it was imported", count(all)));
    Ok(())
}

/// Writes, and what became of each.
#[derive(Clone, Default)]
struct Ledger(Arc<Shared>);

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    /// Key and value of what was acknowledged.
    acknowledged: Vec<(Bytes, Bytes)>,
    /// When each was.
    times: Vec<Instant>,
    /// Writes whose outcome nobody knows: they may be there or not.
    unknown: u64,
}

impl Ledger {
    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self) -> u64 {
        self.entries().times.len() as u64
    }

    fn start(&self, namespace: &Namespace) -> JoinSet<Result<(), Failure>> {
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(self.clone().write(namespace.clone(), writer));
        }
        writers
    }

    async fn write(self, namespace: Namespace, writer: u32) -> Result<(), Failure> {
        let mut number = 0u64;
        while !self.0.over.load(Ordering::Relaxed) {
            number += 1;
            let key = Bytes::from(format!("{}{writer}/{number:08}", prefix()));
            let value = Bytes::from(format!("write {number} of writer {writer}"));
            match namespace.put(key.clone(), value.clone()).await {
                Ok(_) => {
                    let mut entries = self.entries();
                    entries.acknowledged.push((key, value));
                    entries.times.push(Instant::now());
                }
                Err(error) if error.class() == Class::Unknown => self.entries().unknown += 1,
                // Refused: nothing was done, and the writer goes on.
                Err(error) if error.class() == Class::Retry => sleep(Duration::from_millis(10)).await,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn stop(&self, mut writers: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
        self.0.over.store(true, Ordering::Relaxed);
        while let Some(writer) = writers.join_next().await {
            writer.map_err(|e| Failure::failed(e.to_string()))??;
        }
        Ok(())
    }

    /// The longest time from one acknowledgement to the next, from shortly before `since` on.
    fn longest_pause(&self, since: Instant) -> Duration {
        let mut times = self.entries().times.clone();
        times.sort_unstable();
        times.windows(2).filter(|w| w[1] >= since).map(|w| w[1] - w[0].max(since)).max().unwrap_or_default()
    }

    fn doubts(&self) -> String {
        match self.entries().unknown {
            0 => String::new(),
            unknown => format!(" ({unknown} more ended as unknown, and may be there or not)"),
        }
    }

    /// Looks for everything that was acknowledged; says how much that is.
    async fn verify(&self, namespace: &Namespace) -> Result<u64, Failure> {
        let found: BTreeMap<Bytes, Bytes> =
            namespace.scan(KeyRange::prefix(prefix())).map_ok(|entry| (entry.key, entry.value)).try_collect().await?;
        let entries = self.entries();
        let lost = entries.acknowledged.iter().filter(|(key, value)| found.get(key) != Some(value)).count();
        if lost > 0 {
            return Err(Failure::failed(format!("{lost} acknowledged writes are missing")));
        }
        Ok(entries.acknowledged.len() as u64)
    }
}

/// Where this run's writes are: those of another run over the same directory could hide a loss.
fn prefix() -> String {
    format!("ledger/{}/", std::process::id())
}

async fn wait_until(holds: impl Fn() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > deadline {
            return Err(Failure::failed(format!("writes do not go on within {} s", PATIENCE.as_secs())));
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Waits until a node's replica is where the leader's is, with the same digest.
async fn caught_up(client: &Client, node: NodeId) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let report = cluster::report(client).await?;
        let namespace = report.namespaces.iter().find(|n| n.name == NAMESPACE);
        let replicas = || namespace.into_iter().flat_map(|n| &n.members);
        let mine = replicas().find(|m| m.node == node).and_then(|m| m.replica.as_ref());
        let leads = replicas().filter_map(|m| m.replica.as_ref()).find(|r| r.role == GroupRole::Leader);
        if let (Some(mine), Some(leads), true) = (mine, leads, report.healthy)
            && mine.applied >= leads.applied
            && mine.digest == leads.digest
        {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(Failure::failed(format!("node {node} does not catch up")))
}
