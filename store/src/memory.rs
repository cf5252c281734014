//! The deterministic twin: the same promises as RocksDB, kept in memory, with crashes and faults on demand.

use std::{
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use imbl::OrdMap;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Batch, Edit, Family, Scan, Snapshot, Store, StoreError, StoreStats, View};

/// Persistent maps, so that a snapshot costs nothing and a crash is a choice between two of them.
#[derive(Clone, Default)]
struct Tables([OrdMap<Bytes, Bytes>; Family::ALL.len()]);

impl Tables {
    fn family(&self, family: Family) -> &OrdMap<Bytes, Bytes> {
        &self.0[family as usize]
    }

    fn apply(&mut self, batch: &Batch) {
        for edit in batch.edits() {
            match edit {
                Edit::Put(family, key, value) => {
                    self.0[*family as usize].insert(key.clone(), value.clone());
                }
                Edit::Delete(family, key) => {
                    self.0[*family as usize].remove(key);
                }
                Edit::DeleteRange(family, from, to) => {
                    let table = &mut self.0[*family as usize];
                    let doomed: Vec<Bytes> = table.range(from.clone()..to.clone()).map(|(k, _)| k.clone()).collect();
                    for key in doomed {
                        table.remove(&key);
                    }
                }
            }
        }
    }
}

impl View for Tables {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.family(family).get(key).cloned())
    }

    fn scan(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
        Ok(Box::new(Walk::new(self.family(family).clone(), from, to)))
    }

    fn scan_reverse(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
        Ok(Box::new(Walk::new(self.family(family).clone(), from, to).rev()))
    }
}

/// A range of a map that it owns, narrowed from both ends as it is walked.
struct Walk {
    table: OrdMap<Bytes, Bytes>,
    low: Bound<Bytes>,
    high: Bound<Bytes>,
}

impl Walk {
    fn new(table: OrdMap<Bytes, Bytes>, from: &[u8], to: Option<&[u8]>) -> Walk {
        // A map's range panics on bounds that cross; there is nothing in between, so walk nothing.
        let table = if to.is_some_and(|to| to <= from) { OrdMap::new() } else { table };
        let high = to.map_or(Bound::Unbounded, |to| Bound::Excluded(Bytes::copy_from_slice(to)));
        Walk { table, low: Bound::Included(Bytes::copy_from_slice(from)), high }
    }

    fn step(&mut self, forward: bool) -> Option<Result<(Bytes, Bytes), StoreError>> {
        let found = {
            let mut range = self.table.range((self.low.clone(), self.high.clone()));
            let entry = if forward { range.next() } else { range.next_back() };
            entry.map(|(k, v)| (k.clone(), v.clone()))
        };
        let Some((key, value)) = found else {
            self.table = OrdMap::new();
            return None;
        };
        if forward {
            // `key` and a zero byte is the next key there can be; as an inclusive bound it never crosses `high`.
            let mut after = key.to_vec();
            after.push(0);
            self.low = Bound::Included(after.into());
        } else {
            self.high = Bound::Excluded(key.clone());
        }
        Some(Ok((key, value)))
    }
}

impl Iterator for Walk {
    type Item = Result<(Bytes, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(true)
    }
}

impl DoubleEndedIterator for Walk {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(false)
    }
}

/// What a disk is to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next write fails, and is not done.
    Write,
    /// The next sync fails; what was not synced before may survive a crash or not.
    Sync,
    /// Every write fails until the store is crashed and opened again.
    Full,
}

#[derive(Default)]
struct State {
    now: Tables,
    durable: Tables,
    unsynced: Vec<Batch>,
    fault: Option<Fault>,
    poison: Option<StoreError>,
    free: u64,
    stats: StoreStats,
}

/// The memory twin.
///
/// A crash returns the store that a restarted node would find; the old handle then answers nothing but
/// [`StoreError::Closed`], so that no task left over from before can reach the new one or speak for it.
pub struct MemoryStore {
    state: Mutex<State>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("MemoryStore").field("stats", &state.stats).field("unsynced", &state.unsynced.len()).finish()
    }
}

impl MemoryStore {
    /// Free space until [`MemoryStore::set_free_space`] says otherwise, in bytes.
    pub const FREE: u64 = 1 << 40;

    /// An empty store.
    #[must_use]
    #[allow(clippy::new_ret_no_self, reason = "a store is shared from its first moment")]
    pub fn new() -> Arc<MemoryStore> {
        MemoryStore::holding(Tables::default())
    }

    fn holding(tables: Tables) -> Arc<MemoryStore> {
        let state = State { now: tables.clone(), durable: tables, free: MemoryStore::FREE, ..State::default() };
        Arc::new(MemoryStore { state: Mutex::new(state) })
    }

