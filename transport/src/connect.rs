//! Nodes, as a client sees them.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use bytes::Bytes;
use duet_proto::{
    ClusterName, NodeId,
    frame::{self, ALPN_CLIENT, Hello, VERSION},
    limits::{CLIENT_FRAME, INLINE_VALUE},
};
use quinn::{ConnectionError, SendStream};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    Identity, Limits, Network, Refusal, Revoked, Tls, TlsError, config,
    service::{HELLO, send_big},
    tls,
    wire::{FrameReader, Outbox, Refused, write_frame},
};

/// Answers received and not yet taken; after that the connection is not read on.
const ANSWERS: usize = 4096;
/// Requests queued on a connection, in bytes.
const REQUESTS: usize = 64 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The certificates cannot be used, or are a node's.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be resolved, or no socket can be had.
    #[error("{address}: {source}")]
    Address {
        /// As given.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answered, or not in time.
    #[error("{address} cannot be reached: {why}")]
    Unreachable {
        /// As given.
        address: String,
        /// What happened.
        why: String,
    },
    /// One side refused the other.
    #[error("{address} and this client refuse each other: {refusal}")]
    Refused {
        /// As given.
        address: String,
        /// Why.
        refusal: Refusal,
    },
    /// Another node is there than the one that was called.
    #[error("{address} is {found}, expected {expected}")]
    WrongServer {
        /// As given.
        address: String,
        /// Whom we called.
        expected: String,
        /// Who it is.
        found: Identity,
    },
}

/// Why a request was not sent. It never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// Too much is queued already.
    #[error("too much is queued for this connection")]
    Full,
    /// The connection is gone.
    #[error("the connection is closed")]
    Closed,
}

/// Opens connections to nodes. Cheap to clone; all share one UDP port.
#[derive(Clone, Debug)]
pub struct Connector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: RwLock<Tls>,
    identity: Identity,
    network: Arc<dyn Network>,
    limits: Limits,
    seed: Option<u64>,
    /// One for each family of addresses, opened when first needed.
    endpoints: Mutex<[Option<quinn::Endpoint>; 2]>,
}

impl Connector {
    /// Will connect as the client that `tls` is the certificate of.
    #[must_use]
    pub fn new(tls: Tls, network: Arc<dyn Network>) -> Connector {
        Connector::with(tls, network, Limits::default(), None)
    }

    /// The same with bounds (idle, keep-alive and handshake times apply here) and a seed for a simulation.
    #[must_use]
    pub fn with(tls: Tls, network: Arc<dyn Network>, limits: Limits, seed: Option<u64>) -> Connector {
        let identity = tls.identity().clone();
        Connector(Arc::new(Inner { tls: tls.into(), identity, network, limits, seed, endpoints: Mutex::default() }))
    }

    /// Connects with other certificates from now on. Connections that are there stay.
    ///
    /// # Errors
    /// [`TlsError::WrongClient`] if they are another client's.
    pub fn renew(&self, tls: Tls) -> Result<(), TlsError> {
        if tls.identity() != &self.0.identity {
            let [expected, found] = [&self.0.identity, tls.identity()].map(ToString::to_string);
            return Err(TlsError::WrongClient { expected, found });
        }
        *self.0.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
        Ok(())
    }

