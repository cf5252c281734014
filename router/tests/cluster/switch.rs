//! A namespace goes from one mode to the other while it is written to.

use std::time::Duration;

use duet_proto::{
    Admin, DataRequest, Epoch, Error, KeyRange, LateState, Mode, Mutation, NodeId, Op, Outcome, Response, ScanLimit,
    SessionId, SwitchInfo, SwitchStep, Token, Try,
};
use tokio::time::{Instant, sleep};

use super::harness::{Cluster, name, request};

pub(crate) async fn ask(cluster: &Cluster, at: u32, to: Mode, without: &[u32]) {
    let without = without.iter().copied().map(NodeId).collect();
    cluster.info(at, Admin::SwitchMode { name: name("n"), to, without }).await.unwrap();
}

pub(crate) async fn show(cluster: &Cluster, at: u32) -> SwitchInfo {
    match cluster.admin(at, Admin::ShowSwitch { name: name("n") }).await.unwrap() {
        Response::Switch(info) => *info,
        other => panic!("{other:?}"),
    }
}

/// Waits until some nodes know of the mode.
pub(crate) async fn switched(cluster: &Cluster, at: &[u32], to: Mode) {
    let knows = |cluster: &Cluster, at: u32| {
        let view = cluster.nodes[&at].router.view();
        view.namespace(&name("n")).is_some_and(|entry| entry.record.mode == to)
    };
    cluster.until(|cluster| at.iter().all(|at| knows(cluster, *at))).await;
}

/// What a node says of its replica.
pub(crate) async fn replica(cluster: &Cluster, at: u32) -> duet_proto::NamespaceStatus {
    let statuses = cluster.nodes[&at].router.status().await;
    statuses.into_iter().find(|status| status.name == name("n")).unwrap()
}

