//! The composition root: a configuration and the parts of a machine in, a running node out.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use duet_engine_eventual::{EventualEngine, Handle as EventualHandle};
use duet_engine_strong::{Handle as StrongHandle, StrongEngine};
use duet_proto::{Boot, Epoch, Error, NamespaceId, NamespaceInfo, NamespaceName, NodeId, NodeStatus};
use duet_router::Router;
use duet_store::{Committer, DiskGuard, HybridClock, NodeIdentity, Store, StoreError, WallClock, open_node};
use duet_transport::{Endpoint, Network, Peers, Tls};
use futures::{FutureExt, future::join};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    certificates::Certificates,
    config::Resolved,
    daemon::{COMMIT, VERSION},
    metrics::{Durable, Metrics, Seen},
    scrub, serve,
    settings::{self, Settings},
    wiring,
};

/// How many late writes of a namespace are counted for the metrics.
const LATE_COUNTED: usize = 10_000;
/// How often a stopping node looks whether its requests are answered.
const DRAIN: Duration = Duration::from_millis(5);

/// What a node runs on: a machine's, or a simulation's.
pub struct Parts {
    /// The store, opened.
    pub store: Arc<dyn Store>,
    /// Its committer.
    pub committer: Committer,
    /// The network.
    pub network: Arc<dyn Network>,
    /// The wall clock.
    pub wall: Arc<dyn WallClock>,
    /// The node's certificate.
    pub tls: Tls,
    /// Where everything random comes from, another one for each start; `None`: from the system.
    pub seed: Option<u64>,
    /// Bytes of log that are cut at once when every member has them; `None`: as usual, which is more than a simulation
    /// writes.
    pub log_piece_bytes: Option<u64>,
    /// A bug that the simulation's checkers must find.
    #[cfg(feature = "planted")]
    pub planted: Option<crate::Planted>,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store is another node's, damaged, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The endpoint did not start.
    #[error(transparent)]
    Endpoint(#[from] duet_transport::StartError),
}

/// A node that runs. A clone is the same node. It runs until [`Node::stop`] or [`Node::kill`]; dropping it does not
/// stop it.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: Resolved,
    boot: Boot,
    started: Instant,
    store: Arc<dyn Store>,
    committer: Committer,
    clock: Arc<HybridClock>,
    disk: DiskGuard,
    endpoint: Endpoint,
    strong: StrongHandle,
    eventual: EventualHandle,
    router: Router,
    metrics: Metrics,
    certificates: Certificates,
    stopping: AtomicBool,
    failure: OnceLock<String>,
    /// Told with the first failure.
    watchers: Mutex<Vec<oneshot::Sender<String>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("node", &self.inner.config.node).field("boot", &self.inner.boot).finish()
    }
}

