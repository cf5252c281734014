//! What only RocksDB can get wrong: locks, damaged files, kills.
#![cfg(feature = "rocks")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use duet_proto::NamespaceId;
use duet_store::{
    Batch, Committer, Family, Level, Store, StoreError, View, layout,
    rocks::{RocksOptions, RocksStore},
    warm,
};

fn open(path: &Path) -> Result<RocksStore, StoreError> {
    RocksStore::open(path, &RocksOptions::default())
}

fn put(store: &RocksStore, n: u32) {
    let mut batch = Batch::new();
    batch.put(Family::RaftLog, n.to_be_bytes().to_vec(), vec![n as u8; 1000]);
    store.write(batch).unwrap();
}

fn count(view: &dyn View) -> usize {
    view.scan(Family::RaftLog, b"", None).unwrap().inspect(|e| assert!(e.is_ok())).count()
}

/// The files of the database that end in `ending`, the newest last.
fn files(path: &Path, ending: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(path.join("db")).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = all.filter(|p| p.to_string_lossy().ends_with(ending)).collect();
    files.sort();
    files
}

/// A copy of the directory of a store that runs: what a kill would leave.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("db")).unwrap();
    for (from, to) in [(from.to_owned(), to.path().to_owned()), (from.join("db"), to.path().join("db"))] {
        for file in fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
    to
}

fn corrupt(result: Result<RocksStore, StoreError>) -> String {
    match result {
        Err(StoreError::Corrupt { what }) => what,
        other => panic!("expected corruption, got {other:?}"),
    }
}

#[test]
fn a_second_one_is_told_that_it_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/by/open");
    let first = open(&path).unwrap();
    assert_eq!(open(&path).unwrap_err(), StoreError::InUse { path: path.clone() });
    drop(first);
    open(&path).unwrap();
}

#[test]
fn a_lock_that_cannot_be_made_is_not_in_use() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("db/LOCK")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
}

#[test]
fn a_kill_and_a_torn_tail_lose_only_what_was_not_synced() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    (0..50).for_each(|n| put(&store, n));
    store.sync().unwrap();
    (50..100).for_each(|n| put(&store, n));
    let left = count(&open(copy(dir.path()).path()).unwrap());
    assert!((50..=100).contains(&left), "{left}");
    drop(store);
    assert_eq!(count(&open(copy(dir.path()).path()).unwrap()), 100, "it was closed");

    let torn = copy(dir.path());
    let log = files(torn.path(), ".log").pop().unwrap();
    let length = fs::metadata(&log).unwrap().len();
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(length - 10_500).unwrap();
    let reopened = open(torn.path()).unwrap();
    let left = count(&reopened);
    assert!((50..100).contains(&left), "{left}");
    put(&reopened, 1000);
    reopened.sync().unwrap();
    drop(reopened);
    assert_eq!(count(&open(torn.path()).unwrap()), left + 1);
}

/// Logs are written over once what they held is in tables: what is left of the earlier one must never come back.
#[test]
fn a_kill_finds_logs_that_were_used_before() {
    let dir = tempfile::tempdir().unwrap();
    let small = RocksOptions { memtable_bytes: 4 << 20, wal_bytes: 2 << 20, ..RocksOptions::default() };
    let store = RocksStore::open(dir.path(), &small).unwrap();
    let mut synced = 0;
    for n in 0..12_000 {
        put(&store, n);
        if n % 7 == 0 {
            store.sync().unwrap();
            synced = n as usize + 1;
        }
        if n % 1500 == 1499 {
            let killed = RocksStore::open(copy(dir.path()).path(), &small).unwrap();
            let keys: Vec<Bytes> = killed.scan(Family::RaftLog, b"", None).unwrap().map(|e| e.unwrap().0).collect();
            assert!((synced..=n as usize + 1).contains(&keys.len()), "{} of {synced}", keys.len());
            assert!(
                keys.iter().zip(0_u32..).all(|(key, n)| key[..] == n.to_be_bytes()),
                "a prefix of what was written"
            );
        }
    }
    let log = fs::read_to_string(dir.path().join("db/LOG")).unwrap();
    assert!(log.contains("reusing log"), "no log was used twice");
}

