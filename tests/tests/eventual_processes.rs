//! Real daemons with an eventual namespace: partitions that are written on both sides, kills during anti-entropy, a
//! member that was away, a record that is damaged on disk.

#![allow(clippy::print_stdout, reason = "what a run measured belongs to its output")]

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use duet_client::{Class, Client, Namespace, NewNamespace};
use duet_engine_eventual::{Config, Replica};
use duet_proto::{Boot, Consistency, Epoch, Error, NamespaceId, NodeId, Role, Stamp};
use duet_store::{
    Batch, Family, Store, View, layout,
    rocks::{RocksOptions, RocksStore},
};
use duet_tests::process::{
    Cluster, Layout, Ledger, Link, LocalWriters, PATIENCE, patiently, settled, shown, status_of,
};
use futures::{StreamExt, TryStreamExt, stream};
use rand::Rng;

/// The eventual namespace of every test here.
const EVENTS: &str = "events";
/// The strong one beside it.
const ORDERS: &str = "orders";

/// A client and the eventual namespace, created on all nodes.
async fn open(cluster: &mut Cluster, copies: u32) -> Result<(Client, Namespace)> {
    let client = cluster.client().await?;
    let admin = client.admin().timeout(PATIENCE);
    admin.create_namespace(EVENTS, NewNamespace { copies, ..NewNamespace::eventual() }).await?;
    let namespace = client.namespace(EVENTS)?;
    settled(&client, EVENTS, cluster.ids().len()).await?;
    Ok((client, namespace))
}

/// Where each of these nodes is, for writers of its own.
fn members(cluster: &mut Cluster, nodes: &[u32]) -> Result<BTreeMap<u32, (String, duet_client::Tls)>> {
    let member = |node: &u32| Ok((*node, (cluster.address(*node)?, cluster.client_tls("writer", Role::Client)?)));
    nodes.iter().map(member).collect()
}

/// Both sides of a partition take writes; a strong namespace does so on one side only. Healed, everybody has everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_of_a_partition() -> Result<()> {
    let Some(link) = Link::here(3) else { return Ok(()) };
    Cluster::with(link.layout(), async |cluster| {
        let (client, namespace) = open(cluster, 1).await?;
        client.admin().timeout(PATIENCE).create_namespace(ORDERS, NewNamespace::strong()).await?;
        patiently(async || client.namespace(ORDERS)?.put("fixed", "value").await).await?;
        let ledger = Ledger::new();
        for round in 0..3 {
            let lonely = 1 + round % 3;
            namespace.put("contested", format!("before {round}")).await?;
            namespace.put("doomed", "to be deleted").await?;
            settled(&client, EVENTS, 3).await?;
            link.isolate(lonely)?;
            let mut direct = cluster.direct(lonely).await?;
            without_a_quorum(&mut direct).await?;

            let everyone = members(cluster, &[1, 2, 3])?;
            let writers = LocalWriters::start(&everyone, EVENTS, &ledger, 2);
            ledger.progress(300).await.context("all sides take writes")?;
            let other = 1 + lonely % 3;
            let mut far = cluster.direct(other).await?;
            let there = far.put(EVENTS, "contested", format!("majority {round}")).await??;
            let here = direct.put(EVENTS, "contested", format!("minority {round}")).await??;
            println!("round {round}: {:?} and {:?}", there.outcome, here.outcome);
            let deleted = duet_proto::Mutation::delete("doomed");
            direct.data(EVENTS, duet_proto::Op::Write { mutation: deleted }, Consistency::Local).await??;
            ledger.progress(100).await?;
            writers.finish().await?;

            link.heal()?;
            let healed = Instant::now();
            settled(&client, EVENTS, 3).await?;
            println!("round {round}: converged {:?} after the heal; {}", healed.elapsed(), ledger.tally());
            let last = format!("minority {round}");
            for node in 1..=3 {
                let mut direct = cluster.direct(node).await?;
                let contested = direct.get(EVENTS, "contested", Consistency::Local).await??.map(|(_, value)| value);
                ensure!(contested == Some(last.clone().into()), "node {node}: the later write lost: {contested:?}");
                let doomed = direct.get(EVENTS, "doomed", Consistency::Local).await??;
                ensure!(doomed.is_none(), "node {node}: a delete was undone: {doomed:?}");
            }
        }
        let keys = ledger.verify(&namespace).await?;
        println!("3 partitions: {}; {keys} keys verified", ledger.tally());
        Ok(())
    })
    .await
}

