//! The core: every group of the node, stepped together. No task, socket, clock or thread: messages, calls and times
//! go in, and each [`Step`] says what to write and what to send.
//!
//! What must be durable before it is told is a type: a step's [`Unpersisted`] part splits into a batch and what is
//! [`Held`]; only [`Held::durable`] makes a [`Persisted`] of it, and only [`Host::persisted`] gives out the messages.

mod group;
mod inbound;
mod install;
mod members;
mod peers;
mod requests;
mod send;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use duet_proto::{
    Consistency, Digest, Error, GroupRole, Hlc, Mode, NamespaceId, NamespaceName, NamespaceStatus, NodeId, Phase,
    QuorumHealth,
};
use duet_store::{Batch, Store, StoreError};
use raft::eraftpb::ConfState;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::{
    group::{Cx, Fault, Group},
    peers::Peers,
    requests::{Read, Reply},
    send::Sends,
    wire::{Bulk, Item, Outbox},
};
use crate::{
    Call, Config, GroupError, GroupId, GroupInfo, GroupSpec, Metrics,
    handle::{Board, Command},
    log::{FOUNDED, Keep, Log, Place, Row},
    machine::{self, Command as Entry, Machine, RequestId, State},
};

/// One replica on this node.
enum Slot {
    Running(Box<Group>),
    /// Stopped for good, until it is removed: its log or its data is damaged, or a bug was contained.
    Failed {
        name: NamespaceName,
        why: String,
    },
    /// Its rows are on their way out.
    Removing,
}

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
    batch: Batch,
    held: Held,
}

impl Unpersisted {
    pub(crate) fn into_parts(self) -> (Batch, Held) {
        (self.batch, self.held)
    }
}

/// What waits for a batch. There is nothing in here to look at.
pub(crate) struct Held {
    ticket: u64,
    groups: BTreeSet<GroupId>,
    outbox: Outbox,
    tells: Vec<Tell>,
}

impl Held {
    /// To be called when, and only when, the batch is durable.
    pub(crate) fn durable(self) -> Persisted {
        Persisted(self)
    }
}

/// What may be told now.
pub(crate) struct Persisted(Held);

/// Who is told of a write of the host's own.
enum Tell {
    Created(oneshot::Sender<Result<(), GroupError>>),
    Removed(GroupId, oneshot::Sender<Result<(), GroupError>>),
}

/// Every group of a node.
pub(crate) struct Host {
    config: Config,
    store: Arc<dyn Store>,
    board: Arc<Mutex<Board>>,
    groups: BTreeMap<GroupId, Slot>,
    /// Groups with something to do.
    dirty: BTreeSet<GroupId>,
    peers: Peers,
    sends: Sends,
    subscribers: BTreeMap<NamespaceId, Vec<mpsc::Sender<()>>>,
    out: Outbox,
    bulk: Vec<(NodeId, Bulk)>,
    batch: Batch,
    held: Outbox,
    tells: Vec<Tell>,
    /// The groups for which something waits for the next write.
    wait: BTreeSet<GroupId>,
    tickets: u64,
    requests: u64,
    rounds: u64,
    ticks: u64,
    metrics: Metrics,
}

impl Host {
    /// Opens every group that the store holds.
    pub(crate) fn open(
        config: Config,
        store: Arc<dyn Store>,
        board: Arc<Mutex<Board>>,
        now: Instant,
    ) -> Result<Host, StoreError> {
        let listed = Row::list(&*store)?;
        let mut host = Host {
            peers: Peers::new(config.node),
            config,
            store,
            board,
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            sends: Sends::default(),
            subscribers: BTreeMap::new(),
            out: Outbox::default(),
            bulk: Vec::new(),
            batch: Batch::new(),
            held: Outbox::default(),
            tells: Vec::new(),
            wait: BTreeSet::new(),
            tickets: 0,
            requests: 0,
            rounds: 0,
            ticks: 0,
            metrics: Metrics::default(),
        };
        for (id, name) in listed {
            let slot = match host.reopen(id, name.clone(), now) {
                Ok(group) => Slot::Running(Box::new(group)),
                Err(fault) => failed(id, name, fault),
            };
            host.groups.insert(id, slot);
            host.dirty.insert(id);
            host.publish(id);
        }
        Ok(host)
    }

