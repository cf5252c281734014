//! An eventual namespace on three real `duetd` processes: writes on every side, kills, pauses, isolation, garbage.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{Daemon, Direct, PATIENCE, Site};
use duet_client::{Client, NewNamespace};
use duet_proto::{Error, NodeId};
use duet_transport::{Config, Endpoint, Identity, Lane, Limits, Udp};
use tokio::task::JoinHandle;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn start(site: &Site, nodes: &[u32]) -> BTreeMap<u32, Daemon> {
    let mut daemons: BTreeMap<_, _> = nodes.iter().map(|node| (*node, site.start(*node, &[]))).collect();
    daemons.values_mut().for_each(Daemon::wait_ready);
    daemons
}

async fn create(site: &Site, name: &str, new: NewNamespace) {
    let builder = Client::builder().endpoints(site.endpoints()).tls(site.tls("admin")).timeout(PATIENCE);
    builder.connect().await.unwrap().admin().create_namespace(name, new).await.unwrap();
}

/// Waits until a node holds exactly `expected`.
async fn holds(site: &Site, node: u32, expected: &BTreeMap<String, String>) {
    let mut line = Direct::to(site, node).await;
    let until = Instant::now() + PATIENCE;
    loop {
        let found = line.all("carts").await;
        if found.as_ref() == Ok(expected) {
            return;
        }
        if Instant::now() > until {
            let found = found.unwrap_or_else(|e| panic!("node {node}: {e}"));
            let missing: Vec<_> = expected.iter().filter(|(key, value)| found.get(*key) != Some(value)).collect();
            panic!("node {node} holds {} of {} keys; missing or other: {missing:?}", found.len(), expected.len());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes on one node until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<BTreeMap<String, String>>,
}

impl Load {
    async fn on(site: &Site, node: u32) -> Load {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut line = Direct::to(site, node).await;
        let task = tokio::spawn({
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            async move {
                let mut ledger = BTreeMap::new();
                for i in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    // Half of the writes replace earlier ones.
                    let (key, value) = (format!("load/{node}/{}", i / 2), format!("{i}"));
                    line.put("carts", &key, &value).await.unwrap_or_else(|e| panic!("write {i} on {node}: {e}"));
                    ledger.insert(key, value);
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                ledger
            }
        });
        Load { stop, acknowledged, task }
    }

    /// Waits for so many further acknowledgements.
    async fn more(&self, count: u64) {
        let upto = self.acknowledged.load(Ordering::SeqCst) + count;
        let until = Instant::now() + PATIENCE;
        while self.acknowledged.load(Ordering::SeqCst) < upto {
            assert!(Instant::now() < until && !self.task.is_finished(), "writes do not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What was acknowledged.
    async fn end(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}

#[test]
fn every_member_takes_writes_through_kills_and_pauses_and_all_converge() {
    let site = Site::new("trio", 3);
    let mut daemons = start(&site, &[1, 2, 3]);
    let mut expected = BTreeMap::new();
    runtime().block_on(async {
        create(&site, "carts", NewNamespace::eventual()).await;
        for node in 1..=3 {
            let mut line = Direct::to(&site, node).await;
            for i in 0..20 {
                let (key, value) = (format!("start/{node}/{i}"), format!("from {node}"));
                line.put_soon("carts", &key, &value).await;
                expected.insert(key, value);
            }
        }
        for node in 1..=3 {
            holds(&site, node, &expected).await;
        }
        let cas = duet_proto::Op::CompareAndSet {
            expect: duet_proto::Expect::Absent,
            mutation: duet_proto::Mutation { key: "k".into(), change: duet_proto::Change::Delete },
        };
        let refused = Direct::to(&site, 1).await.call("carts", cas).await;
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");

        // One is killed under load, comes back under load, and catches up.
        let loads = [Load::on(&site, 1).await, Load::on(&site, 2).await];
        loads[0].more(50).await;
        daemons.remove(&3).unwrap().kill();
        loads[0].more(200).await;
        let mut back = site.start(3, &[]);
        back.wait_ready();
        daemons.insert(3, back);
        loads[1].more(50).await;
        for load in loads {
            expected.extend(load.end().await);
        }
        for node in 1..=3 {
            holds(&site, node, &expected).await;
        }

        // One stands still: the others go on, and say who lacks what until it has it.
        daemons[&2].signal("STOP");
        let load = Load::on(&site, 1).await;
        load.more(50).await;
        daemons[&1]
            .wait_metric("duet_eventual_member_lag_writes{namespace=\"carts\",member=\"2\"}", |lag| lag >= 50.0);
        daemons[&1].wait_metric("duet_eventual_lag_seconds{namespace=\"carts\"}", |lag| lag > 0.0);
        daemons[&2].signal("CONT");
        expected.extend(load.end().await);
    });
    let daemons = &daemons;
    runtime().block_on(async {
        for node in 1..=3 {
            holds(&site, node, &expected).await;
        }
    });
    for daemon in daemons.values() {
        daemon.wait_metric("duet_eventual_lag_writes{namespace=\"carts\"}", |lag| lag == 0.0);
        daemon.wait_metric("duet_eventual_lag_seconds{namespace=\"carts\"}", |lag| lag == 0.0);
        daemon.wait_metric("duet_eventual_clean{namespace=\"carts\"}", |clean| clean == 1.0);
        let keys = daemon.metric("duet_namespace_keys{namespace=\"carts\"}");
        assert_eq!(keys, Some(expected.len() as f64));
        for alarm in ["digest_mismatches", "conflicting_markers", "damaged_records", "stamps_refused"] {
            let value = daemon.metric(&format!("duet_eventual_{alarm}_total{{namespace=\"carts\"}}"));
            assert_eq!(value, Some(0.0), "{alarm}");
        }
    }
    // Nodes 1 and 2 have written since their start; every write became known to be everywhere.
    daemons[&1].wait_metric("duet_eventual_convergence_seconds_count{namespace=\"carts\"}", |count| count > 250.0);
    daemons[&1].wait_metric("duet_gossip_peer_alive{peer=\"2\"}", |alive| alive == 1.0);
}

#[test]
fn a_node_that_starts_alone_takes_eventual_writes_and_refuses_strong_ones() {
    let site = Site::new("alone", 3);
    let daemons = start(&site, &[1, 2, 3]);
    runtime().block_on(async {
        create(&site, "carts", NewNamespace::eventual()).await;
        create(&site, "orders", NewNamespace::strong()).await;
        for node in 1..=3 {
            let mut line = Direct::to(&site, node).await;
            line.put_soon("carts", &format!("together/{node}"), "x").await;
        }
    });
    drop(daemons);

    // Each in turn is alone from its start.
    let mut expected: BTreeMap<_, _> = (1..=3).map(|node| (format!("together/{node}"), "x".to_owned())).collect();
    for node in [1, 2] {
        let mut daemon = site.start(node, &[]);
        daemon.wait_for("/healthz", "200");
        runtime().block_on(async {
            let mut line = Direct::to(&site, node).await;
            let key = format!("alone/{node}");
            line.put_soon("carts", &key, "y").await;
            assert_eq!(line.get("carts", &key).await, Ok(Some(Bytes::from("y"))));
            let read = line.get("orders", "k").await;
            assert!(matches!(read, Err(Error::NoQuorum { .. })), "{read:?}");
            let written = line.put("orders", "k", "v").await;
            assert!(matches!(written, Err(Error::NoQuorum { .. })), "{written:?}");
            expected.insert(key, "y".into());
        });
        daemon.wait_for("/readyz", "503");
        daemon.kill();
    }
    let daemons = start(&site, &[1, 2, 3]);
    runtime().block_on(async {
        for node in 1..=3 {
            holds(&site, node, &expected).await;
        }
    });
    for (node, daemon) in daemons {
        assert_eq!(daemon.stop(), Some(0), "node {node}");
    }
}

/// Bytes that look random, the same each time.
fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Whether the daemon has refused garbage on both lanes of the eventual engine.
fn refused_garbage(daemon: &Daemon) -> bool {
    ["frames_malformed", "gossip_malformed"].iter().all(|event| {
        let line = format!("duet_eventual_events_total{{event=\"{event}\"}}");
        daemon.metric(&line).is_some_and(|count| count >= 100.0)
    })
}

#[test]
fn garbage_from_a_peer_harms_nobody() {
    let site = Site::new("garbage", 3);
    let mut daemons = start(&site, &[1, 2, 3]);
    runtime().block_on(async {
        create(&site, "carts", NewNamespace::eventual()).await;
        // In the third one's place, with its certificate: one with nothing good to say.
        daemons.remove(&3).unwrap().kill();
        let mut config = Config {
            me: Identity::node(site.cluster.clone(), NodeId(3)),
            listen: site.address(3),
            tls: site.tls("node3"),
            limits: Limits::default(),
            rng_seed: None,
            network: Arc::new(Udp),
        };
        config.limits.client_connections = 1;
        let bad = Endpoint::start(config).unwrap();
        bad.peers().set(NodeId(1), site.address(1).to_string());
        let until = Instant::now() + PATIENCE;
        while !bad.peers().connected().contains(&NodeId(1)) {
            assert!(Instant::now() < until, "no connection");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Again and again: what was on its way when a connection took the place of another is lost.
        while !refused_garbage(&daemons[&1]) {
            assert!(Instant::now() < until, "{}", daemons[&1].get("/metrics").1);
            for lane in Lane::ALL {
                for i in 0..200 {
                    let mut frame = noise(i, (i * i) as usize % 3000).to_vec();
                    if let Some(first) = frame.first_mut().filter(|_| i % 2 == 0) {
                        // The version, so that what follows is looked at.
                        *first = 1;
                    }
                    let _ = bad.peers().send(NodeId(1), lane, frame.into()).await;
                }
                let _ = bad.peers().send(NodeId(1), lane, noise(7, 1 << 20)).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    runtime().block_on(async {
        Direct::to(&site, 1).await.put_soon("carts", "k", "v").await;
        let expected = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        holds(&site, 2, &expected).await;
    });
    daemons.get_mut(&1).unwrap().wait_ready();
    let daemon = daemons.remove(&1).unwrap();
    assert_eq!(daemon.get("/healthz").0, "200");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}
