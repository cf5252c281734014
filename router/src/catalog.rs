//! The catalog's entries and their bytes.
//!
//! Ordinary keys of the system namespace:
//!
//! | key | value |
//! | --- | --- |
//! | `i/next` | [`Counters`] |
//! | `n/` and the node's id, ten digits | [`NodeRecord`] |
//! | `s/` and the namespace's name | [`NamespaceRecord`] |
//!
//! A value is one version byte (1) and the record in postcard. A later version either appends fields under a new
//! version byte or adds a variant at the end of an enum; what cannot be read is kept out of the view and stops
//! every removal (see [`View`](crate::View)), because "not in the catalog" is what makes a node delete data.

use std::collections::BTreeSet;

use bytes::Bytes;
use duet_engine_eventual::{Frontier, Members};
use duet_engine_strong::Answers;
use duet_proto::{Boot, Digest, Epoch, Mode, NamespaceId, NamespaceName, NodeId, Stamp, SwitchPast};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const VERSION: u8 = 1;

/// The ids that are given out next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The next node's.
    pub node: NodeId,
    /// The next namespace's.
    pub namespace: NamespaceId,
}

/// A node, for ever: the entry of one that was removed stays, so that its id cannot come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Where peers and clients reach it: a host name or address, and a port.
    pub address: String,
    /// Its latest start that it has registered; 0 until the first one.
    pub boot: Boot,
    /// Whether it belongs to the cluster.
    pub state: NodeState,
}

/// Whether a node belongs to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// It does.
    Active,
    /// Not any more.
    Removed,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// Its id, never reused.
    pub id: NamespaceId,
    /// How its replicas are kept in step.
    pub mode: Mode,
    /// Rises with each change of mode.
    pub epoch: Epoch,
    /// The nodes that hold it and take requests, in order.
    pub members: Vec<NodeId>,
    /// In eventual mode, how many members must have synced a write before it is acknowledged.
    pub copies: u32,
    /// Rises with each change of who holds the namespace, of `copies`, or of how far such a change has come, and never
    /// falls: members of an eventual namespace go by the highest that they have seen.
    pub version: u64,
    /// The members with which this epoch began. All that start from there must agree on them (they are the first
    /// voters of a strong namespace's group), so they stay as they were while `members` changes.
    pub initial: Vec<NodeId>,
    /// Those that have been taken out since. In strong mode those of `initial` only: one that returns has dropped its
    /// log and its votes, so it starts blank and is brought up to date by the others. In eventual mode all: none of
    /// them may return in this epoch. One that did would go on with its own writes from where the member that it is
    /// copied from has them, and a member that lacks some before that would take the new ones to follow on what it has.
    pub left: Vec<NodeId>,
    /// Where it stands.
    pub state: NamespaceState,
    /// What the epoch began with; nothing in the first one.
    pub base: Option<Base>,
    /// Of the latest eventual epochs that are over: up to where every write of them is part of what followed. What goes
    /// beyond comes in late, and is part of this once it has.
    pub ended: Vec<(Epoch, Frontier)>,
    /// Who may still bring writes of which eventual epoch, because that epoch ended without them. While there are any,
    /// no tombstone is forgotten.
    pub owed: Vec<(NodeId, Epoch)>,
    /// How often writes were to stop for a switch: what the fences bear. Never falls.
    pub attempts: u64,
    /// The latest switches, the oldest first.
    pub history: Vec<SwitchPast>,
}

/// The data that an epoch began with: what every member that took part in the switch held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The highest stamp.
    pub last: Stamp,
    /// The digest of the live values.
    pub digest: Digest,
    /// Live keys.
    pub keys: u64,
    /// Whether the exactly-once table goes on. It does not if the members' tables had come to differ.
    pub answers: bool,
    /// Whether somebody was owed late writes then, or is since: a strong epoch begins to keep tombstones with its base,
    /// and ends it in its log.
    pub keep_tombstones: bool,
}

/// What one member of a base holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The highest stamp.
    pub last: Stamp,
    /// The digest of the live values.
    pub digest: Digest,
    /// Live keys.
    pub keys: u64,
    /// Up to where it holds every write.
    pub frontier: Frontier,
    /// Its exactly-once table, if it has one.
    pub answers: Option<Answers>,
}

