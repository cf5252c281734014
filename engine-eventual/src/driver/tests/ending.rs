//! The end of an epoch, and what the next one begins with.

use duet_proto::{Hlc, LateState, Record};
use duet_store::View;

use super::*;
use crate::{Base, Frontier};

const E2: Epoch = Epoch(2);
const ID2: SpaceId = SpaceId { namespace: NS, epoch: E2 };

fn nodes(ids: &[u32]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

impl Cluster {
    async fn standing(&self, at: u32, id: SpaceId) -> crate::Standing {
        self.handle(at).standing(id).await.unwrap()
    }

    /// Fences members, and lets those of a base become equal.
    async fn seal(&self, attempt: u64, base: &[u32]) {
        for at in base {
            self.handle(*at).fence(ID, attempt).await.unwrap();
        }
        for at in base {
            self.handle(*at).converge(ID, attempt, nodes(base)).await.unwrap();
        }
        for at in base {
            self.converged(*at, attempt).await;
        }
    }

    async fn converged(&self, at: u32, attempt: u64) {
        loop {
            let news = self.handle(at).news(ID).unwrap();
            let standing = self.standing(at, ID).await;
            if standing.converged == Some(attempt) {
                return;
            }
            let told = tokio::time::timeout(Duration::from_secs(3), news).await;
            assert!(told.is_ok(), "{at} has no news: {standing:?}");
        }
    }

    async fn put_all(&self, at: u32, keys: &[&str]) {
        for key in keys {
            self.put(at, key, format!("of {at}")).await.unwrap();
        }
    }

    /// Cuts the power, and puts it on again.
    fn cycle(&mut self, id: u32, seed: u64) {
        let disk = self.crash(id, seed);
        self.restart(id, disk);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fence_keeps_a_replica_as_it_is_until_it_is_lifted() {
    let mut cluster = three(1).await;
    cluster.put(1, "before", "v").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    cluster.handle(1).fence(ID, 3).await.unwrap();
    let sealed = cluster.standing(1, ID).await;
    assert_eq!((sealed.fence, sealed.converged), (Some(3), None));
    let refused = cluster.put(1, "k", "v").await.unwrap_err();
    assert!(matches!(&refused, Error::Changing { namespace, .. } if namespace.as_str() == "ns1"), "{refused:?}");
    cluster.put_all(2, &["a", "b"]).await;
    cluster.put_all(3, &["c"]).await;
    for seed in 0..2 {
        tokio::time::sleep(Duration::from_secs(7)).await;
        let now = cluster.standing(1, ID).await;
        assert_eq!((now.fence, now.frontier, now.base), (Some(3), sealed.frontier.clone(), sealed.base));
        assert_eq!(cluster.get(1, "before").await.unwrap().unwrap(), "v", "reads go on");
        assert_eq!(cluster.get(1, "a").await.unwrap(), None);
        cluster.settle(&[2, 3]).await;
        cluster.cycle(1, seed);
    }
    let handle = cluster.handle(1);
    assert!(matches!(handle.fence(ID, 2).await, Err(SpaceError::Invalid { .. })));
    assert!(matches!(handle.converge(ID, 2, nodes(&[1])).await, Err(SpaceError::Invalid { .. })));
    handle.fence(ID, 3).await.unwrap();
    handle.fence(ID, 4).await.unwrap();
    handle.lift(ID, 3).await.unwrap();
    assert_eq!(cluster.standing(1, ID).await.fence, Some(4), "a later fence stays");
    handle.lift(ID, 9).await.unwrap();
    handle.lift(ID, 9).await.unwrap();
    let began = Instant::now();
    cluster.settle(&[1, 2, 3]).await;
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    cluster.put(1, "k", "v").await.unwrap();
    assert_eq!(cluster.standing(1, ID).await.fence, None);
}

#[tokio::test(start_paused = true)]
async fn a_fence_does_not_wait_behind_writes() {
    let mut cluster = Cluster::start(&[], |config| config.step_bytes = 1000);
    cluster.latency = Duration::from_millis(20);
    cluster.boot(1, MemoryStore::new(), 1);
    cluster.found(1, &[1], 1).await;
    let writes: Vec<_> = (0..100)
        .map(|i| {
            let (handle, call) =
                (cluster.handle(1), Call { op: put_op(&format!("k{i}"), vec![0; 900]), token: None });
            tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(5)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    cluster.handle(1).fence(ID, 1).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(60), "{:?}", began.elapsed());
    let keys = cluster.standing(1, ID).await.base.keys;
    let mut taken = 0;
    for write in writes {
        match write.await.unwrap() {
            Ok(_) => taken += 1,
            Err(Error::Changing { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(taken == keys && taken < 10, "{taken} {keys}");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_member_is_no_copy() {
    let cluster = three(2).await;
    for at in [2, 3] {
        cluster.handle(at).fence(ID, 1).await.unwrap();
    }
    let refused = cluster.put(1, "k", "v").await;
    assert_eq!(refused, Err(Error::NotEnoughCopies { have: 1, need: 2 }));
    let (handle, call) = (cluster.handle(1), Call { op: put_op("k", "w"), token: None });
    let waits = tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(5)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.handle(1).fence(ID, 1).await.unwrap();
    cluster.handle(2).lift(ID, 1).await.unwrap();
    waits.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_members_of_a_base_become_equal_at_once_and_nobody_else_adds_to_it() {
    let mut cluster = three(1).await;
    cluster.put(1, "before", "v").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    (1..=3).for_each(|id| cluster.isolate(id));
    cluster.put_all(1, &["a", "x"]).await;
    cluster.put_all(2, &["b", "x"]).await;
    cluster.put_all(3, &["c", "x"]).await;
    cluster.delete(2, "before").await.unwrap();
    for at in 1..=3 {
        cluster.handle(at).fence(ID, 5).await.unwrap();
    }
    cluster.heal();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = Instant::now();
    cluster.seal(5, &[1, 2]).await;
    assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
    let (one, two) = (cluster.standing(1, ID).await, cluster.standing(2, ID).await);
    assert_eq!((&one.frontier, one.base), (&two.frontier, two.base));
    assert_eq!((one.base.keys, one.base.tombstones, one.clean), (3, 1, true));
    assert_eq!(cluster.get(1, "b").await.unwrap().unwrap(), "of 2");
    assert_eq!(cluster.get(2, "c").await.unwrap(), None);
    // What was asked for is asked again after a restart, and comes to the same.
    cluster.cycle(1, 7);
    let again = cluster.standing(1, ID).await;
    assert_eq!((again.fence, again.converged, again.base), (Some(5), None, one.base));
    assert!(matches!(cluster.handle(1).converge(ID, 5, nodes(&[2, 3])).await, Err(SpaceError::Invalid { .. })));
    for _ in 0..2 {
        cluster.handle(1).converge(ID, 5, nodes(&[1, 2])).await.unwrap();
    }
    assert!(matches!(cluster.handle(1).converge(ID, 5, nodes(&[1, 2, 3])).await, Err(SpaceError::Invalid { .. })));
    cluster.converged(1, 5).await;
    assert_eq!(cluster.standing(1, ID).await.base, one.base);
    for at in [1, 2] {
        cluster.handle(at).drop_tombstones(ID).await.unwrap();
        let base = cluster.standing(at, ID).await.base;
        assert_eq!(base, Base { tombstones: 0, ..one.base });
    }
    // Another attempt ends this one; when all is given up, everybody comes to hold everything.
    cluster.handle(1).fence(ID, 6).await.unwrap();
    assert_eq!(cluster.standing(1, ID).await.converged, None);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_given_up_leaves_nothing_behind() {
    let cluster = three(1).await;
    (1..=3).for_each(|id| cluster.isolate(id));
    for at in 1..=3 {
        cluster.put_all(at, &[&format!("k{at}"), "x"]).await;
        cluster.handle(at).fence(ID, 1).await.unwrap();
    }
    // Nobody can be reached: it does not come to its end.
    cluster.handle(1).converge(ID, 1, nodes(&[1, 2])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.standing(1, ID).await.converged, None);
    cluster.heal();
    for at in 1..=3 {
        cluster.handle(at).lift(ID, 1).await.unwrap();
    }
    cluster.settle(&[1, 2, 3]).await;
    for at in 1..=3 {
        let standing = cluster.standing(at, ID).await;
        assert_eq!((standing.fence, standing.converged, standing.near), (None, None, true));
        cluster.put(at, "more", "v").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn late_writes_are_put_aside_once_and_outlive_their_replica() {
    let mut cluster = Cluster::start(&[1, 2, 3], |config| config.replica.chunk_bytes = 100);
    cluster.found(1, &[1, 2, 3], 1).await;
    cluster.put(1, "before", "v").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    cluster.isolate(3);
    cluster.put_all(3, &["a", "b", "c", "a"]).await;
    cluster.delete(3, "before").await.unwrap();
    cluster.put_all(1, &["d"]).await;
    cluster.seal(1, &[1, 2]).await;
    let base = cluster.standing(1, ID).await;
    assert!(matches!(cluster.handle(3).stash(ID, base.frontier.clone()).await, Err(SpaceError::Invalid { .. })));
    assert!(matches!(cluster.handle(3).retire(ID).await, Err(SpaceError::Invalid { .. })), "the epoch goes on");
    cluster.handle(3).fence(ID, 1).await.unwrap();
    cluster.handle(3).stash(ID, base.frontier.clone()).await.unwrap();
    cluster.cycle(3, 5);
    let handle = cluster.handle(3);
    let stashed = handle.stashed(NS, 100).unwrap();
    let keys: Vec<_> = stashed.iter().map(|(key, _)| std::str::from_utf8(key).unwrap()).collect();
    assert_eq!(keys, ["b", "c", "a", "before"], "the oldest first, and no more than is held");
    assert_eq!(stashed[3].1.live(), None);
    assert!(stashed.iter().all(|(_, record)| record.stamp.epoch == E1 && record.stamp.node == NodeId(3)));
    assert_eq!(handle.stashed(NS, 2).unwrap(), stashed[..2]);
    let frontier = cluster.standing(3, ID).await.frontier;
    assert_eq!(handle.stash_frontiers(NS).unwrap(), BTreeMap::from([(E1, frontier)]));
    handle.unstash(NS, vec![stashed[0].1.stamp, Stamp::default()], true).await.unwrap();
    // Not put aside again, though the replica still holds it.
    handle.stash(ID, base.frontier).await.unwrap();
    assert_eq!(handle.stashed(NS, 100).unwrap(), stashed[1..]);
    handle.retire(ID).await.unwrap();
    handle.retire(ID).await.unwrap();
    cluster.cycle(3, 6);
    let handle = cluster.handle(3);
    assert!(handle.space(ID).is_none());
    let late: Vec<_> = handle.late(NS, 100).unwrap().into_iter().map(|late| (late.tombstone, late.state)).collect();
    let waits = (false, LateState::Waiting);
    assert_eq!(late, [waits, waits, (true, LateState::Waiting), (false, LateState::Brought)]);
    let rest: Vec<_> = stashed.iter().map(|(_, record)| record.stamp).collect();
    handle.unstash(NS, rest[1..3].to_vec(), true).await.unwrap();
    assert_eq!(handle.stash_frontiers(NS).unwrap().len(), 1, "one waits still");
    handle.unstash(NS, rest, false).await.unwrap();
    assert!(handle.stash_frontiers(NS).unwrap().is_empty() && handle.stashed(NS, 100).unwrap().is_empty());
    assert_eq!(handle.late(NS, 1).unwrap()[0].state, LateState::Refused);
    assert_eq!(handle.late(NS, 100).unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_audit_of_late_writes_is_bounded() {
    let cluster = Cluster::start(&[1], |_| {});
    let (handle, mut batch) = (cluster.handle(1), duet_store::Batch::new());
    let stamp = |at| Stamp { epoch: E1, hlc: Hlc(at), node: NodeId(1) };
    for at in 0..1100 {
        crate::stash::put(&mut batch, NS, &"k".into(), &Record::tombstone(stamp(at))).unwrap();
    }
    cluster.nodes[&1].store.write(batch).unwrap();
    for at in 0..11 {
        handle.unstash(NS, (at * 100..at * 100 + 100).map(stamp).collect(), true).await.unwrap();
    }
    let late = handle.late(NS, 9999).unwrap();
    assert_eq!((late.len(), late[0].stamp, late[999].stamp), (1000, stamp(1099), stamp(100)));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_waits_outside_the_base_has_an_unknown_outcome() {
    let cluster = three(3).await;
    cluster.isolate(3);
    let (handle, call) = (cluster.handle(3), Call { op: put_op("k", "w"), token: None });
    let waits = tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(5)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.handle(3).fence(ID, 1).await.unwrap();
    assert_eq!(cluster.status(3).await.eventual.unwrap().fence, Some(1));
    cluster.handle(3).retire(ID).await.unwrap();
    let outcome = waits.await.unwrap();
    assert!(matches!(outcome, Err(Error::OutcomeUnknown { .. })), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_waits_is_acknowledged_when_the_next_epoch_has_it() {
    let cluster = three(3).await;
    cluster.isolate(3);
    let (handle, call) = (cluster.handle(1), Call { op: put_op("k", "w"), token: None });
    let waits = tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(5)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.seal(1, &[1, 2]).await;
    assert!(!waits.is_finished());
    cluster.handle(1).retire(ID).await.unwrap();
    let outcome = waits.await.unwrap();
    assert!(matches!(&outcome, Ok(answer) if answer.meta.epoch == E1), "{outcome:?}");
    let view: &dyn View = &*cluster.nodes[&1].store.crash(1);
    assert!(view.get(Family::Data, &layout::data_key(NS, b"k")).unwrap().is_some(), "the next epoch has it");
    let (from, to) = layout::prefix_range(layout::namespace_prefix(NS));
    for family in [Family::Origin, Family::Namespace] {
        assert_eq!(view.scan(family, &from, Some(&to)).unwrap().count(), 0, "{family:?}");
    }
}

/// Rows of a strong group, as they lie beside a replica.
fn strangers_rows(store: &MemoryStore) -> Vec<Bytes> {
    let rows: Vec<Bytes> = [0x10, 0x11, 0x12].map(|what| layout::namespace_key(NS, what, b"theirs")).into();
    let mut batch = duet_store::Batch::new();
    rows.iter().for_each(|row| batch.put(Family::Namespace, row.clone(), "theirs"));
    store.write(batch).unwrap();
    rows
}

#[tokio::test(start_paused = true)]
async fn only_a_purge_takes_what_is_not_the_replicas_own() {
    let cluster = three(1).await;
    let store = cluster.nodes[&1].store.clone();
    let theirs = strangers_rows(&store);
    let there = |store: &MemoryStore| theirs.iter().all(|row| store.get(Family::Namespace, row).unwrap().is_some());
    cluster.put_all(1, &["a", "b"]).await;
    cluster.handle(1).fence(ID, 1).await.unwrap();
    cluster.handle(1).stash(ID, Frontier::default()).await.unwrap();
    assert_eq!(cluster.handle(1).stashed(NS, 9).unwrap().len(), 2);
    cluster.handle(1).remove(ID).await.unwrap();
    assert!(there(&store));
    assert_eq!(cluster.handle(1).stashed(NS, 9).unwrap().len(), 2);
    cluster.handle(2).purge(NS).await.unwrap();
    cluster.handle(1).purge(NS).await.unwrap();
    let (from, to) = layout::prefix_range(layout::namespace_prefix(NS));
    for at in [1, 2] {
        let view: &dyn View = &*cluster.nodes[&at].store.crash(1);
        for family in [Family::Data, Family::Origin, Family::Namespace] {
            assert_eq!(view.scan(family, &from, Some(&to)).unwrap().count(), 0, "{family:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_epoch_may_write_the_records_of_a_replica_that_is_still_there() {
    let cluster = three(1).await;
    cluster.isolate(3);
    cluster.put_all(1, &["a", "b", "c"]).await;
    cluster.delete(1, "c").await.unwrap();
    cluster.seal(1, &[1, 2]).await;
    cluster.handle(1).freeze(ID);
    for at in 1..=2 {
        let (store, mut batch) = (&cluster.nodes[&at].store, duet_store::Batch::new());
        let stamp = Stamp { epoch: E2, hlc: Hlc(5), node: NodeId(2) };
        for key in ["a", "new"] {
            let record = Record::value(stamp, "strong".into()).encode(key.as_bytes());
            batch.put(Family::Data, layout::data_key(NS, key.as_bytes()), record);
        }
        batch.delete(Family::Data, layout::data_key(NS, b"b"));
        store.write(batch).unwrap();
        strangers_rows(store);
    }
    // Somebody who lacks what is no longer there, a new attempt, and all that may be asked of it.
    cluster.heal();
    cluster.put(3, "late", "v").await.unwrap();
    cluster.handle(2).fence(ID, 2).await.unwrap();
    cluster.handle(2).converge(ID, 2, nodes(&[1, 2, 3])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(cluster.status(3).await.eventual.unwrap().interrupted > 1, "it was refused");
    for at in 1..=2 {
        cluster.handle(at).scrub(ID).await.unwrap();
        let status = cluster.status(at).await;
        assert_eq!((status.eventual.unwrap().damaged, cluster.handle(at).metrics().failed), (0, 0), "{at}");
        cluster.handle(at).stash(ID, Frontier::default()).await.unwrap();
        let (new, old) = (cluster.get(at, "new").await, cluster.get(at, "b").await);
        match at {
            1 => assert_eq!((new.unwrap(), old.unwrap().is_some()), (None, true), "as it was when it was frozen"),
            _ => assert!(matches!(new, Err(Error::Unavailable { .. })), "{new:?}"),
        }
        cluster.handle(at).retire(ID).await.unwrap();
        assert_eq!(cluster.handle(at).stashed(NS, 9).unwrap().len() as u32, at, "the delete of c, at 2 what 3 has");
        assert!(cluster.nodes[&at].store.get(Family::Data, &layout::data_key(NS, b"new")).unwrap().is_some());
    }
}

/// What a strong epoch has left on a disk: 40 values, the last two deleted. Its clock was ahead by days.
fn strong_base(store: &MemoryStore) -> Base {
    let (mut base, mut batch) = (Base::default(), duet_store::Batch::new());
    for at in 0..40u64 {
        let key = Bytes::from(format!("k{at:02}"));
        base.last = Stamp { epoch: E1, hlc: Hlc(Hlc::from_millis(1_800_000_000_000).0 + at), node: NodeId(9) };
        let deleted = at >= 38;
        let record = if deleted { Record::tombstone(base.last) } else { Record::value(base.last, "strong".into()) };
        base.digest.replace(&key, None, Some(&record));
        *(if deleted { &mut base.tombstones } else { &mut base.keys }) += 1;
        batch.put(Family::Data, layout::data_key(NS, &key), record.encode(&key));
        if deleted {
            batch.put(Family::Namespace, layout::tombstone_key(NS, base.last), key);
        }
    }
    store.write(batch).unwrap();
    store.sync().unwrap();
    base
}

/// An epoch that begins with the records of the one before, at three nodes.
async fn second_epoch(keep_tombstones: bool) -> (Cluster, Base) {
    let cluster = Cluster::start(&[1, 2, 3], |config| config.replica.chunk_bytes = 300);
    let mut base = Base::default();
    for at in 1..=3 {
        base = strong_base(&cluster.nodes[&at].store);
        let members = Members { keep_tombstones, ..members(1, &[1, 2, 3], 2) };
        let spec = SpaceSpec { epoch: E2, base: Some(base), ..spec(1, Start::Founder, members) };
        cluster.handle(at).create(spec).await.unwrap();
    }
    (cluster, base)
}

impl Cluster {
    async fn call2(&self, at: u32, op: Op) -> Result<Answer, Error> {
        self.handle(at).call(NS, E2, Call { op, token: None }, in_seconds(5)).await
    }

    async fn get2(&self, at: u32, key: &str) -> Option<Bytes> {
        value(&self.call2(at, Op::Get { key: key.to_owned().into() }).await.unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn an_epoch_begins_with_the_records_of_the_one_before() {
    let (mut cluster, base) = second_epoch(true).await;
    let standing = cluster.standing(1, ID2).await;
    assert_eq!((standing.base, standing.frontier, standing.clean), (base, Frontier::default(), true));
    assert_eq!(cluster.get2(2, "k07").await.unwrap(), "strong");
    let scan = Op::Scan { range: KeyRange::all(), limit: ScanLimit::default(), cursor: None };
    let Outcome::Page { entries, .. } = cluster.call2(3, scan).await.unwrap().outcome else { panic!() };
    assert_eq!(entries.len(), 38);
    let written = stamp(&cluster.call2(1, put_op("k07", "new")).await.unwrap());
    assert!(written > base.last && written.epoch == E2);
    cluster.call2(2, put_op("k39", "back")).await.unwrap();
    cluster.call2(3, Op::Write { mutation: Mutation::delete("k08") }).await.unwrap();
    // A new member gets everything; what it has of before is not merged with it.
    cluster.boot(4, MemoryStore::new(), 1);
    let mut batch = duet_store::Batch::new();
    let old = Record::value(Stamp { epoch: E1, hlc: Hlc(1), node: NodeId(4) }, "stale".into());
    batch.put(Family::Data, layout::data_key(NS, b"stale"), old.encode(b"stale"));
    cluster.nodes[&4].store.write(batch).unwrap();
    let four = Members { keep_tombstones: true, ..members(2, &[1, 2, 3, 4], 2) };
    let spec = SpaceSpec { epoch: E2, ..spec(1, Start::Joining, four.clone()) };
    cluster.handle(4).create(spec).await.unwrap();
    for at in 1..=3 {
        cluster.handle(at).set_members(ID2, four.clone()).await.unwrap();
    }
    cluster.settle(&[1, 2, 3, 4]).await;
    let all = cluster.standing(1, ID2).await;
    assert_eq!((all.base.keys, all.base.tombstones), (38, 2));
    assert!(all.base.last >= written);
    for at in 2..=4 {
        let standing = cluster.standing(at, ID2).await;
        assert_eq!((standing.base, &standing.frontier), (all.base, &all.frontier), "{at}");
        cluster.handle(at).scrub(ID2).await.unwrap();
        assert_eq!(cluster.standing(at, ID2).await.base, all.base, "{at}");
    }
    assert_eq!(cluster.get2(4, "stale").await, None);
    assert_eq!(cluster.get2(4, "k39").await.unwrap(), "back");
    assert_eq!(cluster.status(4).await.eventual.unwrap().digest_mismatches, 0);
    // Nobody is owed anything any more: the tombstones of both epochs go.
    for at in 1..=4 {
        let free = members(3, &[1, 2, 3, 4], 2);
        cluster.handle(at).set_members(ID2, free).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    for at in 1..=4 {
        let base = cluster.standing(at, ID2).await.base;
        assert_eq!(base, Base { tombstones: 0, ..all.base }, "{at}");
        let view: &dyn View = &*cluster.nodes[&at].store;
        let (from, to) = crate::rows::tombstones(NS);
        assert_eq!(view.scan(Family::Namespace, &from, Some(&to)).unwrap().count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_joins_an_epoch_without_writes_comes_to_its_base() {
    let (mut cluster, base) = second_epoch(true).await;
    cluster.boot(4, MemoryStore::new(), 1);
    let four = Members { keep_tombstones: true, ..members(2, &[1, 2, 3, 4], 2) };
    cluster.handle(4).create(SpaceSpec { epoch: E2, ..spec(1, Start::Joining, four.clone()) }).await.unwrap();
    for at in 1..=3 {
        cluster.handle(at).set_members(ID2, four.clone()).await.unwrap();
    }
    cluster.settle(&[1, 2, 3, 4]).await;
    assert_eq!(cluster.standing(4, ID2).await.base, base);
}

#[tokio::test(start_paused = true)]
async fn records_of_an_earlier_epoch_are_healed() {
    let (cluster, base) = second_epoch(true).await;
    cluster.call2(1, put_op("k00", "new")).await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    let before = cluster.standing(2, ID2).await.base;
    // Damaged: a peer's takes its place.
    for key in ["k05", "k39"] {
        assert!(cluster.nodes[&2].store.damage(Family::Data, &layout::data_key(NS, key.as_bytes())));
    }
    cluster.handle(2).scrub(ID2).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let eventual = cluster.status(2).await.eventual.unwrap();
    assert_eq!((eventual.damaged, eventual.healed), (2, 2));
    assert_eq!(
        (cluster.get2(2, "k05").await.unwrap(), cluster.standing(2, ID2).await.base),
        ("strong".into(), before)
    );
    // Lost: the comparison finds it.
    let mut batch = duet_store::Batch::new();
    batch.delete(Family::Data, layout::data_key(NS, b"k06"));
    cluster.nodes[&3].store.write(batch).unwrap();
    cluster.handle(3).scrub(ID2).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(cluster.get2(3, "k06").await.unwrap(), "strong");
    assert_eq!((cluster.standing(3, ID2).await.base, before.keys), (before, base.keys));
}

#[tokio::test(start_paused = true)]
async fn near_is_who_lacks_only_what_is_new() {
    let cluster = three(1).await;
    for i in 0..40 {
        cluster.put(1 + i % 3, "k", format!("{i}")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        for at in 1..=3 {
            assert!(cluster.standing(at, ID).await.near, "under load it is a little behind at most");
        }
    }
    // It is told what there is, and cannot get it.
    cluster.cuts.lock().unwrap().insert((3, 1));
    let mut near = true;
    for i in 0..40 {
        cluster.put(1, "k", format!("{i}")).await.unwrap();
        if i % 2 == 0 {
            cluster.cuts.lock().unwrap().insert((1, 3));
        } else {
            cluster.cuts.lock().unwrap().remove(&(1, 3));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        near &= cluster.standing(3, ID).await.near;
    }
    assert!(!near);
    cluster.heal();
    cluster.settle(&[1, 2, 3]).await;
    assert!(cluster.standing(3, ID).await.near);
}