    /// The identity it connects as.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The cluster it connects to.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.0.identity.cluster
    }

    /// Connects to the node at `address` (`host:port`), which must be `node` if one is given. Returns once both sides
    /// have accepted each other.
    ///
    /// # Errors
    /// [`ConnectError`], that of the last address tried.
    pub async fn connect(&self, address: &str, node: Option<NodeId>) -> Result<Connection, ConnectError> {
        let failed = |source| ConnectError::Address { address: address.to_owned(), source };
        let tls = self.0.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut client = tls.client(ALPN_CLIENT)?;
        client.transport_config(config::transport(&self.0.limits));
        let mut last = failed(io::Error::from(io::ErrorKind::NotFound));
        for to in self.0.network.resolve(address).await.map_err(failed)? {
            let endpoint = self.0.endpoint(to).map_err(failed)?;
            let attempt = self.attempt(&endpoint, (client.clone(), tls.revoked()), to, address, node);
            match timeout(self.0.limits.handshake, attempt).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last = error,
                Err(_) => {
                    last = ConnectError::Unreachable { address: address.to_owned(), why: "no answer in time".into() };
                }
            }
        }
        Err(last)
    }

    async fn attempt(
        &self,
        endpoint: &quinn::Endpoint,
        (client, revoked): (quinn::ClientConfig, &Revoked),
        to: SocketAddr,
        address: &str,
        node: Option<NodeId>,
    ) -> Result<Connection, ConnectError> {
        let failed = |error: ConnectionError| match Refusal::of(&error) {
            Some(refusal) => ConnectError::Refused { address: address.to_owned(), refusal },
            None => ConnectError::Unreachable { address: address.to_owned(), why: error.to_string() },
        };
        let refused = |refusal| ConnectError::Refused { address: address.to_owned(), refusal };
        let connecting = endpoint
            .connect_with(client, to, "duet")
            .map_err(|e| ConnectError::Unreachable { address: address.to_owned(), why: e.to_string() })?;
        let connection = Closing(connecting.await.map_err(failed)?);
        let found = match tls::remote_identity(&connection.0, revoked) {
            Ok(found) => found,
            Err(refusal) => {
                refusal.close(&connection.0);
                return Err(refused(refusal));
            }
        };
        if &found.cluster != self.cluster() || found.node_id().is_none_or(|id| node.is_some_and(|n| n != id)) {
            Refusal::WrongNode.close(&connection.0);
            let expected = match node {
                Some(node) => Identity::node(self.cluster().clone(), node).to_string(),
                None => format!("a node of cluster {}", self.cluster()),
            };
            return Err(ConnectError::WrongServer { address: address.to_owned(), expected, found });
        }
        let (mut send, receive) = connection.0.open_bi().await.map_err(failed)?;
        let mut reader = FrameReader::new(receive, HELLO);
        let lost = |quic: &quinn::Connection| quic.close_reason().map_or(refused(Refusal::Malformed), failed);
        if write_frame(&mut send, frame::encode(&Hello { version: VERSION })).await.is_err() {
            return Err(lost(&connection.0));
        }
        let Some(hello) = reader.next().await.map_err(refused)? else {
            // The stream ends a moment before the reason is known.
            return Err(failed(connection.0.closed().await));
        };
        match frame::decode::<Hello>(&hello) {
            Ok(hello) if hello.version == VERSION => (),
            Ok(_) => return Err(refused(Refusal::Version)),
            Err(_) => return Err(refused(Refusal::Malformed)),
        }
        reader.set_limit(CLIENT_FRAME);
        Ok(Connection::start(connection, found, send, reader))
    }
}

impl Inner {
    fn endpoint(&self, to: SocketAddr) -> io::Result<quinn::Endpoint> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut endpoints[usize::from(to.is_ipv6())];
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let any = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = self.network.bind(SocketAddr::new(any, 0))?;
        let config = config::endpoint(self.seed, None);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, None, socket, self.network.runtime())?;
        Ok(slot.insert(endpoint).clone())
    }
}

/// A connection to a node. Dropping the last clone closes it; what is queued then is not sent.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Line>);

#[derive(Debug)]
struct Line {
    quic: Closing,
    server: Identity,
    small: Arc<Outbox>,
    /// `None` once we have left.
    big: Mutex<Option<mpsc::Sender<Bytes>>>,
    answers: Mutex<Option<mpsc::Receiver<Bytes>>>,
    /// Whether the node has asked us to leave.
    goodbye: watch::Receiver<bool>,
}

/// Closes with the last handle.
#[derive(Debug)]
struct Closing(quinn::Connection);

impl Drop for Closing {
    fn drop(&mut self) {
        Refusal::Done.close(&self.0);
    }
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Ended {
    /// The decision that ended it; `None` if the other side fell silent.
    pub refusal: Option<Refusal>,
    /// In words.
    pub why: String,
}

impl Connection {
    fn start(quic: Closing, server: Identity, send: SendStream, reader: FrameReader) -> Connection {
        let (into, answers) = mpsc::channel(ANSWERS);
        let (big, bigs) = mpsc::channel(config::STREAMS as usize);
        let small: Arc<Outbox> = Arc::default();
        let (say_goodbye, goodbye) = watch::channel(false);
        tokio::spawn(write(send, small.clone()));
        tokio::spawn(write_big(quic.0.clone(), bigs));
        tokio::spawn(receive(quic.0.clone(), reader, into.clone(), small.clone(), say_goodbye));
        tokio::spawn(receive_big(quic.0.clone(), into));
        let (big, answers) = (Some(big).into(), Some(answers).into());
        Connection(Arc::new(Line { quic, server, small, big, answers, goodbye }))
    }

