//! Writes, reads and what they promise.

use super::*;

#[tokio::test(start_paused = true)]
async fn writes_of_every_member_reach_every_other() {
    let cluster = three(1).await;
    let began = Instant::now();
    for i in 0..30 {
        cluster.put(1 + i % 3, &format!("k{i}"), format!("{i}")).await.unwrap();
    }
    cluster.delete(2, "k0").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    for at in 1..=3 {
        assert_eq!(cluster.get(at, "k29").await.unwrap().unwrap(), "29", "pushed at once");
        assert_eq!(cluster.get(at, "k0").await.unwrap(), None);
    }
    cluster.settle(&[1, 2, 3]).await;
    let status = cluster.status(1).await;
    let eventual = status.eventual.unwrap();
    assert_eq!((status.mode, status.keys, eventual.copies, eventual.gaps), (Mode::Eventual, 29, 1, 0));
    assert!(status.digest != Digest::EMPTY && status.members.iter().all(|m| m.active));
    // Reports tell each that the others have caught up, and how long that took.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let eventual = cluster.status(1).await.eventual.unwrap();
    assert_eq!((eventual.lag_writes, eventual.lag_ms), (0, 0));
    assert_eq!(eventual.converged_ms.iter().sum::<u64>(), 10);
    assert_eq!(cluster.handle(1).metrics().malformed, 0);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn the_later_of_two_writes_wins_everywhere() {
    let cluster = three(1).await;
    for round in 0..20 {
        let writes = (1..=3).map(|at| {
            let handle = cluster.handle(at);
            let call = Call { op: put_op("k", format!("{round}-{at}")), token: None };
            async move { stamp(&handle.call(NS, E1, call, in_seconds(5)).await.unwrap()) }
        });
        let mut stamps = Vec::new();
        for write in writes {
            stamps.push(write.await);
        }
        cluster.settle(&[1, 2, 3]).await;
        let last = stamps.iter().max().unwrap().node;
        assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), format!("{round}-{last}"));
    }
}

