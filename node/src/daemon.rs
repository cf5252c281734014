//! The process around a node: files, the real store and network, signals, systemd, HTTP.
//!
//! Everything here is what the simulation replaces. What it shares with the daemon begins at [`Node::start`].

use std::{io, sync::Arc, time::Duration};

use duet_store::{
    Committer, Store, StoreError, SystemClock,
    rocks::{RocksOptions, RocksStore},
};
use duet_transport::{Revoked, Tls, TlsError, Udp};
use sysinfo::{Process, ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{Instant, sleep_until},
};

use crate::{
    Node, Parts, StartError,
    config::{ConfigError, Resolved, TlsFiles},
    http,
    log::Level,
    rotate::{self, Rotation},
    systemd,
};

/// The version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that this was built from, or `unknown`.
pub const COMMIT: &str = env!("DUET_COMMIT");
/// Longest wait for the others that hold the store, when everything has ended.
const CLOSE: Duration = Duration::from_secs(2);
/// Where the system does not say how much memory there is, or it is very little.
const LEAST_CACHE: usize = 64 << 20;

/// Why the daemon ended otherwise than cleanly.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The certificates cannot be used, or are not this node's.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    /// The store cannot be opened or has failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// An address cannot be bound.
    #[error("cannot listen on {what} {address}: {source}")]
    Bind {
        /// Which key.
        what: &'static str,
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The node did not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The node failed while it ran.
    #[error("the node has failed and stops: {0}")]
    Failed(String),
    /// The system refused a runtime, a signal handler or the like.
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
    /// A second signal came during the clean stop.
    #[error("stopped at once by a second signal; the clean stop was not finished")]
    Impatient,
}

impl Failure {
    /// 2 where starting again would not help, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Failure::Certificate(_)) { 2 } else { 1 }
    }
}

/// What is wrong with the certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// They cannot be read, have expired, or belong to another cluster.
    #[error("{origin}: [tls] ca = {ca:?}, cert = {cert:?}: {source}")]
    Tls {
        /// Where the certificate's file was set.
        origin: String,
        /// The authority's file.
        ca: std::path::PathBuf,
        /// The certificate's file.
        cert: std::path::PathBuf,
        /// What is wrong.
        source: TlsError,
    },
    /// The certificate is another node's, or a client's.
    #[error("{origin}: [tls] cert = {cert:?}: the certificate is for {found}, this is node {expected} (`node_id`)")]
    NotThisNode {
        /// Where the certificate's file was set.
        origin: String,
        /// The certificate's file.
        cert: std::path::PathBuf,
        /// Whose it is.
        found: String,
        /// Who this is.
        expected: duet_proto::NodeId,
    },
}

/// What `--check-config` finds beyond the configuration itself.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The certificates cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There is something else in the place of the data directory.
    #[error("`data_dir` = {path:?}: it is there, and no directory")]
    NoDirectory {
        /// Where.
        path: std::path::PathBuf,
    },
}

/// Loads the certificates and checks that they are this node's.
///
/// # Errors
/// If they are not.
pub fn certificates(config: &Resolved) -> Result<Tls, CertificateError> {
    let TlsFiles { ca, cert, key, revoked, origin } = &config.tls;
    let tls = Tls::load(ca, cert, key)
        .and_then(|tls| tls.expect_cluster(&config.cluster).map(|()| tls))
        .and_then(|tls| match revoked {
            Some(path) => tls.revoking(Revoked::load(path)?),
            None => Ok(tls),
        })
        .map_err(|source| CertificateError::Tls {
            origin: origin.clone(),
            ca: ca.clone(),
            cert: cert.clone(),
            source,
        })?;
    let identity = tls.identity();
    if identity.node_id() != Some(config.node) {
        let found = identity.to_string();
        let (origin, cert) = (origin.clone(), cert.clone());
        return Err(CertificateError::NotThisNode { origin, cert, found, expected: config.node });
    }
    Ok(tls)
}

/// What `--check-config` does: everything that can be checked without touching data or network.
///
/// # Errors
/// If the certificates cannot be used, or the data directory is something else.
pub fn check(config: &Resolved) -> Result<String, CheckError> {
    certificates(config)?;
    if config.data_dir.exists() && !config.data_dir.is_dir() {
        return Err(CheckError::NoDirectory { path: config.data_dir.clone() });
    }
    Ok(format!("ok: node {} of cluster {}, listening on {}", config.node, config.cluster, config.listen))
}

/// What SIGHUP does.
pub struct Reload {
    /// Reads the configuration again.
    pub read: Box<dyn Fn() -> Result<Resolved, ConfigError> + Send + Sync>,
    /// What it can change.
    pub level: Level,
}

/// Runs a node until a signal or a failure ends it.
///
/// # Errors
/// Why it did not start, or why it ended.
pub fn run(config: Resolved, reload: &Reload) -> Result<(), Failure> {
    let threads = config.threads.unwrap_or_else(threads);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .thread_name("duetd")
        .build()?;
    let mut opened = None;
    let result = runtime.block_on(serve(config, reload, &mut opened));
    // Whatever still runs (a stuck name lookup, say) does not hold up the exit.
    runtime.shutdown_timeout(Duration::from_millis(200));
    if let Some(store) = opened {
        close(store);
    }
    result
}

/// Half of the cores: the committer, RocksDB and the kernel's network want the others, and tasks that follow each other
/// on one thread wake nobody.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

