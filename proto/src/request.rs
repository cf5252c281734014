//! What a client asks.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Epoch, Error, Hlc, Mode, NamespaceName, NodeId, Resource, Stamp, limits};

/// Everything a client may ask of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who there is: nodes, namespaces, leaders. Any role.
    Topology,
    /// An operation on a namespace. Any role.
    Data(DataRequest),
    /// The state of the answering node alone. Any role.
    Status,
    /// Administration. Role admin.
    Admin(Admin),
}

/// An operation on the data of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRequest {
    /// Which namespace.
    pub namespace: NamespaceName,
    /// The latest epoch of it that the client has seen; 0 if none. A node that knows of none so late catches up before
    /// it answers, so that nobody goes back; a write of an earlier epoch is answered with `EpochChanged`, unless its
    /// [`Try`] says what became of it.
    pub epoch: Epoch,
    /// What to do.
    pub op: Op,
    /// For writes to a strong namespace: what makes a retry safe. Without it a write is tried once.
    pub attempt: Option<Try>,
    /// For eventual namespaces: see at least what all of these have seen, and be stamped above it. At most one of an
    /// epoch, in their order.
    pub tokens: Vec<Token>,
    /// How a read is served.
    pub consistency: Consistency,
}

/// How a read of a strong namespace is served. Eventual namespaces always read locally.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Sees every write acknowledged before it (ReadIndex).
    #[default]
    Linearizable,
    /// What the answering member has applied: possibly old, never torn. Must be asked for.
    Local,
}

/// A random 128-bit number that names a client's session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u128);

/// What lets a write be retried without being done twice.
///
/// The replicated state keeps the answer of every `(session, sequence)` for
/// [`limits::SESSION_POSITIONS`] log positions, as long as there are no more than [`limits::SESSION_ANSWERS`]. A retry that finds its answer gets it; one that finds none has never
/// run, unless `seen` lies below what the table still remembers: then `SessionExpired` says so and nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Try {
    /// The session.
    pub session: SessionId,
    /// The request's number in its session, from 1. Never used for another request.
    pub sequence: u64,
    /// Every sequence below this has been answered: the table may forget those answers.
    pub answered_below: u64,
    /// The namespace's log position that the client knew of when it first sent this request.
    pub seen: u64,
    /// The epoch in which it was first sent.
    pub epoch: Epoch,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// The value of a key.
    Get {
        /// Which.
        key: Bytes,
    },
    /// A page of keys in order.
    Scan {
        /// Which.
        range: KeyRange,
        /// How much at most.
        limit: ScanLimit,
        /// Where the page before this one ended.
        cursor: Option<Cursor>,
    },
    /// Changes one key, whatever it holds.
    Write {
        /// The change.
        mutation: Mutation,
    },
    /// Changes one key if it is as expected. Strong namespaces only.
    CompareAndSet {
        /// What it must hold.
        expect: Expect,
        /// The change.
        mutation: Mutation,
    },
    /// Compares, then one of two lists of changes, as one step. Strong namespaces only.
    Transaction {
        /// All must hold for `then` to run.
        compares: Vec<Compare>,
        /// Runs if all compares hold. Each key at most once.
        then: Vec<Mutation>,
        /// Runs otherwise. Each key at most once.
        otherwise: Vec<Mutation>,
        /// Keys whose records are returned as they are after the step.
        reads: Vec<Bytes>,
    },
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutation {
    /// Which key.
    pub key: Bytes,
    /// What becomes of it.
    pub change: Change,
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It holds this value.
    Put(Bytes),
    /// It is gone. Deleting what is absent succeeds.
    Delete,
}

/// What a key must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Expect {
    /// A value of exactly this version.
    Stamp(Stamp),
    /// No value.
    Absent,
    /// Some value.
    Present,
}

/// A compare of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Which key.
    pub key: Bytes,
    /// What it must hold.
    pub expect: Expect,
}

/// A range of keys, in byte order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key; empty for the beginning.
    pub start: Bytes,
    /// The first key that is not in the range; `None` for the end.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> KeyRange {
        KeyRange::default()
    }

    /// Every key that begins with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> KeyRange {
        let start: Bytes = prefix.into();
        // The first key after every key with the prefix: its last byte that can be raised, raised.
        let end = start.iter().rposition(|b| *b != 0xff).map(|at| {
            let mut end = start[..=at].to_vec();
            end[at] += 1;
            end.into()
        });
        KeyRange { start, end }
    }

    /// Whether `key` is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

/// How much one page of a scan may hold. At least one entry is always returned, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanLimit {
    /// Most entries, up to [`limits::SCAN_ENTRIES`].
    pub entries: u32,
    /// Most bytes of keys and values, up to [`limits::SCAN_BYTES`].
    pub bytes: u32,
    /// Leave the values out.
    pub keys_only: bool,
}