#[test]
fn a_log_damaged_before_its_synced_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    (0..100).for_each(|n| put(&store, n));
    store.sync().unwrap();
    drop(store);

    let flipped = copy(dir.path());
    let log = files(flipped.path(), ".log").pop().unwrap();
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, bytes).unwrap();
    let what = corrupt(open(flipped.path()));
    assert!(what.contains("synced"), "{what}");
    corrupt(open(flipped.path()));

    let cut = copy(dir.path());
    let log = files(cut.path(), ".log").pop().unwrap();
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(50_000).unwrap();
    corrupt(open(cut.path()));

    let lost = copy(dir.path());
    files(lost.path(), ".log").iter().for_each(|log| fs::remove_file(log).unwrap());
    corrupt(open(lost.path()));

    assert_eq!(count(&open(dir.path()).unwrap()), 100, "the original is whole");
}

#[test]
fn missing_and_damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    (0..100).for_each(|n| put(&store, n));
    store.sync().unwrap();
    drop(store);
    // Opening moves what is in the log to table files.
    drop(open(dir.path()).unwrap());
    assert!(!files(dir.path(), ".sst").is_empty());

    let manifest = fs::read_to_string(dir.path().join("db/CURRENT")).unwrap();
    for name in ["CURRENT", manifest.trim()] {
        let missing = copy(dir.path());
        fs::remove_file(missing.path().join("db").join(name)).unwrap();
        corrupt(open(missing.path()));

        let damaged = copy(dir.path());
        fs::write(damaged.path().join("db").join(name), "nonsense\n").unwrap();
        corrupt(open(damaged.path()));
    }
    let missing = copy(dir.path());
    files(missing.path(), ".sst").iter().for_each(|table| fs::remove_file(table).unwrap());
    corrupt(open(missing.path()));
}

#[test]
fn a_damaged_block_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    (0..100).for_each(|n| put(&store, n));
    store.sync().unwrap();
    drop(store);
    drop(open(dir.path()).unwrap());
    for table in files(dir.path(), ".sst") {
        let mut bytes = fs::read(&table).unwrap();
        if let Some(byte) = bytes.get_mut(40_000) {
            *byte ^= 1;
        }
        fs::write(&table, bytes).unwrap();
    }
    let store = open(dir.path()).unwrap();
    let error = store.scan(Family::RaftLog, b"", None).unwrap().find_map(Result::err);
    assert!(matches!(error, Some(StoreError::Corrupt { .. })), "{error:?}");
    let gets = (0..100u32).map(|n| store.get(Family::RaftLog, &n.to_be_bytes()));
    let (bad, good): (Vec<_>, Vec<_>) = gets.partition(Result::is_err);
    assert!(!bad.is_empty() && !good.is_empty());
    assert!(bad.into_iter().all(|e| matches!(e, Err(StoreError::Corrupt { .. }))));
}

#[test]
fn tables_are_told_of_by_family_and_level() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let log = |store: &RocksStore| {
        let tables = store.tables().unwrap();
        assert_eq!(tables.families.iter().map(|of| of.family).collect::<Vec<_>>(), Family::ALL);
        assert!(tables.cache_capacity >= 24 << 20 && tables.cache_used <= tables.cache_capacity, "{tables:?}");
        assert_eq!((tables.background_errors, tables.slowdowns, tables.stops), (0, 0, 0));
        tables.families[Family::RaftLog as usize].clone()
    };
    (0..100).for_each(|n| put(&store, n));
    store.sync().unwrap();
    let before = log(&store);
    assert!(before.memtable_bytes > 100_000 && before.levels == [Level::default()], "{before:?}");
    drop(store);
    // What is in the log and in no table is put into one as it is opened.
    let after = log(&open(dir.path()).unwrap());
    let [first] = after.levels[..] else { panic!("{after:?}") };
    assert!(first.files == 1 && first.bytes > 100_000 && after.memtable_bytes < before.memtable_bytes, "{after:?}");
}