/// A node that is cut off says so of a strong namespace, and serves an eventual one.
async fn without_a_quorum(direct: &mut duet_tests::process::Direct) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !matches!(direct.get(ORDERS, "fixed", Consistency::Linearizable).await?, Err(Error::NoQuorum { .. })) {
        ensure!(Instant::now() < deadline, "the node that is cut off never says so");
    }
    direct.put(EVENTS, "alone", "value").await?.context("an eventual write without the catalog's quorum")?;
    let found = direct.get(EVENTS, "alone", Consistency::Local).await?.context("an eventual read")?;
    ensure!(found.is_some_and(|(_, value)| value == "value"), "it does not show what it took");
    Ok(())
}

/// Members die at random moments, while they write and while they catch up, two at once among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_during_anti_entropy() -> Result<()> {
    for copies in [1, 2] {
        Cluster::with(Layout::local(3), async |cluster| {
            let (client, namespace) = open(cluster, copies).await?;
            let ledger = Ledger::new();
            let everyone = members(cluster, &[1, 2, 3])?;
            let writers = LocalWriters::start(&everyone, EVENTS, &ledger, 2);
            for round in 0..6 {
                let victim = rand::rng().random_range(1..=3);
                cluster.kill(victim)?;
                ledger
                    .progress(rand::rng().random_range(50..500))
                    .await
                    .with_context(|| format!("{victim} is dead"))?;
                cluster.spawn(victim)?;
                if round % 2 == 1 {
                    // It has just begun to catch up, or the one it catches up from dies.
                    let next = if rand::rng().random() { victim } else { 1 + victim % 3 };
                    let moment = Duration::from_millis(rand::rng().random_range(0..400));
                    tokio::time::sleep(moment).await;
                    cluster.kill(next)?;
                    cluster.spawn(next)?;
                }
                for node in cluster.ids() {
                    cluster.wait_ready(node)?;
                }
            }
            ledger.progress(50).await?;
            writers.finish().await?;
            settled(&client, EVENTS, 3).await?;
            let keys = ledger.verify(&namespace).await?;
            println!("kills with {copies} copies: {}; {keys} keys verified", ledger.tally());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Keys of the namespace that is emptied.
const DOOMED: u64 = 2000;

/// A member that was away while everything was deleted comes back with all its old data: none of it returns, and nothing is
/// left of it on any disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_away_while_everything_is_deleted() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster, 1).await?;
        let namespace = namespace.timeout(PATIENCE);
        let key = |n: u64| format!("doomed/{n:06}");
        let value = Bytes::from(vec![b'x'; 1024]);
        let all = || stream::iter(0..DOOMED);
        all().map(|n| namespace.put(key(n), value.clone())).buffer_unordered(64).try_collect::<Vec<_>>().await?;
        let before = settled(&client, EVENTS, 3).await?;
        ensure!(before.values().all(|replica| replica.keys == DOOMED), "not all are there: {before:?}");

        cluster.kill(3)?;
        all().map(|n| delete(&namespace, key(n))).buffer_unordered(64).try_collect::<Vec<_>>().await?;
        for node in [1, 2] {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let status = status_of(&client, EVENTS, node).await?;
                // Whoever is away has not heard of them: they must not be forgotten.
                if (status.keys, status.tombstones) == (0, DOOMED) {
                    break;
                }
                ensure!(Instant::now() < deadline, "node {node} says {status:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        cluster.revive(3)?;
        let after = settled(&client, EVENTS, 3).await?;
        ensure!(after.values().all(|replica| (replica.keys, replica.tombstones) == (0, 0)), "{after:?}");
        for node in cluster.ids() {
            let mut direct = cluster.direct(node).await?;
            for n in (0..DOOMED).step_by(101) {
                let found = direct.get(EVENTS, &key(n), Consistency::Local).await??;
                ensure!(found.is_none(), "node {node}: {} came back: {found:?}", key(n));
            }
        }
        let id = client.admin().namespace(EVENTS).await?.id;
        for node in cluster.ids() {
            let status = cluster.stop(node)?;
            ensure!(status.success(), "node {node} ended with {status}");
            let left = rows(cluster, node, id)?;
            ensure!(left.iter().all(|(_, count)| *count <= 2), "node {node} has kept rows: {left:?}");
            println!("node {node} has kept rows: {left:?}");
        }
        Ok(())
    })
    .await
}

/// Deletes a key, again where nobody knows whether it was done: the member that was asked may be the one that died.
async fn delete(namespace: &Namespace, key: String) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match namespace.delete(key.clone()).await {
            Err(error) if error.class() == Class::Unknown && Instant::now() < deadline => {}
            told => return Ok(told.map(drop)?),
        }
    }
}

