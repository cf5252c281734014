//! A replica of one namespace in one epoch: inputs in, one batch and, once that is durable, effects out.

mod fence;
mod forget;
mod heal;
mod peers;
mod pulse;
mod read;
mod serve;
mod session;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use duet_proto::{Answer, Epoch, Error, Hlc, NamespaceId, NodeId, Op, Stamp, Token};
use duet_store::{Batch, Family, Snapshot, StoreError, View, layout};

use crate::{
    Clock, Config, Envelope, Frontier, Members, Planted,
    clock::Clocks,
    message::{Message, Nonce, Push, Summary, Written},
    rows::{Meta, Standing, next_beyond, tombstones},
    table::Table,
};
use fence::Converge;
pub use fence::{Base, Order, Refused};
use heal::Heal;
use peers::{Peer, Sweep};
pub(crate) use read::Reader;
use serve::Serving;
use session::Pull;
use write::Waiting;

/// Names a request of a client until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a step is given.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client's write. It is answered once, now or in a later step.
    Write {
        /// Who waits.
        ticket: Ticket,
        /// The operation.
        op: Op,
        /// What the client has seen.
        token: Option<Token>,
        /// When to stop waiting for copies, on the clock of [`Cx::now_ms`].
        deadline_ms: u64,
    },
    /// A message of a peer; the sender as its certificate names it.
    Peer(NodeId, Envelope),
    /// The catalog has a new version of the members.
    Members(Members),
    /// A step of the end of the epoch. It is answered in [`Effects::orders`] of this step.
    Order(Ticket, Order),
    /// Read everything: damaged records are found, and the digest and the counts are made anew. As long as the
    /// namespace is large.
    Scrub,
    /// Time has passed.
    Tick,
}

/// What a step may see of the world.
pub struct Cx<'a> {
    /// The store. What it shows of this replica is durable: no step of it is on its way to the disk.
    pub view: &'a dyn View,
    /// The same as `view`, to keep. A session holds it until its walk is over.
    pub snapshot: &'a dyn Fn() -> Arc<dyn Snapshot>,
    /// The node's hybrid clock.
    pub clock: &'a dyn Clock,
    /// A time that only rises, in milliseconds; what timeouts are measured with.
    pub now_ms: u64,
}

/// How a replica comes into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Together with the epoch: it holds all there is, which is the epoch's base, or nothing.
    Founder,
    /// To a namespace that has data: it is copied to before it takes part. The copy takes the place of whatever
    /// records the node holds, it is not merged into them. A node that was a member before in the same epoch must not
    /// come back: its stamps would be taken for known.
    Joining,
}

/// A step whose batch is not durable: nobody may be told anything.
#[must_use = "a step that is not persisted tells nobody anything"]
#[derive(Debug)]
pub struct Unpersisted {
    batch: Batch,
    effects: Effects,
    meta: Meta,
    converged: Option<u64>,
}

/// A step whose batch is on its way to the disk.
#[must_use = "a step that is not persisted tells nobody anything"]
#[derive(Debug)]
pub struct Persisting {
    effects: Effects,
    meta: Meta,
    converged: Option<u64>,
}

/// What may be told once the step is durable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Messages, each with those to whom it goes.
    pub messages: Vec<(Vec<NodeId>, Envelope)>,
    /// Answers to clients.
    pub answers: Vec<(Ticket, Result<Answer, Error>)>,
    /// Writes that were refused because the epoch is about to end: nothing was done.
    pub fenced: Vec<Ticket>,
    /// Orders that were carried out, with the place to go on from if one step was not enough, or refused.
    pub orders: Vec<(Ticket, Result<Option<Stamp>, Refused>)>,
    /// Keys whose records changed: for those that watch.
    pub changed: Vec<Bytes>,
}