/// Where a namespace stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceState {
    /// Settled.
    Stable,
    /// Strong mode: from `members` to other ones. Both hold replicas until the group has changed over.
    Moving {
        /// The members it is to have.
        to: Vec<NodeId>,
        /// Where it was to move before the target was changed: these may be in the group and keep their replicas.
        also: Vec<NodeId>,
    },
    /// On its way out. Each member drops its replica and says so here; once a majority has, the entry goes.
    Deleting {
        /// The members that have dropped it.
        gone: Vec<NodeId>,
    },
    /// Eventual mode: the nodes of `to` that are no members receive their first copy. They take no writes and count
    /// for nothing, so the target can be changed freely.
    Filling {
        /// The members it is to have.
        to: Vec<NodeId>,
        /// The copies it is to ask for.
        copies: u32,
        /// Earlier sets of members, as in `Settling`.
        before: Vec<Electorate>,
        /// Those of `to` that have said, at this version, that they hold a first copy.
        filled: Vec<NodeId>,
    },
    /// Eventual mode: `members` and `copies` are the new ones and in force wherever they are known. Until enough of those
    /// before have moved to this version, and what they held by then is held by every member, they keep their replicas.
    Settling {
        /// The sets of members before: those that may have acknowledged writes which are not known to be held by
        /// every member.
        before: Vec<Electorate>,
        /// Of those before: what each held durably when it moved to this version.
        moved: Vec<(NodeId, Frontier)>,
        /// Of the members: what each durably holds, at this version.
        held: Vec<(NodeId, Frontier)>,
    },
    /// On its way to the other mode.
    Switching(Switch),
}

/// A switch of modes under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// How far it is.
    pub step: Step,
    /// Members that an operator has said not to wait for.
    pub without: Vec<NodeId>,
    /// How often writes have been stopped for it.
    pub tries: u64,
    /// When it was asked for, once somebody has taken note of it.
    pub asked_ms: u64,
    /// When the step that stops writes began, the last time.
    pub sealed_ms: u64,
}

/// How far a switch is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Eventual to strong: writes go on; members that lack nothing they know of say so.
    Gathering {
        /// Those that have.
        near: Vec<NodeId>,
    },
    /// Each member stops taking writes, durably, and says what it held then.
    Sealing {
        /// Those that were near.
        expected: Vec<NodeId>,
        /// Those that have sealed, each with its frontier.
        sealed: Vec<(NodeId, Frontier)>,
    },
    /// The members of the base are fixed, and get from each other, and nobody else, what any of them holds.
    Converging {
        /// Who makes up the base.
        base: Vec<NodeId>,
        /// What all of it must hold: what any of them held when it sealed.
        target: Frontier,
        /// Those that have got from each other member of the base all that it held, each with what that comes to.
        held: Vec<(NodeId, Held)>,
    },
    /// Strong to eventual: the seal goes through the group's log. It cannot be taken back.
    Ending {
        /// It was aborted since: once it is done, the way back begins.
        back: bool,
    },
}

/// Members and how many of them acknowledge a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Electorate {
    /// The members.
    pub nodes: Vec<NodeId>,
    /// How many of them had to sync a write.
    pub copies: u32,
}

impl NamespaceRecord {
    /// One that begins, with nothing in it.
    #[must_use]
    pub fn new(id: NamespaceId, mode: Mode, members: Vec<NodeId>, copies: u32) -> NamespaceRecord {
        NamespaceRecord {
            id,
            mode,
            epoch: Epoch::FIRST,
            initial: members.clone(),
            members,
            copies,
            version: 1,
            left: Vec::new(),
            state: NamespaceState::Stable,
            base: None,
            ended: Vec::new(),
            owed: Vec::new(),
            attempts: 0,
            history: Vec::new(),
        }
    }

    /// Whether `node` is to hold a replica.
    #[must_use]
    pub fn holds(&self, node: NodeId) -> bool {
        !matches!(self.state, NamespaceState::Deleting { .. }) && self.involved().contains(&node)
    }

