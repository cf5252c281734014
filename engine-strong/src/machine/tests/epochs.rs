//! From one epoch to the next: what a machine begins with, how it ends, and what comes in late.

use super::{super::rows::note_answers, *};

/// A later epoch's group takes over the data in place, tombstones and answers included.
#[test]
fn a_machine_is_created_over_what_is_in_place() {
    let store = MemoryStore::new();
    let mut machine = create(&store);
    let session = SessionId(1);
    let attempt = Try { session, sequence: 1, answered_below: 0, seen: 0, epoch: Epoch(1) };
    let mut first = written(1, Op::Write { mutation: Mutation::put("a", "1") });
    if let Some(Command::Write(write)) = first.commands.first_mut() {
        write.attempt = Some(attempt);
        write.proposed = Hlc(500);
    }
    let answer = apply(&mut machine, &store, std::slice::from_ref(&first)).remove(0).result;
    let dead = Record::tombstone(Stamp { epoch: Epoch(2), hlc: Hlc(600), node: NodeId(2) });
    let mut batch = Batch::new();
    batch.put(Family::Data, layout::data_key(NamespaceId(7), b"b"), dead.encode(b"b"));
    let applied = Position { epoch: Epoch(3), index: 1 };
    let base = Base { last: dead.stamp, tombstones: 1, ..machine.state().base() };
    let base = State { applied, ..State::over(base, Epoch(3), Some(machine.state())) };
    let later = Group { epoch: Epoch(3), ..group() };
    let machine = Machine::create(&*store, later.clone(), base, false, &mut batch).unwrap();
    store.write(batch).unwrap();
    assert_eq!(machine.read(&*store, &Op::Get { key: "b".into() }), Ok(Outcome::Value(None)));
    assert!(matches!(Machine::open(&*store, group()), Err(MachineError::Epoch { .. })));

    let mut machine = Machine::open(&*store, later).unwrap().unwrap();
    let retry = Committed { index: 2, ..first };
    let write = written(3, Op::Write { mutation: Mutation::put("b", "2") });
    let applied = apply(&mut machine, &store, &[retry, write]);
    assert_eq!(applied[0].result, answer, "answered in the first epoch");
    let stamp = Stamp { epoch: Epoch(3), hlc: Hlc(601), node: NodeId(1) };
    assert_eq!(applied[1].result, Ok(Outcome::Written(stamp)));
    assert_eq!((machine.state().keys, machine.state().tombstones), (2, 0));

    let mut batch = Batch::new();
    Machine::destroy(NamespaceId(7), &mut batch);
    store.write(batch).unwrap();
    assert_eq!(dump(&*store), []);
}

fn entry(index: u64, what: impl FnOnce(RequestId) -> Command) -> Committed {
    let request = RequestId { node: NodeId(1), boot: Boot(1), counter: index };
    Committed { index, term: 1, commands: vec![what(request)] }
}

fn put_entry(index: u64, key: &'static str, value: &'static str, sequence: u64) -> Committed {
    let attempt = Try { session: SessionId(1), sequence, answered_below: 0, seen: 0, epoch: Epoch(1) };
    let op = Op::Write { mutation: Mutation::put(key, value) };
    let write = |request| Command::Write(Write { request, proposed: Hlc(1), attempt: Some(attempt), op });
    entry(index, write)
}

#[test]
fn nothing_comes_after_a_seal_but_answers_to_what_came_before() {
    let store = MemoryStore::new();
    let mut machine = create(&store);
    let seal = |index, next| entry(index, |request| Command::Seal { request, next: Epoch(next) });
    let applied = apply(&mut machine, &store, &[put_entry(1, "a", "1", 1), seal(2, 1), seal(3, 2), seal(4, 2)]);
    assert!(matches!(applied[1].result, Err(Error::InvalidRequest { .. })), "an epoch follows itself");
    assert!(applied[2].result.is_ok() && applied[3].result.is_ok(), "{applied:?}");
    let sealed = *machine.state();
    assert_eq!(sealed.sealed, Some(Seal { next: Epoch(2), index: 3 }));

    let again = put_entry(5, "a", "1", 1);
    let plain = written(7, Op::Write { mutation: Mutation::put("c", "1") });
    let applied = apply(&mut machine, &store, &[again, put_entry(6, "b", "1", 2), plain, seal(8, 3)]);
    assert!(applied[0].result.is_ok(), "it ran before the seal: {:?}", applied[0]);
    for refused in &applied[1..3] {
        assert!(matches!(refused.result, Err(Error::Changing { .. })), "{refused:?}");
    }
    assert!(matches!(applied[3].result, Err(Error::InvalidRequest { .. })));
    assert_eq!(machine.state().base(), sealed.base());

    // The refused write runs in the next epoch, once.
    let state = State {
        applied: Position { epoch: Epoch(2), index: 1 },
        ..State::over(sealed.base(), Epoch(2), Some(&sealed))
    };
    let mut batch = Batch::new();
    let later = Group { epoch: Epoch(2), ..group() };
    let mut machine = Machine::create(&*store, later, state, false, &mut batch).unwrap();
    store.write(batch).unwrap();
    let applied = apply(&mut machine, &store, &[put_entry(2, "b", "1", 2), put_entry(3, "b", "1", 2)]);
    assert!(applied[0].result.is_ok());
    assert_eq!(applied[0].result, applied[1].result);
}

