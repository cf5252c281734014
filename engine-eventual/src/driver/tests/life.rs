//! Replicas and engines that come, fail and go.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_crash_loses_nothing_acknowledged() {
    for seed in 0..10 {
        let mut cluster = three(2).await;
        for i in 0..60 {
            cluster.put(1 + i % 3, &format!("k{i}"), "v").await.unwrap();
        }
        let disks: Vec<_> = (1..=3).map(|id| (id, cluster.crash(id, seed + u64::from(id)))).collect();
        for (id, disk) in disks {
            cluster.restart(id, disk);
        }
        cluster.settle(&[1, 2, 3]).await;
        for i in 0..60 {
            assert_eq!(cluster.get(1 + i % 3, &format!("k{i}")).await.unwrap().unwrap(), "v");
        }
        cluster.put(1, "k", "v").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_down_catches_up() {
    let mut cluster = three(1).await;
    cluster.put(1, "k", "v").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    let disk = cluster.crash(3, 1);
    for i in 0..2000 {
        cluster.put(1 + i % 2, &format!("k{i}"), vec![b'x'; 1000]).await.unwrap();
    }
    cluster.restart(3, disk);
    cluster.settle(&[1, 2, 3]).await;
    assert_eq!(cluster.status(3).await.keys, 2001);
    assert!(cluster.status(3).await.eventual.unwrap().sessions >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_member_is_copied_to_while_writes_go_on() {
    let mut cluster = three(2).await;
    for i in 0..1500 {
        cluster.put(1 + i % 3, &format!("k{i}"), vec![b'x'; 1000]).await.unwrap();
    }
    cluster.boot(4, MemoryStore::new(), 1);
    let four = members(2, &[1, 2, 3, 4], 2);
    cluster.handle(4).create(spec(1, Start::Joining, four.clone())).await.unwrap();
    assert!(matches!(cluster.get(4, "k1").await, Err(Error::Unavailable { .. })), "before its first copy");
    assert!(matches!(cluster.put(4, "k1", "v").await, Err(Error::Unavailable { .. })));
    for id in [1, 2, 3] {
        cluster.handle(id).set_members(ID, four.clone()).await.unwrap();
        cluster.handle(id).set_members(ID, members(1, &[9], 1)).await.unwrap();
        let info = cluster.handle(id).space(ID).unwrap();
        assert_eq!((info.version, info.failed), (2, None), "an older version is ignored");
    }
    for i in 0..300 {
        cluster.put(1 + i % 3, &format!("more{i}"), "v").await.unwrap();
    }
    cluster.settle(&[1, 2, 3, 4]).await;
    assert_eq!(cluster.get(4, "more299").await.unwrap().unwrap(), "v");
    cluster.put(4, "k", "v").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let standing = cluster.handle(1).standing(ID).await.unwrap();
    assert_eq!((standing.version, standing.whole), (2, true));
    assert_eq!(standing.others.keys().map(|n| n.0).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(standing.others.values().all(|(version, frontier)| *version == 2 && *frontier == standing.frontier));
    assert!(standing.frontier.covers(&standing.moved) && standing.frontier != standing.moved);
}

#[tokio::test(start_paused = true)]
async fn a_removed_replica_leaves_nothing() {
    let cluster = three(1).await;
    cluster.found(2, &[1, 2, 3], 1).await;
    for i in 0..50 {
        cluster.put(1, &format!("k{i}"), "v").await.unwrap();
    }
    cluster.delete(1, "k1").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    let handle = cluster.handle(1);
    // Also while a write is on its way to the disk.
    let late = cluster.handle(1);
    let call = Call { op: put_op("late", "v"), token: None };
    let late = tokio::spawn(async move { late.call(NS, E1, call, in_seconds(5)).await });
    tokio::task::yield_now().await;
    let (removed, again) = tokio::join!(handle.remove(ID), handle.remove(ID));
    assert_eq!((removed, again), (Ok(()), Ok(())));
    assert!(late.await.unwrap().is_err());
    assert_eq!(handle.remove(ID).await, Ok(()), "there is none");
    assert!(handle.space(ID).is_none() && handle.standing(ID).await.is_none());
    assert_eq!(cluster.get(1, "k1").await, Err(Error::NotHere { members: Vec::new() }));
    let (from, to) = layout::prefix_range(layout::namespace_prefix(NS));
    let view: &dyn duet_store::View = &*cluster.nodes[&1].store;
    assert_eq!(cluster.nodes[&1].store.unsynced(), 0);
    for family in [Family::Data, Family::Origin, Family::Namespace] {
        assert_eq!(view.scan(family, &from, Some(&to)).unwrap().count(), 0, "{family:?}");
    }
    assert_eq!(handle.spaces().len(), 1, "the other namespace is there");
    handle.create(spec(1, Start::Joining, members(2, &[1, 2, 3], 1))).await.unwrap();
    assert_eq!(handle.spaces().len(), 2);
    let other = SpaceSpec { epoch: Epoch(2), ..spec(1, Start::Founder, members(1, &[1], 1)) };
    assert!(matches!(handle.create(other).await, Err(SpaceError::Invalid { .. })));
}

#[tokio::test(start_paused = true)]
async fn creating_twice_is_creating_once() {
    let mut cluster = Cluster::start(&[1], |_| {});
    let handle = cluster.handle(1);
    let one = spec(1, Start::Founder, members(1, &[1], 1));
    let (first, second) = tokio::join!(handle.create(one.clone()), handle.create(one.clone()));
    assert_eq!((first, second), (Ok(()), Ok(())));
    cluster.put(1, "k", "v").await.unwrap();
    handle.create(one).await.unwrap();
    assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), "v");
    let disk = cluster.crash(1, 1);
    cluster.restart(1, disk);
    let info = cluster.handle(1).space(ID).unwrap();
    assert_eq!((info.name.as_str(), info.version, info.whole), ("ns1", 1, true));
    assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), "v");
}

