//! Liveness and the state of namespaces, as `chitchat` spreads them over a lane of ours. It informs: an operator, a
//! router that looks for a member to ask, an engine that chooses whom to ask first. Nothing that must be right rests
//! on it, and it may die and come back without anybody noticing but its counter.

mod task;
#[cfg(test)]
mod tests;
mod wire;
mod words;

use std::{collections::BTreeMap, time::Duration};

use duet_proto::{Boot, Digest, Epoch, Mode, NamespaceId};

pub(crate) use self::{task::run, words::hash};

/// How nodes gossip.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// The cluster's name: what others say is not heard.
    pub cluster: String,
    /// How often a node talks to a few others. Default 500 ms; 50 ms to 10 s.
    pub interval: Duration,
}

impl GossipConfig {
    /// The defaults.
    pub fn new(cluster: impl Into<String>) -> GossipConfig {
        GossipConfig { cluster: cluster.into(), interval: Duration::from_millis(500) }
    }
}

/// What gossip says of another node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeWord {
    /// Whether it seems to be alive.
    pub alive: bool,
    /// Which start of it the rest is from.
    pub boot: Boot,
    /// The namespaces that it holds.
    pub namespaces: BTreeMap<NamespaceId, SpaceWord>,
}

/// What a node says of one of its namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceWord {
    /// Its epoch there.
    pub epoch: Epoch,
    /// Its mode there.
    pub mode: Mode,
    /// A hash of its frontier.
    pub frontier: u64,
    /// The digest of its live values.
    pub digest: Digest,
    /// Age of its oldest write that is not known to be held by every member, in milliseconds.
    pub lag_ms: u64,
}
