//! What comes from peers and goes to them, and which of them have been heard.
//!
//! A node that has said nothing else for a while sends an empty frame, a beat, whatever number of replicas it holds.
//! A peer that is heard after a silence may have missed anything: the replicas that are apart from it report at once,
//! which is how a healed partition is found.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use duet_proto::NodeId;
use duet_store::warm_soon;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

use super::{
    Driver, Slot, Space,
    wire::{self, Outbox},
};
use crate::{Envelope, Message, Metrics, SpaceId};

/// Who has nothing to say beats as often as this.
const BEAT: Duration = Duration::from_secs(1);
/// A peer that was not heard for this long may have been away.
const SILENCE: Duration = Duration::from_millis(1500);
/// A peer that was not heard for this long is not counted as active.
const ABSENCE: Duration = Duration::from_millis(3500);

/// The other nodes that hold a replica of something that is held here.
pub(super) struct Peers {
    out: mpsc::Sender<(NodeId, Bytes)>,
    outbox: Outbox,
    known: BTreeSet<NodeId>,
    /// Those of them that seem not to be there.
    pub(super) silent: BTreeSet<NodeId>,
    /// Whether replicas have come, gone, or changed members since `known` was made.
    stale: bool,
    heard: BTreeMap<NodeId, Instant>,
    sent: BTreeMap<NodeId, Instant>,
    next_beat: Instant,
}

impl Peers {
    pub(super) fn new(out: mpsc::Sender<(NodeId, Bytes)>, now: Instant) -> Peers {
        Peers {
            out,
            outbox: Outbox::default(),
            known: BTreeSet::new(),
            silent: BTreeSet::new(),
            stale: false,
            heard: BTreeMap::new(),
            sent: BTreeMap::new(),
            next_beat: now,
        }
    }

    pub(super) fn changed(&mut self) {
        self.stale = true;
    }

    /// Whether a peer was heard lately.
    pub(super) fn is_active(&self, node: NodeId, now: Instant) -> bool {
        self.heard.get(&node).is_some_and(|at| now.saturating_duration_since(*at) <= ABSENCE)
    }

    /// Notes that a peer was heard; whether it may have been away.
    fn hear(&mut self, node: NodeId, now: Instant) -> bool {
        let before = self.heard.insert(node, now);
        before.is_none_or(|at| now.saturating_duration_since(at) > SILENCE)
    }

    /// Queues a message to several peers, to leave by then; how many of them it is too long for.
    pub(super) fn send(&mut self, to: &[NodeId], message: &[u8], by: Instant) -> u64 {
        to.iter().map(|node| u64::from(!self.outbox.push(*node, message, by))).sum()
    }

    fn next_beat(&self) -> Option<Instant> {
        (self.stale || !self.known.is_empty()).then_some(self.next_beat)
    }

    /// When something is to be said though nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.next_beat(), self.outbox.due()].into_iter().flatten().min()
    }

    /// Lets out what is to leave by then.
    pub(super) fn flush(&mut self, by: Instant, metrics: &mut Metrics) {
        let now = Instant::now();
        for (to, frame) in self.outbox.take(by) {
            let bytes = frame.len() as u64;
            if let Err(TrySendError::Full(_)) = self.out.try_send((to, frame)) {
                metrics.dropped += 1;
                continue;
            }
            metrics.frames_out += 1;
            metrics.bytes_out += bytes;
            self.sent.insert(to, now);
        }
    }
}

impl Driver {
    /// A frame of the sync lane. What cannot be read is counted, and its sender asked again in time.
    pub(super) fn frame(&mut self, from: NodeId, frame: Bytes, now: Instant) {
        self.metrics.frames_in += 1;
        self.metrics.bytes_in += frame.len() as u64;
        if self.peers.hear(from, now) {
            self.returned(from, now);
        }
        let items = match wire::read(frame) {
            Ok(items) => items,
            Err(error) => {
                tracing::warn!(%from, %error, "a peer's frame was refused");
                self.metrics.malformed += 1;
                return;
            }
        };
        // Clients are refused at the reserve; what their writes elsewhere come to may use half of it.
        let full = self.disk.reserve() > 0 && self.disk.free() <= self.disk.reserve() / 2;
        for item in items {
            match Envelope::decode(&item) {
                Ok(envelope) if full && bears_data(&envelope.message) => self.metrics.disk_refused += 1,
                Ok(envelope) => self.envelope(from, envelope, item.len(), now),
                Err(error) => {
                    tracing::warn!(%from, %error, "a peer's message was refused");
                    self.metrics.malformed += 1;
                }
            }
        }
    }

