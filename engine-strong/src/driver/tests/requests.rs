//! Reads and writes, whatever befalls them.

use super::*;

#[tokio::test(start_paused = true)]
async fn any_replica_takes_reads_and_writes() {
    let (mut cluster, leader) = three(|_| {}).await;
    for at in 1..=3 {
        let answer = cluster.put(at, &format!("k{at}"), "v").await.unwrap();
        assert_eq!(answer.meta.leader, (at != leader).then_some(NodeId(leader)));
        assert!(answer.meta.position > 0);
        for reader in 1..=3 {
            assert_eq!(cluster.get(reader, &format!("k{at}")).await.unwrap().unwrap(), "v");
        }
    }
    let scan = Op::Scan { range: KeyRange::all(), limit: ScanLimit::default(), cursor: None };
    let Outcome::Page { entries, next: None } =
        cluster.handle(2).call(NS, E1, Call::once(scan), in_seconds(5)).await.unwrap().outcome
    else {
        panic!("a page")
    };
    assert_eq!(entries.len(), 3);
    let cas = Op::CompareAndSet { expect: Expect::Stamp(Stamp::default()), mutation: Mutation::put("k1", "x") };
    let result = cluster.handle(1).call(NS, E1, Call::once(cas), in_seconds(5)).await;
    assert!(matches!(result, Err(Error::CompareFailed { found: Some(_) })));
    let unknown = cluster.handle(1).call(NS, Epoch(2), Call::once(Op::Get { key: "k".into() }), in_seconds(5)).await;
    assert!(matches!(unknown, Err(Error::NotHere { .. })));
}

#[tokio::test(start_paused = true)]
async fn writes_under_way_survive_a_change_of_leader_exactly_once() {
    let (cluster, leader) = three(|_| {}).await;
    let [a, _] = others(leader);
    let mut cluster = cluster;
    cluster.put(a, "counter", "0").await.unwrap();
    let mut calls = Vec::new();
    for sequence in 1..=200u64 {
        let attempt = Try { session: SessionId(9), sequence, answered_below: 0, seen: 0, epoch: E1 };
        let op = Op::Transaction {
            compares: vec![],
            then: vec![Mutation::put(format!("once{sequence}"), "x")],
            otherwise: vec![],
            reads: vec![],
        };
        let call = Call { op, attempt: Some(attempt), consistency: Consistency::Linearizable };
        let handle = cluster.handle(a);
        calls.push(tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(30)).await }));
        if sequence == 100 {
            tokio::time::sleep(Duration::from_micros(500)).await;
            cluster.crash(leader, 5);
        }
    }
    for call in calls {
        assert!(call.await.unwrap().is_ok());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let metrics = cluster.handle(a).metrics();
    assert!(metrics.reproposed > 0, "the crash hit nothing: {metrics:?}");
}

