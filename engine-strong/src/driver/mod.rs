//! The driver: the one task that owns the engine's input and output.

use std::{
    future::Future,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use duet_proto::{Error, Hlc, NodeId};
use duet_store::{Committer, DiskGuard, HybridClock, Store, StoreError};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::Instant,
};

use crate::{
    Config, Handle,
    handle::{Board, Command},
    host::{Host, Persisted, Step},
};

#[cfg(test)]
mod tests;

/// How much of one input is taken before the others get their turn.
const BURST: usize = 4096;
/// Pieces of snapshots handed over in one step.
const CHUNKS: usize = 4;
/// How long leaderships may take to be handed over, in ticks.
const FAREWELL_TICKS: u32 = 30;

/// The channel ends by which the engine talks to its peers. What goes in is opaque to whoever carries it; it may be
/// lost, late or reordered, but the sender's node is what the transport has authenticated.
#[derive(Debug)]
pub struct PeerLink {
    /// Raft frames to peers. When it is full, frames are dropped: Raft sends again.
    pub raft_out: mpsc::Sender<(NodeId, Bytes)>,
    /// Raft frames from peers.
    pub raft_in: mpsc::Receiver<(NodeId, Bytes)>,
    /// Pieces of snapshots to peers.
    pub bulk_out: mpsc::Sender<(NodeId, Bytes)>,
    /// Pieces of snapshots from peers.
    pub bulk_in: mpsc::Receiver<(NodeId, Bytes)>,
}

/// The engine; [`StrongEngine::start`] is all there is to it.
#[derive(Debug)]
pub struct StrongEngine;

impl StrongEngine {
    /// Opens every group that the store holds. The future drives them, and must be polled until it ends: after
    /// [`Handle::shutdown`], or when the store has failed.
    ///
    /// # Errors
    /// If the list of groups cannot be read. A group that is damaged does not keep the others from starting.
    pub fn start(
        config: Config,
        store: Arc<dyn Store>,
        committer: Committer,
        clock: Arc<HybridClock>,
        disk: DiskGuard,
        link: PeerLink,
    ) -> Result<(Handle, impl Future<Output = ()> + Send + 'static), StoreError> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (told, durable) = mpsc::unbounded_channel();
        let board = Arc::new(Mutex::new(Board::default()));
        let handle = Handle { node: config.node, commands, board: board.clone(), store: store.clone() };
        let now = Instant::now();
        let host = Host::open(config.clone(), store, board, now)?;
        let next_tick = now + config.tick;
        let driver =
            Driver { config, host, committer, clock, disk, link, inbox, told, durable, next_tick, farewell: None };
        Ok((handle, driver.run()))
    }
}

type Durable = Result<Persisted, StoreError>;

struct Driver {
    config: Config,
    host: Host,
    committer: Committer,
    clock: Arc<HybridClock>,
    disk: DiskGuard,
    link: PeerLink,
    inbox: mpsc::UnboundedReceiver<Command>,
    told: mpsc::UnboundedSender<Durable>,
    durable: mpsc::UnboundedReceiver<Durable>,
    next_tick: Instant,
    farewell: Option<Farewell>,
}

/// A shutdown under way.
struct Farewell {
    replies: Vec<oneshot::Sender<()>>,
    until: Instant,
}

/// Everything that can happen.
enum Event {
    Durable(Durable),
    Frame(NodeId, Bytes),
    Bulk(NodeId, Bytes),
    Command(Command),
    /// Time has passed: a tick of Raft's clock is due, or something else.
    Due,
    /// There is more to do.
    Go,
    /// Nobody holds a handle or the links any more.
    Abandoned,
}

impl Driver {
    async fn run(mut self) {
        loop {
            let event = self.next().await;
            self.host.metrics.waiting = self.inbox.len() as u64;
            let now = Instant::now();
            if matches!(event, Event::Abandoned) || !self.take(event, now) || !self.take_all(now) {
                break;
            }
            if now >= self.next_tick {
                if let Some(error) = self.host.store_failure() {
                    tracing::error!(%error, "the store has failed; the strong engine stops");
                    break;
                }
                self.host.tick(now);
                // A node that stood still does not run after the time it missed: it has heard nothing in it.
                self.next_tick = (self.next_tick + self.config.tick).max(now);
            }
            self.host.announce(now);
            let step = self.host.step(CHUNKS.min(self.link.bulk_out.capacity()), now);
            self.perform(step, now);
            if self.farewell.is_some() && self.is_over(now) {
                break;
            }
        }
        let why = match self.committer.failure() {
            Some(failure) => format!("the node's store has failed: {failure}"),
            None => "the node is stopping".to_owned(),
        };
        self.host.stop(&why);
        for reply in self.farewell.into_iter().flat_map(|f| f.replies) {
            let _ = reply.send(());
        }
    }

