//! The Raft log of one group, on the store.
//!
//! Rows of the group, every one of them bound to its key by a checksum:
//!
//! | family | key | value |
//! | --- | --- | --- |
//! | `raft_log` | namespace, epoch, index | the entry (protobuf) |
//! | `raft_state` | namespace, epoch, 1 | the group: its name |
//! | `raft_state` | namespace, epoch, 2 | hard state (protobuf): term, vote, commit |
//! | `raft_state` | namespace, epoch, 3 | the members (protobuf), as of the applied position |
//! | `raft_state` | namespace, epoch, 4 | what the log begins after: index 8, term 8 |
//!
//! The newest entries are kept in memory, up to a bound in bytes: applying and sending to a follower that keeps up
//! read nothing. Entries that are not durable yet are always there, whatever the bound: the committer may not have
//! written them. The terms of all entries are kept too, as runs, so that looking one up never reads.
//!
//! A log with a gap, or with an entry that is not what was written, is not opened: its replica must not vote, since
//! it may have forgotten what it promised.

mod rows;

use std::{collections::VecDeque, sync::Arc};

use duet_store::{Batch, Family, Store, StoreError, layout};
use raft::{
    GetEntriesContext, RaftState, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

pub(crate) use self::rows::{Row, decode_conf, stored_conf};
use crate::GroupId;

/// A place in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// Where a log stands that is founded rather than joined: every founder has it, and nobody else, so that a replica
/// that joins differs from one that was founded and gets a snapshot.
pub(crate) const FOUNDED: Place = Place { index: 1, term: 1 };

/// How much of the log is kept for followers that lack it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Bytes of log after which a new piece is counted; the grain in which it is cut.
    pub(crate) piece_bytes: u64,
    pub(crate) tail_bytes: usize,
}

