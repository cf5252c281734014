//! One suite for every implementation of the store.
//!
//! Each check takes a `Disk`: something whose store can be closed and opened again. RocksDB runs it on a temporary
//! directory, the memory twin by killing it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use duet_store::{Batch, Edit, Family, Store, View, memory::MemoryStore};
use proptest::prelude::*;

trait Disk {
    fn new() -> Self;
    fn store(&self) -> Arc<dyn Store>;
    fn reopen(&mut self);
}

struct Memory(Arc<MemoryStore>);

impl Disk for Memory {
    fn new() -> Memory {
        Memory(MemoryStore::new())
    }

    fn store(&self) -> Arc<dyn Store> {
        self.0.clone()
    }

    fn reopen(&mut self) {
        self.0 = self.0.kill();
    }
}

#[cfg(feature = "rocks")]
struct Rocks {
    dir: tempfile::TempDir,
    store: Option<Arc<duet_store::rocks::RocksStore>>,
}

#[cfg(feature = "rocks")]
impl Disk for Rocks {
    fn new() -> Rocks {
        let mut disk = Rocks { dir: tempfile::tempdir().unwrap(), store: None };
        disk.reopen();
        disk
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().unwrap()
    }

    fn reopen(&mut self) {
        self.store = None;
        let opened = duet_store::rocks::RocksStore::open(self.dir.path(), &Default::default());
        self.store = Some(Arc::new(opened.unwrap()));
    }
}

macro_rules! conformance {
    ($($check:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $check() { super::$check::<super::Memory>(); })*
        }
        #[cfg(feature = "rocks")]
        mod rocks {
            $(#[test] fn $check() { super::$check::<super::Rocks>(); })*
        }
    };
}

conformance! {
    batches_are_seen_whole_and_in_order,
    ranges_have_an_inclusive_start_and_an_exclusive_end,
    families_are_apart,
    delete_range_ends_before_its_end_and_yields_to_later_puts,
    a_snapshot_stands_still_and_outlives_its_handle,
    a_scan_is_consistent_in_itself,
    empty_values_and_large_ones_read_back,
    synced_writes_are_there_after_a_restart,
    an_empty_batch_is_fine,
    figures_move,
    agrees_with_a_model,
}

type Pairs = Vec<(String, String)>;

fn read(view: &dyn View, from: &str, to: Option<&str>) -> Pairs {
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let pairs = |scan: duet_store::Scan<'_>| scan.map(|e| e.unwrap()).map(|(k, v)| (text(k), text(v))).collect();
    let up: Pairs = pairs(view.scan(Family::Data, from.as_bytes(), to.map(str::as_bytes)).unwrap());
    let mut down: Pairs = pairs(view.scan_reverse(Family::Data, from.as_bytes(), to.map(str::as_bytes)).unwrap());
    down.reverse();
    assert_eq!(up, down, "both directions show the same");
    up
}

fn keys(view: &dyn View) -> String {
    read(view, "", None).into_iter().map(|(k, _)| k).collect::<Vec<_>>().join(" ")
}

fn put(store: &dyn Store, pairs: &[(&'static str, &'static str)]) {
    let mut batch = Batch::new();
    for (key, value) in pairs {
        batch.put(Family::Data, *key, *value);
    }
    store.write(batch).unwrap();
}

fn batches_are_seen_whole_and_in_order<D: Disk>() {
    let disk = D::new();
    let store = disk.store();
    let mut batch = Batch::new();
    batch.put(Family::Data, "a", "1");
    batch.put(Family::Data, "a", "2");
    batch.put(Family::Data, "b", "1");
    batch.delete(Family::Data, "b");
    batch.delete(Family::Data, "c");
    batch.put(Family::Data, "c", "1");
    let mut later = Batch::new();
    later.put(Family::Data, "c", "2");
    batch.append(later);
    assert_eq!((batch.len(), batch.bytes()), (7, 12));
    store.write(batch).unwrap();
    assert_eq!(read(&*store, "", None), [("a".into(), "2".into()), ("c".into(), "2".into())]);
    assert_eq!(store.get(Family::Data, b"a").unwrap(), Some("2".into()));
    assert_eq!(store.get(Family::Data, b"b").unwrap(), None);
}

