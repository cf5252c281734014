//! The rows that were used last, in front of a store: most reads, and the look at what a write replaces, need no more.

use std::{
    iter::repeat_n,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle, GuardResult},
};

use crate::{Batch, Edit, Family, StoreError};

/// What an entry costs beside its bytes, roughly.
const OVERHEAD: usize = 128;
/// What a row is thought to weigh, to begin with: it sizes the cache's tables.
const USUAL: usize = 512;
/// What a part of the rows that is guarded by a lock of its own may hold, at least, if there are more than a few. A part's
/// table is made anew when it has doubled, with all others waiting: that of a million rows took half a second.
const SHARD: usize = 64 << 20;
/// Deleted ranges that are told apart.
const RANGES: usize = 64;

/// Rows of [`Family::Data`], as they are in the store. Bounded by bytes; a scan of everything does not drive out what
/// is used often.
///
/// The store counts its writes: a *point* is a number of that count. A row here is what the store has held since some
/// point, and holds until a write that is past the point called `settled`. So it may be told whoever asks
///
/// - for what there is now, if nothing has been written past `settled`;
/// - for what there was at a point that is not past `settled`, if the row has been there since before it.
///
/// All others read the store. A reader that has looked into the store while its row was written finds its place taken,
/// and leaves nothing.
///
/// Rows lie under the hashes of their keys, each key beside its value, since most of what it costs to find one is memory
/// that is not in the processor's cache. Keys of one hash drive each other out.
///
/// A range that is deleted, which may hold millions of rows, is noted instead of being looked for here: its rows are not
/// told any more, and make room when it is needed.
pub(crate) struct Recent {
    rows: Cache<u64, Row, Weight>,
    /// The weight of the largest row that is kept.
    most: u64,
    hasher: DefaultHashBuilder,
    /// Everything written up to here is also here.
    settled: AtomicU64,
    gone: RwLock<Gone>,
    /// The point at which a range was last deleted.
    gone_at: AtomicU64,
}

/// Ranges that were deleted, each with the point at which that was done.
#[derive(Default)]
struct Gone {
    ranges: Vec<(Bytes, Bytes, u64)>,
    /// Before this point the ranges are not known any more: every row may have been in one.
    all: u64,
}

impl Gone {
    fn note(&mut self, from: &Bytes, to: &Bytes, at: u64) {
        if self.ranges.len() == RANGES {
            self.all = self.ranges.drain(..).fold(self.all, |all, (.., at)| all.max(at + 1));
        }
        self.ranges.push((from.clone(), to.clone(), at));
    }

    fn holds(&self, key: &[u8], since: u64) -> bool {
        let within = |(from, to, at): &(Bytes, Bytes, u64)| since <= *at && &from[..] <= key && key < &to[..];
        since < self.all || self.ranges.iter().any(within)
    }
}

#[derive(Clone)]
struct Row {
    /// The key, and then the value.
    bytes: Arc<[u8]>,
    key: usize,
    /// A point at which it was there already.
    since: u64,
}

impl Row {
    /// A copy: the bytes given may be a slice of something much larger.
    fn new(key: &[u8], value: &[u8], since: u64) -> Row {
        // In the place where it stays at once: `concat` would make it elsewhere first.
        let mut bytes: Arc<[u8]> = repeat_n(0, key.len() + value.len()).collect();
        let (keys, values) = Arc::get_mut(&mut bytes).expect("nobody else has it yet").split_at_mut(key.len());
        keys.copy_from_slice(key);
        values.copy_from_slice(value);
        Row { bytes, key: key.len(), since }
    }