#[tokio::test(start_paused = true)]
async fn a_write_without_a_session_is_proposed_once() {
    let (mut cluster, leader) = three(|_| {}).await;
    let [a, b] = others(leader);
    cluster.isolate(leader);
    // Forwarded to a leader that does not hear it.
    let op = Op::Write { mutation: Mutation::put("k", "v") };
    let began = Instant::now();
    let result = cluster.handle(a).call(NS, E1, Call::once(op), in_seconds(60)).await;
    assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(cluster.get(b, "k").await.unwrap(), None);
    cluster.put(b, "k", "w").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_the_truth_is_told_in_time() {
    let (mut cluster, leader) = three(|_| {}).await;
    cluster.put(leader, "k", "before").await.unwrap();
    cluster.isolate(leader);
    // Proposed before anyone can know: may be in a log.
    let result = cluster.put(leader, "k", "doubtful").await;
    assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "{result:?}");
    let [a, b] = others(leader);
    cluster.put(a, "k", "after").await.unwrap();
    // From now on it is known that nothing gets through.
    let began = Instant::now();
    let write = cluster.put(leader, "other", "never").await;
    assert!(matches!(&write, Err(Error::NoQuorum { seen, .. }) if seen.reachable == [NodeId(leader)]), "{write:?}");
    let read = cluster.get(leader, "k").await;
    assert!(matches!(read, Err(Error::NoQuorum { .. })), "{read:?}");
    assert!(began.elapsed() <= Duration::from_millis(3400), "{:?}", began.elapsed());
    let status = cluster.handle(leader).status(NS).await.unwrap();
    assert_eq!(status.quorum, QuorumHealth::Lost);
    // A stale read must be asked for.
    let call = Call { consistency: Consistency::Local, ..Call::once(Op::Get { key: "k".into() }) };
    assert!(cluster.handle(leader).call(NS, E1, call, in_seconds(5)).await.is_ok());
    cluster.heal();
    cluster.settle(&[1, 2, 3]).await;
    assert_eq!(cluster.get(leader, "other").await.unwrap(), None, "NoQuorum means that it was never done");
    assert!(["after", "doubtful"].map(Bytes::from).contains(&cluster.get(b, "k").await.unwrap().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_read_held_up_by_a_partition_sees_what_was_written_meanwhile() {
    let (mut cluster, leader) = three(|_| {}).await;
    let [a, _] = others(leader);
    cluster.put(leader, "k", "old").await.unwrap();
    for round in 0..10 {
        cluster.isolate(a);
        let old = cluster.handle(a);
        let call = Call::once(Op::Get { key: "k".into() });
        let read = tokio::spawn(async move { old.call(NS, E1, call, in_seconds(20)).await });
        let leader = cluster.leader(1).await;
        let at = if leader == a { others(a)[0] } else { leader };
        cluster.put(at, "k", format!("new{round}")).await.unwrap();
        cluster.heal();
        match read.await.unwrap() {
            Ok(Answer { outcome: Outcome::Value(Some((_, value))), .. }) => {
                // It was asked before the write: both are right. What comes after must be new.
                assert!(value == format!("new{round}") || round == 0 || value == format!("new{}", round - 1));
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(matches!(error, Error::NoQuorum { .. }), "{error:?}"),
        }
        cluster.settle(&[1, 2, 3]).await;
        assert_eq!(cluster.get(a, "k").await.unwrap().unwrap(), format!("new{round}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_writes_and_serves_reads() {
    let (mut cluster, leader) = three(|_| {}).await;
    let [a, _] = others(leader);
    cluster.put(leader, "k", "v").await.unwrap();
    cluster.nodes[&leader].store.set_free_space(RESERVE - 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let refused = cluster.put(leader, "k", "w").await;
    assert!(matches!(refused, Err(Error::DiskFull { reserve: RESERVE, .. })), "{refused:?}");
    assert_eq!(cluster.get(leader, "k").await.unwrap().unwrap(), "v");
    cluster.put(a, "k", "w").await.unwrap();
    cluster.nodes[&leader].store.set_free_space(RESERVE + 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.put(leader, "k", "x").await.unwrap();
}

/// One seed, one history: what is sent and written does not depend on anything else.
#[test]
fn the_same_seed_gives_the_same_history() {
    let history = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (mut cluster, leader) = three(small).await;
            let disk = cluster.crash(leader, 1);
            let [a, b] = others(leader);
            let began = Instant::now();
            for i in 0..100 {
                cluster.put(if i % 2 == 0 { a } else { b }, &format!("k{i}"), vec![0; 500]).await.unwrap();
            }
            cluster.restart(leader, disk);
            cluster.settle(&[1, 2, 3]).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            let metrics: Vec<_> = (1..=3).map(|id| cluster.handle(id).metrics()).collect();
            let status = cluster.handle(a).status(NS).await.unwrap();
            (leader, began.elapsed(), metrics, status)
        })
    };
    assert_eq!(history(), history());
}

#[tokio::test(start_paused = true)]
async fn subscribers_hear_of_every_change() {
    let (mut cluster, leader) = three(|_| {}).await;
    let [a, _] = others(leader);
    let handle = cluster.handle(a);
    let mut changes = handle.subscribe(NS);
    for round in 0..20 {
        cluster.put(leader, "k", format!("{round}")).await.unwrap();
        loop {
            changes.changed().await.unwrap();
            let (position, records) = handle.records(NS).unwrap();
            assert!(position > 0);
            if records.iter().any(|(_, r)| r.live().is_some_and(|v| *v == format!("{round}"))) {
                break;
            }
        }
    }
}
