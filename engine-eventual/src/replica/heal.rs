//! Healing: damaged records are replaced by a peer's; replicas that claim the same and differ compare range by range.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use duet_proto::{Body, Digest, Hlc, NodeId, Record, Stamp};
use duet_store::{Family, StoreError, layout};

use super::Step;
use crate::{
    Frontier,
    message::{Compare, Differs, Message},
    table::ReadError,
};

/// What is being healed. Not durable: damage is found again.
#[derive(Debug, Default)]
pub(super) struct Heal {
    /// Keys whose records cannot be read, with what this replica claimed when that was found.
    damaged: BTreeMap<Bytes, Frontier>,
    /// Those of them that the last recount left out.
    uncounted: BTreeSet<Bytes>,
    asked_ms: u64,
    /// A comparison on its way: with whom, and the range it has come to.
    comparing: Option<(NodeId, Compare, u64)>,
}

/// Keys that are healed at a time; more are found again later.
const AT_A_TIME: usize = 256;

impl Heal {
    pub(super) fn is_damaged(&self, key: &Bytes) -> bool {
        self.damaged.contains_key(key)
    }

    pub(super) fn is_open(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Whether a comparison is on its way.
    pub(super) fn is_comparing(&self, now_ms: u64) -> bool {
        self.comparing.as_ref().is_some_and(|(_, _, until)| now_ms < *until)
    }

    pub(super) fn stop_comparing(&mut self) {
        self.comparing = None;
    }
}

impl super::Replica {
    /// A reader or a scrub found a record that cannot be read: the next step asks a peer for it.
    ///
    /// Not behind a fence: the epoch may be over, and the records those of the next one. What is damaged is found
    /// again when the fence is lifted.
    pub fn report_damage(&mut self, key: Bytes) {
        if self.meta.fence.is_some() {
            return;
        }
        if self.heal.damaged.len() < AT_A_TIME && !self.heal.is_damaged(&key) {
            self.counters.damaged += 1;
            self.heal.damaged.insert(key, self.meta.frontier.clone());
        }
    }
}

impl Step<'_> {
    pub(super) fn damaged(&mut self, key: &Bytes) {
        self.r.report_damage(key.clone());
    }

    /// Asks everybody for what is damaged, again after a while.
    pub(super) fn drive_heal(&mut self) {
        let now_ms = self.cx.now_ms;
        if self.r.heal.damaged.is_empty() || now_ms < self.r.heal.asked_ms || self.is_fenced() {
            return;
        }
        self.r.heal.asked_ms = now_ms + self.r.config.stall_ms;
        let keys = self.r.heal.damaged.keys().cloned().collect();
        let others = self.others();
        self.send(others, Message::Fetch { keys });
    }

