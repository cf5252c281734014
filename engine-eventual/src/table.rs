//! The records under one step: what is durable, and over it what the step's batch will make of it.
//!
//! Every change of a record goes through [`Table::replace`], which keeps the index, the tombstones' rows, the digest
//! and the counts in step with it, in the same batch.

use std::collections::BTreeMap;

use bytes::Bytes;
use crdts::{CvRDT, LWWReg};
use duet_proto::{Body, NamespaceId, Record, RecordError, Stamp};
use duet_store::{Batch, Family, StoreError, View, layout};

use crate::rows::{Meta, tombstone_key};

/// The records of a namespace within a step.
pub(crate) struct Table<'a> {
    pub(crate) view: &'a dyn View,
    pub(crate) namespace: NamespaceId,
    pub(crate) batch: Batch,
    over: BTreeMap<Bytes, Option<Record>>,
}

/// What became of a record that was to be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    /// It is what the key holds now.
    Won,
    /// The key held something later.
    Lost,
    /// The key held the very same.
    Same,
    /// The key holds another value under the same stamp: a marker was used twice.
    Conflict,
    /// What the key holds cannot be read.
    Damaged,
}

/// A record that cannot be read, or a store that cannot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What a key durably holds.
pub(crate) fn read(view: &dyn View, namespace: NamespaceId, key: &[u8]) -> Result<Option<Record>, ReadError> {
    let Some(bytes) = view.get(Family::Data, &layout::data_key(namespace, key))? else { return Ok(None) };
    Ok(Some(Record::decode(key, bytes)?))
}

impl<'a> Table<'a> {
    pub(crate) fn new(view: &'a dyn View, namespace: NamespaceId) -> Table<'a> {
        Table { view, namespace, batch: Batch::new(), over: BTreeMap::new() }
    }

    /// What a key holds within the step.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Record>, ReadError> {
        match self.over.get(key) {
            Some(record) => Ok(record.clone()),
            None => read(self.view, self.namespace, key),
        }
    }

    /// Whether the step has changed a key.
    pub(crate) fn touches(&self, key: &[u8]) -> bool {
        self.over.contains_key(key)
    }

    /// Merges a record: the later stamp wins, whatever the order of arrival.
    pub(crate) fn merge(&mut self, meta: &mut Meta, key: &Bytes, new: Record) -> Result<Merge, StoreError> {
        let old = match self.get(key) {
            Ok(old) => old,
            Err(ReadError::Record(_)) => return Ok(Merge::Damaged),
            Err(ReadError::Store(error)) => return Err(error),
        };
        let Some(old) = old else {
            self.replace(meta, key, None, Some(new));
            return Ok(Merge::Won);
        };
        let theirs = LWWReg { val: new.body, marker: new.stamp };
        let mut register = LWWReg { val: old.body.clone(), marker: old.stamp };
        if register.validate_merge(&theirs).is_err() {
            return Ok(Merge::Conflict);
        }
        let same = theirs.marker == old.stamp;
        register.merge(theirs);
        if register.marker == old.stamp {
            return Ok(if same { Merge::Same } else { Merge::Lost });
        }
        let won = Record { stamp: register.marker, body: register.val };
        self.replace(meta, key, Some(&old), Some(won));
        Ok(Merge::Won)
    }

    /// Puts one record, or nothing, in the place of another, or of nothing.
    pub(crate) fn replace(&mut self, meta: &mut Meta, key: &Bytes, old: Option<&Record>, new: Option<Record>) {
        meta.digest.replace(key, old, new.as_ref());
        if let Some(old) = old {
            *count(meta, &old.body) = count(meta, &old.body).saturating_sub(1);
            self.unlist(old);
        }
        let place = layout::data_key(self.namespace, key);
        match &new {
            Some(record) => {
                *count(meta, &record.body) += 1;
                self.batch.put(Family::Data, place, record.encode(key));
                self.batch.put(Family::Origin, self.index_key(record.stamp), key.clone());
                if record.body == Body::Tombstone {
                    self.batch.put(Family::Namespace, tombstone_key(self.namespace, record.stamp), key.clone());
                }
            }
            None => self.batch.delete(Family::Data, place),
        }
        self.over.insert(key.clone(), new);
    }

    /// The records of keys that hold nothing durably.
    pub(crate) fn new_keys(&self) -> impl Iterator<Item = (&Bytes, &Record)> {
        let held = |key: &[u8]| self.view.get(Family::Data, &layout::data_key(self.namespace, key));
        let over = self.over.iter().filter_map(|(key, record)| Some((key, record.as_ref()?)));
        over.filter(move |(key, _)| matches!(held(key), Ok(None)))
    }

    /// Takes a record out of the index and the list of tombstones.
    pub(crate) fn unlist(&mut self, old: &Record) {
        self.batch.delete(Family::Origin, self.index_key(old.stamp));
        if old.body == Body::Tombstone {
            self.batch.delete(Family::Namespace, tombstone_key(self.namespace, old.stamp));
        }
    }

    fn index_key(&self, stamp: Stamp) -> Bytes {
        layout::origin_key(self.namespace, stamp.epoch, stamp.node, stamp.hlc)
    }
}

fn count<'m>(meta: &'m mut Meta, body: &Body) -> &'m mut u64 {
    match body {
        Body::Value(_) => &mut meta.keys,
        Body::Tombstone => &mut meta.tombstones,
    }
}
