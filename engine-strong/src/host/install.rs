//! The receiving end of a snapshot.
//!
//! Chunks are staged while the old state serves. When all have come, the rows are moved into place, a little in every
//! step, so that the node's other groups go on; this group hears nothing meanwhile, so that Raft's view of it cannot
//! change under the move. Only then does Raft learn of the snapshot, and its new log begins in the same batch as the
//! last of the rows.

use std::time::Duration;

use duet_proto::NodeId;
use duet_store::{Batch, StoreError};
use raft::eraftpb::{ConfState, MessageType, Snapshot};
use tokio::time::Instant;

use super::{
    group::{Cx, Fault, Group, typed},
    wire::Bulk,
};
use crate::{
    log::{Log, Place, decode_conf},
    machine::Machine,
    snapshot::{Installer, Phase, Point, SnapshotError, SnapshotId},
};

/// Chunks asked for at once.
const WINDOW: u32 = 8;
/// What did not come within this is asked for again.
const PATIENCE: Duration = Duration::from_secs(1);
/// A sender that has been silent for this long is given up. What is staged stays, for another sender.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Steps of the move (of about 1 MiB) in one step of the host.
const MOVES: usize = 4;

/// A snapshot on its way here.
pub(crate) struct Receiving {
    id: SnapshotId,
    from: NodeId,
    installer: Option<Installer>,
    /// Chunks that were asked for and have not come.
    due: u32,
    asked: Instant,
    heard: Instant,
    stage: Stage,
}

enum Stage {
    Chunks,
    /// Everything is staged; the rows are moved as soon as there is a leader to install it for.
    Staged,
    /// Nothing is served, nothing is heard.
    Moving,
    /// Raft has taken it; it counts once this write is durable.
    Placed {
        rest: Batch,
        conf: ConfState,
        ticket: Option<u64>,
    },
}

impl Receiving {
    fn want(&mut self, now: Instant) -> Bulk {
        (self.due, self.asked) = (WINDOW, now);
        let point = match self.installer.as_ref().map(Installer::phase) {
            Some(Phase::Receiving(point)) => point.clone(),
            _ => Point::START,
        };
        Bulk::Want { id: self.id, point, chunks: WINDOW }
    }
}

impl Group {
    /// Whether rows are being moved: the group must then be left alone.
    pub(crate) fn is_moving(&self) -> bool {
        self.receiving.as_ref().is_some_and(|r| matches!(r.stage, Stage::Moving))
    }

    /// Finishes, when a node starts, a move that was cut off, and drops a stage that was not complete.
    pub(crate) fn finish_move(store: &dyn duet_store::Store, id: crate::GroupId, log: &mut Log) -> Result<(), Fault> {
        let Some(mut installer) = Installer::resume(store, id.namespace)? else { return Ok(()) };
        if !matches!(installer.phase(), Phase::Moving(_)) {
            let mut batch = Batch::new();
            installer.abandon(&mut batch).map_err(fault)?;
            return Ok(store.write(batch)?);
        }
        loop {
            let mut batch = Batch::new();
            let done = installer.advance(store, &mut batch).map_err(fault)?;
            if done {
                let SnapshotId { index, term, .. } = installer.id();
                let conf = decode_conf(&installer.header().host)?;
                log.reset(Place { index, term }, conf, &mut batch);
            }
            store.write(batch)?;
            if done {
                return Ok(store.sync()?);
            }
        }
    }

    pub(crate) fn offered(&mut self, from: NodeId, id: SnapshotId, cx: &mut Cx<'_>) {
        if id.index <= self.raw.raft.raft_log.committed {
            cx.bulk.push((from, Bulk::Done { id }));
            return;
        }
        if let Some(current) = &mut self.receiving {
            if !matches!(current.stage, Stage::Chunks) {
                return;
            }
            if current.id == id {
                // The same content, whoever sends it.
                (current.from, current.heard) = (from, cx.now);
                cx.bulk.push((from, current.want(cx.now)));
                return;
            }
        }
        let now = cx.now;
        let mut receiving =
            Receiving { id, from, installer: None, due: 0, asked: now, heard: now, stage: Stage::Chunks };
        cx.bulk.push((from, receiving.want(now)));
        self.receiving = Some(receiving);
    }

    pub(crate) fn chunk(&mut self, from: NodeId, id: SnapshotId, chunk: &[u8], cx: &mut Cx<'_>) -> Result<(), Fault> {
        let group = self.machine_group();
        let Some(receiving) = self.receiving.as_mut().filter(|r| r.id == id && r.from == from) else {
            cx.bulk.push((from, Bulk::Stop { id }));
            return Ok(());
        };
        if !matches!(receiving.stage, Stage::Chunks) {
            return Ok(());
        }
        let mut batch = Batch::new();
        let taken = match &mut receiving.installer {
            None => {
                Installer::begin(&group, chunk, &mut batch).map(|installer| receiving.installer = Some(installer))
            }
            Some(installer) => installer.accept(chunk, &mut batch).map(|_| ()),
        };
        match taken {
            Ok(()) => {
                cx.store.write(batch)?;
                receiving.heard = cx.now;
                receiving.due = receiving.due.saturating_sub(1);
                if receiving.installer.as_ref().is_some_and(|i| *i.phase() == Phase::Staged) {
                    receiving.stage = Stage::Staged;
                } else if receiving.due == 0 {
                    cx.bulk.push((from, receiving.want(cx.now)));
                }
            }
            // A copy, or one that came too early; what is missing is asked for again.
            Err(SnapshotError::OutOfOrder { .. } | SnapshotError::Damaged { .. }) => {}
            Err(SnapshotError::Store(error)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(group = %self.id, %from, %error, "a snapshot was refused");
                cx.bulk.push((from, Bulk::Stop { id }));
                self.drop_receiving(cx)?;
            }
        }
        Ok(())
    }