    fn keep(&self) -> Keep {
        let Config { keep_entries, keep_bytes, tail_bytes, .. } = self.config;
        Keep { entries: keep_entries, bytes: keep_bytes, tail_bytes }
    }

    fn reopen(&self, id: GroupId, name: NamespaceName, now: Instant) -> Result<Group, Fault> {
        let open = || {
            // Which rows the log begins with depends on whether an install has to be finished first.
            let mut log = Log::open(self.store.clone(), id, self.keep(), None)?;
            Group::finish_move(&*self.store, id, &mut log)?;
            let group = self.machine_group(id, name.clone());
            let machine = Machine::open(&*self.store, group)?;
            let applied =
                machine.as_ref().map(|m| Place { index: m.applied(), term: m.state().term });
            let log = Log::open(self.store.clone(), id, self.keep(), applied)?;
            if machine.is_none() && log.last() > 0 {
                return Err(Fault("there is a log, but no state".into()));
            }
            Group::new(&self.config, id, name.clone(), log, machine, now)
        };
        contain(open)
    }

    fn machine_group(&self, id: GroupId, name: NamespaceName) -> machine::Group {
        machine::Group { namespace: id.namespace, epoch: id.epoch, name, node: self.config.node }
    }

    /// Runs `work` on a group. A fault or a panic stops that group, and no other.
    fn with<R>(
        &mut self,
        id: GroupId,
        now: Instant,
        work: impl FnOnce(&mut Group, &mut Cx<'_>) -> Result<R, Fault>,
    ) -> Option<R> {
        let Some(Slot::Running(group)) = self.groups.get_mut(&id) else { return None };
        let (mut lagging, mut changed) = (Vec::new(), Vec::new());
        let mut cx = Cx {
            config: &self.config,
            store: &self.store,
            peers: &self.peers,
            now,
            ticket: self.tickets + 1,
            batch: &mut self.batch,
            held: &mut self.held,
            wait: &mut self.wait,
            out: &mut self.out,
            lagging: &mut lagging,
            bulk: &mut self.bulk,
            changed: &mut changed,
            metrics: &mut self.metrics,
            rounds: &mut self.rounds,
        };
        let result = contain(|| work(group, &mut cx));
        let news = std::mem::take(&mut group.news);
        for (id, to) in lagging {
            self.offer(id, to, now);
        }
        for id in changed {
            self.wake_subscribers(id.namespace);
        }
        match result {
            Ok(result) => {
                if news {
                    self.publish(id);
                }
                Some(result)
            }
            Err(fault) => {
                self.fail(id, fault);
                None
            }
        }
    }

    fn fail(&mut self, id: GroupId, fault: Fault) {
        if let Some(Slot::Running(group)) = self.groups.remove(&id) {
            let why = format!("the replica of {} has failed: {fault}", group.name);
            let slot = failed(id, group.name.clone(), fault);
            group.stop(&why);
            self.groups.insert(id, slot);
            self.sends.forget(id);
            self.publish(id);
        }
    }

    fn publish(&mut self, id: GroupId) {
        let info = match self.groups.get(&id) {
            Some(Slot::Running(group)) => Some(group.info()),
            Some(Slot::Failed { name, why }) => Some(GroupInfo {
                id,
                name: name.clone(),
                leader: None,
                voters: BTreeSet::new(),
                learners: BTreeSet::new(),
                failed: Some(why.clone()),
            }),
            Some(Slot::Removing) | None => None,
        };
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        match info {
            Some(info) => board.groups.insert(id, info),
            None => board.groups.remove(&id),
        };
        drop(board);
        self.meet_peers();
    }

    fn meet_peers(&mut self) {
        let running = self.groups.values().filter_map(|slot| match slot {
            Slot::Running(group) => Some(group),
            _ => None,
        });
        self.peers.set_known(running.flat_map(|group| group.members()).collect());
    }

    fn wake_subscribers(&mut self, namespace: NamespaceId) {
        if let Some(list) = self.subscribers.get_mut(&namespace) {
            list.retain(|wake| !matches!(wake.try_send(()), Err(mpsc::error::TrySendError::Closed(()))));
        }
    }

    fn running(&self) -> Vec<GroupId> {
        let running = self.groups.iter().filter(|(_, slot)| matches!(slot, Slot::Running(_)));
        running.map(|(id, _)| *id).collect()
    }

    // --- input

    /// Raft's clock.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.ticks += 1;
        for node in self.peers.turned(now, self.config.tick * self.config.election.start) {
            for id in self.running() {
                self.with(id, now, |group, cx| {
                    if group.members().any(|member| member == node) {
                        group.wake(cx, false);
                    }
                    Ok(())
                });
            }
        }
        for id in self.running() {
            if self.with(id, now, Group::tick).is_some() && !self.is_idle(id) {
                self.dirty.insert(id);
            }
        }
        if self.ticks.is_multiple_of(u64::from(self.config.heartbeat)) {
            for node in self.peers.known() {
                self.out.beat(node);
            }
        }
        for ended in self.sends.tick(now) {
            self.snapshot_ended(ended, now);
        }
        self.count();
    }