    /// Every node that the entry speaks of: what must not be removed from the cluster.
    #[must_use]
    pub fn involved(&self) -> BTreeSet<NodeId> {
        let (to, also): (&[_], &[_]) = match &self.state {
            NamespaceState::Moving { to, also } => (to, also),
            NamespaceState::Filling { to, .. } => (to, &[]),
            NamespaceState::Stable
            | NamespaceState::Deleting { .. }
            | NamespaceState::Settling { .. }
            | NamespaceState::Switching(_) => (&[], &[]),
        };
        let before = self.before().iter().flat_map(|electorate| &electorate.nodes);
        self.members.iter().chain(to).chain(also).chain(before).copied().collect()
    }

    /// Earlier sets of members whose writes may not be everywhere.
    #[must_use]
    pub fn before(&self) -> &[Electorate] {
        match &self.state {
            NamespaceState::Filling { before, .. } | NamespaceState::Settling { before, .. } => before,
            NamespaceState::Stable
            | NamespaceState::Moving { .. }
            | NamespaceState::Deleting { .. }
            | NamespaceState::Switching(_) => &[],
        }
    }

    /// The attempt for which the members of an eventual namespace are to be fenced now.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        let NamespaceState::Switching(switch) = &self.state else { return None };
        matches!(switch.step, Step::Sealing { .. } | Step::Converging { .. }).then_some(self.attempts)
    }

    /// Up to where every write of an eventual epoch that is over is part of the data now.
    #[must_use]
    pub fn end_of(&self, epoch: Epoch) -> Option<&Frontier> {
        self.ended.iter().find(|(ended, _)| *ended == epoch).map(|(_, frontier)| frontier)
    }

    /// The members and copies in force.
    #[must_use]
    pub fn electorate(&self) -> Electorate {
        Electorate { nodes: self.members.clone(), copies: self.copies }
    }

    /// What the replicas of an eventual namespace go by. Whoever holds the namespace without being a member, because it
    /// receives its first copy or because it is on its way out, is heard and takes no writes.
    #[must_use]
    pub fn engine_members(&self) -> Members {
        let nodes: BTreeSet<_> = self.members.iter().copied().collect();
        let leaving = self.involved().difference(&nodes).copied().collect();
        Members { version: self.version, nodes, copies: self.copies, leaving, keep_tombstones: !self.owed.is_empty() }
    }

    /// Whether `node` starts its replica from the epoch's beginning, rather than blank.
    #[must_use]
    pub fn starts(&self, node: NodeId) -> bool {
        self.initial.contains(&node) && !self.left.contains(&node)
    }

    /// The member that stands for election first, so that leaders of many namespaces spread over the nodes. None that
    /// begins blank.
    #[must_use]
    pub fn first_leader(&self) -> Option<NodeId> {
        let able: Vec<_> = self.members.iter().filter(|node| !self.left.contains(node)).collect();
        let at = self.id.0.checked_rem(able.len() as u64)?;
        able.get(at as usize).map(|node| **node)
    }
}

/// A key of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `i/next`.
    Next,
    /// `n/…`.
    Node(NodeId),
    /// `s/…`.
    Namespace(NamespaceName),
}

impl Key {
    /// The key's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Key::Next => Bytes::from_static(b"i/next"),
            Key::Node(node) => format!("n/{node:010}").into(),
            Key::Namespace(name) => format!("s/{name}").into(),
        }
    }

    /// Reads what [`Key::encode`] made; `None` for a key of another kind.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(bytes).ok()?;
        let key = match text.split_at_checked(2)? {
            ("i/", "next") => Key::Next,
            ("n/", id) => Key::Node(id.parse().ok()?),
            ("s/", name) => Key::Namespace(name.parse().ok()?),
            _ => return None,
        };
        (key.encode() == bytes).then_some(key)
    }
}

/// A value that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A version from the future, or no bytes at all.
    #[error("version {0:?} of the entry is not known here")]
    Version(Option<u8>),
    /// Not what the version says.
    #[error("the entry cannot be read: {0}")]
    Damaged(postcard::Error),
}

/// The bytes of an entry.
pub fn encode<T: Serialize>(entry: &T) -> Bytes {
    // Only a map or sequence of unknown length or a failing `Serialize` can fail here; the entries have neither.
    postcard::to_extend(entry, vec![VERSION]).expect("catalog entries are plain structures").into()
}

