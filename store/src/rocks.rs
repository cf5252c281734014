//! The store on RocksDB, the only file that names it.
//!
//! In the directory lie `db/`, which is RocksDB's, and `synced`, twelve bytes: a lower bound for the sequence number
//! up to which the log has been synced. RocksDB recovers to a point in time, which is right for a tail that power
//! cut off, but it treats damage in the middle of the log alike: it opens, without what followed, votes and
//! acknowledged writes included. The bound tells the two apart. It is written after each sync and never synced
//! itself: whatever age of it survives, it claims no more than was durable.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    num::NonZero,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBIterator,
    DBPinnableSlice, DBRecoveryMode, ErrorKind, IteratorMode, Options, ReadOptions, ReadTier, WriteBatch,
    WriteOptions, properties,
};
use self_cell::self_cell;

use crate::{
    Batch, Edit, Family, FamilyTables, Level, Scan, Snapshot, Store, StoreError, StoreStats, Tables, View, layout,
    recent::Recent,
};

/// How much the store may use. It takes what it needs: an idle node stays well under 100 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Memory for what was read and written last, in bytes: three quarters for records, the rest for blocks, indexes and
    /// filters. A record takes less of it than its block, and outlives the tables that it is merged into.
    /// 128 MiB; from 1 MiB.
    pub cache_bytes: usize,
    /// Memory for what is not in table files yet, all families together, in bytes: what is beyond it is flushed. While that
    /// goes on more is taken, under a load that tables cannot follow up to six times as much. 64 MiB; from 4 MiB.
    pub memtable_bytes: usize,
    /// Log kept before memtables are flushed to let go of it, in bytes. 24 MiB, about what fills a memtable of records. It
    /// bounds the time to recover, and how much memory the log's files, which are written again and again, go through.
    pub wal_bytes: u64,
    /// Threads that flush and compact. 2; from 1.
    pub background_jobs: i32,
}

impl Default for RocksOptions {
    fn default() -> RocksOptions {
        RocksOptions { cache_bytes: 128 << 20, memtable_bytes: 64 << 20, wal_bytes: 24 << 20, background_jobs: 2 }
    }
}

/// What an edit takes in a batch of RocksDB's beside key and value: its kind, its family and two lengths.
const EDIT_BYTES: usize = 12;

/// The store of the daemon.
pub struct RocksStore {
    db: Arc<DB>,
    path: PathBuf,
    recent: Arc<Recent>,
    cold: Arc<Cold>,
    /// Who writes: what is recent must be so in the order of the log.
    writing: Mutex<()>,
    synced: Mutex<Watermark>,
    poison: OnceLock<StoreError>,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
    sync_us: AtomicU64,
}

impl fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksStore").field("path", &self.path).field("poisoned", &self.poison.get()).finish()
    }
}

impl RocksStore {
    /// Opens the store in a directory, which is created if it is not there.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if somebody has it open; [`StoreError::Corrupt`] if files are damaged or missing, or
    /// the log ends before what was synced; [`StoreError::Io`] or [`StoreError::Full`] if the system refuses;
    /// [`StoreError::Processor`].
    pub fn open(path: &Path, options: &RocksOptions) -> Result<RocksStore, StoreError> {
        check_processor()?;
        create_dir(path).map_err(|e| io_error("creating the data directory", path, &e))?;
        let db = open_db(&path.join("db"), path, options)?;
        sync_dir(path).map_err(|e| io_error("syncing the data directory", path, &e))?;
        let synced = Watermark::open(&path.join("synced"))?;
        let recovered = db.latest_sequence_number();
        if recovered < synced.claimed {
            let claimed = synced.claimed;
            let what =
                format!("the log ends at {recovered}, but it was synced up to {claimed}: files are damaged or old");
            return Err(StoreError::Corrupt { what });
        }
        Ok(RocksStore {
            db: Arc::new(db),
            path: path.to_owned(),
            recent: Arc::new(Recent::new(options.cache_bytes / 4 * 3, recovered)),
            cold: Arc::default(),
            writing: Mutex::new(()),
            synced: Mutex::new(synced),
            poison: OnceLock::new(),
            writes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            sync_us: AtomicU64::new(0),
        })
    }