    /// Queues a frame around `body` and returns; what has gathered is written together.
    ///
    /// # Errors
    /// [`NotSent`].
    pub fn send(&self, body: Bytes) -> Result<(), NotSent> {
        if body.len() > INLINE_VALUE {
            let big = self.0.big.lock().unwrap_or_else(PoisonError::into_inner);
            return big.as_ref().ok_or(NotSent::Closed)?.try_send(body).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => NotSent::Full,
                mpsc::error::TrySendError::Closed(_) => NotSent::Closed,
            });
        }
        self.0.small.push(&body, REQUESTS).map(|_| ()).map_err(|refused| match refused {
            Refused::Full => NotSent::Full,
            Refused::Closed => NotSent::Closed,
        })
    }

    /// What arrives: the bodies of frames, in no order that means anything. It ends with the connection. `None` if it
    /// was taken before.
    #[must_use]
    pub fn incoming(&self) -> Option<mpsc::Receiver<Bytes>> {
        self.0.answers.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What becomes `true` when the node asks us to leave, because the connection has grown old: it reads on for a third
    /// of [`Limits::max_age`], enough to connect anew first and to [leave](Connection::leave) then. Its sender is gone
    /// with the connection.
    #[must_use]
    pub fn goodbye(&self) -> watch::Receiver<bool> {
        self.0.goodbye.clone()
    }

    /// Sends no more: what is queued still goes out, and answers still come in. Who drops the connection after the last
    /// of them has lost nothing.
    pub fn leave(&self) {
        self.0.big.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.0.small.close();
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> Ended {
        let error = self.0.quic.0.closed().await;
        Ended { refusal: Refusal::of(&error), why: error.to_string() }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.quic.0.close_reason().is_some()
    }

    /// The node at the other end, as its certificate says.
    #[must_use]
    pub fn server(&self) -> &Identity {
        &self.0.server
    }

    /// The time a packet takes there and back, as QUIC estimates it.
    #[must_use]
    pub fn rtt(&self) -> std::time::Duration {
        self.0.quic.0.rtt()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.small.close();
    }
}

async fn write(mut send: SendStream, small: Arc<Outbox>) {
    send.set_priority(1).ok();
    if !small.pump(0, &mut send, |_| ()).await {
        // The node reads no more. It still says why, and what it owes comes before that.
        small.close();
        small.clear();
    }
}

async fn write_big(connection: quinn::Connection, mut bigs: mpsc::Receiver<Bytes>) {
    while let Some(body) = bigs.recv().await {
        if send_big(&connection, body).await.is_err() {
            return;
        }
    }
}

async fn receive(
    connection: quinn::Connection,
    mut reader: FrameReader,
    into: mpsc::Sender<Bytes>,
    small: Arc<Outbox>,
    goodbye: watch::Sender<bool>,
) {
    let refusal = loop {
        match reader.next().await {
            Ok(Some(body)) if body.is_empty() => drop(goodbye.send_replace(true)),
            Ok(Some(body)) => {
                if into.send(body).await.is_err() {
                    break Refusal::Done;
                }
            }
            Ok(None) => break Refusal::Done,
            Err(refusal) => break refusal,
        }
    };
    small.close();
    // The node has said its last word on this stream; what it sent on others is still to come.
    if refusal != Refusal::Done {
        refusal.close(&connection);
    }
}

async fn receive_big(connection: quinn::Connection, into: mpsc::Sender<Bytes>) {
    while let Ok(stream) = connection.accept_uni().await {
        let (connection, into) = (connection.clone(), into.clone());
        tokio::spawn(async move {
            match FrameReader::new(stream, CLIENT_FRAME).next().await {
                Ok(Some(body)) => drop(into.send(body).await),
                Ok(None) => (),
                Err(refusal) => refusal.close(&connection),
            }
        });
    }
}