    /// Its value, if it is the row of this key, and was there at the point `at` already.
    fn told(self, key: &[u8], at: Option<u64>) -> Option<Bytes> {
        let wanted = &self.bytes[..self.key] == key && at.is_none_or(|at| self.since <= at);
        let whole = wanted.then(|| Bytes::from_owner(self.bytes))?;
        Some(whole.slice(self.key..))
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<u64, Row> for Weight {
    fn weight(&self, _: &u64, row: &Row) -> u64 {
        weight(row.bytes.len())
    }
}

fn weight(bytes: usize) -> u64 {
    (bytes + OVERHEAD) as u64
}

impl Recent {
    /// In front of a store that stands at the point `settled`.
    pub(crate) fn new(bytes: usize, settled: u64) -> Recent {
        let hasher = DefaultHashBuilder::default();
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(bytes / USUAL).weight_capacity(bytes as u64).shards((bytes / SHARD).max(8));
        let options = options.build().expect("both capacities are given");
        let rows = Cache::with_options(options, Weight, hasher.clone(), DefaultLifecycle::default());
        let (settled, most) = (AtomicU64::new(settled), rows.shard_capacity() / 2);
        Recent { rows, most, hasher, settled, gone: RwLock::default(), gone_at: AtomicU64::new(0) }
    }

    /// Whether a row of this key is here, most likely.
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        self.rows.contains_key(&self.hasher.hash_one(key))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.rows.weight()
    }

    /// The row as it was at the point `at`, or as it is now, from here or else by `read`. `latest` is the point at which the
    /// store stands.
    pub(crate) fn get(
        &self,
        key: &[u8],
        at: Option<u64>,
        latest: impl Fn() -> u64,
        read: impl FnOnce() -> Result<Option<Bytes>, StoreError>,
    ) -> Result<Option<Bytes>, StoreError> {
        if at.unwrap_or_else(&latest) > self.settled.load(Ordering::Acquire) {
            return read();
        }
        // Who finds another reader at work on the row reads it for himself.
        let place = self.hasher.hash_one(key);
        match self.rows.get_value_or_guard(&place, Some(Duration::ZERO)) {
            GuardResult::Value(row) if self.is_gone(key, row.since) => {
                self.rows.remove(&place);
                read()
            }
            GuardResult::Value(row) => row.told(key, at).map_or_else(read, |value| Ok(Some(value))),
            GuardResult::Guard(place) => {
                let gone_at = self.gone_at.load(Ordering::Acquire);
                let found = read()?;
                let since = latest();
                // What was written since a point may be another row, and what was deleted with its range, with other writes
                // behind it, would look newer than that.
                let is_it = at.is_none_or(|at| at == since) && self.gone_at.load(Ordering::Acquire) == gone_at;
                if let Some(value) = found.as_ref().filter(|_| is_it) {
                    let _ = place.insert(Row::new(key, value, since));
                }
                Ok(found)
            }
            GuardResult::Timeout => read(),
        }
    }

    /// Whether a row that was there at a point was deleted with a range since.
    fn is_gone(&self, key: &[u8], since: u64) -> bool {
        since <= self.gone_at.load(Ordering::Acquire)
            && self.gone.read().unwrap_or_else(PoisonError::into_inner).holds(key, since)
    }

    /// To be called when the batch has been written, before another one is; the store stands at `latest` now.
    pub(crate) fn after(&self, batch: &Batch, latest: u64) {
        for edit in batch.edits() {
            match edit {
                Edit::Put(Family::Data, key, value) => {
                    let place = self.hasher.hash_one(key.as_ref());
                    // A row for which there is no room drives out the one before it, but not a reader who is fetching that.
                    if weight(key.len() + value.len()) > self.most {
                        self.rows.remove(&place);
                    } else {
                        self.rows.insert(place, Row::new(key, value, latest));
                    }
                }
                Edit::Delete(Family::Data, key) => {
                    self.rows.remove(&self.hasher.hash_one(key.as_ref()));
                }
                Edit::DeleteRange(Family::Data, from, to) => {
                    self.gone.write().unwrap_or_else(PoisonError::into_inner).note(from, to, latest);
                    self.gone_at.store(latest, Ordering::Release);
                }
                _ => {}
            }
        }
        self.settled.store(latest, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const KEY: &[u8] = b"key";

    fn put(value: &'static str) -> Batch {
        let mut batch = Batch::new();
        batch.put(Family::Data, KEY, value);
        batch
    }

    fn delete() -> Batch {
        let mut batch = Batch::new();
        batch.delete(Family::Data, KEY);
        batch
    }

    /// A store of one row, and what is recent of it.
    struct Small {
        recent: Recent,
        latest: Cell<u64>,
    }

    impl Small {
        fn new() -> Small {
            Small { recent: Recent::new(1 << 20, 0), latest: Cell::new(0) }
        }

        /// A write, which the store shows before it is here.
        fn write(&self, batch: &Batch) {
            self.latest.set(self.latest.get() + 1);
            self.recent.after(batch, self.latest.get());
        }

        fn get(&self, stored: Option<&'static str>) -> Option<Bytes> {
            self.recent.get(KEY, None, || self.latest.get(), || Ok(stored.map(Bytes::from))).unwrap()
        }

        fn get_at(&self, at: u64, stored: Option<&'static str>) -> Option<Bytes> {
            self.recent.get(KEY, Some(at), || self.latest.get(), || Ok(stored.map(Bytes::from))).unwrap()
        }

        /// What is here, if anything is; the store would say `None`, which is not kept.
        fn held(&self) -> Option<Bytes> {
            self.get(None)
        }
    }

    #[test]
    fn what_was_read_or_written_is_here() {
        let small = Small::new();
        assert_eq!(small.held(), None);
        assert_eq!(small.get(Some("a")), Some("a".into()));
        assert_eq!(small.held(), Some("a".into()));
        small.write(&put("b"));
        assert_eq!(small.held(), Some("b".into()));
        let mut elsewhere = Batch::new();
        elsewhere.delete(Family::Origin, KEY);
        small.write(&elsewhere);
        assert_eq!(small.held(), Some("b".into()));
        small.write(&delete());
        assert_eq!(small.held(), None);
    }

    /// A reader, of now or of a point, has the old row in hand while the new one, or none, takes its place.
    #[test]
    fn a_slow_reader_leaves_nothing_old() {
        let mut cleared = Batch::new();
        cleared.delete_range(Family::Data, "a", "z");
        for (batch, after) in [(put("new"), Some(Bytes::from("new"))), (delete(), None), (cleared, None)] {
            let (one, other) = (Small::new(), Small::new());
            let slow = |small: &Small| {
                small.write(&batch);
                Ok(Some("old".into()))
            };
            assert_eq!(one.recent.get(KEY, None, || one.latest.get(), || slow(&one)).unwrap(), Some("old".into()));
            assert_eq!(other.recent.get(KEY, Some(0), || 0, || slow(&other)).unwrap(), Some("old".into()));
            assert_eq!((one.held(), other.held()), (after.clone(), after));
        }
    }

    /// The store has what is not here yet: whoever asks for that reads the store.
    #[test]
    fn between_the_store_and_here_nothing_is_told() {
        let small = Small::new();
        small.write(&put("old"));
        small.latest.set(2);
        assert_eq!(small.get(Some("new")), Some("new".into()));
        assert_eq!(small.get_at(2, Some("new")), Some("new".into()));
        assert_eq!(small.get_at(1, Some("not asked")), Some("old".into()));
        small.recent.after(&put("new"), 2);
        assert_eq!(small.held(), Some("new".into()));
    }

    #[test]
    fn a_point_is_told_what_there_was_at_it() {
        let small = Small::new();
        small.write(&put("one"));
        small.write(&Batch::new());
        small.write(&put("three"));
        assert_eq!(small.get_at(2, Some("one")), Some("one".into()), "read from the store");
        assert_eq!(small.get_at(3, None), Some("three".into()));
        small.write(&delete());
        assert_eq!(small.get_at(3, Some("three")), Some("three".into()), "read from the store");
        assert_eq!(small.held(), None, "what an old point was told is not what there is");
        assert_eq!(small.get_at(4, None), None);
        small.write(&Batch::new());
        assert_eq!(small.get_at(5, Some("back")), Some("back".into()));
        assert_eq!(small.held(), Some("back".into()), "nothing was written since");
        small.write(&delete());
        assert_eq!(small.get(Some("six")), Some("six".into()));
        assert_eq!(small.get_at(5, Some("back")), Some("back".into()), "six may be newer");
        assert_eq!(small.get_at(6, None), Some("six".into()));
    }

    /// Another key has the hash of this one: neither is told the other's row.
    #[test]
    fn keys_of_one_hash_are_told_apart() {
        let small = Small::new();
        let place = small.recent.hasher.hash_one(KEY);
        let other = || small.recent.rows.insert(place, Row::new(b"ke", b"y of another", 0));
        other();
        assert_eq!(small.get(None), None);
        assert_eq!(small.get_at(0, Some("stored")), Some("stored".into()));
        small.write(&put("new"));
        assert_eq!(small.held(), Some("new".into()));
        other();
        small.write(&delete());
        assert_eq!(small.held(), None);
    }

    fn cleared(from: &'static str, to: &'static str) -> Batch {
        let mut batch = Batch::new();
        batch.delete_range(Family::Data, from, to);
        batch
    }

    #[test]
    fn a_range_takes_its_rows_and_no_others() {
        let small = Small::new();
        small.write(&put("old"));
        small.write(&cleared("a", "key"));
        small.write(&cleared("kez", "z"));
        assert_eq!(small.held(), Some("old".into()), "in no range");
        small.write(&cleared("key", "kez"));
        assert_eq!(small.get_at(3, Some("old")), Some("old".into()), "before it was deleted, as the store says");
        assert_eq!(small.held(), None);
        small.write(&put("new"));
        assert_eq!(small.held(), Some("new".into()));
        // More of them than are told apart.
        for _ in 0..=RANGES {
            small.write(&cleared("a", "b"));
        }
        assert_eq!(small.get(Some("read")), Some("read".into()));
        assert_eq!(small.held(), None, "what was not told makes room");
        assert_eq!(small.get(Some("read")), Some("read".into()));
        assert_eq!(small.held(), Some("read".into()));
    }

    /// A range is deleted under a reader, and something else written, so that what it found seems to be newer than that.
    #[test]
    fn a_reader_slower_than_two_writes_leaves_nothing_old() {
        let small = Small::new();
        let slow = || {
            small.write(&cleared("a", "z"));
            small.write(&Batch::new());
            Ok(Some("old".into()))
        };
        assert_eq!(small.recent.get(KEY, None, || small.latest.get(), slow).unwrap(), Some("old".into()));
        assert_eq!(small.held(), None);
    }

    /// The new row has no room here; the old one, which has, must not come after it.
    #[test]
    fn a_slow_reader_leaves_nothing_old_beside_a_row_that_is_too_large() {
        let small = Small::new();
        let slow = || {
            let mut batch = Batch::new();
            batch.put(Family::Data, KEY, vec![7; 1 << 20]);
            small.write(&batch);
            Ok(Some("old".into()))
        };
        assert_eq!(small.recent.get(KEY, None, || small.latest.get(), slow).unwrap(), Some("old".into()));
        assert_eq!((small.held(), small.get_at(1, None)), (None, None));
    }

    #[test]
    fn a_failed_read_leaves_nothing() {
        let small = Small::new();
        let failed = || Err(StoreError::corrupt("damage"));
        small.recent.get(KEY, None, || 0, failed).unwrap_err();
        small.recent.get(KEY, Some(0), || 0, failed).unwrap_err();
        assert_eq!(small.get(Some("a")), Some("a".into()));
    }

    #[test]
    fn it_is_bounded() {
        let recent = Recent::new(1 << 20, 0);
        for number in 0..10_000_u32 {
            let mut batch = Batch::new();
            batch.put(Family::Data, number.to_be_bytes().to_vec(), vec![7; 1000]);
            recent.after(&batch, u64::from(number));
        }
        assert!(recent.bytes() <= 1 << 20, "{}", recent.bytes());
    }
}
