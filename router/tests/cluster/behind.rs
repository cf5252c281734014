//! A namespace goes from one mode to the other while a member is behind, away, or cannot read what it has.

use std::time::Duration;

use duet_proto::{Admin, Epoch, LateState, Mode, NodeId, Response};
use duet_store::layout::namespace_key;
use tokio::time::{Instant, sleep};

use super::{
    harness::{Cluster, name},
    switch::{agree, ask, delete, replica, show, switched},
};

/// One whose third member holds what nobody else has, and was left out of the switch to strong: it is owed epoch 1.
async fn left_out(key: &str) -> Cluster {
    let cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 1).await;
    cluster.put(1, "n", "a", "1").await;
    cluster.reads(3, "n", "a", "1").await;
    cluster.isolate(3, true);
    cluster.put(3, "n", key, "late").await;
    ask(&cluster, 1, Mode::Strong, &[3]).await;
    switched(&cluster, &[1, 2], Mode::Strong).await;
    cluster
}

/// Deletes a key and waits until the group has forgotten that; then there is another strong epoch, and the third member, still
/// away, is owed what it may hold of the eventual one between.
async fn owed_anew(cluster: &Cluster, key: &str) {
    delete(cluster, 1, key).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while replica(cluster, 1).await.tombstones + replica(cluster, 2).await.tombstones > 0 {
        assert!(Instant::now() < deadline, "tombstones are kept");
        sleep(Duration::from_millis(10)).await;
    }
    ask(cluster, 1, Mode::Eventual, &[]).await;
    switched(cluster, &[1, 2], Mode::Eventual).await;
    ask(cluster, 1, Mode::Strong, &[3]).await;
    switched(cluster, &[1, 2], Mode::Strong).await;
    assert_eq!(cluster.get(1, "n", key).await, Ok(None));
    assert_eq!(show(cluster, 1).await.owed, [(NodeId(3), Epoch(3))]);
}

/// Waits until nothing is owed any more, and says what has become of the third member's late writes.
async fn settled(cluster: &Cluster) -> Vec<LateState> {
    let done = |cluster: &Cluster, at: u32| {
        let view = cluster.nodes[&at].router.view();
        view.namespace(&name("n")).is_some_and(|entry| entry.record.epoch == Epoch(4) && entry.record.owed.is_empty())
    };
    cluster.until(|cluster| (1..=3).all(|at| done(cluster, at))).await;
    agree(cluster, &[1, 2, 3]).await;
    let Response::Late(late) = cluster.admin(3, Admin::ListLate { name: name("n"), limit: 100 }).await.unwrap()
    else {
        panic!("no list of late writes");
    };
    late.iter().map(|late| late.state).collect()
}

/// An operator has given up what a member had of epoch 1. In epoch 4 it is waited for again, for epoch 3.
#[tokio::test(start_paused = true)]
async fn what_was_forgotten_does_not_come_back_with_a_later_list() {
    let cluster = left_out("k").await;
    cluster.info(1, Admin::Forget { name: name("n"), node: NodeId(3) }).await.unwrap();
    owed_anew(&cluster, "k").await;
    cluster.isolate(3, false);
    assert_eq!(settled(&cluster).await, [LateState::Refused]);
    assert_eq!(cluster.get(1, "n", "k").await, Ok(None), "a delete is undone");
}

/// The member has brought what it had of epoch 1, and died before it had noted that.
#[tokio::test(start_paused = true)]
async fn what_was_brought_is_not_brought_again_two_epochs_later() {
    let mut cluster = left_out("k").await;
    cluster.isolate(3, false);
    let taken = |cluster: &Cluster| {
        let view = cluster.nodes[&1].router.view();
        view.namespace(&name("n")).is_some_and(|entry| entry.record.owed.is_empty())
    };
    while !taken(&cluster) {
        sleep(Duration::from_micros(50)).await;
    }
    cluster.crash(3);
    cluster.reads(1, "n", "k", "late").await;
    owed_anew(&cluster, "k").await;
    cluster.run(3);
    cluster.ready(3).await;
    assert_eq!(settled(&cluster).await, [LateState::Brought]);
    assert_eq!(cluster.get(1, "n", "k").await, Ok(None), "a delete is undone");
}

/// A member cannot read the state of its replica (an I/O error, say) when the epoch ends, and can after its next start.
#[tokio::test(start_paused = true)]
async fn a_failed_replica_is_not_built_over_while_its_late_writes_are_owed() {
    let mut cluster = Cluster::start(3).await;
    let info = cluster.create_eventual(1, "n", &[], 1).await;
    cluster.put(1, "n", "a", "1").await;
    cluster.reads(3, "n", "a", "1").await;
    cluster.isolate(3, true);
    cluster.put(3, "n", "alone", "late").await;
    sleep(Duration::from_secs(1)).await;
    let state = namespace_key(info.id, 0x20, &info.epoch.0.to_be_bytes());
    cluster.crash(3);
    cluster.damage(3, &state);
    cluster.run(3);
    cluster.isolate(3, false);
    cluster.ready(3).await;
    ask(&cluster, 1, Mode::Strong, &[3]).await;
    switched(&cluster, &[1, 2, 3], Mode::Strong).await;
    cluster.put(1, "n", "b", "2").await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(show(&cluster, 1).await.owed, [(NodeId(3), Epoch(1))]);
    cluster.crash(3);
    cluster.damage(3, &state);
    cluster.run(3);
    cluster.ready(3).await;
    for at in 1..=3 {
        cluster.reads(at, "n", "alone", "late").await;
        cluster.reads(at, "n", "b", "2").await;
    }
    agree(&cluster, &[1, 2, 3]).await;
}

