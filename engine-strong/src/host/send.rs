//! The sending end of snapshots: chunks on demand, out of a store snapshot, while the group goes on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use duet_proto::NodeId;
use duet_store::Store;
use tokio::time::Instant;

use super::wire::Bulk;
use crate::{
    GroupId,
    log::stored_conf,
    snapshot::{Capture, Point, SnapshotId},
};

/// Snapshots that are sent at once; each holds a store snapshot open.
const AT_ONCE: usize = 4;
/// A receiver that has asked for nothing for this long has gone.
const GIVE_UP: Duration = Duration::from_secs(10);

struct Sending {
    capture: Capture,
    due: u32,
    heard: Instant,
}

/// How a snapshot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) group: GroupId,
    pub(crate) to: NodeId,
    pub(crate) done: bool,
}

/// The snapshots on their way from here.
#[derive(Default)]
pub(crate) struct Sends {
    active: BTreeMap<(GroupId, NodeId), Sending>,
}

impl Sends {
    /// Captures the group and offers it.
    pub(crate) fn offer(
        &mut self,
        store: &Arc<dyn Store>,
        group: GroupId,
        to: NodeId,
        now: Instant,
    ) -> Result<Bulk, Ended> {
        let failed = Ended { group, to, done: false };
        self.active.remove(&(group, to));
        if self.active.len() >= AT_ONCE {
            return Err(failed);
        }
        let snapshot = store.snapshot();
        let capture = stored_conf(&*snapshot, group)
            .map_err(|error| error.to_string())
            .and_then(|conf| Capture::new(snapshot, group.namespace, group.epoch, conf).map_err(|e| e.to_string()));
        match capture {
            Ok(capture) => {
                let id = capture.header().id;
                self.active.insert((group, to), Sending { capture, due: 0, heard: now });
                Ok(Bulk::Offer { id })
            }
            Err(error) => {
                tracing::warn!(%group, %to, error, "no snapshot can be sent");
                Err(failed)
            }
        }
    }

    pub(crate) fn wanted(
        &mut self,
        from: NodeId,
        id: SnapshotId,
        point: Point,
        chunks: u32,
        now: Instant,
    ) -> Option<Bulk> {
        let group = GroupId { namespace: id.namespace, epoch: id.epoch };
        let sending = self.active.get_mut(&(group, from));
        match sending.filter(|s| s.capture.header().id == id) {
            Some(sending) => {
                let _ = sending.capture.seek(id, point);
                (sending.due, sending.heard) = (chunks.min(64), now);
                None
            }
            None => Some(Bulk::Stop { id }),
        }
    }

    pub(crate) fn ended(&mut self, from: NodeId, id: SnapshotId, done: bool) -> Option<Ended> {
        let group = GroupId { namespace: id.namespace, epoch: id.epoch };
        self.active.get(&(group, from)).filter(|s| s.capture.header().id == id)?;
        self.active.remove(&(group, from));
        Some(Ended { group, to: from, done })
    }

    pub(crate) fn forget(&mut self, group: GroupId) {
        self.active.retain(|(of, _), _| *of != group);
    }

    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Ended> {
        let gone = self.active.extract_if(.., |_, sending| now - sending.heard > GIVE_UP);
        gone.map(|((group, to), _)| Ended { group, to, done: false }).collect()
    }

    /// Whether a chunk is waited for.
    pub(crate) fn is_due(&self) -> bool {
        self.active.values().any(|s| s.due > 0)
    }

    /// One chunk of every snapshot that is waited for, if there is `room` for that many.
    pub(crate) fn chunks(&mut self, mut room: usize) -> (Vec<(NodeId, Bulk)>, Vec<Ended>) {
        let (mut chunks, mut broken) = (Vec::new(), Vec::new());
        for ((group, to), sending) in self.active.iter_mut().filter(|(_, s)| s.due > 0) {
            if room == 0 {
                break;
            }
            room -= 1;
            let id = sending.capture.header().id;
            match sending.capture.next_chunk() {
                Ok(Some((_, chunk))) => {
                    sending.due -= 1;
                    chunks.push((*to, Bulk::Chunk { id, chunk }));
                }
                Ok(None) => sending.due = 0,
                Err(error) => {
                    tracing::error!(%group, %to, %error, "a snapshot cannot be read");
                    chunks.push((*to, Bulk::Stop { id }));
                    broken.push(Ended { group: *group, to: *to, done: false });
                }
            }
        }
        for ended in &broken {
            self.active.remove(&(ended.group, ended.to));
        }
        (chunks, broken)
    }
}
