//! What can go wrong with a store.

use std::path::PathBuf;

use duet_proto::{Class, Error, NodeId};

use crate::NodeIdentity;

/// Why the store could not do as asked. Cheap to clone: one failure is told to everyone who waits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process, or another part of this one, has the directory open.
    #[error("the data directory {} is in use by another process", .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory was written by another node or for another cluster.
    #[error("the data directory belongs to {found}; this is {expected}")]
    Foreign {
        /// Whose it is.
        found: NodeIdentity,
        /// Who asks.
        expected: NodeIdentity,
    },
    /// A layout that this version does not read.
    #[error("the data directory has layout version {found}; this version reads {ours}")]
    Layout {
        /// As stored.
        found: u8,
        /// The one spoken here.
        ours: u8,
    },
    /// The processor lacks what the store was compiled for.
    #[error("this build needs a processor with {needs}")]
    Processor {
        /// What it lacks, perhaps among others.
        needs: &'static str,
    },
    /// Bytes that are not what was written.
    #[error("the store is corrupt: {what}")]
    Corrupt {
        /// What was found, and where.
        what: String,
    },
    /// The disk has no room left.
    #[error("the disk is full: {what}")]
    Full {
        /// What was attempted.
        what: String,
    },
    /// The operating system refused.
    #[error("store I/O failed: {what}")]
    Io {
        /// What was attempted, and the system's answer.
        what: String,
    },
    /// An earlier write or sync failed; what the disk holds is no longer known, so nothing more is written to it.
    #[error("the store takes no more writes, because of an earlier failure: {by}")]
    Poisoned {
        /// The earlier failure.
        by: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// What to do about it. A write that met [`Io`](Self::Io) or [`Full`](Self::Full) may be on disk or not; after
    /// every other error nothing was written.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            StoreError::Io { .. } | StoreError::Full { .. } => Class::Unknown,
            StoreError::Closed => Class::Retry,
            StoreError::InUse { .. }
            | StoreError::Foreign { .. }
            | StoreError::Layout { .. }
            | StoreError::Processor { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Poisoned { .. } => Class::Fatal,
        }
    }

    /// The error as a client of `node` sees it.
    #[must_use]
    pub fn at(&self, node: NodeId) -> Error {
        match self {
            StoreError::Corrupt { what } => Error::Corrupt { node, what: what.clone() },
            StoreError::Closed => Error::Unavailable { node, why: self.to_string() },
            other => Error::Internal { node, why: other.to_string() },
        }
    }

    /// Corruption, described.
    pub fn corrupt(what: impl Into<String>) -> StoreError {
        StoreError::Corrupt { what: what.into() }
    }

    /// What later writes get after this one.
    pub(crate) fn poison(&self) -> StoreError {
        match self {
            StoreError::Poisoned { .. } | StoreError::Closed => self.clone(),
            other => StoreError::Poisoned { by: other.to_string() },
        }
    }
}