/// Counts since the start; alarms are marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Remote records that superseded what was held, or were new.
    pub won: u64,
    /// Remote records that came after something later.
    pub lost: u64,
    /// Remote records at or below the frontier, ignored.
    pub covered: u64,
    /// Alarm: one stamp with two values.
    pub conflicting_marker: u64,
    /// Alarm: clean replicas of equal frontiers with unequal digests.
    pub digest_mismatch: u64,
    /// Alarm: records that cannot be read.
    pub damaged: u64,
    /// Damaged or missing records that were replaced by a peer's.
    pub healed: u64,
    /// Messages refused: from nodes that are no members, or of another epoch.
    pub not_heard: u64,
    /// Messages refused: their sender has not seen what was forgotten here.
    pub below_floor: u64,
    /// Messages refused: stamps too far ahead of this node's clock.
    pub clock_refused: u64,
    /// Pushes that came before their predecessor.
    pub gaps: u64,
    /// Sessions of this replica that came to their end.
    pub sessions: u64,
    /// Sessions of this replica that did not.
    pub interrupted: u64,
    /// Tombstones forgotten.
    pub forgotten: u64,
}

/// How a replica stands, for status and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it durably holds.
    pub frontier: Frontier,
    /// What its data comes to.
    pub summary: Summary,
    /// Whether it has received its first copy.
    pub whole: bool,
    /// The version of the members that it goes by.
    pub version: u64,
    /// What it held durably when it moved to that version: for the coordinator of the change (rule 8).
    pub moved: Frontier,
    /// The latest report of each member: its version and frontier.
    pub peers: BTreeMap<NodeId, (u64, Frontier)>,
    /// The oldest of this replica's writes that some member is not known to hold: everything after this time.
    pub held_everywhere: Hlc,
    /// The attempt to end the epoch for which it is fenced.
    pub fence: Option<u64>,
    /// The attempt in which it has come to hold what all members of the base held.
    pub converged: Option<u64>,
    /// Counts.
    pub counters: Counters,
}

/// A replica.
///
/// Invariants:
/// - `synced` is what the disk holds of `meta`; whatever is told of this replica is told from `synced`;
/// - one step at most is on its way to the disk;
/// - the frontier rises by own writes, by pushes without a gap, and at the end of sessions and copies, never else;
/// - behind a fence nothing is taken in but by sessions that were begun to converge, in the attempt of that fence.
#[derive(Debug)]
pub struct Replica {
    namespace: NamespaceId,
    epoch: Epoch,
    config: Config,
    meta: Meta,
    synced: Meta,
    in_flight: bool,
    nonces: u64,
    peers: BTreeMap<NodeId, Peer>,
    clocks: Clocks,
    /// Writes that wait for copies, by the time of their stamp.
    waiting: BTreeMap<Hlc, Waiting>,
    /// Peers that have something for this replica, and the session that gets it.
    wanted: BTreeSet<NodeId>,
    pull: Option<Pull>,
    last_pulled: NodeId,
    /// Peers that seem not to be there: asked last.
    silent: BTreeSet<NodeId>,
    /// When it took its first step since the node started; long ago for one that is new, and so has missed nothing.
    begun_ms: Option<u64>,
    /// Pushes that wait for the end of a session.
    early: BTreeMap<NodeId, Vec<Push>>,
    /// Sessions of peers with this replica, one each.
    serving: BTreeMap<NodeId, Serving>,
    heal: Heal,
    /// What everybody held when no tombstone could be forgotten: there is none to be found until they hold more.
    barren: Option<Frontier>,
    /// No tombstone is listed below it: whoever looks for the oldest need not pass all that was forgotten before.
    listed_from: Stamp,
    /// Rows that have come into the index since it was cleared, or since the start.
    indexed: usize,
    /// How far the rows of what the index was trimmed by were removed since the start, and when.
    cleared: Frontier,
    cleared_ms: u64,
    /// When the index was last trimmed.
    trimmed_ms: u64,
    /// Origins with extras that are no members, and what is done about them (rule 7).
    sweep: Option<Sweep>,
    /// The sessions with the members of the base, once they were asked for.
    converge: Option<Converge>,
    /// The attempt in which all of these have come to their end, durably.
    converged: Option<u64>,
    reported: Option<(u64, Meta)>,
    counters: Counters,
}

/// A step in the making.
struct Step<'a> {
    r: &'a mut Replica,
    cx: &'a Cx<'a>,
    table: Table<'a>,
    effects: Effects,
    writes: Vec<Written>,
    /// The end of the own writes before this step.
    previous: Hlc,
}

