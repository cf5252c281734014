//! The engine's face: what the router holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use duet_proto::{
    Answer, Consistency, Epoch, Error, NamespaceId, NamespaceName, NamespaceStatus, NodeId, Op, Outcome, Record, Try,
};
use duet_store::{Family, Store, StoreError, layout, warm};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use xxhash_rust::xxh3::Xxh3;

use crate::machine::{self, Base, Position, Sessions, State, Verdict, get, state_key};

/// Which group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The epoch.
    pub epoch: Epoch,
}

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.epoch)
    }
}

/// A replica to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The epoch.
    pub epoch: Epoch,
    /// The namespace's name.
    pub name: NamespaceName,
    /// The voters that the group is founded with, if this node is one of its founders. Empty if the group exists
    /// already: the replica then waits until the leader takes it in ([`Handle::set_members`]) and sends it a
    /// snapshot. A replica that was removed and comes back *joins*: as a founder it would vote with an empty log.
    pub voters: BTreeSet<NodeId>,
    /// The learners that the group is founded with.
    pub learners: BTreeSet<NodeId>,
    /// For a founder: the data in place that the epoch begins with; nothing otherwise.
    pub base: Option<Base>,
}

impl GroupSpec {
    /// Which group.
    #[must_use]
    pub fn id(&self) -> GroupId {
        GroupId { namespace: self.namespace, epoch: self.epoch }
    }
}

/// Why a group could not be created, removed or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// There is no such group on this node.
    #[error("this node holds no replica of group {0}")]
    Unknown(GroupId),
    /// Only the leader can.
    #[error("this replica does not lead the group{}", .leader.map_or(String::new(), |l| format!("; node {l} does")))]
    NotLeader {
        /// The leader, if it is known.
        leader: Option<NodeId>,
    },
    /// A change is under way; ask again.
    #[error("the group is changing already: {why}")]
    Busy {
        /// What it waits for.
        why: String,
    },
    /// It cannot be.
    #[error("{why}")]
    Invalid {
        /// Why not.
        why: String,
    },
    /// The replica has failed.
    #[error("the replica has failed: {why}")]
    Failed {
        /// Why.
        why: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// How far a change of members has come. Asking again is how it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembersChange {
    /// The members are the ones asked for.
    Done,
    /// New members are catching up, or a configuration is on its way through the log.
    Underway,
}

/// An operation on a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub op: Op,
    /// What makes a retry of a write safe.
    pub attempt: Option<Try>,
    /// How a read is served.
    pub consistency: Consistency,
}

impl Call {
    /// A linearizable read, or a write that is tried once.
    #[must_use]
    pub fn once(op: Op) -> Call {
        Call { op, attempt: None, consistency: Consistency::Linearizable }
    }
}

/// What goes through a group's log beside what clients write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Ends the epoch: writes after it are refused with [`Error::Changing`], and `next` is to follow.
    Seal {
        /// The epoch that is to follow.
        next: Epoch,
    },
    /// Writes of an earlier epoch, merged by their stamps. Only where they are owed.
    Late {
        /// Keys and records.
        records: Vec<(Bytes, Record)>,
    },
    /// Nothing late is owed any more; drops some of the tombstones. Again until none is left.
    Settle,
}

/// What an exactly-once table comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// What lies below is forgotten.
    pub floor: Position,
    /// A hash of all rows.
    pub digest: u128,
}

/// What is remembered of a write whose epoch is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recall {
    /// It ran, and this was the answer.
    Ran(Box<Result<Outcome, Error>>),
    /// It has not run, and never will.
    Never,
    /// That is not known here.
    Unknown,
}