impl Node {
    /// Starts a node: its store is bound to it and the start counted, durably; then it listens, opens its groups and
    /// follows the catalog. It serves clients at once; see [`Node::ready`].
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(config: Resolved, parts: Parts) -> Result<Node, StartError> {
        let Parts { store, committer, network, wall, tls, seed, log_piece_bytes, .. } = parts;
        let identity = NodeIdentity { cluster: config.cluster.clone(), node: config.node };
        let boot = open_node(&*store, &identity)?;
        let mut settings = Settings::new(&config, boot, seed);
        settings.strong.piece_bytes = log_piece_bytes.unwrap_or(settings.strong.piece_bytes);
        #[cfg(feature = "planted")]
        let settings = settings.plant(parts.planted);
        let clock = HybridClock::open(store.clone(), wall, config.timing.clock_drift_ms)?;
        let disk = DiskGuard::new(store.clone(), config.disk.reserve_bytes);
        let certificates = Certificates::new(&tls, clock.clone());
        let endpoint = Endpoint::start(settings::endpoint(&config, tls, seed, network))?;
        let (link, strong_pumps) = wiring::strong(endpoint.peers());
        let (strong, strong_driver) = StrongEngine::start(
            settings.strong,
            store.clone(),
            committer.clone(),
            clock.clone(),
            disk.clone(),
            link,
        )?;
        let (link, eventual_pumps) = wiring::eventual(endpoint.peers());
        let (eventual, eventual_driver) = EventualEngine::start(
            settings.eventual,
            store.clone(),
            committer.clone(),
            clock.clone(),
            disk.clone(),
            link,
        );
        let (router, follow) = Router::start(
            settings.router,
            strong.clone(),
            eventual.clone(),
            clock.clone(),
            follow_peers(endpoint.peers().clone()),
        );
        let mut metrics = Metrics::new(VERSION, COMMIT, config.node.0, config.cluster.as_str());
        metrics.collect(Durable { store: store.clone(), committer: committer.clone() });
        metrics.collect(certificates.clone());
        let node = Node {
            inner: Arc::new(Inner {
                started: Instant::now(),
                boot,
                store,
                committer,
                clock,
                disk,
                endpoint,
                strong,
                eventual,
                router,
                metrics,
                certificates,
                stopping: AtomicBool::new(false),
                failure: OnceLock::new(),
                watchers: Mutex::default(),
                tasks: Mutex::default(),
                config,
            }),
        };
        node.run("the way to the peers", join(strong_pumps, eventual_pumps).map(|_| "it ended".into()));
        node.run("the strong engine", strong_driver.map(|()| "it ended".into()));
        node.run("the eventual engine", eventual_driver.map(|error| error.to_string()));
        node.run("the router", follow.map(|error| error.to_string()));
        node.run("the store", {
            let committer = node.inner.committer.clone();
            async move { committer.failed().await.to_string() }
        });
        node.run("the scrubber", scrub::run(node.inner.eventual.clone(), node.inner.config.timing.scrub));
        node.run("the client service", serve::accept(node.clone()).map(|()| "it ended".into()));
        let address = node.inner.config.advertise.as_str();
        tracing::info!(node = node.inner.config.node.0, boot = boot.0, listen = %node.listen(), address, "serving");
        Ok(node)
    }

    /// Where it listens.
    #[must_use]
    pub fn listen(&self) -> std::net::SocketAddr {
        self.inner.endpoint.local_addr().unwrap_or(self.inner.config.listen)
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &Resolved {
        &self.inner.config
    }

    /// Whether it serves: the catalog has a leader and a quorum that knows of this start, and this node has applied it.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), String> {
        self.healthy()?;
        if self.inner.stopping.load(Ordering::Relaxed) {
            return Err("stopping".into());
        }
        match self.inner.strong.group(NamespaceId::SYSTEM, Epoch::FIRST) {
            Some(group) if group.leader.is_none() => Err("waiting for a leader of the catalog".into()),
            Some(_) if self.inner.router.ready() => Ok(()),
            _ => Err("catching up with the catalog".into()),
        }
    }

    /// Whether it does its work: its store takes writes and its tasks run.
    ///
    /// # Errors
    /// What has failed.
    pub fn healthy(&self) -> Result<(), String> {
        match self.inner.failure.get() {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }

    /// Waits for a failure that the node cannot go on with. It goes on answering until it is killed.
    pub async fn failed(&self) -> String {
        let told = {
            let mut watchers = self.inner.watchers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(why) = self.inner.failure.get() {
                return why.clone();
            }
            let (tell, told) = oneshot::channel();
            watchers.retain(|watcher| !watcher.is_closed());
            watchers.push(tell);
            told
        };
        match told.await {
            Ok(why) => why,
            // The senders are dropped only to tell, or with the node.
            Err(_) => std::future::pending().await,
        }
    }

    /// What it says of itself.
    pub async fn status(&self) -> NodeStatus {
        let inner = &*self.inner;
        NodeStatus {
            node: inner.config.node,
            address: inner.config.advertise.clone(),
            version: VERSION.into(),
            boot: inner.boot,
            uptime_ms: inner.started.elapsed().as_millis() as u64,
            disk_free: inner.disk.free(),
            disk_full: inner.disk.check().is_err(),
            connected: inner.endpoint.peers().connected(),
            namespaces: inner.router.status().await,
            expected: inner.config.expect.iter().map(|(name, mode)| (name.clone(), *mode)).collect(),
            certificates: inner.certificates.status(),
            answered: inner.metrics.requests.told(|name| inner.router.view().namespace(name).is_some()),
        }
    }

    /// Uses other certificates from now on, without a restart and without an end of what is under way.
    ///
    /// # Errors
    /// If they are not this node's; everything stays as it was then.
    pub fn renew(&self, tls: &Tls) -> Result<(), duet_transport::StartError> {
        self.inner.endpoint.renew(tls)?;
        self.inner.certificates.renewed(tls);
        Ok(())
    }

    /// The certificates in use.
    pub(crate) fn certificates(&self) -> &Certificates {
        &self.inner.certificates
    }

    /// Late writes of each namespace that wait on this node's disk; where there are very many, so many at least.
    fn late_waiting(&self) -> Vec<(NamespaceName, u64)> {
        let inner = &*self.inner;
        let count = |info: NamespaceInfo| {
            let waiting = inner.eventual.stashed(info.id, LATE_COUNTED).map_or(0, |late| late.len());
            (info.name, waiting as u64)
        };
        inner.router.topology().namespaces.into_iter().map(count).filter(|(_, waiting)| *waiting > 0).collect()
    }

    /// The metrics, as Prometheus text.
    ///
    /// # Errors
    /// If one cannot be formatted.
    pub async fn metrics(&self) -> Result<String, fmt::Error> {
        let inner = &*self.inner;
        let status = self.status().await;
        inner.metrics.render(&Seen {
            ready: self.ready().is_ok(),
            hlc_drift_ms: inner.clock.last().millis().saturating_sub(inner.clock.wall_ms()),
            catalog: &inner.router.topology().namespaces,
            late: &self.late_waiting(),
            status: &status,
            strong: &inner.strong.metrics(),
            eventual: &inner.eventual.metrics(),
            switches: &inner.router.metrics(),
            gossip: &inner.eventual.alive(),
            transport: &inner.endpoint.stats(),
        })
    }

    /// The catalog and the way to the engines.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.inner.router
    }

