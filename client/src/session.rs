//! What a client remembers of one namespace: who leads it, how far it has seen, and which of its writes wait.

use std::collections::BTreeSet;

use duet_proto::{Epoch, Meta, Mode, NamespaceId, NamespaceInfo, NodeId, SessionId, Try};

use crate::seen::Seen;

/// The numbers of a session's writes to one namespace.
///
/// Invariants: a number is given once; `answered_below` never passes a number that waits.
#[derive(Debug, Default)]
pub(crate) struct Window {
    given: u64,
    waiting: BTreeSet<u64>,
}

impl Window {
    /// The next number, from 1, which waits from now on.
    pub(crate) fn begin(&mut self) -> u64 {
        self.given += 1;
        self.waiting.insert(self.given);
        self.given
    }

    /// Its caller has what it will ever get.
    pub(crate) fn end(&mut self, sequence: u64) {
        self.waiting.remove(&sequence);
    }

    /// Every number below this one has ended.
    pub(crate) fn answered_below(&self) -> u64 {
        self.waiting.first().copied().unwrap_or(self.given + 1)
    }
}

/// What is known of a namespace.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Its id: a name that is deleted and created again is another namespace.
    pub(crate) id: NamespaceId,
    /// Its mode in that epoch, once a topology has told.
    pub(crate) mode: Option<Mode>,
    /// The latest epoch seen; 0 if none.
    pub(crate) epoch: Epoch,
    /// The highest log position seen in that epoch.
    pub(crate) position: u64,
    /// The leader, as last heard.
    pub(crate) leader: Option<NodeId>,
    /// The members, as last heard.
    pub(crate) members: Vec<NodeId>,
    /// Who answered last: where any member can answer, it is asked again.
    pub(crate) last: Option<NodeId>,
    /// What this session has seen of it in eventual mode.
    pub(crate) seen: Seen,
    /// The numbers of the writes.
    pub(crate) window: Window,
}

impl Known {
    /// What makes a write's retries exactly once, as of its first sending.
    pub(crate) fn begin(&mut self, session: SessionId) -> Try {
        let sequence = self.window.begin();
        Try {
            session,
            sequence,
            answered_below: self.window.answered_below(),
            seen: self.position,
            epoch: self.epoch.max(Epoch::FIRST),
        }
    }

    /// Learns from an answer that `node` gave.
    pub(crate) fn learn(&mut self, node: NodeId, meta: &Meta) {
        self.reach(meta.epoch, meta.position);
        if meta.epoch >= self.epoch {
            self.last = Some(node);
            // An answer that names no other leader came from it, if the namespace has one.
            self.leader = meta.leader.or(if meta.position > 0 { Some(node) } else { None });
        }
    }

    /// Positions count anew in every epoch, and whoever led does not lead any more.
    pub(crate) fn reach(&mut self, epoch: Epoch, position: u64) {
        if epoch > self.epoch {
            self.mode = self.mode_in(epoch);
            self.leader = None;
        }
        (self.epoch, self.position) = (self.epoch, self.position).max((epoch, position));
    }

    /// Its mode in an epoch: each begins with a change of it.
    pub(crate) fn mode_in(&self, epoch: Epoch) -> Option<Mode> {
        let mode = self.mode?;
        let same = epoch.0.abs_diff(self.epoch.0).is_multiple_of(2);
        Some(match mode {
            mode if same => mode,
            Mode::Strong => Mode::Eventual,
            Mode::Eventual => Mode::Strong,
        })
    }

    /// Learns that it is in an epoch, and of which mode that is.
    pub(crate) fn switched(&mut self, epoch: Epoch, mode: Mode) {
        if epoch >= self.epoch {
            self.reach(epoch, 0);
            self.mode = Some(mode);
        }
    }