/// What is known at once of a group on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Which.
    pub id: GroupId,
    /// The namespace's name.
    pub name: NamespaceName,
    /// The leader, if it is known.
    pub leader: Option<NodeId>,
    /// The voters, as far as this replica has applied; outgoing ones too, during a change.
    pub voters: BTreeSet<NodeId>,
    /// The learners.
    pub learners: BTreeSet<NodeId>,
    /// Why it has failed, if it has.
    pub failed: Option<String>,
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Groups held.
    pub groups: u64,
    /// Groups that this node leads.
    pub leading: u64,
    /// Groups asleep.
    pub quiet: u64,
    /// Groups that have failed.
    pub failed: u64,
    /// Writes proposed.
    pub proposed: u64,
    /// Writes proposed again after a loss or a change of leader.
    pub reproposed: u64,
    /// Entries applied.
    pub applied: u64,
    /// Entries appended.
    pub appended: u64,
    /// Rounds of ReadIndex asked for.
    pub read_rounds: u64,
    /// Reads answered.
    pub reads: u64,
    /// Requests answered with `NoQuorum`.
    pub no_quorum: u64,
    /// Writes answered with `OutcomeUnknown`.
    pub unknown: u64,
    /// Elections that this node has started.
    pub elections: u64,
    /// Snapshots sent to their end.
    pub snapshots_sent: u64,
    /// Snapshots installed.
    pub snapshots_installed: u64,
    /// Peer messages refused: from non-members, for unknown groups, impossible indices.
    pub refused: u64,
    /// Frames sent to peers.
    pub frames: u64,
    /// Steps of the driver that had something to write.
    pub steps: u64,
    /// Commands that had come while the driver's latest step was under way.
    pub waiting: u64,
}

/// Wakes when a namespace's data has changed here. Changes that come before it is asked are not lost, but many may
/// be one wake.
#[derive(Debug)]
pub struct Changes {
    pub(crate) wake: mpsc::Receiver<()>,
}

impl Changes {
    /// Waits for a change; `None` when the engine has stopped.
    pub async fn changed(&mut self) -> Option<()> {
        self.wake.recv().await
    }
}

#[derive(Debug)]
pub(crate) enum Command {
    Call { id: GroupId, call: Call, deadline: Instant, reply: oneshot::Sender<Result<Answer, Error>> },
    Propose { id: GroupId, proposal: Proposal, deadline: Instant, reply: oneshot::Sender<Result<Answer, Error>> },
    Create { spec: GroupSpec, reply: oneshot::Sender<Result<(), GroupError>> },
    Remove { id: GroupId, keep_data: bool, reply: oneshot::Sender<Result<(), GroupError>> },
    SetMembers { id: GroupId, voters: BTreeSet<NodeId>, reply: oneshot::Sender<Result<MembersChange, GroupError>> },
    Campaign { id: GroupId, reply: oneshot::Sender<Result<(), GroupError>> },
    Transfer { id: GroupId, to: NodeId, reply: oneshot::Sender<Result<(), GroupError>> },
    Subscribe { namespace: NamespaceId, wake: mpsc::Sender<()> },
    Statuses { reply: oneshot::Sender<Vec<NamespaceStatus>> },
    Shutdown { reply: oneshot::Sender<()> },
}

/// What the driver publishes for everyone to look at without asking it.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub(crate) groups: BTreeMap<GroupId, GroupInfo>,
    pub(crate) metrics: Metrics,
}

