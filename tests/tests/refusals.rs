//! What a real cluster refuses, each with its typed error, and goes on. `node/tests/refusals.rs` has what a daemon refuses
//! to start with.

#![allow(clippy::print_stdout, reason = "what a run measured belongs to its output")]

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use duet_client::NewNamespace;
use duet_proto::{
    Admin, ClusterName, Consistency, DataRequest, Epoch, Error, KeyRange, Mutation, NamespaceName, NodeId, Op,
    Request, Resource, Response, Role, ScanLimit, frame, frame::RequestFrame, limits,
};
use duet_tests::process::{Cluster, Direct, Layout, Ledger, PATIENCE, binary, leader};
use duet_transport::{CertificateAuthority, Identity, Tls, Validity};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The namespace of every test here.
const NAMESPACE: &str = "orders";

async fn create(cluster: &mut Cluster) -> Result<()> {
    let client = cluster.client().await?;
    client.admin().timeout(PATIENCE).create_namespace(NAMESPACE, NewNamespace::strong()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_makes_no_sense() -> Result<()> {
    Cluster::with(Layout::local(1), async |cluster| {
        create(cluster).await?;
        let mut direct = cluster.direct(1).await?;
        let key = |length| "k".repeat(length);
        let value = |length| Bytes::from(vec![b'v'; length]);
        // The limit itself is allowed.
        for (key, value) in [(key(limits::KEY_MAX), value(1)), (key(1), value(limits::VALUE_DEFAULT))] {
            let written = direct.put(NAMESPACE, &key, value.clone()).await?;
            ensure!(written.is_ok(), "{written:?}");
            let found = direct.get(NAMESPACE, &key, Consistency::Linearizable).await?;
            ensure!(found.as_ref().is_ok_and(|f| f.as_ref().is_some_and(|(_, v)| *v == value)), "it is not there");
        }
        let long = direct.put(NAMESPACE, &key(limits::KEY_MAX + 1), value(1)).await?;
        let limit = limits::KEY_MAX as u64;
        ensure!(long == Err(Error::TooLarge { what: Resource::Key, size: limit + 1, limit }), "{long:?}");
        let big = direct.put(NAMESPACE, "big", value(limits::VALUE_DEFAULT + 1)).await?;
        let limit = limits::VALUE_DEFAULT as u64;
        ensure!(big == Err(Error::TooLarge { what: Resource::Value, size: limit + 1, limit }), "{big:?}");

        let put = |n: usize, size| Mutation::put(format!("t{n}"), value(size));
        let then = |then| Op::Transaction { compares: vec![], then, otherwise: vec![], reads: vec![] };
        let all = KeyRange::all();
        let greedy = ScanLimit { entries: limits::SCAN_ENTRIES + 1, ..ScanLimit::default() };
        for (op, expected) in [
            (then((0..=limits::TXN_OPS).map(|n| put(n, 1)).collect()), Resource::TransactionOps),
            (then((0..5).map(|n| put(n, 1 << 20)).collect()), Resource::TransactionBytes),
            (Op::Scan { range: all, limit: greedy, cursor: None }, Resource::ScanEntries),
        ] {
            match direct.data(NAMESPACE, op, Consistency::Linearizable).await? {
                Err(Error::TooLarge { what, .. }) if what == expected => {}
                other => bail!("{expected:?}: {other:?}"),
            }
        }
        let empty = direct.put(NAMESPACE, "", "v").await?;
        ensure!(matches!(empty, Err(Error::InvalidRequest { .. })), "{empty:?}");
        let twice = direct.data(NAMESPACE, then(vec![put(1, 1), put(1, 2)]), Consistency::Linearizable).await?;
        ensure!(matches!(twice, Err(Error::InvalidRequest { .. })), "{twice:?}");
        for key in ["big", "t0", "t1"] {
            let found = direct.get(NAMESPACE, key, Consistency::Linearizable).await?;
            ensure!(found == Ok(None), "{key} was refused and is there: {found:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_roles() -> Result<()> {
    Cluster::with(Layout::local(1), async |cluster| {
        create(cluster).await?;
        let mut admin = cluster.direct(1).await?;
        let missing = NamespaceName::new("missing")?;
        let read = admin.get("missing", "k", Consistency::Linearizable).await?;
        ensure!(read == Err(Error::NamespaceNotFound { name: missing.clone() }), "{read:?}");
        let write = admin.put("missing", "k", "v").await?;
        ensure!(write == Err(Error::NamespaceNotFound { name: missing.clone() }), "{write:?}");
        let catalog = admin.put(NamespaceName::SYSTEM, "n/1", "v").await?;
        ensure!(catalog.as_ref().is_err_and(|e| e.class() == duet_proto::Class::Caller), "{catalog:?}");

        let tls = cluster.client_tls("app", Role::Client)?;
        let mut app = Direct::connect(&cluster.address(1)?, tls).await?;
        let put = app.put(NAMESPACE, "k", "v").await?;
        ensure!(put.is_ok(), "{put:?}");
        let name = NamespaceName::new(NAMESPACE)?;
        for verb in [
            Admin::DeleteNamespace { name: name.clone() },
            Admin::ShowNamespace { name },
            Admin::ListNamespaces,
            Admin::AddNode { address: "127.0.0.1:1".into() },
            Admin::RemoveNode { node: NodeId(1) },
        ] {
            let answer = app.ask(Request::Admin(verb.clone()), PATIENCE / 4).await?;
            let expected = Error::Unauthorized { needed: Role::Admin, has: Role::Client };
            ensure!(answer == Response::Error(expected), "{verb:?}: {answer:?}");
        }
        let catalog = app.get(NamespaceName::SYSTEM, "i/next", Consistency::Local).await?;
        ensure!(matches!(catalog, Err(Error::Unauthorized { .. })), "{catalog:?}");
        let found = app.get(NAMESPACE, "k", Consistency::Linearizable).await?;
        ensure!(matches!(found, Ok(Some(_))), "{found:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_do_not_fit() -> Result<()> {
    Cluster::with(Layout::local(1), async |cluster| {
        create(cluster).await?;
        let address = cluster.address(1)?;
        let ours = std::fs::read_to_string(cluster.path("ca.pem"))?;
        let name = ClusterName::new("test")?;
        let mut strangers = CertificateAuthority::generate(&name, Validity::days(1))?;
        let stranger = strangers.issue(&Identity::client(name, "eve", Role::Admin)?, Validity::days(1), &[])?;
        // She trusts the cluster; the cluster does not know who issued her certificate.
        let both = format!("{ours}\n{}", strangers.cert());
        let tls = Tls::from_pem(both.as_bytes(), stranger.cert.as_bytes(), stranger.key.as_bytes())?;
        refused(&address, tls, "authority").await?;
        // She does not trust the cluster.
        let tls = Tls::from_pem(strangers.cert().as_bytes(), stranger.cert.as_bytes(), stranger.key.as_bytes())?;
        refused(&address, tls, "authority").await?;
        // A node's certificate is no client's.
        let folder = cluster.node_folder(1);
        let tls = Tls::load(&cluster.path("ca.pem"), &folder.join("cert.pem"), &folder.join("key.pem"))?;
        refused(&address, tls, "node").await?;
        // One that has come to its end is found before anything is sent.
        let expired = cluster.issue("late", Role::Client, Validity { from: 946_684_800, until: 1_000_000_000 })?;
        let late = Tls::from_pem(ours.as_bytes(), expired.cert.as_bytes(), expired.key.as_bytes());
        ensure!(late.is_err(), "an expired certificate is taken");

        let (_, metrics) = cluster.http(1, "/metrics")?;
        let counted = metrics.lines().filter(|line| line.contains("refused") && line.contains("unknown_authority"));
        ensure!(counted.count() > 0, "the refusal is not counted");
        let put = cluster.direct(1).await?.put(NAMESPACE, "k", "v").await?;
        ensure!(put.is_ok(), "{put:?}");
        Ok(())
    })
    .await
}

async fn refused(address: &str, tls: Tls, why: &str) -> Result<()> {
    let identity = tls.identity().to_string();
    let Err(error) = Direct::connect(address, tls).await else { bail!("{identity} was let in") };
    let said = format!("{error:#}");
    ensure!(said.contains(why), "{why:?} is not in: {said}");
    Ok(())
}

/// Founders of two clusters that name each other by mistake: neither takes the other's node in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster() -> Result<()> {
    Cluster::with(Layout::local(1), async |cluster| {
        create(cluster).await?;
        let (one, address) = (ClusterName::new("one")?, cluster.address(1)?);
        let mut other = Cluster::prepare_as(&one, Layout::local(2))?;
        other.move_founder(2, &address)?;
        other.spawn(1)?;
        // Which of the two finds out first is a matter of chance.
        let deadline = Instant::now() + PATIENCE;
        let refusals = ["unknown_authority", "wrong_cluster"];
        let counted = |metrics: &str| {
            metrics
                .lines()
                .any(|line| line.contains("refused") && refusals.iter().any(|reason| line.contains(reason)))
        };
        loop {
            let seen = [cluster.http(1, "/metrics"), other.http(1, "/metrics")];
            if seen.iter().flatten().any(|(_, metrics)| counted(metrics)) {
                break;
            }
            ensure!(Instant::now() < deadline, "nobody refused anybody:\n{}", other.log(1));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(other.http(1, "/readyz")?.0 != 200, "half a cluster is ready");
        ensure!(!cluster.log(1).contains("panicked") && !other.log(1).contains("panicked"), "a panic");
        let put = cluster.direct(1).await?.put(NAMESPACE, "k", "v").await?;
        ensure!(put.is_ok(), "{put:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_no_requests() -> Result<()> {
    Cluster::with(Layout::local(1), async |cluster| {
        create(cluster).await?;
        let seed = rand::rng().next_u64();
        println!("seed {seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let name = NamespaceName::new(NAMESPACE)?;
        let op = Op::Write { mutation: Mutation::put("k", "value") };
        let consistency = Consistency::Linearizable;
        let request = Request::Data(DataRequest {
            namespace: name,
            epoch: Epoch::default(),
            op,
            attempt: None,
            tokens: Vec::new(),
            consistency,
        });
        let good = frame::encode(&RequestFrame { id: 7, timeout_ms: 1000, request }).to_vec();
        let mut direct = cluster.direct(1).await?;
        for round in 0..500 {
            let mut bytes = good.clone();
            match round % 4 {
                0 => bytes.truncate(random.random_range(0..good.len())),
                1 => (0..3).for_each(|_| bytes[random.random_range(0..good.len())] ^= 1 << random.random_range(0..8)),
                2 => bytes.push(random.random()),
                _ => {
                    bytes = vec![0; random.random_range(0..200)];
                    random.fill_bytes(&mut bytes);
                }
            }
            // A frame may be enough to end the connection; the next one gets another.
            if direct.connection().send(bytes.into()).is_err() {
                direct = cluster.direct(1).await?;
            }
        }
        // A name that is none, in a frame that is otherwise whole.
        let mut direct = cluster.direct(1).await?;
        let at = good.windows(NAMESPACE.len()).position(|w| w == NAMESPACE.as_bytes()).context("the name")?;
        let mut shouted = good.clone();
        shouted[at] = b'O';
        direct.connection().send(shouted.into())?;
        let answer = direct.answer(7).await?;
        ensure!(matches!(answer, Response::Error(Error::Malformed { .. })), "{answer:?}");
        let alive = cluster.direct(1).await?.put(NAMESPACE, "after", "v").await?;
        ensure!(alive.is_ok(), "{alive:?}");
        ensure!(!cluster.log(1).contains("panicked"), "a panic");
        Ok(())
    })
    .await
}

/// `duet` as an administrator of this cluster.
fn duet(cluster: &mut Cluster, arguments: &[&str]) -> Result<(Output, Duration)> {
    let issued = cluster.issue("ops", Role::Admin, Validity::days(1))?;
    let (cert, key) = (cluster.path("ops.pem"), cluster.path("ops.key"));
    std::fs::write(&cert, issued.cert)?;
    std::fs::write(&key, issued.key)?;
    let began = Instant::now();
    let output = Command::new(binary("duet")?)
        .env("DUET_ENDPOINTS", cluster.endpoints().join(","))
        .env("DUET_CACERT", cluster.path("ca.pem"))
        .env("DUET_CERT", cert)
        .env("DUET_KEY", key)
        .args(arguments)
        .output()?;
    Ok((output, began.elapsed()))
}

/// It ends with `exit`, and with one JSON document that names `code`.
fn ends(cluster: &mut Cluster, arguments: &[&str], exit: i32, code: &str) -> Result<()> {
    let (output, took) = duet(cluster, arguments)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(exit), "{arguments:?}: {}, {said}", output.status);
    let document: serde_json::Value = serde_json::from_str(&said).with_context(|| format!("{said:?}"))?;
    ensure!(document["error"]["code"] == code, "{arguments:?}: {document}");
    ensure!(took < PATIENCE, "{arguments:?} took {took:?}");
    println!("{arguments:?}: exit {exit}, {code}, after {took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_without_a_quorum() -> Result<()> {
    Cluster::with(Layout::local(3), async |cluster| {
        create(cluster).await?;
        let client = cluster.client().await?;
        let namespace = client.namespace(NAMESPACE)?;
        let ledger = Ledger::new();
        ledger.put(&namespace, "k", "v".into()).await?;
        ends(cluster, &["-o", "json", "get", NAMESPACE, "missing"], 4, "not_found")?;
        ends(cluster, &["-o", "json", "get", "missing", "k"], 4, "namespace_not_found")?;

        let led = leader(&client, NAMESPACE).await?;
        let dead: Vec<u32> = cluster.ids().into_iter().filter(|id| *id != led).collect();
        for node in &dead {
            cluster.kill(*node)?;
        }
        // First while the leader still believes in itself, then when it knows.
        for _ in 0..2 {
            ends(cluster, &["-o", "json", "get", NAMESPACE, "k"], 5, "no_quorum")?;
            ends(cluster, &["-o", "json", "put", NAMESPACE, "k", "never"], 5, "no_quorum")?;
        }
        let (status, took) = duet(cluster, &["status"])?;
        ensure!(status.status.code() == Some(5), "status: {}", status.status);
        println!("status: exit 5 after {took:?}");

        for node in &dead {
            cluster.spawn(*node)?;
        }
        for node in cluster.ids() {
            cluster.wait_ready(node)?;
        }
        ledger.verify(&namespace).await?;
        for node in cluster.ids() {
            cluster.kill(node)?;
        }
        ends(cluster, &["-o", "json", "get", NAMESPACE, "k"], 3, "unreachable")
    })
    .await
}
