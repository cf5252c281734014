//! The other nodes: one connection for each, a stream for each lane, and someone who keeps calling while it is down.
//!
//! Delivery is at most once and in order while a connection lasts. What is queued when it breaks is dropped, not kept
//! for later: the engines send again what still matters, and a stale heartbeat helps nobody.
//!
//! Either side may call. The one with the higher id waits a moment before it does, so that as a rule the lower one's
//! call comes up and there is one connection; should both come up, each side sends on the newer and listens on both. Where the
//! calls crossed, the sides would not agree which that is, and every acknowledgement would be a packet of its own: the
//! lower one's is kept.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use duet_proto::{
    ClusterName, NodeId,
    frame::{self, ALPN_PEER, Hello, VERSION},
    limits::{NODES, PEER_FRAME},
};
use quinn::{Connection, ConnectionError};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    Limits, Network, Refusal, Revoked, Tls, TlsError, config,
    service::HELLO,
    stats::{Counters, add},
    tls,
    wire::{FrameReader, Outbox, Refused, write_frame},
};

/// Wait before the second call; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
/// Longest wait between calls.
const BACKOFF_MOST: Duration = Duration::from_millis(500);
/// How long the node with the higher id waits for the other to call.
const COURTESY: Duration = Duration::from_millis(60);
/// A connection that lasted this long was a good one: the backoff starts over.
const LASTED: Duration = Duration::from_secs(2);
/// How long one call may take: short, so that a healed network is noticed soon.
const CALL: Duration = Duration::from_secs(1);
/// How long a connection that was replaced may still deliver what is under way: a lane's queue, over a slow network.
const LINGER: Duration = Duration::from_secs(5);
/// The part of its greatest age after which the side that called makes a new connection.
const RENEW: f64 = 2.0 / 3.0;
/// The same for the other side, should the first have missed it.
const RENEW_LATE: f64 = 5.0 / 6.0;

/// A class of traffic between nodes, with a stream and a queue of its own: what is slow in one does not hold up another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Raft's messages.
    Raft,
    /// Snapshots.
    Bulk,
    /// Pushes and anti-entropy of eventual namespaces.
    Sync,
    /// Membership.
    Gossip,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Lane; 4] = [Lane::Raft, Lane::Bulk, Lane::Sync, Lane::Gossip];

    /// What goes first when the connection is the bottleneck: the higher.
    fn priority(self) -> i32 {
        match self {
            Lane::Raft => 3,
            Lane::Gossip => 2,
            Lane::Sync => 1,
            Lane::Bulk => 0,
        }
    }

    /// Frames received and not yet taken; after that the stream is not read on.
    fn depth(self) -> usize {
        match self {
            Lane::Raft | Lane::Gossip => 1024,
            Lane::Sync => 64,
            Lane::Bulk => 8,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lane::Raft => "raft",
            Lane::Bulk => "bulk",
            Lane::Sync => "sync",
            Lane::Gossip => "gossip",
        })
    }
}

/// Why a message was not queued. It will not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No such peer was [set](Peers::set).
    #[error("no such peer")]
    Unknown,
    /// There is no connection at present.
    #[error("the peer is not connected")]
    Down,
    /// The lane's queue is full.
    #[error("the lane is full")]
    Full,
    /// The message is larger than a frame may be.
    #[error("the message is larger than a frame may be")]
    TooLarge,
}

/// The greeting of the side that calls; the other answers with [`Hello`].
#[derive(Debug, Serialize, Deserialize)]
struct PeerHello {
    version: u32,
    /// Who is calling: must be what the certificate says.
    node: NodeId,
}

/// The first frame of a lane's stream.
#[derive(Debug, Serialize, Deserialize)]
struct LaneHello {
    lane: u8,
}

/// The way to the other nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Inner>);

pub(crate) struct Wiring {
    pub(crate) me: NodeId,
    pub(crate) cluster: ClusterName,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) calls: Arc<Calls>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) limits: Limits,
    pub(crate) seed: Option<u64>,
    pub(crate) counters: Arc<Counters>,
}

/// What peers are called with, and who is not let in: replaced when certificates are.
#[derive(Debug)]
pub(crate) struct Calls(Mutex<(quinn::ClientConfig, Revoked)>);