    fn is_idle(&self, id: GroupId) -> bool {
        matches!(self.groups.get(&id), Some(Slot::Running(group)) if group.asleep && !group.busy())
    }

    /// A frame of the raft lane.
    pub(crate) fn frame(&mut self, from: NodeId, frame: Bytes, now: Instant) {
        self.peers.hear(from, now);
        let items = match wire::read(frame) {
            Ok(items) => items,
            Err(error) => {
                tracing::warn!(%from, %error, "a peer's frame was refused");
                self.metrics.refused += 1;
                return;
            }
        };
        for (id, item) in items {
            let taken = self.with(id, now, |group, cx| match item {
                Item::Raft(message) => group.step(from, *message, cx),
                Item::Sleep { term, last } => {
                    group.told_to_sleep(from, term, last);
                    Ok(Ok(()))
                }
                Item::Wake => {
                    group.wake(cx, false);
                    Ok(Ok(()))
                }
            });
            match taken {
                Some(Ok(())) => {
                    self.dirty.insert(id);
                }
                Some(Err(refusal)) => {
                    tracing::debug!(%from, group = %id, ?refusal, "a message was refused");
                    self.metrics.refused += 1;
                }
                None => self.metrics.refused += 1,
            }
        }
    }

    /// A message of the bulk lane.
    pub(crate) fn bulk(&mut self, from: NodeId, message: &[u8], now: Instant) {
        let message = match Bulk::decode(message) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%from, %error, "a piece of a snapshot was refused");
                self.metrics.refused += 1;
                return;
            }
        };
        let group = message.group();
        let ended = match message {
            Bulk::Want { id, point, chunks } => {
                let answer = self.sends.wanted(from, id, point, chunks, now);
                self.bulk.extend(answer.map(|answer| (from, answer)));
                None
            }
            Bulk::Offer { id } => {
                self.with(group, now, |group, cx| {
                    group.offered(from, id, cx);
                    Ok(())
                });
                None
            }
            Bulk::Chunk { id, chunk } => {
                self.with(group, now, |group, cx| group.chunk(from, id, &chunk, cx));
                self.dirty.insert(group);
                None
            }
            Bulk::Done { id } => self.sends.ended(from, id, true),
            Bulk::Stop { id } => {
                self.with(group, now, |group, _| {
                    group.stopped_by_sender(id);
                    Ok(())
                });
                self.sends.ended(from, id, false)
            }
        };
        if let Some(ended) = ended {
            self.snapshot_ended(ended, now);
        }
    }

    fn offer(&mut self, id: GroupId, to: NodeId, now: Instant) {
        match self.sends.offer(&self.store, id, to, now) {
            Ok(offer) => self.bulk.push((to, offer)),
            Err(ended) => self.snapshot_ended(ended, now),
        }
    }

    fn snapshot_ended(&mut self, ended: send::Ended, now: Instant) {
        self.metrics.snapshots_sent += u64::from(ended.done);
        self.with(ended.group, now, |group, _| {
            group.snapshot_ended(ended.to, ended.done);
            Ok(())
        });
        self.dirty.insert(ended.group);
    }

    /// A frame to this node could not be handed over.
    pub(crate) fn unreachable(&mut self, node: NodeId, now: Instant) {
        for id in self.running() {
            self.with(id, now, |group, _| {
                group.unreachable(node);
                Ok(())
            });
        }
    }

    /// A read or a write. `stamp` is the clock's, for a write.
    pub(crate) fn call(&mut self, id: GroupId, call: Call, stamp: Hlc, deadline: Instant, reply: Reply, now: Instant) {
        let node = self.config.node;
        if let Err(error) = call.op.validate(self.config.value_max) {
            let _ = reply.send(Err(error));
            return;
        }
        match self.groups.get(&id) {
            Some(Slot::Running(group)) => {
                if call.op.is_write() && group.writes.bytes() > self.config.pending_bytes {
                    let why = format!("{} bytes of writes wait in namespace {}", group.writes.bytes(), group.name);
                    let _ = reply.send(Err(Error::Overloaded { why }));
                    return;
                }
            }
            Some(Slot::Failed { why, .. }) => {
                let _ = reply.send(Err(Error::Unavailable { node, why: format!("the replica has failed: {why}") }));
                return;
            }
            Some(Slot::Removing) | None => {
                let _ = reply.send(Err(Error::NotHere { members: Vec::new() }));
                return;
            }
        }
        self.requests += 1;
        let counter = self.requests;
        let request = RequestId { node, boot: self.config.boot, counter };
        self.with(id, now, |group, cx| {
            let Call { op, attempt, consistency } = call;
            if op.is_write() {
                group.wake(cx, true);
                let again = attempt.is_some();
                let entry = Entry::Write(machine::Write { request, proposed: stamp, attempt, op }).encode();
                group.write(counter, entry, again, deadline, reply, now);
            } else {
                let read = Read { op, arrived: now, deadline, reply };
                match consistency {
                    Consistency::Linearizable => {
                        group.wake(cx, true);
                        group.read(cx, read);
                    }
                    Consistency::Local => group.serve(cx, read),
                }
            }
            Ok(())
        });
        self.dirty.insert(id);
    }

    /// Everything but calls and the end.
    pub(crate) fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Create { spec, reply } => self.create(spec, reply, now),
            Command::Remove { id, reply } => self.remove(id, reply),
            Command::SetMembers { id, voters, reply } => {
                let result = self.admin(id, now, |group, cx| group.set_members(&voters, cx));
                let _ = reply.send(result);
            }
            Command::Campaign { id, reply } => {
                let result = self.admin(id, now, Group::campaign);
                let _ = reply.send(result);
            }
            Command::Transfer { id, to, reply } => {
                let result = self.admin(id, now, |group, cx| group.transfer(to, cx));
                let _ = reply.send(result);
            }
            Command::Subscribe { namespace, wake } => self.subscribers.entry(namespace).or_default().push(wake),
            Command::Statuses { reply } => {
                let _ = reply.send(self.statuses(now));
            }
            Command::Call { reply, .. } => {
                let why = "the node is stopping".to_owned();
                let _ = reply.send(Err(Error::Unavailable { node: self.config.node, why }));
            }
            Command::Shutdown { reply } => drop(reply),
        }
    }

    fn admin<T>(
        &mut self,
        id: GroupId,
        now: Instant,
        work: impl FnOnce(&mut Group, &mut Cx<'_>) -> Result<T, GroupError>,
    ) -> Result<T, GroupError> {
        if let Some(Slot::Failed { why, .. }) = self.groups.get(&id) {
            return Err(GroupError::Failed { why: why.clone() });
        }
        self.dirty.insert(id);
        self.with(id, now, |group, cx| Ok(work(group, cx))).unwrap_or(Err(GroupError::Unknown(id)))
    }

    fn create(&mut self, spec: GroupSpec, reply: oneshot::Sender<Result<(), GroupError>>, now: Instant) {
        let id = spec.id();
        let other = self.groups.range(..).find(|(other, _)| other.namespace == id.namespace);
        match other {
            Some((_, Slot::Removing)) => {
                let why = "an earlier replica is being removed".to_owned();
                let _ = reply.send(Err(GroupError::Busy { why }));
                return;
            }
            Some((found, _)) if *found == id => {
                // Perhaps it was created a moment ago: tell when that is durable.
                self.tells.push(Tell::Created(reply));
                return;
            }
            Some((found, _)) => {
                let why = format!("there is a replica of group {found}");
                let _ = reply.send(Err(GroupError::Invalid { why }));
                return;
            }
            None => {}
        }
        let mut batch = Batch::new();
        match contain(|| self.found(&spec, &mut batch, now)) {
            Ok(group) => {
                self.batch.append(batch);
                self.groups.insert(id, Slot::Running(Box::new(group)));
                self.dirty.insert(id);
                self.tells.push(Tell::Created(reply));
                self.publish(id);
            }
            Err(fault) => {
                let _ = reply.send(Err(GroupError::Invalid { why: fault.to_string() }));
            }
        }
    }

    fn found(&self, spec: &GroupSpec, batch: &mut Batch, now: Instant) -> Result<Group, Fault> {
        let id = spec.id();
        let me = self.config.node;
        let founder = !spec.voters.is_empty();
        if founder && !spec.voters.contains(&me) && !spec.learners.contains(&me) {
            return Err(Fault("this node is no member of the group".into()));
        }
        let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|n| u64::from(n.0)).collect::<Vec<_>>();
        let conf = ConfState::from((ids(&spec.voters), ids(&spec.learners)));
        let base = if founder { FOUNDED } else { Place::default() };
        Row::put(batch, id, &spec.name);
        let log = Log::create(self.store.clone(), id, self.keep(), base, conf, batch);
        let machine = if founder {
            let mut state = State::empty(id.epoch);
            (state.applied.index, state.term) = (base.index, base.term);
            Some(Machine::create(&*self.store, self.machine_group(id, spec.name.clone()), state, batch)?)
        } else {
            None
        };
        Group::new(&self.config, id, spec.name.clone(), log, machine, now)
    }

    fn remove(&mut self, id: GroupId, reply: oneshot::Sender<Result<(), GroupError>>) {
        match self.groups.remove(&id) {
            None => {
                let _ = reply.send(Ok(()));
                return;
            }
            Some(Slot::Running(group)) => group.stop("the replica is being removed"),
            Some(Slot::Failed { .. } | Slot::Removing) => {}
        }
        self.groups.insert(id, Slot::Removing);
        self.sends.forget(id);
        Row::destroy(&mut self.batch, id);
        Machine::destroy(id.namespace, &mut self.batch);
        self.tells.push(Tell::Removed(id, reply));
        self.publish(id);
        self.wake_subscribers(id.namespace);
    }

    fn statuses(&mut self, now: Instant) -> Vec<NamespaceStatus> {
        let mut statuses = Vec::new();
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            if let Some(status) = self.with(id, now, |group, cx| Ok(group.status(cx))) {
                statuses.push(status);
            } else if let Some(Slot::Failed { name, .. }) = self.groups.get(&id) {
                statuses.push(failed_status(id, name.clone()));
            }
        }
        statuses
    }

    /// Hands all leaderships over. Whether some are still held that somebody else could take.
    pub(crate) fn hand_over(&mut self, now: Instant) -> bool {
        let mut left = false;
        for id in self.running() {
            let (here, ready) =
                self.with(id, now, |group, cx| Ok((group.hand_over(cx), group.has_ready()))).unwrap_or_default();
            left |= here;
            if ready {
                self.dirty.insert(id);
            }
        }
        left
    }

    /// Answers everything that waits: the end.
    pub(crate) fn stop(&mut self, why: &str) {
        for slot in std::mem::take(&mut self.groups).into_values() {
            if let Slot::Running(group) = slot {
                group.stop(why);
            }
        }
        self.board.lock().unwrap_or_else(PoisonError::into_inner).groups.clear();
    }

    // --- output

    /// Does everything that has become possible, and says what is to be written and sent. `room` is how many pieces
    /// of snapshots the bulk lane takes.
    pub(crate) fn step(&mut self, room: usize, now: Instant) -> Step {
        let mut moving = BTreeSet::new();
        while let Some(id) = self.dirty.pop_first() {
            self.with(id, now, Group::process);
            if matches!(self.groups.get(&id), Some(Slot::Running(group)) if group.is_moving()) {
                moving.insert(id);
            }
        }
        // They go on in the next step, so that the others need not wait.
        self.dirty = moving;
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
            outbox: std::mem::take(&mut self.held),
            tells: std::mem::take(&mut self.tells),
        };
        Some(Unpersisted { batch: std::mem::take(&mut self.batch), held })
    }

    /// A batch is durable: what was held goes out, and the groups go on.
    pub(crate) fn persisted(&mut self, persisted: Persisted, now: Instant) {
        let Held { ticket, groups, outbox, tells } = persisted.0;
        self.out.append(outbox);
        for id in groups {
            self.with(id, now, |group, cx| group.persisted(ticket, cx));
            self.dirty.insert(id);
        }
        for tell in tells {
            match tell {
                Tell::Created(reply) => {
                    let _ = reply.send(Ok(()));
                }
                Tell::Removed(id, reply) => {
                    self.groups.remove(&id);
                    let _ = reply.send(Ok(()));
                }
            }
        }
    }

    fn count(&mut self) {
        let mut metrics = self.metrics;
        (metrics.groups, metrics.leading, metrics.quiet, metrics.failed) = (0, 0, 0, 0);
        for slot in self.groups.values() {
            metrics.groups += 1;
            match slot {
                Slot::Running(group) => {
                    metrics.leading += u64::from(group.is_leader());
                    metrics.quiet += u64::from(group.asleep);
                }
                Slot::Failed { .. } => metrics.failed += 1,
                Slot::Removing => {}
            }
        }
        self.board.lock().unwrap_or_else(PoisonError::into_inner).metrics = metrics;
    }
}

/// Turns a panic of `work` into a fault. The group that it was about is never used again, so it cannot be seen half
/// changed.
fn contain<R>(work: impl FnOnce() -> Result<R, Fault>) -> Result<R, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Fault(format!("a panic was contained: {text}")))
    })
}

fn failed(id: GroupId, name: NamespaceName, fault: Fault) -> Slot {
    tracing::error!(group = %id, %name, why = %fault, "a replica has failed; it neither votes nor serves");
    Slot::Failed { name, why: fault.to_string() }
}

fn failed_status(id: GroupId, name: NamespaceName) -> NamespaceStatus {
    NamespaceStatus {
        id: id.namespace,
        name,
        mode: Mode::Strong,
        epoch: id.epoch,
        phase: Phase::Stable,
        role: GroupRole::Failed,
        quorum: QuorumHealth::Lost,
        term: 0,
        leader: None,
        last: 0,
        committed: 0,
        applied: 0,
        first: 0,
        keys: 0,
        tombstones: 0,
        digest: Digest::EMPTY,
        members: Vec::new(),
    }
}
