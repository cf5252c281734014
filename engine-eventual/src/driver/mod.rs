//! The driver: the one task that owns the engine's input and output.

mod config;
mod lag;
mod life;
mod peers;
mod rows;
mod space;
mod status;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
};

use bytes::Bytes;
use duet_proto::{Error, NamespaceName, NodeId};
use duet_store::{Committer, DiskGuard, HybridClock, Store, StoreError};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};

pub use config::EngineConfig;

use self::{
    peers::Peers,
    space::{Lent, Queued, Running, Stepped},
};
use crate::{
    Effects, Handle, Metrics, Persisting, Replica, SpaceError, SpaceId, Ticket, gossip,
    handle::{Board, Command, Reply},
    window::Window,
};

/// How much of one input is taken before the others get their turn.
const BURST: usize = 4096;

/// The channel ends by which the engine talks to its peers. What goes in is opaque to whoever carries it; it may be
/// lost, late or reordered, but the sender's node is what the transport has authenticated.
#[derive(Debug)]
pub struct PeerLink {
    /// Pushes and anti-entropy to peers. When it is full, frames are dropped: what is missing is found and asked for.
    pub sync_out: mpsc::Sender<(NodeId, Bytes)>,
    /// Pushes and anti-entropy from peers.
    pub sync_in: mpsc::Receiver<(NodeId, Bytes)>,
    /// Gossip to peers.
    pub gossip_out: mpsc::Sender<(NodeId, Bytes)>,
    /// Gossip from peers.
    pub gossip_in: mpsc::Receiver<(NodeId, Bytes)>,
}

/// The engine; [`EventualEngine::start`] is all there is to it.
#[derive(Debug)]
pub struct EventualEngine;

impl EventualEngine {
    /// Opens every replica that the store holds. The future drives them, and must be polled until it ends: with
    /// [`StoreError::Closed`] after [`Handle::shutdown`], with the failure when the store has failed or the list of
    /// replicas cannot be read. A replica that is damaged does not keep the others from starting.
    pub fn start(
        config: EngineConfig,
        store: Arc<dyn Store>,
        committer: Committer,
        clock: Arc<HybridClock>,
        disk: DiskGuard,
        link: PeerLink,
    ) -> (Handle, impl Future<Output = StoreError> + Send + 'static) {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (told, landed) = mpsc::unbounded_channel();
        let board = Arc::new(Board::default());
        let handle = Handle::new(&config, commands, board.clone(), store.clone(), committer.clone(), disk.clone());
        let PeerLink { sync_out, sync_in, gossip_out, mut gossip_in } = link;
        let (gossip, identity) = (config.gossip.clone(), (config.replica.node, config.replica.boot));
        let shared = board.clone();
        let origin = Instant::now();
        let mut driver = Driver {
            peers: Peers::new(sync_out, origin),
            config,
            store,
            committer,
            clock,
            disk,
            board,
            sync_in,
            inbox,
            told,
            landed,
            origin,
            spaces: BTreeMap::new(),
            removing: BTreeMap::new(),
            ready: BTreeSet::new(),
            wakes: BTreeSet::new(),
            tickets: 0,
            serial: 0,
            flights: 0,
            metrics: Metrics::default(),
            farewell: Vec::new(),
        };
        let opened = driver.open_all(origin);
        let run = async move {
            // Ends with the driver, however that ends.
            let mut side = JoinSet::new();
            match gossip {
                Some(gossip) => side.spawn(gossip::run(gossip, identity, gossip_out, gossip_in, shared)),
                // A lane that nobody reads would be closed.
                None => side.spawn(async move { while gossip_in.recv().await.is_some() {} }),
            };
            match opened {
                Ok(()) => driver.run().await,
                Err(error) => driver.end(error),
            }
        };
        (handle, run)
    }
}

/// What the committer has done with a batch.
struct Landed {
    id: SpaceId,
    /// Which replica of that name: one may have been removed meanwhile.
    serial: u64,
    what: Durable,
}

/// What is durable now.
enum Durable {
    Step(Box<Persisting>),
    Created,
    Removed,
}

/// A replica of this node.
struct Space {
    name: NamespaceName,
    serial: u64,
    slot: Slot,
}