fn ranges_have_an_inclusive_start_and_an_exclusive_end<D: Disk>() {
    let disk = D::new();
    let store = disk.store();
    put(&*store, &[("a", ""), ("b", ""), ("ba", ""), ("c", ""), ("d", "")]);
    let range = |from, to| read(&*store, from, to).into_iter().map(|(k, _)| k).collect::<Vec<_>>().join(" ");
    assert_eq!(range("b", Some("d")), "b ba c");
    assert_eq!(range("aa", Some("bz")), "b ba");
    assert_eq!(range("c", None), "c d");
    assert_eq!(range("", Some("b")), "a");
    assert_eq!(range("c", Some("c")), "");
    assert_eq!(range("d", Some("a")), "", "crossed bounds are an empty range");
    assert_eq!(range("x", None), "");
}

fn families_are_apart<D: Disk>() {
    let disk = D::new();
    let store = disk.store();
    let mut batch = Batch::new();
    for family in Family::ALL {
        batch.put(family, "key", family.name());
    }
    store.write(batch).unwrap();
    for family in Family::ALL {
        assert_eq!(store.get(family, b"key").unwrap(), Some(family.name().into()));
        assert_eq!(store.scan(family, b"", None).unwrap().count(), 1);
    }
    let mut batch = Batch::new();
    batch.delete_range(Family::Data, "a", "z");
    store.write(batch).unwrap();
    assert_eq!(store.get(Family::Data, b"key").unwrap(), None);
    assert_eq!(store.get(Family::Origin, b"key").unwrap(), Some("origin".into()));
}

fn delete_range_ends_before_its_end_and_yields_to_later_puts<D: Disk>() {
    let mut disk = D::new();
    let store = disk.store();
    put(&*store, &[("a", ""), ("b", ""), ("c", ""), ("d", "")]);
    let mut batch = Batch::new();
    batch.put(Family::Data, "bb", "");
    batch.delete_range(Family::Data, "b", "d");
    batch.put(Family::Data, "c", "again");
    batch.delete_range(Family::Data, "z", "a");
    assert_eq!(
        batch.edits().iter().filter(|e| matches!(e, Edit::DeleteRange(..))).count(),
        1,
        "an empty one is none"
    );
    store.write(batch).unwrap();
    assert_eq!(keys(&*store), "a c d");
    store.sync().unwrap();
    drop(store);
    disk.reopen();
    assert_eq!(keys(&*disk.store()), "a c d");
}

fn a_snapshot_stands_still_and_outlives_its_handle<D: Disk>() {
    let disk = D::new();
    let store = disk.store();
    put(&*store, &[("a", "1"), ("b", "1")]);
    let snapshot = store.snapshot();
    put(&*store, &[("a", "2"), ("c", "2")]);
    let mut batch = Batch::new();
    batch.delete_range(Family::Data, "b", "c");
    store.write(batch).unwrap();
    drop(store);
    // It is sent elsewhere, as the reader of a Raft snapshot is.
    let read = move || (keys(&*snapshot), snapshot.get(Family::Data, b"a").unwrap());
    assert_eq!(std::thread::spawn(read).join().unwrap(), ("a b".into(), Some("1".into())));
    assert_eq!(keys(&*disk.store()), "a c");
}

fn a_scan_is_consistent_in_itself<D: Disk>() {
    let disk = D::new();
    let store = disk.store();
    put(&*store, &[("a", "1"), ("c", "1")]);
    let mut scan = store.scan(Family::Data, b"", None).unwrap();
    assert_eq!(scan.next().unwrap().unwrap().0, "a");
    put(&*store, &[("b", "2"), ("c", "2"), ("d", "2")]);
    assert_eq!(scan.next().unwrap().unwrap(), ("c".into(), "1".into()));
    assert!(scan.next().is_none());
    assert!(scan.next().is_none(), "an ended scan stays ended");
}

fn empty_values_and_large_ones_read_back<D: Disk>() {
    let disk = D::new();
    let store = disk.store();
    let large = Bytes::from(vec![7; 16 << 20]);
    let mut batch = Batch::new();
    batch.put(Family::Data, "empty", "");
    batch.put(Family::Data, "large", large.clone());
    batch.put(Family::Data, vec![0xff; 4096], "long key");
    store.write(batch).unwrap();
    assert_eq!(store.get(Family::Data, b"empty").unwrap(), Some(Bytes::new()));
    assert_eq!(store.get(Family::Data, b"large").unwrap(), Some(large));
    assert_eq!(store.get(Family::Data, &[0xff; 4096]).unwrap(), Some("long key".into()));
}

