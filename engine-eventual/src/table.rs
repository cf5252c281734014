//! The records under one step: what is durable, and over it what the step's batch will make of it.
//!
//! Every change of a record goes through [`Table::replace`], which keeps the index, the tombstones' rows, the digest
//! and the counts in step with it, in the same batch.

use std::collections::BTreeMap;

use bytes::Bytes;
use crdts::{CvRDT, LWWReg};
use duet_proto::{Body, Epoch, Hlc, NamespaceId, Record, RecordError, Stamp};
use duet_store::{Batch, Family, StoreError, View, layout};

use crate::{Frontier, rows::Meta};

/// The records of a namespace within a step.
pub(crate) struct Table<'a> {
    pub(crate) view: &'a dyn View,
    pub(crate) namespace: NamespaceId,
    /// The records of earlier epochs are no part of its index.
    epoch: Epoch,
    pub(crate) batch: Batch,
    over: BTreeMap<Bytes, Option<Record>>,
    /// The lowest stamp that the step has listed among the tombstones.
    pub(crate) listed: Option<Stamp>,
    /// Rows that the step has added to the index.
    pub(crate) indexed: usize,
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
    pub(crate) fn new(view: &'a dyn View, (namespace, epoch): (NamespaceId, Epoch)) -> Table<'a> {
        Table { view, namespace, epoch, batch: Batch::new(), over: BTreeMap::new(), listed: None, indexed: 0 }
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
            if old.body == Body::Tombstone {
                self.unlist_tombstone(old.stamp);
            }
            if self.indexes(meta, old.stamp) {
                self.batch.delete(Family::Origin, self.index_key(old.stamp));
            }
        }
        let place = layout::data_key(self.namespace, key);
        match &new {
            Some(record) => {
                *count(meta, &record.body) += 1;
                self.batch.put(Family::Data, place, record.encode(key));
                if self.indexes(meta, record.stamp) {
                    self.indexed += 1;
                    self.batch.put(Family::Origin, self.index_key(record.stamp), key.clone());
                }
                if record.body == Body::Tombstone {
                    self.listed = Some(self.listed.map_or(record.stamp, |lowest| lowest.min(record.stamp)));
                    self.batch.put(
                        Family::Namespace,
                        layout::tombstone_key(self.namespace, record.stamp),
                        key.clone(),
                    );
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

    /// Takes a stamp out of the index and the list of tombstones.
    pub(crate) fn unlist(&mut self, stamp: Stamp) {
        self.batch.delete(Family::Origin, self.index_key(stamp));
        self.unlist_tombstone(stamp);
    }

    /// Removes the rows of the index from beyond one frontier up to another, which it was trimmed by. As ranges: a row
    /// costs nothing.
    pub(crate) fn clear(&mut self, from: &Frontier, to: &Frontier) {
        for (origin, to) in to.iter().filter(|(origin, to)| from.get(*origin) < *to) {
            let place = |hlc: Hlc| layout::origin_key(self.namespace, self.epoch, origin, hlc.next());
            self.batch.delete_range(Family::Origin, place(from.get(origin)), place(to));
        }
    }

    /// Whether the index lists the live record of a stamp.
    pub(crate) fn indexes(&self, meta: &Meta, stamp: Stamp) -> bool {
        stamp.epoch == self.epoch && !meta.trimmed.includes(stamp)
    }

    /// Takes a stamp out of the list of tombstones.
    pub(crate) fn unlist_tombstone(&mut self, stamp: Stamp) {
        self.batch.delete(Family::Namespace, layout::tombstone_key(self.namespace, stamp));
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use duet_proto::{Hlc, NodeId};
    use duet_store::{Store, memory::MemoryStore};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Frontier, Members,
        rows::{Beyond, Standing},
    };

    const SPACE: NamespaceId = NamespaceId(7);
    const EPOCH: Epoch = Epoch(1);

    type Write = (u8, Record);

    /// A plain log of all writes. Stamps are unique, as the clock makes them.
    fn logs() -> impl Strategy<Value = Vec<Write>> {
        let write = (0u8..5, 1u32..4, any::<bool>());
        prop::collection::vec(write, 0..40).prop_map(|writes| {
            let stamped = writes.into_iter().enumerate().map(|(at, (key, node, delete))| {
                let stamp = Stamp { epoch: EPOCH, hlc: Hlc(at as u64 + 1), node: NodeId(node) };
                let value = format!("v{at}").into();
                (key, if delete { Record::tombstone(stamp) } else { Record::value(stamp, value) })
            });
            stamped.collect()
        })
    }

    fn key(key: u8) -> Bytes {
        vec![key].into()
    }

    fn merged(writes: impl IntoIterator<Item = Write>) -> (Arc<MemoryStore>, Meta) {
        let (store, mut meta) = (MemoryStore::new(), Meta::new(Standing::Whole, Members::default()));
        for (at, record) in writes {
            let mut table = Table::new(&*store, (SPACE, EPOCH));
            table.merge(&mut meta, &key(at), record).unwrap();
            let batch = table.batch;
            store.write(batch).unwrap();
        }
        (store, meta)
    }

    fn rows(store: &MemoryStore) -> Vec<(Bytes, Bytes)> {
        let all = Family::ALL
            .into_iter()
            .flat_map(|family| store.scan(family, &[], None).unwrap().map(Result::unwrap).collect::<Vec<_>>());
        all.collect()
    }

    fn winners(log: &[Write]) -> BTreeMap<u8, Record> {
        let mut winners: BTreeMap<u8, Record> = BTreeMap::new();
        for (key, record) in log {
            if winners.get(key).is_none_or(|held| held.stamp < record.stamp) {
                winners.insert(*key, record.clone());
            }
        }
        winners
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(
            log in logs(),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let (straight, summary) = merged(log.clone());
            // Any order, any of them again, and all of them at least once.
            let again = order.iter().filter(|_| !log.is_empty()).map(|at| at.get(&log).clone());
            let (shuffled, other) = merged(again.chain(log.iter().rev().cloned()));
            prop_assert_eq!(rows(&straight), rows(&shuffled));
            prop_assert_eq!(summary.summary(), other.summary());
        }

        #[test]
        fn the_index_is_of_the_winners_of_the_log(log in logs(), upto in prop::collection::vec(0u64..42, 3)) {
            let (store, meta) = merged(log.clone());
            let winners = winners(&log);
            let frontier: Frontier =
                upto.iter().enumerate().map(|(at, hlc)| (NodeId(at as u32 + 1), Hlc(*hlc))).collect();
            let beyond = Beyond::new(&*store, (SPACE, EPOCH), &frontier, (NodeId(0), Hlc::ZERO)).unwrap();
            let walked: Vec<_> = beyond.map(|row| row.unwrap()).map(|(node, hlc, key)| (node, hlc, key[0])).collect();
            let mut lacking: Vec<_> =
                winners.iter().filter(|(_, r)| !frontier.includes(r.stamp)).map(|(k, r)| (r.stamp.node, r.stamp.hlc, *k)).collect();
            lacking.sort_unstable();
            prop_assert_eq!(&walked, &lacking);
            // What has only the log up to the frontier, and then this walk, holds what the whole log comes to.
            let known = log.iter().filter(|(_, r)| frontier.includes(r.stamp)).cloned();
            let sent = walked.iter().map(|(_, _, k)| (*k, read(&*store, SPACE, &key(*k)).unwrap().unwrap()));
            let (caught_up, theirs) = merged(known.chain(sent));
            prop_assert_eq!(rows(&caught_up), rows(&store));
            prop_assert_eq!(theirs.summary(), meta.summary());
            let live = winners.values().filter(|r| r.live().is_some()).count() as u64;
            prop_assert_eq!((meta.keys, meta.tombstones), (live, winners.len() as u64 - live));
        }

        /// A marker used twice is told, and changes nothing, rather than keep one value here and another there.
        #[test]
        fn one_stamp_with_two_values_is_a_conflict(log in logs(), at in any::<prop::sample::Index>()) {
            prop_assume!(!log.is_empty());
            let (place, mut record) = at.get(&log).clone();
            prop_assume!(winners(&log)[&place] == record);
            let (store, mut meta) = merged(log);
            let (before, summary) = (rows(&store), meta.summary());
            record.body = Body::Value("another".into());
            let mut table = Table::new(&*store, (SPACE, EPOCH));
            prop_assert_eq!(table.merge(&mut meta, &key(place), record).unwrap(), Merge::Conflict);
            let batch = table.batch;
            store.write(batch).unwrap();
            prop_assert_eq!((rows(&store), meta.summary()), (before, summary));
        }
    }
}