proptest! {
    /// What an epoch has ended with is found without looking for it, whatever comes behind the seal; and no longer once
    /// the next epoch adds to it.
    #[test]
    fn the_answers_of_an_epoch_that_is_over_are_known(before in steps(40), behind in steps(20)) {
        let store = MemoryStore::new();
        let mut machine = create(&store);
        let before = entries(&before);
        let last = before.len() as u64;
        apply(&mut machine, &store, &before);
        apply(&mut machine, &store, &[entry(last + 1, |request| Command::Seal { request, next: Epoch(2) })]);
        let renumbered = |entry: Committed| Committed { index: last + 1 + entry.index, ..entry };
        apply(&mut machine, &store, &entries(&behind).into_iter().map(renumbered).collect::<Vec<_>>());

        let known = || Sessions::open(&*store, NamespaceId(7)).unwrap();
        let noted = known();
        prop_assert_eq!(&noted, machine.sessions());
        let mut batch = Batch::new();
        batch.put(Family::Namespace, answer_key(NamespaceId(7), &[0; 12]), "nobody comes across it");
        store.write(batch).unwrap();
        prop_assert_eq!(&known(), &noted);
        let mut batch = Batch::new();
        batch.delete(Family::Namespace, answer_key(NamespaceId(7), &[0; 12]));
        note_answers(&mut batch, NamespaceId(7), Epoch(0), [].iter());
        store.write(batch).unwrap();
        prop_assert_eq!(&known(), &noted, "looked for: what is noted is of another epoch");

        let mut batch = Batch::new();
        let sealed = *machine.state();
        note_answers(&mut batch, NamespaceId(7), Epoch(1), machine.sessions().positions());
        let later = Group { epoch: Epoch(2), ..group() };
        let base = State::over(sealed.base(), Epoch(2), Some(&sealed));
        let mut machine = Machine::create(&*store, later, base, false, &mut batch).unwrap();
        store.write(batch).unwrap();
        apply(&mut machine, &store, &[put_entry(1, "new", "1", 1000)]);
        prop_assert_eq!(&known(), machine.sessions());
    }
}

#[test]
fn late_writes_come_in_under_their_own_stamps() {
    let store = MemoryStore::new();
    create(&store);
    let base = Base { keep_tombstones: true, ..State::empty(Epoch(1)).base() };
    let state = State { applied: Position { epoch: Epoch(3), index: 1 }, ..State::over(base, Epoch(3), None) };
    let later = Group { epoch: Epoch(3), ..group() };
    let mut batch = Batch::new();
    let mut machine = Machine::create(&*store, later, state, false, &mut batch).unwrap();
    store.write(batch).unwrap();
    let stamp = |epoch, hlc| Stamp { epoch: Epoch(epoch), hlc: Hlc(hlc), node: NodeId(9) };
    let old = |hlc| Record::value(stamp(2, hlc), "late".into());
    let late = |index, keys: &[&'static str]| {
        let records = keys.iter().map(|key| (Bytes::from_static(key.as_bytes()), old(50))).collect();
        entry(index, move |request| Command::Late { request, records })
    };
    let delete = |index, key: &'static str| written(index, Op::Write { mutation: Mutation::delete(key) });
    let put = written(2, Op::Write { mutation: Mutation::put("kept", "new") });
    // Each is deleted without having been there: only its tombstone says so.
    let deletes = [delete(3, "x"), delete(4, "y"), delete(5, "z")];
    apply(&mut machine, &store, &[&[put][..], &deletes[..]].concat());
    assert_eq!((machine.state().keys, machine.state().tombstones), (1, 3));
    let applied = apply(&mut machine, &store, &[late(6, &["kept", "x", "free"])]);
    assert!(applied[0].result.is_ok(), "{applied:?}");
    let get = |machine: &Machine, key: &'static str| machine.read(&*store, &Op::Get { key: key.into() }).unwrap();
    assert_eq!(get(&machine, "free"), Outcome::Value(Some((stamp(2, 50), "late".into()))));
    assert_eq!(get(&machine, "x"), Outcome::Value(None), "deleted since");
    assert!(matches!(get(&machine, "kept"), Outcome::Value(Some((at, _))) if at.epoch == Epoch(3)));

    let settle = |index| entry(index, |request| Command::Settle { request });
    apply(&mut machine, &store, &[settle(7), settle(8)]);
    assert_eq!((machine.state().keys, machine.state().tombstones), (2, 0));
    let listed = layout::prefix_range(layout::tombstone_prefix(NamespaceId(7)));
    assert_eq!(store.scan(Family::Namespace, &listed.0, Some(&listed.1)).unwrap().count(), 0);
    let applied = apply(&mut machine, &store, &[late(9, &["x"]), delete(10, "gone")]);
    assert!(matches!(applied[0].result, Err(Error::InvalidRequest { .. })), "nobody is owed anything any more");
    assert_eq!(machine.state().tombstones, 0);
}
