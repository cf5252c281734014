//! The eventual half: a partition, writes on both sides of it, and what is left of them when it heals.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use duet_client::{Client, Namespace, NewNamespace};
use duet_proto::{KeyRange, NodeId, Stamp};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use super::{PATIENCE, create, detail, load::PREFIX, step, strong};
use crate::{
    args::Globals, cluster, failure::Failure, links::Links, output::count, playground::Playground,
    status::NamespaceRow, verbs::builder,
};

pub(super) const NAMESPACE: &str = "carts";
/// Keys that are there before the partition.
const CARTS: u32 = 3000;
/// Keys that each side adds.
const ADDED: u32 = 2000;
/// Keys that both sides write.
const CONTESTED: std::ops::Range<u32> = 0..500;
/// Keys that a side deletes and the other leaves alone.
const DELETED: [std::ops::Range<u32>; 2] = [1000..1500, 2000..2500];
/// Writes of a side in flight at a time.
const IN_FLIGHT: usize = 64;
/// Who is alone.
const ALONE: NodeId = NodeId(3);

/// Steps 6 to 9. Returns what they leave behind.
pub(super) async fn show(client: &Client, nodes: &Playground, globals: &Globals) -> Result<Ledger, Failure> {
    let links = nodes.links().ok_or_else(|| Failure::failed("the links between the nodes cannot be cut"))?;
    step(6, "An eventual namespace");
    create(client, NAMESPACE, NewNamespace::eventual()).await?;
    settled(client).await?;
    let began = Instant::now();
    let base =
        write(&client.namespace(NAMESPACE)?, "", (0..CARTS).map(|n| (cart(n), Some("two apples".into())))).await?;
    settled(client).await?;
    detail(&format!(
        "{NAMESPACE}: any of nodes 1, 2 and 3 takes writes by itself, the last one wins; {} records, on all of them \
         after {} ms",
        count(base.len() as u64),
        count(began.elapsed().as_millis() as u64),
    ));

    step(7, "The network breaks, and both sides write");
    let (here, there) =
        (beside(links, nodes, globals, NodeId(1)).await?, beside(links, nodes, globals, ALONE).await?);
    links.cut([ALONE]);
    detail(&format!(
        "every packet between node {ALONE} and nodes 1 and 2 is dropped from now on, and with it a client"
    ));
    let (carts_here, carts_there) = (here.namespace(NAMESPACE)?, there.namespace(NAMESPACE)?);
    let strong_there = there.namespace(strong::NAMESPACE)?;
    let (one, other, refused) = tokio::join!(side(&carts_here, 0), side(&carts_there, 1), refused(&strong_there));
    let (one, other) = (one?, other?);
    refused?;
    let say = |who: &str, ledger: &Ledger| {
        let gone = ledger.values().filter(|(_, value)| value.is_none()).count();
        detail(&format!(
            "{who}: {} puts and {} deletes, all acknowledged",
            count((ledger.len() - gone) as u64),
            count(gone as u64)
        ));
    };
    say("nodes 1 and 2", &one);
    say("node 3 alone ", &other);
    let row = row(client).await?;
    if row.converged == Some(true) {
        return Err(Failure::failed("both sides hold the same: the links were not cut"));
    }

    step(8, "The network heals");
    let healed = Instant::now();
    links.heal();
    let row = settled(client).await?;
    let digest = row.members.iter().find_map(|m| m.replica.as_ref()).map_or("", |r| &r.digest);
    detail(&format!(
        "converged after {} ms: digest {digest} on every member",
        count(healed.elapsed().as_millis() as u64)
    ));

    step(9, "Nothing acknowledged is missing, nothing deleted is back");
    let mut expected = base;
    merge(&mut expected, &one);
    merge(&mut expected, &other);
    // Each side is asked for what the other has written: a session that has seen it sees it on every member.
    let here = carts_here.tokens();
    carts_here.resume(&carts_there.tokens());
    carts_there.resume(&here);
    for namespace in [&carts_here, &carts_there] {
        verify(namespace, &expected).await?;
    }
    summary(&expected, &one, &other);
    Ok(expected)
}

/// What was acknowledged for each key, the latest of it: a value, or that it is gone.
pub(super) type Ledger = BTreeMap<Bytes, (Stamp, Option<Bytes>)>;

fn cart(number: u32) -> Bytes {
    format!("cart/{number:06}").into()
}

/// A client that is on the side of a node, whatever happens to the network.
pub(super) async fn beside(
    links: &Links,
    nodes: &Playground,
    globals: &Globals,
    node: NodeId,
) -> Result<Client, Failure> {
    let globals = Globals { endpoints: vec![nodes.address(node).to_string()], ..globals.clone() };
    Ok(builder(&globals)?.network(Arc::new(links.beside(node))).connect().await?)
}

