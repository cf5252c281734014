//! One replica in the driver's hands: what waits for its next step, and who waits for its answers.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use duet_proto::{Answer, Error, NodeId, Op, Stamp};
use duet_store::{Batch, Store, StoreError};
use tokio::{sync::oneshot, time::Instant};

use super::lag::Lag;
use crate::{
    Call, Clock, Cx, Effects, EngineConfig, Envelope, Input, Members, Message, Order, Persisting, Refused, Replica,
    SpaceError, Ticket, handle::Reply, window::Window,
};

/// How long before its deadline a write that waits for copies is answered, at most.
const MARGIN: Duration = Duration::from_millis(50);

/// A replica that runs.
///
/// Invariant: between [`Running::step`] and [`Running::landed`] no other step begins.
pub(crate) struct Running {
    pub(crate) replica: Replica,
    pub(crate) window: Arc<Window>,
    pub(crate) lag: Lag,
    queue: VecDeque<(Queued, usize)>,
    /// Taken before the queue: writes wait while an epoch ends, whatever else does.
    orders: Vec<(Ticket, Order, Reply<Option<Stamp>>)>,
    queued_bytes: usize,
    waiting: BTreeMap<Ticket, Waiter>,
    /// The writes that wait for copies, by when they are to be answered.
    deadlines: BTreeSet<(Instant, Ticket)>,
    /// Those who wait for the step that is on its way.
    told: Vec<Reply<()>>,
    /// Those whose orders have been given to it.
    ordered: BTreeMap<Ticket, Reply<Option<Stamp>>>,
    in_flight: bool,
    forgotten: u64,
    next_tick: Instant,
    /// Whether the last step was one that was due.
    ticked: bool,
    /// The version of the members as of the last step.
    version: u64,
    /// When the driver is to look after it, as the driver has noted it.
    pub(crate) wake: Instant,
}

/// What waits for a step.
pub(crate) enum Queued {
    Write(Ticket, Op, Option<duet_proto::Token>),
    Peer(NodeId, Envelope),
    Members(Members, Reply<()>),
    Recount(Reply<()>),
}

struct Waiter {
    reply: oneshot::Sender<Result<Answer, Error>>,
    arrived: Instant,
    deadline: Instant,
    /// Once a step has taken it, so that it may have been done: when it is to be answered at the latest.
    settle: Option<Instant>,
}

/// What a step came to.
pub(crate) struct Stepped {
    pub(crate) batch: Batch,
    pub(crate) persisting: Persisting,
    /// What a planted bug tells too early.
    pub(crate) early: Option<Effects>,
}

/// What the driver lends to a step.
pub(crate) struct Lent<'a> {
    pub(crate) config: &'a EngineConfig,
    pub(crate) store: &'a Arc<dyn Store>,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) origin: Instant,
    pub(crate) now: Instant,
}

impl Lent<'_> {
    /// A time that only rises, in milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        self.ms(self.now)
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_millis() as u64
    }
}

impl Running {
    pub(crate) fn new(replica: Replica, window: Arc<Window>, now: Instant) -> Running {
        let lag = Lag::new(replica.written());
        Running {
            version: replica.members().version,
            replica,
            window,
            lag,
            queue: VecDeque::new(),
            orders: Vec::new(),
            queued_bytes: 0,
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            told: Vec::new(),
            ordered: BTreeMap::new(),
            in_flight: false,
            forgotten: 0,
            next_tick: now,
            ticked: false,
            wake: now,
        }
    }

    /// Whether a step may begin.
    pub(crate) fn is_free(&self) -> bool {
        !self.in_flight
    }

    pub(crate) fn is_open(&self) -> bool {
        self.in_flight || self.has_more() || !self.waiting.is_empty() || self.replica.is_open()
    }

    /// Whether something waits for the next step.
    fn has_more(&self) -> bool {
        !self.queue.is_empty() || !self.orders.is_empty()
    }

    /// Takes an order in; it is answered once.
    pub(crate) fn order(&mut self, ticket: Ticket, order: Order, reply: Reply<Option<Stamp>>) {
        self.orders.push((ticket, order, reply));
    }

