//! The machine against a naive model of it, over random entries with retries, late copies and evictions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use duet_proto::{
    Boot, Change, Compare, Cursor, Entry, Expect, Hlc, KeyRange, Mode, Mutation, Op, Record, Resource, ScanLimit,
    SessionId, Try, TxnResult, limits,
};
use duet_store::{Store, layout, memory::MemoryStore};
use proptest::prelude::*;

use super::{rows::encode, *};

mod epochs;

/// Small enough that random entries run into both.
const SESSIONS: usize = 3;
const ANSWERS: usize = 5;
const POSITIONS: u64 = 12;

pub(crate) fn group() -> Group {
    let name = NamespaceName::new("test").unwrap();
    Group { namespace: NamespaceId(7), epoch: Epoch(1), name, node: NodeId(1) }
}

/// Everything in a store.
pub(crate) fn dump(view: &dyn View) -> Vec<(Family, Bytes, Bytes)> {
    let rows =
        |family| view.scan(family, &[], None).unwrap().map(move |row| row.map(|(k, v)| (family, k, v)).unwrap());
    Family::ALL.into_iter().flat_map(rows).collect()
}

pub(crate) fn create(store: &Arc<MemoryStore>) -> Machine {
    let mut batch = Batch::new();
    let machine = Machine::create(&**store, group(), State::empty(Epoch(1)), false, &mut batch).unwrap();
    store.write(batch).unwrap();
    machine.bounded(SESSIONS, ANSWERS, POSITIONS)
}

pub(crate) fn open(store: &MemoryStore) -> Machine {
    Machine::open(store, group()).unwrap().unwrap().bounded(SESSIONS, ANSWERS, POSITIONS)
}

pub(crate) fn apply(machine: &mut Machine, store: &MemoryStore, entries: &[Committed]) -> Vec<Applied> {
    let mut batch = Batch::new();
    let applied = machine.apply(store, entries.iter().cloned(), &mut batch).unwrap();
    store.write(batch).unwrap();
    applied
}