    /// Cuts the power: of what was written since the last sync, a prefix chosen by `seed` survives, as under an
    /// ordered log whose tail may or may not have reached the disk. This handle is dead afterwards.
    #[must_use = "the disk lives on in what is returned"]
    pub fn crash(&self, seed: u64) -> Arc<MemoryStore> {
        let mut state = self.lock();
        let kept = ChaCha8Rng::seed_from_u64(seed).random_range(0..=state.unsynced.len());
        let mut tables = std::mem::take(&mut state.durable);
        for batch in &state.unsynced[..kept] {
            tables.apply(batch);
        }
        MemoryStore::reborn(state, tables)
    }

    /// Kills the process but not the machine, at a moment when the log's buffer had just gone to the system: everything
    /// written survives, synced or not. RocksDB may lose what is in that buffer; [`MemoryStore::crash`] stands for that too.
    /// This handle is dead afterwards.
    #[must_use = "the disk lives on in what is returned"]
    pub fn kill(&self) -> Arc<MemoryStore> {
        let mut state = self.lock();
        let tables = std::mem::take(&mut state.now);
        MemoryStore::reborn(state, tables)
    }

    fn reborn(mut old: MutexGuard<'_, State>, tables: Tables) -> Arc<MemoryStore> {
        let free = old.free;
        *old = State { poison: Some(StoreError::Closed), ..State::default() };
        let store = MemoryStore::holding(tables);
        store.lock().free = free;
        store
    }

    /// Arms a fault.
    pub fn fail(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }

    /// Sets what [`Store::free_space`] answers, in bytes.
    pub fn set_free_space(&self, bytes: u64) {
        self.lock().free = bytes;
    }

    /// What is synced now: what would be left of it, at least, by [`MemoryStore::crash`].
    #[must_use]
    pub fn durable(&self) -> Arc<dyn Snapshot> {
        Arc::new(self.lock().durable.clone())
    }

    /// Flips a bit of the last byte that a key holds, on disk and in memory. Whether there was one.
    pub fn damage(&self, family: Family, key: &[u8]) -> bool {
        let mut state = self.lock();
        let State { now, durable, .. } = &mut *state;
        let mut found = false;
        for tables in [now, durable] {
            if let Some(value) = tables.0[family as usize].get_mut(key) {
                let mut bytes = value.to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                    found = true;
                }
                *value = bytes.into();
            }
        }
        found
    }

    /// Batches written since the last sync.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// The maps are replaced whole or not at all, so a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What can be read: a failed disk as before, a crashed one not at all. An absent key and a lost disk must not
    /// look alike to a task left over from before the crash.
    fn alive(&self) -> Result<&Tables, StoreError> {
        if self.poison == Some(StoreError::Closed) { Err(StoreError::Closed) } else { Ok(&self.now) }
    }

    fn healthy(&self) -> Result<(), StoreError> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    /// The armed fault, if it is `kind`, poisons the store.
    fn meet(&mut self, kind: Fault, error: StoreError) -> Result<(), StoreError> {
        if self.fault != Some(kind) {
            return Ok(());
        }
        self.fault = None;
        self.poison = Some(error.poison());
        Err(error)
    }
}

impl View for MemoryStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.lock().alive()?.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
        let table = self.lock().alive()?.family(family).clone();
        Ok(Box::new(Walk::new(table, from, to)))
    }

    fn scan_reverse(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
        let table = self.lock().alive()?.family(family).clone();
        Ok(Box::new(Walk::new(table, from, to).rev()))
    }
}

impl Store for MemoryStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.healthy()?;
        state.meet(Fault::Write, StoreError::Io { what: "a write failed, as asked".into() })?;
        state.meet(Fault::Full, StoreError::Full { what: "a write found no room, as asked".into() })?;
        state.stats.writes += 1;
        state.stats.written_bytes += batch.bytes() as u64;
        state.now.apply(&batch);
        state.unsynced.push(batch);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.healthy()?;
        state.meet(Fault::Sync, StoreError::Io { what: "a sync failed, as asked".into() })?;
        state.stats.syncs += 1;
        state.durable = state.now.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(self.lock().now.clone())
    }

    fn free_space(&self) -> Result<u64, StoreError> {
        Ok(self.lock().free)
    }

    fn stats(&self) -> StoreStats {
        let state = self.lock();
        let size = |table: &OrdMap<Bytes, Bytes>| table.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum::<u64>();
        StoreStats {
            disk_bytes: state.now.0.iter().map(size).sum(),
            data_keys: state.now.family(Family::Data).len() as u64,
            ..state.stats
        }
    }

    fn poisoned(&self) -> Option<StoreError> {
        self.lock().poison.clone()
    }
}