    fn healthy(&self) -> Result<(), StoreError> {
        self.poison.get().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    fn poisoned_by(&self, error: StoreError) -> StoreError {
        let _ = self.poison.set(error.poison());
        error
    }

    fn sum(&self, property: &properties::PropName) -> u64 {
        let of = |family: &Family| {
            let handle = self.db.cf_handle(family.name())?;
            self.db.property_int_value_cf(handle, property).ok().flatten()
        };
        Family::ALL.iter().filter_map(of).sum()
    }

    fn figure(&self, property: &properties::PropName) -> u64 {
        let handle = self.db.cf_handle(Family::Data.name());
        handle.and_then(|h| self.db.property_int_value_cf(h, property).ok().flatten()).unwrap_or(0)
    }

    /// A family's memtables and table files; the files are those of `levels`, which are of every family.
    fn family(&self, family: Family, levels: &BTreeMap<(String, usize), Level>) -> FamilyTables {
        let of = |level| levels.get(&(family.name().to_owned(), level)).copied();
        let deepest = levels.keys().filter(|(name, _)| name == family.name()).map(|(_, level)| *level).max();
        let memtables = self
            .db
            .cf_handle(family.name())
            .and_then(|handle| self.db.property_int_value_cf(handle, properties::SIZE_ALL_MEM_TABLES).ok().flatten());
        FamilyTables {
            family,
            memtable_bytes: memtables.unwrap_or(0),
            levels: (0..=deepest.unwrap_or(0)).map(|level| of(level).unwrap_or_default()).collect(),
        }
    }

    /// How often writes to a family were slowed down, and how often stopped.
    fn stalls(&self, family: Family) -> (u64, u64) {
        let handle = self.db.cf_handle(family.name());
        let text = handle.and_then(|h| self.db.property_value_cf(h, WRITE_STALLS).ok().flatten()).unwrap_or_default();
        (counted(&text, "total-delays"), counted(&text, "total-stops"))
    }
}

/// The property that has no name in the bindings.
const WRITE_STALLS: &str = "rocksdb.cf-write-stall-stats";

/// A number in `…, name: number, …`; 0 if it is not there.
fn counted(text: &str, name: &str) -> u64 {
    let found = text.split([',', '\n']).filter_map(|part| part.rsplit_once(": "));
    found.filter(|(before, _)| before.trim().ends_with(name)).find_map(|(_, n)| n.trim().parse().ok()).unwrap_or(0)
}

/// Whether rows are found in memory: how many are still to be looked for before they are read. Wrong by a few when threads
/// meet; it only says what is worth a look.
#[derive(Default)]
struct Cold(AtomicU32);

impl Cold {
    /// Looks that one miss is worth: what it takes to wait for the disk is that of some hundred of them.
    const LOOKS: u32 = 16;
    const MOST: u32 = 1024;

    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    fn found(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }

    fn missed(&self) {
        let looks = self.0.load(Ordering::Relaxed) + Self::LOOKS;
        self.0.store(looks.min(Self::MOST), Ordering::Relaxed);
    }

    /// Reads a row, from memory if it is there, and notes if it is not.
    fn read<'a>(
        &self,
        read: impl Fn(ReadOptions) -> Result<Option<DBPinnableSlice<'a>>, rocksdb::Error>,
    ) -> Result<Option<Bytes>, StoreError> {
        let found = match read(in_memory()) {
            Err(error) if error.kind() == ErrorKind::Incomplete => {
                self.missed();
                read(ReadOptions::default())
            }
            found => found,
        };
        Ok(found.map_err(|e| failure("a read", &e))?.map(|value| Bytes::copy_from_slice(&value)))
    }
}

/// A read ends with [`ErrorKind::Incomplete`] instead of going to the disk.
fn in_memory() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_read_tier(ReadTier::BlockCache);
    options
}

impl View for RocksStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let handle = handle(&self.db, family)?;
        let read = || self.cold.read(|options| self.db.get_pinned_cf_opt(handle, key, &options));
        let latest = || self.db.latest_sequence_number();
        if family == Family::Data { self.recent.get(key, None, latest, read) } else { read() }
    }

    fn scan(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
        let options = range_options(from, to);
        Ok(entries(self.db.iterator_cf_opt(handle(&self.db, family)?, options, IteratorMode::Start)))
    }

    fn scan_reverse(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
        let options = range_options(from, to);
        Ok(entries(self.db.iterator_cf_opt(handle(&self.db, family)?, options, IteratorMode::End)))
    }
}

