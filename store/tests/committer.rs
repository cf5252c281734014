//! Order, grouping and failure of the committer; crashes of the memory twin beneath it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use duet_store::{
    Batch, Committer, Family, Store, StoreError, View,
    memory::{Fault, MemoryStore},
};
use proptest::prelude::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn one(n: u32) -> Batch {
    let mut batch = Batch::new();
    batch.put(Family::Data, n.to_be_bytes().to_vec(), "v");
    batch
}

fn held(store: &dyn Store) -> Vec<u32> {
    let scan = store.scan(Family::Data, b"", None).unwrap();
    scan.map(|e| u32::from_be_bytes(e.unwrap().0.as_ref().try_into().unwrap())).collect()
}

#[tokio::test(start_paused = true)]
async fn what_waits_shares_one_sync_and_completes_in_order() {
    let store = MemoryStore::new();
    let committer = Committer::start_task(store.clone(), Duration::from_millis(5));
    let order = Arc::new(Mutex::new(Vec::new()));
    for n in 0..100 {
        let (order, store) = (order.clone(), store.clone());
        committer.submit_with(one(n), move |result| {
            assert_eq!(result, Ok(()));
            assert_eq!(store.unsynced(), 0, "told only what is durable");
            order.lock().unwrap().push(n);
        });
    }
    committer.submit(Batch::new()).await.unwrap();
    assert_eq!(*order.lock().unwrap(), (0..100).collect::<Vec<_>>());
    let stats = committer.stats();
    assert_eq!((stats.batches, stats.groups, stats.queued), (101, 1, 0));
    assert_eq!((stats.busy_us, stats.took_ms[3]), (5000, 1), "five milliseconds lie in the bucket up to eight");
    assert_eq!((stats.held[7], stats.held.iter().sum()), (1, 1), "101 batches lie in the bucket up to 128");
    assert_eq!(store.stats().syncs, 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_batch_makes_direct_writes_durable() {
    let store = MemoryStore::new();
    let committer = Committer::start_task(store.clone(), Duration::from_millis(1));
    store.write(one(1)).unwrap();
    committer.submit(Batch::new()).await.unwrap();
    assert_eq!(held(&*store.crash(0)), [1]);
}

#[tokio::test]
async fn a_panic_is_a_failure() {
    let store = MemoryStore::new();
    let committer = Committer::start_thread(store).unwrap();
    committer.submit_with(one(1), |_| panic!("planted"));
    let told = tokio::time::timeout(Duration::from_secs(10), committer.failed()).await.unwrap();
    assert!(matches!(told, StoreError::Io { .. }), "{told}");
    assert_eq!(committer.submit(one(2)).await, Err(told));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_all_and_is_the_last() {
    for fault in [Fault::Write, Fault::Sync, Fault::Full] {
        let store = MemoryStore::new();
        let committer = Committer::start_task(store.clone(), Duration::from_millis(1));
        committer.submit(one(0)).await.unwrap();
        let watcher = tokio::spawn({
            let committer = committer.clone();
            async move { committer.failed().await }
        });
        tokio::task::yield_now().await;
        store.fail(fault);
        let (a, b) = (committer.submit(one(1)), committer.submit(one(2)));
        let first = a.await.unwrap_err();
        assert_eq!(b.await, Err(first.clone()));
        assert!(matches!(first, StoreError::Io { .. } | StoreError::Full { .. }), "{first}");
        assert_eq!(watcher.await.unwrap(), first);
        assert_eq!(committer.failed().await, first, "whoever asks later is told too");
        for n in 3..5 {
            assert!(matches!(committer.submit(one(n)).await, Err(StoreError::Poisoned { .. })));
        }
        assert!(matches!(store.poisoned(), Some(StoreError::Poisoned { .. })));
        let after = held(&*store.crash(7));
        assert!(after.contains(&0) && !after.contains(&3) && !after.contains(&4), "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_during_the_sync_kills_the_old_handle() {
    let store = MemoryStore::new();
    let committer = Committer::start_task(store.clone(), Duration::from_millis(10));
    let pending = committer.submit(one(1));
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(held(&*store), [1], "written, not yet durable");
    let after = store.crash(0);
    assert_eq!(pending.await, Err(StoreError::Closed));
    assert_eq!(store.write(one(2)), Err(StoreError::Closed));
    assert_eq!(store.get(Family::Data, b"absent"), Err(StoreError::Closed));
    let kept = held(&*after);
    assert!(kept.is_empty() || kept == [1], "{kept:?}");
}

#[tokio::test]
async fn the_thread_commits_everything_and_stops() {
    let store = MemoryStore::new();
    let committer = Committer::start_thread(store.clone()).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    for n in 0..1000 {
        let order = order.clone();
        committer.submit_with(one(n), move |_| order.lock().unwrap().push(n));
    }
    tokio::time::timeout(PATIENCE, committer.stop()).await.expect("it stops");
    assert_eq!(*order.lock().unwrap(), (0..1000).collect::<Vec<_>>());
    assert_eq!(Arc::strong_count(&store), 1, "the thread has let go of the store");
    assert_eq!(committer.submit(one(1)).await, Err(StoreError::Closed));
    assert_eq!(committer.stats().queued, 0);
    assert_eq!(held(&*store.crash(0)).len(), 1000);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What a crash leaves is a prefix of the writes that holds everything synced, and the same seed leaves the same.
    #[test]
    fn a_crash_leaves_a_prefix(synced in 0u32..20, unsynced in 0u32..20, seed in any::<u64>()) {
        let run = || {
            let store = MemoryStore::new();
            for n in 0..synced {
                store.write(one(n)).unwrap();
            }
            store.sync().unwrap();
            for n in synced..synced + unsynced {
                store.write(one(n)).unwrap();
            }
            held(&*store.crash(seed))
        };
        let kept = run();
        prop_assert_eq!(&kept, &(0..kept.len() as u32).collect::<Vec<_>>());
        prop_assert!(kept.len() as u32 >= synced && kept.len() as u32 <= synced + unsynced);
        prop_assert_eq!(run(), kept);
    }
}

#[test]
fn crashes_lose_all_some_or_none_of_the_tail() {
    let mut seen = [false; 11];
    for seed in 0..400 {
        let store = MemoryStore::new();
        (0..10).for_each(|n| store.write(one(n)).unwrap());
        seen[held(&*store.crash(seed)).len()] = true;
    }
    assert_eq!(seen, [true; 11]);
}

#[test]
fn a_kill_loses_nothing_and_free_space_survives() {
    let store = MemoryStore::new();
    store.write(one(1)).unwrap();
    store.set_free_space(17);
    let after = store.kill();
    assert_eq!(held(&*after), [1]);
    assert_eq!(after.free_space(), Ok(17));
}