impl Calls {
    pub(crate) fn new(tls: &Tls, limits: &Limits) -> Result<Calls, TlsError> {
        Ok(Calls(Mutex::new((Calls::config(tls, limits)?, tls.revoked().clone()))))
    }

    pub(crate) fn renew(&self, tls: &Tls, limits: &Limits) -> Result<(), TlsError> {
        *self.lock() = (Calls::config(tls, limits)?, tls.revoked().clone());
        Ok(())
    }

    pub(crate) fn revoked(&self) -> Revoked {
        self.lock().1.clone()
    }

    fn client(&self) -> quinn::ClientConfig {
        self.lock().0.clone()
    }

    fn config(tls: &Tls, limits: &Limits) -> Result<quinn::ClientConfig, TlsError> {
        let mut client = tls.client(ALPN_PEER)?;
        client.transport_config(config::transport(limits));
        Ok(client)
    }

    fn lock(&self) -> MutexGuard<'_, (quinn::ClientConfig, Revoked)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Outlet = mpsc::Receiver<(NodeId, Bytes)>;

struct Inner {
    wiring: Wiring,
    state: Mutex<State>,
    incoming: [mpsc::Sender<(NodeId, Bytes)>; Lane::ALL.len()],
    outlets: Mutex<[Option<Outlet>; Lane::ALL.len()]>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("me", &self.wiring.me).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    peers: BTreeMap<NodeId, Peer>,
    serial: u64,
    stopped: bool,
}

/// Invariants: there is at most one link of each direction; the last link is the one that lanes are sent on, and its
/// serial is the taker of every lane's outbox.
#[derive(Default)]
struct Peer {
    /// Where to call it; `None` if it only ever called us.
    address: Option<String>,
    lanes: [Arc<Outbox>; Lane::ALL.len()],
    links: Vec<Link>,
    changed: Arc<Notify>,
    caller: Option<AbortHandle>,
}

struct Link {
    serial: u64,
    connection: Connection,
    called: bool,
    since: Instant,
}

impl Link {
    /// Another one has taken its place: nothing is sent on it any more, and what is under way still arrives.
    fn linger(self) {
        tokio::spawn(async move {
            sleep(LINGER).await;
            Refusal::Replaced.close(&self.connection);
        });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(caller) = &self.caller {
            caller.abort();
        }
        self.lanes.iter().for_each(|lane| lane.close());
        self.links.iter().for_each(|link| Refusal::Done.close(&link.connection));
    }
}

impl Peers {
    pub(crate) fn new(wiring: Wiring) -> Peers {
        let channels = Lane::ALL.map(|lane| mpsc::channel(lane.depth()));
        let incoming = channels.each_ref().map(|(sender, _)| sender.clone());
        let outlets = channels.map(|(_, receiver)| Some(receiver));
        Peers(Arc::new(Inner { wiring, state: Mutex::default(), incoming, outlets: outlets.into() }))
    }

    /// Makes a node known at an address (`host:port`) and keeps a connection to it from now on. Another address
    /// replaces the one before.
    pub fn set(&self, node: NodeId, address: impl Into<String>) {
        let address = address.into();
        let mut state = self.0.state();
        if state.stopped || node == self.0.wiring.me {
            return;
        }
        let peer = state.peers.entry(node).or_default();
        if peer.address.as_deref() == Some(&address) {
            return;
        }
        peer.address = Some(address.clone());
        let caller = tokio::spawn(keep_calling(self.0.clone(), node, address, peer.changed.clone()));
        if let Some(before) = peer.caller.replace(caller.abort_handle()) {
            before.abort();
        }
    }

    /// Drops a node and closes its connection. It can still call us: who is a member is the engines' to check.
    pub fn forget(&self, node: NodeId) {
        self.0.state().peers.remove(&node);
    }

    /// Queues a message without waiting.
    ///
    /// # Errors
    /// [`SendError`]; the message is then dropped.
    pub fn try_send(&self, node: NodeId, lane: Lane, body: Bytes) -> Result<(), SendError> {
        let outbox = self.outbox(node, lane, &body)?;
        outbox.push(&body, self.0.wiring.limits.lane).map(|_| ()).map_err(|refused| match refused {
            Refused::Closed => SendError::Unknown,
            Refused::Full => {
                add(&self.0.wiring.counters.lanes[lane as usize].full, 1);
                SendError::Full
            }
        })
    }