impl Default for ScanLimit {
    fn default() -> Self {
        ScanLimit { entries: limits::SCAN_ENTRIES, bytes: limits::SCAN_BYTES, keys_only: false }
    }
}

/// Where a page of a scan ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The epoch of the page. Another epoch answers `EpochChanged`; the scan can go on after `last`.
    pub epoch: Epoch,
    /// The last key returned.
    pub last: Bytes,
}

/// What a client has seen of an eventual namespace: a frontier joined with the stamps that were returned.
///
/// After Terry et al., "Session Guarantees for Weakly Consistent Replicated Data" (PDIS 1994).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// The highest time seen of each origin, in order of node.
    pub seen: Vec<(NodeId, Hlc)>,
}

/// Changes to the cluster and its namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admin {
    /// Creates a namespace.
    CreateNamespace {
        /// Its name.
        name: NamespaceName,
        /// Its first mode.
        mode: Mode,
        /// How many members, if `members` names none; the catalog chooses them. `None`: up to three.
        replicas: Option<u32>,
        /// The members, if they are to be these.
        members: Vec<NodeId>,
        /// In eventual mode, how many members must have synced a write before it is acknowledged.
        copies: u32,
    },
    /// Every namespace.
    ListNamespaces,
    /// One namespace.
    ShowNamespace {
        /// Its name.
        name: NamespaceName,
    },
    /// Deletes a namespace and everything in it.
    DeleteNamespace {
        /// Its name.
        name: NamespaceName,
    },
    /// Changes the members of a namespace: by joint consensus where it is strong, in two phases where it is eventual.
    SetMembers {
        /// Its name.
        name: NamespaceName,
        /// The members it is to have.
        members: Vec<NodeId>,
    },
    /// Gives out a node id for a new node at an address.
    AddNode {
        /// Where its peers reach it: a host name or address, and a port.
        address: String,
    },
    /// Takes a node out of the cluster. It must hold no namespace.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// Changes how many members of an eventual namespace must have synced a write before it is acknowledged. Of a strong one
    /// it counts once that is switched.
    SetCopies {
        /// Its name.
        name: NamespaceName,
        /// How many: from 1 to the number of its members.
        copies: u32,
    },
    /// Switches a namespace to a mode, while it is in use. Asked again, it changes whom a switch under way goes on
    /// without.
    SwitchMode {
        /// Its name.
        name: NamespaceName,
        /// The mode it is to have.
        to: Mode,
        /// Members that are not waited for. What an eventual namespace has on them alone comes in when they return.
        without: Vec<NodeId>,
    },
    /// Ends a switch that is under way and can still be ended.
    AbortSwitch {
        /// Its name.
        name: NamespaceName,
    },
    /// Ends the waiting for what a member that will not return may still hold of an earlier epoch.
    Forget {
        /// The namespace.
        name: NamespaceName,
        /// The member.
        node: NodeId,
    },
    /// How far a switch is, who is owed late writes, and the switches before.
    ShowSwitch {
        /// The namespace.
        name: NamespaceName,
    },
    /// The late writes of a namespace that the answering node holds or has brought.
    ListLate {
        /// The namespace.
        name: NamespaceName,
        /// At most so many.
        limit: u32,
    },
}

impl Op {
    /// The keys that it reads, or replaces: none for a scan. A key may come twice.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let (key, compares, then, otherwise, reads): (_, &[Compare], &[Mutation], &[Mutation], &[Bytes]) = match self
        {
            Op::Get { key } => (Some(key), &[], &[], &[], &[]),
            Op::Write { mutation } | Op::CompareAndSet { mutation, .. } => (Some(&mutation.key), &[], &[], &[], &[]),
            Op::Transaction { compares, then, otherwise, reads } => (None, compares, then, otherwise, reads),
            Op::Scan { .. } => (None, &[], &[], &[], &[]),
        };
        let compared = compares.iter().map(|compare| &compare.key);
        let changed = then.iter().chain(otherwise).map(|mutation| &mutation.key);
        key.into_iter().chain(compared).chain(changed).chain(reads)
    }

    /// Whether it may change something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self, Op::Get { .. } | Op::Scan { .. })
    }

    /// Whether it compares, which only a strong namespace can do.
    #[must_use]
    pub fn is_conditional(&self) -> bool {
        matches!(self, Op::CompareAndSet { .. } | Op::Transaction { .. })
    }

    /// Checks keys, values and counts against the limits. `value_max` is the configured one.
    ///
    /// # Errors
    /// [`Error::TooLarge`] naming the limit, or [`Error::InvalidRequest`].
    pub fn validate(&self, value_max: usize) -> Result<(), Error> {
        match self {
            Op::Get { key } => check_key(key),
            Op::Scan { range, limit, cursor } => {
                check(Resource::Key, range.start.len(), limits::KEY_MAX)?;
                check(Resource::Key, range.end.as_ref().map_or(0, Bytes::len), limits::KEY_MAX)?;
                check(Resource::Key, cursor.as_ref().map_or(0, |c| c.last.len()), limits::KEY_MAX)?;
                check(Resource::ScanEntries, limit.entries as usize, limits::SCAN_ENTRIES as usize)?;
                check(Resource::ScanBytes, limit.bytes as usize, limits::SCAN_BYTES as usize)?;
                if limit.entries == 0 {
                    return Err(Error::InvalidRequest { why: "a scan of no entries".into() });
                }
                Ok(())
            }
            Op::Write { mutation } | Op::CompareAndSet { mutation, .. } => mutation.validate(value_max),
            Op::Transaction { compares, then, otherwise, reads } => {
                let ops = compares.len() + then.len() + otherwise.len() + reads.len();
                check(Resource::TransactionOps, ops, limits::TXN_OPS)?;
                compares.iter().map(|c| &c.key).chain(reads).try_for_each(check_key)?;
                for list in [then, otherwise] {
                    list.iter().try_for_each(|m| m.validate(value_max))?;
                    let mut keys: Vec<_> = list.iter().map(|m| &m.key).collect();
                    keys.sort_unstable();
                    if keys.windows(2).any(|w| w[0] == w[1]) {
                        return Err(Error::InvalidRequest { why: "a transaction changes a key twice".into() });
                    }
                }
                let bytes = compares.iter().map(|c| c.key.len()).chain(reads.iter().map(Bytes::len)).sum::<usize>()
                    + then.iter().chain(otherwise).map(Mutation::bytes).sum::<usize>();
                check(Resource::TransactionBytes, bytes, limits::TXN_BYTES)
            }
        }
    }
}

