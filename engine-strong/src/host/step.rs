//! What a step of the host comes to. That something must be durable before it is told is in the types.

use std::collections::BTreeSet;

use bytes::Bytes;
use duet_proto::NodeId;
use duet_store::Batch;
use tokio::sync::oneshot;

use crate::{GroupError, GroupId};

/// What one step wants done.
pub(crate) struct Step {
    /// Frames that may go out at once.
    pub(crate) frames: Vec<(NodeId, Bytes)>,
    /// Pieces of snapshots.
    pub(crate) bulk: Vec<(NodeId, Bytes)>,
    /// What must be durable before more may go out.
    pub(crate) write: Option<Unpersisted>,
}

/// A batch, and what must not be told before it is durable.
pub(crate) struct Unpersisted {
    pub(super) batch: Batch,
    pub(super) held: Held,
}

impl Unpersisted {
    pub(crate) fn into_parts(self) -> (Batch, Held) {
        (self.batch, self.held)
    }
}

/// Who waits for a batch. The messages stay in the host, which gives them out for a [`Persisted`] only.
pub(crate) struct Held {
    pub(super) ticket: u64,
    pub(super) groups: BTreeSet<GroupId>,
    pub(super) tells: Vec<Tell>,
}

impl Held {
    /// To be called when, and only when, the batch is durable.
    pub(crate) fn durable(self) -> Persisted {
        Persisted(self)
    }
}

/// What may be told now.
pub(crate) struct Persisted(pub(super) Held);

/// Who is told of a write of the host's own.
pub(super) enum Tell {
    Created(oneshot::Sender<Result<(), GroupError>>),
    Removed(GroupId, oneshot::Sender<Result<(), GroupError>>),
}
