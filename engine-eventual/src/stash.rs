//! Late writes: what a replica held that the next epoch began without. It outlives the replica.
//!
//! | family | key | value |
//! | --- | --- | --- |
//! | `namespace` | namespace 8, `0x30`, stamp 16 | guarded postcard: key and record, waiting to be brought |
//! | `namespace` | namespace 8, `0x31`, epoch 4 | guarded postcard: the frontier of the replica of that epoch |
//! | `namespace` | namespace 8, `0x32`, stamp 16 | guarded postcard of [`LateWrite`]: brought, or refused |

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use duet_proto::{Body, Epoch, LateState, LateWrite, NamespaceId, Record, Stamp};
use duet_store::{Batch, Family, StoreError, View, layout};
use serde::{Serialize, de::DeserializeOwned};

use crate::Frontier;

const WAITING: u8 = 0x30;
const FRONTIER: u8 = 0x31;
const AUDIT: u8 = 0x32;

/// How many late writes of a namespace are remembered once nothing waits for them any more.
const REMEMBERED: usize = 1000;

fn key(namespace: NamespaceId, what: u8, stamp: Stamp) -> Bytes {
    layout::namespace_key(namespace, what, &stamp.to_bytes())
}

fn range(namespace: NamespaceId, what: u8) -> (Bytes, Bytes) {
    layout::prefix_range(layout::namespace_key(namespace, what, &[]))
}

fn encode<T: Serialize>(key: &[u8], value: &T) -> Result<Bytes, StoreError> {
    let payload = postcard::to_stdvec(value);
    let payload = payload.map_err(|e| StoreError::Io { what: format!("encoding a late write: {e}") })?;
    Ok(layout::guard(key, &payload))
}

fn decode<T: DeserializeOwned>(key: &[u8], value: &Bytes) -> Result<T, StoreError> {
    let payload = layout::unguard(key, value)?;
    let malformed = |e| StoreError::corrupt(format!("the late write under {}: {e}", key.escape_ascii()));
    postcard::from_bytes(&payload).map_err(malformed)
}

/// Puts a record aside.
pub(crate) fn put(batch: &mut Batch, namespace: NamespaceId, of: &Bytes, record: &Record) -> Result<(), StoreError> {
    let row = key(namespace, WAITING, record.stamp);
    let value = encode(&row, &(of, record))?;
    batch.put(Family::Namespace, row, value);
    Ok(())
}

/// Notes what the replica held from which records were put aside.
pub(crate) fn put_frontier(
    batch: &mut Batch,
    (namespace, epoch): (NamespaceId, Epoch),
    frontier: &Frontier,
) -> Result<(), StoreError> {
    let row = layout::namespace_key(namespace, FRONTIER, &epoch.0.to_be_bytes());
    let value = encode(&row, frontier)?;
    batch.put(Family::Namespace, row, value);
    Ok(())
}

/// What waits, the oldest first.
pub(crate) fn waiting(
    view: &dyn View,
    namespace: NamespaceId,
    limit: usize,
) -> Result<Vec<(Bytes, Record)>, StoreError> {
    let (from, to) = range(namespace, WAITING);
    let rows = view.scan(Family::Namespace, &from, Some(&to))?.take(limit);
    rows.map(|row| row.and_then(|(row, value)| decode(&row, &value))).collect()
}

/// The frontiers of the replicas of which something was put aside.
pub(crate) fn frontiers(view: &dyn View, namespace: NamespaceId) -> Result<BTreeMap<Epoch, Frontier>, StoreError> {
    let (from, to) = range(namespace, FRONTIER);
    let rows = view.scan(Family::Namespace, &from, Some(&to))?;
    let rows = rows.map(|row| {
        let (row, value) = row?;
        Ok((epoch_of(&row)?, decode(&row, &value)?))
    });
    rows.collect()
}

/// What waits, and then what no longer does, the latest first.
pub(crate) fn late(view: &dyn View, namespace: NamespaceId, limit: usize) -> Result<Vec<LateWrite>, StoreError> {
    let mut late = Vec::new();
    let (from, to) = range(namespace, WAITING);
    // One value at a time: together they may be more than there is memory for.
    for row in view.scan(Family::Namespace, &from, Some(&to))?.take(limit) {
        let (row, value) = row?;
        let (key, record): (Bytes, Record) = decode(&row, &value)?;
        late.push(told(Bytes::copy_from_slice(&key), &record, LateState::Waiting));
    }
    let (from, to) = range(namespace, AUDIT);
    for row in view.scan_reverse(Family::Namespace, &from, Some(&to))?.take(limit - late.len()) {
        let (row, value) = row?;
        late.push(decode(&row, &value)?);
    }
    Ok(late)
}

/// Nobody waits for these any more: they are remembered only. So are the frontiers of epochs of which nothing waits.
pub(crate) fn settle(
    view: &dyn View,
    namespace: NamespaceId,
    stamps: &BTreeSet<Stamp>,
    state: LateState,
) -> Result<Batch, StoreError> {
    let mut batch = Batch::new();
    let mut audit = BTreeSet::new();
    for stamp in stamps {
        let row = key(namespace, WAITING, *stamp);
        let Some(value) = view.get(Family::Namespace, &row)? else { continue };
        let (of, record): (Bytes, Record) = decode(&row, &value)?;
        batch.delete(Family::Namespace, row);
        let row = key(namespace, AUDIT, *stamp);
        let value = encode(&row, &told(of, &record, state))?;
        batch.put(Family::Namespace, row.clone(), value);
        audit.insert(row);
    }
    let (from, to) = range(namespace, AUDIT);
    for row in view.scan(Family::Namespace, &from, Some(&to))? {
        audit.insert(row?.0);
    }
    for old in audit.iter().take(audit.len().saturating_sub(REMEMBERED)) {
        batch.delete(Family::Namespace, old.clone());
    }
    for epoch in frontiers(view, namespace)?.into_keys() {
        let (from, to) = layout::prefix_range(layout::namespace_key(namespace, WAITING, &epoch.0.to_be_bytes()));
        let mut waits = false;
        for row in view.scan(Family::Namespace, &from, Some(&to))?.take(stamps.len() + 1) {
            waits |= !stamps.contains(&stamp_of(&row?.0)?);
        }
        if !waits {
            batch.delete(Family::Namespace, layout::namespace_key(namespace, FRONTIER, &epoch.0.to_be_bytes()));
        }
    }
    Ok(batch)
}

/// Everything of a namespace, whoever wrote it.
pub(crate) fn purge(batch: &mut Batch, namespace: NamespaceId) {
    for family in [Family::Data, Family::Origin, Family::Namespace] {
        let (from, to) = layout::prefix_range(layout::namespace_prefix(namespace));
        batch.delete_range(family, from, to);
    }
}

fn told(key: Bytes, record: &Record, state: LateState) -> LateWrite {
    LateWrite { key, stamp: record.stamp, tombstone: record.body == Body::Tombstone, state }
}

fn epoch_of(row: &[u8]) -> Result<Epoch, StoreError> {
    let bytes = row.get(9..).and_then(|epoch| epoch.try_into().ok());
    bytes.map(|bytes| Epoch(u32::from_be_bytes(bytes))).ok_or_else(|| malformed(row))
}

fn stamp_of(row: &[u8]) -> Result<Stamp, StoreError> {
    let bytes = row.get(9..).and_then(|stamp| stamp.try_into().ok());
    bytes.map(Stamp::from_bytes).ok_or_else(|| malformed(row))
}

fn malformed(row: &[u8]) -> StoreError {
    StoreError::corrupt(format!("a late write under {}", row.escape_ascii()))
}