impl Store for RocksStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.healthy()?;
        let bytes = batch.bytes() as u64;
        let mut raw = WriteBatch::with_capacity_bytes(batch.bytes() + batch.edits().len() * EDIT_BYTES);
        for edit in batch.edits() {
            match edit {
                Edit::Put(family, key, value) => raw.put_cf(handle(&self.db, *family)?, key, value),
                Edit::Delete(family, key) => raw.delete_cf(handle(&self.db, *family)?, key),
                Edit::DeleteRange(family, from, to) => raw.delete_range_cf(handle(&self.db, *family)?, from, to),
            }
        }
        let one_by_one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.db.write_opt(raw, &WriteOptions::default()).map_err(|e| self.poisoned_by(failure("a write", &e)))?;
        self.recent.after(&batch, self.db.latest_sequence_number());
        drop(one_by_one);
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.healthy()?;
        let started = Instant::now();
        // Taken before the sync: what is published by now is in the log, and the sync covers it.
        let reached = self.db.latest_sequence_number();
        self.db.flush_wal(true).map_err(|e| self.poisoned_by(failure("a sync", &e)))?;
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        synced.raise(reached).map_err(|e| self.poisoned_by(e))?;
        drop(synced);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_us.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn is_cold(&self) -> bool {
        self.cold.is()
    }

    fn holds(&self, key: &[u8]) -> bool {
        let looked = || self.db.get_pinned_cf_opt(handle(&self.db, Family::Data).ok()?, key, &in_memory()).ok();
        let holds = self.recent.holds(key) || looked().is_some();
        if holds {
            self.cold.found()
        } else {
            self.cold.missed()
        }
        holds
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        let held = Held::new(self.db.clone(), |db| db.snapshot());
        let at = held.borrow_dependent().sequence_number();
        Arc::new(RocksSnapshot { held, at, recent: self.recent.clone(), cold: self.cold.clone() })
    }

    fn free_space(&self) -> Result<u64, StoreError> {
        let stat = nix::sys::statvfs::statvfs(&self.path)
            .map_err(|e| io_error("measuring the disk of", &self.path, &e.into()))?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            writes: self.writes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            syncs: self.syncs.load(Ordering::Relaxed),
            sync_us: self.sync_us.load(Ordering::Relaxed),
            memory_bytes: self.recent.bytes()
                + self.sum(properties::SIZE_ALL_MEM_TABLES)
                + self.sum(properties::ESTIMATE_TABLE_READERS_MEM)
                + self.figure(properties::BLOCK_CACHE_USAGE),
            disk_bytes: self.sum(properties::LIVE_SST_FILES_SIZE),
            pending_compaction_bytes: self.sum(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
            data_keys: self.figure(properties::ESTIMATE_NUM_KEYS),
            stalled: self.figure(properties::IS_WRITE_STOPPED) > 0
                || self.figure(properties::ACTUAL_DELAYED_WRITE_RATE) > 0,
        }
    }

    fn tables(&self) -> Option<Tables> {
        let mut levels: BTreeMap<(String, usize), Level> = BTreeMap::new();
        for file in self.db.live_files().unwrap_or_default() {
            let level = usize::try_from(file.level).unwrap_or(0);
            let of = levels.entry((file.column_family_name, level)).or_default();
            of.files += 1;
            of.bytes += file.size as u64;
        }
        let stalls = Family::ALL.map(|family| self.stalls(family));
        // What concerns the database and no family is counted at the default one.
        let whole = |property| self.db.property_int_value(property).ok().flatten().unwrap_or(0);
        Some(Tables {
            families: Family::ALL.map(|family| self.family(family, &levels)).into(),
            cache_used: self.figure(properties::BLOCK_CACHE_USAGE),
            cache_pinned: self.figure(properties::BLOCK_CACHE_PINNED_USAGE),
            cache_capacity: self.figure(properties::BLOCK_CACHE_CAPACITY),
            flushes: whole(properties::NUM_RUNNING_FLUSHES),
            compactions: whole(properties::NUM_RUNNING_COMPACTIONS),
            background_errors: whole(properties::BACKGROUND_ERRORS),
            slowdowns: stalls.iter().map(|(slowed, _)| slowed).sum(),
            stops: stalls.iter().map(|(_, stopped)| stopped).sum(),
        })
    }

    fn poisoned(&self) -> Option<StoreError> {
        self.poison.get().cloned()
    }
}

type RawSnapshot<'a> = rocksdb::Snapshot<'a>;

self_cell!(
    /// A snapshot together with the database it borrows from, so that it can be sent and kept.
    struct Held {
        owner: Arc<DB>,
        #[covariant]
        dependent: RawSnapshot,
    }
);

struct RocksSnapshot {
    held: Held,
    /// The sequence number that it shows.
    at: u64,
    recent: Arc<Recent>,
    cold: Arc<Cold>,
}

