//! The trait that both stores keep.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Batch, Family, StoreError};

/// Keys and values in order, read as they are asked for. An error ends it.
pub type Scan<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), StoreError>> + Send + 'a>;

/// Something that can be read.
pub trait View {
    /// What a key holds.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Io`].
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The keys from `from`, inclusive, up to `to`, exclusive, or to the end, ascending. Consistent in itself: it
    /// shows the state at the moment of the call, whatever is written while it runs.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Io`].
    fn scan(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError>;

    /// The same keys as [`View::scan`], descending.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Io`].
    fn scan_reverse(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError>;
}

/// The store as it was at one moment. Holds disk space while it lives, and keeps the store open.
pub trait Snapshot: View + Send + Sync {}

impl<T: View + Send + Sync> Snapshot for T {}

/// An ordered store of bytes under a write-ahead log.
///
/// Invariants that both implementations keep, and the conformance suite checks:
/// - a batch is visible at once and entirely, to every reader that begins after [`Store::write`] returned;
/// - what survives a crash is a prefix of the batches in the order in which they were written, and it holds at
///   least every batch that was written before a [`Store::sync`] that returned `Ok`;
/// - after a write or sync that failed, every later one fails with [`StoreError::Poisoned`]; reads go on.
pub trait Store: View + Send + Sync + 'static {
    /// Makes all changes of a batch, or none. Durable only after the next [`Store::sync`], for which it never waits.
    ///
    /// # Errors
    /// As above; the batch may then be there after a restart or not.
    fn write(&self, batch: Batch) -> Result<(), StoreError>;

    /// Returns when everything written before the call is durable. Blocks the thread for an fsync.
    ///
    /// # Errors
    /// As above; what was written since the last sync may then be there after a restart or not.
    fn sync(&self) -> Result<(), StoreError>;

    /// Whether rows that were asked for lately were not in memory, so that it is worth [warming](crate::warm()) others.
    fn is_cold(&self) -> bool {
        false
    }

    /// Whether a row of [`Family::Data`], or that there is none, is most likely found without waiting for the disk.
    fn holds(&self, _key: &[u8]) -> bool {
        true
    }

    /// The store as it is now.
    fn snapshot(&self) -> Arc<dyn Snapshot>;

    /// Bytes that the disk has free.
    ///
    /// # Errors
    /// If the system does not say.
    fn free_space(&self) -> Result<u64, StoreError>;

    /// Figures for metrics.
    fn stats(&self) -> StoreStats;

    /// How it keeps its tables, for metrics; `None` for a store that has none. Costs more than [`Store::stats`].
    fn tables(&self) -> Option<Tables> {
        None
    }

    /// The failure after which this store takes no more writes, if there was one.
    fn poisoned(&self) -> Option<StoreError>;
}

/// Figures of a store. Counters count from its opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Batches written.
    pub writes: u64,
    /// Bytes of keys and values written.
    pub written_bytes: u64,
    /// Syncs done.
    pub syncs: u64,
    /// Time spent in them, in microseconds. Zero for the memory twin.
    pub sync_us: u64,
    /// Memory held in memtables, caches and table readers, in bytes.
    pub memory_bytes: u64,
    /// Bytes of table files on disk; for the memory twin, of keys and values.
    pub disk_bytes: u64,
    /// Bytes that wait for compaction.
    pub pending_compaction_bytes: u64,
    /// Records, estimated.
    pub data_keys: u64,
    /// Writes are slowed down or stopped until compaction catches up.
    pub stalled: bool,
}

/// Tables that are sorted in the background. Counters count from the opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Each family's.
    pub families: Vec<FamilyTables>,
    /// Bytes in the cache of blocks.
    pub cache_used: u64,
    /// Bytes of them that cannot be given up now.
    pub cache_pinned: u64,
    /// Bytes that it may hold.
    pub cache_capacity: u64,
    /// Flushes that run now.
    pub flushes: u64,
    /// Compactions that run now.
    pub compactions: u64,
    /// Flushes and compactions that failed.
    pub background_errors: u64,
    /// How often writes were slowed down for compaction to keep up.
    pub slowdowns: u64,
    /// How often they were stopped for it.
    pub stops: u64,
}

/// The tables of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyTables {
    /// The family.
    pub family: Family,
    /// Bytes in memory that are in no table file yet.
    pub memtable_bytes: u64,
    /// By level, from 0 to the deepest that holds a file; level 0 always.
    pub levels: Vec<Level>,
}

/// The table files of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// How many.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}