#[tokio::test(start_paused = true)]
async fn damage_stops_one_replica_and_no_other() {
    let mut cluster = three(1).await;
    cluster.found(2, &[1, 2, 3], 1).await;
    cluster.put(1, "k", "v").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    let disk = cluster.crash(2, 1);
    assert!(disk.0.damage(Family::Namespace, &crate::rows::meta_key(NS, E1)));
    cluster.restart(2, disk);
    let handle = cluster.handle(2);
    assert!(handle.space(ID).unwrap().failed.unwrap().contains("checksum"));
    assert!(matches!(cluster.get(2, "k").await, Err(Error::Unavailable { .. })));
    assert!(matches!(cluster.put(2, "k", "v").await, Err(Error::Unavailable { .. })));
    assert!(matches!(handle.set_members(ID, members(2, &[1], 1)).await, Err(SpaceError::Failed { .. })));
    assert_eq!(cluster.status(2).await.role, duet_proto::GroupRole::Failed);
    let call = Call { op: put_op("k", "v"), token: None };
    handle.call(NamespaceId(2), E1, call, in_seconds(5)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let metrics = handle.metrics();
    assert!((metrics.failed, metrics.spaces) == (1, 2) && metrics.unknown > 0, "{metrics:?}");
    // An operator removes it; then it joins.
    handle.remove(ID).await.unwrap();
    assert_eq!(handle.metrics().failed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_ends_the_engine() {
    let mut cluster = three(1).await;
    cluster.nodes[&1].store.fail(duet_store::memory::Fault::Sync);
    let result = cluster.put(1, "k", "v").await;
    assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "{result:?}");
    let node = cluster.nodes.remove(&1).unwrap();
    let error = node.task.await.unwrap();
    assert!(error != StoreError::Closed && node.committer.failure().is_some(), "{error}");
    assert!(matches!(
        node.handle.create(spec(5, Start::Founder, members(1, &[1], 1))).await,
        Err(SpaceError::Stopped)
    ));
    cluster.put(2, "k", "w").await.unwrap();
    assert_eq!(cluster.get(3, "k").await.unwrap_or_default(), None, "nothing unsynced was pushed");
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_what_is_on_its_way_arrive() {
    let mut cluster = three(3).await;
    cluster.isolate(3);
    let handle = cluster.handle(1);
    let call = Call { op: put_op("k", "v"), token: None };
    let write = tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(5)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.handle(1).shutdown().await;
    let result = write.await.unwrap();
    assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "it waited for copies: {result:?}");
    let node = cluster.nodes.remove(&1).unwrap();
    assert_eq!(node.task.await.unwrap(), StoreError::Closed);
    node.handle.shutdown().await;
    assert_eq!(node.handle.statuses().await, []);
    cluster.restart(1, (node.store.crash(1), 1));
    cluster.heal();
    assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), "v");
    cluster.settle(&[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_on_its_way_at_the_end_is_answered() {
    let mut cluster = Cluster::start(&[], |_| {});
    cluster.latency = Duration::from_millis(1500);
    cluster.boot(1, MemoryStore::new(), 1);
    cluster.found(1, &[1], 1).await;
    let calls = [put_op("k", "v"), put_op("late", "v")].map(|op| {
        let handle = cluster.handle(1);
        async move { handle.call(NS, E1, Call { op, token: None }, in_seconds(20)).await }
    });
    let [first, late] = calls;
    let first = tokio::spawn(first);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let late = tokio::spawn(late);
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.handle(1).shutdown().await;
    assert!(first.await.unwrap().is_ok(), "its sync came");
    assert!(matches!(late.await.unwrap(), Err(Error::Unavailable { .. })), "it was never begun");
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_messages_are_counted() {
    let cluster = three(1).await;
    let inlet = cluster.inlets.lock().unwrap()[&1].clone();
    for bytes in [&b""[..], &[9], &[1, 7, 0, 0, 0, 1], &[1, 1, 0, 0, 0, 99], &[1, 3, 0, 0, 0, 1, 1, 1]] {
        inlet.send((NodeId(2), Bytes::copy_from_slice(bytes))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.handle(1).metrics().malformed, 5);
    cluster.put(1, "k", "v").await.unwrap();
}
