//! Forgetting tombstones, and trimming the index: by knowledge, never by a timer.

use duet_proto::Body;
use duet_store::{Family, StoreError, layout};

use super::Step;
use crate::{Frontier, Planted, rows::Standing, table::ReadError};

/// The least time between two looks at what everybody holds, in milliseconds.
const TRIM_MS: u64 = 10;

impl Step<'_> {
    /// Forgets the tombstones that every member, joining and leaving ones included, has durably seen, each by a
    /// report of this very version of the members. Each stays in the floor as a stamp: nobody who has not seen it is
    /// merged from.
    pub(super) fn forget(&mut self) -> Result<(), StoreError> {
        self.drop_idle_walks();
        if self.r.meta.fence.is_some() {
            return Ok(());
        }
        self.adopt_departed()?;
        self.clear_index();
        let Some(horizon) = self.horizon() else { return Ok(()) };
        let by_age = self.r.planted(Planted::ForgetByAge);
        if self.r.synced.tombstones == 0 || self.r.barren.as_ref() == Some(&horizon) {
            return Ok(());
        }
        let old = self.cx.clock.wall_ms().saturating_sub(500);
        let (from, to) = layout::tombstones_from(self.r.namespace, self.r.listed_from);
        let (mut doomed, mut kept) = (Vec::new(), None);
        for row in self.cx.view.scan(Family::Namespace, &from, Some(&to))?.take(self.r.config.forget_rows) {
            let (row, key) = row?;
            let stamp = layout::tombstone_stamp(&row)?;
            let seen = stamp.epoch < self.r.epoch || horizon.includes(stamp);
            if if by_age { stamp.hlc.millis() < old } else { seen } {
                doomed.push((key, stamp));
            } else if kept.is_none() {
                kept = Some(stamp);
            }
        }
        let last = doomed.last().map(|(_, stamp)| *stamp);
        self.r.listed_from = kept.or(last).unwrap_or(self.r.listed_from);
        // What comes later lies beyond this horizon.
        self.r.barren = (doomed.is_empty() && !by_age).then_some(horizon);
        for (key, stamp) in doomed {
            let record = match self.table.get(&key) {
                Ok(record) => record,
                Err(ReadError::Record(_)) => {
                    self.r.listed_from = self.r.listed_from.min(stamp);
                    self.damaged(&key);
                    continue;
                }
                Err(ReadError::Store(error)) => return Err(error),
            };
            // Something may have taken its place in this very step, or when it was damaged.
            let Some(record) = record.filter(|r| r.stamp == stamp && r.body == Body::Tombstone) else {
                self.table.unlist_tombstone(stamp);
                continue;
            };
            self.table.replace(&mut self.r.meta, &key, Some(&record), None);
            self.r.counters.forgotten += 1;
            if stamp.epoch == self.r.epoch && !by_age {
                self.r.meta.floor.raise(stamp.node, stamp.hlc);
            }
        }
        Ok(())
    }

    /// Lists no more what everybody holds, by all that they have said.
    pub(super) fn trim(&mut self) {
        if self.r.meta.fence.is_some() || self.cx.now_ms < self.r.trimmed_ms + TRIM_MS {
            return;
        }
        self.r.trimmed_ms = self.cx.now_ms;
        let own = self.r.planted(Planted::TrimByOwnFrontier).then(|| self.r.synced.frontier.clone());
        if let Some(horizon) = own.or_else(|| self.horizon()) {
            self.r.meta.trimmed.join(&horizon);
        }
    }

    /// Removes the rows of what is listed no more, once there may be many, and after a while.
    fn clear_index(&mut self) {
        let due = self.cx.now_ms >= self.r.cleared_ms + self.r.config.idle_report_ms;
        if !due && self.r.indexed < self.r.config.clear_rows {
            return;
        }
        self.trim();
        if !self.r.cleared.covers(&self.r.meta.trimmed) {
            (self.r.indexed, self.r.cleared_ms) = (0, self.cx.now_ms);
            self.table.clear(&self.r.cleared, &self.r.meta.trimmed);
            self.r.cleared = self.r.meta.trimmed.clone();
        }
    }

    /// What everybody is known to hold durably; `None` if somebody has not said so in this version of the members.
    fn horizon(&self) -> Option<Frontier> {
        let (members, mut horizon) = (&self.r.synced.members, self.r.synced.frontier.clone());
        if members.keep_tombstones || self.r.synced.standing != Standing::Whole || self.r.meta.members != *members {
            return None;
        }
        let stale = self.r.planted(Planted::ForgetOnStaleView);
        for node in members.everyone().filter(|node| *node != self.r.config.node) {
            match self.r.peers.get(&node) {
                Some(peer) if peer.version == members.version || stale => horizon.meet(&peer.frontier),
                _ => return None,
            }
        }
        Some(horizon)
    }
}