/// A quarter of the memory that there is: in the machine, or for the control group that this process is in.
fn cache_bytes() -> usize {
    let memory = memory().unwrap_or(0);
    usize::try_from(memory / 4).unwrap_or(usize::MAX).max(LEAST_CACHE)
}

fn memory() -> Result<u64, sysinfo::Error> {
    let mut system = System::new()?;
    system.refresh_memory();
    let me = get_current_pid()?;
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[me]), false, ProcessRefreshKind::nothing());
    let group = system.process(me).and_then(Process::cgroup_limits);
    Ok(system.total_memory().min(group.map_or(u64::MAX, |limits| limits.total_memory)))
}

/// Closes the store here and now: RocksDB must not be closing on another thread while the process exits, which ends
/// in an abort instead of the exit code.
fn close(store: Arc<dyn Store>) {
    let until = std::time::Instant::now() + CLOSE;
    while Arc::strong_count(&store) > 1 && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let holders = Arc::strong_count(&store) - 1;
    if holders > 0 {
        tracing::warn!(holders, "the store is still in use at the end");
    }
}

async fn serve(config: Resolved, again: &Reload, opened: &mut Option<Arc<dyn Store>>) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let tls = certificates(&config)?;
    let http = match config.http {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|source| Failure::Bind { what: "http", address, source })?)
        }
        None => None,
    };
    let starting = systemd::Starting::begin();
    let store = open_store(&config)?;
    *opened = Some(store.clone());
    let committer = Committer::start_thread(store.clone())?;
    let parts = Parts {
        store,
        committer,
        network: Arc::new(Udp),
        wall: Arc::new(SystemClock),
        tls,
        seed: None,
        log_piece_bytes: None,
        #[cfg(feature = "planted")]
        planted: None,
    };
    let stop = config.timing.stop;
    let mut rotation = Rotation::new(config.clone());
    let node = Node::start(config, parts).await?;
    let (stop_http, http_stopped) = oneshot::channel::<()>();
    if let Some(listener) = http {
        tokio::spawn(http::serve(listener, node.clone(), async {
            let _ = http_stopped.await;
        }));
    }
    drop(starting);
    systemd::ready();
    let ended = supervise(&node, &mut signals, again, &mut rotation).await;
    systemd::stopping(stop + CLOSE);
    drop(stop_http);
    again.level.tell_left_out();
    if let Err(why) = ended {
        node.kill();
        return Err(Failure::Failed(why));
    }
    tokio::select! {
        () = node.stop(Instant::now() + stop) => {
            tracing::info!("stopped");
            Ok(())
        }
        () = signals.stop() => Err(Failure::Impatient),
    }
}

fn open_store(config: &Resolved) -> Result<Arc<dyn Store>, Failure> {
    let path = &config.data_dir;
    let started = std::time::Instant::now();
    let cache_bytes = config.disk.cache_bytes.unwrap_or_else(cache_bytes);
    let options = RocksOptions { cache_bytes, ..RocksOptions::default() };
    let store = RocksStore::open(path, &options)?;
    tracing::info!(path = %path.display(), cache_bytes, ms = started.elapsed().as_millis() as u64, "the store is open");
    Ok(Arc::new(store))
}

/// Until a signal asks for a stop (`Ok`) or the node fails.
async fn supervise(
    node: &Node,
    signals: &mut Signals,
    again: &Reload,
    rotation: &mut Rotation,
) -> Result<(), String> {
    let period = systemd::watchdog();
    let mut next = Instant::now();
    let mut told = String::new();
    let mut look = Instant::now();
    loop {
        tokio::select! {
            stop = signals.next() => {
                if stop {
                    return Ok(());
                }
                systemd::reloading();
                reload(again, node, rotation);
                systemd::ready();
                systemd::status(&node.in_words().await);
            }
            why = node.failed() => return Err(why),
            () = sleep_until(next) => {
                let ready = node.ready();
                // Closely while there is something to wait for.
                let pause = Duration::from_millis(if ready.is_ok() { 1000 } else { 100 });
                next = Instant::now() + period.unwrap_or(pause).min(pause);
                if period.is_some() && node.healthy().is_ok() {
                    systemd::alive();
                }
                let state = ready.map_or_else(|why| why, |()| "ready".into());
                let changed = state != told;
                if changed {
                    tracing::info!(state, "state");
                    told = state;
                }
                let due = look <= Instant::now();
                if due {
                    rotation.look(node);
                    again.level.tell_left_out();
                    look = Instant::now() + rotate::LOOK;
                }
                if changed || due {
                    systemd::status(&node.in_words().await);
                }
            }
        }
    }
}

/// The configuration is read again. The log's level and the certificates take effect; everything else needs a restart,
/// and is only checked, so that the restart will not be a surprise.
fn reload(again: &Reload, node: &Node, rotation: &mut Rotation) {
    match (again.read)() {
        Ok(config) => {
            again.level.set(&config.log.level);
            let directives = &config.log.level;
            tracing::info!(directives, "reloaded the log's level; other keys but the certificates' need a restart");
            rotation.reload(config, node);
        }
        Err(error) => {
            for fault in error.faults() {
                tracing::error!(%fault, "the configuration is not valid any more; nothing was changed");
            }
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal. `true`: stop; `false`: reload.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            _ = self.reload.recv() => false,
        }
    }

    /// A signal to stop.
    async fn stop(&mut self) {
        while !self.next().await {}
    }
}
