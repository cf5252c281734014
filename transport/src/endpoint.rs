//! The one UDP port of a node: who may come in, and where they go.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use duet_proto::frame::{ALPN_CLIENT, ALPN_PEER};
use quinn::{Connection, crypto::rustls::HandshakeData};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use crate::{
    ClientConnection, Config, Identity, Limits, Peers, Principal, Refusal, Stats, Tls, TlsError, config,
    peers::{Calls, Wiring},
    service::{self, Desk},
    stats::{Counters, add},
    tls,
};

/// Clients whose connection is up and that nobody has accepted yet.
const ACCEPTED: usize = 256;
/// Packets kept for a handshake that nobody has looked at yet, in bytes.
const EARLY_PACKETS: u64 = 64 << 10;
/// How long the last packets of a closed endpoint are waited for.
const LINGER: Duration = Duration::from_millis(500);

/// Why an endpoint does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The port cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate is another's.
    #[error("this is {configured}, but the certificate says {certificate}")]
    Identity {
        /// Who we are told to be.
        configured: Identity,
        /// Who the certificate says we are.
        certificate: Identity,
    },
    /// A client's certificate.
    #[error("{0} is no node: only nodes have an endpoint")]
    NotANode(Identity),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A node's endpoint: it listens for peers and clients on one UDP port and calls the peers it is told of.
///
/// Dropping it closes every connection.
#[derive(Debug)]
pub struct Endpoint {
    door: Arc<Door>,
    clients: Mutex<mpsc::Receiver<ClientConnection>>,
}

/// What every handshake needs.
#[derive(Debug)]
struct Door {
    endpoint: quinn::Endpoint,
    me: Identity,
    limits: Limits,
    /// What calls are made with; shared with the peers.
    calls: Arc<Calls>,
    /// Whether anybody is taken in: certificates that are renewed during the stop do not open the door again.
    open: std::sync::Mutex<bool>,
    peers: Peers,
    desk: Desk,
    handshakes: Arc<Semaphore>,
    most_handshakes: usize,
    patience: Duration,
    counters: Arc<Counters>,
    /// Gone once the endpoint is closed.
    accepted: std::sync::Mutex<Option<mpsc::Sender<ClientConnection>>>,
}

impl Endpoint {
    /// Opens the port and starts to listen. Called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Endpoint, StartError> {
        let Config { me, listen, tls, limits, rng_seed, network } = config;
        if tls.identity() != &me {
            return Err(StartError::Identity { configured: me, certificate: tls.identity().clone() });
        }
        let node = me.node_id().ok_or_else(|| StartError::NotANode(me.clone()))?;
        let server = answering(&tls, &limits)?;
        let calls = Arc::new(Calls::new(&tls, &limits)?);
        let failed = |source| StartError::Listen { address: listen, source };
        let socket = network.bind(listen).map_err(failed)?;
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            config::endpoint(rng_seed, tls.reset_key()),
            Some(server),
            socket,
            network.runtime(),
        )
        .map_err(failed)?;
        let counters = Arc::new(Counters::default());
        let (accepted, clients) = mpsc::channel(ACCEPTED);
        let door = Arc::new(Door {
            peers: Peers::new(Wiring {
                me: node,
                cluster: me.cluster.clone(),
                endpoint: endpoint.clone(),
                calls: calls.clone(),
                network,
                limits,
                seed: rng_seed,
                counters: counters.clone(),
            }),
            desk: Desk::new(limits, rng_seed, counters.clone()),
            endpoint,
            me,
            limits,
            calls,
            open: true.into(),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            most_handshakes: limits.handshakes,
            patience: limits.handshake,
            counters,
            accepted: Some(accepted).into(),
        });
        tokio::spawn(listen_on(door.clone()));
        Ok(Endpoint { door, clients: Mutex::new(clients) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.door.endpoint.local_addr()
    }

    /// The way to the other nodes.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.door.peers
    }

    /// The next client; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<ClientConnection> {
        self.clients.lock().await.recv().await
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.door.counters.read(self.door.peers.connected())
    }

    /// Uses other certificates from now on. Connections stay, but for those of certificates that are on the new list of
    /// revoked ones: these end now. Every other one is made anew, with the new certificates, before it reaches
    /// [`Limits::max_age`].
    ///
    /// # Errors
    /// [`StartError`]; then everything stays as it was.
    pub fn renew(&self, tls: &Tls) -> Result<(), StartError> {
        let door = &self.door;
        if tls.identity() != &door.me {
            return Err(StartError::Identity { configured: door.me.clone(), certificate: tls.identity().clone() });
        }
        let server = answering(tls, &door.limits)?;
        door.calls.renew(tls, &door.limits)?;
        let open = door.open.lock().unwrap_or_else(PoisonError::into_inner);
        if *open {
            door.endpoint.set_server_config(Some(server));
        }
        drop(open);
        for connection in door.peers.connections().into_iter().chain(door.desk.connections()) {
            if tls::is_revoked(&connection, tls.revoked()) {
                tracing::warn!(remote = %connection.remote_address(), "its certificate was revoked");
                door.counters.refused(Refusal::Revoked);
                Refusal::Revoked.close(&connection);
            }
        }
        Ok(())
    }

    /// Takes in nobody any more; what is connected stays. The first step of a clean stop.
    pub fn stop_accepting(&self) {
        *self.door.open.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.door.endpoint.set_server_config(None);
    }

    /// Closes every connection and waits a little for the news to go out.
    pub async fn shutdown(&self) {
        self.close();
        timeout(LINGER, self.door.endpoint.wait_idle()).await.ok();
    }

    fn close(&self) {
        self.door.accepted.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.door.peers.stop();
        self.door.endpoint.close(Refusal::Stopping.code(), Refusal::Stopping.to_string().as_bytes());
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close();
    }
}

