//! The core: every group of the node, stepped together. No task, socket, clock or thread: messages, calls and times
//! go in, and each [`Step`] says what to write and what to send.
//!
//! What must be durable before it is told is in the types: a step's [`Unpersisted`](step::Unpersisted) part splits into a batch and what is
//! [`Held`]; only [`Held::durable`] makes a [`Persisted`] of it, and only [`Host::persisted`] gives out the messages.

mod admin;
mod answers;
mod group;
mod inbound;
mod install;
mod members;
mod owed;
mod peers;
mod requests;
mod send;
mod step;
#[cfg(test)]
mod tests;
mod thrift;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use duet_proto::{Consistency, Error, Hlc, NamespaceId, NamespaceName, NodeId};
use duet_store::{Batch, Store, StoreError};
use tokio::{sync::mpsc, time::Instant};

pub(crate) use self::step::{Persisted, Step};
use self::{
    group::{Cx, Fault, Group},
    owed::Owed,
    peers::Peers,
    requests::{Read, Reply, Write},
    send::Sends,
    step::{Held, Tell},
    wire::{Bulk, Item, Outbox},
};
use crate::{
    Call, Config, GroupId, GroupInfo, Metrics,
    handle::Board,
    log::{Keep, Log, Place, Row},
    machine::{self, Machine, RequestId},
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

/// Every group of a node.
pub(crate) struct Host {
    config: Config,
    store: Arc<dyn Store>,
    board: Arc<Mutex<Board>>,
    groups: BTreeMap<GroupId, Slot>,
    /// Groups with something to do.
    dirty: BTreeSet<GroupId>,
    peers: Peers,
    /// Members have changed since the peers were told.
    strangers: bool,
    sends: Sends,
    subscribers: BTreeMap<NamespaceId, Vec<mpsc::Sender<()>>>,
    owed: Owed,
    out: Outbox,
    bulk: Vec<(NodeId, Bulk)>,
    batch: Batch,
    /// What may go out when the write of a ticket is durable.
    held: BTreeMap<u64, Outbox>,
    tells: Vec<Tell>,
    /// The groups for which something waits for the next write.
    wait: BTreeSet<GroupId>,
    tickets: u64,
    requests: u64,
    rounds: u64,
    ticks: u64,
    pub(crate) metrics: Metrics,
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
            strangers: true,
            sends: Sends::default(),
            subscribers: BTreeMap::new(),
            owed: Owed::default(),
            out: Outbox::default(),
            bulk: Vec::new(),
            batch: Batch::new(),
            held: BTreeMap::new(),
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
        let Config { keep_entries, keep_bytes, piece_bytes, tail_bytes, .. } = self.config;
        Keep { entries: keep_entries, bytes: keep_bytes, piece_bytes, tail_bytes }
    }

    fn reopen(&self, id: GroupId, name: NamespaceName, now: Instant) -> Result<Group, Fault> {
        let open = || {
            // Which rows the log begins with depends on whether an install has to be finished first.
            let mut log = Log::open(self.store.clone(), id, self.keep(), None)?;
            Group::finish_move(&*self.store, id, &mut log)?;
            let group = self.machine_group(id, name.clone());
            let machine = Machine::open(&*self.store, group)?;
            let applied = machine.as_ref().map(|m| Place { index: m.applied(), term: m.state().term });
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
            owed: &mut self.owed,
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
        self.strangers = true;
    }

    fn meet_peers(&mut self) {
        let (mut members, mut joining) = (BTreeSet::new(), false);
        for slot in self.groups.values() {
            if let Slot::Running(group) = slot {
                members.extend(group.members());
                joining |= group.conf().voters.is_empty();
            }
        }
        self.peers.set_known(members, joining);
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

    /// Raft's clock. Groups that sleep and owe nobody an answer are left alone.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.ticks += 1;
        if std::mem::take(&mut self.strangers) {
            self.meet_peers();
        }
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
            if !self.is_idle(id) && self.with(id, now, Group::tick).is_some() {
                self.dirty.insert(id);
            }
        }
        if self.ticks.is_multiple_of(u64::from(self.config.heartbeat)) {
            for node in self.peers.beaten(now, self.config.no_quorum_after) {
                self.out.beat(node);
            }
        }
        for ended in self.sends.tick(now) {
            self.snapshot_ended(ended, now);
        }
        self.count();
    }

    /// The store's failure, if it has failed: nothing more can be applied.
    pub(crate) fn store_failure(&self) -> Option<StoreError> {
        self.store.poisoned()
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
                Item::Held { term, index } => {
                    group.told_held(from, term, index);
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
    pub(crate) fn call(
        &mut self,
        id: GroupId,
        call: Call,
        stamp: Hlc,
        deadline: Instant,
        reply: Reply,
        now: Instant,
    ) {
        if let Err(error) = call.op.validate(self.config.value_max) {
            let _ = reply.send(Err(error));
            return;
        }
        if let Err(error) = self.admit(id, call.op.is_write()) {
            let _ = reply.send(Err(error));
            return;
        }
        let request = self.request();
        let counter = request.counter;
        self.with(id, now, |group, cx| {
            let Call { op, attempt, consistency } = call;
            if op.is_write() {
                group.wake(cx, true);
                let write = machine::Write { request, proposed: stamp, attempt, op };
                group.write(counter, Write::of_client(write, now, deadline, reply));
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

    /// Whether a request for a group can be taken in.
    pub(super) fn admit(&self, id: GroupId, write: bool) -> Result<(), Error> {
        let node = self.config.node;
        match self.groups.get(&id) {
            Some(Slot::Running(group)) if write && group.writes.bytes() > self.config.pending_bytes => {
                let why = format!("{} bytes of writes wait in namespace {}", group.writes.bytes(), group.name);
                Err(Error::Overloaded { why })
            }
            Some(Slot::Running(_)) => Ok(()),
            Some(Slot::Failed { why, .. }) => {
                Err(Error::Unavailable { node, why: format!("the replica has failed: {why}") })
            }
            Some(Slot::Removing) | None => Err(Error::NotHere { members: Vec::new() }),
        }
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId { node: self.config.node, boot: self.config.boot, counter: self.requests }
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

    /// A batch is durable: what was held goes out, and the groups go on.
    pub(crate) fn persisted(&mut self, persisted: Persisted, now: Instant) {
        let Held { ticket, groups, tells } = persisted.0;
        while let Some(held) = self.held.first_entry().filter(|held| *held.key() <= ticket) {
            self.out.append(held.remove());
        }
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