impl View for RocksSnapshot {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let db = self.held.borrow_owner();
        let handle = handle(db, family)?;
        let read = || self.cold.read(|options| self.held.borrow_dependent().get_pinned_cf_opt(handle, key, options));
        let latest = || db.latest_sequence_number();
        if family == Family::Data { self.recent.get(key, Some(self.at), latest, read) } else { read() }
    }

    fn scan(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
        let (handle, options) = (handle(self.held.borrow_owner(), family)?, range_options(from, to));
        Ok(entries(self.held.borrow_dependent().iterator_cf_opt(handle, options, IteratorMode::Start)))
    }

    fn scan_reverse(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
        let (handle, options) = (handle(self.held.borrow_owner(), family)?, range_options(from, to));
        Ok(entries(self.held.borrow_dependent().iterator_cf_opt(handle, options, IteratorMode::End)))
    }
}

fn handle(db: &DB, family: Family) -> Result<&ColumnFamily, StoreError> {
    db.cf_handle(family.name()).ok_or_else(|| StoreError::corrupt(format!("no column family {}", family.name())))
}

fn range_options(from: &[u8], to: Option<&[u8]>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    if let Some(to) = to {
        // Crossed bounds are undefined to RocksDB; here they are an empty range.
        options.set_iterate_upper_bound(to.max(from));
    }
    options
}

fn entries<'a>(raw: DBIterator<'a>) -> Scan<'a> {
    Box::new(raw.map(|entry| {
        let (key, value) = entry.map_err(|e| failure("a scan", &e))?;
        Ok((Bytes::from(key), Bytes::from(value)))
    }))
}

/// The file `synced`.
struct Watermark {
    file: File,
    path: PathBuf,
    claimed: u64,
}

impl Watermark {
    const NAME: &[u8] = b"synced";

    fn open(path: &Path) -> Result<Watermark, StoreError> {
        let open = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            let mut bytes = [0; 12];
            let whole = match file.read_exact_at(&mut bytes, 0) {
                Ok(()) => true,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(e) => return Err(e),
            };
            Ok((file, whole.then_some(bytes)))
        };
        let (file, bytes) = open().map_err(|e| io_error("opening", path, &e))?;
        // A file that is short or torn was cut by a power failure before its first sync: it claims nothing.
        let payload = bytes.and_then(|b| layout::unguard(Self::NAME, &Bytes::copy_from_slice(&b)).ok());
        let claimed = payload.and_then(|p| p.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes);
        Ok(Watermark { file, path: path.to_owned(), claimed })
    }

    fn raise(&mut self, reached: u64) -> Result<(), StoreError> {
        if reached > self.claimed {
            let row = layout::guard(Self::NAME, &reached.to_be_bytes());
            self.file.write_all_at(&row, 0).map_err(|e| io_error("writing", &self.path, &e))?;
            self.claimed = reached;
        }
        Ok(())
    }
}

/// Releases checksum in hardware (`make release`): on a processor without, the first write would be an illegal instruction.
fn check_processor() -> Result<(), StoreError> {
    #[cfg(all(duet_sse42, target_arch = "x86_64"))]
    if !(is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq")) {
        return Err(StoreError::Processor { needs: "SSE 4.2 and PCLMULQDQ (x86, since 2010)" });
    }
    Ok(())
}

fn open_db(db: &Path, path: &Path, limits: &RocksOptions) -> Result<DB, StoreError> {
    let cache = Cache::new_hyper_clock_cache((limits.cache_bytes / 4).max(1 << 20), 0);
    let families = Family::ALL.map(|f| ColumnFamilyDescriptor::new(f.name(), family_options(f, &cache, limits)));
    DB::open_cf_descriptors(&database_options(limits), db, families).map_err(|e| match e.kind() {
        // By another process, or by this one.
        ErrorKind::IOError
            if ["While lock file", "lock hold by current process"].iter().any(|s| e.as_ref().contains(s)) =>
        {
            StoreError::InUse { path: path.to_owned() }
        }
        // What is missing or makes no sense in a directory that exists was there once.
        ErrorKind::InvalidArgument | ErrorKind::NotFound => StoreError::corrupt(e.into_string()),
        ErrorKind::IOError if e.as_ref().contains("No such file") => StoreError::corrupt(e.into_string()),
        _ => failure("opening", &e),
    })
}

/// Bytes of table files written per second and core, at most.
const TABLE_RATE: i64 = 400 << 20;
/// How often a share of them is given out, in microseconds. A hundred times this is how long what is asked for is watched
/// before the rate follows it, by a twentieth: it doubles within six seconds.
const TABLE_PACE_US: i64 = 4_000;

