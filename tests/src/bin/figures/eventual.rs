//! The figures of eventual namespaces. Values have 256 bytes.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use duet_client::{Client, Namespace, NewNamespace};
use duet_proto::Consistency;
use duet_tests::process::{Cluster, Direct, Layout, Link, PATIENCE, settled};
use futures::{StreamExt, future::try_join_all, stream};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{NAMESPACE, key, memory_of, resident};

/// Writes each second, beside those that are measured.
const RATE: u64 = 5000;
/// How long.
const SECONDS: u64 = 10;
/// Writes that are measured, each second.
const PROBES: u64 = 50;
/// Writes on each side of a partition.
const EACH_SIDE: u64 = 100_000;
/// Records that differ.
const DIFFERING: u64 = 1000;
/// Records among which they lie: few, and many.
const AMONG: [u64; 2] = [10_000, 1_000_000];
/// Requests in flight on one connection.
const WINDOW: usize = 512;

fn value(n: u64) -> Bytes {
    format!("{n:0256}").into()
}

async fn open(layout: Layout) -> Result<(Cluster, Client, Namespace)> {
    let mut cluster = Cluster::start(layout)?;
    let client = cluster.client().await?;
    client.admin().timeout(PATIENCE).create_namespace(NAMESPACE, NewNamespace::eventual()).await?;
    let namespace = client.namespace(NAMESPACE)?.timeout(PATIENCE);
    settled(&client, NAMESPACE, 3).await?;
    Ok((cluster, client, namespace))
}

/// From before the write is sent until the last of the three members shows it to a reader of its own, while other clients
/// write at a steady rate. The readers ask every millisecond.
pub(super) async fn visible() -> Result<String> {
    let (mut cluster, client, namespace) = open(Layout::local(3)).await?;
    let load = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(10));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (began, batch) = (Instant::now(), RATE / 100);
        let mut writes = stream::FuturesUnordered::new();
        for tick in 0..SECONDS * 100 {
            ticks.tick().await;
            for n in tick * batch..(tick + 1) * batch {
                let namespace = namespace.clone();
                writes.push(tokio::spawn(async move { namespace.put(key(n), value(n)).await }));
            }
            while writes.len() > WINDOW * 4 {
                writes.next().await.context("there are some")???;
            }
        }
        while let Some(written) = writes.next().await {
            written??;
        }
        anyhow::Ok((SECONDS * RATE) as f64 / began.elapsed().as_secs_f64())
    });
    let mut lines = Vec::new();
    for id in cluster.ids() {
        lines.push(cluster.direct(id).await?);
    }
    let mut ticks = interval(Duration::from_millis(1000 / PROBES));
    let mut took = Vec::new();
    for n in 0..SECONDS * PROBES {
        ticks.tick().await;
        if load.is_finished() {
            break;
        }
        let probe = format!("probe/{n:06}");
        let began = Instant::now();
        let origin = n as usize % lines.len();
        lines[origin].put(NAMESPACE, &probe, value(n)).await??;
        try_join_all(lines.iter_mut().map(|line| seen(line, &probe))).await?;
        took.push(began.elapsed());
    }
    let rate = load.await??;
    settled(&client, NAMESPACE, 3).await?;
    took.sort();
    let at = |percent: usize| took[(took.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1e3;
    let (p50, p99, max, count) = (at(50), at(99), at(100), took.len());
    Ok(format!("p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms ({count} of them; load {rate:.0} writes/s)"))
}

async fn seen(line: &mut Direct, key: &str) -> Result<()> {
    while line.get(NAMESPACE, key, Consistency::Local).await??.is_none() {
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// From the end of the cut until all three say that they hold the same and owe each other nothing.
pub(super) async fn heal() -> Result<String> {
    let link = match Link::make(3) {
        Ok(link) => link,
        Err(error) => return Ok(format!("SKIPPED: network namespaces cannot be made here: {error:#}")),
    };
    let (mut cluster, client, _) = open(link.layout()).await?;
    link.isolate(3)?;
    let (mut majority, mut minority) = (cluster.direct(1).await?, cluster.direct(3).await?);
    let began = Instant::now();
    let side = |name: &'static str| (0..EACH_SIDE).map(move |n| (format!("{name}/{n:09}"), value(n)));
    tokio::try_join!(
        majority.pour(NAMESPACE, side("majority"), WINDOW),
        minority.pour(NAMESPACE, side("minority"), WINDOW)
    )?;
    let rate = 2.0 * EACH_SIDE as f64 / began.elapsed().as_secs_f64();
    link.heal()?;
    let healed = Instant::now();
    let replicas = settled(&client, NAMESPACE, 3).await?;
    let took = healed.elapsed();
    ensure!(replicas.values().all(|replica| replica.keys == 2 * EACH_SIDE), "not all is there: {replicas:?}");
    Ok(format!("{:.1} s (written at {rate:.0}/s)", took.as_secs_f64()))
}

/// A member dies, records are written anew, it returns. Counted are all bytes that it sends and receives on the lane of
/// anti-entropy from its start until it holds the same as the others; and by how much the memory of the others grows
/// at most meanwhile.
pub(super) async fn differing() -> Result<String> {
    let mut told = Vec::new();
    for records in AMONG {
        let (bytes, growth, took) = among(records).await?;
        told.push(format!(
            "{records} records: {:.2} MiB, {took:.1} s, memory +{growth:.0} MiB",
            bytes / f64::from(1 << 20)
        ));
    }
    Ok(told.join("; "))
}

async fn among(records: u64) -> Result<(f64, f64, f64)> {
    let (mut cluster, client, _) = open(Layout::local(3)).await?;
    let mut line = cluster.direct(1).await?;
    line.pour(NAMESPACE, (0..records).map(|n| (key(n), value(n))), WINDOW).await?;
    settled(&client, NAMESPACE, 3).await?;
    cluster.kill(3)?;
    let stride = records / DIFFERING;
    line.pour(NAMESPACE, (0..DIFFERING).map(|n| (key(n * stride), value(n + 1))), WINDOW).await?;
    let before = [1, 2].map(|id| peak_from_here(&mut cluster, id)).into_iter().collect::<Result<Vec<_>>>()?;
    cluster.spawn(3)?;
    let returned = Instant::now();
    cluster.wait_ready(3)?;
    settled(&client, NAMESPACE, 3).await?;
    let took = returned.elapsed().as_secs_f64();
    let mut growth = 0_f64;
    for (id, before) in [1, 2].into_iter().zip(before) {
        growth = growth.max(memory_of(cluster.pid(id)?, "VmHWM:")? - before);
    }
    Ok((exchanged(&cluster, 3)?, growth, took))
}

/// The resident memory of a node; its peak counts from now on (proc(5): `clear_refs`).
fn peak_from_here(cluster: &mut Cluster, id: u32) -> Result<f64> {
    let pid = cluster.pid(id)?;
    fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    resident(pid)
}

/// Bytes that a node has sent and received on the lane of anti-entropy since its start.
fn exchanged(cluster: &Cluster, id: u32) -> Result<f64> {
    let (_, metrics) = cluster.http(id, "/metrics")?;
    let lanes = metrics.lines().filter(|line| line.starts_with("duet_lane_bytes") && line.contains("lane=\"sync\""));
    let mut sum = None;
    for line in lanes {
        let (_, count) = line.rsplit_once(' ').context("a metric has a value")?;
        *sum.get_or_insert(0.0) += count.parse::<f64>()?;
    }
    match sum {
        Some(sum) => Ok(sum),
        None => bail!("node {id} does not count the bytes of its lanes"),
    }
}
