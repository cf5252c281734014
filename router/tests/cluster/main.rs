//! Whole routers over three in-memory engines: administration, requests by name, moves, crashes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod behind;
mod eventual;
mod harness;
mod switch;

use duet_proto::{Admin, Boot, Error, Expect, GroupRole, KeyRange, Mutation, NodeId, Op, Phase, Response, ScanLimit};
use harness::{Cluster, name};

#[tokio::test(start_paused = true)]
async fn namespaces_are_created_listed_shown_and_deleted() {
    let cluster = Cluster::start(3).await;
    let info = cluster.create(1, "orders", &[]).await.unwrap();
    assert_eq!(info.members, [NodeId(1), NodeId(2), NodeId(3)]);
    assert_eq!(cluster.create(2, "orders", &[]).await, Err(Error::NamespaceExists { name: name("orders") }));
    for at in 1..=3 {
        assert_eq!(cluster.names(at).await, ["_system", "orders"], "a list is as new as the catalog, anywhere");
    }
    match cluster.admin(3, Admin::ShowNamespace { name: name("orders") }).await {
        Ok(Response::Namespace(shown)) => assert_eq!((shown.id, shown.phase), (info.id, Phase::Stable)),
        other => panic!("{other:?}"),
    }
    cluster.put(1, "orders", "k", "v").await;
    assert_eq!(cluster.admin(3, Admin::DeleteNamespace { name: name("orders") }).await, Ok(Response::Done));
    assert_eq!(cluster.names(2).await, ["_system"]);
    let gone = Error::NamespaceNotFound { name: name("orders") };
    assert_eq!(cluster.get(3, "orders", "k").await, Err(gone.clone()));
    assert_eq!(cluster.admin(1, Admin::DeleteNamespace { name: name("orders") }).await, Err(gone));
    cluster.until(|c| (1..=3).all(|at| !c.holds(at, &info))).await;
    let again = cluster.create(2, "orders", &[]).await.unwrap();
    assert!(again.id > info.id);
    assert_eq!(cluster.get(2, "orders", "k").await, Ok(None), "another namespace of the same name");
}

