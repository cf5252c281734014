//! The driver: the one task that owns the engine's input and output.

mod config;

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use duet_proto::NodeId;
use duet_store::{Committer, DiskGuard, HybridClock, Store, StoreError};
use tokio::sync::mpsc;

pub use config::EngineConfig;

use crate::{
    Handle,
    handle::{Board, Command},
};

/// The channel ends by which the engine talks to its peers. What goes in is opaque to whoever carries it; it may be
/// lost, late or reordered, but the sender's node is what the transport has authenticated.
#[derive(Debug)]
pub struct PeerLink {
    /// Pushes and anti-entropy to peers. When it is full, frames are dropped: what is missing is found and asked for.
    pub sync_out: mpsc::Sender<(NodeId, Bytes)>,
    /// Pushes and anti-entropy from peers.
    pub sync_in: mpsc::Receiver<(NodeId, Bytes)>,
    /// Gossip to peers.
    pub gossip_out: mpsc::Sender<(NodeId, Bytes)>,
    /// Gossip from peers.
    pub gossip_in: mpsc::Receiver<(NodeId, Bytes)>,
}

/// The engine; [`EventualEngine::start`] is all there is to it.
#[derive(Debug)]
pub struct EventualEngine;

impl EventualEngine {
    /// Opens every replica that the store holds. The future drives them, and must be polled until it ends: with
    /// [`StoreError::Closed`] after [`Handle::shutdown`], with the failure when the store has failed or the list of
    /// replicas cannot be read. A replica that is damaged does not keep the others from starting.
    pub fn start(
        config: EngineConfig,
        store: Arc<dyn Store>,
        committer: Committer,
        clock: Arc<HybridClock>,
        disk: DiskGuard,
        link: PeerLink,
    ) -> (Handle, impl Future<Output = StoreError> + Send + 'static) {
        let (commands, mut inbox) = mpsc::unbounded_channel();
        let board = Arc::new(Board::default());
        let handle = Handle::new(&config, commands, board, store.clone(), disk);
        let driver = async move {
            let _ = (committer, clock, link);
            while let Some(command) = inbox.recv().await {
                if let Command::Shutdown { reply } = command {
                    let _ = reply.send(());
                    break;
                }
            }
            StoreError::Closed
        };
        (handle, driver)
    }
}