#[tokio::test(start_paused = true)]
async fn copies_are_waited_for() {
    for copies in [2, 3] {
        let cluster = three(copies).await;
        let at = cluster.put(1, "k", "v").await.unwrap();
        let holders = cluster.nodes.values().filter(|node| {
            let (disk, key) = (node.store.crash(0), layout::data_key(NS, b"k"));
            let view: &dyn duet_store::View = &*disk;
            view.get(Family::Data, &key).unwrap().is_some()
        });
        assert!(holders.count() >= copies as usize, "synced on {copies}");
        assert_eq!(at.meta.token.unwrap().seen.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn too_few_copies_are_told_as_many_as_there_are() {
    let cluster = three(3).await;
    cluster.isolate(3);
    let began = Instant::now();
    let refused = cluster.put(1, "k", "v").await;
    assert_eq!(refused, Err(Error::NotEnoughCopies { have: 2, need: 3 }));
    assert!(began.elapsed() <= Duration::from_secs(5), "by its deadline");
    assert_eq!(cluster.handle(1).metrics().not_enough_copies, 1);
    // It is there all the same, and spreads when it can.
    assert_eq!(cluster.get(2, "k").await.unwrap().unwrap(), "v");
    let lag = cluster.status(1).await.eventual.unwrap();
    assert!(lag.lag_writes == 1 && lag.lag_ms >= 4000, "{lag:?}");
    cluster.heal();
    cluster.settle(&[1, 2, 3]).await;
    cluster.put(1, "k", "w").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn both_sides_of_a_partition_take_writes_and_meet_again() {
    let cluster = three(1).await;
    cluster.put(1, "before", "v").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    cluster.isolate(3);
    for i in 0..300 {
        cluster.put(1 + i % 3, &format!("k{}", i % 100), format!("{i}")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let apart = cluster.status(3).await;
    assert!(apart.members.iter().all(|m| !m.active && m.lag == 100), "{:?}", apart.members);
    cluster.heal();
    let began = Instant::now();
    cluster.settle(&[1, 2, 3]).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for at in 1..=3 {
        for i in 200..300 {
            assert_eq!(cluster.get(at, &format!("k{}", i % 100)).await.unwrap().unwrap(), format!("{i}"));
        }
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    for at in 1..=3 {
        let eventual = cluster.status(at).await.eventual.unwrap();
        assert_eq!((eventual.lag_writes, eventual.digest_mismatches, eventual.conflicting_markers), (0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_waits_for_what_it_has_seen() {
    let cluster = three(1).await;
    cluster.isolate(1);
    let token = cluster.put(1, "k", "v").await.unwrap().meta.token;
    let get = Op::Get { key: "k".into() };
    let began = Instant::now();
    let refused = cluster.call(2, get.clone(), token.clone()).await;
    assert!(matches!(refused, Err(Error::TokenNotCovered { .. })), "{refused:?}");
    assert_eq!(began.elapsed(), Duration::from_secs(2), "the bound");
    assert_eq!(cluster.get(2, "k").await.unwrap(), None, "without a token it sees what there is");
    let handle = cluster.handle(2);
    let (op, waiting) = (get, token.clone());
    let read = tokio::spawn(async move { handle.call(NS, E1, Call { op, token: waiting }, in_seconds(5)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.heal();
    assert_eq!(value(&read.await.unwrap().unwrap()).unwrap(), "v");
    let metrics = cluster.handle(2).metrics();
    assert_eq!((metrics.token_waits, metrics.token_not_covered, metrics.reads), (2, 1, 3));
    // A write is stamped above its token.
    let after = cluster.call(2, put_op("k", "w"), token.clone()).await.unwrap();
    assert!(stamp(&after).hlc > token.unwrap().seen[0].1);
    let other = Token { epoch: Epoch(9), seen: after.meta.token.unwrap().seen };
    let refused = cluster.call(2, Op::Get { key: "k".into() }, Some(other)).await;
    assert!(matches!(refused, Err(Error::TokenNotCovered { .. })), "{refused:?}");
    assert_eq!(cluster.handle(2).metrics().token_waits, 2, "time does not bring another epoch");
}

#[tokio::test(start_paused = true)]
async fn reads_see_only_what_is_synced() {
    let mut cluster = Cluster::start(&[], |_| {});
    cluster.latency = Duration::from_millis(80);
    cluster.boot(1, MemoryStore::new(), 1);
    cluster.found(1, &[1], 1).await;
    cluster.put(1, "k", "old").await.unwrap();
    let handle = cluster.handle(1);
    let call = Call { op: put_op("k", "new"), token: None };
    let write = tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(5)).await });
    tokio::time::sleep(Duration::from_millis(40)).await;
    let bytes =
        { cluster.nodes[&1].store.snapshot() }.get(Family::Data, &layout::data_key(NS, b"k")).unwrap().unwrap();
    assert!(bytes.ends_with(b"new") || bytes.windows(3).any(|w| w == b"new"), "written, but not synced");
    assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), "old");
    write.await.unwrap().unwrap();
    assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_time_is_over_is_not_begun() {
    let mut cluster = Cluster::start(&[], |_| {});
    cluster.latency = Duration::from_millis(800);
    cluster.boot(1, MemoryStore::new(), 1);
    cluster.found(1, &[1], 1).await;
    let handle = cluster.handle(1);
    let call = Call { op: put_op("k", "v"), token: None };
    let first = tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(5)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (call, soon) = (Call { op: put_op("late", "v"), token: None }, Instant::now() + Duration::from_millis(200));
    let late = cluster.handle(1).call(NS, E1, call, soon).await;
    assert!(matches!(late, Err(Error::OutcomeUnknown { .. })) && Instant::now() == soon, "{late:?}");
    first.await.unwrap().unwrap();
    cluster.put(1, "after", "v").await.unwrap();
    assert_eq!(cluster.get(1, "late").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_only_a_strong_namespace_can_do_is_refused() {
    let cluster = three(1).await;
    let op = Op::CompareAndSet { expect: Expect::Absent, mutation: Mutation::put("k", "v") };
    let Err(Error::Unsupported { mode: Mode::Eventual, why }) = cluster.call(1, op, None).await else { panic!() };
    assert!(why.contains("strong namespace"), "{why}");
    let op = Op::Transaction { compares: vec![], then: vec![], otherwise: vec![], reads: vec![] };
    assert!(matches!(cluster.call(1, op, None).await, Err(Error::Unsupported { .. })));
    let long = cluster.put(1, &"k".repeat(5000), "v").await;
    assert!(matches!(long, Err(Error::TooLarge { .. })));
    let handle = cluster.handle(1);
    let elsewhere = handle.call(NS, Epoch(2), Call { op: put_op("k", "v"), token: None }, in_seconds(5)).await;
    assert_eq!(elsewhere, Err(Error::NotHere { members: Vec::new() }));
}

#[tokio::test(start_paused = true)]
async fn scans_come_in_pages_bound_to_an_epoch() {
    let cluster = three(1).await;
    for i in 0..25 {
        cluster.put(1, &format!("k{i:02}"), vec![b'x'; 100]).await.unwrap();
    }
    cluster.delete(1, "k03").await.unwrap();
    let scan = |limit, cursor| Op::Scan { range: KeyRange::all(), limit, cursor };
    for limit in [ScanLimit { entries: 7, ..ScanLimit::default() }, ScanLimit { bytes: 700, ..ScanLimit::default() }]
    {
        let (mut keys, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let Outcome::Page { entries, next } = cluster.call(1, scan(limit, cursor), None).await.unwrap().outcome
            else {
                panic!()
            };
            assert!(entries.len() <= 7);
            keys.extend(entries.into_iter().map(|e| e.key));
            pages += 1;
            match next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!((keys.len(), pages), (24, 4));
        assert!(keys.is_sorted() && !keys.contains(&"k03".into()));
    }
    let cursor = duet_proto::Cursor { epoch: Epoch(7), last: "k05".into() };
    let refused = cluster.call(1, scan(ScanLimit::default(), Some(cursor)), None).await;
    assert!(matches!(refused, Err(Error::EpochChanged { epoch: E1, mode: Mode::Eventual, .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_writes_and_serves_reads() {
    let cluster = three(1).await;
    cluster.put(1, "k", "v").await.unwrap();
    cluster.nodes[&1].store.set_free_space(RESERVE - 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let refused = cluster.put(1, "k", "w").await;
    assert!(matches!(refused, Err(Error::DiskFull { reserve: RESERVE, .. })), "{refused:?}");
    assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), "v");
    cluster.put(2, "k", "x").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    // What others write has its limit too, at half of the reserve.
    cluster.nodes[&1].store.set_free_space(RESERVE / 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.put(2, "k", "y").await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), "x");
    assert!(cluster.handle(1).metrics().disk_refused > 0);
    cluster.nodes[&1].store.set_free_space(u64::MAX);
    cluster.settle(&[1, 2, 3]).await;
    cluster.put(1, "k", "z").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_poisons_nobody() {
    let cluster = three(1).await;
    for at in 1..=3 {
        cluster.put(at, &format!("k{at}"), "v").await.unwrap();
    }
    cluster.settle(&[1, 2, 3]).await;
    cluster.nodes[&3].wall.ahead_ms.store(3_600_000, Ordering::Relaxed);
    // It learns what it is when the others have told it so.
    for i in 0..200 {
        let _ = cluster.put(3, &format!("fast{i}"), "v").await;
        cluster.put(1, "slow", format!("{i}")).await.unwrap();
        cluster.put(2, "slow", format!("{i}")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused = cluster.put(3, "k", "v").await;
    assert!(matches!(refused, Err(Error::ClockSkew(_))), "{refused:?}");
    assert!(cluster.status(3).await.eventual.unwrap().clock.is_some());
    assert!(cluster.handle(3).metrics().clock_skew > 0);
    let status = cluster.status(1).await.eventual.unwrap();
    assert!(status.clock.is_none() && status.clock_refused > 0, "{status:?}");
    assert_eq!(cluster.get(3, "slow").await.unwrap().unwrap(), "199", "it goes on hearing");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_record_is_found_by_its_reader_and_replaced() {
    let cluster = three(1).await;
    for i in 0..20 {
        cluster.put(1, &format!("k{i}"), "v").await.unwrap();
    }
    cluster.settle(&[1, 2, 3]).await;
    for (key, scrub) in [("k3", false), ("k4", true)] {
        let before = cluster.status(2).await.eventual.unwrap().healed;
        assert!(cluster.nodes[&2].store.damage(Family::Data, &layout::data_key(NS, key.as_bytes())));
        if scrub {
            cluster.handle(2).scrub(ID).await.unwrap();
        } else {
            let read = cluster.get(2, key).await;
            assert!(matches!(read, Err(Error::Corrupt { .. })), "{read:?}");
        }
        let mut healed = false;
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            healed |= cluster.status(2).await.eventual.unwrap().healed > before;
        }
        assert!(healed);
        assert_eq!(cluster.get(2, key).await.unwrap().unwrap(), "v");
    }
    let eventual = cluster.status(2).await.eventual.unwrap();
    assert_eq!((eventual.damaged, eventual.healed), (2, 2));
    cluster.settle(&[1, 2, 3]).await;
    cluster.handle(2).scrub(ID).await.unwrap();
    let unknown = SpaceId { namespace: NamespaceId(9), epoch: E1 };
    assert_eq!(cluster.handle(2).scrub(unknown).await, Err(SpaceError::Unknown(unknown)));
}
