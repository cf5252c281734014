//! Three real `duetd` processes on loopback: they take writes, lose nodes to SIGKILL, and lose nothing.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails")]

mod common;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use common::{Daemon, PATIENCE, Site};
use duet_client::{Client, ClientError, Namespace, NewNamespace};
use duet_proto::{
    Error, NodeId, Request, Response,
    frame::{self, RequestFrame, ResponseFrame},
};
use duet_transport::{Connector, Udp};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn connect(site: &Site, who: &str) -> Client {
    let builder = Client::builder().endpoints(site.endpoints()).tls(site.tls(who)).timeout(PATIENCE);
    builder.connect().await.unwrap()
}

fn start_all(site: &Site) -> BTreeMap<u32, Daemon> {
    let mut daemons: BTreeMap<_, _> = (1..=3).map(|node| (node, site.start(node, &[]))).collect();
    daemons.values_mut().for_each(Daemon::wait_ready);
    daemons
}

async fn check(data: &Namespace, upto: u32) {
    for i in 0..upto {
        let held = data.get(key(i)).await.unwrap_or_else(|e| panic!("key {i}: {e}"));
        assert_eq!(held.map(|held| held.value), Some(value(i)), "an acknowledged write is missing or wrong: {i}");
    }
}

fn key(i: u32) -> Bytes {
    format!("key/{i:06}").into()
}

fn value(i: u32) -> Bytes {
    format!("value of {i}").into()
}

async fn leader(client: &Client, name: &str) -> u32 {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let topology = client.topology().await.unwrap();
        if let Some(leader) = topology.namespaces.iter().find(|n| n.name.as_str() == name).and_then(|n| n.leader) {
            return leader.0;
        }
        assert!(tokio::time::Instant::now() < until, "no leader of {name}: {topology:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn three_nodes_lose_their_leader_and_nothing_else() {
    let site = Site::new("trio", 3);
    let mut daemons = start_all(&site);
    runtime().block_on(async {
        let client = connect(&site, "admin").await;
        client.admin().create_namespace("orders", NewNamespace::strong()).await.unwrap();
        let orders = client.namespace("orders").unwrap();
        for i in 0..100 {
            orders.put(key(i), value(i)).await.unwrap();
        }
        check(&orders, 100).await;

        // Writes go on while the leader dies.
        let leading = leader(&client, "orders").await;
        let writing = tokio::spawn({
            let orders = orders.clone();
            async move {
                for i in 100..300 {
                    orders.put(key(i), value(i)).await.unwrap_or_else(|e| panic!("write {i}: {e}"));
                }
            }
        });
        daemons.remove(&leading).unwrap().kill();
        writing.await.unwrap();
        check(&orders, 300).await;

        // The dead one returns and catches up; then the others can go.
        let mut back = site.start(leading, &[]);
        back.wait_ready();
        daemons.insert(leading, back);
        let survivor = *daemons.keys().find(|node| **node != leading).unwrap();
        daemons.remove(&survivor).unwrap().kill();
        check(&orders, 300).await;
        orders.put(key(300), value(300)).await.unwrap();

        // Without a quorum there is a refusal, not a wait and not an old value.
        let last = *daemons.keys().find(|node| **node != leading).unwrap();
        daemons.remove(&last).unwrap().kill();
        let refused = orders.timeout(Duration::from_secs(20)).get(key(0)).await.unwrap_err();
        assert!(matches!(refused.cluster(), Some(Error::NoQuorum { .. })), "{refused:?}");
        daemons.get_mut(&leading).unwrap().wait_for("/readyz", "503");
    });

    // Everybody returns; then a clean stop, a start, and all is there.
    drop(daemons);
    let daemons = start_all(&site);
    for (node, daemon) in daemons {
        assert_eq!(daemon.stop(), Some(0), "node {node}");
    }
    let daemons = start_all(&site);
    runtime().block_on(async {
        let client = connect(&site, "app").await;
        check(&client.namespace("orders").unwrap(), 301).await;
    });
    let metrics = daemons[&1].get("/metrics").1;
    for name in [
        "duet_build_info{version=",
        "duet_raft_applied_index{namespace=\"orders\"}",
        "duet_replica_state{namespace=\"orders\",mode=\"strong\"",
        "duet_commit_groups_total",
        "duet_commit_duration_seconds_bucket",
        "duet_lane_bytes_total{lane=\"raft\",direction=\"sent\"}",
        "duet_ready 1",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
}

#[test]
fn one_node_commits_alone_and_survives_kills() {
    let site = Site::new("solo", 1);
    for round in 0..3 {
        let mut daemon = site.start(1, &[]);
        daemon.wait_ready();
        runtime().block_on(async {
            let client = connect(&site, "admin").await;
            if round == 0 {
                client.admin().create_namespace("n", NewNamespace::strong()).await.unwrap();
            }
            let data = client.namespace("n").unwrap();
            check(&data, round * 20).await;
            for i in round * 20..(round + 1) * 20 {
                data.put(key(i), value(i)).await.unwrap();
            }
        });
        daemon.kill();
    }
}

#[test]
fn what_a_client_may_not_do() {
    let site = Site::new("rules", 1);
    let mut daemon = site.start(1, &["--limits-value-bytes", "1000"]);
    daemon.wait_ready();
    runtime().block_on(async {
        let admin = connect(&site, "admin").await;
        admin.admin().create_namespace("n", NewNamespace::strong()).await.unwrap();
        let app = connect(&site, "app").await;
        let code = |error: ClientError| error.code().to_owned();
        let refused = app.admin().create_namespace("m", NewNamespace::strong()).await.unwrap_err();
        assert_eq!(code(refused), "unauthorized");
        assert_eq!(code(app.namespace("_system").unwrap().get("i/next").await.unwrap_err()), "unauthorized");
        assert!(admin.namespace("_system").unwrap().get("i/next").await.unwrap().is_some());
        let data = app.namespace("n").unwrap();
        assert_eq!(code(data.put("k", vec![0; 1001]).await.unwrap_err()), "too_large");
        assert_eq!(code(app.namespace("nowhere").unwrap().get("k").await.unwrap_err()), "namespace_not_found");

        // Bytes that are no request are refused by id, and the connection goes on.
        let line = Connector::new(site.tls("app"), Arc::new(Udp));
        let line = line.connect(&site.address(1).to_string(), Some(NodeId(1))).await.unwrap();
        let mut answers = line.incoming().unwrap();
        line.send(Bytes::from_static(&[77, 0xff, 0xff, 0xff])).unwrap();
        let answer: ResponseFrame = frame::decode(&answers.recv().await.unwrap()).unwrap();
        assert!(matches!(answer, ResponseFrame { id: 77, response: Response::Error(Error::Malformed { .. }) }));
        let good = RequestFrame { id: 78, timeout_ms: 10_000, request: Request::Topology };
        line.send(frame::encode(&good)).unwrap();
        let answer: ResponseFrame = frame::decode(&answers.recv().await.unwrap()).unwrap();
        assert!(matches!(answer, ResponseFrame { id: 78, response: Response::Topology(_) }));
    });
    assert_eq!(daemon.stop(), Some(0));
}
