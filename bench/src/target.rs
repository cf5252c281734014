//! What is loaded.

use std::borrow::Cow;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

/// Keys of one call of [`Target::fill`] that are under way at a time.
pub(crate) const FILLED_AT_ONCE: usize = 8;

/// Something that keeps values under keys. A clone is another handle of the same connection.
pub trait Target: Clone + Send + Sync + 'static {
    /// Writes a key.
    fn put(&self, key: Bytes, value: Bytes) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Reads a key, and says whether it was there.
    fn get(&self, key: Bytes) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// Reads up to so many keys in order, from one on, and says how many there were.
    fn scan(&self, _from: Bytes, _entries: u32) -> impl Future<Output = Result<u64, Failure>> + Send {
        async { Err(Failure::unsupported()) }
    }

    /// Reads a key, then writes it if it is still as it was read.
    fn cas(&self, _key: Bytes, _value: Bytes) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Err(Failure::unsupported()) }
    }

    /// Writes some keys before anything is measured; as here a few at a time, or better.
    fn fill(&self, entries: Vec<(Bytes, Bytes)>) -> impl Future<Output = Result<(), Failure>> + Send {
        let puts = stream::iter(entries).map(|(key, value)| self.put(key, value));
        puts.buffer_unordered(FILLED_AT_ONCE).try_collect()
    }
}

/// Why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}", if *unknown { " (it may have been done)" } else { "" })]
pub struct Failure {
    /// What reports count it as.
    pub code: Cow<'static, str>,
    /// Whether it may have been done all the same.
    pub unknown: bool,
}

impl Failure {
    /// Nothing was done.
    #[must_use]
    pub fn refused(code: impl Into<Cow<'static, str>>) -> Failure {
        Failure { code: code.into(), unknown: false }
    }

    /// It may have been done.
    #[must_use]
    pub fn unknown(code: impl Into<Cow<'static, str>>) -> Failure {
        Failure { code: code.into(), unknown: true }
    }

    /// This target does no such thing.
    #[must_use]
    pub fn unsupported() -> Failure {
        Failure::refused("unsupported")
    }
}
