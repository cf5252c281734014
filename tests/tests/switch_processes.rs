//! Real daemons whose namespaces are switched while they are written to: killed at each step of either direction, cut off
//! in each phase, left out and come back.

#![allow(clippy::print_stdout, reason = "what a run measured belongs to its output")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use duet_client::{Client, Mode, Namespace, NewNamespace};
use duet_proto::{Consistency, Role};
use duet_tests::process::{
    Cluster, Layout, Ledger, Link, LocalWriters, PATIENCE, Passage, Writers, agreed, leader, patiently, settled,
};

/// The namespace of every test here.
const NAMESPACE: &str = "orders";
/// Places on the way from eventual to strong.
const TO_STRONG: [&str; 8] = [
    "switch.gathering",
    "switch.fenced",
    "switch.sealed",
    "switch.converging",
    "switch.converged",
    "switch.activated",
    "switch.created",
    "switch.retired",
];
/// Places on the way back. The old group is retired later, while writes go on.
const TO_EVENTUAL: [&str; 4] = ["switch.seal_proposed", "switch.activated", "switch.opened", "switch.retired"];

/// A client and the namespace, eventual at first.
async fn open(cluster: &mut Cluster, copies: u32) -> Result<(Client, Namespace)> {
    let client = cluster.client().await?;
    let new = NewNamespace { copies, ..NewNamespace::eventual() };
    client.admin().timeout(PATIENCE).create_namespace(NAMESPACE, new).await?;
    let namespace = client.namespace(NAMESPACE)?;
    settled(&client, NAMESPACE, cluster.ids().len()).await?;
    Ok((client, namespace))
}

/// Whoever comes to a place on the way dies there: members, and among them the leader of the catalog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_each_step() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster, 2).await?;
        let ledger = Ledger::new();
        let writers = Writers::start(&namespace, &ledger, 4);
        let (mut strong, mut deaths) = (0, 0);
        for round in 0..TO_STRONG.len() {
            for (to, place) in [(Mode::Strong, TO_STRONG[round]), (Mode::Eventual, TO_EVENTUAL[round % 4])] {
                ledger.progress(20).await?;
                for id in cluster.ids() {
                    cluster.tell(id, place)?;
                }
                let told = || format!("to {to}, dying at {place}");
                let mut passage = Passage::begin(cluster, &client, NAMESPACE, to, &[]).await.with_context(told)?;
                passage.through(cluster).await.with_context(told)?;
                // What comes after the switch takes its time.
                let deadline = Instant::now() + PATIENCE;
                while passage.died.is_empty() {
                    passage.revive(cluster)?;
                    ensure!(Instant::now() < deadline, "{}: nobody has come there", told());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                println!("{}: nodes {:?} died", told(), passage.died);
                deaths += passage.died.len();
                strong += u32::from(to == Mode::Strong);
                for id in cluster.ids() {
                    cluster.tell(id, "")?;
                }
                passage.revive(cluster)?;
                for id in cluster.ids() {
                    cluster.wait_ready(id)?;
                }
                ledger.progress(20).await.with_context(|| format!("{}: writes do not go on", told()))?;
            }
        }
        writers.finish().await?;
        agreed(&client, NAMESPACE, 3).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("{strong} switches each way, {deaths} deaths: {}; {keys} keys verified", ledger.tally());
        Ok(())
    })
    .await
}

/// Every node is killed at any moment of a switch, the leader of the catalog among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_killed_during_a_switch() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster, 1).await?;
        let ledger = Ledger::new();
        let writers = Writers::start(&namespace, &ledger, 4);
        for round in 0..6 {
            let to = if round % 2 == 0 { Mode::Strong } else { Mode::Eventual };
            ledger.progress(50).await?;
            let catalog = leader(&client, duet_proto::NamespaceName::SYSTEM).await?;
            let victim = if round < 2 { catalog } else { 1 + round / 2 % 3 };
            let mut passage = Passage::begin(cluster, &client, NAMESPACE, to, &[]).await?;
            cluster.kill(victim)?;
            cluster.spawn(victim)?;
            passage.through(cluster).await.with_context(|| format!("to {to}, node {victim} was killed"))?;
            cluster.wait_ready(victim)?;
        }
        ledger.progress(50).await?;
        writers.finish().await?;
        agreed(&client, NAMESPACE, 3).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("6 switches with a kill each: {}; {keys} keys verified", ledger.tally());
        Ok(())
    })
    .await
}