    pub(crate) fn stopped_by_sender(&mut self, id: SnapshotId) {
        self.receiving.take_if(|r| r.id == id && matches!(r.stage, Stage::Chunks));
    }

    pub(super) fn tick_receiving(&mut self, cx: &mut Cx<'_>) {
        let Some(receiving) = self.receiving.as_mut().filter(|r| matches!(r.stage, Stage::Chunks)) else { return };
        if cx.now - receiving.heard > GIVE_UP {
            self.receiving = None;
        } else if cx.now - receiving.asked > PATIENCE && cx.now - receiving.heard > PATIENCE {
            let want = receiving.want(cx.now);
            cx.bulk.push((receiving.from, want));
        }
    }

    fn drop_receiving(&mut self, cx: &mut Cx<'_>) -> Result<(), Fault> {
        if let Some(installer) = self.receiving.take().and_then(|r| r.installer) {
            let mut batch = Batch::new();
            installer.abandon(&mut batch).map_err(fault)?;
            cx.store.write(batch)?;
        }
        Ok(())
    }

    /// Goes on with a snapshot that has arrived.
    pub(super) fn advance_install(&mut self, cx: &mut Cx<'_>) -> Result<(), Fault> {
        let Some(receiving) = &mut self.receiving else { return Ok(()) };
        match receiving.stage {
            Stage::Chunks | Stage::Placed { .. } => return Ok(()),
            Stage::Staged => {
                let id = receiving.id;
                let raft = &self.raw.raft;
                let stale = id.index <= raft.raft_log.committed || raft.raft_log.match_term(id.index, id.term);
                if stale || raft.state == raft::StateRole::Leader {
                    cx.bulk.push((receiving.from, Bulk::Done { id }));
                    return self.drop_receiving(cx);
                }
                if raft.leader_id == 0 || !self.is_settled() {
                    return Ok(());
                }
                self.machine = None;
                if let Some(receiving) = &mut self.receiving {
                    receiving.stage = Stage::Moving;
                }
            }
            Stage::Moving => {}
        }
        for _ in 0..MOVES {
            if self.move_rows(cx)? {
                return self.tell_raft();
            }
        }
        Ok(())
    }

    /// One step of the move; whether the state is complete but for the last batch.
    fn move_rows(&mut self, cx: &mut Cx<'_>) -> Result<bool, Fault> {
        let Some(receiving) = &mut self.receiving else { return Ok(false) };
        let Some(installer) = &mut receiving.installer else { return Ok(false) };
        let mut batch = Batch::new();
        if !installer.advance(&**cx.store, &mut batch).map_err(fault)? {
            cx.store.write(batch)?;
            return Ok(false);
        }
        let conf = decode_conf(&installer.header().host)?;
        receiving.stage = Stage::Placed { rest: batch, conf, ticket: None };
        Ok(true)
    }

    /// What is installed was committed, whoever sent it: it is given to Raft as the current leader's.
    fn tell_raft(&mut self) -> Result<(), Fault> {
        let Some(Receiving { id, stage: Stage::Placed { conf, .. }, .. }) = &self.receiving else { return Ok(()) };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term, metadata.conf_state) = (id.index, id.term, Some(conf.clone()));
        let mut message = typed(MessageType::MsgSnapshot);
        (message.from, message.to) = (self.raw.raft.leader_id, self.raw.raft.id);
        (message.term, message.snapshot) = (self.raw.raft.term, Some(snapshot));
        self.raw.step(message)?;
        if self.raw.snap().is_none() {
            return Err(Fault("Raft refused a snapshot that was in place".into()));
        }
        Ok(())
    }

    /// Raft's `Ready` holds the snapshot: the last of its rows, and the log that begins after it.
    pub(super) fn put_in_place(&mut self, place: Place, number: u64, batch: &mut Batch) -> Result<(), Fault> {
        let Some(Receiving { stage: Stage::Placed { rest, conf, ticket }, .. }) = &mut self.receiving else {
            return Err(Fault("a snapshot out of nowhere".into()));
        };
        *ticket = Some(number);
        batch.append(std::mem::take(rest));
        self.raw.raft.r.raft_log.store.reset(place, conf.clone(), batch);
        self.news = true;
        Ok(())
    }

    /// The snapshot's last batch is durable.
    pub(super) fn finish_install(&mut self, durable: u64, cx: &mut Cx<'_>) -> Result<(), Fault> {
        let placed = self
            .receiving
            .take_if(|r| matches!(&r.stage, Stage::Placed { ticket: Some(ticket), .. } if *ticket <= durable));
        let Some(Receiving { id, from, .. }) = placed else { return Ok(()) };
        self.machine = Machine::open(&**cx.store, self.machine_group())?;
        let Some(machine) = &self.machine else { return Err(Fault("the snapshot left no state".into())) };
        self.raw.advance_apply_to(machine.applied());
        cx.metrics.snapshots_installed += 1;
        cx.changed.push(self.id);
        cx.bulk.push((from, Bulk::Done { id }));
        Ok(())
    }
}

fn fault(error: SnapshotError) -> Fault {
    match error {
        SnapshotError::Store(error) => StoreError::into(error),
        other => Fault(other.to_string()),
    }
}