#[tokio::test(start_paused = true)]
async fn requests_find_their_replica_by_name() {
    let cluster = Cluster::start(3).await;
    let info = cluster.create(1, "ab", &[1, 2]).await.unwrap();
    cluster.put(1, "ab", "k", "v").await;
    assert_eq!(cluster.get(2, "ab", "k").await, Ok(Some("v".into())));
    match cluster.get(3, "ab", "k").await {
        Err(Error::NotHere { members }) => {
            assert_eq!(
                members.iter().map(|(node, _)| node.0).collect::<std::collections::BTreeSet<_>>(),
                [1, 2].into()
            );
            assert!(members.iter().all(|(node, address)| *address == format!("node{node}:7000")));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(cluster.get(3, "nope", "k").await, Err(Error::NamespaceNotFound { name: name("nope") }));
    let large = Op::Get { key: vec![b'k'; 5000].into() };
    assert!(matches!(cluster.call(1, "ab", large).await, Err(Error::TooLarge { .. })));

    let topology = cluster.nodes[&1].router.topology();
    assert_eq!(
        topology.nodes.iter().map(|node| (node.id.0, node.boot.0)).collect::<Vec<_>>(),
        [(1, 1), (2, 1), (3, 1)]
    );
    let seen = topology.namespaces.iter().find(|namespace| namespace.id == info.id).unwrap();
    assert!(seen.leader.is_some_and(|leader| info.members.contains(&leader)));
    let status = cluster.nodes[&1].router.status().await;
    let status = status.iter().find(|status| status.id == info.id).unwrap();
    assert_eq!((status.name.clone(), status.phase), (name("ab"), Phase::Stable));
    assert!(matches!(status.role, GroupRole::Leader | GroupRole::Follower));
    let peers = cluster.nodes[&2].peers.lock().unwrap().clone();
    assert_eq!(peers, [(NodeId(1), "node1:7000".into()), (NodeId(3), "node3:7000".into())].into());
}

#[tokio::test(start_paused = true)]
async fn the_catalog_is_read_but_not_written_by_requests() {
    let cluster = Cluster::start(1).await;
    let scan = Op::Scan { range: KeyRange::all(), limit: ScanLimit::default(), cursor: None };
    assert!(cluster.call(1, "_system", scan).await.is_ok());
    let mutation = Mutation::delete("n/0000000001");
    for op in [
        Op::Write { mutation: mutation.clone() },
        Op::CompareAndSet { expect: Expect::Present, mutation: mutation.clone() },
        Op::Transaction { compares: vec![], then: vec![mutation], otherwise: vec![], reads: vec![] },
    ] {
        assert!(matches!(cluster.call(1, "_system", op).await, Err(Error::InvalidRequest { .. })));
    }
    let delete = Admin::DeleteNamespace { name: name("_system") };
    assert!(matches!(cluster.admin(1, delete).await, Err(Error::InvalidRequest { .. })));
}

#[tokio::test(start_paused = true)]
async fn of_creates_that_race_one_wins() {
    let cluster = Cluster::start(3).await;
    let names: Vec<_> = (0..8).map(|n| format!("n{n}")).collect();
    let mut ids = std::collections::BTreeSet::new();
    for name in &names {
        let (a, b, c) =
            tokio::join!(cluster.create(1, name, &[]), cluster.create(2, name, &[]), cluster.create(3, name, &[]));
        let (won, lost): (Vec<_>, Vec<_>) = [a, b, c].into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 2), "{won:?} {lost:?}");
        assert!(lost.iter().all(|lost| matches!(lost, Err(Error::NamespaceExists { .. }))), "{lost:?}");
        assert!(ids.insert(won[0].as_ref().unwrap().id));
    }
    for name in &names {
        cluster.put(1, name, "k", name).await;
        assert_eq!(cluster.get(3, name, "k").await, Ok(Some(name.clone())));
    }
}

