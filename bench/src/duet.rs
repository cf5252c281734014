//! A namespace of Duet as a target.

use bytes::Bytes;
use duet_client::{Change, Class, ClientError, Error, Expect, KeyRange, Namespace, ScanLimit};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{Failure, Target, target::FILLED_AT_ONCE};

/// A namespace, by way of one client.
#[derive(Clone, Debug)]
pub struct Duet(pub Namespace);

impl Target for Duet {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        Ok(self.0.put(key, value).await.map(drop)?)
    }

    async fn get(&self, key: Bytes) -> Result<bool, Failure> {
        Ok(self.0.get(key).await?.is_some())
    }

    async fn scan(&self, from: Bytes, entries: u32) -> Result<u64, Failure> {
        let limit = ScanLimit { entries, ..ScanLimit::default() };
        let (page, _) = self.0.scan_page(KeyRange { start: from, end: None }, limit, None).await?;
        Ok(page.len() as u64)
    }

    async fn cas(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        let expect = match self.0.get(key.clone()).await? {
            Some(held) => Expect::Stamp(held.stamp),
            None => Expect::Absent,
        };
        Ok(self.0.cas(key, expect, Change::Put(value)).await.map(drop)?)
    }

    /// In one transaction, or where there are none, one by one.
    async fn fill(&self, entries: Vec<(Bytes, Bytes)>) -> Result<(), Failure> {
        if let [(key, value)] = &entries[..] {
            // Maybe too large for a transaction.
            return self.put(key.clone(), value.clone()).await;
        }
        let txn = entries.iter().fold(self.0.txn(), |txn, (key, value)| txn.put(key.clone(), value.clone()));
        match txn.commit().await {
            Ok(_) => return Ok(()),
            Err(ClientError::Cluster(Error::Unsupported { .. })) => {}
            Err(error) => return Err(error.into()),
        }
        let puts = stream::iter(entries).map(|(key, value)| self.put(key, value));
        puts.buffer_unordered(FILLED_AT_ONCE).try_collect().await
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure { code: error.code().into(), unknown: error.class() == Class::Unknown }
    }
}
