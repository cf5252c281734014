//! Eventual namespaces by the same calls: on every side of a partition, through changes of their members, to their end.

use std::time::Duration;

use duet_proto::{Admin, Error, Expect, Mode, Mutation, NamespaceInfo, NodeId, Op, Phase, QuorumHealth, Response};

use super::harness::{Cluster, name};

fn copies(namespace: &str, copies: u32) -> Admin {
    Admin::SetCopies { name: name(namespace), copies }
}

/// Waits until a change of members has come to its end.
async fn settled(cluster: &Cluster, at: u32, namespace: &str) -> NamespaceInfo {
    let seen = || cluster.nodes[&at].router.topology().namespaces;
    let stable =
        |infos: &[NamespaceInfo]| infos.iter().any(|i| i.name == name(namespace) && i.phase == Phase::Stable);
    cluster.until(|c| stable(&c.nodes[&at].router.topology().namespaces)).await;
    seen().into_iter().find(|info| info.name == name(namespace)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_same_calls_reach_the_engine_of_the_mode() {
    let cluster = Cluster::start(3).await;
    let info = cluster.create_eventual(1, "e", &[1, 2], 2).await;
    assert_eq!((info.mode, info.copies, info.leader), (Mode::Eventual, 2, None));
    cluster.put(1, "e", "k", "v").await;
    assert_eq!(cluster.get(1, "e", "k").await, Ok(Some("v".into())));
    assert_eq!(cluster.get(2, "e", "k").await, Ok(Some("v".into())), "two copies were asked for");
    match cluster.get(3, "e", "k").await {
        Err(Error::NotHere { members }) => assert_eq!(members.len(), 2),
        other => panic!("{other:?}"),
    }
    let compare = Op::CompareAndSet { expect: Expect::Absent, mutation: Mutation::put("k", "w") };
    let refused = cluster.call(1, "e", compare).await;
    assert!(matches!(refused, Err(Error::Unsupported { mode: Mode::Eventual, .. })), "{refused:?}");

    cluster.create(1, "s", &[]).await.unwrap();
    cluster.put(1, "s", "k", "strong").await;
    let statuses = cluster.nodes[&1].router.status().await;
    let said: Vec<_> =
        statuses.iter().map(|s| (s.name.as_str(), s.mode, s.quorum == QuorumHealth::NotNeeded)).collect();
    let all = [("_system", Mode::Strong, false), ("e", Mode::Eventual, true), ("s", Mode::Strong, false)];
    assert_eq!(said, all);

    let delete = Admin::DeleteNamespace { name: name("e") };
    assert_eq!(cluster.admin(2, delete).await, Ok(Response::Done));
    cluster.until(|c| (1..=3).all(|at| !c.holds(at, &info))).await;
    assert_eq!(cluster.get(1, "e", "k").await, Err(Error::NamespaceNotFound { name: name("e") }));
    cluster.create_eventual(3, "e", &[], 1).await;
    assert_eq!(cluster.get(3, "e", "k").await, Ok(None), "another namespace of the same name");
}

#[tokio::test(start_paused = true)]
async fn an_isolated_node_goes_on_also_after_a_restart() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "e", &[], 1).await;
    cluster.create(1, "s", &[]).await.unwrap();
    for at in 1..=3 {
        cluster.put(at, "e", &format!("k{at}"), "before").await;
    }
    cluster.put(1, "s", "k", "strong").await;
    cluster.isolate(3, true);
    cluster.put(3, "e", "k3", "alone").await;
    cluster.put(1, "e", "k1", "with others").await;
    cluster.crash(3);
    cluster.run(3);
    // At once: nothing has been heard from anybody.
    assert_eq!(cluster.get(3, "e", "k3").await, Ok(Some("alone".into())));
    cluster.put(3, "e", "l3", "after the restart").await;
    let strong = cluster.get(3, "s", "k").await;
    assert!(matches!(strong, Err(Error::NoQuorum { .. })), "{strong:?}");
    assert!(!cluster.nodes[&3].router.ready());
    cluster.isolate(3, false);
    cluster.ready(3).await;
    for at in 1..=3 {
        cluster.reads(at, "e", "k1", "with others").await;
        cluster.reads(at, "e", "k3", "alone").await;
        cluster.reads(at, "e", "l3", "after the restart").await;
    }
}