/// The same, but an operator gives up what it may hold: it begins anew.
#[tokio::test(start_paused = true)]
async fn a_failed_replica_that_is_forgotten_begins_anew() {
    let mut cluster = Cluster::start(3).await;
    let info = cluster.create_eventual(1, "n", &[], 1).await;
    cluster.put(1, "n", "a", "1").await;
    cluster.reads(3, "n", "a", "1").await;
    cluster.crash(3);
    cluster.damage(3, &namespace_key(info.id, 0x20, &info.epoch.0.to_be_bytes()));
    cluster.run(3);
    cluster.ready(3).await;
    ask(&cluster, 1, Mode::Strong, &[3]).await;
    switched(&cluster, &[1, 2, 3], Mode::Strong).await;
    cluster.info(1, Admin::Forget { name: name("n"), node: NodeId(3) }).await.unwrap();
    cluster.put(1, "n", "b", "2").await;
    agree(&cluster, &[1, 2, 3]).await;
}

/// Puts what takes a while to copy, while the third member is away.
async fn much(cluster: &Cluster) {
    let value = "v".repeat(16 << 10);
    for n in 0..4000 {
        cluster.put(1 + n % 2, "n", &format!("k{n}"), &value).await;
    }
}

/// The longest that a write takes while `on`.
async fn longest(cluster: &Cluster, mut on: impl FnMut(&Cluster) -> bool) -> Duration {
    let mut longest = Duration::ZERO;
    while on(cluster) {
        let began = Instant::now();
        cluster.put(1, "n", "a", "2").await;
        longest = longest.max(began.elapsed());
        sleep(Duration::from_millis(1)).await;
    }
    longest
}

fn is_eventual(cluster: &Cluster) -> bool {
    cluster.nodes[&1].router.view().namespace(&name("n")).unwrap().record.mode == Mode::Eventual
}

/// Writes go on until a member that has just started, or was cut off, has what it missed: before it was told of that, it is
/// not near.
#[tokio::test(start_paused = true)]
async fn who_does_not_know_yet_what_it_lacks_is_not_near() {
    for crashes in [true, false] {
        let mut cluster = Cluster::start(3).await;
        cluster.create_eventual(1, "n", &[], 1).await;
        cluster.put(1, "n", "a", "1").await;
        agree(&cluster, &[1, 2, 3]).await;
        if crashes {
            cluster.crash(3)
        } else {
            cluster.isolate(3, true)
        }
        much(&cluster).await;
        ask(&cluster, 1, Mode::Strong, &[]).await;
        sleep(Duration::from_secs(2)).await;
        if crashes {
            cluster.run(3)
        } else {
            cluster.isolate(3, false)
        }
        let longest = longest(&cluster, is_eventual).await;
        assert!(longest <= Duration::from_millis(50), "{longest:?}, crashes: {crashes}");
    }
}

/// Who was near and is away by now is not near.
#[tokio::test(start_paused = true)]
async fn who_was_near_once_is_asked_again() {
    let cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 1).await;
    cluster.put(1, "n", "a", "1").await;
    agree(&cluster, &[1, 2, 3]).await;
    cluster.isolate(3, true);
    ask(&cluster, 1, Mode::Strong, &[]).await;
    sleep(Duration::from_secs(3)).await;
    // Another one goes away, and stays away; then the first comes back.
    cluster.isolate(2, true);
    sleep(Duration::from_secs(5)).await;
    cluster.isolate(3, false);
    let until = Instant::now() + Duration::from_secs(10);
    let longest = longest(&cluster, |_| Instant::now() < until).await;
    assert!(is_eventual(&cluster) && longest <= Duration::from_millis(50), "{longest:?}");
}

/// A strong namespace's copies count when it is switched: it is never left with fewer members than that.
#[tokio::test(start_paused = true)]
async fn members_of_a_strong_one_can_give_its_copies() {
    let cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "n", &[], 3).await;
    cluster.put(1, "n", "a", "1").await;
    ask(&cluster, 1, Mode::Strong, &[]).await;
    switched(&cluster, &[1, 2, 3], Mode::Strong).await;
    let refused = cluster.set_members(1, "n", &[1, 2]).await.unwrap_err();
    assert_eq!(refused.code(), "invalid_request", "{refused}");
    cluster.info(1, Admin::SetCopies { name: name("n"), copies: 2 }).await.unwrap();
    cluster.set_members(1, "n", &[1, 2]).await.unwrap();
    let moved = |cluster: &Cluster| {
        let view = cluster.nodes[&1].router.view();
        view.namespace(&name("n")).is_some_and(|entry| entry.record.members.len() == 2)
    };
    cluster.until(moved).await;
    ask(&cluster, 1, Mode::Eventual, &[]).await;
    switched(&cluster, &[1, 2], Mode::Eventual).await;
    assert_eq!(show(&cluster, 1).await.namespace.copies, 2);
    cluster.put(1, "n", "a", "3").await;
}
