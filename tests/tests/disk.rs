//! Real daemons whose disks fill up or hold damage.

#![allow(clippy::print_stdout, reason = "what a run measured belongs to its output")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use duet_client::{Client, Namespace, NewNamespace};
use duet_proto::{Consistency, Error};
use duet_tests::process::{Cluster, Direct, Disk, Layout, Ledger, PATIENCE, Writers, converged, leader};

/// The namespace of every test here.
const NAMESPACE: &str = "orders";
/// The size of the small disk, in mebibytes. Most of it is what RocksDB allocates ahead for its log.
const DISK: u32 = 256;
/// What the node on it keeps free, in bytes.
const RESERVE: u64 = 32 << 20;

/// A small disk, or `None` where none can be mounted.
fn small_disk() -> Option<Disk> {
    match Disk::mount(DISK) {
        Ok(disk) => Some(disk),
        Err(error) => {
            println!("SKIPPED: a tmpfs cannot be mounted here: {error:#}");
            None
        }
    }
}

/// Node 1 of `nodes` has its data on `disk`.
fn layout(nodes: usize, disk: &Disk) -> Layout {
    let mut layout = Layout::local(nodes);
    if let Some(host) = layout.hosts.first_mut() {
        host.data = Some(disk.data());
        host.settings = format!("disk.reserve_bytes = {RESERVE}");
    }
    layout
}

async fn open(cluster: &mut Cluster) -> Result<(Client, Namespace)> {
    let client = cluster.client().await?;
    client.admin().timeout(PATIENCE).create_namespace(NAMESPACE, NewNamespace::strong()).await?;
    let namespace = client.namespace(NAMESPACE)?;
    Ok((client, namespace))
}

/// Writes through one node until it refuses, or until it refuses no longer.
async fn until_refused(direct: &mut Direct, refused: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match direct.put(NAMESPACE, "probe", "probe").await? {
            Err(Error::DiskFull { free, reserve, .. }) if refused => {
                ensure!(free <= reserve, "{free} bytes are free, {reserve} kept");
                return Ok(());
            }
            Ok(_) if !refused => return Ok(()),
            Ok(_) | Err(Error::DiskFull { .. } | Error::NoQuorum { .. } | Error::OutcomeUnknown { .. }) => {}
            Err(error) => bail!("{error:?}"),
        }
        ensure!(Instant::now() < deadline, "writes are still {}", if refused { "accepted" } else { "refused" });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_reaches_its_reserve() -> Result<()> {
    let Some(disk) = small_disk() else { return Ok(()) };
    Cluster::with(layout(1, &disk), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        ledger.put(&namespace, "fixed", "value".into()).await?;
        let mut direct = cluster.direct(1).await?;

        disk.fill(RESERVE / 2)?;
        until_refused(&mut direct, true).await?;
        let refused = namespace.put("new", "never").await;
        ensure!(
            matches!(&refused, Err(duet_client::ClientError::Cluster(Error::DiskFull { .. }))),
            "the client says {refused:?}"
        );
        for consistency in [Consistency::Linearizable, Consistency::Local] {
            let found = direct.get(NAMESPACE, "fixed", consistency).await?;
            ensure!(found == Ok(ledger.acknowledged("fixed")), "reads do not go on: {found:?}");
        }
        let status = client.status().await?;
        let report = status.nodes.first().context("one node")?.status.clone()?;
        ensure!(report.disk_full, "the status does not say that the disk is full: {report:?}");

        disk.relieve()?;
        until_refused(&mut direct, false).await?;
        ledger.put(&namespace, "fixed", "newer".into()).await?;
        ensure!(namespace.get("new").await?.is_none(), "a write that was refused was done");
        ledger.verify(&namespace).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_disk_of_three_fills_up() -> Result<()> {
    let Some(disk) = small_disk() else { return Ok(()) };
    Cluster::with(layout(3, &disk), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        ledger.put(&namespace, "fixed", "value".into()).await?;
        let writers = Writers::start(&namespace, &ledger, 4);
        ledger.progress(50).await?;

        disk.fill(RESERVE / 2)?;
        let mut direct = cluster.direct(1).await?;
        until_refused(&mut direct, true).await?;
        let found = direct.get(NAMESPACE, "fixed", Consistency::Linearizable).await?;
        ensure!(found == Ok(ledger.acknowledged("fixed")), "reads do not go on: {found:?}");
        ledger.progress(50).await.context("one disk of three has reached its reserve")?;
        disk.relieve()?;
        until_refused(&mut direct, false).await?;
        ledger.progress(50).await?;

        // To the last byte: the node must end rather than go on without its disk, and the others go on without it.
        disk.fill(0)?;
        let big = bytes::Bytes::from(vec![b'x'; 512 << 10]);
        let deadline = Instant::now() + PATIENCE;
        let ended = loop {
            for n in 0..8 {
                let _ = namespace.put(format!("big-{n}"), big.clone()).await;
            }
            if let Some(status) = cluster.ended(1)? {
                break status;
            }
            ensure!(Instant::now() < deadline, "node 1 goes on with a full disk");
        };
        let log = cluster.log(1);
        ensure!(!ended.success() && !log.contains("panicked"), "node 1 ended with {ended}");
        ensure!(log.to_lowercase().contains("no space"), "the log does not say why");
        ledger.progress(50).await.context("node 1 has ended")?;

        disk.relieve()?;
        cluster.revive(1)?;
        let tally = writers.finish().await?;
        converged(&client, NAMESPACE, 3).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("a full disk: {tally}; {keys} keys verified; node 1 had ended with {ended}");
        Ok(())
    })
    .await
}

/// A node that finds its log damaged must not start: what is lost of it are promises, its votes among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_refused() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        let writers = Writers::start(&namespace, &ledger, 4);
        ledger.progress(200).await?;
        let victim = leader(&client, NAMESPACE).await?;
        cluster.kill(victim)?;
        let file = damage(&cluster.node_folder(victim).join("data"), "log")?;
        cluster.spawn(victim)?;
        let ended = cluster.ready_or_ended(victim)?;
        let status = ended.with_context(|| format!("{} is damaged, and node {victim} started", file.display()))?;
        let log = cluster.log(victim);
        ensure!(status.code() == Some(1) && !log.contains("panicked"), "node {victim} ended with {status}");
        ensure!(log.contains("corrupt"), "the log does not say why");
        ledger.progress(50).await.context("one store is damaged")?;
        writers.finish().await?;
        ledger.verify(&namespace).await?;
        Ok(())
    })
    .await
}