    /// Takes a write in; it is answered once.
    pub(crate) fn write(
        &mut self,
        ticket: Ticket,
        call: Call,
        deadline: Instant,
        reply: oneshot::Sender<Result<Answer, Error>>,
        lent: &Lent<'_>,
    ) {
        let size = op_bytes(&call.op);
        if self.queued_bytes + size > lent.config.pending_bytes {
            let why = format!("{} bytes wait for the disk in this namespace", self.queued_bytes);
            let _ = reply.send(Err(Error::Overloaded { why }));
            return;
        }
        self.waiting.insert(ticket, Waiter { reply, arrived: lent.now, deadline, settle: None });
        self.push(Queued::Write(ticket, call.op, call.token), size);
    }

    /// Takes a peer's message in; whether there is room for it.
    pub(crate) fn hear(&mut self, from: NodeId, envelope: Envelope, size: usize, config: &EngineConfig) -> bool {
        let room = self.queued_bytes + size <= config.pending_bytes;
        if room {
            self.push(Queued::Peer(from, envelope), size);
        }
        room
    }

    pub(crate) fn push(&mut self, queued: Queued, size: usize) {
        self.queued_bytes += size;
        self.queue.push_back((queued, size));
    }

    /// Takes a step over what waits, up to a bound. What remains waits for the next one.
    ///
    /// # Errors
    /// If the store cannot be read, or a bug panicked: the replica must not be used any more.
    pub(crate) fn step(&mut self, lent: &Lent<'_>) -> Result<Stepped, StoreError> {
        let mut inputs = self.take_inputs(lent);
        self.ticked = lent.now >= self.next_tick;
        if self.ticked {
            inputs.push(Input::Tick);
        }
        let snapshot = || lent.store.snapshot();
        let cx = Cx { view: &**lent.store, snapshot: &snapshot, clock: lent.clock, now_ms: lent.now_ms() };
        let replica = &mut self.replica;
        let step = catch_unwind(AssertUnwindSafe(|| replica.step(inputs, &cx)));
        let step = step.unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<&str>().map(ToString::to_string);
            let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(StoreError::Io { what: format!("a bug was contained: {why}") })
        })?;
        #[cfg(feature = "planted")]
        let early = step.told_early(&lent.config.replica);
        #[cfg(not(feature = "planted"))]
        let early = None;
        let (batch, persisting) = step.take_batch();
        self.in_flight = true;
        if !batch.is_empty() {
            // Taken before the batch is handed over: it shows nothing of it.
            self.window.close(lent.store.snapshot());
        }
        Ok(Stepped { batch, persisting, early })
    }

    fn take_inputs(&mut self, lent: &Lent<'_>) -> Vec<Input> {
        let (mut inputs, mut bytes) = (Vec::with_capacity(self.queue.len() + 2), 0);
        for (ticket, order, reply) in self.orders.drain(..) {
            inputs.push(Input::Order(ticket, order));
            self.ordered.insert(ticket, reply);
        }
        while bytes < lent.config.step_bytes
            && let Some((queued, size)) = self.queue.pop_front()
        {
            bytes += size;
            self.queued_bytes -= size;
            match queued {
                Queued::Write(ticket, op, token) => inputs.extend(self.begin(ticket, op, token, lent)),
                Queued::Peer(from, envelope) => inputs.push(Input::Peer(from, envelope)),
                Queued::Members(members, reply) => {
                    inputs.push(Input::Members(members));
                    self.told.push(reply);
                }
                Queued::Recount(reply) => {
                    inputs.push(Input::Scrub);
                    self.told.push(reply);
                }
            }
        }
        inputs
    }

    /// A write whose time is over, or whose client is gone, is not begun any more.
    fn begin(&mut self, ticket: Ticket, op: Op, token: Option<duet_proto::Token>, lent: &Lent<'_>) -> Option<Input> {
        let waiter = self.waiting.get_mut(&ticket)?;
        if waiter.deadline <= lent.now {
            let after_ms = lent.now.saturating_duration_since(waiter.arrived).as_millis() as u64;
            let why = "the disk was busy with other writes".to_owned();
            let waiter = self.waiting.remove(&ticket)?;
            let _ = waiter.reply.send(Err(Error::TimedOut { after_ms, why }));
            return None;
        }
        let left = waiter.deadline - lent.now;
        let settle = waiter.deadline - MARGIN.min(left / 8);
        waiter.settle = Some(settle);
        self.deadlines.insert((settle, ticket));
        Some(Input::Write { ticket, op, token, deadline_ms: lent.ms(settle) })
    }

    /// A step is durable: what may be told now.
    pub(crate) fn landed(&mut self, persisting: Persisting, wrote: bool, now: Instant) -> Effects {
        let news = wrote || persisting.converges(&self.replica);
        let effects = persisting.persisted(&mut self.replica);
        self.in_flight = false;
        if news {
            self.window.open(&self.replica);
        }
        for (_, envelope) in &effects.messages {
            if let Message::Push(push) = &envelope.message
                && let (Some(first), Some(last)) = (push.writes.first(), push.writes.last())
            {
                self.lag.wrote(first.hlc, last.hlc, push.writes.len() as u64, now);
            }
        }
        self.lag.held(self.replica.held_everywhere(), now);
        for reply in self.told.drain(..) {
            let _ = reply.send(Ok(()));
        }
        effects
    }

    /// Whether it durably holds nothing beyond its frontier.
    pub(crate) fn is_clean(&self, lent: &Lent<'_>) -> bool {
        let look = self.window.look(&**lent.store);
        look.is_ok_and(|look| self.replica.is_clean(&*look.view).unwrap_or(false))
    }

    /// Whether the members are others than when this was last asked.
    pub(crate) fn has_moved(&mut self) -> bool {
        let version = self.replica.members().version;
        std::mem::replace(&mut self.version, version) != version
    }

    /// Answers the client that waits under a ticket.
    pub(crate) fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Error>) {
        let Some(waiter) = self.waiting.remove(&ticket) else { return };
        waiter.settle.map(|at| self.deadlines.remove(&(at, ticket)));
        let _ = waiter.reply.send(answer);
    }

    /// Answers who has given an order.
    pub(crate) fn carried_out(&mut self, ticket: Ticket, result: Result<Option<Stamp>, Refused>) {
        if let Some(reply) = self.ordered.remove(&ticket) {
            let _ = reply.send(result.map_err(|Refused { why }| SpaceError::Invalid { why }));
        }
    }

    /// When it is to be looked after again, if nothing arrives.
    pub(crate) fn schedule(&mut self, lent: &Lent<'_>) -> Instant {
        let forgotten = self.replica.counters().forgotten;
        let pace = if self.is_open() || forgotten != self.forgotten {
            lent.config.tick
        } else if self.replica.is_apart_within_reach() {
            Duration::from_millis(lent.config.replica.apart_report_ms)
        } else if self.replica.is_apart() {
            Duration::from_millis(lent.config.replica.idle_report_ms)
        } else {
            lent.config.idle_tick
        };
        self.forgotten = forgotten;
        let next_tick = on_grid(lent.now + pace, lent.origin, lent.config.tick);
        self.next_tick = if self.ticked { next_tick } else { next_tick.min(self.next_tick) };
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let more = self.has_more().then_some(lent.now);
        [Some(self.next_tick), deadline, more].into_iter().flatten().min().unwrap_or(self.next_tick)
    }

    /// Ends it: everybody who waits is told.
    pub(crate) fn stop(&mut self, node: NodeId, why: &str, error: &SpaceError) {
        self.window.fail(why.to_owned());
        for (_, waiter) in std::mem::take(&mut self.waiting) {
            let why = why.to_owned();
            let error = if waiter.settle.is_some() {
                Error::OutcomeUnknown { why }
            } else {
                Error::Unavailable { node, why }
            };
            let _ = waiter.reply.send(Err(error));
        }
        for (queued, _) in self.queue.drain(..) {
            if let Queued::Members(_, reply) | Queued::Recount(reply) = queued {
                self.told.push(reply);
            }
        }
        let ordered = std::mem::take(&mut self.ordered).into_values();
        for reply in ordered.chain(self.orders.drain(..).map(|(_, _, reply)| reply)) {
            let _ = reply.send(Err(error.clone()));
        }
        for reply in self.told.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// The next of the moments at which the driver looks after all that is due, so that few wakes serve many replicas.
fn on_grid(at: Instant, origin: Instant, tick: Duration) -> Instant {
    let tick_us = tick.as_micros().max(1);
    let us = at.saturating_duration_since(origin).as_micros().div_ceil(tick_us) * tick_us;
    origin + Duration::from_micros(us as u64)
}

fn op_bytes(op: &Op) -> usize {
    match op {
        Op::Write { mutation } => {
            let value = if let duet_proto::Change::Put(value) = &mutation.change { value.len() } else { 0 };
            64 + mutation.key.len() + value
        }
        _ => 64,
    }
}