    /// Learns from a catalog entry.
    pub(crate) fn catalog(&mut self, info: &NamespaceInfo) {
        if info.id > self.id {
            // What was known is of one that is gone. The numbers go on: they are never used twice.
            *self = Known { id: info.id, window: std::mem::take(&mut self.window), ..Known::default() };
        }
        if info.id < self.id || info.epoch < self.epoch {
            return;
        }
        self.reach(info.epoch, 0);
        self.mode = Some(info.mode);
        self.members.clone_from(&info.members);
        self.leader = info.leader.or(self.leader).filter(|leader| info.members.contains(leader));
        self.last = self.last.filter(|last| info.members.contains(last));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_window_follows_a_plain_model(ends in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
            let mut window = Window::default();
            let mut waiting: Vec<u64> = Vec::new();
            for (at, end) in ends.iter().enumerate() {
                let given = window.begin();
                prop_assert_eq!(given, at as u64 + 1);
                waiting.push(given);
                if at % 3 != 0 {
                    window.end(waiting.remove(end.index(waiting.len())));
                }
                let expected = waiting.iter().min().copied().unwrap_or(given + 1);
                prop_assert_eq!(window.answered_below(), expected);
            }
        }
    }

    #[test]
    fn a_try_tells_what_was_known_when_it_began() {
        let mut known = Known::default();
        known.reach(Epoch(2), 9);
        let first = known.begin(SessionId(7));
        let second = known.begin(SessionId(7));
        assert_eq!((first.sequence, first.answered_below, first.seen, first.epoch), (1, 1, 9, Epoch(2)));
        assert_eq!((second.sequence, second.answered_below), (2, 1));
        known.window.end(1);
        assert_eq!(known.begin(SessionId(7)).answered_below, 2);
    }

    #[test]
    fn positions_count_anew_in_a_later_epoch() {
        let mut known = Known::default();
        known.reach(Epoch(1), 900);
        known.reach(Epoch(2), 3);
        known.reach(Epoch(1), 950);
        assert_eq!((known.epoch, known.position), (Epoch(2), 3));
    }

    #[test]
    fn the_mode_alternates_from_epoch_to_epoch() {
        let mut known = Known { leader: Some(NodeId(1)), ..Known::default() };
        known.reach(Epoch(4), 7);
        assert_eq!(known.mode, None, "nobody has told");
        known.switched(Epoch(4), Mode::Strong);
        known.learn(NodeId(2), &Meta { epoch: Epoch(5), ..Meta::default() });
        assert_eq!((known.mode, known.leader), (Some(Mode::Eventual), None));
        assert_eq!((known.mode_in(Epoch(4)), known.mode_in(Epoch(7))), (Some(Mode::Strong), Some(Mode::Eventual)));
        known.switched(Epoch(4), Mode::Strong);
        known.learn(NodeId(3), &Meta { epoch: Epoch(4), position: 9, ..Meta::default() });
        assert_eq!((known.epoch, known.mode, known.last), (Epoch(5), Some(Mode::Eventual), Some(NodeId(2))));
    }

    #[test]
    fn a_name_created_again_is_another_namespace() {
        let info = |id, epoch| NamespaceInfo {
            id: NamespaceId(id),
            name: duet_proto::NamespaceName::new("orders").unwrap(),
            mode: Mode::Strong,
            epoch: Epoch(epoch),
            phase: duet_proto::Phase::Stable,
            members: vec![NodeId(1)],
            copies: 1,
            leader: None,
        };
        let mut known = Known::default();
        known.catalog(&info(1, 3));
        known.reach(Epoch(3), 900);
        known.begin(SessionId(1));
        known.catalog(&info(2, 1));
        known.catalog(&info(1, 4));
        assert_eq!((known.id, known.epoch, known.position), (NamespaceId(2), Epoch(1), 0));
        assert_eq!(known.begin(SessionId(1)).sequence, 2);
    }

    #[test]
    fn the_leader_is_who_answers_without_naming_another() {
        let mut known = Known::default();
        let meta = |leader| Meta { epoch: Epoch(1), position: 5, leader, token: None };
        known.learn(NodeId(3), &meta(Some(NodeId(2))));
        assert_eq!(known.leader, Some(NodeId(2)));
        known.learn(NodeId(2), &meta(None));
        assert_eq!(known.leader, Some(NodeId(2)));
    }
}
