//! Snapshots of random states, installed over random states, with every kind of interruption.

use std::sync::Arc;

use duet_proto::{NodeId, Record};
use duet_store::{Batch, Store, View, memory::MemoryStore};
use proptest::prelude::*;

use super::*;
use crate::machine::{
    Machine, MachineError,
    tests::{Step, apply, create, dump, entries, group, open, steps},
};

/// What happens next on the way of a chunk.
#[derive(Clone, Copy, Debug)]
enum Event {
    Deliver,
    Damage(u32),
    Repeat,
    Foreign,
    Restart,
    PowerCut(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => Just(Event::Deliver),
        1 => any::<u32>().prop_map(Event::Damage),
        1 => Just(Event::Repeat),
        1 => Just(Event::Foreign),
        1 => Just(Event::Restart),
        2 => any::<u64>().prop_map(Event::PowerCut),
    ];
    prop::collection::vec(event, 0..60)
}

fn holding(steps: &[Step]) -> Arc<MemoryStore> {
    let store = MemoryStore::new();
    let mut machine = create(&store);
    apply(&mut machine, &store, &entries(steps));
    store.sync().unwrap();
    store
}

fn capture(store: &MemoryStore) -> Capture {
    Capture::new(store.snapshot(), group().namespace, group().epoch, "members".into()).unwrap()
}

/// A receiver that is as forgetful as its store.
struct Receiver {
    store: Arc<MemoryStore>,
    /// Everything in the store before the snapshot came.
    old: Vec<(duet_store::Family, Bytes, Bytes)>,
    installer: Option<Installer>,
}

impl Receiver {
    fn reborn(&mut self, store: Arc<MemoryStore>) {
        self.store = store;
        self.installer = Installer::resume(&*self.store, group().namespace).unwrap();
        match self.installer.as_ref().map(Installer::phase) {
            Some(Phase::Moving(_)) => {
                assert_eq!(Machine::open(&*self.store, group()).unwrap_err(), MachineError::Installing);
            }
            _ => {
                self.serves_the_old_state();
            }
        }
    }

    /// Every row that was there is there, and no other that a reader could see.
    fn serves_the_old_state(&self) {
        open(&self.store);
        let (staged, marker) =
            (crate::machine::staging(group().namespace), crate::machine::install_key(group().namespace));
        let mut rows = dump(&*self.store);
        rows.retain(|(_, key, _)| !key.starts_with(&staged.0.to_be_bytes()) && *key != marker);
        assert_eq!(rows, self.old);
    }

    fn take(&mut self, chunk: &[u8]) -> Result<(), SnapshotError> {
        let mut batch = Batch::new();
        match &mut self.installer {
            None => self.installer = Some(Installer::begin(&group(), chunk, &mut batch)?),
            Some(installer) => {
                let before = installer.clone();
                if let Err(error) = installer.accept(chunk, &mut batch) {
                    assert!(batch.is_empty(), "a refused chunk left edits");
                    assert_eq!(*installer, before, "a refused chunk left a trace");
                    return Err(error);
                }
            }
        }
        self.store.write(batch).unwrap();
        Ok(())
    }

