//! The engines' channels on one side, the transport's lanes on the other, connected once.
//!
//! What comes in goes from the transport's queues straight to its engine. What goes out passes a pump for each lane,
//! and no pump waits for one peer while there is something for another.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    future::Future,
};

use bytes::Bytes;
use duet_engine_eventual::PeerLink as EventualLink;
use duet_engine_strong::PeerLink as StrongLink;
use duet_proto::NodeId;
use duet_transport::{Lane, Peers};
use futures::{FutureExt, StreamExt, future::join, stream::FuturesUnordered};
use tokio::sync::mpsc;

/// Frames on their way from the engine to the transport. The transport's own queues come after it, so it is short.
const RAFT_OUT: usize = 256;
/// Pushes and anti-entropy on their way.
const SYNC_OUT: usize = 256;
/// Gossip on its way.
const GOSSIP_OUT: usize = 64;
/// Pieces of snapshots on their way; each is up to 256 KiB.
const BULK_OUT: usize = 32;
/// Pieces that wait for one peer; more than the engine sends without being asked again.
const BULK_BACKLOG: usize = 64;

type Frames = mpsc::Receiver<(NodeId, Bytes)>;

/// Connects the strong engine to its lanes. The future carries what goes out; it ends with the engine.
pub(crate) fn strong(peers: &Peers) -> (StrongLink, impl Future<Output = ()> + Send + 'static) {
    let (raft_out, raft) = mpsc::channel(RAFT_OUT);
    let (bulk_out, bulk) = mpsc::channel(BULK_OUT);
    let link =
        StrongLink { raft_out, raft_in: incoming(peers, Lane::Raft), bulk_out, bulk_in: incoming(peers, Lane::Bulk) };
    let to = peers.clone();
    let send = move |node, piece| {
        let to = to.clone();
        async move {
            // A peer that is away misses pieces, and asks again.
            let _ = to.send(node, Lane::Bulk, piece).await;
        }
    };
    (link, join(hasty(Lane::Raft, raft, peers.clone()), patient(bulk, send)).map(drop))
}

/// Connects the eventual engine to its lanes, likewise.
pub(crate) fn eventual(peers: &Peers) -> (EventualLink, impl Future<Output = ()> + Send + 'static) {
    let (sync_out, sync) = mpsc::channel(SYNC_OUT);
    let (gossip_out, gossip) = mpsc::channel(GOSSIP_OUT);
    let (sync_in, gossip_in) = (incoming(peers, Lane::Sync), incoming(peers, Lane::Gossip));
    let link = EventualLink { sync_out, sync_in, gossip_out, gossip_in };
    let pumps = join(hasty(Lane::Sync, sync, peers.clone()), hasty(Lane::Gossip, gossip, peers.clone()));
    (link, pumps.map(drop))
}

fn incoming(peers: &Peers, lane: Lane) -> Frames {
    peers.take_incoming(lane).unwrap_or_else(|| mpsc::channel(1).1)
}

/// Never waits: a peer that is away or slow misses frames, and the engine sends again what still matters.
async fn hasty(lane: Lane, mut frames: Frames, peers: Peers) {
    while let Some((node, frame)) = frames.recv().await {
        let _ = peers.try_send(node, lane, frame);
    }
}

/// Waits for each peer's lane to have room, in order: a piece that is lost costs its receiver a second of silence.
async fn patient<F>(mut pieces: Frames, send: impl Fn(NodeId, Bytes) -> F)
where
    F: Future<Output = ()>,
{
    // A peer has an entry as long as one of its pieces is being sent.
    let mut backlog: BTreeMap<NodeId, VecDeque<Bytes>> = BTreeMap::new();
    let mut sends = FuturesUnordered::new();
    let one = |node, piece| send(node, piece).map(move |()| node);
    loop {
        tokio::select! {
            biased;
            Some(node) = sends.next(), if !sends.is_empty() => {
                match backlog.get_mut(&node).and_then(VecDeque::pop_front) {
                    Some(piece) => sends.push(one(node, piece)),
                    None => drop(backlog.remove(&node)),
                }
            }
            next = pieces.recv() => match next {
                Some((node, piece)) => match backlog.entry(node) {
                    Entry::Vacant(idle) => {
                        idle.insert(VecDeque::new());
                        sends.push(one(node, piece));
                    }
                    Entry::Occupied(mut waiting) if waiting.get().len() < BULK_BACKLOG => {
                        waiting.get_mut().push_back(piece);
                    }
                    Entry::Occupied(_) => {}
                },
                None => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_holds_up_nobody_else() {
        let (to, pieces) = mpsc::channel(4);
        let (sent, mut arrived) = mpsc::unbounded_channel();
        let (open, stuck) = tokio::sync::watch::channel(false);
        let pump = tokio::spawn(patient(pieces, move |node, piece: Bytes| {
            let (sent, mut stuck) = (sent.clone(), stuck.clone());
            async move {
                // The smaller a piece, the longer it takes: only waiting keeps the order.
                for _ in piece[0]..200 {
                    yield_now().await;
                }
                if node == NodeId(1) {
                    stuck.wait_for(|open| *open).await.unwrap();
                }
                sent.send((node, piece[0])).unwrap();
            }
        }));
        for i in 0..100 {
            to.send((NodeId(1), vec![i].into())).await.unwrap();
            to.send((NodeId(2), vec![i].into())).await.unwrap();
            if i % 50 == 49 {
                for expected in i - 49..=i {
                    assert_eq!(arrived.recv().await, Some((NodeId(2), expected)));
                }
            }
        }
        open.send(true).unwrap();
        let kept = BULK_BACKLOG as u8 + 1;
        for expected in 0..kept {
            assert_eq!(arrived.recv().await, Some((NodeId(1), expected)));
        }
        // What was too much is gone, and the lane goes on.
        to.send((NodeId(1), vec![250].into())).await.unwrap();
        assert_eq!(arrived.recv().await, Some((NodeId(1), 250)));
        drop(to);
        pump.await.unwrap();
        assert_eq!(arrived.recv().await, None);
    }
}