/// The log and what Raft keeps beside it.
///
/// Invariants: indices `base.index + 1 ..= last` are there, in memory from `tail_first` on and on the store up to
/// `durable`; `tail_first <= durable + 1`; `terms` covers the same indices, without holes.
pub(crate) struct Log {
    id: GroupId,
    store: Arc<dyn Store>,
    keep: Keep,
    pub(crate) hard: HardState,
    pub(crate) conf: ConfState,
    /// What has been applied: a snapshot would be of this.
    pub(crate) applied: Place,
    /// Up to here every member has the log durably, as the leader says: nobody will ask for that again.
    held: u64,
    base: Place,
    last: u64,
    durable: u64,
    terms: VecDeque<Place>,
    tail: VecDeque<Entry>,
    tail_first: u64,
    tail_bytes: usize,
    /// Runs of entries by their last index, with their bytes.
    pieces: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Log {
    /// A log that begins after `base`.
    pub(crate) fn create(
        store: Arc<dyn Store>,
        id: GroupId,
        keep: Keep,
        base: Place,
        conf: ConfState,
        batch: &mut Batch,
    ) -> Log {
        let hard = HardState { term: base.term, vote: 0, commit: base.index };
        rows::put_hard(batch, id, &hard);
        rows::put_conf(batch, id, &conf);
        rows::put_base(batch, id, base);
        Log::empty(store, id, keep, base, hard, conf)
    }

    fn empty(store: Arc<dyn Store>, id: GroupId, keep: Keep, base: Place, hard: HardState, conf: ConfState) -> Log {
        Log {
            id,
            store,
            keep,
            hard,
            conf,
            applied: base,
            held: 0,
            base,
            last: base.index,
            durable: base.index,
            terms: VecDeque::new(),
            tail: VecDeque::new(),
            tail_first: base.index + 1,
            tail_bytes: 0,
            pieces: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Reads the log back and checks every entry. `applied` is what the machine says.
    pub(crate) fn open(
        store: Arc<dyn Store>,
        id: GroupId,
        keep: Keep,
        applied: Option<Place>,
    ) -> Result<Log, StoreError> {
        let (mut hard, conf, base) = rows::state(&*store, id)?;
        let (from, to) = layout::prefix_range(layout::group_prefix(id.namespace, id.epoch));
        let mut log = Log::empty(store.clone(), id, keep, base, hard.clone(), conf);
        for row in store.scan(Family::RaftLog, &from, Some(&to))? {
            let (key, value) = row?;
            let entry = rows::decode_entry(&key, &value)?;
            if entry.index != log.last + 1 {
                let what = format!("entry {} of group {id} follows {}: there is a gap", entry.index, log.last);
                return Err(StoreError::corrupt(what));
            }
            log.push(entry, value.len());
            log.persisted(log.last);
        }
        let applied = applied.unwrap_or(base);
        if applied.index < base.index || applied.index > log.last || hard.commit > log.last {
            let what = format!(
                "the log of group {id} holds {}..={}, but {} is committed and {} applied",
                base.index + 1,
                log.last,
                hard.commit,
                applied.index
            );
            return Err(StoreError::corrupt(what));
        }
        // What is applied was committed, whether the hard state says so yet or not.
        hard.commit = hard.commit.max(applied.index);
        hard.term = hard.term.max(log.term_of(log.last).unwrap_or(base.term));
        (log.hard, log.applied) = (hard, applied);
        Ok(log)
    }

    pub(crate) fn first(&self) -> u64 {
        self.base.index + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Appends entries, in the place of those from the first one's index on if there are such.
    pub(crate) fn append(&mut self, entries: Vec<Entry>, batch: &mut Batch) -> Result<(), StoreError> {
        let Some(first) = entries.first().map(|e| e.index) else { return Ok(()) };
        if first <= self.base.index || first > self.last + 1 {
            let what =
                format!("entry {first} does not fit behind {}..={} of group {}", self.first(), self.last, self.id);
            return Err(StoreError::corrupt(what));
        }
        if first <= self.last {
            let key = |index| layout::log_key(self.id.namespace, self.id.epoch, index);
            batch.delete_range(Family::RaftLog, key(first), key(self.last + 1));
            self.truncate(first);
        }
        for entry in entries {
            let (key, value) = rows::encode_entry(self.id, &entry);
            let size = value.len();
            batch.put(Family::RaftLog, key, value);
            self.push(entry, size);
        }
        Ok(())
    }

    /// Everything up to `index` is on the store now, so memory may let go of it.
    pub(crate) fn persisted(&mut self, index: u64) {
        self.durable = self.durable.max(index.min(self.last));
        self.trim();
    }

    pub(crate) fn set_hard(&mut self, hard: HardState, batch: &mut Batch) {
        rows::put_hard(batch, self.id, &hard);
        self.hard = hard;
    }

    pub(crate) fn set_conf(&mut self, conf: ConfState, batch: &mut Batch) {
        rows::put_conf(batch, self.id, &conf);
        self.conf = conf;
    }

    /// Starts anew after a snapshot.
    pub(crate) fn reset(&mut self, base: Place, conf: ConfState, batch: &mut Batch) {
        let (from, to) = layout::prefix_range(layout::group_prefix(self.id.namespace, self.id.epoch));
        batch.delete_range(Family::RaftLog, from, to);
        rows::put_base(batch, self.id, base);
        let mut hard = self.hard.clone();
        hard.commit = hard.commit.max(base.index);
        hard.term = hard.term.max(base.term);
        let mut fresh = Log::empty(self.store.clone(), self.id, self.keep, base, HardState::default(), conf.clone());
        fresh.set_hard(hard, batch);
        fresh.set_conf(conf, batch);
        *self = fresh;
    }

    /// The end of the last whole piece up to `index`; 0 if there is none.
    fn whole_until(&self, index: u64) -> u64 {
        let whole = self.pieces.iter().take_while(|(last, size)| *last <= index && *size >= self.keep.piece_bytes);
        whole.last().map_or(0, |(last, _)| *last)
    }

    /// Where the log can be cut if every member has it up to `matched`, if that is further than was known.
    pub(crate) fn newly_held(&self, matched: u64) -> Option<u64> {
        Some(self.whole_until(matched)).filter(|end| *end > self.held)
    }

    /// Every member has the log up to here.
    pub(crate) fn hold(&mut self, held: u64) {
        self.held = self.held.max(held);
    }

    /// Cuts what every member has, and what is longer behind the applied position than is to be kept for those that
    /// lack it.
    pub(crate) fn compact(&mut self, batch: &mut Batch) {
        let durable = self.applied.index.min(self.durable);
        let mut to = self.whole_until(self.held.min(durable)).max(self.base.index);
        if durable.saturating_sub(self.base.index) > self.keep.entries {
            // Half of it at once: cutting is a range delete, and should be rare.
            to = to.max(durable - self.keep.entries / 2);
        }
        let mut bytes = self.bytes;
        for (last, size) in &self.pieces {
            if bytes <= self.keep.bytes || *last > durable {
                break;
            }
            bytes -= size;
            to = to.max(*last);
        }
        let Some(term) = self.term_of(to).filter(|_| to > self.base.index) else { return };
        let key = |index| layout::log_key(self.id.namespace, self.id.epoch, index);
        batch.delete_range(Family::RaftLog, key(self.first()), key(to + 1));
        self.base = Place { index: to, term };
        rows::put_base(batch, self.id, self.base);
        while self.terms.len() > 1 && self.terms[1].index <= to + 1 {
            self.terms.pop_front();
        }
        while let Some((_, size)) = self.pieces.pop_front_if(|(last, _)| *last <= to) {
            self.bytes -= size;
        }
        while self.tail_first <= to {
            self.pop_tail();
        }
    }

    fn push(&mut self, entry: Entry, size: usize) {
        self.last = entry.index;
        if self.terms.back().is_none_or(|run| run.term != entry.term) {
            self.terms.push_back(Place { index: entry.index, term: entry.term });
        }
        match self.pieces.back_mut().filter(|(_, bytes)| *bytes < self.keep.piece_bytes) {
            Some((last, bytes)) => (*last, *bytes) = (entry.index, *bytes + size as u64),
            None => self.pieces.push_back((entry.index, size as u64)),
        }
        self.bytes += size as u64;
        self.tail_bytes += weight(&entry);
        self.tail.push_back(entry);
        self.trim();
    }

    fn truncate(&mut self, first: u64) {
        while let Some(entry) = self.tail.pop_back_if(|e| e.index >= first) {
            self.tail_bytes -= weight(&entry);
        }
        while self.terms.pop_back_if(|run| run.index >= first).is_some() {}
        // A piece that is cut keeps its bytes: the sum only decides when to compact.
        while self.pieces.len() > 1 && self.pieces[self.pieces.len() - 2].0 >= first - 1 {
            self.bytes -= self.pieces.pop_back().map_or(0, |(_, size)| size);
        }
        if let Some((last, _)) = self.pieces.back_mut() {
            *last = (*last).min(first - 1);
        }
        self.last = first - 1;
        self.durable = self.durable.min(self.last);
        self.tail_first = self.tail_first.min(first);
    }

    fn trim(&mut self) {
        while self.tail_bytes > self.keep.tail_bytes && self.tail_first <= self.durable {
            self.pop_tail();
        }
    }

    fn pop_tail(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= weight(&entry);
        }
        self.tail_first += 1;
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last {
            return None;
        }
        let after = self.terms.partition_point(|run| run.index <= index);
        self.terms.get(after.checked_sub(1)?).map(|run| run.term)
    }

    /// The entries `low..high`, up to `room` bytes but at least one.
    fn read(&self, low: u64, high: u64, room: u64) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        let mut size = 0;
        let mut fits = |entry: &Entry, empty: bool| {
            size += weight(entry) as u64;
            empty || size <= room
        };
        if low < self.tail_first {
            let key = |index| layout::log_key(self.id.namespace, self.id.epoch, index);
            let (from, to) = (key(low), key(high.min(self.tail_first)));
            for row in self.store.scan(Family::RaftLog, &from, Some(&to))? {
                let (key, value) = row?;
                let entry = rows::decode_entry(&key, &value)?;
                if entry.index != low + entries.len() as u64 {
                    return Err(StoreError::corrupt(format!("a gap at entry {} of group {}", entry.index, self.id)));
                }
                if !fits(&entry, entries.is_empty()) {
                    return Ok(entries);
                }
                entries.push(entry);
            }
        }
        let next = low + entries.len() as u64;
        if next >= high {
            // All of it lay in the store: what is in memory begins behind it.
            return Ok(entries);
        }
        if next < self.tail_first {
            return Err(StoreError::corrupt(format!("entry {next} of group {} is missing", self.id)));
        }
        let cached = (next - self.tail_first) as usize..(high - self.tail_first) as usize;
        for entry in self.tail.range(cached) {
            if !fits(entry, entries.is_empty()) {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }
}

/// What an entry takes of memory and of a message, about.
fn weight(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 32
}

impl raft::Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let room = max_size.into().unwrap_or(u64::MAX);
        self.read(low, high, room).map_err(|e| raft::Error::Store(StorageError::Other(Box::new(e))))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_of(index).ok_or(raft::Error::Store(if index < self.base.index {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    /// Its description only: the content travels apart, and may be newer by the time it does.
    fn snapshot(&self, request_index: u64, _: u64) -> raft::Result<Snapshot> {
        if self.applied.index < request_index || self.applied.index == 0 {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied.index;
        metadata.term = self.applied.term;
        metadata.conf_state = Some(self.conf.clone());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests;