#[tokio::test(start_paused = true)]
async fn members_change_in_two_phases() {
    let mut cluster = Cluster::start(4).await;
    let info = cluster.create_eventual(1, "e", &[1, 2, 3], 1).await;
    for n in 0..50 {
        cluster.put(1 + n % 3, "e", &format!("k{n}"), "v").await;
    }
    // What 3 alone has acknowledged must outlive its membership.
    cluster.isolate(3, true);
    cluster.put(3, "e", "alone", "v").await;
    cluster.set_members(1, "e", &[1, 2, 4]).await.unwrap();
    cluster.reads(4, "e", "k0", "v").await;
    cluster.put(4, "e", "new", "v").await;
    let removal = cluster.admin(1, Admin::RemoveNode { node: NodeId(3) }).await;
    assert!(matches!(removal, Err(Error::InvalidRequest { .. })), "{removal:?}");
    assert!(cluster.holds(3, &info));
    cluster.isolate(3, false);
    let now = settled(&cluster, 1, "e").await;
    assert_eq!(now.members, [NodeId(1), NodeId(2), NodeId(4)]);
    cluster.until(|c| !c.holds(3, &info)).await;
    for at in [1, 2, 4] {
        assert_eq!(cluster.get(at, "e", "alone").await, Ok(Some("v".into())), "held by every member at the end");
        cluster.reads(at, "e", "new", "v").await;
    }
    assert!(matches!(cluster.get(3, "e", "k0").await, Err(Error::NotHere { .. })));
    assert_eq!(cluster.admin(1, Admin::RemoveNode { node: NodeId(3) }).await, Ok(Response::Done));
    cluster.crash(3);
}

#[tokio::test(start_paused = true)]
async fn a_change_survives_the_crash_of_everybody_at_every_step() {
    for after_ms in [0, 3, 20, 60, 120, 250, 500] {
        let mut cluster = Cluster::start(4).await;
        let info = cluster.create_eventual(1, "e", &[1, 2, 3], 2).await;
        for n in 0..20 {
            cluster.put(1 + n % 3, "e", &format!("k{n}"), "v").await;
        }
        cluster.set_members(1, "e", &[2, 3, 4]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        (1..=4).for_each(|id| cluster.crash(id));
        (1..=4).for_each(|id| cluster.run(id));
        for id in 1..=4 {
            cluster.ready(id).await;
        }
        let now = settled(&cluster, 2, "e").await;
        assert_eq!(now.members, [NodeId(2), NodeId(3), NodeId(4)]);
        cluster.until(|c| !c.holds(1, &info)).await;
        for at in 2..=4 {
            for n in 0..20 {
                assert_eq!(cluster.get(at, "e", &format!("k{n}")).await, Ok(Some("v".into())));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_never_comes_is_given_up() {
    let mut cluster = Cluster::start(4).await;
    let info = cluster.create_eventual(1, "e", &[1, 2, 3], 1).await;
    cluster.put(1, "e", "k", "v").await;
    cluster.crash(4);
    let filling = cluster.set_members(1, "e", &[1, 2, 4]).await.unwrap();
    assert_eq!((filling.phase, filling.members.len()), (Phase::Moving, 3));
    cluster.put(3, "e", "l", "3 is a member until 4 has a copy").await;
    let back = cluster.set_members(2, "e", &[1, 2, 3]).await.unwrap();
    assert_eq!(back.phase, Phase::Stable, "nothing is owed to anybody");
    cluster.run(4);
    cluster.ready(4).await;
    assert!(!cluster.holds(4, &info));
    cluster.put(3, "e", "k", "w").await;
    cluster.reads(1, "e", "k", "w").await;
}

#[tokio::test(start_paused = true)]
async fn copies_can_be_changed() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_eventual(1, "e", &[], 1).await;
    cluster.put(1, "e", "k", "v").await;
    let asked = cluster.info(2, copies("e", 3)).await.unwrap();
    assert_eq!(asked.copies, 3);
    settled(&cluster, 1, "e").await;
    cluster.put(1, "e", "k", "three").await;
    for at in 1..=3 {
        assert_eq!(cluster.get(at, "e", "k").await, Ok(Some("three".into())));
    }
    cluster.crash(3);
    let op = Op::Write { mutation: Mutation::put("k", "two") };
    let lacking = cluster.call(1, "e", op).await;
    assert_eq!(lacking, Err(Error::NotEnoughCopies { have: 2, need: 3 }));
    cluster.info(2, copies("e", 2)).await.unwrap();
    cluster.put(1, "e", "k", "two are enough").await;
    cluster.run(3);
    settled(&cluster, 3, "e").await;
    cluster.reads(3, "e", "k", "two are enough").await;
    let strong = cluster.create(1, "s", &[]).await.unwrap();
    assert_eq!(strong.copies, 1);
    assert_eq!(cluster.info(1, copies("s", 2)).await.unwrap().copies, 2);
    assert!(matches!(cluster.info(1, copies("s", 4)).await, Err(Error::InvalidRequest { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_away_drops_a_deleted_namespace() {
    let mut cluster = Cluster::start(3).await;
    let info = cluster.create_eventual(1, "gone", &[], 1).await;
    cluster.put(3, "gone", "k", "v").await;
    cluster.crash(3);
    assert_eq!(cluster.admin(1, Admin::DeleteNamespace { name: name("gone") }).await, Ok(Response::Done));
    cluster.run(3);
    cluster.until(|c| !c.holds(3, &info)).await;
    assert_eq!(cluster.get(3, "gone", "k").await, Err(Error::NamespaceNotFound { name: name("gone") }));
}