#[test]
fn a_path_that_cannot_be_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(open(&file.join("below")), Err(StoreError::Io { .. })));
}

#[tokio::test]
async fn the_committer_groups_and_releases_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()).unwrap());
    let committer = Committer::start_thread(store.clone()).unwrap();
    let mut waiting = Vec::new();
    for n in 0..2000u32 {
        let mut batch = Batch::new();
        batch.put(Family::RaftLog, n.to_be_bytes().to_vec(), "entry");
        waiting.push(committer.submit(batch));
    }
    for committed in waiting {
        tokio::time::timeout(Duration::from_secs(60), committed).await.expect("it commits").unwrap();
    }
    let stats = committer.stats();
    assert!(stats.groups < 2000 && stats.batches == 2000, "{stats:?}");
    committer.stop().await;
    drop(store);
    assert_eq!(count(&open(dir.path()).unwrap()), 2000);
}

/// Readers of now never go back behind what a scan has shown, and a snapshot is one to those who get from it as to those who
/// scan it, while the rows that they share a memory of are written and removed.
#[test]
fn what_is_remembered_is_what_the_store_shows() {
    const KEYS: u32 = 8;
    const WRITES: u32 = 30_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let key = |k: u32| k.to_be_bytes();
    let number = |value: Bytes| u32::from_be_bytes(value.as_ref().try_into().unwrap());
    let got = |view: &dyn View, k| view.get(Family::Data, &key(k)).unwrap().map(number);
    let scanned = |view: &dyn View, k| {
        let row = view.scan(Family::Data, &key(k), Some(&key(k + 1))).unwrap().next();
        row.map(|row| number(row.unwrap().1))
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut turn = 0;
                while !done.load(Ordering::Relaxed) {
                    turn = (turn + 1) % KEYS;
                    let snapshot = store.snapshot();
                    assert_eq!(got(&*snapshot, turn), scanned(&*snapshot, turn), "a snapshot");
                    // The even ones are never removed.
                    let even = turn / 2 * 2;
                    let (seen, now, later) = (scanned(&store, even), got(&store, even), scanned(&store, even));
                    assert!(seen <= now && now <= later, "{seen:?} {now:?} {later:?}");
                }
            });
        }
        for n in 0..WRITES {
            let (k, mut batch) = (n % KEYS, Batch::new());
            match n / KEYS % 3 {
                2 if k % 4 == 1 => batch.delete(Family::Data, key(k).to_vec()),
                2 if k % 4 == 3 => batch.delete_range(Family::Data, key(k).to_vec(), key(k + 1).to_vec()),
                _ => batch.put(Family::Data, key(k).to_vec(), key(n).to_vec()),
            }
            store.write(batch).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Rows on the disk are seen to be there only, are brought into memory, and after that nobody looks any more.
#[tokio::test]
async fn rows_are_warmed() {
    let dir = tempfile::tempdir().unwrap();
    const SPACE: NamespaceId = NamespaceId(7);
    let key = |n: u32| layout::data_key(SPACE, &n.to_be_bytes());
    let store = open(dir.path()).unwrap();
    let mut batch = Batch::new();
    for n in 0..500 {
        batch.put(Family::Data, key(n), vec![n as u8; 1000]);
    }
    store.write(batch).unwrap();
    store.sync().unwrap();
    assert!(store.holds(&key(0)) && !store.is_cold());
    drop(store);
    let store: Arc<dyn Store> = Arc::new(open(dir.path()).unwrap());
    let numbers = || (0..500).map(u32::to_be_bytes);
    let warmed = || warm(&store, SPACE, numbers(), tokio::time::Instant::now() + Duration::from_secs(60));
    warmed().await;
    assert!(!store.holds(&key(7)), "a store that has missed nothing is left alone");
    assert!(store.is_cold() && store.holds(&Bytes::from_static(b"none")), "that there is none is known in memory");
    warmed().await;
    assert!((0..3).all(|_| (0..500).all(|n| store.holds(&key(n)))));
    assert!(!store.is_cold());
    assert_eq!(store.snapshot().get(Family::Data, &key(7)).unwrap().unwrap(), vec![7; 1000]);
}
