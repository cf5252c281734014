//! `make bench-switch`: for how long clients wait while a namespace is switched, by how much it holds and by how much its
//! members differ.
//!
//! `bench-switch FOLDER [short]` writes `switch.json` and `switch.svg` into the folder, and a table to its output. The
//! short form is for continuous integration: small sizes, few switches. Neither asserts a time; both fail if a client
//! was told an error or a write was lost.
//!
//! Three daemons, the clients and this share the machine. Four clients each write and read at a steady rate; what counts is
//! what they see: the longest time in which one of them got no answer to a write (or a read), over each switch.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

mod load;
mod report;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use duet_client::{Client, Mode, Namespace, NewNamespace};
use duet_tests::process::{Cluster, Layout, Link, PATIENCE, Passage, agreed, unless_stopped};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use load::Load;
use report::{Row, Seen};

/// The namespace that is switched.
const NAMESPACE: &str = "bench";
/// Records in one transaction while the namespace is filled.
const BATCH: u64 = 500;
/// Requests in flight while a member is written to alone.
const WINDOW: usize = 256;
/// Between a switch and the next one: the load is as before.
const CALM: Duration = Duration::from_millis(700);

/// What is measured.
struct Course {
    /// Records of 256 bytes, with members in step.
    sizes: &'static [u64],
    /// Records that only one member holds when the switch to strong is asked for.
    divergences: &'static [u64],
    /// Among how many.
    among: u64,
    /// Switches each way.
    switches: u32,
}

const FULL: Course =
    Course { sizes: &[10_000, 100_000, 1_000_000], divergences: &[0, 1_000, 10_000], among: 100_000, switches: 20 };
const SHORT: Course = Course { sizes: &[1_000, 5_000], divergences: &[0, 200], among: 2_000, switches: 2 };

#[tokio::main]
async fn main() -> Result<()> {
    unless_stopped(bench()).await
}

async fn bench() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("bench-switch FOLDER [short]")?);
    let course = match arguments.next().as_deref() {
        None | Some("") => FULL,
        Some("short") => SHORT,
        Some(other) => bail!("bench-switch FOLDER [short], not {other:?}"),
    };
    std::fs::create_dir_all(&folder)?;
    let mut rows = Vec::new();
    for size in course.sizes {
        println!("{size} records, members in step …");
        rows.extend(run(Layout::local(3), None, *size, 0, course.switches).await?);
    }
    for divergence in course.divergences {
        println!("{} records, {divergence} of them on one member alone …", course.among);
        if let Some(link) = Link::here(3) {
            let layout = link.layout();
            rows.extend(run(layout, Some(&link), course.among, *divergence, course.switches).await?);
        }
    }
    report::write(&folder, &rows)
}

/// Measures one setting: a row for each direction.
async fn run(layout: Layout, link: Option<&Link>, records: u64, divergence: u64, switches: u32) -> Result<[Row; 2]> {
    let mut cluster = Cluster::start(layout)?;
    let client = cluster.client().await?;
    client.admin().timeout(PATIENCE).create_namespace(NAMESPACE, NewNamespace::strong()).await?;
    let namespace = client.namespace(NAMESPACE)?.timeout(PATIENCE);
    fill(&namespace, records).await?;
    agreed(&client, NAMESPACE, 3).await?;
    let load = Load::start(&mut cluster, NAMESPACE, records).await?;
    let (mut to_strong, mut to_eventual) = (Vec::new(), Vec::new());
    for round in 0..switches {
        to_eventual.push(switch(&mut cluster, &client, Mode::Eventual, &load).await?);
        if let Some(link) = link.filter(|_| divergence > 0) {
            diverge(&mut cluster, link, round, divergence).await?;
        }
        to_strong.push(switch(&mut cluster, &client, Mode::Strong, &load).await?);
    }
    let (ledger, errors) = load.finish().await?;
    ensure!(errors.is_empty(), "clients were told errors: {errors:?}");
    agreed(&client, NAMESPACE, 3).await?;
    let keys = ledger.verify(&namespace).await?;
    println!("  {}; {keys} keys verified", ledger.tally());
    let of_link = link.is_some();
    let row = |to, seen| Row { records, divergence, of_link, to, seen };
    Ok([row(Mode::Strong, to_strong), row(Mode::Eventual, to_eventual)])
}

/// Writes records in transactions, several at a time.
async fn fill(namespace: &Namespace, records: u64) -> Result<()> {
    let write = async |first: u64| {
        let all = first..records.min(first + BATCH);
        all.fold(namespace.txn(), |txn, n| txn.put(load::key(n), load::value(n))).commit().await.map(drop)
    };
    let write = &write;
    let batches = stream::iter((0..records).step_by(usize::try_from(BATCH)?));
    batches.map(|first| async move { write(first).await }).buffer_unordered(8).try_collect::<()>().await?;
    Ok(())
}

/// Lets one member take writes that the others do not hear of. They are cut off from each other for that long only.
async fn diverge(cluster: &mut Cluster, link: &Link, round: u32, records: u64) -> Result<()> {
    let mut direct = cluster.direct(3).await?;
    link.isolate(3)?;
    let writes = (0..records).map(|n| (format!("alone/{round:02}/{n:06}"), load::value(n)));
    direct.pour(NAMESPACE, writes, WINDOW).await?;
    link.heal()
}

/// One switch, and what the clients saw of it.
async fn switch(cluster: &mut Cluster, client: &Client, to: Mode, load: &Load) -> Result<Seen> {
    sleep(CALM).await;
    let before = Instant::now();
    let calm = load.gaps(before - CALM, before);
    let asked = Instant::now();
    let mut passage = Passage::begin(cluster, client, NAMESPACE, to, &[]).await?;
    passage.through(cluster).await?;
    let done = asked.elapsed();
    // Whoever waited has its answer by then.
    sleep(CALM).await;
    let gaps = load.gaps(asked, Instant::now());
    let info = passage.look().await?.context("the catalog tells of the switch")?;
    let past = info.history.last().context("the history has it")?;
    ensure!(!past.aborted && past.to == to, "another switch: {past:?}");
    let sealed = if past.sealed_ms == 0 { past.ended_ms } else { past.sealed_ms };
    Ok(Seen {
        writes: gaps.writes,
        reads: gaps.reads,
        calm: calm.writes,
        done,
        gathering_ms: sealed.saturating_sub(past.asked_ms),
        sealed_ms: past.ended_ms.saturating_sub(sealed),
        attempts: past.attempts,
    })
}