fn database_options(limits: &RocksOptions) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_total_wal_size(limits.wal_bytes);
    // What is written without a sync stays in memory until the next one: the log is in one piece then, and a write costs
    // no system call. It may be lost when the process is killed, as it might be when power is.
    options.set_manual_wal_flush(true);
    // A sync that overwrites blocks which were there before needs no entry in the file system's journal.
    options.set_recycle_log_file_num(4);
    options.set_db_write_buffer_size(limits.memtable_bytes.max(4 << 20));
    options.set_max_background_jobs(limits.background_jobs.max(1));
    options.set_max_open_files(512);
    // Smooths the writing of tables, so that a flush does not delay the log's fsync behind it.
    options.set_bytes_per_sync(1 << 20);
    // Tables are written in the time that there is for it, not as fast as possible: all members of a group fill their
    // memtables together, and syncs of the log would wait for the disk and a core meanwhile. What is asked for is
    // followed between this bound and a twentieth of it; flushes go before compactions.
    let cores = thread::available_parallelism().map_or(1, NonZero::get) as i64;
    options.set_auto_tuned_ratelimiter(cores * TABLE_RATE, TABLE_PACE_US, 10);
    options.set_max_manifest_file_size(16 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(family: Family, cache: &Cache, limits: &RocksOptions) -> Options {
    use DBCompressionType::{Lz4, None as Uncompressed};
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    // Point reads of keys that may not be there; the others are read in order, by key ranges.
    if matches!(family, Family::Data | Family::RaftState) {
        table.set_bloom_filter(10.0, false);
        table.set_optimize_filters_for_memory(true);
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_level_compaction_dynamic_level_bytes(true);
    // When that many wait to be flushed, writes stop, and with them the engines: there is time for the pace to follow.
    options.set_max_write_buffer_number(6);
    if family == Family::Data {
        // Most keys that are looked up are not in memory: that is known without a search.
        options.set_memtable_prefix_bloom_ratio(0.1);
        options.set_memtable_whole_key_filtering(true);
    }
    let share = match family {
        // What every write adds to: each flush begins a new log.
        Family::Data | Family::RaftLog | Family::Namespace => limits.memtable_bytes / 4,
        Family::RaftState | Family::Origin => limits.memtable_bytes / 8,
        Family::Node => limits.memtable_bytes / 32,
    };
    options.set_write_buffer_size(share.max(1 << 20));
    options.set_target_file_size_base(32 << 20);
    // Entries of the log are deleted soon, and tables of the upper levels are merged soon: compressing them first would be
    // work for nothing. Most of what is kept for long lies below.
    let lower = if matches!(family, Family::Data | Family::Origin) { Lz4 } else { Uncompressed };
    options.set_compression_per_level(&[Uncompressed, Uncompressed, lower, lower, lower, lower, lower]);
    options
}

/// Creates a directory, and those above it, and makes their names durable.
fn create_dir(path: &Path) -> io::Result<()> {
    let missing = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()).count();
    fs::create_dir_all(path)?;
    // The name of each is in the one above it.
    let above = path.ancestors().skip(1).take(missing);
    above.map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir }).try_for_each(sync_dir)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn failure(doing: &str, error: &rocksdb::Error) -> StoreError {
    let what = format!("{doing}: {error}");
    match error.kind() {
        ErrorKind::Corruption => StoreError::Corrupt { what },
        _ if error.as_ref().contains("No space left") => StoreError::Full { what },
        _ => StoreError::Io { what },
    }
}

fn io_error(doing: &str, path: &Path, error: &io::Error) -> StoreError {
    let what = format!("{doing} {}: {error}", path.display());
    if error.kind() == io::ErrorKind::StorageFull { StoreError::Full { what } } else { StoreError::Io { what } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_read_from_what_rocksdb_says() {
        let text = "Write Stall (count): cf-l0-file-count-limit-delays-with-ongoing-compaction: 1, total-delays: 7, \
                    total-stops: 2\n";
        assert_eq!(
            (counted(text, "total-delays"), counted(text, "total-stops"), counted("", "total-stops")),
            (7, 2, 0)
        );
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(dir.path(), &RocksOptions::default()).unwrap();
        let text =
            store.db.property_value_cf(handle(&store.db, Family::Data).unwrap(), WRITE_STALLS).unwrap().unwrap();
        assert!(text.contains("total-delays: 0") && text.contains("total-stops: 0"), "{text}");
    }
}
