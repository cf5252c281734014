//! Which namespaces are to be looked at, and when.

use std::collections::{BTreeMap, BTreeSet};

use duet_proto::NamespaceId;
use tokio::time::Instant;

use super::{Pace, track::Track};

/// Invariant: a namespace is in one of `waiting` and `away` at most; `order` has the times of `waiting`.
#[derive(Default)]
pub(super) struct Queue {
    waiting: BTreeMap<NamespaceId, (Instant, Track)>,
    order: BTreeSet<(Instant, NamespaceId)>,
    /// Those that are being looked at, and whether they have changed since.
    away: BTreeMap<NamespaceId, bool>,
}

impl Queue {
    /// A namespace has changed: it is looked at now, or as soon as it is not being looked at.
    pub(super) fn mark(&mut self, id: NamespaceId, now: Instant) {
        if let Some(changed) = self.away.get_mut(&id) {
            *changed = true;
            return;
        }
        let mut track = self.take(id).unwrap_or_default();
        track.renew();
        self.put(id, now, track);
    }

    /// One whose time has come; it is away until it is [`done`](Queue::done).
    pub(super) fn due(&mut self, now: Instant) -> Option<(NamespaceId, Track)> {
        let (_, id) = self.order.first().copied().filter(|(at, _)| *at <= now)?;
        let track = self.take(id)?;
        self.away.insert(id, false);
        Some((id, track))
    }

    /// It was looked at.
    pub(super) fn done(&mut self, id: NamespaceId, mut track: Track, pace: Pace, now: Instant) {
        if self.away.remove(&id) == Some(true) {
            track.renew();
            self.put(id, now, track);
        } else if let Some(pause) = pace.pause() {
            self.put(id, now + pause, track);
        }
    }

    /// When the next one's time comes.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    fn take(&mut self, id: NamespaceId) -> Option<Track> {
        let (at, track) = self.waiting.remove(&id)?;
        self.order.remove(&(at, id));
        Some(track)
    }

    fn put(&mut self, id: NamespaceId, at: Instant, track: Track) {
        self.order.insert((at, id));
        self.waiting.insert(id, (at, track));
    }
}