impl Replica {
    /// A new replica, and what it writes. A founder takes over the records that are in place, which come to `base`.
    ///
    /// # Errors
    /// Never, in practice: if its state cannot be encoded.
    pub fn create(
        config: Config,
        namespace: NamespaceId,
        epoch: Epoch,
        start: Start,
        members: Members,
        base: Option<Base>,
    ) -> Result<(Replica, Batch), StoreError> {
        let (mut meta, mut batch) = (Meta::new(Standing::Whole, members), Batch::new());
        let Base { last, digest, keys, tombstones: deleted } = base.unwrap_or_default();
        meta.begin = last;
        match start {
            Start::Founder => (meta.digest, meta.keys, meta.tombstones) = (digest, keys, deleted),
            Start::Joining => {
                meta.standing = Standing::Joining { target: None, after: None };
                let (from, to) = layout::prefix_range(layout::namespace_prefix(namespace));
                batch.delete_range(Family::Data, from, to);
                let (from, to) = tombstones(namespace);
                batch.delete_range(Family::Namespace, from, to);
            }
        }
        meta.write(&mut batch, namespace, epoch)?;
        let new = Replica { begun_ms: Some(0), ..Replica::with(config, namespace, epoch, meta) };
        Ok((new, batch))
    }

    /// The replica that a disk holds, if it holds one.
    ///
    /// # Errors
    /// If its state cannot be read.
    pub fn open(
        config: Config,
        namespace: NamespaceId,
        epoch: Epoch,
        view: &dyn View,
    ) -> Result<Option<Replica>, StoreError> {
        Ok(Meta::read(view, namespace, epoch)?.map(|meta| Replica::with(config, namespace, epoch, meta)))
    }

    fn with(config: Config, namespace: NamespaceId, epoch: Epoch, meta: Meta) -> Replica {
        Replica {
            namespace,
            epoch,
            last_pulled: config.node,
            config,
            synced: meta.clone(),
            meta,
            in_flight: false,
            nonces: 0,
            peers: BTreeMap::new(),
            clocks: Clocks::default(),
            waiting: BTreeMap::new(),
            wanted: BTreeSet::new(),
            pull: None,
            silent: BTreeSet::new(),
            begun_ms: None,
            early: BTreeMap::new(),
            serving: BTreeMap::new(),
            heal: Heal::default(),
            barren: None,
            listed_from: Stamp::default(),
            indexed: 0,
            cleared: Frontier::default(),
            cleared_ms: 0,
            trimmed_ms: 0,
            sweep: None,
            converge: None,
            converged: None,
            reported: None,
            counters: Counters::default(),
        }
    }

    /// Takes everything that has arrived and says what to write. The next step may begin when this one is persisted.
    ///
    /// # Errors
    /// If the store cannot be read; the replica must then not be used any more. Also while a step is in flight.
    pub fn step(&mut self, inputs: Vec<Input>, cx: &Cx<'_>) -> Result<Unpersisted, StoreError> {
        if self.in_flight {
            return Err(StoreError::Io { what: "a step began before the one before it was persisted".into() });
        }
        self.begun_ms.get_or_insert(cx.now_ms);
        let table = Table::new(cx.view, self.id());
        let previous = self.meta.frontier.get(self.config.node);
        let mut step = Step { r: self, cx, table, effects: Effects::default(), writes: Vec::new(), previous };
        for input in inputs {
            match input {
                Input::Write { ticket, op, token, deadline_ms } => step.write(ticket, op, token, deadline_ms)?,
                Input::Peer(from, envelope) => step.peer(from, envelope)?,
                Input::Members(members) => step.members(members),
                Input::Order(ticket, order) => step.order(ticket, order)?,
                Input::Scrub => step.recount()?,
                Input::Tick => step.forget()?,
            }
        }
        step.finish()
    }

