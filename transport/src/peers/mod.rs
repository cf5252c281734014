//! The other nodes: one connection for each, a stream for each lane, and someone who keeps calling while it is down.
//!
//! Delivery is at most once and in order while a connection lasts. What is queued when it breaks is dropped, not kept
//! for later: the engines send again what still matters, and a stale heartbeat helps nobody.

mod call;
mod link;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use duet_proto::{ClusterName, NodeId, limits::PEER_FRAME};
use quinn::Connection;
use tokio::sync::mpsc;

pub(crate) use self::call::Calls;
use self::link::Peer;
use crate::{
    Limits, Network,
    stats::{Counters, add},
    wire::{Outbox, Refused},
};

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
        let caller = tokio::spawn(call::keep_calling(self.0.clone(), node, address, peer.changed.clone()));
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

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