    /// Replaces damaged records, if the sender holds all that this replica claimed when it found them.
    pub(super) fn fetched(
        &mut self,
        frontier: &Frontier,
        items: Vec<(Bytes, Option<Record>)>,
    ) -> Result<(), StoreError> {
        let stamps = items.iter().filter_map(|(_, record)| Some(record.as_ref()?.stamp));
        let last = stamps.filter(|stamp| stamp.epoch == self.r.epoch).map(|stamp| stamp.hlc).max();
        if !self.above_floor(frontier) || !self.in_time(last.unwrap_or(Hlc::ZERO)) {
            return Ok(());
        }
        let mut found = BTreeMap::new();
        for (key, record) in items {
            // What this very step has changed is looked at again when that is durable.
            let claimed = self.r.heal.damaged.get(&key).filter(|_| !self.table.touches(&key));
            if claimed.is_some_and(|claimed| frontier.covers(claimed)) {
                self.r.heal.damaged.remove(&key);
                found.insert(key, record);
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let (mut listed, mut recount) = (self.listed(&found)?, false);
        for (key, record) in found {
            recount |= !self.restore(&key, record, listed.remove(&key).unwrap_or_default())?;
        }
        if recount { self.recount() } else { Ok(()) }
    }

    /// Puts a peer's record in the place of a damaged one, of which only the index is left: its stamps there.
    /// Whether the digest and the counts are right afterwards.
    fn restore(&mut self, key: &Bytes, record: Option<Record>, listed: Vec<Stamp>) -> Result<bool, StoreError> {
        let uncounted = self.r.heal.uncounted.remove(key);
        let indexed = |record: &&Record| self.table.indexes(&self.r.meta, record.stamp);
        match self.table.get(key) {
            Ok(mine) if listed.iter().eq(mine.iter().filter(indexed).map(|record| &record.stamp)) => return Ok(true),
            Err(ReadError::Store(error)) => return Err(error),
            Ok(_) | Err(ReadError::Record(_)) => {}
        }
        self.r.counters.healed += 1;
        self.r.barren = None;
        self.effects.changed.push(key.clone());
        // The index lists nothing for a record of an earlier epoch, nor for one that every member holds.
        let of_all = |record: &Record| listed.is_empty() && !indexed(&record);
        let same = record.as_ref().is_some_and(|record| listed == [record.stamp] || of_all(record));
        for stamp in listed {
            // Whether it was a tombstone is not known; its row goes if there is one.
            self.table.unlist(stamp);
        }
        let before = self.r.meta.summary();
        self.table.replace(&mut self.r.meta, key, None, record);
        if same && !uncounted {
            // It was counted all the time.
            (self.r.meta.digest, self.r.meta.keys, self.r.meta.tombstones) =
                (before.digest, before.keys, before.tombstones);
        }
        Ok(same)
    }

    /// The stamps under which the index lists some keys. A walk of the whole index: damage is rare.
    fn listed(&self, keys: &BTreeMap<Bytes, Option<Record>>) -> Result<BTreeMap<Bytes, Vec<Stamp>>, StoreError> {
        let (from, to) = layout::prefix_range(layout::group_prefix(self.r.namespace, self.r.epoch));
        let mut stamps: BTreeMap<Bytes, Vec<Stamp>> = BTreeMap::new();
        for row in self.cx.view.scan(Family::Origin, &from, Some(&to))? {
            let (row, listed) = row?;
            let (_, epoch, node, hlc) = layout::split_origin_key(&row)?;
            let stamp = Stamp { epoch, hlc, node };
            if keys.contains_key(&listed) && self.table.indexes(&self.r.meta, stamp) {
                stamps.entry(listed).or_default().push(stamp);
            }
        }
        Ok(stamps)
    }

    /// Counts everything anew: the digest of a lost record cannot be taken out of the sum.
    pub(super) fn recount(&mut self) -> Result<(), StoreError> {
        let (mut digest, mut keys, mut tombstones) = (Digest::EMPTY, 0, 0);
        self.r.heal.uncounted.clear();
        let mut take = |key: &Bytes, record: &Record| {
            digest.replace(key, None, Some(record));
            *(if record.body == Body::Tombstone { &mut tombstones } else { &mut keys }) += 1;
        };
        let (from, to) = layout::prefix_range(layout::namespace_prefix(self.r.namespace));
        for row in self.cx.view.scan(Family::Data, &from, Some(&to))? {
            let (place, _) = row?;
            let (_, key) = layout::split_data_key(&place)?;
            match self.table.get(&key) {
                Ok(Some(record)) => take(&key, &record),
                Ok(None) => {}
                Err(ReadError::Record(_)) => {
                    self.r.report_damage(key.clone());
                    self.r.heal.uncounted.insert(key);
                }
                Err(ReadError::Store(error)) => return Err(error),
            }
        }
        self.table.new_keys().for_each(|(key, record)| take(key, record));
        (self.r.meta.digest, self.r.meta.keys, self.r.meta.tombstones) = (digest, keys, tombstones);
        Ok(())
    }

    /// Begins to compare with a peer that claims the same and whose data differs.
    pub(super) fn compare_with(&mut self, peer: NodeId) {
        let idle = self.r.heal.comparing.as_ref().is_none_or(|(_, _, until)| self.cx.now_ms >= *until);
        if idle && let Ok(Some(range)) = self.range(None) {
            self.ask_compare(peer, range);
        }
    }

    fn ask_compare(&mut self, peer: NodeId, range: Compare) {
        let until = self.cx.now_ms + self.r.config.stall_ms;
        self.r.heal.comparing = Some((peer, range.clone(), until));
        self.send([peer], Message::Compare(range));
    }

    /// Takes what a range lacks here, unless it may have been deleted by what was forgotten; goes on with the next.
    pub(super) fn differs(&mut self, from: NodeId, differs: Differs) -> Result<(), StoreError> {
        let asked = self.r.heal.comparing.as_ref();
        let Differs { frontier, after, to, items } = differs;
        if !asked.is_some_and(|(peer, r, _)| (*peer, &r.after, &r.frontier) == (from, &after, &frontier)) {
            return Ok(());
        }
        self.r.heal.comparing = None;
        if !self.above_floor(&frontier) || frontier != self.r.synced.frontier {
            return Ok(());
        }
        let forgotten = self.r.meta.floor.last();
        for (key, theirs) in items.into_iter().flatten() {
            let mine = match self.table.get(&key) {
                Ok(mine) => mine,
                Err(ReadError::Record(_)) => {
                    self.damaged(&key);
                    continue;
                }
                Err(ReadError::Store(error)) => return Err(error),
            };
            let take = match &mine {
                None if theirs.stamp.epoch < self.r.epoch => forgotten == Hlc::ZERO,
                None => theirs.stamp.hlc > forgotten && theirs.stamp.epoch == self.r.epoch,
                // Of two values under one stamp the greater one is kept, here as there.
                Some(mine) if mine.stamp == theirs.stamp => body_order(&theirs) > body_order(mine),
                Some(mine) => theirs.stamp > mine.stamp,
            };
            if take {
                self.r.counters.healed += 1;
                self.table.replace(&mut self.r.meta, &key, mine.as_ref(), Some(theirs));
            }
        }
        match to.map(|to| self.range(Some(&to))).transpose()?.flatten() {
            Some(range) => self.ask_compare(from, range),
            // The sum itself may be what is wrong.
            None => self.recount()?,
        }
        Ok(())
    }
}

fn body_order(record: &Record) -> Option<&Bytes> {
    record.live()
}
