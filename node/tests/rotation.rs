//! Certificates that change under a running cluster: every one of them replaced, the authority too, while clients read
//! and write and nobody notices; and some revoked, which those who have them do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::{Daemon, PATIENCE, Site};
use duet_client::{Client, NewNamespace};
use duet_proto::NodeId;
use duet_transport::{ConnectError, Connector, Refusal, Udp, Validity};
use tokio::task::JoinHandle;

/// How old connections become here.
const AGE: Duration = Duration::from_secs(6);

fn start(site: &Site) -> BTreeMap<u32, Daemon> {
    let flags = ["--timing-connection-age-s", "6", "--tls-revoked", "revoked"];
    let mut daemons: BTreeMap<_, _> = (1..=3).map(|node| (node, site.start(node, &flags))).collect();
    daemons.values_mut().for_each(Daemon::wait_ready);
    daemons
}

async fn connect(site: &Site, who: &str) -> Client {
    Client::builder().endpoints(site.endpoints()).tls(site.tls(who)).timeout(PATIENCE).connect().await.unwrap()
}

/// Writes and reads until it is stopped. Any error ends it.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin(client: &Client) -> Load {
        let (stop, done): (Arc<AtomicBool>, Arc<AtomicU32>) = Default::default();
        let tasks = ["orders", "carts"].map(|name| {
            let (data, stop, done) = (client.namespace(name).unwrap(), stop.clone(), done.clone());
            tokio::spawn(async move {
                for n in 0u32.. {
                    if stop.load(Relaxed) {
                        return;
                    }
                    let (key, value) = (format!("{:03}", n % 100), n.to_string());
                    data.put(key.clone(), value.clone()).await.unwrap_or_else(|e| panic!("{name}, write {n}: {e}"));
                    let held = data.get(key).await.unwrap_or_else(|e| panic!("{name}, read {n}: {e}"));
                    assert_eq!(held.map(|held| held.value), Some(value.into()), "{name}, {n}");
                    done.fetch_add(1, Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        });
        Load { stop, done, tasks: tasks.into() }
    }

    /// Waits until it has gone on for so long.
    async fn go_on(&self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            let before = self.done.load(Relaxed);
            while self.done.load(Relaxed) < before + 10 {
                assert!(self.tasks.iter().all(|task| !task.is_finished()), "the load has failed");
                assert!(began.elapsed() < PATIENCE * 2, "the load stands still");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn end(self) {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

fn wait_used(daemons: &BTreeMap<u32, Daemon>, times: f64) {
    for daemon in daemons.values() {
        daemon.wait_metric("duet_certificate_renewals_total{outcome=\"used\"}", |count| count >= times);
    }
}

#[test]
fn every_certificate_is_replaced_and_nobody_notices() {
    let mut site = Site::new("rotate", 3);
    fs::write(site.path("revoked"), "# nobody yet\n").unwrap();
    let mut daemons = start(&site);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let admin = connect(&site, "admin").await;
        admin.admin().create_namespace("orders", NewNamespace::strong()).await.unwrap();
        admin.admin().create_namespace("carts", NewNamespace::eventual()).await.unwrap();
        drop(admin);
        let client = connect(&site, "app").await;
        let load = Load::begin(&client);
        load.go_on(Duration::from_millis(100)).await;

        // Everyone trusts both authorities.
        let old = site.change_authority();
        fs::write(site.path("ca.pem"), format!("{old}{}", site.authority())).unwrap();
        client.renew(site.tls("app")).unwrap();
        daemons.values().for_each(|daemon| daemon.signal("HUP"));
        wait_used(&daemons, 1.0);

        // A certificate that does not fit changes nothing.
        let cluster = site.cluster.clone();
        site.certify(1, &cluster, 2, Validity::days(40));
        daemons[&1].signal("HUP");
        daemons[&1].wait_metric("duet_certificate_fault", |fault| fault == 1.0);
        daemons[&1].wait_log("those from before stay in use");

        // Everyone has a certificate of the new one. Nobody is told: the files are looked at.
        (1..=3).for_each(|node| site.certify(node, &cluster, node, Validity::days(40)));
        site.client("app");
        client.renew(site.tls("app")).unwrap();
        wait_used(&daemons, 2.0);
        daemons[&1].wait_metric("duet_certificate_fault", |fault| fault == 0.0);
        let left = daemons[&1].metric("duet_certificate_expires_seconds{certificate=\"node\"}").unwrap() / 86_400.0;
        assert!((39.0..=40.0).contains(&left), "{left} days");

        // The old authority is trusted no more.
        fs::write(site.path("ca.pem"), site.authority()).unwrap();
        client.renew(site.tls("app")).unwrap();
        daemons.values().for_each(|daemon| daemon.signal("HUP"));
        wait_used(&daemons, 3.0);
        load.go_on(AGE + AGE / 2).await;

        revoke(&mut site, &daemons, &load).await;
        load.end().await;
    });
    for node in [1, 2] {
        assert_eq!(daemons.remove(&node).unwrap().stop(), Some(0));
    }
}

/// A client and a node lose their certificates to someone.
async fn revoke(site: &mut Site, daemons: &BTreeMap<u32, Daemon>, load: &Load) {
    site.client("lost");
    let stolen = Connector::new(site.tls("lost"), Arc::new(Udp));
    let line = stolen.connect(&site.address(1).to_string(), Some(NodeId(1))).await.unwrap();
    let read = |name: &str| fs::read_to_string(site.path(name)).unwrap();
    fs::write(site.path("revoked"), format!("{}{}", read("lost.pem"), read("node3.pem"))).unwrap();
    for node in [1, 2] {
        daemons[&node].signal("HUP");
        daemons[&node].wait_metric("duet_peers_connected", |peers| peers == 1.0);
        daemons[&node].wait_metric("duet_certificates_revoked", |count| count == 2.0);
    }
    let ended = tokio::time::timeout(PATIENCE, line.closed()).await.unwrap();
    assert_eq!(ended.refusal, Some(Refusal::Revoked), "{ended}");
    let again = stolen.connect(&site.address(2).to_string(), Some(NodeId(2))).await;
    assert!(matches!(again, Err(ConnectError::Refused { refusal: Refusal::Revoked, .. })), "{again:?}");
    daemons[&3].wait_metric("duet_peers_connected", |peers| peers == 0.0);
    // The others go on.
    load.go_on(AGE).await;
    daemons[&1].wait_metric("duet_peers_connected", |peers| peers == 1.0);
}
