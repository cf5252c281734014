//! Counters, for the metrics of a node.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use duet_proto::NodeId;

use crate::{Lane, Refusal};

/// What an endpoint has counted since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections refused or ended, by reason.
    pub refusals: BTreeMap<Refusal, u64>,
    /// Handshakes begun by others.
    pub handshakes: u64,
    /// Client connections now.
    pub clients: u64,
    /// Requests received from clients.
    pub requests: u64,
    /// Streams that clients have opened for a large request each.
    pub streams: u64,
    /// Nodes connected now.
    pub peers: Vec<NodeId>,
    /// Connections to or from peers that came up.
    pub links: u64,
    /// By lane, in the order of [`Lane::ALL`].
    pub lanes: [LaneStats; Lane::ALL.len()],
}

/// What passed through a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Bytes handed to QUIC, headers included.
    pub sent_bytes: u64,
    /// Frames received.
    pub received: u64,
    /// Bytes of the frames received.
    pub received_bytes: u64,
    /// Frames not taken because the queue was full.
    pub full: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    refusals: Mutex<BTreeMap<Refusal, u64>>,
    pub(crate) handshakes: AtomicU64,
    pub(crate) clients: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) links: AtomicU64,
    pub(crate) lanes: [LaneCounters; Lane::ALL.len()],
}

#[derive(Debug, Default)]
pub(crate) struct LaneCounters {
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) full: AtomicU64,
}

impl Counters {
    pub(crate) fn refused(&self, refusal: Refusal) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(refusal).or_default() += 1;
    }

    pub(crate) fn read(&self, peers: Vec<NodeId>) -> Stats {
        Stats {
            refusals: self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            handshakes: self.handshakes.load(Relaxed),
            clients: self.clients.load(Relaxed),
            requests: self.requests.load(Relaxed),
            streams: self.streams.load(Relaxed),
            peers,
            links: self.links.load(Relaxed),
            lanes: std::array::from_fn(|lane| {
                let lane = &self.lanes[lane];
                LaneStats {
                    sent_bytes: lane.sent_bytes.load(Relaxed),
                    received: lane.received.load(Relaxed),
                    received_bytes: lane.received_bytes.load(Relaxed),
                    full: lane.full.load(Relaxed),
                }
            }),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Relaxed);
}