/// Waits until all have the same data.
pub(crate) async fn agree(cluster: &Cluster, nodes: &[u32]) {
    let mut last = Vec::new();
    for _ in 0..3000 {
        last.clear();
        for at in nodes {
            let status = replica(cluster, *at).await;
            last.push((status.mode, status.epoch, status.digest, status.keys, status.tombstones));
        }
        if last.windows(2).all(|two| two[0] == two[1]) {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("they do not agree: {last:?}");
}

pub(crate) async fn delete(cluster: &Cluster, at: u32, key: &str) {
    cluster.call(at, "n", Op::Write { mutation: Mutation::delete(key.to_owned()) }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn there_and_back_under_load_nothing_is_lost() {
    for copies in [1, 2, 3] {
        let cluster = Cluster::start(3).await;
        cluster.create_eventual(1, "n", &[], copies).await;
        for n in 0..30 {
            cluster.put(1 + n % 3, "n", &format!("k{n}"), "first").await;
        }
        delete(&cluster, 2, "k5").await;
        for (round, to) in [Mode::Strong, Mode::Eventual, Mode::Strong, Mode::Eventual].into_iter().enumerate() {
            ask(&cluster, 1 + round as u32 % 3, to, &[]).await;
            for n in 0..20 {
                cluster.put(1 + n % 3, "n", &format!("r{round}-{n}"), "v").await;
            }
            switched(&cluster, &[1, 2, 3], to).await;
            for at in 1..=3 {
                cluster.reads(at, "n", "k0", "first").await;
                cluster.reads(at, "n", &format!("r{round}-19"), "v").await;
                assert_eq!(cluster.get(at, "n", "k5").await, Ok(None), "deleted");
            }
            agree(&cluster, &[1, 2, 3]).await;
            assert_eq!(replica(&cluster, 2).await.keys, 29 + 20 * (round as u64 + 1));
        }
        let info = show(&cluster, 2).await;
        assert_eq!((info.progress, info.owed.len(), info.history.len()), (None, 0, 4));
        assert!(info.history.iter().all(|past| !past.aborted && past.apart.is_empty() && past.sealed_ms > 0));
        // Those that were written before the seal, and no others.
        let all = Op::Scan { range: KeyRange::all(), limit: ScanLimit::default(), cursor: None };
        let Outcome::Page { entries, .. } = cluster.call(2, "n", all).await.unwrap().outcome else {
            panic!("no page")
        };
        let before = entries.iter().filter(|entry| entry.stamp.epoch < Epoch(5)).count() as u64;
        assert_eq!((info.base.unwrap().keys, entries.len()), (before, 29 + 80));
        assert!(before >= 29 + 80 - 20);
    }
}

/// Each step follows as soon as the one before it is known. The clock is virtual: messages take no time, a sync takes a
/// millisecond, and there are sixteen of them one after the other, six on the way back.
#[tokio::test(start_paused = true)]
async fn nobody_rests_while_writes_wait() {
    let cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 1).await;
    for (to, most) in [(Mode::Strong, 20), (Mode::Eventual, 8), (Mode::Strong, 20)] {
        cluster.put(1, "n", "a", "1").await;
        agree(&cluster, &[1, 2, 3]).await;
        ask(&cluster, 1, to, &[]).await;
        let (mut longest, mut over) = (Duration::ZERO, false);
        while !over {
            // One more when it is over: the new epoch has to be there for it.
            over = cluster.nodes[&1].router.view().namespace(&name("n")).unwrap().record.mode == to;
            let began = Instant::now();
            cluster.put(1, "n", "a", "2").await;
            longest = longest.max(began.elapsed());
        }
        assert!(longest <= Duration::from_millis(most), "to {to}: {longest:?}");
        switched(&cluster, &[1, 2, 3], to).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_away_is_waited_for_while_writes_go_on() {
    let cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 1).await;
    cluster.put(1, "n", "a", "1").await;
    cluster.reads(3, "n", "a", "1").await;
    cluster.isolate(3, true);
    cluster.put(3, "n", "alone", "3").await;
    ask(&cluster, 1, Mode::Strong, &[]).await;
    cluster.until(|_| true).await;
    for n in 0..50 {
        cluster.put(1, "n", &format!("b{n}"), "v").await;
        sleep(Duration::from_millis(100)).await;
    }
    let progress = show(&cluster, 2).await.progress.unwrap();
    assert_eq!((progress.step, progress.attempts), (SwitchStep::Gathering, 0), "no write had to wait");
    assert_eq!(progress.waits_for, [NodeId(3)]);
    cluster.isolate(3, false);
    switched(&cluster, &[1, 2, 3], Mode::Strong).await;
    for at in 1..=3 {
        cluster.reads(at, "n", "alone", "3").await;
    }
    agree(&cluster, &[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn who_was_left_out_brings_its_writes_late() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 1).await;
    for key in ["both", "deleted", "old"] {
        cluster.put(1, "n", key, "1").await;
        cluster.reads(3, "n", key, "1").await;
    }
    cluster.isolate(3, true);
    for key in ["alone", "both", "deleted"] {
        cluster.put(3, "n", key, "late").await;
    }
    ask(&cluster, 1, Mode::Strong, &[3]).await;
    switched(&cluster, &[1, 2], Mode::Strong).await;
    assert_eq!(cluster.get(1, "n", "alone").await, Ok(None));
    cluster.put(1, "n", "both", "later").await;
    delete(&cluster, 2, "deleted").await;
    assert_eq!(show(&cluster, 1).await.owed, [(NodeId(3), duet_proto::Epoch(1))]);
    let removal = cluster.set_members(1, "n", &[1, 2]).await;
    assert!(matches!(removal, Err(Error::InvalidRequest { .. })), "{removal:?}");
    // It goes on taking writes, and dies with them.
    cluster.put(3, "n", "also", "late").await;
    cluster.crash(3);
    cluster.run(3);
    assert_eq!(cluster.get(3, "n", "alone").await, Ok(Some("late".into())));
    cluster.isolate(3, false);
    cluster.ready(3).await;
    for at in 1..=3 {
        cluster.reads(at, "n", "alone", "late").await;
        cluster.reads(at, "n", "also", "late").await;
        assert_eq!(cluster.get(at, "n", "both").await, Ok(Some("later".into())));
        assert_eq!(cluster.get(at, "n", "deleted").await, Ok(None), "the delete is of a later epoch");
    }
    let forgotten = |cluster: &Cluster, at: u32| {
        let view = cluster.nodes[&at].router.view();
        view.namespace(&name("n")).is_some_and(|entry| entry.record.owed.is_empty())
    };
    cluster.until(|cluster| (1..=3).all(|at| forgotten(cluster, at))).await;
    agree(&cluster, &[1, 2, 3]).await;
    let Ok(Response::Late(late)) = cluster.admin(3, Admin::ListLate { name: name("n"), limit: 100 }).await else {
        panic!("a list of late writes")
    };
    assert_eq!(late.len(), 4);
    assert!(late.iter().all(|late| late.state == LateState::Brought), "{late:?}");
    for _ in 0..1000 {
        if replica(&cluster, 1).await.tombstones == 0 {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the tombstones are kept for nobody");
}

#[tokio::test(start_paused = true)]
async fn who_is_not_waited_for_any_more_keeps_its_writes_to_itself() {
    let cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 1).await;
    cluster.put(1, "n", "a", "1").await;
    cluster.reads(3, "n", "a", "1").await;
    cluster.isolate(3, true);
    cluster.put(3, "n", "a", "late").await;
    ask(&cluster, 1, Mode::Strong, &[3]).await;
    switched(&cluster, &[1, 2], Mode::Strong).await;
    delete(&cluster, 1, "a").await;
    cluster.info(1, Admin::Forget { name: name("n"), node: NodeId(3) }).await.unwrap();
    for _ in 0..1000 {
        if replica(&cluster, 1).await.tombstones + replica(&cluster, 2).await.tombstones == 0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    cluster.isolate(3, false);
    switched(&cluster, &[3], Mode::Strong).await;
    agree(&cluster, &[1, 2, 3]).await;
    let late = Admin::ListLate { name: name("n"), limit: 100 };
    for _ in 0..1000 {
        let Ok(Response::Late(late)) = cluster.admin(3, late.clone()).await else { panic!("a list of late writes") };
        if late.iter().map(|late| late.state).eq([LateState::Refused]) {
            assert_eq!(cluster.get(3, "n", "a").await, Ok(None), "the delete holds");
            assert_eq!(show(&cluster, 1).await.history[0].forgotten, [NodeId(3)]);
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("its late write is not refused");
}

#[tokio::test(start_paused = true)]
async fn a_strong_epoch_ends_with_any_quorum_and_whoever_was_away_begins_anew() {
    let cluster = Cluster::start(3).await;
    cluster.create(1, "n", &[]).await.unwrap();
    cluster.put(1, "n", "a", "1").await;
    cluster.isolate(3, true);
    cluster.put(1, "n", "b", "2").await;
    ask(&cluster, 1, Mode::Eventual, &[]).await;
    switched(&cluster, &[1, 2], Mode::Eventual).await;
    cluster.put(2, "n", "c", "3").await;
    sleep(Duration::from_secs(10)).await;
    cluster.isolate(3, false);
    switched(&cluster, &[3], Mode::Eventual).await;
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        cluster.reads(3, "n", key, value).await;
    }
    agree(&cluster, &[1, 2, 3]).await;
    cluster.put(3, "n", "d", "4").await;
    ask(&cluster, 3, Mode::Strong, &[]).await;
    switched(&cluster, &[1, 2, 3], Mode::Strong).await;
    cluster.reads(1, "n", "d", "4").await;
    agree(&cluster, &[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_switch_survives_the_crash_of_everybody_at_every_step() {
    for to in [Mode::Strong, Mode::Eventual] {
        for after_ms in [0, 2, 5, 8, 12, 16, 20, 30, 40, 60, 80, 120, 200, 400] {
            let mut cluster = Cluster::start(3).await;
            match to {
                Mode::Strong => drop(cluster.create_eventual(1, "n", &[], 2).await),
                Mode::Eventual => drop(cluster.create(1, "n", &[]).await.unwrap()),
            }
            for n in 0..20 {
                cluster.put(1 + n % 3, "n", &format!("k{n}"), "v").await;
            }
            ask(&cluster, 1, to, &[]).await;
            sleep(Duration::from_millis(after_ms)).await;
            for at in 1..=3 {
                cluster.crash(at);
            }
            for at in 1..=3 {
                cluster.run(at);
            }
            switched(&cluster, &[1, 2, 3], to).await;
            for n in 0..20 {
                cluster.reads(1 + n % 3, "n", &format!("k{n}"), "v").await;
            }
            cluster.put(2, "n", "after", "v").await;
            agree(&cluster, &[1, 2, 3]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_can_be_aborted_while_it_waits() {
    let cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 1).await;
    cluster.isolate(3, true);
    ask(&cluster, 1, Mode::Strong, &[]).await;
    let busy = cluster.set_members(1, "n", &[1, 2]).await;
    assert!(matches!(busy, Err(Error::Changing { .. })), "{busy:?}");
    let back = cluster.info(1, Admin::SwitchMode { name: name("n"), to: Mode::Eventual, without: vec![] }).await;
    assert!(matches!(back, Err(Error::Changing { .. })), "{back:?}");
    cluster.info(1, Admin::AbortSwitch { name: name("n") }).await.unwrap();
    let info = show(&cluster, 2).await;
    assert_eq!((info.progress, info.history.len(), info.history[0].aborted), (None, 1, true));
    cluster.put(1, "n", "a", "1").await;
    let none = cluster.info(1, Admin::AbortSwitch { name: name("n") }).await;
    assert!(matches!(none, Err(Error::InvalidRequest { .. })), "{none:?}");
}

#[tokio::test(start_paused = true)]
async fn a_switch_that_can_only_go_on_comes_back_when_it_is_aborted() {
    let cluster = Cluster::start(3).await;
    let info = cluster.create(1, "n", &[]).await.unwrap();
    cluster.put(1, "n", "a", "1").await;
    ask(&cluster, 1, Mode::Eventual, &[]).await;
    cluster.info(1, Admin::AbortSwitch { name: name("n") }).await.unwrap();
    cluster.put(2, "n", "b", "2").await;
    let back = |cluster: &Cluster, at: u32| {
        let view = cluster.nodes[&at].router.view();
        view.namespace(&name("n")).is_some_and(|entry| entry.record.epoch.0 == info.epoch.0 + 2)
    };
    cluster.until(|cluster| (1..=3).all(|at| back(cluster, at))).await;
    cluster.reads(3, "n", "b", "2").await;
    agree(&cluster, &[1, 2, 3]).await;
    let info = show(&cluster, 1).await;
    assert_eq!((info.namespace.mode, info.history.len()), (Mode::Strong, 2));
}

fn tried(key: &str, sequence: u64, seen: u64, epoch: u32) -> DataRequest {
    let op = Op::Write { mutation: Mutation::put(key.to_owned(), "tried") };
    let attempt = Try { session: SessionId(7), sequence, answered_below: 1, seen, epoch: Epoch(epoch) };
    DataRequest { epoch: Epoch(epoch), attempt: Some(attempt), ..request("n", op) }
}

#[tokio::test(start_paused = true)]
async fn a_write_of_an_earlier_strong_epoch_is_answered_or_refused_and_never_runs() {
    let cluster = Cluster::start(3).await;
    cluster.create(1, "n", &[]).await.unwrap();
    let first = cluster.ask(1, tried("ran", 1, 0, 1)).await.unwrap();
    for (epoch, to) in [(2, Mode::Eventual), (3, Mode::Strong), (4, Mode::Eventual), (5, Mode::Strong)] {
        ask(&cluster, 1, to, &[]).await;
        switched(&cluster, &[1, 2, 3], to).await;
        agree(&cluster, &[1, 2, 3]).await;
        for at in 1..=3 {
            let again = cluster.ask(at, tried("ran", 1, 0, 1)).await.unwrap();
            assert_eq!((again.outcome, again.meta.epoch), (first.outcome.clone(), Epoch(epoch)), "from the table");
            let never = cluster.ask(at, tried("never", 2, first.meta.position, 1)).await;
            let told =
                matches!(never, Err(Error::EpochChanged { epoch: now, mode, .. }) if now.0 == epoch && mode == to);
            assert!(told, "{never:?}");
            assert_eq!(cluster.get(at, "n", "never").await, Ok(None));
        }
    }
    // One that was tried in an eventual epoch, or in none that is known, is not run in another one either.
    let eventual = cluster.ask(2, tried("never", 3, 0, 4)).await;
    assert!(matches!(eventual, Err(Error::EpochChanged { .. })), "{eventual:?}");
    let plain = DataRequest { attempt: None, ..tried("never", 4, 0, 4) };
    let plain = cluster.ask(2, plain).await;
    assert!(matches!(plain, Err(Error::EpochChanged { .. })), "{plain:?}");
    assert_eq!(cluster.get(1, "n", "never").await, Ok(None));
    cluster.ask(3, tried("now", 5, 0, 5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_is_honoured_by_the_epochs_that_follow_if_they_have_what_it_saw() {
    let cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 1).await;
    cluster.put(1, "n", "a", "1").await;
    cluster.reads(3, "n", "a", "1").await;
    cluster.isolate(3, true);
    let put = Op::Write { mutation: Mutation::put("alone", "3") };
    let alone = cluster.ask(3, request("n", put)).await.unwrap().meta.token.unwrap();
    let get = Op::Get { key: "a".into() };
    let common = cluster.ask(1, request("n", get.clone())).await.unwrap().meta.token.unwrap();
    ask(&cluster, 1, Mode::Strong, &[3]).await;
    switched(&cluster, &[1, 2], Mode::Strong).await;
    let show = |tokens: &[&Token]| DataRequest {
        tokens: tokens.iter().map(|token| (*token).clone()).collect(),
        ..request("n", get.clone())
    };
    let with = |token: &Token| show(&[token]);
    assert!(cluster.ask(1, with(&common)).await.is_ok());
    let lacking = cluster.ask(2, with(&alone)).await;
    assert!(matches!(lacking, Err(Error::TokenNotCovered { .. })), "{lacking:?}");
    cluster.isolate(3, false);
    cluster.reads(2, "n", "alone", "3").await;
    let brought = |cluster: &Cluster| {
        let view = cluster.nodes[&2].router.view();
        view.namespace(&name("n")).is_some_and(|entry| entry.record.owed.is_empty())
    };
    cluster.until(brought).await;
    assert!(cluster.ask(2, with(&alone)).await.is_ok(), "merged since");
    ask(&cluster, 1, Mode::Eventual, &[]).await;
    switched(&cluster, &[1, 2, 3], Mode::Eventual).await;
    let answer = cluster.ask(1, with(&alone)).await.unwrap();
    assert_eq!(answer.meta.token.unwrap().epoch, Epoch(3), "this epoch's stands for it");
    // Each of several is looked at: one that has written in this epoch, too, alone on another member.
    cluster.isolate(3, true);
    let put = Op::Write { mutation: Mutation::put("again", "3") };
    let own = cluster.ask(3, request("n", put)).await.unwrap().meta.token.unwrap();
    let lacking = cluster.ask(1, show(&[&alone, &own])).await;
    assert!(matches!(lacking, Err(Error::TokenNotCovered { .. })), "{lacking:?}");
    cluster.isolate(3, false);
    cluster.reads(1, "n", "again", "3").await;
    assert!(cluster.ask(1, show(&[&alone, &own])).await.is_ok());
    let beyond = Token { seen: vec![(NodeId(3), duet_proto::Hlc(u64::MAX))], ..alone.clone() };
    let lacking = cluster.ask(1, show(&[&beyond, &own])).await;
    assert!(matches!(lacking, Err(Error::TokenNotCovered { .. })), "{lacking:?}");
    let disordered = cluster.ask(1, show(&[&own, &alone])).await;
    assert!(matches!(disordered, Err(Error::InvalidRequest { .. })), "{disordered:?}");
    let ahead = cluster.ask(1, with(&Token { epoch: Epoch(9), ..alone })).await;
    assert_eq!(ahead, Err(Error::NamespaceNotFound { name: name("n") }), "it is of another one");
}