/// How many rows of a namespace lie in each family of a stopped node's store, without those of the index that mean nothing:
/// they go some seconds later.
fn rows(cluster: &Cluster, node: u32, id: NamespaceId) -> Result<Vec<(Family, usize)>> {
    let store = RocksStore::open(&cluster.node_folder(node).join("data"), &RocksOptions::default())?;
    let config = Config::new(NodeId(node), Boot::default());
    let replica = Replica::open(config, id, Epoch(1), &store)?.context("there is a replica")?;
    let (from, to) = layout::prefix_range(layout::namespace_prefix(id));
    let count = |family| -> Result<(Family, usize)> {
        let mut rows = 0;
        for row in store.scan(family, &from, Some(&to))? {
            let (row, _) = row?;
            let nothing = family == Family::Origin && {
                let (_, epoch, node, hlc) = layout::split_origin_key(&row)?;
                replica.trimmed().includes(Stamp { epoch, hlc, node })
            };
            rows += usize::from(!nothing);
        }
        Ok((family, rows))
    };
    [Family::Data, Family::Origin, Family::Namespace].into_iter().map(count).collect()
}

/// One record is damaged on one disk: it is not served, it is reported, and replaced by a peer's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_damaged_on_disk() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster, 1).await?;
        for n in 0..100 {
            namespace.put(format!("key-{n:03}"), format!("value {n}")).await?;
        }
        settled(&client, EVENTS, 3).await?;
        let id = client.admin().namespace(EVENTS).await?.id;
        cluster.stop(2)?;
        damage(cluster, 2, id, "key-042")?;
        // Nobody will ask for this one.
        damage(cluster, 2, id, "key-077")?;
        let settings = cluster.node_folder(2).join("duetd.toml");
        fs::write(&settings, fs::read_to_string(&settings)? + "[timing]\nscrub_s = 1\n")?;
        cluster.revive(2)?;

        let mut direct = cluster.direct(2).await?;
        let first = direct.get(EVENTS, "key-042", Consistency::Local).await?;
        println!("the first read: {first:?}");
        let right = |found: &Option<(duet_client::Stamp, Bytes)>| {
            found.as_ref().is_some_and(|(_, value)| value == "value 42")
        };
        ensure!(!matches!(&first, Ok(found) if !right(found)), "a damaged record was served: {first:?}");
        shown(&mut direct, EVENTS, "key-042", |found| found.as_ref().is_ok_and(right)).await?;
        settled(&client, EVENTS, 3).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let replica = settled(&client, EVENTS, 3).await?.remove(&2).context("node 2 speaks of it")?;
            let seen = replica.eventual.context("it is eventual")?;
            if seen.damaged >= 2 && seen.healed >= 2 {
                break;
            }
            ensure!(Instant::now() < deadline, "they were not both found, reported and healed: {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (_, metrics) = cluster.http(2, "/metrics")?;
        let counted = |name: &str| metrics.lines().any(|line| line.starts_with(name) && !line.ends_with(" 0"));
        ensure!(counted("duet_eventual_damaged_records"), "the metrics do not count it:\n{metrics}");
        ensure!(counted("duet_eventual_healed_records"), "the metrics do not count it:\n{metrics}");
        Ok(())
    })
    .await
}

/// Flips a bit of a record's value in a stopped node's store.
fn damage(cluster: &Cluster, node: u32, id: NamespaceId, key: &str) -> Result<()> {
    let store = RocksStore::open(&cluster.node_folder(node).join("data"), &RocksOptions::default())?;
    let place = layout::data_key(id, key.as_bytes());
    let mut bytes = store.get(Family::Data, &place)?.context("the record is there")?.to_vec();
    *bytes.last_mut().context("a record has bytes")? ^= 1;
    let mut batch = Batch::new();
    batch.put(Family::Data, place, Bytes::from(bytes));
    store.write(batch)?;
    store.sync()?;
    Ok(())
}
