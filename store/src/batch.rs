//! What is written at once.

use bytes::Bytes;

/// The column families. Their keys are laid out in [`layout`](crate::layout).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Identity, boot counter, the clock's bound.
    Node,
    /// The entries of Raft logs.
    RaftLog,
    /// Hard state, configuration, applied position, sessions: what is not the log or the data.
    RaftState,
    /// The records.
    Data,
    /// Which live record each origin's write became; eventual mode only.
    Origin,
    /// Per namespace: frontier, digest, counts, fence.
    Namespace,
}

impl Family {
    /// Every family, in order.
    pub const ALL: [Family; 6] =
        [Family::Node, Family::RaftLog, Family::RaftState, Family::Data, Family::Origin, Family::Namespace];

    /// Its name on disk and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::Node => "node",
            Family::RaftLog => "raft_log",
            Family::RaftState => "raft_state",
            Family::Data => "data",
            Family::Origin => "origin",
            Family::Namespace => "namespace",
        }
    }
}

/// One change of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Sets a key.
    Put(Family, Bytes, Bytes),
    /// Removes a key, if it is there.
    Delete(Family, Bytes),
    /// Removes every key from the first, inclusive, to the second, exclusive.
    DeleteRange(Family, Bytes, Bytes),
}

/// Changes that are made all or none, in the order in which they were added: of two to one key the later wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    edits: Vec<Edit>,
    bytes: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Sets a key.
    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.edits.push(Edit::Put(family, key, value));
    }

    /// Removes a key, if it is there.
    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        let key = key.into();
        self.bytes += key.len();
        self.edits.push(Edit::Delete(family, key));
    }

    /// Removes every key in `from..to`. Costs the same however many there are; nothing if the range is empty.
    pub fn delete_range(&mut self, family: Family, from: impl Into<Bytes>, to: impl Into<Bytes>) {
        let (from, to) = (from.into(), to.into());
        if from < to {
            self.bytes += from.len() + to.len();
            self.edits.push(Edit::DeleteRange(family, from, to));
        }
    }

    /// Adds the changes of `later` after those that are here.
    pub fn append(&mut self, mut later: Batch) {
        self.bytes += later.bytes;
        self.edits.append(&mut later.edits);
    }

    /// The changes, in order.
    #[must_use]
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// The number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.edits.len()
    }

    /// Whether there are no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Bytes of keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