/// What calls are answered with.
fn answering(tls: &Tls, limits: &Limits) -> Result<quinn::ServerConfig, TlsError> {
    let mut server = tls.server(&[ALPN_PEER, ALPN_CLIENT])?;
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.sent(0);
    server
        .transport_config(config::transport(limits))
        .migration(false)
        .max_incoming(limits.handshakes)
        .incoming_buffer_size(EARLY_PACKETS)
        .incoming_buffer_size_total(EARLY_PACKETS * limits.handshakes as u64)
        .validation_token_config(tokens);
    Ok(server)
}

async fn listen_on(door: Arc<Door>) {
    while let Some(incoming) = door.endpoint.accept().await {
        add(&door.counters.handshakes, 1);
        let Ok(permit) = door.handshakes.clone().try_acquire_owned() else {
            door.counters.refused(Refusal::TooMany);
            incoming.refuse();
            continue;
        };
        let crowded = door.handshakes.available_permits() < door.most_handshakes / 2;
        if crowded && incoming.may_retry() {
            // The sender of a forged address will not answer this.
            incoming.retry().ok();
            continue;
        }
        tokio::spawn(admit(door.clone(), incoming, permit));
    }
}

/// Carries one handshake through, or says why not.
async fn admit(door: Arc<Door>, incoming: quinn::Incoming, permit: OwnedSemaphorePermit) {
    let remote = incoming.remote_address();
    let admitted = greet(&door, incoming).await;
    drop(permit);
    if let Err(refusal) = admitted {
        door.counters.refused(refusal);
        tracing::warn!(%remote, reason = refusal.label(), "connection refused: {refusal}");
    }
}

async fn greet(door: &Door, incoming: quinn::Incoming) -> Result<(), Refusal> {
    let handshake = |e: quinn::ConnectionError| Refusal::of(&e).unwrap_or(Refusal::Handshake);
    let connecting = incoming.accept().map_err(handshake)?;
    let connection = timeout(door.patience, connecting).await.map_err(|_| Refusal::Timeout)?.map_err(handshake)?;
    let admitted = timeout(door.patience, enter(door, &connection)).await.unwrap_or(Err(Refusal::Timeout));
    if let Err(refusal) = admitted {
        refusal.close(&connection);
    }
    admitted
}

/// The checks after TLS: the certificate is of the authority, now who is it?
async fn enter(door: &Door, connection: &Connection) -> Result<(), Refusal> {
    let identity = tls::remote_identity(connection, &door.calls.revoked())?;
    if identity.cluster != door.me.cluster {
        return Err(Refusal::WrongCluster);
    }
    let protocol = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok()?.protocol);
    match (protocol.as_deref(), &identity.principal) {
        (Some(p), Principal::Node(node)) if p == ALPN_PEER => door.peers.admit(connection, *node).await,
        (Some(p), Principal::Client { .. }) if p == ALPN_CLIENT => {
            let client = service::admit(&door.desk, connection, identity).await?;
            let accepted = door.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            accepted.ok_or(Refusal::Stopping)?.try_send(client).map_err(|_| Refusal::TooMany)
        }
        _ => Err(Refusal::WrongRole),
    }
}
