//! `make figures`: measures what the README claims, on real clusters on this machine.
//!
//! `cargo run -p duet-tests --bin figures -- NAME…` measures some of them: `failover`, `catch-up`, `restart`, `idle`,
//! `memory` of strong namespaces, `visible`, `heal`, `differing` of eventual ones. Everything shares this machine, the clients too; nothing is asserted.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

mod eventual;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use duet_client::{Client, Namespace, NamespaceStatus, NewNamespace};
use duet_proto::QuorumHealth;
use duet_tests::process::{Cluster, Layout, PATIENCE, converged, leader, patiently, unless_stopped};
use futures::{StreamExt, TryStreamExt, stream};

/// The namespace that is written to.
const NAMESPACE: &str = "figures";
/// Kills of a leader.
const KILLS: usize = 20;
/// Writes that a follower misses.
const MISSED: u64 = 100_000;
/// Records of the node that is restarted.
const RECORDS: u64 = 1_000_000;
/// Idle namespaces.
const IDLE: u32 = 1000;
/// How long idle nodes are watched.
const WATCH: Duration = Duration::from_secs(30);
/// Bytes of a value.
const VALUE: usize = 100;
/// What is measured: a name, what it is, and what it should be.
const FIGURES: [(&str, &str, &str); 8] = [
    ("failover", "leader killed, until the next acknowledged write, 20 times", "p99 at most 2 s"),
    ("catch-up", "a follower that missed 100,000 writes, until it holds all", "5 s"),
    ("restart", "a node with 1 million records, until ready", "5 s"),
    ("idle", "1,000 idle strong namespaces on three nodes, CPU of each node", "under 5 % of a core"),
    ("memory", "resident memory of an idle node, 1 namespace", "at most 100 MiB"),
    ("visible", "an eventual write visible on all members, under 5,000 writes/s", "p99 at most 50 ms"),
    ("heal", "a heal after 100,000 writes on each side, until converged", "5 s"),
    (
        "differing",
        "1 million records, 1,000 differing: bytes exchanged; memory it takes",
        "under 1 MiB; does not grow",
    ),
];

#[tokio::main]
async fn main() -> Result<()> {
    unless_stopped(figures()).await
}

async fn figures() -> Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = asked.iter().find(|name| !FIGURES.iter().any(|(known, ..)| known == name)) {
        bail!("there is no figure {unknown:?}; there are {}", FIGURES.map(|(name, ..)| name).join(", "));
    }
    let mut rows = vec![["figure".to_owned(), "target".into(), "measured".into()]];
    for (name, what, target) in FIGURES {
        if !asked.is_empty() && !asked.iter().any(|asked| asked == name) {
            continue;
        }
        println!("measuring: {what} …");
        let measured = match measure(name).await {
            Ok(measured) => measured,
            Err(error) => format!("FAILED: {}", first_line(&error)),
        };
        println!("  {measured}");
        rows.push([what.into(), target.into(), measured]);
    }
    println!();
    print_table(&rows);
    Ok(())
}

async fn measure(name: &str) -> Result<String> {
    match name {
        "failover" => failover().await,
        "catch-up" => catch_up().await,
        "restart" => restart().await,
        "idle" => idle().await,
        "visible" => eventual::visible().await,
        "heal" => eventual::heal().await,
        "differing" => eventual::differing().await,
        _ => memory().await,
    }
}

fn first_line(error: &anyhow::Error) -> String {
    error.root_cause().to_string().lines().next().unwrap_or_default().to_owned()
}