/// What a client does next, in an entry of its own or joined to the one before; turned into entries by [`build`], which knows what the namespace holds.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Noop,
    Write {
        session: Option<u8>,
        op: Draft,
        raise: bool,
        lag: u8,
        proposed: u8,
        joined: bool,
    },
    /// An earlier write once more, with a newer "answered below" or as it was.
    Again {
        which: prop::sample::Index,
        raise: bool,
        joined: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Draft {
    Write(u8, Option<u8>),
    Cas(u8, Option<u8>, Guess),
    Txn(Vec<(u8, Guess)>, BTreeMap<u8, Option<u8>>, BTreeMap<u8, Option<u8>>, Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Guess {
    Held,
    Stale,
    Absent,
    Present,
}

pub(crate) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let guess = || prop_oneof![Just(Guess::Held), Just(Guess::Stale), Just(Guess::Absent), Just(Guess::Present)];
    let changes = || prop::collection::btree_map(0u8..6, any::<Option<u8>>(), 0..3);
    let draft = prop_oneof![
        3 => (0u8..6, any::<Option<u8>>()).prop_map(|(k, v)| Draft::Write(k, v)),
        2 => (0u8..6, any::<Option<u8>>(), guess()).prop_map(|(k, v, g)| Draft::Cas(k, v, g)),
        1 => (
            prop::collection::vec((0u8..6, guess()), 0..2), changes(), changes(), prop::collection::vec(0u8..6, 0..3)
        ).prop_map(|(c, t, o, r)| Draft::Txn(c, t, o, r)),
    ];
    let write =
        (prop::option::weighted(0.8, 0u8..5), draft, any::<bool>(), 0u8..16, any::<u8>(), any::<bool>()).prop_map(
            |(session, op, raise, lag, proposed, joined)| Step::Write { session, op, raise, lag, proposed, joined },
        );
    let again = (any::<prop::sample::Index>(), any::<bool>(), any::<bool>())
        .prop_map(|(which, raise, joined)| Step::Again { which, raise, joined });
    prop::collection::vec(prop_oneof![1 => Just(Step::Noop), 8 => write, 4 => again], 0..most)
}

/// The model: maps, lists and walks over them.
#[derive(Default)]
struct Model {
    data: BTreeMap<Bytes, (Stamp, Bytes)>,
    last: Hlc,
    rows: Vec<(u64, Try, u64, Result<Outcome, Error>)>,
    floor: u64,
    ran: BTreeSet<(SessionId, u64)>,
}

impl Model {
    fn begin(&mut self, index: u64) {
        self.floor = self.floor.max((index + 1).saturating_sub(POSITIONS));
        while self.rows.iter().filter(|(at, ..)| *at >= self.floor).count() > ANSWERS {
            self.floor = self.rows.iter().map(|(at, ..)| at + 1).find(|at| *at > self.floor).unwrap();
        }
        self.drop_rows();
    }

    fn drop_rows(&mut self) {
        let floor = self.floor;
        self.rows.retain(|(at, ..)| *at >= floor);
    }

    fn write(&mut self, index: u64, write: &Write) -> Result<Outcome, Error> {
        let Some(attempt) = write.attempt else { return self.run(write) };
        let mine = |t: &Try| t.session == attempt.session;
        if let Some((.., answer)) = self.rows.iter().find(|(_, t, ..)| mine(t) && t.sequence == attempt.sequence) {
            return answer.clone();
        }
        let below = self.rows.iter().filter(|(_, t, ..)| mine(t)).map(|(_, _, below, _)| *below).max();
        if attempt.sequence < below.unwrap_or(0) {
            return Err(Error::OutcomeUnknown { why: String::new() });
        }
        if attempt.seen + 1 < self.floor {
            return Err(Error::SessionExpired { floor: self.floor, seen: attempt.seen });
        }
        assert!(self.ran.insert((attempt.session, attempt.sequence)), "the rules let a write run twice");
        let answer = self.run(write);
        let last: BTreeMap<SessionId, u64> = self.rows.iter().map(|(at, t, ..)| (t.session, *at)).collect();
        if below.is_none() && last.len() == SESSIONS {
            self.floor = self.floor.max(last.into_values().min().unwrap() + 1);
            self.drop_rows();
        }
        let below = below.unwrap_or(0).max(attempt.answered_below);
        self.rows.push((index, attempt, below, answer.clone()));
        self.rows.retain(|(_, t, ..)| !mine(t) || t.sequence >= below);
        answer
    }

    fn run(&mut self, write: &Write) -> Result<Outcome, Error> {
        let hlc = write.proposed.max(self.last.next());
        let stamp = Stamp { epoch: Epoch(1), hlc, node: write.request.node };
        let outcome = match &write.op {
            Op::Write { mutation } => {
                self.change(mutation, stamp);
                Outcome::Written(stamp)
            }
            Op::CompareAndSet { expect, mutation } => {
                let found = self.data.get(&mutation.key).map(|(stamp, _)| *stamp);
                if !Self::holds(*expect, found) {
                    return Err(Error::CompareFailed { found });
                }
                self.change(mutation, stamp);
                Outcome::Written(stamp)
            }
            Op::Transaction { compares, then, otherwise, reads } => {
                let found = |key| self.data.get(key).map(|(stamp, _): &(Stamp, Bytes)| *stamp);
                let held = compares.iter().all(|c| Self::holds(c.expect, found(&c.key)));
                for mutation in if held { then } else { otherwise } {
                    self.change(mutation, stamp);
                }
                let reads = reads.iter().map(|key| self.data.get(key).cloned()).collect();
                Outcome::Transaction(TxnResult { held, stamp, reads })
            }
            other => panic!("{other:?} is not drawn"),
        };
        self.last = hlc;
        Ok(outcome)
    }

    fn holds(expect: Expect, found: Option<Stamp>) -> bool {
        match expect {
            Expect::Stamp(stamp) => found == Some(stamp),
            Expect::Absent => found.is_none(),
            Expect::Present => found.is_some(),
        }
    }

    fn change(&mut self, mutation: &Mutation, stamp: Stamp) {
        match &mutation.change {
            Change::Put(value) => self.data.insert(mutation.key.clone(), (stamp, value.clone())),
            Change::Delete => self.data.remove(&mutation.key),
        };
    }

    fn expect(&self, key: &Bytes, guess: Guess) -> Expect {
        match (guess, self.data.get(key)) {
            (Guess::Held, Some((stamp, _))) => Expect::Stamp(*stamp),
            (Guess::Held, None) | (Guess::Absent, _) => Expect::Absent,
            (Guess::Stale, _) => Expect::Stamp(Stamp::default()),
            (Guess::Present, _) => Expect::Present,
        }
    }

    fn op(&self, draft: &Draft) -> Op {
        let key = |k: u8| Bytes::from(vec![b'k', k]);
        let mutation = |(k, v): (&u8, &Option<u8>)| match v {
            Some(v) => Mutation::put(key(*k), vec![*v; usize::from(*v) % 40]),
            None => Mutation::delete(key(*k)),
        };
        match draft {
            Draft::Write(k, v) => Op::Write { mutation: mutation((k, v)) },
            Draft::Cas(k, v, guess) => {
                Op::CompareAndSet { expect: self.expect(&key(*k), *guess), mutation: mutation((k, v)) }
            }
            Draft::Txn(compares, then, otherwise, reads) => Op::Transaction {
                compares: compares
                    .iter()
                    .map(|(k, guess)| Compare { key: key(*k), expect: self.expect(&key(*k), *guess) })
                    .collect(),
                then: then.iter().map(mutation).collect(),
                otherwise: otherwise.iter().map(mutation).collect(),
                reads: reads.iter().map(|k| key(*k)).collect(),
            },
        }
    }
}

/// The entries of some steps, what is to come of the writes among them, and the model after them.
fn build(steps: &[Step]) -> (Vec<Committed>, Vec<Result<Outcome, Error>>, Model) {
    let (mut model, mut entries, mut answers) = (Model::default(), Vec::<Committed>::new(), Vec::new());
    let mut sequences: BTreeMap<u8, u64> = BTreeMap::new();
    let mut writes: Vec<Write> = Vec::new();
    for (step, counter) in steps.iter().zip(1..) {
        let joined = matches!(step, Step::Write { joined: true, .. } | Step::Again { joined: true, .. });
        if !joined || entries.is_empty() {
            let index = entries.len() as u64 + 1;
            entries.push(Committed { index, term: 1 + index / 10, commands: vec![] });
            model.begin(index);
        }
        let entry = entries.last_mut().unwrap();
        let write = match step {
            Step::Again { which, raise, .. } if !writes.is_empty() => {
                let mut write = which.get(&writes).clone();
                // A write without an attempt is never sent again.
                let Some(attempt) = &mut write.attempt else { continue };
                attempt.answered_below = if *raise { attempt.sequence } else { attempt.answered_below };
                write
            }
            Step::Noop | Step::Again { .. } => continue,
            Step::Write { session, op, raise, lag, proposed, .. } => {
                let attempt = session.map(|session| {
                    let sequence = sequences.entry(session).and_modify(|s| *s += 1).or_insert(1);
                    Try {
                        session: SessionId(u128::from(session)),
                        sequence: *sequence,
                        answered_below: if *raise { *sequence } else { 0 },
                        seen: (entry.index - 1).saturating_sub(u64::from(*lag)),
                        epoch: Epoch(1),
                    }
                });
                let node = NodeId(1 + u32::from(*proposed) % 3);
                let request = RequestId { node, boot: Boot(1), counter };
                let op = model.op(op);
                writes.push(Write { request, proposed: Hlc(u64::from(*proposed)), attempt, op });
                writes.last().unwrap().clone()
            }
        };
        answers.push(model.write(entry.index, &write));
        entry.commands.push(Command::Write(write));
    }
    (entries, answers, model)
}

/// The entries of some steps.
pub(crate) fn entries(steps: &[Step]) -> Vec<Committed> {
    build(steps).0
}

fn same(a: &Result<Outcome, Error>, b: &Result<Outcome, Error>) -> bool {
    match (a, b) {
        (Err(Error::OutcomeUnknown { .. }), Err(Error::OutcomeUnknown { .. })) => true,
        _ => a == b,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_the_model_does(steps in steps(80)) {
        let (entries, answers, model) = build(&steps);
        let store = MemoryStore::new();
        let mut machine = create(&store);
        let applied = apply(&mut machine, &store, &entries);
        prop_assert_eq!(applied.len(), answers.len());
        for (applied, answer) in applied.iter().zip(&answers) {
            prop_assert!(same(&applied.result, answer), "{:?} is not {:?}", applied, answer);
        }
        let state = machine.state();
        prop_assert_eq!(state.applied.index, entries.len() as u64);
        prop_assert_eq!(state.floor.index, model.floor);
        prop_assert_eq!(state.last.hlc, model.last);
        prop_assert_eq!(state.keys, model.data.len() as u64);
        prop_assert_eq!(machine.remembered().1, model.rows.len());
        let mut digest = Digest::EMPTY;
        for (key, (stamp, value)) in &model.data {
            digest.replace(key, None, Some(&Record::value(*stamp, value.clone())));
            let got = machine.read(&*store, &Op::Get { key: key.clone() });
            prop_assert_eq!(got, Ok(Outcome::Value(Some((*stamp, value.clone())))));
        }
        prop_assert_eq!(state.digest, digest);
    }

    #[test]
    fn batches_and_restarts_do_not_matter(steps in steps(80), cuts in prop::collection::vec((1usize..9, any::<bool>()), 80)) {
        let entries = entries(&steps);
        let (whole, cut) = (MemoryStore::new(), MemoryStore::new());
        let (mut one, mut other) = (create(&whole), create(&cut));
        let expected = apply(&mut one, &whole, &entries);
        let (mut rest, mut applied) = (&entries[..], Vec::new());
        for (size, reopen) in cuts {
            let (now, later) = rest.split_at(size.min(rest.len()));
            applied.extend(apply(&mut other, &cut, now));
            rest = later;
            if reopen {
                let again = open(&cut);
                prop_assert_eq!(again.state(), other.state());
                prop_assert_eq!(again.sessions(), other.sessions());
                other = again;
            }
        }
        prop_assert_eq!(applied, expected);
        prop_assert_eq!(one.state(), other.state());
        prop_assert_eq!(dump(&*whole), dump(&*cut));
    }

    #[test]
    fn pages_join_to_the_whole(
        keys in prop::collection::btree_set(prop::collection::vec(0u8..4, 1..4), 0..40),
        range in (prop::collection::vec(0u8..4, 0..3), prop::option::of(prop::collection::vec(0u8..4, 0..3))),
        limit in (1u32..9, 0u32..40, any::<bool>()),
    ) {
        let store = MemoryStore::new();
        let mut machine = create(&store);
        let put = |(key, index): (&Vec<u8>, u64)| {
            written(index, Op::Write { mutation: Mutation::put(key.clone(), key.repeat(2)) })
        };
        apply(&mut machine, &store, &keys.iter().zip(1..).map(put).collect::<Vec<_>>());
        let range = KeyRange { start: range.0.into(), end: range.1.map(Bytes::from) };
        let limit = ScanLimit { entries: limit.0, bytes: limit.1, keys_only: limit.2 };
        let (mut cursor, mut found) = (None, Vec::new());
        loop {
            let op = Op::Scan { range: range.clone(), limit, cursor };
            let Ok(Outcome::Page { entries, next }) = machine.read(&*store, &op) else { panic!("a page") };
            let size: usize = entries.iter().map(|e: &Entry| e.key.len() + e.value.len()).sum();
            prop_assert!(entries.len() <= limit.entries as usize);
            prop_assert!(entries.len() <= 1 || size <= limit.bytes as usize);
            let times = if limit.keys_only { 0 } else { 2 };
            prop_assert!(entries.iter().all(|e| e.value == e.key.repeat(times)));
            found.extend(entries.into_iter().map(|e| e.key.to_vec()));
            cursor = next;
            if cursor.is_none() { break; }
        }
        let expected: Vec<Vec<u8>> = keys.into_iter().filter(|key| range.contains(key)).collect();
        prop_assert_eq!(found, expected);
    }
}

fn written(index: u64, op: Op) -> Committed {
    let request = RequestId { node: NodeId(1), boot: Boot(1), counter: index };
    let command = Command::Write(Write { request, proposed: Hlc(1), attempt: None, op });
    Committed { index, term: 1, commands: vec![command] }
}

#[test]
fn a_gap_is_refused() {
    let store = MemoryStore::new();
    let mut machine = create(&store);
    let entry = Committed { index: 2, term: 1, commands: vec![] };
    let error = machine.apply(&*store, [entry], &mut Batch::new());
    assert_eq!(error, Err(MachineError::Gap { expected: 1, found: 2 }));
}

#[test]
fn a_damaged_record_is_neither_served_nor_written_over() {
    let store = MemoryStore::new();
    let mut machine = create(&store);
    apply(&mut machine, &store, &[written(1, Op::Write { mutation: Mutation::put("k", "v") })]);
    let row = layout::data_key(NamespaceId(7), b"k");
    let mut bytes = store.get(Family::Data, &row).unwrap().unwrap().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let mut batch = Batch::new();
    batch.put(Family::Data, row, bytes);
    store.write(batch).unwrap();
    let read = machine.read(&*store, &Op::Get { key: "k".into() });
    assert!(matches!(read, Err(Error::Corrupt { node: NodeId(1), .. })), "{read:?}");
    let all = Op::Scan { range: KeyRange::all(), limit: ScanLimit::default(), cursor: None };
    assert!(matches!(machine.read(&*store, &all), Err(Error::Corrupt { .. })));
    let write = written(2, Op::Write { mutation: Mutation::put("k", "w") });
    assert!(matches!(machine.apply(&*store, [write], &mut Batch::new()), Err(MachineError::Record { .. })));
}

#[test]
fn a_transaction_that_would_read_too_much_changes_nothing() {
    let store = MemoryStore::new();
    let mut machine = create(&store);
    let half = vec![0; limits::TXN_BYTES / 2 + 1];
    apply(&mut machine, &store, &[written(1, Op::Write { mutation: Mutation::put("a", half) })]);
    let before = machine.state().digest;
    let (then, reads) = (vec![Mutation::put("b", "1")], vec!["a".into(), "a".into()]);
    let op = Op::Transaction { compares: vec![], then, otherwise: vec![], reads };
    let applied = apply(&mut machine, &store, &[written(2, op)]);
    assert!(matches!(applied[0].result, Err(Error::TooLarge { what: Resource::TransactionBytes, .. })));
    assert_eq!((machine.state().digest, machine.applied()), (before, 2));
}

#[test]
fn a_read_is_not_a_write_nor_the_other_way_round() {
    let store = MemoryStore::new();
    let mut machine = create(&store);
    let applied = apply(&mut machine, &store, &[written(1, Op::Get { key: "k".into() })]);
    assert!(matches!(applied[0].result, Err(Error::InvalidRequest { .. })));
    let write = Op::Write { mutation: Mutation::put("k", "v") };
    assert!(matches!(machine.read(&*store, &write), Err(Error::InvalidRequest { .. })));
}

#[test]
fn a_cursor_of_another_epoch_says_so() {
    let store = MemoryStore::new();
    let cursor = Some(Cursor { epoch: Epoch(2), last: "k".into() });
    let scan = Op::Scan { range: KeyRange::all(), limit: ScanLimit::default(), cursor };
    let read = create(&store).read(&*store, &scan);
    assert!(matches!(read, Err(Error::EpochChanged { epoch: Epoch(1), mode: Mode::Strong, .. })), "{read:?}");
}

/// The bytes on disk: a change here needs another version.
#[test]
fn the_rows_are_these() {
    let stamp = Stamp { epoch: Epoch(1), hlc: Hlc(2), node: NodeId(3) };
    let answered = |answer| Remembered { session: SessionId(4), sequence: 5, answered_below: 6, answer };
    let failed = Error::CompareFailed { found: Some(stamp) };
    let row = vec![answered(Ok(Outcome::Written(stamp))), answered(Err(failed))];
    assert_eq!(encode(&row), [1, 2, 4, 5, 6, 0, 2, 1, 2, 3, 4, 5, 6, 1, 2, 1, 1, 2, 3]);
    let applied = Position { epoch: Epoch(1), index: 7 };
    let floor = Position { epoch: Epoch(1), index: 13 };
    let digest = Digest(10);
    let sealed = Some(Seal { next: Epoch(14), index: 15 });
    let keep_tombstones = true;
    let state =
        State { applied, term: 9, last: stamp, digest, keys: 11, tombstones: 12, floor, sealed, keep_tombstones };
    assert_eq!(encode(&state), [1, 1, 7, 9, 1, 2, 3, 10, 11, 12, 1, 13, 1, 14, 15, 1]);
    assert_eq!(encode(&(Epoch(3), vec![applied, floor])), [1, 3, 2, 1, 7, 1, 13], "where the answers lie");
}