fn synced_writes_are_there_after_a_restart<D: Disk>() {
    let mut disk = D::new();
    for round in 0..3u8 {
        let store = disk.store();
        let mut batch = Batch::new();
        batch.put(Family::Data, vec![b'k', b'0' + round], "v");
        store.write(batch).unwrap();
        store.sync().unwrap();
        store.sync().unwrap();
        drop(store);
        disk.reopen();
    }
    assert_eq!(keys(&*disk.store()), "k0 k1 k2");
}

fn an_empty_batch_is_fine<D: Disk>() {
    let disk = D::new();
    let store = disk.store();
    store.write(Batch::new()).unwrap();
    store.sync().unwrap();
    assert_eq!(keys(&*store), "");
    assert_eq!(store.poisoned(), None);
}

fn figures_move<D: Disk>() {
    let disk = D::new();
    let store = disk.store();
    put(&*store, &[("a", "1"), ("b", "22")]);
    store.sync().unwrap();
    let stats = store.stats();
    assert_eq!((stats.writes, stats.written_bytes, stats.syncs), (1, 5, 1));
    assert_eq!(stats.data_keys, 2);
    assert!(!stats.stalled);
    assert!(store.free_space().unwrap() > 0);
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    DeleteRange(u8, u8),
    Write,
    Sync,
    Snapshot,
    Scan(u8, u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 0u8..24;
    let step = prop_oneof![
        8 => (key(), any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        3 => key().prop_map(Step::Delete),
        2 => (key(), key()).prop_map(|(a, b)| Step::DeleteRange(a, b)),
        6 => Just(Step::Write),
        1 => Just(Step::Sync),
        1 => Just(Step::Snapshot),
        3 => (key(), key()).prop_map(|(a, b)| Step::Scan(a, b)),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..100)
}

type Model = BTreeMap<u8, u8>;

fn check(view: &dyn View, model: &Model, from: u8, to: Option<u8>) {
    let end = to.map(|t| [t]);
    let scan = |s: duet_store::Scan<'_>| s.map(|e| e.unwrap()).map(|(k, v)| (k[0], v[0])).collect::<Vec<_>>();
    let expected: Vec<(u8, u8)> =
        model.iter().filter(|(k, _)| **k >= from && to.is_none_or(|t| **k < t)).map(|(k, v)| (*k, *v)).collect();
    let end = end.as_ref().map(|e| e.as_slice());
    assert_eq!(scan(view.scan(Family::Data, &[from], end).unwrap()), expected);
    let mut down = scan(view.scan_reverse(Family::Data, &[from], end).unwrap());
    down.reverse();
    assert_eq!(down, expected);
    let got = view.get(Family::Data, &[from]).unwrap().map(|v| v[0]);
    assert_eq!(got, model.get(&from).copied());
}

fn agrees_with_a_model<D: Disk>() {
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps())| {
        let mut disk = D::new();
        let (mut model, mut ahead) = (Model::new(), Model::new());
        let mut batch = Batch::new();
        let mut snapshots = Vec::new();
        for step in steps {
            match step {
                Step::Put(k, v) => {
                    batch.put(Family::Data, vec![k], vec![v]);
                    ahead.insert(k, v);
                }
                Step::Delete(k) => {
                    batch.delete(Family::Data, vec![k]);
                    ahead.remove(&k);
                }
                Step::DeleteRange(a, b) => {
                    batch.delete_range(Family::Data, vec![a], vec![b]);
                    ahead.retain(|k, _| !(a..b).contains(k));
                }
                Step::Write => {
                    disk.store().write(std::mem::take(&mut batch)).unwrap();
                    model = ahead.clone();
                }
                Step::Sync => disk.store().sync().unwrap(),
                Step::Snapshot => snapshots.push((disk.store().snapshot(), model.clone())),
                Step::Scan(a, b) => {
                    check(&*disk.store(), &model, a, Some(b));
                    check(&*disk.store(), &model, b, None);
                }
                Step::Reopen => {
                    for (snapshot, then) in snapshots.drain(..) {
                        check(&*snapshot, &then, 0, None);
                    }
                    disk.reopen();
                }
            }
        }
        check(&*disk.store(), &model, 0, None);
        for (snapshot, then) in snapshots {
            check(&*snapshot, &then, 0, None);
        }
    });
}
