//! The replicated state machine: what the committed entries of a group make of a namespace.
//!
//! Pure and synchronous. It reads a [`View`], fills a [`Batch`], and knows no task, clock or log. Every replica that
//! applies the same entries holds the same rows, byte for byte, however the entries were cut into batches:
//!
//! ```text
//!   entries ─► apply ─┬─► records      data       namespace | key → record     (what clients see)
//!                     ├─► answers      namespace  namespace | 0x11 | position  (exactly once)
//!                     ├─► state        namespace  namespace | 0x10             (applied, stamp, digest, counts)
//!                     └─► Vec<Applied>                                         (to whoever waits here)
//! ```
//!
//! All of one call goes into one batch, so a crash never separates a record from the digest that counts it or from the
//! answer that keeps it from being written twice. Within a call, later entries see earlier ones through an overlay;
//! a key that is written ten times is one row of the batch.
//!
//! The rows belong to the namespace, not to the group: a group of a later epoch is created over the data that is in
//! place, given the [`State`] that describes it.

mod apply;
mod command;
mod read;
mod rows;
mod sessions;
#[cfg(test)]
pub(crate) mod tests;

use duet_proto::{Digest, Epoch, Error, NamespaceId, NamespaceName, NodeId, Outcome, RecordError, Stamp};
use duet_store::{Batch, Family, StoreError, View};
use serde::{Deserialize, Serialize};

use crate::snapshot::{Installer, Phase};

pub(crate) use self::command::join;
use self::sessions::Bounds;
pub use self::{
    command::{Command, CommandError, RequestId, Write},
    rows::Position,
};
pub(crate) use self::{
    read::after,
    rows::{
        answer_key, answer_position, answers, clear, decode, drop_answers, get, install_key, put, staging, state_key,
    },
    sessions::{Remembered, Sessions, Verdict, recall},
};

/// Which group a machine belongs to, and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The epoch.
    pub epoch: Epoch,
    /// The namespace's name, for errors.
    pub name: NamespaceName,
    /// The node that runs this replica, for errors.
    pub node: NodeId,
}

/// A machine's state but for its rows: equal on all replicas that have applied the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The last entry applied. Starts at the base: index 0 of a new namespace.
    pub applied: Position,
    /// The term of that entry.
    pub term: u64,
    /// The highest stamp given.
    pub last: Stamp,
    /// The digest of the live values.
    pub digest: Digest,
    /// Live keys.
    pub keys: u64,
    /// Tombstones held. Only data from an eventual epoch has any.
    pub tombstones: u64,
    /// Every write at or above it whose answer was not received is in the exactly-once table.
    pub floor: Position,
    /// The end of the epoch, once it is in the log.
    pub sealed: Option<Seal>,
    /// Some member may still bring writes of an earlier epoch: deletes leave a tombstone, so that those cannot bring
    /// back what was deleted meanwhile.
    pub keep_tombstones: bool,
}

/// The end of an epoch. Nothing after it in the log has any effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The epoch that is to follow.
    pub next: Epoch,
    /// Where in the log it is.
    pub index: u64,
}

/// The data that an epoch begins with, as the members of the one before it left it in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The highest stamp held.
    pub last: Stamp,
    /// The digest of the live values.
    pub digest: Digest,
    /// Live keys.
    pub keys: u64,
    /// Tombstones held.
    pub tombstones: u64,
    /// Whether late writes are owed.
    pub keep_tombstones: bool,
    /// Whether the exactly-once table in place is the same on all founders. If not it is dropped: every write first
    /// tried before is refused then.
    pub keep_answers: bool,
}

impl State {
    /// A namespace with nothing in it, before the first entry of `epoch`.
    #[must_use]
    pub fn empty(epoch: Epoch) -> State {
        let start = Position { epoch, index: 0 };
        State {
            applied: start,
            term: 0,
            last: Stamp::default(),
            digest: Digest::EMPTY,
            keys: 0,
            tombstones: 0,
            floor: start,
            sealed: None,
            keep_tombstones: false,
        }
    }

    /// What the epoch has come to: where the next one begins.
    #[must_use]
    pub fn base(&self) -> Base {
        let State { last, digest, keys, tombstones, keep_tombstones, .. } = *self;
        Base { last, digest, keys, tombstones, keep_tombstones, keep_answers: true }
    }

    /// An epoch that begins with what is in place. The exactly-once table of earlier epochs goes on: `before` is the
    /// state that the last strong one left.
    #[must_use]
    pub fn over(base: Base, epoch: Epoch, before: Option<&State>) -> State {
        let Base { last, digest, keys, tombstones, keep_tombstones, keep_answers } = base;
        let empty = State::empty(epoch);
        let floor = before.filter(|_| keep_answers).map_or(empty.floor, |state| state.floor);
        State { last, digest, keys, tombstones, keep_tombstones, floor, ..empty }
    }
}