impl Mutation {
    /// Puts `value` under `key`.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Mutation {
        Mutation { key: key.into(), change: Change::Put(value.into()) }
    }

    /// Deletes `key`.
    pub fn delete(key: impl Into<Bytes>) -> Mutation {
        Mutation { key: key.into(), change: Change::Delete }
    }

    fn bytes(&self) -> usize {
        self.key.len() + if let Change::Put(value) = &self.change { value.len() } else { 0 }
    }

    fn validate(&self, value_max: usize) -> Result<(), Error> {
        check_key(&self.key)?;
        match &self.change {
            Change::Put(value) => check(Resource::Value, value.len(), value_max),
            Change::Delete => Ok(()),
        }
    }
}

fn check_key(key: &Bytes) -> Result<(), Error> {
    if key.len() < limits::KEY_MIN {
        return Err(Error::InvalidRequest { why: "an empty key".into() });
    }
    check(Resource::Key, key.len(), limits::KEY_MAX)
}

fn check(what: Resource, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit { Err(Error::TooLarge { what, size: size as u64, limit: limit as u64 }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_prefix_range_holds_what_begins_with_it(
            prefix in prop::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..4),
            key in prop::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..6),
        ) {
            let range = KeyRange::prefix(prefix.clone());
            prop_assert_eq!(range.contains(&key), key.starts_with(&prefix));
        }
    }

    #[test]
    fn keys_are_those_read_and_replaced() {
        let keys =
            |op: Op| op.keys().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>().concat();
        assert_eq!(keys(Op::Get { key: "a".into() }), "a");
        assert_eq!(keys(Op::Write { mutation: Mutation::delete("b") }), "b");
        assert_eq!(keys(Op::CompareAndSet { expect: Expect::Absent, mutation: Mutation::put("c", "1") }), "c");
        let compares = vec![Compare { key: "d".into(), expect: Expect::Present }];
        let (then, otherwise) = (vec![Mutation::put("e", "1")], vec![Mutation::delete("f"), Mutation::put("g", "1")]);
        assert_eq!(keys(Op::Transaction { compares, then, otherwise, reads: vec!["h".into()] }), "defgh");
        assert_eq!(keys(Op::Scan { range: KeyRange::all(), limit: ScanLimit::default(), cursor: None }), "");
    }

    #[test]
    fn limits_are_named() {
        let key = Op::Get { key: vec![0; limits::KEY_MAX + 1].into() };
        assert!(matches!(key.validate(10), Err(Error::TooLarge { what: Resource::Key, limit: 4096, .. })));
        let value = Op::Write { mutation: Mutation::put("k", vec![0; 11]) };
        assert!(matches!(value.validate(10), Err(Error::TooLarge { what: Resource::Value, limit: 10, .. })));
        let twice = vec![Mutation::put("k", "1"), Mutation::delete("k")];
        let txn = Op::Transaction { compares: vec![], then: twice, otherwise: vec![], reads: vec![] };
        assert!(matches!(txn.validate(10), Err(Error::InvalidRequest { .. })));
        let many = vec![Bytes::from_static(b"k"); limits::TXN_OPS + 1];
        let txn = Op::Transaction { compares: vec![], then: vec![], otherwise: vec![], reads: many };
        assert!(matches!(txn.validate(10), Err(Error::TooLarge { what: Resource::TransactionOps, .. })));
    }
}