    /// Queues a message, waiting for room: for what can be produced slower, like snapshots.
    ///
    /// # Errors
    /// [`SendError`], but never for a full lane.
    pub async fn send(&self, node: NodeId, lane: Lane, body: Bytes) -> Result<(), SendError> {
        let outbox = self.outbox(node, lane, &body)?;
        outbox.push_wait(&body, self.0.wiring.limits.lane).await.map_err(|_| SendError::Unknown)
    }

    /// What arrives in a lane, with the node that the certificate names. `None` if it was taken before.
    #[must_use]
    pub fn take_incoming(&self, lane: Lane) -> Option<mpsc::Receiver<(NodeId, Bytes)>> {
        self.0.outlets.lock().unwrap_or_else(PoisonError::into_inner)[lane as usize].take()
    }

    /// The nodes that are connected now, in order.
    #[must_use]
    pub fn connected(&self) -> Vec<NodeId> {
        let state = self.0.state();
        state.peers.iter().filter(|(_, peer)| !peer.links.is_empty()).map(|(node, _)| *node).collect()
    }

    fn outbox(&self, node: NodeId, lane: Lane, body: &Bytes) -> Result<Arc<Outbox>, SendError> {
        if body.len() > PEER_FRAME {
            return Err(SendError::TooLarge);
        }
        let state = self.0.state();
        let peer = state.peers.get(&node).ok_or(SendError::Unknown)?;
        if peer.links.is_empty() { Err(SendError::Down) } else { Ok(peer.lanes[lane as usize].clone()) }
    }

    /// The greeting of a node that calls and whose certificate says `node`.
    pub(crate) async fn admit(&self, connection: &Connection, node: NodeId) -> Result<(), Refusal> {
        let (mut send, receive) = connection.accept_bi().await.map_err(|_| Refusal::Handshake)?;
        let hello = FrameReader::new(receive, HELLO).next().await?.ok_or(Refusal::Malformed)?;
        let hello: PeerHello = frame::decode(&hello).map_err(|_| Refusal::Malformed)?;
        if hello.version != VERSION {
            return Err(Refusal::Version);
        }
        if hello.node != node || node == self.0.wiring.me {
            return Err(Refusal::ClaimedId);
        }
        write_frame(&mut send, frame::encode(&Hello { version: VERSION })).await.map_err(|_| Refusal::Handshake)?;
        send.finish().ok();
        self.0.install(node, connection.clone(), false)
    }

    /// Every connection that is in use.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        let state = self.0.state();
        state.peers.values().flat_map(|peer| &peer.links).map(|link| link.connection.clone()).collect()
    }

    /// Lets go of everyone.
    pub(crate) fn stop(&self) {
        let mut state = self.0.state();
        state.stopped = true;
        state.peers.clear();
    }
}

/// What the one who calls finds.
enum Standing {
    Gone,
    Down,
    Up { renew: Instant },
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection into use.
    fn install(self: &Arc<Self>, node: NodeId, connection: Connection, called: bool) -> Result<(), Refusal> {
        let mut state = self.state();
        if state.stopped {
            return Err(Refusal::Stopping);
        }
        if state.peers.len() >= NODES && !state.peers.contains_key(&node) {
            return Err(Refusal::TooMany);
        }
        state.serial += 1;
        let serial = state.serial;
        let peer = state.peers.entry(node).or_default();
        let since = Instant::now();
        let link = Link { serial, connection: connection.clone(), called, since };
        let crossed = |other: &Link| other.called != called && other.since.elapsed() < CALL;
        if called == (self.wiring.me > node) && peer.links.last().is_some_and(crossed) {
            link.linger();
        } else {
            peer.links.extract_if(.., |old| old.called == called || crossed(old)).for_each(Link::linger);
            peer.links.push(link);
            self.send_on(node, peer);
        }
        drop(state);
        add(&self.wiring.counters.links, 1);
        tracing::info!(peer = %node, remote = %connection.remote_address(), called, "peer connected");
        tokio::spawn(receive(self.clone(), node, connection.clone()));
        let ends = since + self.wiring.limits.max_age;
        tokio::spawn(watch(self.clone(), node, connection, serial, ends));
        Ok(())
    }