/// Reads what [`encode`] made.
///
/// # Errors
/// If the version is unknown or the bytes are not a whole entry.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, EntryError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((entry, [])) => Ok(entry),
            Ok(_) => Err(EntryError::Damaged(postcard::Error::SerdeDeCustom)),
            Err(error) => Err(EntryError::Damaged(error)),
        },
        other => Err(EntryError::Version(other.map(|(version, _)| *version))),
    }
}

#[cfg(test)]
mod tests {
    use duet_proto::Hlc;
    use proptest::prelude::*;

    use super::*;

    fn ids() -> impl Strategy<Value = Vec<NodeId>> {
        prop::collection::vec(any::<u32>().prop_map(NodeId), 0..5)
    }

    fn frontiers() -> impl Strategy<Value = Vec<(NodeId, Frontier)>> {
        let frontier = prop::collection::vec((any::<u32>(), any::<u64>()), 0..4)
            .prop_map(|times| times.into_iter().map(|(node, hlc)| (NodeId(node), Hlc(hlc))).collect());
        prop::collection::vec((any::<u32>().prop_map(NodeId), frontier), 0..3)
    }

    fn electorates() -> impl Strategy<Value = Vec<Electorate>> {
        prop::collection::vec((ids(), any::<u32>()).prop_map(|(nodes, copies)| Electorate { nodes, copies }), 0..3)
    }

    fn records() -> impl Strategy<Value = NamespaceRecord> {
        let state =
            prop_oneof![
                Just(NamespaceState::Stable),
                (ids(), ids()).prop_map(|(to, also)| NamespaceState::Moving { to, also }),
                ids().prop_map(|gone| NamespaceState::Deleting { gone }),
                (ids(), any::<u32>(), electorates(), ids())
                    .prop_map(|(to, copies, before, filled)| NamespaceState::Filling { to, copies, before, filled }),
                (electorates(), frontiers(), frontiers())
                    .prop_map(|(before, moved, held)| NamespaceState::Settling { before, moved, held }),
                (ids(), any::<u64>(), frontiers()).prop_map(|(without, tries, sealed)| {
                    let step = Step::Sealing { expected: without.clone(), sealed };
                    NamespaceState::Switching(Switch { step, without, tries, asked_ms: tries, sealed_ms: tries })
                }),
            ];
        (any::<u64>(), any::<bool>(), any::<u32>(), ids(), ids(), ids(), state).prop_map(
            |(id, strong, n, members, initial, left, state)| NamespaceRecord {
                id: NamespaceId(id),
                mode: if strong { Mode::Strong } else { Mode::Eventual },
                epoch: Epoch(n),
                copies: n,
                version: id,
                members,
                initial,
                left,
                state,
                base: None,
                ended: Vec::new(),
                owed: vec![(NodeId(n), Epoch(n))],
                attempts: id,
                history: Vec::new(),
            },
        )
    }

    proptest! {
        #[test]
        fn entries_read_back(record in records()) {
            prop_assert_eq!(decode::<NamespaceRecord>(&encode(&record)), Ok(record));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode::<NamespaceRecord>(&bytes);
            let _ = decode::<NodeRecord>(&bytes);
            let _ = Key::decode(&bytes);
        }

        #[test]
        fn keys_read_back(id in any::<u32>(), name in "[a-z0-9._-]{1,20}") {
            for key in [Key::Next, Key::Node(NodeId(id)), Key::Namespace(name.parse().unwrap())] {
                prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            }
        }

        #[test]
        fn a_cut_entry_is_refused(record in records(), at in any::<prop::sample::Index>()) {
            let bytes = encode(&record);
            prop_assert!(decode::<NamespaceRecord>(&bytes[..at.index(bytes.len())]).is_err());
        }
    }

    #[test]
    fn version_one_stays_as_it_is() {
        let node = NodeRecord { address: "a:1".into(), boot: Boot(3), state: NodeState::Active };
        assert_eq!(&encode(&node)[..], [1, 3, b'a', b':', b'1', 3, 0]);
        assert_eq!(decode::<NodeRecord>(&[2, 0]), Err(EntryError::Version(Some(2))));
    }
}
