//! Healing: damaged records are replaced by a peer's; replicas that claim the same and differ compare range by range.

use std::collections::BTreeMap;

use bytes::Bytes;
use duet_proto::{Body, Digest, NodeId, Record};
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
}

impl super::Replica {
    /// A reader or a scrub found a record that cannot be read: the next step asks a peer for it.
    pub fn report_damage(&mut self, key: Bytes) {
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
        if self.r.heal.damaged.is_empty() || now_ms < self.r.heal.asked_ms {
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
        if !self.above_floor(frontier) {
            return Ok(());
        }
        let mut recount = false;
        for (key, record) in items {
            if self.r.heal.damaged.get(&key).is_none_or(|claimed| !frontier.covers(claimed)) {
                continue;
            }
            self.r.heal.damaged.remove(&key);
            if !matches!(self.table.get(&key), Err(ReadError::Record(_))) {
                continue;
            }
            // What the lost record was is known from the index alone: its stamps there.
            let listed = self.listed(&key)?;
            self.r.counters.healed += 1;
            if let Some(record) = &record
                && listed == [record.stamp]
            {
                let place = layout::data_key(self.r.namespace, &key);
                self.table.batch.put(Family::Data, place, record.encode(&key));
                continue;
            }
            recount = true;
            for stamp in listed {
                // Whether it was a tombstone is not known; its row goes if there is one.
                self.table.unlist(&Record::tombstone(stamp));
            }
            self.table.replace(&mut self.r.meta, &key, None, record);
        }
        if recount { self.recount() } else { Ok(()) }
    }

    /// The stamps under which the index lists a key. A walk of the whole index: damage is rare.
    fn listed(&self, key: &Bytes) -> Result<Vec<duet_proto::Stamp>, StoreError> {
        let (from, to) = layout::prefix_range(layout::group_prefix(self.r.namespace, self.r.epoch));
        let mut stamps = Vec::new();
        for row in self.cx.view.scan(Family::Origin, &from, Some(&to))? {
            let (row, listed) = row?;
            if listed == *key {
                let (_, epoch, node, hlc) = layout::split_origin_key(&row)?;
                stamps.push(duet_proto::Stamp { epoch, hlc, node });
            }
        }
        Ok(stamps)
    }

    /// Counts everything anew: the digest of a lost record cannot be taken out of the sum.
    pub(super) fn recount(&mut self) -> Result<(), StoreError> {
        let (mut digest, mut keys, mut tombstones) = (Digest::EMPTY, 0, 0);
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
                Err(ReadError::Record(_)) => self.r.report_damage(key),
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
        if !asked
            .is_some_and(|(peer, r, _)| *peer == from && r.after == after && r.to == to && r.frontier == frontier)
        {
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
