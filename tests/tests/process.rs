//! Real daemons that are killed, paused and stopped while clients write.

#![allow(clippy::print_stdout, reason = "what a run measured belongs to its output")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duet_client::{Client, Namespace, NewNamespace};
use duet_proto::{Consistency, DataRequest, Epoch, Error, NamespaceName, Op, Outcome, Request, Response};
use duet_tests::process::{Cluster, Layout, Ledger, PATIENCE, Writers, converged, leader, patiently};
use nix::sys::signal::Signal;
use rand::Rng;

/// The namespace of every test here.
const NAMESPACE: &str = "orders";

/// A client and the namespace, created.
async fn open(cluster: &mut Cluster) -> Result<(Client, Namespace)> {
    let client = cluster.client().await?;
    client.admin().timeout(PATIENCE).create_namespace(NAMESPACE, NewNamespace::strong()).await?;
    let namespace = client.namespace(NAMESPACE)?;
    Ok((client, namespace))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_killed_at_random_moments() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        let writers = Writers::start(&namespace, &ledger, 8);
        ledger.progress(100).await?;
        for round in 0..8 {
            // Every other time it is the leader.
            let victim = match round % 2 {
                0 => leader(&client, NAMESPACE).await?,
                _ => rand::rng().random_range(1..=3),
            };
            cluster.kill(victim)?;
            ledger
                .progress(rand::rng().random_range(1..200))
                .await
                .with_context(|| format!("node {victim} is dead"))?;
            // At times the next one is killed while this one is still starting.
            match round % 4 {
                3 => cluster.spawn(victim)?,
                _ => cluster.revive(victim)?,
            }
        }
        for node in cluster.ids() {
            cluster.wait_ready(node)?;
        }
        let tally = writers.finish().await?;
        let position = converged(&client, NAMESPACE, 3).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("8 kills: {tally}; {keys} keys verified at position {position}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        let marked = "marked";
        for round in 0..3 {
            let old = leader(&client, NAMESPACE).await?;
            ledger.put(&namespace, marked, format!("old {round}").into()).await?;
            let mut direct = cluster.direct(old).await?;
            let writers = Writers::start(&namespace, &ledger, 4);
            ledger.progress(20).await?;

            cluster.signal(old, Signal::SIGSTOP)?;
            ledger.progress(50).await.context("the leader is paused")?;
            let newer = format!("new {round}");
            ledger.put(&namespace, marked, newer.clone().into()).await?;
            // This read waits in the paused node's socket: it is the first thing that the old leader sees.
            let op = Op::Get { key: marked.into() };
            let read = DataRequest {
                namespace: NamespaceName::new(NAMESPACE)?,
                epoch: Epoch::default(),
                op,
                attempt: None,
                tokens: Vec::new(),
                consistency: Consistency::Linearizable,
            };
            let asked = direct.send(Request::Data(read), Duration::from_secs(5))?;
            cluster.signal(old, Signal::SIGCONT)?;
            match direct.answer(asked).await {
                Ok(Response::Data(answer)) => {
                    let Outcome::Value(found) = answer.outcome else { anyhow::bail!("{answer:?}") };
                    let found = found.map(|(_, value)| value);
                    ensure!(found == Some(newer.clone().into()), "a stale read: {found:?}, {newer} was acknowledged");
                }
                Ok(Response::Error(Error::NoQuorum { .. } | Error::TimedOut { .. } | Error::Unavailable { .. })) => {}
                Ok(other) => anyhow::bail!("{other:?}"),
                // It was paused for longer than a connection may be silent.
                Err(error) => println!("round {round}: {error}"),
            }
            writers.finish().await?;
        }
        converged(&client, NAMESPACE, 3).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("3 pauses: {}; {keys} keys verified", ledger.tally());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_hands_over() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        let writers = Writers::start(&namespace, &ledger, 4);
        ledger.progress(50).await?;
        for _ in 0..2 {
            let old = leader(&client, NAMESPACE).await?;
            let status = cluster.stop(old)?;
            ensure!(status.success(), "node {old} ended with {status}");
            let log = cluster.log(old);
            ensure!(!log.contains("panicked"), "node {old} panicked:\n{log}");
            ledger.progress(50).await.context("the leader was stopped")?;
            let new = leader(&client, NAMESPACE).await?;
            ensure!(new != old, "node {old} leads and does not run");
            cluster.revive(old)?;
        }
        let tally = writers.finish().await?;
        converged(&client, NAMESPACE, 3).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("2 clean stops: {tally}; {keys} keys verified");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_killed_at_once() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        for _ in 0..3 {
            let writers = Writers::start(&namespace, &ledger, 8);
            ledger.progress(200).await?;
            for node in cluster.ids() {
                cluster.signal(node, Signal::SIGKILL)?;
            }
            for node in cluster.ids() {
                cluster.wait_end(node)?;
            }
            for node in cluster.ids() {
                cluster.spawn(node)?;
            }
            for node in cluster.ids() {
                cluster.wait_ready(node)?;
            }
            ledger.progress(20).await.context("after the restart")?;
            writers.finish().await?;
            ledger.verify(&namespace).await?;
        }
        converged(&client, NAMESPACE, 3).await?;
        println!("3 deaths of everything: {}", ledger.tally());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node() -> Result<()> {
    Cluster::with(Layout::local(1), async |cluster| {
        let (_client, namespace) = open(cluster).await?;
        let ledger = Ledger::new();
        let writers = Writers::start(&namespace, &ledger, 4);
        for _ in 0..3 {
            ledger.progress(100).await?;
            cluster.kill(1)?;
            cluster.revive(1)?;
        }
        ledger.progress(20).await?;
        writers.finish().await?;
        let status = cluster.stop(1)?;
        ensure!(status.success(), "it ended with {status}");
        cluster.revive(1)?;
        patiently(async || namespace.get("any").await).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("a single node: {}; {keys} keys verified", ledger.tally());
        Ok(())
    })
    .await
}
