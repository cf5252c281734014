//! The engine's face: what the router holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use duet_proto::{Answer, Epoch, Error, Mode, NamespaceId, NamespaceName, NamespaceStatus, NodeId, Op, Stamp, Token};
use duet_store::{Committer, DiskGuard, Store, StoreError, warm};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    Base, EngineConfig, Frontier, Members, Order, Start,
    gossip::{NodeWord, SpaceWord},
    window::{Look, Window},
};

/// Which replica: a namespace in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The epoch.
    pub epoch: Epoch,
}

impl fmt::Display for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.epoch)
    }
}

/// A replica to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceSpec {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The epoch.
    pub epoch: Epoch,
    /// The namespace's name.
    pub name: NamespaceName,
    /// Whether it comes into being together with the epoch, or later.
    pub start: Start,
    /// The members, as the catalog has them.
    pub members: Members,
    /// What the epoch begins with, unless that is nothing. A founder takes over the records that are in place: they must
    /// come to this.
    pub base: Option<Base>,
}

impl SpaceSpec {
    /// Which replica.
    #[must_use]
    pub fn id(&self) -> SpaceId {
        SpaceId { namespace: self.namespace, epoch: self.epoch }
    }
}

/// Why a replica could not be created, changed or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// There is no such replica on this node.
    #[error("this node holds no replica of {0}")]
    Unknown(SpaceId),
    /// Something is under way; ask again.
    #[error("the replica is changing already: {why}")]
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

/// An operation on a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub op: Op,
    /// What the client has seen.
    pub token: Option<Token>,
}

/// What is known at once of a replica on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Which.
    pub id: SpaceId,
    /// The namespace's name.
    pub name: NamespaceName,
    /// The version of the members that it durably goes by.
    pub version: u64,
    /// What it held durably when it moved to that version (rule 8).
    pub moved: Frontier,
    /// Whether it has received its first copy.
    pub whole: bool,
    /// Why it has failed, if it has.
    pub failed: Option<String>,
}

/// What a change of members (rule 8), or the end of an epoch (rule 9), needs to know of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The version of the members that it durably goes by.
    pub version: u64,
    /// What it held durably when it moved to that version.
    pub moved: Frontier,
    /// What it durably holds now.
    pub frontier: Frontier,
    /// Whether it has received its first copy.
    pub whole: bool,
    /// The latest reports of the other members: each one's version, and what it durably held in that version.
    pub others: BTreeMap<NodeId, (u64, Frontier)>,
    /// The attempt to end the epoch for which it is durably fenced.
    pub fence: Option<u64>,
    /// The attempt in which it has come to hold, durably, what all members of the base held.
    pub converged: Option<u64>,
    /// Whether it lacks nothing that it knows of but what was written just now: to end the epoch would be quick. It
    /// promises nothing.
    pub near: bool,
    /// Whether it holds nothing beyond its frontier.
    pub clean: bool,
    /// What its records come to. `last` covers what the frontier claims, so it is equal where frontiers and records are.
    pub base: Base,
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Replicas held.
    pub spaces: u64,
    /// Replicas that have failed.
    pub failed: u64,
    /// Replicas with something open: a write that waits, a session, a member that lacks something.
    pub open: u64,
    /// Writes taken.
    pub writes: u64,
    /// Writes answered with `NotEnoughCopies`.
    pub not_enough_copies: u64,
    /// Writes refused because a clock is out of line.
    pub clock_skew: u64,
    /// Reads answered, refusals included.
    pub reads: u64,
    /// Reads that had to wait for what their token has seen.
    pub token_waits: u64,
    /// Reads that waited for that in vain.
    pub token_not_covered: u64,
    /// Steps of replicas.
    pub steps: u64,
    /// Steps that had something to write.
    pub commits: u64,
    /// Frames sent to peers.
    pub frames_out: u64,
    /// Bytes in them.
    pub bytes_out: u64,
    /// Frames received from peers.
    pub frames_in: u64,
    /// Bytes in them.
    pub bytes_in: u64,
    /// Frames that found the way to the peers full, and were dropped. What they said is found missing and sent again.
    pub dropped: u64,
    /// Frames and messages of peers that could not be read.
    pub malformed: u64,
    /// Messages of peers for replicas that this node does not hold.
    pub unknown: u64,
    /// Messages of peers that bear data, ignored because the disk is nearly full.
    pub disk_refused: u64,
    /// Gossip's task was started again after it had died.
    pub gossip_restarts: u64,
    /// Messages of gossip that could not be read.
    pub gossip_malformed: u64,
    /// Commands that had come while the driver's latest step was under way.
    pub waiting: u64,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, SpaceError>>;

