//! The strong half: real data, a leader that is killed, a ledger of what was acknowledged.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use duet_client::{Client, Namespace, NewNamespace};
use duet_proto::{GroupRole, NamespaceName, NodeId};
use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};

use super::{
    PATIENCE, create, detail,
    load::{Known, Load},
    step,
};
use crate::{
    args::Import,
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

/// Steps 2 to 5. Returns what was imported.
pub(super) async fn show(data: &Path, client: &Client, nodes: &mut Playground) -> Result<Known, Failure> {
    step(2, "A strong namespace takes real data");
    let name = NamespaceName::new(NAMESPACE).map_err(|e| Failure::failed(e.to_string()))?;
    create(client, NAMESPACE, NewNamespace::strong()).await?;
    let namespace = client.namespace(NAMESPACE)?;
    let leader = leader(client).await?;
    detail(&format!("{name}: a Raft group on nodes 1, 2 and 3; node {leader} leads"));
    let records = import(client, &name, data).await?;
    verify(&namespace, &records).await?;

    step(3, "The leader dies while clients write");
    let load = Load::start("failover", std::slice::from_ref(&namespace), WRITERS);
    // Enough is in flight, and answered, for the loss to hurt if there was one.
    load.progress(500).await?;
    let killed_at = Instant::now();
    nodes.kill(leader).await?;
    let before = load.acknowledged();
    detail(&format!("node {leader} was ended by SIGKILL after {} acknowledged writes", count(before)));
    load.progress(500).await?;
    let pause = longest_pause(&load, killed_at);
    let new = self::leader(client).await?;
    detail(&format!("node {new} leads now; writes went on after {} ms", count(pause.as_millis() as u64)));
    let tally = load.stop().await?;

    step(4, "Nothing that was acknowledged is missing");
    let found = load.verify(&namespace).await?.check()?;
    detail(&format!(
        "{} writes acknowledged in step 3: {} keys hold what was put, {} that were deleted stay away{}",
        count(tally.acknowledged),
        count(found.held),
        count(found.gone),
        match tally.unknown {
            0 => String::new(),
            unknown => format!(" ({unknown} more ended as unknown, and may be there or not)"),
        },
    ));
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
    Ok(records)
}

/// The longest time from one acknowledgement to the next, from a moment on.
fn longest_pause(load: &Load, since: Instant) -> Duration {
    let mut times: Vec<Instant> = load.writes().iter().map(|write| write.at).collect();
    times.sort_unstable();
    times.windows(2).filter(|w| w[1] >= since).map(|w| w[1] - w[0].max(since)).max().unwrap_or_default()
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

async fn import(client: &Client, name: &NamespaceName, data: &Path) -> Result<Known, Failure> {
    let import = Import {
        namespace: name.clone(),
        file: data.to_owned(),
        format: Some(Format::Tsv),
        delimiter: b';',
        state: None,
        concurrency: 512,
    };
    let done = transfer::import_file(&client.namespace(NAMESPACE)?, &import).await?;
    let rate = count((done.records as f64 / done.seconds.max(1e-9)) as u64);
    let file = data.file_name().map(PathBuf::from).unwrap_or_default();
    detail(&format!(
        "{}: {} records, each synced by a majority, in {:.1} s ({rate} a second)",
        file.display(),
        count(done.records),
        done.seconds,
    ));
    let text = std::fs::read(data).map_err(crate::failure::about(data))?;
    let records = Records::new(&text[..], Format::Tsv, b';', 0).map(|r| r.map(|r| (r.key, r.value)));
    let records: BTreeMap<Bytes, Bytes> =
        records.collect::<Result<_, _>>().map_err(|e| Failure::failed(e.to_string()))?;
    Ok(Arc::new(records.into_iter().collect()))
}

/// Reads every record, linearizably, and compares.
pub(super) async fn verify(namespace: &Namespace, records: &Known) -> Result<(), Failure> {
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