/// A committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its index: one more than the entry before it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// What it says; nothing to the machine, if it is a leader's first or a change of members.
    pub commands: Vec<Command>,
}

/// What came of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The index of its entry.
    pub index: u64,
    /// Whose it was.
    pub request: RequestId,
    /// The answer.
    pub result: Result<Outcome, Error>,
}

/// Why a machine cannot go on. The replica stops: to guess would be to diverge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// The store failed, or a row of the machine's own is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is damaged; without it the digest cannot be kept.
    #[error("the record of key {} is damaged: {error}", .key.escape_ascii())]
    Record {
        /// Its key.
        key: bytes::Bytes,
        /// What is wrong with it.
        error: RecordError,
    },
    /// An entry was left out or came twice.
    #[error("entry {found} was to be applied where {expected} is next")]
    Gap {
        /// The next index.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// The rows are those of another epoch.
    #[error("the state in place is of epoch {found}, not {expected}")]
    Epoch {
        /// The group's.
        expected: Epoch,
        /// The rows'.
        found: Epoch,
    },
    /// A snapshot was being moved into place when the node stopped; finish that first.
    #[error("the install of a snapshot has to be finished first")]
    Installing,
}

impl MachineError {
    /// The error as a client of `node` sees it.
    #[must_use]
    pub fn at(&self, node: NodeId) -> Error {
        match self {
            MachineError::Store(error) => error.at(node),
            MachineError::Record { .. } => Error::Corrupt { node, what: self.to_string() },
            _ => Error::Internal { node, why: self.to_string() },
        }
    }
}

/// One replica's state machine.
///
/// Invariant: between calls, `state` and `sessions` are what [`Machine::open`] would find once the batches of all calls
/// so far are written.
#[derive(Debug)]
pub struct Machine {
    group: Group,
    state: State,
    sessions: Sessions,
    bounds: Bounds,
    /// No tombstone is listed below it: whoever looks for the oldest need not pass all that was dropped before.
    listed_from: Stamp,
}

impl Machine {
    /// A machine over what is in place, which `base` must describe: for a new namespace nothing, and
    /// [`State::empty`]. Later starts [`open`](Machine::open) it. With `blank` the answers in place go.
    ///
    /// # Errors
    /// If the answers in place cannot be read, or `base` is of another epoch than the group.
    pub fn create(
        view: &dyn View,
        group: Group,
        base: State,
        blank: bool,
        batch: &mut Batch,
    ) -> Result<Machine, MachineError> {
        if base.applied.epoch != group.epoch {
            return Err(MachineError::Epoch { expected: group.epoch, found: base.applied.epoch });
        }
        let sessions = if blank {
            drop_answers(batch, group.namespace);
            Sessions::default()
        } else {
            Sessions::open(view, group.namespace)?
        };
        put(batch, state_key(group.namespace), &base);
        Ok(Machine { group, state: base, sessions, bounds: Bounds::default(), listed_from: Stamp::default() })
    }

    /// The machine as its rows say, or `None` if none was created.
    ///
    /// # Errors
    /// If the rows cannot be read, are of another epoch, or an install was cut off half-way
    /// ([`MachineError::Installing`]).
    pub fn open(view: &dyn View, group: Group) -> Result<Option<Machine>, MachineError> {
        let Some(state) = get::<State>(view, &state_key(group.namespace))? else {
            // A move removes the state first and puts the new one last.
            return match Installer::resume(view, group.namespace)? {
                Some(installer) if matches!(installer.phase(), Phase::Moving(_)) => Err(MachineError::Installing),
                _ => Ok(None),
            };
        };
        if state.applied.epoch != group.epoch {
            return Err(MachineError::Epoch { expected: group.epoch, found: state.applied.epoch });
        }
        let sessions = Sessions::open(view, group.namespace)?;
        Ok(Some(Machine { group, state, sessions, bounds: Bounds::default(), listed_from: Stamp::default() }))
    }

    /// Makes room for a replica that joins over what an earlier epoch left in place, and gets a snapshot.
    pub(crate) fn forget(namespace: NamespaceId, batch: &mut Batch) {
        batch.delete(Family::Namespace, state_key(namespace));
    }

    /// Removes everything that any machine or install of the namespace has put anywhere, and its records. What else
    /// there is of the namespace is the other engine's: late writes among it, which nobody else may have.
    pub fn destroy(namespace: NamespaceId, batch: &mut Batch) {
        for namespace in [namespace, staging(namespace)] {
            clear(batch, namespace);
            batch.delete(Family::Namespace, state_key(namespace));
            batch.delete(Family::Namespace, install_key(namespace));
        }
    }

    /// Which group this is.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The last index applied.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.state.applied.index
    }

    /// Sessions known, and answers remembered, for metrics.
    #[must_use]
    pub fn remembered(&self) -> (usize, usize) {
        self.sessions.len()
    }
}
