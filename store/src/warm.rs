//! Rows that are about to be read are brought into memory first, so that whoever reads them need not wait for the disk.
//!
//! Both are hints, and nothing else: a row may be gone from memory again by the time it is read, and one that cannot be
//! read is left to whoever does. They cost nothing while all that is asked for is in memory ([`Store::is_cold`]).

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{Family, Store};

/// Completes when the rows of [`Family::Data`] are in memory, or at the deadline. Those that are not are read at the same
/// time, on threads that may wait for the disk.
pub async fn warm(store: &Arc<dyn Store>, keys: impl IntoIterator<Item = Bytes>, deadline: Instant) {
    if store.is_cold() {
        let mut reads = begin(store, keys);
        let _ = timeout_at(deadline, async { while reads.join_next().await.is_some() {} }).await;
    }
}

/// Does not wait for them: somebody will read these rows soon.
pub fn warm_soon(store: &Arc<dyn Store>, keys: impl IntoIterator<Item = Bytes>) {
    if store.is_cold() {
        begin(store, keys).detach_all();
    }
}

fn begin(store: &Arc<dyn Store>, keys: impl IntoIterator<Item = Bytes>) -> JoinSet<()> {
    let mut reads = JoinSet::new();
    for key in keys.into_iter().filter(|key| !store.holds(key)) {
        let store = store.clone();
        reads.spawn_blocking(move || drop(store.get(Family::Data, &key)));
    }
    reads
}