/// Whatever a node makes of a damaged table: it says so and stops, or what it serves is true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_table_serves_nothing_wrong() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        let writers = Writers::start(&namespace, &ledger, 4);
        ledger.progress(200).await?;
        let victim = leader(&client, NAMESPACE).await?;
        // Recovery writes what the log held into tables.
        cluster.kill(victim)?;
        cluster.revive(victim)?;
        cluster.kill(victim)?;
        let file = damage(&cluster.node_folder(victim).join("data"), "sst")?;
        cluster.spawn(victim)?;
        if cluster.ready_or_ended(victim)?.is_none() {
            match nothing_wrong(cluster, victim, &ledger).await {
                // It may find the damage, and end, while it is asked.
                Err(error) if cluster.ended(victim)?.is_none() => return Err(error),
                _ => {}
            }
        }
        let log = cluster.log(victim);
        ensure!(!log.contains("panicked"), "node {victim} panicked");
        println!("{}: {}", file.display(), log.lines().rfind(|line| line.contains("corrupt")).unwrap_or("unnoticed"));
        ledger.progress(50).await.context("one store is damaged")?;
        writers.finish().await?;
        ledger.verify(&namespace).await?;
        Ok(())
    })
    .await
}

/// Asks for every settled key: an error or the truth, now or of an earlier moment, but no bytes that nobody wrote.
async fn nothing_wrong(cluster: &mut Cluster, node: u32, ledger: &Ledger) -> Result<()> {
    let mut direct = cluster.direct(node).await?;
    for key in ledger.settled() {
        if let Ok(Some((_, value))) = direct.get(NAMESPACE, &key, Consistency::Local).await? {
            let text = String::from_utf8_lossy(&value).into_owned();
            let writer = key.rsplit_once('-').map_or("", |(writer, _)| writer);
            let number = text.strip_prefix(writer).and_then(|rest| rest.strip_prefix('#'));
            ensure!(number.is_some_and(|n| n.parse::<u64>().is_ok()), "{key} holds {text:?}");
        }
    }
    Ok(())
}

/// The largest file below a folder with this extension.
fn largest(folder: &Path, extension: &str) -> Result<Option<PathBuf>> {
    let (mut folders, mut best) = (vec![folder.to_owned()], None);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, meta) = (entry.path(), entry.metadata()?);
            if meta.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                best = best.max(Some((meta.len(), path)));
            }
        }
    }
    Ok(best.map(|(_, path)| path))
}

/// Flips bytes in the middle of the largest file below a folder with this extension.
fn damage(folder: &Path, extension: &str) -> Result<PathBuf> {
    let file = largest(folder, extension)?.with_context(|| format!("there is no .{extension} file"))?;
    let mut bytes = fs::read(&file)?;
    // What a log has allocated ahead is zero.
    let used = bytes.iter().rposition(|byte| *byte != 0).context("the file is empty")?;
    bytes[used / 2..].iter_mut().take(64).for_each(|byte| *byte ^= 0x5a);
    fs::write(&file, bytes)?;
    Ok(file)
}