/// A node is cut off from the others while another one holds the switch up in one of its phases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_in_each_phase() -> Result<()> {
    let Some(link) = Link::here(3) else { return Ok(()) };
    Cluster::with(link.layout(), async |cluster| {
        let (client, namespace) = open(cluster, 2).await?;
        let ledger = Ledger::new();
        let mut members = BTreeMap::new();
        for id in cluster.ids() {
            members.insert(id, (cluster.address(id)?, cluster.client_tls("writer", Role::Client)?));
        }
        // Some keep to the node that is cut off: the others are to go on.
        let writers = LocalWriters::start(&members, NAMESPACE, &ledger, 2);
        let phases = [
            (Mode::Strong, "switch.gathering"),
            (Mode::Eventual, "switch.seal_proposed"),
            (Mode::Strong, "switch.fenced"),
            (Mode::Eventual, "switch.activated"),
            (Mode::Strong, "switch.sealed"),
            (Mode::Eventual, "switch.opened"),
            (Mode::Strong, "switch.converging"),
            (Mode::Eventual, "switch.seal_proposed"),
            (Mode::Strong, "switch.converged"),
            (Mode::Eventual, "switch.opened"),
            (Mode::Strong, "switch.created"),
        ];
        for (round, (to, place)) in (0..).zip(phases) {
            ledger.progress(20).await?;
            for id in cluster.ids() {
                cluster.tell(id, &format!("hold {place}"))?;
            }
            let told = || format!("to {to}, cut off at {place}");
            let mut passage = Passage::begin(cluster, &client, NAMESPACE, to, &[]).await.with_context(told)?;
            let deadline = Instant::now() + PATIENCE;
            let held = loop {
                if let Some(id) = cluster.ids().into_iter().find(|id| cluster.holds(*id)) {
                    break id;
                }
                ensure!(Instant::now() < deadline, "{}: nobody has come there", told());
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            // The one that was held, or another.
            let lonely = if round % 3 == 0 { held } else { 1 + held % 3 };
            link.isolate(lonely)?;
            for id in cluster.ids() {
                cluster.tell(id, "")?;
            }
            ledger.progress(20).await.with_context(|| format!("{}: node {lonely} is cut off", told()))?;
            link.heal()?;
            passage.through(cluster).await.with_context(told)?;
            println!("{}: node {held} was there, node {lonely} cut off; {}", told(), ledger.tally());
            ledger.progress(20).await.with_context(|| format!("{}: healed", told()))?;
        }
        writers.finish().await?;
        let mut last = Passage::begin(cluster, &client, NAMESPACE, Mode::Eventual, &[]).await?;
        last.through(cluster).await?;
        agreed(&client, NAMESPACE, 3).await?;
        let keys = ledger.verify(&namespace).await?;
        println!("{} partitions: {}; {keys} keys verified", phases.len(), ledger.tally());
        Ok(())
    })
    .await
}

/// A member that alone holds acknowledged writes is left out; when it returns it brings them, whatever kills it on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn left_out_and_come_back() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        let (client, namespace) = open(cluster, 1).await?;
        let ledger = Ledger::new();
        ledger.put(&namespace, "contested", "early".into()).await?;
        settled(&client, NAMESPACE, 3).await?;
        for id in [1, 2] {
            cluster.kill(id)?;
        }
        let mut lonely = cluster.direct(3).await?;
        for number in 0..300 {
            let (key, value) = (format!("alone-{number:03}"), format!("{number}"));
            let written = lonely.put(NAMESPACE, &key, value.clone()).await?;
            let answer = written.with_context(|| format!("{key} of a member alone"))?;
            let duet_proto::Outcome::Written(stamp) = answer.outcome else { anyhow::bail!("{answer:?}") };
            ledger.note(&key, value.into(), Ok(stamp));
        }
        // Nobody is to see this one: something later is written before it comes in.
        lonely.put(NAMESPACE, "contested", "late").await??;
        cluster.kill(3)?;
        for id in [1, 2] {
            cluster.spawn(id)?;
        }
        for id in [1, 2] {
            cluster.wait_ready(id)?;
        }
        // Without it there are not enough: writes go on in the old mode until it is left out.
        let mut passage = Passage::begin(cluster, &client, NAMESPACE, Mode::Strong, &[]).await?;
        patiently(async || namespace.put("meanwhile", "value").await).await?;
        ensure!(!passage.is_over().await?, "a member that may hold what nobody else has was not waited for");
        let waits = passage.look().await?.and_then(|info| info.progress).map(|progress| progress.waits_for);
        println!("it waits for {waits:?}");
        client.admin().timeout(PATIENCE).switch_mode(NAMESPACE, Mode::Strong, vec![duet_client::NodeId(3)]).await?;
        passage.through(cluster).await?;
        let writers = Writers::start(&namespace, &ledger, 4);
        ledger.progress(50).await.context("strong, without a member")?;
        patiently(async || ledger.put(&namespace, "contested", "after".into()).await).await?;
        for place in ["late.stashed", "late.proposed", "late.brought"] {
            cluster.tell(3, place)?;
            if cluster.pid(3).is_err() {
                cluster.spawn(3)?;
            }
            let end = cluster.wait_end(3).with_context(|| format!("{place}: it has not come there"))?;
            println!("{place}: node 3 ended with {end}");
        }
        cluster.revive(3)?;
        passage.brought(cluster).await?;
        writers.finish().await?;
        agreed(&client, NAMESPACE, 3).await?;
        let mut direct = cluster.direct(3).await?;
        let contested = direct.get(NAMESPACE, "contested", Consistency::Linearizable).await??;
        ensure!(contested.is_some_and(|(_, value)| value == "after"), "a late write came after a later one");
        let keys = ledger.verify(&namespace).await?;
        println!("late writes: {}; {keys} keys verified", ledger.tally());
        Ok(())
    })
    .await
}
