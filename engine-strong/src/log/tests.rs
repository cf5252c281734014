use duet_proto::{Epoch, NamespaceId, NamespaceName};
use duet_store::{View, memory::MemoryStore};
use proptest::prelude::*;
use raft::Storage;

use super::*;

const ID: GroupId = GroupId { namespace: NamespaceId(7), epoch: Epoch(1) };
const KEEP: Keep = Keep { entries: 20, bytes: 4 << 10, piece_bytes: 400, tail_bytes: 256 };

fn entries(from: u64, count: u64, term: u64) -> Vec<Entry> {
    let entry = |index| Entry { index, term, data: vec![index as u8; 30], ..Entry::default() };
    (from..from + count).map(entry).collect()
}

fn read(log: &Log, low: u64, high: u64) -> Vec<(u64, u64)> {
    let entries = log.entries(low, high, None, GetEntriesContext::empty(false)).unwrap();
    entries.iter().map(|e| (e.index, e.term)).collect()
}

fn create(store: &Arc<MemoryStore>) -> Log {
    let mut batch = Batch::new();
    Row::put(&mut batch, ID, &NamespaceName::new("n").unwrap());
    let log = Log::create(store.clone(), ID, KEEP, FOUNDED, ConfState::default(), &mut batch);
    store.write(batch).unwrap();
    log
}

proptest! {
    /// Appending, overwriting, compacting and reopening against a plain list.
    #[test]
    fn behaves_as_a_list(steps in prop::collection::vec((0u64..12, 1u64..6, 0u64..5), 1..60)) {
        let store = MemoryStore::new();
        let mut log = create(&store);
        let mut model: Vec<(u64, u64)> = vec![(1, 1)];
        let mut term = 1;
        for (back, count, action) in steps {
            let mut batch = Batch::new();
            if action >= 3 {
                // What every member has goes at once, in whole pieces, but nothing that is not applied here.
                let whole = log.newly_held(log.last() - back.min(log.last() - 1)).filter(|_| action == 4);
                log.hold(whole.unwrap_or(0));
                log.compact(&mut batch);
                prop_assert!(log.first() <= log.applied.index + 1);
                let held = log.held.min(log.applied.index);
                let mut kept = log.pieces.iter().filter(|(last, size)| *last > log.base.index && *size >= KEEP.piece_bytes);
                prop_assert!(kept.all(|(last, _)| *last > held));
            } else {
                term += u64::from(action == 2);
                let from = (log.last() + 1 - back.min(log.last() - log.applied.index)).max(log.applied.index + 1);
                model.retain(|(index, _)| *index < from);
                model.extend((from..from + count).map(|index| (index, term)));
                log.append(entries(from, count, term), &mut batch).unwrap();
            }
            store.write(batch).unwrap();
            log.persisted(log.last());
            if action == 1 {
                let index = (log.applied.index + log.last()) / 2;
                log.applied = Place { index, term: log.term(index).unwrap() };
            }
            let again = Log::open(store.clone(), ID, KEEP, Some(log.applied)).unwrap();
            for log in [&log, &again] {
                let expected: Vec<_> = model.iter().copied().filter(|(i, _)| *i >= log.first()).collect();
                // Also what lies in the store entirely, and nothing.
                for high in log.first()..=log.last() + 1 {
                    for low in log.first()..=high {
                        let within: Vec<_> = expected.iter().copied().filter(|(i, _)| (low..high).contains(i)).collect();
                        prop_assert_eq!(read(log, low, high), within);
                    }
                }
                for (index, term) in model.iter().filter(|(i, _)| *i + 1 >= log.first()) {
                    prop_assert_eq!(log.term(*index).unwrap(), *term);
                }
            }
            prop_assert!(log.tail_bytes <= KEEP.tail_bytes);
        }
    }
}

#[test]
fn what_is_not_durable_stays_in_memory() {
    let store = MemoryStore::new();
    let mut log = create(&store);
    log.append(entries(2, 50, 1), &mut Batch::new()).unwrap();
    assert_eq!(read(&log, 2, 52).len(), 50, "the batch was never written, and nothing had to be read");
}

#[test]
fn a_gap_or_damage_keeps_the_log_closed() {
    let store = MemoryStore::new();
    let mut log = create(&store);
    let mut batch = Batch::new();
    log.append(entries(2, 10, 1), &mut batch).unwrap();
    store.write(batch).unwrap();
    assert!(Log::open(store.clone(), ID, KEEP, None).is_ok());
    let key = layout::log_key(ID.namespace, ID.epoch, 5);
    let whole = store.get(Family::RaftLog, &key).unwrap().unwrap();
    assert!(store.damage(Family::RaftLog, &key));
    assert!(matches!(Log::open(store.clone(), ID, KEEP, None), Err(StoreError::Corrupt { .. })), "damage");
    let mut batch = Batch::new();
    batch.delete(Family::RaftLog, key.clone());
    store.write(batch).unwrap();
    assert!(matches!(Log::open(store.clone(), ID, KEEP, None), Err(StoreError::Corrupt { .. })), "a gap");
    let mut batch = Batch::new();
    batch.put(Family::RaftLog, key, whole);
    store.write(batch).unwrap();
    let beyond = Some(Place { index: 12, term: 1 });
    assert!(matches!(Log::open(store, ID, KEEP, beyond), Err(StoreError::Corrupt { .. })), "applied but not there");
}

#[test]
fn a_page_of_the_log_is_bounded_but_never_empty() {
    let store = MemoryStore::new();
    let mut log = create(&store);
    let mut batch = Batch::new();
    log.append(entries(2, 30, 1), &mut batch).unwrap();
    store.write(batch).unwrap();
    log.persisted(31);
    for low in [2, 28] {
        let page = |room: u64| log.entries(low, 32, room, GetEntriesContext::empty(false)).unwrap().len();
        assert_eq!((page(0), page(130)), (1, 2));
    }
}