pub(crate) enum Command {
    Write { id: SpaceId, call: Call, deadline: Instant, reply: oneshot::Sender<Result<Answer, Error>> },
    Create { spec: SpaceSpec, reply: Reply<()> },
    SetMembers { id: SpaceId, members: Members, reply: Reply<()> },
    Remove { id: SpaceId, reply: Reply<()> },
    Retire { id: SpaceId, reply: Reply<()> },
    Order { id: SpaceId, order: Order, reply: Reply<Option<Stamp>> },
    Recount { id: SpaceId, reply: Reply<()> },
    Damaged { id: SpaceId, key: Bytes },
    Standing { id: SpaceId, reply: oneshot::Sender<Option<Standing>> },
    Statuses { reply: oneshot::Sender<Vec<NamespaceStatus>> },
    Shutdown { reply: oneshot::Sender<()> },
}

/// What everyone may look at without asking the driver.
#[derive(Default)]
pub(crate) struct Board {
    spaces: Mutex<BTreeMap<SpaceId, Arc<Window>>>,
    metrics: Mutex<Metrics>,
    pub(crate) counts: Counts,
    alive: Mutex<BTreeMap<NodeId, NodeWord>>,
    words: Mutex<BTreeMap<NamespaceId, SpaceWord>>,
    peers: Mutex<BTreeSet<NodeId>>,
}

/// Figures that do not pass the driver.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) reads: AtomicU64,
    pub(crate) token_waits: AtomicU64,
    pub(crate) token_not_covered: AtomicU64,
    pub(crate) gossip_restarts: AtomicU64,
    pub(crate) gossip_malformed: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A panic elsewhere leaves what these guard whole: every change of it is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    pub(crate) fn spaces(&self) -> MutexGuard<'_, BTreeMap<SpaceId, Arc<Window>>> {
        lock(&self.spaces)
    }

    pub(crate) fn metrics(&self) -> MutexGuard<'_, Metrics> {
        lock(&self.metrics)
    }

    /// What gossip says of the others.
    pub(crate) fn alive(&self) -> MutexGuard<'_, BTreeMap<NodeId, NodeWord>> {
        lock(&self.alive)
    }

    /// What gossip is to say of this node.
    pub(crate) fn words(&self) -> MutexGuard<'_, BTreeMap<NamespaceId, SpaceWord>> {
        lock(&self.words)
    }

    /// Who there is to gossip with.
    pub(crate) fn peers(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        lock(&self.peers)
    }
}

