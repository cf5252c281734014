//! A namespace: reads and writes of single keys, and the way to scans and transactions.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use duet_proto::{
    Change, Consistency, Cursor, Entry, Epoch, Expect, KeyRange, Mutation, NamespaceName, NodeId, Op, Outcome,
    ScanLimit, Stamp, Token,
};

use crate::{
    CallOptions, ClientError, Scan, Txn,
    client::{Shared, Space},
};

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub value: Bytes,
    /// Its version, for [`Namespace::cas`].
    pub stamp: Stamp,
}

/// A namespace of a [`Client`](crate::Client). Cheap to clone; handles of one namespace share its session.
///
/// ```no_run
/// # async fn example(client: duet_client::Client) -> Result<(), duet_client::ClientError> {
/// use std::time::Duration;
/// use duet_client::{Change, Consistency, Expect};
///
/// let orders = client.namespace("orders")?;
/// let stamp = orders.put("o/1", "new").await?;
/// orders.cas("o/1", Expect::Stamp(stamp), Change::Put("paid".into())).await?;
///
/// // Settings of single requests: a handle of their own.
/// let quick = orders.timeout(Duration::from_millis(200)).consistency(Consistency::Local);
/// if let Some(held) = quick.get("o/1").await? {
///     println!("{:?} of version {}", held.value, held.stamp);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Namespace {
    pub(crate) shared: Arc<Shared>,
    pub(crate) space: Arc<Space>,
    pub(crate) options: CallOptions,
}

impl Namespace {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &NamespaceName {
        &self.space.name
    }

    /// A handle whose requests may take this long, retries included.
    #[must_use]
    pub fn timeout(&self, timeout: Duration) -> Namespace {
        self.with(CallOptions { timeout: Some(timeout), ..self.options })
    }

    /// A handle whose reads are served this way.
    #[must_use]
    pub fn consistency(&self, consistency: Consistency) -> Namespace {
        self.with(CallOptions { consistency, ..self.options })
    }

    /// A handle with or without the session's guarantees; see [`CallOptions::session`].
    #[must_use]
    pub fn session(&self, session: bool) -> Namespace {
        self.with(CallOptions { session, ..self.options })
    }

    /// A handle whose writes are or are not retried exactly once; see [`CallOptions::exactly_once`].
    #[must_use]
    pub fn exactly_once(&self, exactly_once: bool) -> Namespace {
        self.with(CallOptions { exactly_once, ..self.options })
    }

    /// A handle whose requests only this node answers: reads show what its replica holds, however old, and take no part
    /// in the session. To compare replicas.
    #[must_use]
    pub fn on(&self, node: NodeId) -> Namespace {
        let consistency = Consistency::Local;
        self.with(CallOptions { node: Some(node), consistency, session: false, ..self.options })
    }

    /// A handle with other settings.
    #[must_use]
    pub fn with(&self, options: CallOptions) -> Namespace {
        Namespace { options, ..self.clone() }
    }

    /// The settings of this handle's requests.
    #[must_use]
    pub fn options(&self) -> CallOptions {
        self.options
    }

    /// What the session has seen of it in eventual mode, a token for each epoch of which something was seen that no later
    /// one stands for yet: hand them to another client with [`Namespace::resume`].
    #[must_use]
    pub fn tokens(&self) -> Vec<Token> {
        self.space.with(|known| known.seen.show())
    }

    /// Joins what another session has seen into this one's.
    pub fn resume(&self, tokens: &[Token]) {
        self.space.with(|known| tokens.iter().for_each(|token| known.seen.join(token)));
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Value>, ClientError> {
        match self.call(Op::Get { key: key.into() }).await? {
            Outcome::Value(found) => Ok(found.map(|(stamp, value)| Value { value, stamp })),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The value of a key, and the epoch of the answer: the stamp tells only in which one the value was written.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_with_epoch(&self, key: impl Into<Bytes>) -> Result<(Option<Value>, Epoch), ClientError> {
        match self.shared.data(&self.space, Op::Get { key: key.into() }, self.options).await? {
            (Outcome::Value(found), meta) => Ok((found.map(|(stamp, value)| Value { value, stamp }), meta.epoch)),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// The latest epoch of the namespace that the session has heard of; 0 if of none.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.space.with(|known| known.epoch)
    }

    /// Puts a value under a key, whatever it holds. Returns the version written.
    ///
    /// # Errors
    /// [`ClientError`]; `OutcomeUnknown` if it may have been done.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Stamp, ClientError> {
        self.write(Op::Write { mutation: Mutation::put(key, value) }).await
    }

    /// Deletes a key, whatever it holds. Deleting what is absent succeeds.
    ///
    /// # Errors
    /// As [`Namespace::put`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Stamp, ClientError> {
        self.write(Op::Write { mutation: Mutation::delete(key) }).await
    }

    /// Changes a key if it holds what is expected. Strong namespaces only.
    ///
    /// # Errors
    /// As [`Namespace::put`], and `CompareFailed` with the version found.
    pub async fn cas(&self, key: impl Into<Bytes>, expect: Expect, change: Change) -> Result<Stamp, ClientError> {
        self.write(Op::CompareAndSet { expect, mutation: Mutation { key: key.into(), change } }).await
    }

    /// Begins a transaction. Strong namespaces only.
    pub fn txn(&self) -> Txn {
        Txn::new(self.clone())
    }

    /// The entries of a range, in order of key, fetched page by page.
    pub fn scan(&self, range: KeyRange) -> Scan {
        Scan::new(self.clone(), range)
    }

    /// One page of a scan, and where the next one begins.
    ///
    /// # Errors
    /// [`ClientError`]; `EpochChanged` if the cursor is of another epoch: go on with a range that begins after
    /// [`Cursor::last`].
    pub async fn scan_page(
        &self,
        range: KeyRange,
        limit: ScanLimit,
        cursor: Option<Cursor>,
    ) -> Result<(Vec<Entry>, Option<Cursor>), ClientError> {
        match self.call(Op::Scan { range, limit, cursor }).await? {
            Outcome::Page { entries, next } => Ok((entries, next)),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn write(&self, op: Op) -> Result<Stamp, ClientError> {
        match self.call(op).await? {
            Outcome::Written(stamp) => Ok(stamp),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) async fn call(&self, op: Op) -> Result<Outcome, ClientError> {
        Ok(self.shared.data(&self.space, op, self.options).await?.0)
    }

    pub(crate) fn unexpected(&self, outcome: &Outcome) -> ClientError {
        let what = format!("{outcome:?}").chars().take(80).collect();
        ClientError::Unexpected { from: format!("namespace {}", self.name()), what }
    }
}