    async fn next(&mut self) -> Event {
        let restless = self.host.is_restless(self.link.bulk_out.capacity());
        let due = self.host.alarm().map_or(self.next_tick, |alarm| alarm.min(self.next_tick));
        tokio::select! {
            biased;
            Some(durable) = self.durable.recv() => Event::Durable(durable),
            Some((from, frame)) = self.link.raft_in.recv() => Event::Frame(from, frame),
            command = self.inbox.recv() => command.map_or(Event::Abandoned, Event::Command),
            Some((from, piece)) = self.link.bulk_in.recv() => Event::Bulk(from, piece),
            () = tokio::time::sleep_until(due) => Event::Due,
            () = tokio::task::yield_now(), if restless => Event::Go,
        }
    }

    /// Takes one event in. Whether to go on.
    fn take(&mut self, event: Event, now: Instant) -> bool {
        match event {
            Event::Durable(Ok(persisted)) => self.host.persisted(persisted, now),
            Event::Durable(Err(error)) => {
                tracing::error!(%error, "the store has failed; the strong engine stops");
                return false;
            }
            Event::Frame(from, frame) => self.host.frame(from, frame, now),
            Event::Bulk(from, piece) => self.host.bulk(from, &piece, now),
            Event::Command(command) => self.command(command, now),
            Event::Due | Event::Go => {}
            Event::Abandoned => return false,
        }
        true
    }

    /// Takes in everything else that has arrived, so that it shares a step.
    fn take_all(&mut self, now: Instant) -> bool {
        for _ in 0..BURST {
            let Ok(durable) = self.durable.try_recv() else { break };
            if !self.take(Event::Durable(durable), now) {
                return false;
            }
        }
        for _ in 0..BURST {
            let Ok((from, frame)) = self.link.raft_in.try_recv() else { break };
            self.host.frame(from, frame, now);
        }
        for _ in 0..BURST {
            let Ok(command) = self.inbox.try_recv() else { break };
            self.command(command, now);
        }
        for _ in 0..BURST {
            let Ok((from, piece)) = self.link.bulk_in.try_recv() else { break };
            self.host.bulk(from, &piece, now);
        }
        true
    }

    fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Shutdown { reply } => {
                let until = now + self.config.tick * FAREWELL_TICKS;
                self.farewell.get_or_insert(Farewell { replies: Vec::new(), until }).replies.push(reply);
            }
            Command::Call { id, call, deadline, reply } if self.farewell.is_none() => {
                let stamp = if call.op.is_write() { self.stamp() } else { Ok(Hlc::ZERO) };
                match stamp {
                    Ok(stamp) => self.host.call(id, call, stamp, deadline, reply, now),
                    Err(error) => {
                        let _ = reply.send(Err(error));
                    }
                }
            }
            Command::Propose { id, proposal, deadline, reply } if self.farewell.is_none() => {
                self.host.propose(id, proposal, deadline, reply, now);
            }
            other => self.host.command(other, now),
        }
    }

    fn stamp(&self) -> Result<Hlc, Error> {
        let node = self.config.node;
        self.disk.check().map_err(|full| full.at(node))?;
        self.clock.tick().map_err(|error| error.at(node))
    }

    fn perform(&mut self, step: Step, now: Instant) {
        // The disk first: it works while the frames travel.
        if let Some(write) = step.write {
            let (batch, held) = write.into_parts();
            let told = self.told.clone();
            self.committer.submit_with(batch, move |result| {
                let _ = told.send(result.map(|()| held.durable()));
            });
        }
        for (to, frame) in step.frames {
            if let Err(TrySendError::Full(_)) = self.link.raft_out.try_send((to, frame)) {
                self.host.unreachable(to, now);
            }
        }
        for piece in step.bulk {
            // Lost pieces are asked for again.
            let _ = self.link.bulk_out.try_send(piece);
        }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        let left = self.host.hand_over(now);
        !left || self.farewell.as_ref().is_some_and(|f| now >= f.until)
    }
}