    fn envelope(&mut self, from: NodeId, envelope: Envelope, size: usize, now: Instant) {
        let id = SpaceId { namespace: envelope.namespace, epoch: envelope.epoch };
        let Ok((running, lent)) = self.running(id, now) else {
            self.metrics.unknown += 1;
            return;
        };
        if let Message::Push(push) = &envelope.message {
            // The step will look at what they replace.
            warm_soon(lent.store, id.namespace, push.writes.iter().map(|write| &write.key));
        }
        let gathers = envelope.message.is_patient();
        let taken = running.hear(from, envelope, size, lent.config);
        if gathers {
            let (before, by) = (running.wake, running.wake.min(now + lent.config.gather));
            running.wake = by;
            self.wakes.remove(&(before, id));
            self.wakes.insert((by, id));
        } else {
            self.ready.insert(id);
        }
        self.metrics.dropped += u64::from(!taken);
    }

    /// A peer was away: whatever is apart from it is told what is held here.
    fn returned(&mut self, from: NodeId, now: Instant) {
        for (id, space) in &mut self.spaces {
            if let Slot::Running(running) = &mut space.slot
                && running.replica.members().hears(from)
                && running.replica.is_apart()
            {
                running.replica.report_soon();
                self.ready.insert(*id);
            }
        }
        // So that it learns as soon that this node is back.
        self.peers.outbox.beat(from, now);
    }

    /// Tells the replicas whom to ask last: who was not heard lately, and does not live by gossip either.
    fn note_silence(&mut self, now: Instant) {
        let alive = self.board.alive();
        let lives =
            |node: &NodeId| self.peers.is_active(*node, now) || alive.get(node).is_some_and(|word| word.alive);
        let silent: BTreeSet<NodeId> = self.peers.known.iter().filter(|node| !lives(node)).copied().collect();
        drop(alive);
        if silent != self.peers.silent {
            for space in self.spaces.values_mut() {
                if let Slot::Running(running) = &mut space.slot {
                    running.replica.set_silent(&silent);
                }
            }
            self.peers.silent = silent;
        }
    }

    /// Beats to those who have not heard anything lately.
    pub(super) fn beat(&mut self, now: Instant) {
        if now < self.peers.next_beat || self.peers.next_beat().is_none() {
            return;
        }
        self.peers.next_beat = now + BEAT;
        if std::mem::take(&mut self.peers.stale) {
            let me = self.config.replica.node;
            let running = self.spaces.values().filter_map(|space| match &space.slot {
                Slot::Running(running) => Some(running.replica.members()),
                _ => None,
            });
            self.peers.known = running.flat_map(|members| members.everyone()).filter(|node| *node != me).collect();
            self.board.peers().clone_from(&self.peers.known);
        }
        for node in &self.peers.known {
            if self.peers.sent.get(node).is_none_or(|at| now.saturating_duration_since(*at) >= BEAT / 2) {
                self.peers.outbox.beat(*node, now);
            }
        }
        self.note_silence(now);
        let open = |space: &Space| matches!(&space.slot, Slot::Running(running) if running.is_open());
        self.metrics.open = self.spaces.values().filter(|space| open(space)).count() as u64;
        if self.config.gossip.is_some() {
            *self.board.words() = self.words();
        }
    }
}

/// Whether taking it in takes disk space.
fn bears_data(message: &Message) -> bool {
    matches!(
        message,
        Message::Push(_) | Message::Chunk(_) | Message::Copied(_) | Message::Fetched { .. } | Message::Differs(_)
    )
}