    /// Points every lane at the last link.
    fn send_on(self: &Arc<Self>, node: NodeId, peer: &mut Peer) {
        peer.changed.notify_one();
        let Some(link) = peer.links.last() else {
            peer.lanes.iter().for_each(|lane| lane.clear());
            return;
        };
        for lane in Lane::ALL {
            let outbox = peer.lanes[lane as usize].clone();
            outbox.set_taker(link.serial);
            tokio::spawn(pump(self.clone(), node, lane, outbox, link.serial, link.connection.clone()));
        }
    }

    /// Takes a connection that has ended out of use.
    fn lost(self: &Arc<Self>, node: NodeId, serial: u64) {
        let mut state = self.state();
        state.serial += 1;
        let fresh = state.serial;
        let Some(peer) = state.peers.get_mut(&node) else { return };
        let was_last = peer.links.last().is_some_and(|link| link.serial == serial);
        peer.links.retain(|link| link.serial != serial);
        if !was_last {
            return;
        }
        if let Some(link) = peer.links.last_mut() {
            // Its first writers were turned away; new ones need a serial that was never used.
            link.serial = fresh;
            let ends = link.since + self.wiring.limits.max_age;
            tokio::spawn(watch(self.clone(), node, link.connection.clone(), fresh, ends));
        }
        self.send_on(node, peer);
        if peer.links.is_empty() && peer.address.is_none() {
            state.peers.remove(&node);
        }
    }

    fn standing(&self, node: NodeId) -> Standing {
        let state = self.state();
        let Some(peer) = state.peers.get(&node) else { return Standing::Gone };
        match peer.links.last() {
            None => Standing::Down,
            Some(link) => {
                let part = if link.called { RENEW } else { RENEW_LATE };
                Standing::Up { renew: link.since + self.wiring.limits.max_age.mul_f64(part) }
            }
        }
    }

    /// Calls a peer.
    async fn call(self: &Arc<Self>, node: NodeId, address: &str) -> Result<(), String> {
        let addresses = self.wiring.network.resolve(address).await.map_err(|e| format!("{address}: {e}"))?;
        let mut why = format!("{address} has no address");
        for to in addresses {
            let connecting = match self.wiring.endpoint.connect_with(self.wiring.calls.client(), to, "duet") {
                Ok(connecting) => connecting,
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            match timeout(CALL.min(self.wiring.limits.handshake), self.greet(node, connecting)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(refusal)) => {
                    self.wiring.counters.refused(refusal);
                    why = refusal.to_string();
                }
                Err(_) => why = "no answer".into(),
            }
        }
        Err(why)
    }

    async fn greet(self: &Arc<Self>, node: NodeId, connecting: quinn::Connecting) -> Result<(), Refusal> {
        let reason = |e: ConnectionError| Refusal::of(&e).unwrap_or(Refusal::Timeout);
        let connection = connecting.await.map_err(reason)?;
        let greeting = async {
            let identity = tls::remote_identity(&connection, &self.wiring.calls.revoked())?;
            if identity.cluster != self.wiring.cluster {
                return Err(Refusal::WrongCluster);
            }
            if identity.node_id() != Some(node) {
                return Err(Refusal::WrongNode);
            }
            let (mut send, receive) = connection.open_bi().await.map_err(reason)?;
            let hello = frame::encode(&PeerHello { version: VERSION, node: self.wiring.me });
            write_frame(&mut send, hello).await.map_err(|_| Refusal::Handshake)?;
            send.finish().ok();
            let Some(hello) = FrameReader::new(receive, HELLO).next().await? else {
                return Err(connection.close_reason().map_or(Refusal::Malformed, reason));
            };
            let hello: Hello = frame::decode(&hello).map_err(|_| Refusal::Malformed)?;
            if hello.version == VERSION { Ok(()) } else { Err(Refusal::Version) }
        };
        let result = greeting.await.and_then(|()| self.install(node, connection.clone(), true));
        if let Err(refusal) = result {
            refusal.close(&connection);
        }
        result
    }
}

