//! A client and nodes that do well: routing, sessions, pipelines, scans, limits.

mod fake;

use std::{collections::BTreeSet, time::Duration};

use duet_client::{Change, ClientError, Expect, KeyRange, Options};
use duet_proto::{
    Cursor, Entry, Epoch, Error, Hlc, Meta, Mode, NodeId, Op, Outcome, Resource, Token, TxnResult, limits,
};
use fake::{Act, Fake, cluster, data, fails, meta, name, stamp, usual, written};
use futures::{StreamExt, future::join_all, stream};

#[tokio::test(start_paused = true)]
async fn requests_go_to_the_leader_and_follow_it() {
    let mut fake = Fake::new(3, |node, _| {
        let leader = if node == 2 { None } else { Some(NodeId(2)) };
        data(Outcome::Written(stamp(1)), Meta { leader, ..meta(5) })
    });
    let orders = fake.builder(&[3], Options::default()).connect().await.unwrap().namespace("orders").unwrap();
    let put = async || orders.put("k", "v").await.unwrap();
    put().await;
    put().await;
    assert_eq!(fake.asked(), [3, 3], "node 3 is connected and passes on what is for the leader");
    tokio::time::sleep(Duration::from_secs(1)).await;
    put().await;
    put().await;
    assert_eq!(fake.asked(), [2, 2], "by now the leader that node 3 named is connected");
    fake.script(|_, _| data(Outcome::Written(stamp(1)), Meta { leader: Some(NodeId(1)), ..meta(6) }));
    put().await;
    put().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    put().await;
    assert_eq!(fake.asked().last(), Some(&1), "it has changed");
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_replica_says_who_has_one() {
    let mut fake = Fake::new(3, |node, _| match node {
        3 => written(1),
        _ => fails(Error::NotHere { members: vec![(NodeId(3), fake::address(3))] }),
    });
    fake.stage(|stage| stage.modes[0].2 = vec![1]);
    let orders = fake.orders().await;
    orders.put("k", "v").await.unwrap();
    orders.put("k", "v").await.unwrap();
    assert_eq!(fake.asked(), [1, 3, 3]);
}

/// A node that holds nothing of it answers, and names those who do: they are dead.
#[tokio::test(start_paused = true)]
async fn members_that_are_dead_are_unreachable_whoever_else_answers() {
    let mut fake = Fake::new(2, |_, _| fails(Error::NotHere { members: vec![(NodeId(3), fake::address(3))] }));
    fake.stage(|stage| stage.modes[0].2 = vec![3]);
    let orders = fake.orders().await;
    let error = orders.get("k").await.unwrap_err();
    let (ClientError::Unreachable { tried } | ClientError::Refused { tried }) = &error else { panic!("{error}") };
    assert!(tried.iter().any(|(address, _)| *address == fake::address(3)), "{tried:?}");
    assert!(orders.put("k", "v").await.unwrap_err().cluster().is_none());
}

#[tokio::test(start_paused = true)]
async fn five_thousand_requests_in_flight() {
    let mut fake = Fake::new(1, usual());
    let orders = fake.orders().await;
    let puts = (0..5000).map(|n| orders.put(format!("k{n}"), vec![0; n % 700]));
    let stamps: BTreeSet<_> = join_all(puts).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(stamps.len(), 5000, "each has an answer of its own");
    let sequences: BTreeSet<_> = fake.requests().iter().map(|(_, r)| r.attempt.unwrap().sequence).collect();
    assert_eq!((sequences.len(), sequences.first(), sequences.last()), (5000, Some(&1), Some(&5000)));
}

#[tokio::test(start_paused = true)]
async fn big_values_pass_in_numbers() {
    let mut fake = Fake::new(1, usual());
    let orders = fake.orders().await;
    let sent = stream::iter(0..100).map(|n| orders.put(format!("k{n}"), vec![7; 200_000]));
    let done: Vec<_> = sent.buffer_unordered(50).collect().await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_bound_are_in_flight() {
    let mut fake = Fake::new(1, |_, _| {
        let Act::Answer(response) = written(1) else { unreachable!() };
        Act::Late(Duration::from_millis(100), response)
    });
    let mut options = Options::default();
    options.in_flight = 2;
    let orders = fake.builder(&[1], options).connect().await.unwrap().namespace("orders").unwrap();
    let all = tokio::spawn(async move { join_all((0..6).map(|n| orders.put(format!("k{n}"), "v"))).await });
    tokio::time::sleep(Duration::from_millis(90)).await;
    assert_eq!(fake.asked().len(), 2);
    assert!(all.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(fake.asked().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_is_over_a_limit_is_not_sent() {
    let mut fake = Fake::new(1, usual());
    let orders = fake.orders().await;
    let key = cluster(orders.get(vec![0; limits::KEY_MAX + 1]).await);
    assert!(matches!(key, Error::TooLarge { what: Resource::Key, .. }));
    let value = cluster(orders.put("k", vec![0; limits::VALUE_MAX + 1]).await);
    assert!(matches!(value, Error::TooLarge { what: Resource::Value, .. }));
    assert_eq!(fake.asked(), []);
    fake.script(|_, _| fails(Error::TooLarge { what: Resource::Value, size: 9, limit: 8 }));
    let theirs = cluster(orders.put("k", "v").await);
    assert!(matches!(theirs, Error::TooLarge { limit: 8, .. }), "the cluster's own limit may be lower");
    assert_eq!(fake.asked(), [1], "and is not asked about twice");
}

#[tokio::test(start_paused = true)]
async fn compares_and_transactions() {
    let mut fake = Fake::new(1, |_, request| match &request.op {
        Op::CompareAndSet { expect: Expect::Absent, .. } => fails(Error::CompareFailed { found: Some(stamp(3)) }),
        Op::Transaction { compares, then, otherwise, reads } => {
            assert_eq!((compares.len(), then.len(), otherwise.len(), reads.len()), (1, 2, 1, 1));
            let result = TxnResult { held: true, stamp: stamp(9), reads: vec![None] };
            data(Outcome::Transaction(result), meta(9))
        }
        _ => written(1),
    });
    let orders = fake.orders().await;
    let lost = cluster(orders.cas("k", Expect::Absent, Change::Delete).await);
    assert_eq!(lost, Error::CompareFailed { found: Some(stamp(3)) });
    orders.cas("k", Expect::Stamp(stamp(3)), Change::Put("v".into())).await.unwrap();
    let txn = orders.txn().when("k", Expect::Present).put("k", "1").delete("l").otherwise_put("m", "2").read("k");
    assert_eq!(txn.commit().await.unwrap().stamp, stamp(9));
    assert!(fake.requests().iter().all(|(_, r)| r.attempt.is_some()), "each can be retried exactly once");
}

#[tokio::test(start_paused = true)]
async fn a_scan_goes_on_over_pages_and_epochs() {
    let entry = |n: u8| Entry { key: vec![n].into(), stamp: stamp(1), value: "v".into() };
    let mut fake = Fake::new(1, move |_, request| {
        let Op::Scan { range, limit, cursor } = &request.op else { unreachable!() };
        if cursor.as_ref().is_some_and(|c| c.last[..] == [4]) {
            return fails(Error::EpochChanged { namespace: name(), epoch: Epoch(2), mode: Mode::Strong });
        }
        let after = cursor.as_ref().map_or(range.start.to_vec(), |c| [&c.last[..], &[0]].concat());
        let found: Vec<_> =
            (1..=9u8).map(entry).filter(|e| e.key >= after[..]).take(2.min(limit.entries as usize)).collect();
        let next = found.last().filter(|e| e.key[..] != [9]).map(|e| Cursor { epoch: Epoch(1), last: e.key.clone() });
        data(Outcome::Page { entries: found, next }, meta(1))
    });
    let orders = fake.orders().await;
    let keys = |found: Vec<Result<Entry, _>>| found.into_iter().map(|e| e.unwrap().key[0]).collect::<Vec<_>>();
    let orders = orders.timeout(Duration::from_millis(100));
    assert_eq!(keys(orders.scan(KeyRange::all()).collect().await), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(keys(orders.scan(KeyRange::all()).after(vec![6]).limit(2).collect().await), [7, 8]);
    let mut one = orders.scan(KeyRange::all()).limit(1);
    assert_eq!(one.next().await.unwrap().unwrap().key[..], [1]);
    assert!(one.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn sessions_carry_their_token_where_they_go() {
    let token = |hlc| Token { epoch: Epoch(1), seen: vec![(NodeId(1), Hlc(hlc))] };
    let mut fake =
        Fake::new(3, move |_, _| data(Outcome::Written(stamp(1)), Meta { token: Some(token(5)), ..meta(0) }));
    fake.stage(|stage| stage.modes[0].1 = Mode::Eventual);
    let orders = fake.orders().await;
    orders.put("k", "v").await.unwrap();
    let seen = fake.requests();
    let (first, request) = &seen[0];
    assert_eq!(request.tokens, []);
    let first = *first;
    // Its member does not cover the token; another one does.
    fake.script(move |node, _| match node == first {
        true => fails(Error::TokenNotCovered { why: "behind".into() }),
        false => data(Outcome::Value(None), Meta { token: Some(token(3)), ..meta(0) }),
    });
    orders.get("k").await.unwrap();
    let seen = fake.requests();
    assert!(seen.len() == 2 && seen.iter().all(|(_, r)| r.tokens == [token(5)]), "{seen:?}");
    assert_eq!(orders.tokens(), [token(5)], "what was seen once stays seen");
    orders.session(false).get("k").await.ok();
    assert!(fake.requests().iter().all(|(_, r)| r.tokens.is_empty()));
    fake.script(|_, _| fails(Error::TokenNotCovered { why: "behind".into() }));
    let late = cluster(orders.timeout(Duration::from_millis(300)).get("k").await);
    assert!(matches!(late, Error::TokenNotCovered { .. }), "a read that cannot be satisfied in time says so");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_does_not_hold_the_window() {
    let mut fake = Fake::new(1, |_, _| Act::Silence);
    let orders = fake.orders().await;
    tokio::time::timeout(Duration::from_millis(50), orders.put("k", "v")).await.unwrap_err();
    fake.script(usual());
    orders.put("k", "v").await.unwrap();
    let seen = fake.requests();
    let (first, second) = (seen[0].1.attempt.unwrap(), seen[1].1.attempt.unwrap());
    assert_eq!((first.sequence, first.answered_below), (1, 1));
    assert_eq!((second.sequence, second.answered_below), (2, 2));
    assert_eq!(first.session, second.session);
}
