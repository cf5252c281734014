//! The driver: the one task that owns the engine's input and output.

use std::{
    future::Future,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use duet_proto::NodeId;
use duet_store::{Committer, DiskGuard, HybridClock, Store, StoreError};
use tokio::sync::mpsc;

use crate::{
    Config, Handle,
    handle::{Board, Command},
};

/// The channel ends by which the engine talks to its peers. What goes in is opaque to whoever carries it; it may be
/// lost, late or reordered, but the sender's node is what the transport has authenticated.
#[derive(Debug)]
pub struct PeerLink {
    /// Raft frames to peers. When it is full, frames are dropped: Raft sends again.
    pub raft_out: mpsc::Sender<(NodeId, Bytes)>,
    /// Raft frames from peers.
    pub raft_in: mpsc::Receiver<(NodeId, Bytes)>,
    /// Pieces of snapshots to peers.
    pub bulk_out: mpsc::Sender<(NodeId, Bytes)>,
    /// Pieces of snapshots from peers.
    pub bulk_in: mpsc::Receiver<(NodeId, Bytes)>,
}

/// The engine; [`StrongEngine::start`] is all there is to it.
#[derive(Debug)]
pub struct StrongEngine;

impl StrongEngine {
    /// Opens every group that the store holds. The future drives them, and must be polled until it ends: after
    /// [`Handle::shutdown`], or when the store has failed.
    ///
    /// # Errors
    /// If the list of groups cannot be read. A group that is damaged does not keep the others from starting.
    pub fn start(
        config: Config,
        store: Arc<dyn Store>,
        committer: Committer,
        clock: Arc<HybridClock>,
        disk: DiskGuard,
        link: PeerLink,
    ) -> Result<(Handle, impl Future<Output = ()> + Send + 'static), StoreError> {
        let (commands, mut inbox) = mpsc::unbounded_channel::<Command>();
        let board = Arc::new(Mutex::new(Board::default()));
        let handle = Handle { node: config.node, commands, board, store };
        let driver = async move {
            let _kept = (committer, clock, disk, link);
            while let Some(command) = inbox.recv().await {
                if let Command::Shutdown { reply } = command {
                    let _ = reply.send(());
                    return;
                }
            }
        };
        Ok((handle, driver))
    }
}