/// The way to the engine. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) node: NodeId,
    pub(crate) value_max: usize,
    pub(crate) token_wait: Duration,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) board: Arc<Board>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) disk: DiskGuard,
    pub(crate) committer: Committer,
    /// Who changes rows that outlive replicas does so from what the one before has left.
    pub(crate) tidy: Arc<tokio::sync::Mutex<()>>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Handle {
    pub(crate) fn new(
        config: &EngineConfig,
        commands: mpsc::UnboundedSender<Command>,
        board: Arc<Board>,
        store: Arc<dyn Store>,
        committer: Committer,
        disk: DiskGuard,
    ) -> Handle {
        let (node, value_max, token_wait) = (config.replica.node, config.value_max, config.token_wait);
        Handle { node, value_max, token_wait, commands, board, store, disk, committer, tidy: Arc::default() }
    }

    /// Reads or writes. Answers by `deadline` whatever happens.
    ///
    /// A read is served here and now from what is durable. With a token it sees at least what the token has seen; if
    /// that has not arrived yet it waits, until the deadline or [`EngineConfig::token_wait`], whichever is sooner.
    ///
    /// # Errors
    /// `NotHere` without members if this node holds no replica of the namespace in that epoch; `TokenNotCovered`;
    /// `NotEnoughCopies` if too few members have synced a write in time; `Unsupported` for conditional writes;
    /// `Changing` for a write when the epoch is about to end; `ClockSkew`, `DiskFull`, `EpochChanged` for a cursor of
    /// another epoch; otherwise as [`Error`] says.
    pub async fn call(
        &self,
        namespace: NamespaceId,
        epoch: Epoch,
        call: Call,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let id = SpaceId { namespace, epoch };
        let window = self.board.spaces().get(&id).cloned();
        let window = window.ok_or(Error::NotHere { members: Vec::new() })?;
        call.op.validate(self.value_max)?;
        // A step reads what it replaces, and others wait for it; a get would keep its thread waiting.
        warm(&self.store, namespace, call.op.keys(), deadline).await;
        if call.op.is_write() {
            self.write(id, call, deadline).await
        } else {
            let answer = self.read(&window, &call, deadline).await;
            let counts = &self.board.counts;
            count(&counts.reads);
            if matches!(answer, Err(Error::TokenNotCovered { .. })) {
                count(&counts.token_not_covered);
            }
            answer
        }
    }

    async fn write(&self, id: SpaceId, call: Call, deadline: Instant) -> Result<Answer, Error> {
        if call.op.is_conditional() {
            let why = "its members take writes without asking each other, so none can know that a compare holds; \
                       conditional writes need a strong namespace";
            return Err(Error::Unsupported { mode: Mode::Eventual, why: why.into() });
        }
        self.disk.check().map_err(|full| full.at(self.node))?;
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Write { id, call, deadline, reply }).is_err() {
            return Err(self.stopped());
        }
        let why = match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(_)) => "the node stopped while the write was under way",
            Err(_) => "the disk has not taken the write in time",
        };
        Err(Error::OutcomeUnknown { why: why.into() })
    }

    async fn read(&self, window: &Window, call: &Call, deadline: Instant) -> Result<Answer, Error> {
        let deadline = deadline.min(Instant::now() + self.token_wait);
        let mut waited = false;
        loop {
            // Before the look, so that what happens after it is not missed.
            let news = window.news();
            let error = match self.look(window, call)? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !waited {
                waited = true;
                count(&self.board.counts.token_waits);
            }
            if tokio::time::timeout_at(deadline, news).await.is_err() {
                return Err(error);
            }
        }
    }

    /// One look at what is durable. The inner error is one that time may heal.
    fn look(&self, window: &Window, call: &Call) -> Result<Result<Answer, Error>, Error> {
        let look = window.look(&*self.store);
        let Look { reader, view } = look.map_err(|why| Error::Unavailable { node: self.node, why })?;
        let id = reader.id;
        if let Op::Scan { cursor: Some(cursor), .. } = &call.op
            && cursor.epoch != id.epoch
        {
            let namespace = window.name().clone();
            return Err(Error::EpochChanged { namespace, epoch: id.epoch, mode: Mode::Eventual });
        }
        let mut damaged = None;
        let answer = reader.read(&*view, &call.op, call.token.as_ref(), &mut damaged);
        if let Some(key) = damaged {
            // A peer's copy of the record is asked for.
            let _ = self.commands.send(Command::Damaged { id, key });
        }
        let same_epoch = call.token.as_ref().is_some_and(|token| token.epoch == id.epoch);
        match answer {
            Err(error @ Error::TokenNotCovered { .. }) if same_epoch => Ok(Err(error)),
            answer => answer.map(Ok),
        }
    }

    fn stopped(&self) -> Error {
        Error::Unavailable { node: self.node, why: "the engine has stopped".into() }
    }

    /// Creates a replica; does nothing if it exists. Durable when it returns.
    ///
    /// # Errors
    /// If its rows cannot be written, or there is a replica of another epoch.
    pub async fn create(&self, spec: SpaceSpec) -> Result<(), SpaceError> {
        self.ask(|reply| Command::Create { spec, reply }).await
    }

    /// Moves a replica to a later version of the members; an older one is ignored. Durable when it returns: what the
    /// replica held at that moment is then in [`SpaceInfo::moved`].
    ///
    /// # Errors
    /// If there is no such replica, or it has failed.
    pub async fn set_members(&self, id: SpaceId, members: Members) -> Result<(), SpaceError> {
        self.ask(|reply| Command::SetMembers { id, members, reply }).await
    }

    /// Removes a replica with its data; does nothing if there is none. Durable when it returns. It costs the same
    /// whatever it holds, and is done entirely or not at all.
    ///
    /// # Errors
    /// If that cannot be written.
    pub async fn remove(&self, id: SpaceId) -> Result<(), SpaceError> {
        self.ask(|reply| Command::Remove { id, reply }).await
    }

    /// Reads every record of a replica: those that cannot be read are asked of the others, and if the digest or the
    /// counts are not what the records come to, they are made anew. Returns when all has been read; what was found
    /// damaged is replaced later, as the counters of [`Handle::statuses`] tell. A replica that is fenced is left alone:
    /// its records may be those of the next epoch.
    ///
    /// # Errors
    /// If there is no such replica, it has failed, or the store cannot be read.
    pub async fn scrub(&self, id: SpaceId) -> Result<(), SpaceError> {
        let window = self.board.spaces().get(&id).cloned().ok_or(SpaceError::Unknown(id))?;
        let Look { reader, view } = window.look(&*self.store).map_err(|why| SpaceError::Failed { why })?;
        if reader.fenced {
            return Ok(());
        }
        let found = crate::scrub::scrub(view, id, |key| {
            let _ = self.commands.send(Command::Damaged { id, key });
        });
        if found.await? { Ok(()) } else { self.ask(|reply| Command::Recount { id, reply }).await }
    }

    pub(crate) async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, SpaceError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| SpaceError::Stopped)?;
        answer.await.unwrap_or(Err(SpaceError::Stopped))
    }

    /// Completes at the next change of what a replica durably is or holds; `None` if it is not here.
    pub fn news(&self, id: SpaceId) -> Option<impl Future<Output = ()> + use<>> {
        self.board.spaces().get(&id).map(|window| window.news())
    }

    /// How one replica stands in a change of members or at the end of its epoch; `None` if it is not here or has
    /// failed.
    pub async fn standing(&self, id: SpaceId) -> Option<Standing> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Standing { id, reply }).ok()?;
        answer.await.ok().flatten()
    }

    /// The state of every replica, in order of namespace, with `phase` as `Stable`: the catalog knows better.
    pub async fn statuses(&self) -> Vec<NamespaceStatus> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Statuses { reply }).is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// What is known at once of every replica, in order. Does not wait for the driver.
    #[must_use]
    pub fn spaces(&self) -> Vec<SpaceInfo> {
        let windows: Vec<_> = self.board.spaces().values().cloned().collect();
        windows.iter().map(|window| window.info()).collect()
    }

    /// What is known at once of one replica. Does not wait for the driver.
    #[must_use]
    pub fn space(&self, id: SpaceId) -> Option<SpaceInfo> {
        let window = self.board.spaces().get(&id).cloned();
        window.map(|window| window.info())
    }

    /// What gossip says of the other nodes. It informs: nothing that must be right may rest on it. Empty without
    /// gossip.
    #[must_use]
    pub fn alive(&self) -> BTreeMap<NodeId, NodeWord> {
        self.board.alive().clone()
    }

    /// Figures. Does not wait for the driver.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let counts = &self.board.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metrics {
            reads: read(&counts.reads),
            token_waits: read(&counts.token_waits),
            token_not_covered: read(&counts.token_not_covered),
            gossip_restarts: read(&counts.gossip_restarts),
            gossip_malformed: read(&counts.gossip_malformed),
            ..*self.board.metrics()
        }
    }

    /// Lets what is on its way to the disk arrive, answers what waits, and ends the driver.
    pub async fn shutdown(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Shutdown { reply }).is_ok() {
            let _ = done.await;
        }
    }
}
