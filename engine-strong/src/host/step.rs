//! What a step of the host comes to. That something must be durable before it is told is in the types.

use std::collections::BTreeSet;

use bytes::Bytes;
use duet_proto::NodeId;
use duet_store::Batch;
use tokio::{sync::oneshot, time::Instant};

use super::{Host, Slot, group::Group};
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

impl Host {
    /// Does everything that has become possible, and says what is to be written and sent. `room` is how many pieces
    /// of snapshots the bulk lane takes.
    pub(crate) fn step(&mut self, room: usize, now: Instant) -> Step {
        let mut on = BTreeSet::new();
        while let Some(id) = self.dirty.pop_first() {
            self.with(id, now, Group::process);
            if matches!(self.groups.get(&id), Some(Slot::Running(group)) if group.goes_on()) {
                on.insert(id);
            }
        }
        // They go on in the next step, so that others need not wait.
        self.dirty = on;
        let (chunks, broken) = self.sends.chunks(room);
        for ended in broken {
            self.snapshot_ended(ended, now);
        }
        self.bulk.extend(chunks);
        let write = self.take_write();
        let frames = std::mem::take(&mut self.out).into_frames();
        self.metrics.frames += frames.len() as u64;
        let bulk = std::mem::take(&mut self.bulk).into_iter().map(|(to, message)| (to, message.encode())).collect();
        Step { frames, bulk, write }
    }

    /// Whether there is more to do although nothing has come.
    pub(crate) fn is_restless(&self, room: usize) -> bool {
        !self.dirty.is_empty() || (room > 0 && self.sends.is_due())
    }

    fn take_write(&mut self) -> Option<Unpersisted> {
        if self.batch.is_empty() && self.wait.is_empty() && self.tells.is_empty() {
            return None;
        }
        self.tickets += 1;
        self.metrics.steps += 1;
        let held = Held {
            ticket: self.tickets,
            groups: std::mem::take(&mut self.wait),
            tells: std::mem::take(&mut self.tells),
        };
        Some(Unpersisted { batch: std::mem::take(&mut self.batch), held })
    }
}
