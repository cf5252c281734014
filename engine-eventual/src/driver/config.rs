//! What can be set about the engine as a whole.

use std::time::Duration;

use duet_proto::{Boot, NodeId, limits};

use crate::{Config, GossipConfig};

/// The settings of one node's eventual engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Of every replica.
    pub replica: Config,
    /// How often a replica that has something open is given time. Default 100 ms; 10 ms to 1 s.
    pub tick: Duration,
    /// How often a replica is given time that has nothing open. Default 20 s; 1 s to 5 min.
    pub idle_tick: Duration,
    /// How long a push that nobody waits for may wait before it leaves, for others to share its frame. Default 2 ms; up to
    /// `tick`. Until then a write that one copy acknowledged is on one node.
    pub hold: Duration,
    /// How long such a push may wait where it arrives, for others to share its step and its sync. Default 3 ms; up to
    /// `tick`. A write that one copy acknowledged is on one disk for as long as both together, reads elsewhere are that
    /// much older, and reads there of a token that has seen it wait that much longer.
    pub gather: Duration,
    /// How long a read waits for what its token has seen. Default 2 s.
    pub token_wait: Duration,
    /// Largest value, in bytes. Default 1 MiB.
    pub value_max: usize,
    /// Bytes of writes and of peers' messages that may wait for a step of one replica; beyond it writes get
    /// `Overloaded` and messages are dropped, to be sent again. Default 64 MiB.
    pub pending_bytes: usize,
    /// Bytes of writes and of peers' messages that one step takes. Default 4 MiB.
    pub step_bytes: usize,
    /// Gossip about liveness and the state of namespaces; `None`: none. It uses time and randomness of its own, so
    /// the simulation runs without.
    pub gossip: Option<GossipConfig>,
}

impl EngineConfig {
    /// The defaults for one start of one node, without gossip.
    #[must_use]
    pub fn new(node: NodeId, boot: Boot) -> EngineConfig {
        EngineConfig {
            replica: Config::new(node, boot),
            tick: Duration::from_millis(100),
            idle_tick: Duration::from_secs(20),
            hold: Duration::from_millis(2),
            gather: Duration::from_millis(3),
            token_wait: Duration::from_secs(2),
            value_max: limits::VALUE_DEFAULT,
            pending_bytes: 64 << 20,
            step_bytes: 4 << 20,
            gossip: None,
        }
    }
}