    /// Stops cleanly: takes in nobody any more, hands its leaderships over, answers what is under way, makes
    /// everything durable and lets go of the store. What is not done by `deadline` is left.
    pub async fn stop(&self, deadline: Instant) {
        let inner = &*self.inner;
        inner.stopping.store(true, Ordering::SeqCst);
        inner.endpoint.stop_accepting();
        // New requests are refused from here on, so the count only falls.
        let drained = async {
            while inner.metrics.in_flight.get() > 0 {
                sleep(DRAIN).await;
            }
        };
        let orderly = async {
            tokio::join!(inner.strong.shutdown(), inner.eventual.shutdown(), drained);
            inner.endpoint.shutdown().await;
            self.kill();
            inner.committer.stop().await;
        };
        if timeout_at(deadline, orderly).await.is_err() {
            tracing::warn!("the clean stop took too long and was cut short");
            self.kill();
        }
        if let Err(error) = inner.store.sync() {
            tracing::error!(%error, "the last sync failed");
        }
    }

    /// Ends every task at once, as a crash would: nothing is handed over, answered or synced.
    pub fn kill(&self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// Refuses a request if the node is on its way out.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        if self.inner.stopping.load(Ordering::Relaxed) {
            return Err(Error::Unavailable { node: self.inner.config.node, why: "it is stopping".into() });
        }
        Ok(())
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    pub(crate) fn counters(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Runs a task that must not end while the node runs: if it does, or panics, the node has failed.
    fn run(&self, name: &'static str, task: impl Future<Output = String> + Send + 'static) {
        let node = self.clone();
        let watched = async move {
            let why = AssertUnwindSafe(task).catch_unwind().await.unwrap_or_else(|_| "it panicked".into());
            if !node.inner.stopping.load(Ordering::SeqCst) {
                node.fail(format!("{name}: {why}"));
            }
        };
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(watched);
    }

    fn fail(&self, why: String) {
        let mut watchers = self.inner.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.inner.failure.set(why.clone()).is_ok() {
            tracing::error!(why, "the node has failed");
            for watcher in watchers.drain(..) {
                let _ = watcher.send(why.clone());
            }
        }
    }
}

/// Keeps the transport's peers as the catalog names them.
fn follow_peers(peers: Peers) -> impl FnMut(&BTreeMap<NodeId, String>) + Send + 'static {
    let mut known: BTreeMap<NodeId, String> = BTreeMap::new();
    move |now| {
        for gone in known.keys().filter(|node| !now.contains_key(node)) {
            peers.forget(*gone);
        }
        for (node, address) in now {
            peers.set(*node, address.clone());
        }
        known.clone_from(now);
    }
}