enum Slot {
    /// On its way to the disk.
    Creating(Box<Replica>, Vec<Reply<()>>),
    Running(Box<Running>),
    /// It cannot be read, or a bug was contained in it. The others go on.
    Failed(String),
}

struct Driver {
    config: crate::EngineConfig,
    store: Arc<dyn Store>,
    committer: Committer,
    clock: Arc<HybridClock>,
    disk: DiskGuard,
    board: Arc<Board>,
    peers: Peers,
    sync_in: mpsc::Receiver<(NodeId, Bytes)>,
    inbox: mpsc::UnboundedReceiver<Command>,
    told: mpsc::UnboundedSender<Result<Landed, StoreError>>,
    landed: mpsc::UnboundedReceiver<Result<Landed, StoreError>>,
    /// The beginning of the time that replicas are told.
    origin: Instant,
    spaces: BTreeMap<SpaceId, Space>,
    removing: BTreeMap<SpaceId, Vec<Reply<()>>>,
    /// Replicas that have something to take in.
    ready: BTreeSet<SpaceId>,
    /// When replicas are to be looked after though nothing arrives.
    wakes: BTreeSet<(Instant, SpaceId)>,
    tickets: u64,
    serial: u64,
    /// Batches on their way to the disk.
    flights: usize,
    metrics: Metrics,
    /// Those who wait for the end.
    farewell: Vec<oneshot::Sender<()>>,
}

/// Everything that can happen.
enum Event {
    Landed(Result<Landed, StoreError>),
    Frame(NodeId, Bytes),
    Command(Command),
    /// It is time, or there is more to do.
    Wake,
    /// Nobody holds a handle any more.
    Abandoned,
}

impl Driver {
    async fn run(mut self) -> StoreError {
        loop {
            let event = self.next().await;
            self.metrics.waiting = self.inbox.len() as u64;
            let now = Instant::now();
            if matches!(event, Event::Abandoned) {
                return self.end(StoreError::Closed);
            }
            if let Err(error) = self.take(event, now).and_then(|()| self.take_all(now)) {
                tracing::error!(%error, "the store has failed; the eventual engine stops");
                return self.end(error);
            }
            if !self.farewell.is_empty() {
                if self.flights == 0 {
                    return self.end(StoreError::Closed);
                }
                continue;
            }
            while let Some((at, id)) = self.wakes.first().copied().filter(|(at, _)| *at <= now) {
                self.wakes.remove(&(at, id));
                self.ready.insert(id);
            }
            self.step_all(now);
            self.beat(now);
            self.flush(now);
        }
    }

    async fn next(&mut self) -> Event {
        let wake = self.wakes.first().map(|(at, _)| *at);
        let wake = [wake, self.peers.due()].into_iter().flatten().min();
        let wake = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // At the end only what is on its way to the disk is waited for.
        let stepping = self.farewell.is_empty();
        tokio::select! {
            biased;
            Some(landed) = self.landed.recv() => Event::Landed(landed),
            Some((from, frame)) = self.sync_in.recv() => Event::Frame(from, frame),
            command = self.inbox.recv() => command.map_or(Event::Abandoned, Event::Command),
            () = wake, if stepping => Event::Wake,
            () = tokio::task::yield_now(), if stepping && !self.ready.is_empty() => Event::Wake,
        }
    }

    fn take(&mut self, event: Event, now: Instant) -> Result<(), StoreError> {
        match event {
            Event::Landed(landed) => self.land(landed?, now),
            Event::Frame(from, frame) => self.frame(from, frame, now),
            Event::Command(command) => self.command(command, now),
            Event::Wake | Event::Abandoned => {}
        }
        Ok(())
    }

    /// Takes in everything else that has arrived, so that it shares steps.
    fn take_all(&mut self, now: Instant) -> Result<(), StoreError> {
        for _ in 0..BURST {
            let Ok(landed) = self.landed.try_recv() else { break };
            self.land(landed?, now);
        }
        for _ in 0..BURST {
            let Ok((from, frame)) = self.sync_in.try_recv() else { break };
            self.frame(from, frame, now);
        }
        for _ in 0..BURST {
            let Ok(command) = self.inbox.try_recv() else { break };
            self.command(command, now);
        }
        Ok(())
    }

    fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Write { id, call, deadline, reply } => {
                let ticket = self.ticket();
                let Ok((running, lent)) = self.running(id, now) else {
                    let _ = reply.send(Err(self.not_served(id)));
                    return;
                };
                running.write(ticket, call, deadline, reply, &lent);
                self.metrics.writes += 1;
                self.ready.insert(id);
            }
            Command::Create { spec, reply } => self.create(spec, reply),
            Command::Remove { id, reply } => self.remove(id, reply),
            Command::Retire { id, reply } => self.retire(id, reply),
            Command::Order { id, order, reply } => {
                let ticket = self.ticket();
                match self.running(id, now) {
                    Ok((running, _)) => {
                        running.order(ticket, order, reply);
                        self.ready.insert(id);
                    }
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Command::SetMembers { id, members, reply } => self.queue(id, now, reply, |r| Queued::Members(members, r)),
            Command::Recount { id, reply } => self.queue(id, now, reply, Queued::Recount),
            Command::Damaged { id, key } => {
                if let Ok((running, _)) = self.running(id, now) {
                    running.replica.report_damage(key);
                    self.ready.insert(id);
                }
            }
            Command::Standing { id, reply } => {
                let running = self.running(id, now).ok();
                let _ = reply.send(running.and_then(|(running, lent)| status::standing(running, &lent)));
            }
            Command::Statuses { reply } => {
                let _ = reply.send(self.statuses(now));
            }
            Command::Shutdown { reply } => self.farewell.push(reply),
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn queue(&mut self, id: SpaceId, now: Instant, reply: Reply<()>, queued: impl FnOnce(Reply<()>) -> Queued) {
        match self.running(id, now) {
            Ok((running, _)) => {
                running.push(queued(reply), 64);
                self.ready.insert(id);
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// A replica that runs, and what its steps need.
    fn running(&mut self, id: SpaceId, now: Instant) -> Result<(&mut Running, Lent<'_>), SpaceError> {
        if !self.farewell.is_empty() {
            return Err(SpaceError::Stopped);
        }
        let lent = Lent { config: &self.config, store: &self.store, clock: &*self.clock, origin: self.origin, now };
        match self.spaces.get_mut(&id).map(|space| &mut space.slot) {
            Some(Slot::Running(running)) => Ok((running, lent)),
            Some(Slot::Failed(why)) => Err(SpaceError::Failed { why: why.clone() }),
            Some(Slot::Creating(..)) => Err(SpaceError::Busy { why: "it is being created".into() }),
            None => Err(SpaceError::Unknown(id)),
        }
    }

    /// Why a write is not taken.
    fn not_served(&self, id: SpaceId) -> Error {
        let unavailable = |why: &str| Error::Unavailable { node: self.config.replica.node, why: why.to_owned() };
        match self.spaces.get(&id).map(|space| &space.slot) {
            _ if !self.farewell.is_empty() => unavailable("the node is stopping"),
            Some(Slot::Failed(why)) => unavailable(why),
            Some(_) => unavailable("the replica is being created"),
            None => Error::NotHere { members: Vec::new() },
        }
    }

    /// Steps every replica that has something to take in and is not waiting for the disk; each on its own.
    fn step_all(&mut self, now: Instant) {
        let mut again = BTreeSet::new();
        while let Some(id) = self.ready.pop_first() {
            let Some(Space { serial, slot: Slot::Running(running), .. }) = self.spaces.get_mut(&id) else { continue };
            if !running.is_free() {
                // It is looked at again when its step has landed.
                continue;
            }
            let serial = *serial;
            let lent =
                Lent { config: &self.config, store: &self.store, clock: &*self.clock, origin: self.origin, now };
            self.metrics.steps += 1;
            match running.step(&lent) {
                Ok(Stepped { batch, persisting, early }) => {
                    if let Some(early) = early {
                        self.perform(id, early, now);
                    }
                    if batch.is_empty() {
                        // There is nothing to wait for: all that it tells is durable already.
                        self.settle(id, persisting, false, now, &mut again);
                    } else {
                        self.metrics.commits += 1;
                        self.submit(batch, Landed { id, serial, what: Durable::Step(Box::new(persisting)) });
                    }
                }
                Err(error) => self.fail(id, &error),
            }
        }
        self.ready = again;
    }

    /// What rides along comes back only when the batch is durable.
    fn submit(&mut self, batch: duet_store::Batch, landed: Landed) {
        self.flights += 1;
        let told = self.told.clone();
        self.committer.submit_with(batch, move |result| {
            let _ = told.send(result.map(|()| landed));
        });
    }

    fn land(&mut self, landed: Landed, now: Instant) {
        self.flights -= 1;
        let Landed { id, serial, what } = landed;
        let current = self.spaces.get(&id).is_some_and(|space| space.serial == serial);
        match what {
            Durable::Removed => self.removed(id),
            Durable::Created if current => self.created(id, now),
            Durable::Step(persisting) if current => {
                let mut again = BTreeSet::new();
                self.settle(id, *persisting, true, now, &mut again);
                self.ready.append(&mut again);
            }
            // Removed, or failed, meanwhile.
            Durable::Created | Durable::Step(_) => {}
        }
    }

    /// A step is durable: its effects, and when the next one is due. `again` takes it in if that is now.
    fn settle(
        &mut self,
        id: SpaceId,
        persisting: Persisting,
        wrote: bool,
        now: Instant,
        again: &mut BTreeSet<SpaceId>,
    ) {
        let Some(Space { slot: Slot::Running(running), .. }) = self.spaces.get_mut(&id) else { return };
        let effects = running.landed(persisting, wrote, now);
        self.perform(id, effects, now);
        let Ok((running, lent)) = self.running(id, now) else { return };
        let (before, wake) = (running.wake, running.schedule(&lent));
        running.wake = wake;
        let moved = running.has_moved();
        self.wakes.remove(&(before, id));
        if wake <= now {
            again.insert(id);
        } else {
            self.wakes.insert((wake, id));
        }
        if moved {
            self.peers.changed();
        }
    }

    fn perform(&mut self, id: SpaceId, effects: Effects, now: Instant) {
        for (to, envelope) in effects.messages {
            let by = if envelope.message.is_patient() { now + self.config.hold } else { now };
            match envelope.encode() {
                Ok(bytes) => self.metrics.dropped += self.peers.send(&to, &bytes, by),
                Err(error) => tracing::error!(space = %id, %error, "a message cannot be encoded"),
            }
        }
        let Some(Space { slot: Slot::Running(running), name, .. }) = self.spaces.get_mut(&id) else { return };
        for (ticket, result) in effects.orders {
            running.carried_out(ticket, result);
        }
        for ticket in effects.fenced {
            let (namespace, why) = (name.clone(), "its epoch is about to end".to_owned());
            running.answer(ticket, Err(Error::Changing { namespace, why }));
        }
        for (ticket, answer) in effects.answers {
            match &answer {
                Err(Error::NotEnoughCopies { .. }) => self.metrics.not_enough_copies += 1,
                Err(Error::ClockSkew(_)) => self.metrics.clock_skew += 1,
                _ => {}
            }
            running.answer(ticket, answer);
        }
    }

    /// Lets out the frames that are to leave by then, and the figures.
    fn flush(&mut self, by: Instant) {
        self.peers.flush(by, &mut self.metrics);
        self.metrics.spaces = self.spaces.len() as u64;
        *self.board.metrics() = self.metrics;
    }

    fn end(mut self, error: StoreError) -> StoreError {
        let why = match &error {
            StoreError::Closed => "the node is stopping".to_owned(),
            error => format!("the node's store has failed: {error}"),
        };
        let node = self.config.replica.node;
        for (_, space) in std::mem::take(&mut self.spaces) {
            match space.slot {
                Slot::Running(mut running) => running.stop(node, &why, &SpaceError::Stopped),
                Slot::Creating(_, replies) => tell(replies, &Err(SpaceError::Stopped)),
                Slot::Failed(_) => {}
            }
        }
        for (_, replies) in std::mem::take(&mut self.removing) {
            tell(replies, &Err(SpaceError::Stopped));
        }
        self.flush(Instant::now() + self.config.hold);
        for reply in self.farewell {
            let _ = reply.send(());
        }
        error
    }
}

fn tell(replies: Vec<Reply<()>>, result: &Result<(), SpaceError>) {
    for reply in replies {
        let _ = reply.send(result.clone());
    }
}