    /// Takes a step of the move; whether it was the last one.
    fn step(&mut self) -> bool {
        let mut batch = Batch::new();
        let done = self.installer.as_mut().unwrap().advance(&*self.store, &mut batch).unwrap();
        self.store.write(batch).unwrap();
        done
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_on_the_way_the_end_is_equal(
        source in steps(120), behind in steps(40), other in steps(5), events in events(),
    ) {
        let source = holding(&source);
        let expected = dump(&*source);
        let foreign = { let s = holding(&other); capture(&s).next_chunk().unwrap().unwrap().1 };
        let mut sender = capture(&source);
        let id = sender.header().id;
        let store = holding(&behind);
        let mut receiver = Receiver { old: dump(&*store), store, installer: None };
        let mut events = events.into_iter();
        let mut previous = None;
        loop {
            let point = match receiver.installer.as_ref().map(Installer::phase) {
                None => Some(Point::START),
                Some(Phase::Receiving(point)) => Some(point.clone()),
                Some(_) => None,
            };
            let chunk = point.map(|point| {
                sender.seek(id, point).unwrap();
                sender.next_chunk().unwrap().unwrap().1
            });
            match (events.next().unwrap_or(Event::Deliver), chunk) {
                (Event::Deliver, Some(chunk)) => {
                    receiver.take(&chunk).unwrap();
                    receiver.serves_the_old_state();
                    previous = Some(chunk);
                }
                // Otherwise the move has a step more to take.
                (Event::Deliver, None) if receiver.step() => break,
                (Event::Damage(bit), Some(chunk)) => {
                    let mut chunk = chunk.to_vec();
                    let bit = bit as usize % (chunk.len() * 8);
                    chunk[bit / 8] ^= 1 << (bit % 8);
                    let error = receiver.take(&chunk).unwrap_err();
                    let found = matches!(error, SnapshotError::Damaged { .. } | SnapshotError::Version { .. });
                    prop_assert!(found, "{:?}", error);
                }
                (Event::Repeat, Some(_)) if receiver.installer.is_some() => if let Some(chunk) = &previous {
                    // After a power cut the one before may be wanted again.
                    let _ = receiver.take(chunk);
                },
                (Event::Foreign, Some(_)) if receiver.installer.is_some() => {
                    let taken = receiver.take(&foreign);
                    let refused =
                        matches!(taken, Err(SnapshotError::Other { .. } | SnapshotError::OutOfOrder { .. }));
                    prop_assert!(refused, "{:?}", taken);
                }
                (Event::Restart, _) => { let store = receiver.store.kill(); receiver.reborn(store) }
                (Event::PowerCut(seed), _) => { let store = receiver.store.crash(seed); receiver.reborn(store) }
                _ => {}
            }
        }
        prop_assert_eq!(dump(&*receiver.store), expected);
        prop_assert_eq!(*open(&receiver.store).state(), *open(&source).state());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let body = Chunk::decode(&bytes).is_err();
        prop_assert!(body);
        let mut framed = vec![VERSION];
        framed.extend(crc32c::crc32c(&bytes).to_le_bytes());
        framed.extend(&bytes);
        let _ = Installer::begin(&group(), &framed, &mut Batch::new());
    }
}

fn some_steps() -> Vec<Step> {
    use crate::machine::tests::Draft;
    let write = |k: u8| Step::Write {
        session: Some(1),
        op: Draft::Write(k % 6, Some(39)),
        raise: false,
        lag: 0,
        proposed: 1,
        joined: false,
    };
    (0..12).map(write).collect()
}

fn chunks(mut capture: Capture) -> Vec<Bytes> {
    std::iter::from_fn(|| capture.next_chunk().unwrap().map(|(_, chunk)| chunk)).collect()
}

#[test]
fn the_cut_depends_on_the_content_alone() {
    let store = holding(&some_steps());
    let all = chunks(capture(&store));
    assert!(all.len() > 5, "{} chunks", all.len());
    assert_eq!(all, chunks(capture(&store)));
}

#[test]
fn a_snapshot_that_does_not_add_up_is_not_moved() {
    let store = holding(&some_steps());
    let target = holding(&[]);
    let mut receiver = Receiver { old: dump(&*target), store: target, installer: None };
    let mut chunks = chunks(capture(&store));
    // A sender whose replica diverged: every chunk and record is sound, the sum is not.
    let mut other = Chunk::decode(&chunks[1]).unwrap();
    let Body::Rows { rows, .. } = &mut other.body else { panic!("records come second") };
    let (key, value) = &mut rows[0];
    *value = Record::value(Record::decode(key, value.clone()).unwrap().stamp, "other".into()).encode(key);
    chunks[1] = other.encode();
    let (last, rest) = chunks.split_last().unwrap();
    rest.iter().for_each(|chunk| receiver.take(chunk).unwrap());
    assert!(matches!(receiver.take(last), Err(SnapshotError::Mismatch { .. })));
    let mut batch = Batch::new();
    let mut installer = receiver.installer.take().unwrap();
    assert_eq!(
        installer.advance(&*receiver.store, &mut Batch::new()),
        Err(SnapshotError::Phase { phase: "receiving" })
    );
    installer.abandon(&mut batch).unwrap();
    receiver.store.write(batch).unwrap();
    assert_eq!(dump(&*receiver.store), receiver.old);
}

#[test]
fn a_damaged_record_is_not_sent() {
    let store = holding(&some_steps());
    let row = duet_store::layout::data_key(group().namespace, b"k\x03");
    let mut bytes = store.get(duet_store::Family::Data, &row).unwrap().unwrap().to_vec();
    bytes[7] ^= 4;
    let mut batch = Batch::new();
    batch.put(duet_store::Family::Data, row, bytes);
    store.write(batch).unwrap();
    let mut capture = capture(&store);
    let error = std::iter::repeat_with(|| capture.next_chunk()).find_map(Result::err);
    assert!(matches!(error, Some(SnapshotError::Record { .. })));
}

#[test]
fn another_groups_snapshot_is_refused() {
    let store = holding(&some_steps());
    let chunk = &chunks(capture(&store))[0];
    let other = crate::machine::Group { epoch: Epoch(2), node: NodeId(2), ..group() };
    assert!(matches!(Installer::begin(&other, chunk, &mut Batch::new()), Err(SnapshotError::Mismatch { .. })));
    let missing = Capture::new(store.snapshot(), group().namespace, Epoch(2), Bytes::new());
    assert!(matches!(missing, Err(SnapshotError::Nothing)));
}