#[tokio::test(start_paused = true)]
async fn members_move_with_their_data() {
    let mut cluster = Cluster::start(3).await;
    let info = cluster.create(1, "m", &[1, 2]).await.unwrap();
    for n in 0..50 {
        cluster.put(1, "m", &format!("k{n}"), "v").await;
    }
    let moved = Admin::SetMembers { name: name("m"), members: vec![NodeId(2), NodeId(3)] };
    assert!(matches!(cluster.admin(1, moved.clone()).await, Ok(Response::Namespace(_))));
    cluster.until(|c| !c.holds(1, &info) && c.holds(3, &info)).await;
    match cluster.admin(2, Admin::ShowNamespace { name: name("m") }).await {
        Ok(Response::Namespace(now)) => {
            assert_eq!((now.members, now.phase), (vec![NodeId(2), NodeId(3)], Phase::Stable));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(cluster.get(1, "m", "k0").await, Err(Error::NotHere { .. })));
    assert_eq!(cluster.get(3, "m", "k49").await, Ok(Some("v".into())));
    // Back again: node 1 comes blank.
    let back = Admin::SetMembers { name: name("m"), members: vec![NodeId(1), NodeId(2), NodeId(3)] };
    cluster.admin(3, back).await.unwrap();
    cluster
        .until(|c| c.nodes[&2].engine.group(info.id, info.epoch).is_some_and(|group| group.voters.len() == 3))
        .await;
    cluster.crash(2);
    cluster.put(1, "m", "after", "w").await;
    assert_eq!(cluster.get(3, "m", "after").await, Ok(Some("w".into())));
}

#[tokio::test(start_paused = true)]
async fn everything_is_there_after_a_crash_of_all() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(1, "keep", &[]).await.unwrap();
    cluster.put(1, "keep", "k", "v").await;
    (1..=3).for_each(|id| cluster.crash(id));
    (1..=3).for_each(|id| cluster.run(id));
    for id in 1..=3 {
        cluster.ready(id).await;
        assert_eq!(cluster.names(id).await, ["_system", "keep"]);
    }
    cluster.put(2, "keep", "l", "w").await;
    assert_eq!(cluster.get(3, "keep", "k").await, Ok(Some("v".into())));
    let boots: Vec<_> = cluster.nodes[&1].router.topology().nodes.iter().map(|node| node.boot).collect();
    assert_eq!(boots, [Boot(2), Boot(2), Boot(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_away_drops_what_was_deleted() {
    let mut cluster = Cluster::start(3).await;
    let info = cluster.create(1, "gone", &[]).await.unwrap();
    cluster.until(|c| (1..=3).all(|at| c.holds(at, &info))).await;
    cluster.crash(3);
    assert_eq!(cluster.admin(1, Admin::DeleteNamespace { name: name("gone") }).await, Ok(Response::Done));
    cluster.run(3);
    cluster.until(|c| !c.holds(3, &info)).await;
    assert_eq!(cluster.get(3, "gone", "k").await, Err(Error::NamespaceNotFound { name: name("gone") }));
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_the_catalog_refuses_and_the_view_remains() {
    let mut cluster = Cluster::start(3).await;
    cluster.create(1, "here", &[]).await.unwrap();
    cluster.put(1, "here", "k", "v").await;
    cluster.crash(2);
    cluster.crash(3);
    assert!(matches!(
        cluster.create(1, "more", &[]).await,
        Err(Error::NoQuorum { .. } | Error::OutcomeUnknown { .. })
    ));
    assert!(matches!(cluster.admin(1, Admin::ListNamespaces).await, Err(Error::NoQuorum { .. })));
    assert!(matches!(cluster.get(1, "here", "k").await, Err(Error::NoQuorum { .. })));
    assert_eq!(cluster.nodes[&1].router.topology().namespaces.len(), 2);
    cluster.run(2);
    cluster.ready(2).await;
    assert_eq!(cluster.get(2, "here", "k").await, Ok(Some("v".into())));
}

#[tokio::test(start_paused = true)]
async fn an_old_copy_of_a_disk_is_refused() {
    let mut cluster = Cluster::start(3).await;
    cluster.crash(3);
    cluster.run(3);
    cluster.ready(3).await;
    cluster.crash(3);
    cluster.rewind(3);
    cluster.run(3);
    cluster.until(|c| c.nodes[&3].ended.lock().unwrap().is_some()).await;
    let ended = cluster.nodes[&3].ended.lock().unwrap().clone();
    assert!(matches!(ended, Some(Error::Unavailable { node: NodeId(3), .. })), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn nodes_join_and_leave() {
    let mut cluster = Cluster::start(3).await;
    let added = match cluster.admin(2, Admin::AddNode { address: "node4:7000".into() }).await {
        Ok(Response::Node(info)) => info.id,
        other => panic!("{other:?}"),
    };
    assert_eq!(added, NodeId(4));
    cluster.run(4);
    cluster.ready(4).await;
    let info = cluster.create(4, "new", &[3, 4]).await.unwrap();
    cluster.put(4, "new", "k", "v").await;
    let remove = Admin::RemoveNode { node: added };
    assert!(matches!(cluster.admin(1, remove.clone()).await, Err(Error::InvalidRequest { .. })));
    cluster.admin(1, Admin::SetMembers { name: name("new"), members: vec![NodeId(1), NodeId(3)] }).await.unwrap();
    cluster.until(|c| !c.holds(4, &info)).await;
    assert_eq!(cluster.admin(1, remove).await, Ok(Response::Done));
    cluster.until(|c| (1..=3).all(|at| !c.nodes[&at].peers.lock().unwrap().contains_key(&added))).await;
    assert_eq!(cluster.get(1, "new", "k").await, Ok(Some("v".into())));
}
