//! A round of ReadIndex asks no more followers than a majority needs; the others only if those do not answer.
//!
//! A heartbeat of a round wakes a node, and what it answers wakes the leader again, when the read is answered already. To ask
//! only a quorum is what Moraru, Andersen and Kaminsky call thrifty (There Is More Consensus in Egalitarian Parliaments,
//! SOSP 2013). That heartbeats are also how followers know their leader is left alone: each gets one every tick.

use std::collections::BTreeMap;

use duet_proto::NodeId;
use raft::eraftpb::Message;
use tokio::time::Instant;

use super::{
    group::{Cx, Group},
    wire::Item,
};

/// The heartbeats that a leader has kept back.
#[derive(Debug, Default)]
pub(super) struct Thrift {
    /// When each follower was last sent one.
    sent: BTreeMap<u64, Instant>,
    /// The last one for each follower that was kept back, and since when the rounds wait that it could confirm.
    kept: BTreeMap<u64, (Instant, Message)>,
}

impl Thrift {
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }
}

impl Group {
    /// Keeps a heartbeat back, if it is one that a round can do without.
    pub(super) fn keep_back(&mut self, heartbeat: Message, cx: &Cx<'_>) -> Option<Message> {
        let to = heartbeat.to;
        if self.is_asked(&heartbeat, cx) {
            self.thrift.sent.insert(to, cx.now);
            self.thrift.kept.remove(&to);
            return Some(heartbeat);
        }
        let before = self.thrift.kept.remove(&to).filter(|(_, before)| self.is_pending(before));
        let since = before.map_or(cx.now, |(since, _)| since);
        self.thrift.kept.insert(to, (since, heartbeat));
        None
    }

    /// Of a round those are asked who were heard last: they live, and are awake.
    fn is_asked(&self, heartbeat: &Message, cx: &Cx<'_>) -> bool {
        let (conf, me, to) = (self.conf(), u64::from(self.me.0), heartbeat.to);
        let lately = self.thrift.sent.get(&to).is_some_and(|sent| cx.now - *sent < cx.config.tick);
        if heartbeat.context.is_empty() || !conf.voters_outgoing.is_empty() || !lately {
            return true;
        }
        let needed = conf.voters.len() / 2 + usize::from(!conf.voters.contains(&me));
        let rank = |voter: u64| (cx.peers.heard(NodeId(voter as u32), cx.now), voter);
        let before = conf.voters.iter().filter(|voter| **voter != me && rank(**voter) > rank(to));
        conf.voters.contains(&to) && before.count() < needed
    }

    /// Whether the round of a heartbeat waits for answers.
    fn is_pending(&self, heartbeat: &Message) -> bool {
        self.raw.raft.read_only.pending_read_index.contains_key(&*heartbeat.context)
    }

    /// Asks the others, too, where a round has waited.
    pub(super) fn ask_all(&mut self, cx: &mut Cx<'_>) {
        for (to, (since, heartbeat)) in std::mem::take(&mut self.thrift.kept) {
            if !self.is_pending(&heartbeat) {
                continue;
            }
            if cx.now - since < cx.config.announce_after {
                self.thrift.kept.insert(to, (since, heartbeat));
            } else {
                self.thrift.sent.insert(to, cx.now);
                cx.out.push(NodeId(to as u32), self.id, &Item::Raft(Box::new(heartbeat)));
            }
        }
    }
}
