//! Many clients, many namespaces, and one history for one seed.

use tokio::time::timeout;

use super::*;

#[tokio::test(start_paused = true)]
async fn many_clients_share_syncs() {
    let cluster = three(1).await;
    let before = cluster.nodes[&1].committer.stats().groups;
    let clients: Vec<_> = (0..256)
        .map(|client| {
            let handle = cluster.handle(1);
            tokio::spawn(async move {
                for i in 0..10 {
                    let call = Call { op: put_op(&format!("k{client}-{i}"), "v"), token: None };
                    handle.call(NS, E1, call, in_seconds(30)).await.unwrap();
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let syncs = cluster.nodes[&1].committer.stats().groups - before;
    assert!(syncs <= 40, "2560 writes took {syncs} syncs");
    cluster.settle(&[1, 2, 3]).await;
    let metrics = cluster.handle(1).metrics();
    assert!(metrics.frames_out < 200, "messages of a step share a frame: {metrics:?}");
    assert_eq!((metrics.writes, metrics.dropped), (2560, 0));
}

/// One client after the other: each of its writes is a step and a sync where it is made, and shares frames, steps and syncs
/// elsewhere.
#[tokio::test(start_paused = true)]
async fn pushes_that_nobody_waits_for_share_frames_and_syncs() {
    for (copies, shared) in [(1, true), (2, false)] {
        let cluster = three(copies).await;
        let count = |id| cluster.handle(id).metrics();
        let before = (count(1), count(2));
        for i in 0..100 {
            cluster.put(1, &format!("k{i}"), "v").await.unwrap();
        }
        cluster.settle(&[1, 2, 3]).await;
        let frames = count(1).frames_out - before.0.frames_out;
        let (there, elsewhere) = (count(1).commits - before.0.commits, count(2).commits - before.1.commits);
        assert!(there >= 100, "{there}");
        assert_eq!(frames < 150, shared, "with {copies} copies {frames} frames to two for {there} commits");
        assert_eq!(elsewhere < 50, shared, "with {copies} copies {elsewhere} commits for {there}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_that_nobody_waits_for_leaves_soon_and_before_a_stop() {
    let cluster = three(1).await;
    let seen = async |value: &'static str| {
        let began = Instant::now();
        while cluster.get(2, "k").await.unwrap().is_none_or(|held| held != value) {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        began.elapsed()
    };
    cluster.put(1, "k", "first").await.unwrap();
    let first = seen("first").await;
    assert!(first <= Duration::from_millis(10), "five of waiting, a sync and the way: {first:?}");
    // The first write after a silence leaves with a report.
    tokio::time::sleep(Duration::from_secs(30)).await;
    cluster.put(1, "k", "second").await.unwrap();
    seen("second").await;
    cluster.put(1, "k", "last").await.unwrap();
    cluster.handle(1).shutdown().await;
    timeout(Duration::from_secs(1), seen("last")).await.expect("nobody else has it");
}

#[tokio::test(start_paused = true)]
async fn idle_namespaces_cost_next_to_nothing() {
    let cluster = Cluster::start(&[1, 2, 3], |_| {});
    for namespace in 1..=300 {
        cluster.found(namespace, &[1, 2, 3], 1).await;
    }
    cluster.put(1, "k", "v").await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let before: Vec<_> = (1..=3).map(|id| cluster.handle(id).metrics()).collect();
    tokio::time::sleep(Duration::from_secs(100)).await;
    for (id, before) in (1..=3).zip(before) {
        let after = cluster.handle(id).metrics();
        assert_eq!((after.commits - before.commits, after.open), (0, 0), "nothing is written");
        let (steps, frames) = (after.steps - before.steps, after.frames_out - before.frames_out);
        assert!(steps <= 300 * 5 * 4, "{steps} steps, a few per namespace in each 20 s");
        assert!(frames <= 100 * 2 + 400, "{frames} frames, most of them beats");
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_takes_a_bounded_bite() {
    let cluster = Cluster::start(&[1], |config| (config.step_bytes, config.pending_bytes) = (10_000, 50_000));
    cluster.found(1, &[1], 1).await;
    let clients: Vec<_> = (0..100)
        .map(|i| {
            let handle = cluster.handle(1);
            let call = Call { op: put_op(&format!("k{i}"), vec![b'x'; 1000]), token: None };
            tokio::spawn(async move { handle.call(NS, E1, call, in_seconds(30)).await })
        })
        .collect();
    let (mut done, mut overloaded) = (0, 0);
    for client in clients {
        match client.await.unwrap() {
            Ok(_) => done += 1,
            Err(Error::Overloaded { .. }) => overloaded += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(done >= 46 && done + overloaded == 100, "{done} done");
    assert!(cluster.nodes[&1].committer.stats().groups > 4);
}

/// One seed, one history: what is sent and written does not depend on anything else.
#[test]
fn the_same_seed_gives_the_same_history() {
    let history = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut cluster = three(2).await;
            let disk = cluster.crash(3, 1);
            for i in 0..100 {
                cluster.put(1 + i % 2, &format!("k{i}"), vec![0; 500]).await.unwrap();
            }
            cluster.restart(3, disk);
            cluster.settle(&[1, 2, 3]).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            let metrics: Vec<_> = (1..=3).map(|id| cluster.handle(id).metrics()).collect();
            (cluster.begin.elapsed(), metrics, cluster.status(1).await)
        })
    };
    assert_eq!(history(), history());
}