    /// What is durable, and what peers say.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            frontier: self.synced.frontier.clone(),
            summary: self.synced.summary(),
            whole: self.synced.standing == Standing::Whole,
            version: self.synced.members.version,
            moved: self.synced.moved.clone(),
            peers: self.peers.iter().map(|(node, peer)| (*node, (peer.version, peer.frontier.clone()))).collect(),
            held_everywhere: self.held_everywhere(),
            fence: self.synced.fence,
            converged: self.converged,
            counters: self.counters,
        }
    }

    /// What it has forgotten: the stamps of tombstones that it no longer holds.
    #[must_use]
    pub fn floor(&self) -> &Frontier {
        &self.synced.floor
    }

    /// What every member holds, as far as the index was trimmed by it: its rows up to here mean nothing.
    #[must_use]
    pub fn trimmed(&self) -> &Frontier {
        &self.synced.trimmed
    }

    fn planted(&self, bug: Planted) -> bool {
        self.config.planted(bug)
    }

    fn id(&self) -> (NamespaceId, Epoch) {
        (self.namespace, self.epoch)
    }

    /// A name that was never used.
    fn fresh(&mut self) -> Nonce {
        self.nonces += 1;
        Nonce(self.config.boot.0, self.nonces)
    }

    /// Whether nothing durable lies beyond the durable frontier. A copy that is under way does, whatever its index says:
    /// the records of earlier epochs are not in it.
    fn clean(&self, view: &dyn View) -> Result<bool, StoreError> {
        Ok(self.synced.standing == Standing::Whole
            && next_beyond(view, self.id(), &self.synced.frontier, (NodeId(0), Hlc::ZERO))?.is_none())
    }
}

impl Step<'_> {
    fn finish(mut self) -> Result<Unpersisted, StoreError> {
        self.push_writes();
        self.drive_session()?;
        self.drive_heal();
        self.report()?;
        self.settle_writes();
        if self.r.meta != self.r.synced {
            self.trim();
            self.r.durable_meta().write(&mut self.table.batch, self.r.namespace, self.r.epoch)?;
        }
        self.r.indexed += self.table.indexed;
        if let Some(listed) = self.table.listed {
            self.r.listed_from = self.r.listed_from.min(listed);
        }
        self.r.in_flight = true;
        let (meta, converged) = (self.r.meta.clone(), self.r.converge.as_ref().and_then(Converge::over));
        Ok(Unpersisted { batch: self.table.batch, effects: self.effects, meta, converged })
    }

    /// Sends, once the step is durable.
    fn send(&mut self, to: impl IntoIterator<Item = NodeId>, message: Message) {
        let envelope = Envelope {
            namespace: self.r.namespace,
            epoch: self.r.epoch,
            version: self.r.meta.members.version,
            wall_ms: self.cx.clock.wall_ms(),
            message,
        };
        self.effects.messages.push((to.into_iter().collect(), envelope));
    }

    fn others(&self) -> Vec<NodeId> {
        self.r.meta.members.everyone().filter(|node| *node != self.r.config.node).collect()
    }
}

impl Unpersisted {
    /// What to make durable, and the rest of the step.
    pub fn take_batch(self) -> (Batch, Persisting) {
        (self.batch, Persisting { effects: self.effects, meta: self.meta, converged: self.converged })
    }

    /// What a planted bug tells too early; it is told again when it is durable.
    #[cfg(feature = "planted")]
    #[must_use]
    pub fn told_early(&self, config: &Config) -> Option<Effects> {
        let pushes = config.planted(Planted::PushBeforeSync);
        if !pushes && !config.planted(Planted::AcknowledgeBeforeSync) {
            return None;
        }
        let mut early = self.effects.clone();
        early.messages.retain(|(_, envelope)| matches!(envelope.message, Message::Push(_)) == pushes);
        if pushes {
            (early.answers, early.fenced, early.orders) = Default::default();
        }
        Some(early)
    }
}

impl Persisting {
    /// Whether it is in this step that the replica comes to its end with all others of the base.
    #[must_use]
    pub fn converges(&self, replica: &Replica) -> bool {
        self.converged != replica.converged
    }

    /// What may be told, now that the batch is durable.
    #[must_use]
    pub fn persisted(self, replica: &mut Replica) -> Effects {
        replica.synced = self.meta;
        replica.converged = self.converged;
        replica.in_flight = false;
        self.effects
    }
}