/// Keeps one peer connected.
async fn keep_calling(inner: Arc<Inner>, node: NodeId, address: String, changed: Arc<Notify>) {
    let mut random = config::random(inner.wiring.seed, u64::from(node.0));
    let mut backoff = BACKOFF_FIRST;
    let mut up_since = None;
    let mut said = String::new();
    if inner.wiring.me > node {
        sleep(COURTESY).await;
    }
    loop {
        match inner.standing(node) {
            Standing::Gone => return,
            Standing::Up { renew } if renew > Instant::now() => {
                up_since = up_since.or_else(|| Some(Instant::now()));
                said.clear();
                tokio::select! { biased; () = changed.notified() => (), () = sleep_until(renew) => () }
                continue;
            }
            Standing::Up { .. } => (),
            Standing::Down => {
                if let Some(since) = up_since.take() {
                    tracing::warn!(peer = %node, "peer disconnected");
                    if since.elapsed() >= LASTED {
                        backoff = BACKOFF_FIRST;
                    }
                    let courtesy = if inner.wiring.me > node { COURTESY } else { Duration::ZERO };
                    sleep(courtesy + backoff.mul_f64(random.random_range(0.5..1.0))).await;
                    backoff = BACKOFF_MOST.min(backoff * 2);
                    continue;
                }
            }
        }
        if let Err(why) = inner.call(node, &address).await {
            if why != said {
                tracing::info!(peer = %node, %address, %why, "peer cannot be reached; will go on trying");
                said = why;
            }
            sleep(backoff.mul_f64(random.random_range(0.5..1.0))).await;
            backoff = BACKOFF_MOST.min(backoff * 2);
        }
    }
}

/// Sends a lane over one connection until another takes its place.
async fn pump(inner: Arc<Inner>, node: NodeId, lane: Lane, outbox: Arc<Outbox>, serial: u64, connection: Connection) {
    let Ok(mut stream) = connection.open_uni().await else { return };
    stream.set_priority(lane.priority()).ok();
    if write_frame(&mut stream, frame::encode(&LaneHello { lane: lane as u8 })).await.is_err() {
        return;
    }
    let sent = &inner.wiring.counters.lanes[lane as usize].sent_bytes;
    if outbox.pump(serial, &mut stream, |bytes| add(sent, bytes as u64)).await {
        stream.finish().ok();
    } else if connection.close_reason().is_none() {
        // The peer stopped this stream alone: nothing that we do, so begin anew.
        tracing::warn!(peer = %node, %lane, "the peer stopped reading a lane");
        Refusal::Malformed.close(&connection);
    }
}

/// Takes in the lanes of a connection.
async fn receive(inner: Arc<Inner>, node: NodeId, connection: Connection) {
    while let Ok(stream) = connection.accept_uni().await {
        let (inner, connection) = (inner.clone(), connection.clone());
        tokio::spawn(async move {
            if let Err(refusal) = receive_lane(&inner, node, FrameReader::new(stream, HELLO)).await {
                inner.wiring.counters.refused(refusal);
                tracing::warn!(peer = %node, reason = refusal.label(), "peer connection closed: {refusal}");
                refusal.close(&connection);
            }
        });
    }
}

async fn receive_lane(inner: &Inner, node: NodeId, mut reader: FrameReader) -> Result<(), Refusal> {
    let Some(hello) = reader.next().await? else { return Ok(()) };
    let hello: LaneHello = frame::decode(&hello).map_err(|_| Refusal::Malformed)?;
    let lane = usize::from(hello.lane);
    let into = inner.incoming.get(lane).ok_or(Refusal::Malformed)?;
    let counters = &inner.wiring.counters.lanes[lane];
    reader.set_limit(PEER_FRAME);
    while let Some(body) = reader.next().await? {
        add(&counters.received, 1);
        add(&counters.received_bytes, body.len() as u64);
        if into.send((node, body)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Waits for the end of a connection, which comes with its greatest age at the latest: certificates are looked at only
/// when one begins.
async fn watch(inner: Arc<Inner>, node: NodeId, connection: Connection, serial: u64, ends: Instant) {
    let error = tokio::select! {
        biased;
        error = connection.closed() => error,
        () = sleep_until(ends) => {
            if connection.close_reason().is_none() {
                inner.wiring.counters.refused(Refusal::Aged);
                Refusal::Aged.close(&connection);
            }
            connection.closed().await
        }
    };
    if let Some(refusal) = Refusal::of(&error) {
        inner.wiring.counters.refused(refusal);
    }
    tracing::info!(peer = %node, %error, "connection to peer ended");
    inner.lost(node, serial);
}
