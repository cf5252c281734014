//! Transactions: compares, then one of two lists of changes, as one step.

use bytes::Bytes;
use duet_proto::{Change, Compare, Expect, Mutation, Op, Outcome, TxnResult};

use crate::{ClientError, Namespace};

/// A transaction on a strong namespace, sent by [`Txn::commit`]. Each list changes a key at most once.
///
/// ```no_run
/// # async fn example(accounts: duet_client::Namespace) -> Result<(), duet_client::ClientError> {
/// use duet_client::Expect;
///
/// let alice = accounts.get("alice").await?.expect("she has an account");
/// let result = accounts
///     .txn()
///     .when("alice", Expect::Stamp(alice.stamp))
///     .when("bob", Expect::Present)
///     .put("alice", "90")
///     .put("transfers/1", "alice to bob: 10")
///     .otherwise_put("failed/1", "alice to bob: 10")
///     .read("bob")
///     .commit()
///     .await?;
/// println!("{} as version {}", if result.held { "done" } else { "refused" }, result.stamp);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Txn {
    namespace: Namespace,
    compares: Vec<Compare>,
    then: Vec<Mutation>,
    otherwise: Vec<Mutation>,
    reads: Vec<Bytes>,
}

impl Txn {
    pub(crate) fn new(namespace: Namespace) -> Txn {
        Txn { namespace, compares: Vec::new(), then: Vec::new(), otherwise: Vec::new(), reads: Vec::new() }
    }

    /// The key must hold this for the changes to be made; all compares must hold.
    pub fn when(mut self, key: impl Into<Bytes>, expect: Expect) -> Txn {
        self.compares.push(Compare { key: key.into(), expect });
        self
    }

    /// Puts, if all compares hold.
    pub fn put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
        self.then(key, Change::Put(value.into()))
    }

    /// Deletes, if all compares hold.
    pub fn delete(self, key: impl Into<Bytes>) -> Txn {
        self.then(key, Change::Delete)
    }

    /// Changes a key, if all compares hold.
    pub fn then(mut self, key: impl Into<Bytes>, change: Change) -> Txn {
        self.then.push(Mutation { key: key.into(), change });
        self
    }

    /// Puts, if a compare does not hold.
    pub fn otherwise_put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
        self.otherwise(key, Change::Put(value.into()))
    }

    /// Deletes, if a compare does not hold.
    pub fn otherwise_delete(self, key: impl Into<Bytes>) -> Txn {
        self.otherwise(key, Change::Delete)
    }

    /// Changes a key, if a compare does not hold.
    pub fn otherwise(mut self, key: impl Into<Bytes>, change: Change) -> Txn {
        self.otherwise.push(Mutation { key: key.into(), change });
        self
    }

    /// Returns what the key holds after the step.
    pub fn read(mut self, key: impl Into<Bytes>) -> Txn {
        self.reads.push(key.into());
        self
    }

    /// Runs it. That the compares did not hold is an answer, not an error: see [`TxnResult::held`].
    ///
    /// # Errors
    /// [`ClientError`]; `OutcomeUnknown` if it may have been done.
    pub async fn commit(self) -> Result<TxnResult, ClientError> {
        let Txn { namespace, compares, then, otherwise, reads } = self;
        match namespace.call(Op::Transaction { compares, then, otherwise, reads }).await? {
            Outcome::Transaction(result) => Ok(result),
            other => Err(namespace.unexpected(&other)),
        }
    }
}
