//! Rows that are about to be read are brought into memory first, so that whoever reads them need not wait for the disk.
//!
//! Both are hints, and nothing else: a row may be gone from memory again by the time it is read, and one that cannot be
//! read is left to whoever does. They cost nothing while all that is asked for is in memory ([`Store::is_cold`]).

use std::sync::Arc;

use duet_proto::NamespaceId;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{Family, Store, layout};

/// Completes when the records of a namespace's `keys` are in memory, or at the deadline. Those that are not are read at the
/// same time, on threads that may wait for the disk.
pub async fn warm(
    store: &Arc<dyn Store>,
    namespace: NamespaceId,
    keys: impl IntoIterator<Item: AsRef<[u8]>>,
    deadline: Instant,
) {
    if store.is_cold() {
        let mut reads = begin(store, namespace, keys);
        let _ = timeout_at(deadline, async { while reads.join_next().await.is_some() {} }).await;
    }
}

/// Does not wait for them: somebody will read these records soon.
pub fn warm_soon(store: &Arc<dyn Store>, namespace: NamespaceId, keys: impl IntoIterator<Item: AsRef<[u8]>>) {
    if store.is_cold() {
        begin(store, namespace, keys).detach_all();
    }
}

fn begin(store: &Arc<dyn Store>, namespace: NamespaceId, keys: impl IntoIterator<Item: AsRef<[u8]>>) -> JoinSet<()> {
    let mut reads = JoinSet::new();
    let rows = keys.into_iter().map(|key| layout::data_key(namespace, key.as_ref()));
    for row in rows.filter(|row| !store.holds(row)) {
        let store = store.clone();
        reads.spawn_blocking(move || drop(store.get(Family::Data, &row)));
    }
    reads
}
