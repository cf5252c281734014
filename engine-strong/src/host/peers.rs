//! Which peers live. One beat per node stands for the heartbeats of all groups that sleep.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use duet_proto::NodeId;
use raft::eraftpb::ConfState;
use tokio::time::Instant;

/// What has been heard of the nodes that share a group with this one.
#[derive(Debug)]
pub(crate) struct Peers {
    me: NodeId,
    heard: BTreeMap<NodeId, Instant>,
    /// The nodes to which this one beats.
    known: BTreeSet<NodeId>,
    silent: BTreeSet<NodeId>,
    /// A replica here does not know its members yet.
    joining: bool,
}

impl Peers {
    pub(crate) fn new(me: NodeId) -> Peers {
        Peers { me, heard: BTreeMap::new(), known: BTreeSet::new(), silent: BTreeSet::new(), joining: false }
    }

    /// A frame has come.
    pub(crate) fn hear(&mut self, node: NodeId, now: Instant) {
        self.heard.insert(node, now);
    }

    pub(crate) fn set_known(&mut self, mut known: BTreeSet<NodeId>, joining: bool) {
        known.remove(&self.me);
        (self.known, self.joining) = (known, joining);
    }

    /// The nodes to beat to: those that share a group, and for a replica that waits to be taken into one, whoever was
    /// heard lately: its leader may be asleep, and would not know that it is here.
    pub(crate) fn beaten(&self, now: Instant, lately: Duration) -> BTreeSet<NodeId> {
        let mut nodes = self.known.clone();
        if self.joining {
            nodes.extend(self.heard.iter().filter(|(_, heard)| now - **heard <= lately).map(|(node, _)| *node));
        }
        nodes
    }

    /// The nodes that fell silent or spoke again since this was last asked.
    pub(crate) fn turned(&mut self, now: Instant, silent_after: Duration) -> Vec<NodeId> {
        let silent = |node: &NodeId| self.heard.get(node).is_none_or(|heard| now - *heard > silent_after);
        let silent: BTreeSet<NodeId> = self.known.iter().copied().filter(silent).collect();
        let turned = silent.symmetric_difference(&self.silent).copied().collect();
        self.silent = silent;
        turned
    }

    pub(crate) fn is_silent(&self, node: NodeId) -> bool {
        self.silent.contains(&node)
    }

    /// When `node` was last heard; this node hears itself all the time.
    pub(crate) fn heard(&self, node: NodeId, now: Instant) -> Option<Instant> {
        if node == self.me { Some(now) } else { self.heard.get(&node).copied() }
    }

    /// The latest time by which a majority of the voters (of both sets, during a change) has been heard.
    pub(crate) fn majority(&self, conf: &ConfState, now: Instant) -> Option<Instant> {
        let of = |voters: &[u64]| {
            let mut heard: Vec<_> = voters.iter().map(|voter| self.heard(NodeId(*voter as u32), now)).collect();
            heard.sort_unstable_by(|a, b| b.cmp(a));
            heard.get(heard.len() / 2).copied().flatten()
        };
        let heard = of(&conf.voters);
        if conf.voters_outgoing.is_empty() { heard } else { heard.min(of(&conf.voters_outgoing)) }
    }
}