/// The way to the engine. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) node: NodeId,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) board: Arc<Mutex<Board>>,
    pub(crate) store: Arc<dyn Store>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Handle {
    /// Reads or writes. Answers by `deadline` whatever happens.
    ///
    /// # Errors
    /// `NotHere` without members if this node holds no replica of the group; otherwise as [`Error`] says.
    pub async fn call(
        &self,
        namespace: NamespaceId,
        epoch: Epoch,
        call: Call,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let id = GroupId { namespace, epoch };
        let write = call.op.is_write();
        // The driver reads where everybody waits for it.
        warm(&self.store, namespace, call.op.keys(), deadline).await;
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Call { id, call, deadline, reply }).is_err() {
            return Err(Error::Unavailable { node: self.node, why: "the engine has stopped".into() });
        }
        // The driver answers everything; if it goes, a write may be on its way.
        answer.await.unwrap_or_else(|_| {
            let why = "the node stopped while the request was under way".to_owned();
            Err(if write { Error::OutcomeUnknown { why } } else { Error::Unavailable { node: self.node, why } })
        })
    }

    /// Creates a replica; does nothing if it exists. Durable when it returns.
    ///
    /// # Errors
    /// If its rows cannot be written, or there is a replica of another epoch.
    pub async fn create(&self, spec: GroupSpec) -> Result<(), GroupError> {
        self.ask(|reply| Command::Create { spec, reply }).await
    }

    /// Removes a replica with its log and its data; does nothing if there is none. Durable when it returns.
    ///
    /// # Errors
    /// If that cannot be written.
    pub async fn remove(&self, namespace: NamespaceId, epoch: Epoch) -> Result<(), GroupError> {
        self.ask(|reply| Command::Remove { id: GroupId { namespace, epoch }, keep_data: false, reply }).await
    }

    /// Removes a replica with its log and leaves its data and its exactly-once table in place, for the epoch that
    /// follows; does nothing if there is none. Durable when it returns.
    ///
    /// # Errors
    /// If that cannot be written.
    pub async fn retire(&self, namespace: NamespaceId, epoch: Epoch) -> Result<(), GroupError> {
        self.ask(|reply| Command::Remove { id: GroupId { namespace, epoch }, keep_data: true, reply }).await
    }

    /// Proposes what no client may, and waits until it is applied here. What is lost on its way is proposed again:
    /// each of these can be done twice without harm.
    ///
    /// # Errors
    /// As [`Handle::call`] for a write.
    pub async fn propose(
        &self,
        namespace: NamespaceId,
        epoch: Epoch,
        proposal: Proposal,
        deadline: Instant,
    ) -> Result<(), Error> {
        let (id, (reply, answer)) = (GroupId { namespace, epoch }, oneshot::channel());
        if self.commands.send(Command::Propose { id, proposal, deadline, reply }).is_err() {
            return Err(Error::Unavailable { node: self.node, why: "the engine has stopped".into() });
        }
        let stopped = || Err(Error::OutcomeUnknown { why: "the node stopped while it was under way".into() });
        answer.await.unwrap_or_else(|_| stopped()).map(drop)
    }

    /// What is applied here of a namespace: where an epoch that is sealed has ended, and with what. `None` if this
    /// node holds no state of that epoch. Does not wait for the driver.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn state(&self, namespace: NamespaceId, epoch: Epoch) -> Result<Option<State>, StoreError> {
        let state = get::<State>(&*self.store, &state_key(namespace))?;
        Ok(state.filter(|state| state.applied.epoch == epoch))
    }

    /// What the exactly-once table that is in place comes to: equal on two members if and only if both would decide
    /// alike on every retry. `None` if there has never been one here. Reads the whole table.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn answers(&self, namespace: NamespaceId) -> Result<Option<Answers>, StoreError> {
        let snapshot = self.store.snapshot();
        let view: &dyn duet_store::View = &*snapshot;
        let Some(state) = get::<State>(view, &state_key(namespace))? else { return Ok(None) };
        let mut hash = Xxh3::new();
        for row in machine::answers(view, namespace)? {
            let (key, value) = row?;
            hash.update(&key);
            hash.update(&value);
        }
        Ok(Some(Answers { floor: state.floor, digest: hash.digest128() }))
    }

    /// What the table of an epoch says of a write whose own epoch is over: it was first tried before this one, or this
    /// one has ended here. Reads the whole table: it is for writes whose outcome is not known and whose epoch is over,
    /// which are few.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn recall(&self, namespace: NamespaceId, epoch: Epoch, attempt: &Try) -> Result<Recall, StoreError> {
        let snapshot = self.store.snapshot();
        let view: &dyn duet_store::View = &*snapshot;
        let Some(state) = get::<State>(view, &state_key(namespace))? else { return Ok(Recall::Unknown) };
        let over = attempt.epoch < epoch || state.sealed.is_some();
        if state.applied.epoch != epoch || !over {
            return Ok(Recall::Unknown);
        }
        Ok(match Sessions::open(view, namespace)?.check(attempt, state.floor) {
            Verdict::Fresh => Recall::Never,
            Verdict::Refused(_) => Recall::Unknown,
            Verdict::Ran(position) => {
                let answer = machine::recall(view, namespace, position, attempt)?;
                answer.map_or(Recall::Unknown, |answer| Recall::Ran(Box::new(answer)))
            }
        })
    }

    /// Takes the next step towards these voters: new ones are taken in as learners first, and once they have caught
    /// up one joint change makes the set as asked. The leader only; ask until it is [`MembersChange::Done`].
    ///
    /// # Errors
    /// If this replica does not lead, or the set is empty.
    pub async fn set_members(
        &self,
        namespace: NamespaceId,
        epoch: Epoch,
        voters: BTreeSet<NodeId>,
    ) -> Result<MembersChange, GroupError> {
        self.ask(|reply| Command::SetMembers { id: GroupId { namespace, epoch }, voters, reply }).await
    }

    /// Starts an election at once, unless the votes of one are being counted.
    ///
    /// # Errors
    /// If there is no such replica here.
    pub async fn campaign(&self, namespace: NamespaceId, epoch: Epoch) -> Result<(), GroupError> {
        self.ask(|reply| Command::Campaign { id: GroupId { namespace, epoch }, reply }).await
    }

    /// Asks the leader, which must be here, to hand over to `to`. Returns when it has begun.
    ///
    /// # Errors
    /// If this replica does not lead.
    pub async fn transfer(&self, namespace: NamespaceId, epoch: Epoch, to: NodeId) -> Result<(), GroupError> {
        self.ask(|reply| Command::Transfer { id: GroupId { namespace, epoch }, to, reply }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, GroupError>>) -> Command,
    ) -> Result<T, GroupError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| GroupError::Stopped)?;
        answer.await.unwrap_or(Err(GroupError::Stopped))
    }

    /// The state of one replica, with `phase` as `Stable`: the catalog knows better.
    pub async fn status(&self, namespace: NamespaceId) -> Option<NamespaceStatus> {
        self.statuses().await.into_iter().find(|s| s.id == namespace)
    }

    /// The state of every replica, in order of namespace.
    pub async fn statuses(&self) -> Vec<NamespaceStatus> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Statuses { reply }).is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// What is known at once of every group, in order. Does not wait for the driver.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupInfo> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).groups.values().cloned().collect()
    }

    /// What is known at once of one group.
    #[must_use]
    pub fn group(&self, namespace: NamespaceId, epoch: Epoch) -> Option<GroupInfo> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.groups.get(&GroupId { namespace, epoch }).cloned()
    }

    /// Figures, at most one tick old. Does not wait for the driver.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).metrics
    }

    /// Wakes the caller whenever a namespace's data changes on this node, be it by the log or by a snapshot; it may
    /// be asked for before there is a replica. Read with [`Handle::records`] after every wake, and once before.
    #[must_use]
    pub fn subscribe(&self, namespace: NamespaceId) -> Changes {
        let (sender, wake) = mpsc::channel(1);
        let _ = self.commands.send(Command::Subscribe { namespace, wake: sender });
        Changes { wake }
    }

    /// Every live record of a namespace as applied here, and the position they are at, from one moment. For small
    /// namespaces (the catalog's). Does not wait for the driver; position 0 if there is no replica.
    ///
    /// # Errors
    /// If the store cannot be read, or a record is damaged.
    pub fn records(&self, namespace: NamespaceId) -> Result<(u64, Vec<(Bytes, Record)>), StoreError> {
        let snapshot = self.store.snapshot();
        let view: &dyn duet_store::View = &*snapshot;
        let Some(state) = get::<State>(view, &state_key(namespace))? else { return Ok((0, Vec::new())) };
        let (from, to) = layout::prefix_range(layout::namespace_prefix(namespace));
        let mut records = Vec::new();
        for row in view.scan(Family::Data, &from, Some(&to))? {
            let (row, bytes) = row?;
            let (_, key) = layout::split_data_key(&row)?;
            let record = Record::decode(&key, bytes).map_err(|e| StoreError::corrupt(e.to_string()))?;
            if record.live().is_some() {
                records.push((key, record));
            }
        }
        Ok((state.applied.index, records))
    }

    /// Hands over the leaderships held here, answers what waits, and ends the driver.
    pub async fn shutdown(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Shutdown { reply }).is_ok() {
            let _ = done.await;
        }
    }
}
