//! Three engines over links in memory, on paused time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use duet_proto::{
    Answer, Boot, Consistency, Epoch, Expect, GroupRole, KeyRange, Mutation, NamespaceId, NamespaceName, Op, Outcome,
    QuorumHealth, ScanLimit, SessionId, Stamp, Try,
};
use duet_store::{Family, WallClock, layout, memory::MemoryStore};

use super::*;
use crate::{Call, GroupSpec, MembersChange};

const NS: NamespaceId = NamespaceId(1);
const E1: Epoch = Epoch(1);
const RESERVE: u64 = 1 << 20;

/// Which links are cut: from, to.
type Cuts = Arc<Mutex<BTreeSet<(u32, u32)>>>;
type Inlets = Arc<Mutex<BTreeMap<u32, (mpsc::Sender<(NodeId, Bytes)>, mpsc::Sender<(NodeId, Bytes)>)>>>;

struct Wall;

impl WallClock for Wall {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000
    }
}

struct Node {
    store: Arc<MemoryStore>,
    handle: Handle,
    committer: Committer,
    task: tokio::task::JoinHandle<()>,
    boot: u64,
}

struct Cluster {
    nodes: BTreeMap<u32, Node>,
    cuts: Cuts,
    inlets: Inlets,
    configure: fn(&mut Config),
    sequence: u64,
}

/// Carries what one node sends, with a delay of a millisecond.
async fn carry(from: u32, bulk: bool, mut out: mpsc::Receiver<(NodeId, Bytes)>, cuts: Cuts, inlets: Inlets) {
    while let Some((to, bytes)) = out.recv().await {
        tokio::time::sleep(Duration::from_micros(200)).await;
        if cuts.lock().unwrap().contains(&(from, to.0)) {
            continue;
        }
        let inlet = inlets.lock().unwrap().get(&to.0).cloned();
        if let Some((raft, other)) = inlet {
            let _ = if bulk { other } else { raft }.send((NodeId(from), bytes)).await;
        }
    }
}

impl Cluster {
    async fn start(ids: &[u32], configure: fn(&mut Config)) -> Cluster {
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            cuts: Cuts::default(),
            inlets: Inlets::default(),
            configure,
            sequence: 0,
        };
        for id in ids {
            cluster.boot(*id, MemoryStore::new(), 1);
        }
        cluster
    }

    fn boot(&mut self, id: u32, store: Arc<MemoryStore>, boot: u64) {
        let (raft_out, raft) = mpsc::channel(4096);
        let (bulk_out, bulk) = mpsc::channel(16);
        let (raft_to, raft_in) = mpsc::channel(4096);
        let (bulk_to, bulk_in) = mpsc::channel(16);
        self.inlets.lock().unwrap().insert(id, (raft_to, bulk_to));
        tokio::spawn(carry(id, false, raft, self.cuts.clone(), self.inlets.clone()));
        tokio::spawn(carry(id, true, bulk, self.cuts.clone(), self.inlets.clone()));
        let mut config = Config::new(NodeId(id), Boot(boot));
        (self.configure)(&mut config);
        let committer = Committer::start_task(store.clone(), Duration::from_micros(300));
        let clock = HybridClock::open(store.clone(), Arc::new(Wall), 500).unwrap();
        let disk = DiskGuard::new(store.clone(), RESERVE);
        let link = PeerLink { raft_out, raft_in, bulk_out, bulk_in };
        let (handle, driver) =
            StrongEngine::start(config, store.clone(), committer.clone(), clock, disk, link).unwrap();
        let task = tokio::spawn(driver);
        self.nodes.insert(id, Node { store, handle, committer, task, boot });
    }

    /// Cuts the power of a node and gives its disk.
    fn crash(&mut self, id: u32, seed: u64) -> (Arc<MemoryStore>, u64) {
        let node = self.nodes.remove(&id).unwrap();
        self.inlets.lock().unwrap().remove(&id);
        node.task.abort();
        (node.store.crash(seed), node.boot)
    }

    fn restart(&mut self, id: u32, disk: (Arc<MemoryStore>, u64)) {
        self.boot(id, disk.0, disk.1 + 1);
    }

    fn isolate(&self, id: u32) {
        let mut cuts = self.cuts.lock().unwrap();
        for other in 1..=9 {
            cuts.extend([(id, other), (other, id)]);
        }
    }

    fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }

    fn handle(&self, id: u32) -> Handle {
        self.nodes[&id].handle.clone()
    }

    async fn found(&self, namespace: u64, voters: &[u32]) {
        for id in voters {
            self.handle(*id).create(spec(namespace, voters)).await.unwrap();
        }
    }

    /// The node that leads, once one does and knows it.
    async fn leader(&self, namespace: u64) -> u32 {
        for _ in 0..2000 {
            for (id, node) in &self.nodes {
                let status = node.handle.status(NamespaceId(namespace)).await;
                if status.is_some_and(|s| s.role == GroupRole::Leader && s.quorum != QuorumHealth::Lost) {
                    return *id;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no leader");
    }

    /// A write as the client makes it: with a session, so that it can be tried again.
    async fn put(&mut self, at: u32, key: &str, value: impl Into<Bytes>) -> Result<Answer, Error> {
        self.sequence += 1;
        let attempt =
            Try { session: SessionId(7), sequence: self.sequence, answered_below: self.sequence, seen: 0, epoch: E1 };
        let op = Op::Write { mutation: Mutation::put(key.to_owned(), value) };
        let call = Call { op, attempt: Some(attempt), consistency: Consistency::Linearizable };
        self.handle(at).call(NS, E1, call, in_seconds(20)).await
    }

    async fn get(&self, at: u32, key: &str) -> Result<Option<Bytes>, Error> {
        let call = Call::once(Op::Get { key: key.to_owned().into() });
        match self.handle(at).call(NS, E1, call, in_seconds(20)).await?.outcome {
            Outcome::Value(found) => Ok(found.map(|(_, value)| value)),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until all these replicas have applied the same.
    async fn settle(&self, ids: &[u32]) {
        for _ in 0..3000 {
            let mut seen = BTreeSet::new();
            for id in ids {
                let status = self.handle(*id).status(NS).await.unwrap();
                seen.insert((status.applied, status.digest.0, status.last));
            }
            if seen.len() == 1 && seen.iter().all(|(applied, _, last)| applied == last && *applied > 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for id in ids {
            println!("{id}: {:?}", self.handle(*id).status(NS).await);
        }
        panic!("the replicas do not come together");
    }
}

fn spec(namespace: u64, voters: &[u32]) -> GroupSpec {
    GroupSpec {
        namespace: NamespaceId(namespace),
        epoch: E1,
        name: NamespaceName::new(format!("ns{namespace}")).unwrap(),
        voters: voters.iter().copied().map(NodeId).collect(),
        learners: BTreeSet::new(),
    }
}

fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn others(leader: u32) -> [u32; 2] {
    match leader {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    }
}

async fn three(configure: fn(&mut Config)) -> (Cluster, u32) {
    let cluster = Cluster::start(&[1, 2, 3], configure).await;
    cluster.found(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    (cluster, leader)
}

fn small(config: &mut Config) {
    (config.keep_entries, config.tail_bytes) = (50, 1000);
}

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
    let disk = cluster.crash(a, 1);
    assert!(disk.0.damage(Family::RaftLog, &layout::log_key(NS, E1, 10)));
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
    cluster.nodes[&leader].store.set_free_space(RESERVE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.put(leader, "k", "x").await.unwrap();
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
