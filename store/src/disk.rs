//! The disk's reserve: writes stop before the disk does.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use duet_proto::{Error, NodeId};
use tokio::time::Instant;

use crate::Store;

/// A measurement is believed for this long.
const FRESH: Duration = Duration::from_millis(200);

/// The reserve is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{free} bytes are free on the disk, {reserve} are kept in reserve")]
pub struct DiskFull {
    /// Free bytes.
    pub free: u64,
    /// Bytes that stay free.
    pub reserve: u64,
}

impl DiskFull {
    /// The error as a client of `node` sees it.
    #[must_use]
    pub fn at(self, node: NodeId) -> Error {
        Error::DiskFull { node, free: self.free, reserve: self.reserve }
    }
}

/// Keeps a part of the disk free, so that RocksDB never meets a full one: reads, compaction, elections and deletes
/// of namespaces go on while client writes are refused.
///
/// Cheap to ask before every write: the disk is measured when the last measurement is 200 ms old.
#[derive(Clone)]
pub struct DiskGuard {
    store: Arc<dyn Store>,
    reserve: u64,
    last: Arc<Mutex<Option<(Instant, u64)>>>,
}

impl fmt::Debug for DiskGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskGuard").field("reserve", &self.reserve).field("free", &self.free()).finish()
    }
}

impl DiskGuard {
    /// Keeps `reserve` bytes free; zero keeps none.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, reserve: u64) -> DiskGuard {
        DiskGuard { store, reserve, last: Arc::default() }
    }

    /// Whether a client may write.
    ///
    /// # Errors
    /// If the reserve is reached.
    pub fn check(&self) -> Result<(), DiskFull> {
        let free = self.free();
        if self.reserve > 0 && free <= self.reserve {
            return Err(DiskFull { free, reserve: self.reserve });
        }
        Ok(())
    }

    /// Free bytes, as of at most 200 ms ago. If the system does not say, the last known figure stands; if there is
    /// none, zero does.
    #[must_use]
    pub fn free(&self) -> u64 {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((at, free)) if now.saturating_duration_since(at) < FRESH => free,
            stale => {
                let known = stale.map_or(0, |(_, free)| free);
                let free = self.store.free_space().unwrap_or(known);
                *last = Some((now, free));
                free
            }
        }
    }

    /// Bytes that stay free.
    #[must_use]
    pub fn reserve(&self) -> u64 {
        self.reserve
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn writes_stop_at_the_reserve_and_go_on_above_it() {
        let store = MemoryStore::new();
        let guard = DiskGuard::new(store.clone(), 1000);
        assert_eq!(guard.check(), Ok(()));
        store.set_free_space(1000);
        assert_eq!(guard.check(), Ok(()), "the measurement is fresh");
        tokio::time::advance(FRESH).await;
        assert_eq!(guard.check(), Err(DiskFull { free: 1000, reserve: 1000 }));
        store.set_free_space(1001);
        tokio::time::advance(FRESH).await;
        assert_eq!(guard.check(), Ok(()));
    }
}
