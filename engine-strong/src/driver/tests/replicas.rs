//! What befalls replicas: crashes, catching up, snapshots, damage, sleep, and coming and going.

use super::*;
use crate::MembersChange;

#[tokio::test(start_paused = true)]
async fn one_node_alone() {
    let mut cluster = Cluster::start(&[1], |_| {}).await;
    cluster.found(1, &[1]).await;
    cluster.put(1, "k", "v").await.unwrap();
    let disk = cluster.crash(1, 3);
    cluster.restart(1, disk);
    assert_eq!(cluster.get(1, "k").await.unwrap().unwrap(), "v");
}

#[tokio::test(start_paused = true)]
async fn the_leaders_crash_loses_nothing() {
    let (mut cluster, _) = three(|_| {}).await;
    for round in 0..5 {
        let leader = cluster.leader(1).await;
        let [a, b] = others(leader);
        for i in 0..20 {
            cluster.put(leader, &format!("k{i}"), format!("{round}")).await.unwrap();
        }
        let disk = cluster.crash(leader, round);
        let began = Instant::now();
        // Held until there is a new leader.
        cluster.put(a, "after", format!("{round}")).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        for i in 0..20 {
            assert_eq!(cluster.get(b, &format!("k{i}")).await.unwrap().unwrap(), format!("{round}"));
        }
        cluster.restart(leader, disk);
        cluster.settle(&[1, 2, 3]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_catches_up_by_the_log() {
    let (mut cluster, leader) = three(|_| {}).await;
    let [a, _] = others(leader);
    let disk = cluster.crash(a, 1);
    for i in 0..500 {
        cluster.put(leader, &format!("k{i}"), vec![b'x'; 3000]).await.unwrap();
    }
    cluster.restart(a, disk);
    cluster.settle(&[1, 2, 3]).await;
    assert_eq!(cluster.handle(a).metrics().snapshots_installed, 0);
}

#[tokio::test(start_paused = true)]
async fn the_log_goes_when_every_member_has_it_and_stays_for_one_that_lacks_it() {
    let (mut cluster, leader) = three(|_| {}).await;
    let [a, b] = others(leader);
    let rows =
        |cluster: &Cluster, id: u32| cluster.nodes[&id].store.scan(Family::RaftLog, &[], None).unwrap().count();
    for i in 0..100 {
        cluster.put(leader, &format!("k{i}"), vec![b'x'; 500]).await.unwrap();
    }
    cluster.settle(&[1, 2, 3]).await;
    for id in 1..=3 {
        assert!(rows(&cluster, id) <= 3, "node {id} keeps {} entries that every member has", rows(&cluster, id));
    }
    let disk = cluster.crash(a, 1);
    for i in 0..100 {
        cluster.put(leader, &format!("k{i}"), vec![b'y'; 500]).await.unwrap();
    }
    cluster.settle(&[leader, b]).await;
    for id in [leader, b] {
        assert!(rows(&cluster, id) >= 100, "node {id} keeps only {} entries", rows(&cluster, id));
    }
    cluster.restart(a, disk);
    cluster.settle(&[1, 2, 3]).await;
    assert_eq!(cluster.handle(a).metrics().snapshots_installed, 0);
    cluster.put(leader, "last", "z").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    for id in 1..=3 {
        assert!(rows(&cluster, id) <= 3, "node {id} keeps {} entries", rows(&cluster, id));
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_fell_behind_gets_a_snapshot_while_the_group_goes_on() {
    let (mut cluster, leader) = three(small).await;
    let [a, b] = others(leader);
    let disk = cluster.crash(a, 1);
    for i in 0..600 {
        cluster.put(leader, &format!("k{i}"), vec![b'x'; 9000]).await.unwrap();
    }
    cluster.restart(a, disk);
    for i in 0..200 {
        cluster.put(b, &format!("more{i}"), "y").await.unwrap();
    }
    cluster.settle(&[1, 2, 3]).await;
    assert!(cluster.handle(a).metrics().snapshots_installed >= 1);
    assert_eq!(cluster.get(a, "k599").await.unwrap().unwrap().len(), 9000);
    let disk = cluster.crash(a, 2);
    cluster.restart(a, disk);
    cluster.settle(&[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_moment_of_a_snapshot_is_survived() {
    for seed in 0..12u64 {
        let (mut cluster, leader) = three(small).await;
        let [a, _] = others(leader);
        let mut disk = cluster.crash(a, 1);
        for i in 0..300 {
            cluster.put(leader, &format!("k{i}"), vec![b'x'; 20_000]).await.unwrap();
        }
        for crash in 0..3 {
            cluster.restart(a, disk);
            tokio::time::sleep(Duration::from_micros(2_000 + seed * 5_400 + crash * 1_700)).await;
            disk = cluster.crash(a, seed);
        }
        cluster.restart(a, disk);
        cluster.settle(&[1, 2, 3]).await;
        let status = cluster.handle(a).status(NS).await.unwrap();
        assert_eq!((status.keys, status.role), (300, GroupRole::Follower));
    }
}

#[tokio::test(start_paused = true)]
async fn everyone_crashes_at_once_and_nothing_acknowledged_is_lost() {
    for seed in 0..10 {
        let (mut cluster, _) = three(small).await;
        for i in 0..40 {
            let at = 1 + (i % 3) as u32;
            cluster.put(at, &format!("k{i}"), "v").await.unwrap();
        }
        let disks: Vec<_> = (1..=3).map(|id| (id, cluster.crash(id, seed + u64::from(id)))).collect();
        for (id, disk) in disks {
            cluster.restart(id, disk);
        }
        cluster.leader(1).await;
        for i in 0..40 {
            assert_eq!(cluster.get(1 + (i % 3) as u32, &format!("k{i}")).await.unwrap().unwrap(), "v");
        }
        cluster.settle(&[1, 2, 3]).await;
    }
}

async fn change(cluster: &Cluster, voters: &[u32]) {
    for _ in 0..3000 {
        let leader = cluster.leader(1).await;
        let target = voters.iter().copied().map(NodeId).collect();
        if let Ok(MembersChange::Done) = cluster.handle(leader).set_members(NS, E1, target).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (id, node) in &cluster.nodes {
        println!(
            "{id}: {:?} {:?} {:?}",
            node.handle.status(NS).await,
            node.handle.group(NS, E1),
            node.handle.metrics()
        );
    }
    panic!("the members do not change");
}

#[tokio::test(start_paused = true)]
async fn members_come_and_go() {
    let mut cluster = Cluster::start(&[1, 2, 3, 4, 5, 6], small).await;
    cluster.found(1, &[1, 2, 3]).await;
    for i in 0..100 {
        cluster.put(1 + i % 3, &format!("k{i}"), "v").await.unwrap();
    }
    for id in [4, 5, 6] {
        cluster.handle(id).create(spec(1, &[])).await.unwrap();
    }
    change(&cluster, &[1, 2, 3, 4]).await;
    cluster.settle(&[1, 2, 3, 4]).await;
    change(&cluster, &[4, 5, 6]).await;
    cluster.settle(&[4, 5, 6]).await;
    for id in [1, 2, 3] {
        cluster.handle(id).remove(NS, E1).await.unwrap();
        assert!(cluster.handle(id).group(NS, E1).is_none());
        let (from, to) = layout::prefix_range(layout::namespace_prefix(NS));
        let store: &dyn duet_store::View = &*cluster.nodes[&id].store;
        for family in [Family::Data, Family::RaftLog, Family::RaftState, Family::Namespace] {
            assert_eq!(store.scan(family, &from, Some(&to)).unwrap().count(), 0, "{family:?}");
        }
    }
    cluster.put(5, "k", "v").await.unwrap();
    // One that was there before joins again, with an empty log.
    cluster.handle(1).create(spec(1, &[])).await.unwrap();
    change(&cluster, &[1, 4]).await;
    cluster.settle(&[1, 4]).await;
    assert_eq!(cluster.get(1, "k99").await.unwrap().unwrap(), "v");
    let all: BTreeSet<_> = [1, 4].map(NodeId).into();
    assert_eq!(cluster.handle(1).group(NS, E1).unwrap().voters, all);
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_idle_groups_sleep_and_wake() {
    let mut cluster = Cluster::start(&[1, 2, 3], |_| {}).await;
    for namespace in 1..=300 {
        cluster.found(namespace, &[1, 2, 3]).await;
    }
    for namespace in 1..=300 {
        cluster.leader(namespace).await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let frames = |cluster: &Cluster| (1..=3).map(|id| cluster.handle(id).metrics().frames).sum::<u64>();
    for id in 1..=3 {
        assert_eq!(cluster.handle(id).metrics().quiet, 300);
    }
    let before = frames(&cluster);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(frames(&cluster) - before <= 6 * 101, "only beats: {}", frames(&cluster) - before);
    cluster.put(2, "k", "v").await.unwrap();
    let disk = cluster.crash(1, 1);
    let began = Instant::now();
    cluster.put(3, "k", "w").await.unwrap();
    for namespace in 1..=300 {
        cluster.leader(namespace).await;
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    cluster.restart(1, disk);
    tokio::time::sleep(Duration::from_secs(20)).await;
    for id in 1..=3 {
        assert_eq!(cluster.handle(id).metrics().quiet, 300, "node {id}");
    }
}

#[tokio::test(start_paused = true)]
async fn damage_stops_one_replica_and_no_other() {
    let (mut cluster, leader) = three(|_| {}).await;
    cluster.found(2, &[1, 2, 3]).await;
    let [a, b] = others(leader);
    for i in 0..20 {
        cluster.put(leader, &format!("k{i}"), "v").await.unwrap();
    }
    cluster.settle(&[1, 2, 3]).await;
    let last = cluster.handle(a).status(NS).await.unwrap().last;
    let disk = cluster.crash(a, 1);
    assert!(disk.0.damage(Family::RaftLog, &layout::log_key(NS, E1, last)));
    cluster.restart(a, disk);
    let status = cluster.handle(a).status(NS).await.unwrap();
    assert_eq!(status.role, GroupRole::Failed);
    assert!(cluster.handle(a).group(NS, E1).unwrap().failed.unwrap().contains("checksum"));
    let refused = cluster.get(a, "k1").await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    assert_eq!(cluster.get(b, "k1").await.unwrap().unwrap(), "v");
    assert!(cluster.handle(a).status(NamespaceId(2)).await.unwrap().role != GroupRole::Failed);
    // With one more gone there is no quorum: the damaged one does not vote.
    cluster.crash(leader, 1);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(matches!(cluster.get(b, "k1").await, Err(Error::NoQuorum { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_hands_the_leadership_over() {
    let (mut cluster, leader) = three(|_| {}).await;
    cluster.put(leader, "k", "v").await.unwrap();
    let [a, b] = others(leader);
    let began = Instant::now();
    cluster.handle(leader).shutdown().await;
    assert!(cluster.leader_among(&[a, b]).await);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let stopped = cluster.put(leader, "k", "w").await;
    assert!(matches!(stopped, Err(Error::Unavailable { .. })), "{stopped:?}");
    cluster.put(a, "k", "w").await.unwrap();
}

impl Cluster {
    async fn leader_among(&self, ids: &[u32]) -> bool {
        for id in ids {
            if self.handle(*id).status(NS).await.is_some_and(|s| s.role == GroupRole::Leader) {
                return true;
            }
        }
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_ends_the_engine() {
    let (mut cluster, leader) = three(|_| {}).await;
    let [a, b] = others(leader);
    cluster.nodes[&leader].store.fail(duet_store::memory::Fault::Sync);
    let result = cluster.put(leader, "k", "v").await;
    assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "{result:?}");
    let node = cluster.nodes.remove(&leader).unwrap();
    node.task.await.unwrap();
    assert!(node.committer.failure().is_some());
    cluster.put(a, "k", "w").await.unwrap();
    assert_eq!(cluster.get(b, "k").await.unwrap().unwrap(), "w");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_comes_late_finds_a_leader_that_sleeps() {
    let mut cluster = Cluster::start(&[1, 2, 3], |_| {}).await;
    cluster.found(1, &[1, 2, 3]).await;
    cluster.put(1, "k", "v").await.unwrap();
    let leader = cluster.leader(1).await;
    let learner = [1, 2, 3, 4].map(NodeId).into();
    // Node 4 is not there yet.
    cluster.handle(leader).set_members(NS, E1, learner).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(cluster.handle(leader).metrics().quiet, 1);
    cluster.boot(4, MemoryStore::new(), 1);
    cluster.handle(4).create(spec(1, &[])).await.unwrap();
    cluster.settle(&[1, 2, 3, 4]).await;
}
