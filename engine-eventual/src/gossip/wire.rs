//! chitchat's messages over the gossip lane.
//!
//! chitchat knows nodes by socket addresses. Here an address is made of a node's id, and means nothing to the network:
//! the lane carries a message to a node, and names the node that sent it, by its certificate.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use chitchat::{
    ChitchatMessage, Deserializable, Serializable,
    transport::{Socket, Transport},
};
use duet_proto::NodeId;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use crate::handle::{Board, count};

/// The block of unique local addresses that ids are put into.
const BLOCK: u16 = 0xfd0d;
const NODE: u16 = 1;
const ANYONE: u16 = 2;

/// The address that stands for a node.
pub(super) fn address(node: NodeId) -> SocketAddr {
    let [high, low] = [(node.0 >> 16) as u16, node.0 as u16];
    SocketAddr::new(Ipv6Addr::new(BLOCK, 0, 0, 0, 0, 0, high, low).into(), NODE)
}

/// The address of whoever is there: chitchat's seeds are fixed when it starts, the peers of this node are not.
pub(super) fn anyone() -> SocketAddr {
    SocketAddr::new(Ipv6Addr::new(BLOCK, 0, 0, 0, 0, 0, 0, 0).into(), ANYONE)
}

/// The node that an address stands for.
fn node(address: SocketAddr) -> Option<NodeId> {
    let SocketAddr::V6(v6) = address else { return None };
    match (v6.ip().segments(), v6.port()) {
        ([BLOCK, 0, 0, 0, 0, 0, high, low], NODE) => Some(NodeId(u32::from(high) << 16 | u32::from(low))),
        _ => None,
    }
}

/// The gossip lane, as chitchat sees it. Its ends outlive the task that uses them.
pub(super) struct Lane {
    pub(super) out: mpsc::Sender<(NodeId, Bytes)>,
    pub(super) inbox: Arc<Mutex<mpsc::Receiver<(NodeId, Bytes)>>>,
    pub(super) board: Arc<Board>,
}

#[async_trait::async_trait]
impl Transport for Lane {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        // Waits until the task before this one has let go.
        let inbox = self.inbox.clone().lock_owned().await;
        Ok(Box::new(End { out: self.out.clone(), inbox, board: self.board.clone(), last: NodeId(0) }))
    }
}

struct End {
    out: mpsc::Sender<(NodeId, Bytes)>,
    inbox: OwnedMutexGuard<mpsc::Receiver<(NodeId, Bytes)>>,
    board: Arc<Board>,
    /// The last of the peers that were spoken to as anyone.
    last: NodeId,
}

impl End {
    fn anyone(&mut self) -> Option<NodeId> {
        let peers: BTreeSet<NodeId> = self.board.peers().clone();
        let after = peers.range(NodeId(self.last.0.saturating_add(1))..).next();
        let next = *after.or(peers.first())?;
        self.last = next;
        Some(next)
    }
}

#[async_trait::async_trait]
impl Socket for End {
    /// Never fails: an error would mean that nothing can be sent any more. What does not fit the lane is lost, as
    /// what is sent to nobody.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let to = if to == anyone() { self.anyone() } else { node(to) };
        if let Some(to) = to {
            let _ = self.out.try_send((to, message.serialize_to_vec().into()));
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        while let Some((from, bytes)) = self.inbox.recv().await {
            let mut rest = &bytes[..];
            match ChitchatMessage::deserialize(&mut rest) {
                Ok(message) => return Ok((address(from), message)),
                Err(error) => {
                    tracing::warn!(%from, %error, "a message of gossip was refused");
                    count(&self.board.counts.gossip_malformed);
                }
            }
        }
        // The lane has closed: the node is stopping.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_its_node() {
        for id in [0, 1, 0xffff, 0x1_0000, u32::MAX] {
            assert_eq!(node(address(NodeId(id))), Some(NodeId(id)));
        }
        assert_eq!(node(anyone()), None);
        assert_eq!(node(([127, 0, 0, 1], 1).into()), None);
        assert_eq!(node("[fd0d::1:2:3]:1".parse().unwrap()), None);
    }
}