fn print_table(rows: &[[String; 3]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    for (at, [what, target, measured]) in rows.iter().enumerate() {
        println!("{what:first$}  {target:second$}  {measured}");
        if at == 0 {
            println!("{}  {}  {}", "-".repeat(first), "-".repeat(second), "-".repeat(width(2)));
        }
    }
}

/// A cluster with one namespace.
async fn open(nodes: usize) -> Result<(Cluster, Client, Namespace)> {
    let mut cluster = Cluster::start(Layout::local(nodes))?;
    let client = cluster.client().await?;
    client.admin().timeout(PATIENCE).create_namespace(NAMESPACE, NewNamespace::strong()).await?;
    let namespace = client.namespace(NAMESPACE)?.timeout(PATIENCE);
    Ok((cluster, client, namespace))
}

/// Writes records in transactions of `batch`, several at a time.
async fn load(namespace: &Namespace, records: u64, batch: u64) -> Result<()> {
    let write = async |first: u64| {
        let filled = (first..records.min(first + batch)).fold(namespace.txn(), |txn, n| txn.put(key(n), value(n)));
        filled.commit().await.map(drop)
    };
    let write = &write;
    let batches = stream::iter((0..records).step_by(usize::try_from(batch)?));
    batches.map(|first| async move { write(first).await }).buffer_unordered(16).try_collect::<()>().await?;
    Ok(())
}

fn key(n: u64) -> String {
    format!("record/{n:09}")
}

fn value(n: u64) -> Bytes {
    format!("{n:0VALUE$}").into()
}

/// One client writes without a pause. Counted is the time from the kill to the acknowledgement of the first write that
/// was begun after it: one that was on its way already may have been done before.
async fn failover() -> Result<String> {
    let (mut cluster, client, namespace) = open(3).await?;
    let mut gaps = Vec::new();
    for round in 0..KILLS {
        for n in 0..20 {
            namespace.put(key(n), value(n)).await?;
        }
        converged(&client, NAMESPACE, 3).await?;
        let victim = leader(&client, NAMESPACE).await?;
        cluster.kill(victim)?;
        let killed = Instant::now();
        patiently(async || namespace.put("failover", format!("{round}")).await).await?;
        gaps.push(killed.elapsed());
        cluster.revive(victim)?;
    }
    gaps.sort();
    let at = |percent: usize| gaps[(gaps.len() * percent).div_ceil(100) - 1].as_millis();
    // Of 20 values the 99th percentile is the largest.
    Ok(format!("p50 {} ms, p99 {} ms, max {} ms", at(50), at(99), at(100)))
}

/// From the start of the process until it has applied what the leader has committed.
async fn catch_up() -> Result<String> {
    let (mut cluster, client, namespace) = open(3).await?;
    namespace.put("first", "value").await?;
    let led = leader(&client, NAMESPACE).await?;
    let follower = cluster.ids().into_iter().find(|id| *id != led).context("a follower")?;
    cluster.kill(follower)?;
    let began = Instant::now();
    let writes = stream::iter(0..MISSED).map(|n| namespace.put(key(n), value(n)));
    writes.buffer_unordered(512).try_for_each(|_| async { Ok(()) }).await?;
    let writing = began.elapsed();
    cluster.spawn(follower)?;
    let returned = Instant::now();
    cluster.wait_ready(follower)?;
    let ready = returned.elapsed();
    converged(&client, NAMESPACE, 3).await?;
    let caught_up = returned.elapsed();
    let rate = MISSED as f64 / writing.as_secs_f64();
    Ok(format!(
        "{:.1} s (ready after {:.1} s; the writes took {rate:.0}/s)",
        caught_up.as_secs_f64(),
        ready.as_secs_f64()
    ))
}

/// A node that was killed, and one that was stopped; from the start of the process until `/readyz` says so.
async fn restart() -> Result<String> {
    let (mut cluster, client, namespace) = open(3).await?;
    load(&namespace, RECORDS, 500).await?;
    converged(&client, NAMESPACE, 3).await?;
    let held = replicas(&client).await?.filter(|replica| replica.keys == RECORDS).count();
    ensure!(held == 3, "{held} nodes hold {RECORDS} records");
    let led = leader(&client, NAMESPACE).await?;
    let follower = cluster.ids().into_iter().find(|id| *id != led).context("a follower")?;
    let mut times = Vec::new();
    for node in [follower, led] {
        cluster.kill(node)?;
        let began = Instant::now();
        cluster.revive(node)?;
        times.push(began.elapsed().as_secs_f64());
    }
    cluster.stop(follower)?;
    let began = Instant::now();
    cluster.revive(follower)?;
    let stopped = began.elapsed().as_secs_f64();
    Ok(format!("killed follower {:.1} s, killed leader {:.1} s, stopped {stopped:.1} s", times[0], times[1]))
}

/// Processor time of each node while nothing is asked of it.
async fn idle() -> Result<String> {
    let (mut cluster, client, _) = open(3).await?;
    let admin = client.admin().timeout(PATIENCE);
    let create = |n| {
        let admin = admin.clone();
        async move { admin.create_namespace(format!("idle-{n:04}"), NewNamespace::strong()).await }
    };
    let began = Instant::now();
    stream::iter(1..IDLE).map(create).buffer_unordered(8).try_for_each(|_| async { Ok(()) }).await?;
    println!("  created in {:.1} s", began.elapsed().as_secs_f64());
    // Let what comes after the creation settle: a length of time is what is measured here.
    tokio::time::sleep(WATCH / 3).await;
    let before = all(&mut cluster, processor_time)?;
    tokio::time::sleep(WATCH).await;
    let after = all(&mut cluster, processor_time)?;
    // They were idle, not asleep for good.
    let healthy = replicas(&client).await?.filter(|replica| replica.quorum == QuorumHealth::Healthy).count();
    ensure!(healthy >= 3 * IDLE as usize, "{healthy} replicas of {} see a quorum", 3 * IDLE);
    for n in (1..IDLE).step_by(97) {
        client.namespace(format!("idle-{n:04}"))?.put("k", "v").await?;
    }
    let share = |(before, after): (&f64, &f64)| format!("{:.1} %", (after - before) / WATCH.as_secs_f64() * 100.0);
    let memory = all(&mut cluster, resident)?.iter().map(|mib| format!("{mib:.0} MiB")).collect::<Vec<_>>();
    Ok(format!("{} ({})", before.iter().zip(&after).map(share).collect::<Vec<_>>().join(", "), memory.join(", ")))
}

/// Resident memory of each node, after some use and a rest.
async fn memory() -> Result<String> {
    let (mut cluster, client, namespace) = open(3).await?;
    for n in 0..100 {
        namespace.put(key(n), value(n)).await?;
    }
    converged(&client, NAMESPACE, 3).await?;
    tokio::time::sleep(WATCH / 6).await;
    Ok(all(&mut cluster, resident)?.iter().map(|mib| format!("{mib:.0} MiB")).collect::<Vec<_>>().join(", "))
}

/// Every replica of every node.
async fn replicas(client: &Client) -> Result<impl Iterator<Item = NamespaceStatus>> {
    let reports = client.status().await?.nodes;
    let nodes = reports.into_iter().map(|report| report.status).collect::<Result<Vec<_>, _>>()?;
    Ok(nodes.into_iter().flat_map(|node| node.namespaces))
}

fn all(cluster: &mut Cluster, of: impl Fn(u32) -> Result<f64>) -> Result<Vec<f64>> {
    cluster.ids().into_iter().map(|id| of(cluster.pid(id)?)).collect()
}

/// Seconds of processor time that a process has used (proc(5): fields 14 and 15 of `stat`, in ticks of 10 ms).
fn processor_time(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("not a stat file")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / 100.0)
}

/// Mebibytes of resident memory of a process.
fn resident(pid: u32) -> Result<f64> {
    memory_of(pid, "VmRSS:")
}

/// A line of a process's memory figures, in mebibytes.
fn memory_of(pid: u32, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("not a status file")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
