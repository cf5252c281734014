//! Real daemons in network namespaces, cut from each other and healed.

#![allow(clippy::print_stdout, reason = "what a run measured belongs to its output")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use duet_client::{Client, Namespace, NewNamespace};
use duet_proto::{Consistency, Error};
use duet_tests::process::{Cluster, Direct, Ledger, Link, PATIENCE, Writers, converged, leader};

/// The namespace of every test here.
const NAMESPACE: &str = "orders";

async fn open(cluster: &mut Cluster) -> Result<(Client, Namespace)> {
    let client = cluster.client().await?;
    client.admin().timeout(PATIENCE).create_namespace(NAMESPACE, NewNamespace::strong()).await?;
    let namespace = client.namespace(NAMESPACE)?;
    Ok((client, namespace))
}

/// Asks until the node says that it has no quorum, as it must within moments of being cut off; whatever else it says until
/// then must be true. Then a read and a write are each refused like that, promptly.
async fn without_quorum(direct: &mut Direct, ledger: &Ledger, key: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        match direct.get(NAMESPACE, key, Consistency::Linearizable).await? {
            Err(Error::NoQuorum { .. }) => break,
            Ok(found) if found == ledger.acknowledged(key) => {}
            Ok(found) => bail!("a stale read: {found:?}, not {:?}", ledger.acknowledged(key)),
            Err(Error::TimedOut { .. } | Error::Unavailable { .. }) => {}
            Err(error) => bail!("{error:?}"),
        }
        ensure!(began.elapsed() < PATIENCE, "the node that is cut off never says so");
    }
    println!("cut off, and says so after {:?}", began.elapsed());
    let asked = Instant::now();
    let read = direct.get(NAMESPACE, key, Consistency::Linearizable).await?;
    ensure!(matches!(&read, Err(Error::NoQuorum { .. })), "{read:?}");
    let written = Instant::now();
    let write = direct.put(NAMESPACE, "refused", "never").await?;
    ensure!(matches!(&write, Err(Error::NoQuorum { .. })), "{write:?}");
    println!("read refused in {:?}, write in {:?}: {write:?}", written - asked, written.elapsed());
    // What was asked for explicitly is still served: what this member has.
    let local = direct.get(NAMESPACE, key, Consistency::Local).await?;
    ensure!(matches!(&local, Ok(Some(_))), "{local:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_from_the_others() -> Result<()> {
    let Some(link) = Link::here(3) else { return Ok(()) };
    Cluster::with(link.layout(), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        ledger.put(&namespace, "fixed", "value".into()).await?;
        let writers = Writers::start(&namespace, &ledger, 4);
        for _ in 0..2 {
            ledger.progress(50).await?;
            let old = leader(&client, NAMESPACE).await?;
            let mut direct = cluster.direct(old).await?;
            link.isolate(old)?;
            ledger.progress(50).await.context("the majority goes on")?;
            ledger.put(&namespace, "fixed", "newer".into()).await?;
            // From here on a read of the old value is stale.
            without_quorum(&mut direct, &ledger, "fixed").await?;
            ensure!(leader(&client, NAMESPACE).await? != old, "node {old} leads without a quorum");
            link.heal()?;
            ledger.progress(50).await.context("healed")?;
            // The old leader serves again, and what it serves is new.
            let found = served(&mut direct, "fixed").await?;
            ensure!(found == ledger.acknowledged("fixed"), "a stale read after healing: {found:?}");
        }
        let tally = writers.finish().await?;
        converged(&client, NAMESPACE, 3).await?;
        let mut direct = cluster.direct(1).await?;
        let refused = direct.get(NAMESPACE, "refused", Consistency::Linearizable).await?;
        ensure!(refused == Ok(None), "a write that was refused was done: {refused:?}");
        let keys = ledger.verify(&namespace).await?;
        println!("2 partitions: {tally}; {keys} keys verified");
        Ok(())
    })
    .await
}

/// A strong read through one node, asked until there is an answer.
async fn served(direct: &mut Direct, key: &str) -> Result<Option<(duet_proto::Stamp, bytes::Bytes)>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match direct.get(NAMESPACE, key, Consistency::Linearizable).await? {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deaf_leader_and_an_unplugged_one() -> Result<()> {
    let Some(link) = Link::here(3) else { return Ok(()) };
    Cluster::with(link.layout(), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        let writers = Writers::start(&namespace, &ledger, 4);
        ledger.progress(50).await?;
        let old = leader(&client, NAMESPACE).await?;
        // The others hear its heartbeats and could follow it for ever.
        link.deafen(old)?;
        ledger.progress(50).await.context("the leader hears nobody")?;
        link.heal()?;
        ledger.progress(50).await?;
        let old = leader(&client, NAMESPACE).await?;
        link.unplug(old)?;
        ledger.progress(50).await.context("the leader is unplugged")?;
        link.heal()?;
        ledger.progress(50).await?;
        let tally = writers.finish().await?;
        converged(&client, NAMESPACE, 3).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("deaf, then unplugged: {tally}; {keys} keys verified");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_alone() -> Result<()> {
    let Some(link) = Link::here(3) else { return Ok(()) };
    Cluster::with(link.layout(), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        ledger.put(&namespace, "fixed", "value".into()).await?;
        // A follower learns some milliseconds later that it is committed.
        converged(&client, NAMESPACE, 3).await?;
        for node in cluster.ids() {
            link.isolate(node)?;
        }
        for node in cluster.ids() {
            without_quorum(&mut cluster.direct(node).await?, &ledger, "fixed").await?;
        }
        let refused = namespace.put("alone", "never").await;
        ensure!(refused.is_err(), "a write was acknowledged without a quorum: {refused:?}");
        link.heal()?;
        let writers = Writers::start(&namespace, &ledger, 2);
        ledger.progress(50).await.context("healed")?;
        writers.finish().await?;
        converged(&client, NAMESPACE, 3).await?;
        ledger.verify(&namespace).await?;
        Ok(())
    })
    .await
}