/// What one side does: adds keys, writes those that the other side writes as well, deletes some that it does not.
async fn side(namespace: &Namespace, side: usize) -> Result<Ledger, Failure> {
    let who = ["here", "there"][side];
    let added = (0..ADDED).map(|n| (Bytes::from(format!("{who}/{n:06}")), Some(Bytes::from(format!("added {who}")))));
    // The sides go through these in opposite directions, so that each has the last word on some.
    let key = move |n| if side == 0 { n } else { CONTESTED.end - 1 - n };
    let contested = CONTESTED.map(|n| (cart(key(n)), Some(Bytes::from(format!("last changed {who}")))));
    let deleted = DELETED[side].clone().map(|n| (cart(n), None));
    write(namespace, who, contested.chain(added).chain(deleted)).await
}

async fn write(
    namespace: &Namespace,
    who: &str,
    writes: impl Iterator<Item = (Bytes, Option<Bytes>)>,
) -> Result<Ledger, Failure> {
    stream::iter(writes)
        .map(|(key, value)| async move {
            let stamp = match value.clone() {
                Some(value) => namespace.put(key.clone(), value).await,
                None => namespace.delete(key.clone()).await,
            };
            Ok((key, (stamp.map_err(|e| Failure::from(e).context(format!("writing {who}")))?, value)))
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect()
        .await
}

fn merge(into: &mut Ledger, from: &Ledger) {
    for (key, record) in from {
        let held = into.entry(key.clone()).or_insert_with(|| record.clone());
        if record.0 > held.0 {
            held.clone_from(record);
        }
    }
}

/// A strong namespace without a quorum takes no part in this: it must say so, in time, and never answer with old data.
async fn refused(namespace: &Namespace) -> Result<(), Failure> {
    let began = Instant::now();
    match namespace.timeout(Duration::from_secs(5)).get("0041").await {
        Ok(_) => Err(Failure::failed("a strong read was answered without a quorum")),
        Err(error) => {
            let ms = count(began.elapsed().as_millis() as u64);
            detail(&format!("a strong read on node {ALONE} is refused after {ms} ms: {}", error.code()));
            Ok(())
        }
    }
}

/// The namespace's line of a report, once whoever is asked has heard of it.
async fn row(client: &Client) -> Result<NamespaceRow, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = cluster::report(client).await?;
        if let Some(row) = report.namespaces.into_iter().find(|n| n.name == NAMESPACE) {
            return Ok(row);
        }
        if Instant::now() > deadline {
            return Err(Failure::failed(format!("the cluster does not know of {NAMESPACE}")));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all members hold the same.
async fn settled(client: &Client) -> Result<NamespaceRow, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = row(client).await?;
        if row.alarmed() {
            return Err(Failure::failed(format!("the members are at odds:\n{}", row.render())));
        }
        if row.converged == Some(true) {
            return Ok(row);
        }
        if Instant::now() > deadline {
            return Err(Failure::failed(format!("the members do not converge:\n{}", row.render())));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Reads everything and compares: what was acknowledged last is there, what was deleted is not, nothing else is but what
/// later steps write.
pub(super) async fn verify(namespace: &Namespace, expected: &Ledger) -> Result<(), Failure> {
    let found: BTreeMap<Bytes, (Stamp, Option<Bytes>)> = namespace
        .scan(KeyRange::all())
        .map_ok(|entry| (entry.key, (entry.stamp, Some(entry.value))))
        .try_filter(|(key, _)| std::future::ready(!key.starts_with(PREFIX.as_bytes())))
        .try_collect()
        .await?;
    let live = || expected.iter().filter(|(_, (_, value))| value.is_some());
    let lost = live().filter(|(key, record)| found.get(*key) != Some(record)).count();
    let back = found.keys().filter(|key| expected.get(*key).is_none_or(|(_, value)| value.is_none())).count();
    if lost + back > 0 {
        return Err(Failure::failed(format!("{lost} acknowledged writes are missing, {back} deleted keys are back")));
    }
    Ok(())
}

fn summary(expected: &Ledger, one: &Ledger, other: &Ledger) {
    let live = expected.values().filter(|(_, value)| value.is_some()).count() as u64;
    let kept = |side: &Ledger| {
        let kept = CONTESTED.filter(|n| expected.get(&cart(*n)).map(|r| r.0) == side.get(&cart(*n)).map(|r| r.0));
        count(kept.count() as u64)
    };
    detail(&format!(
        "{} records read on each side, each the last that was acknowledged; {} keys stay deleted",
        count(live),
        count(expected.len() as u64 - live),
    ));
    detail(&format!(
        "of {} keys written on both sides the later write won: {} times that of nodes 1 and 2, {} times that of node 3",
        count(CONTESTED.len() as u64),
        kept(one),
        kept(other),
    ));
}
