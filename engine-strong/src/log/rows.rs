//! The rows of a group, as bytes.

use bytes::{BufMut, Bytes, BytesMut};
use duet_proto::NamespaceName;
use duet_store::{Batch, Family, StoreError, View, layout};
use prost::Message;
use raft::eraftpb::{ConfState, Entry, HardState};

use super::Place;
use crate::GroupId;

const GROUP: u8 = 1;
const HARD: u8 = 2;
const CONF: u8 = 3;
const BASE: u8 = 4;

/// The group's own row: that it exists, and what it is called.
pub(crate) struct Row;

impl Row {
    pub(crate) fn put(batch: &mut Batch, id: GroupId, name: &NamespaceName) {
        put(batch, id, GROUP, name.as_str().as_bytes());
    }

    /// Every group of the store, with its name.
    pub(crate) fn list(view: &dyn View) -> Result<Vec<(GroupId, NamespaceName)>, StoreError> {
        let mut groups = Vec::new();
        for row in view.scan(Family::RaftState, &[], None)? {
            let (key, value) = row?;
            if key.get(12..) != Some(&[GROUP]) {
                continue;
            }
            let (namespace, epoch) = layout::split_group(&key)?;
            let name = layout::unguard(&key, &value)?;
            let name = std::str::from_utf8(&name).ok().and_then(|name| NamespaceName::new(name).ok());
            let name = name.ok_or_else(|| StoreError::corrupt("a group without a valid name"))?;
            groups.push((GroupId { namespace, epoch }, name));
        }
        Ok(groups)
    }

    /// Removes the log and every row of a group.
    pub(crate) fn destroy(batch: &mut Batch, id: GroupId) {
        let (from, to) = layout::prefix_range(layout::group_prefix(id.namespace, id.epoch));
        batch.delete_range(Family::RaftLog, from.clone(), to.clone());
        batch.delete_range(Family::RaftState, from, to);
    }
}

fn put(batch: &mut Batch, id: GroupId, what: u8, payload: &[u8]) {
    let key = layout::state_key(id.namespace, id.epoch, what, &[]);
    let value = layout::guard(&key, payload);
    batch.put(Family::RaftState, key, value);
}

fn get(view: &dyn View, id: GroupId, what: u8) -> Result<Bytes, StoreError> {
    let key = layout::state_key(id.namespace, id.epoch, what, &[]);
    match view.get(Family::RaftState, &key)? {
        Some(value) => layout::unguard(&key, &value),
        None => Err(StoreError::corrupt(format!("row {what} of group {id} is missing"))),
    }
}

pub(super) fn put_hard(batch: &mut Batch, id: GroupId, hard: &HardState) {
    put(batch, id, HARD, &hard.encode_to_vec());
}

pub(super) fn put_conf(batch: &mut Batch, id: GroupId, conf: &ConfState) {
    put(batch, id, CONF, &conf.encode_to_vec());
}

pub(super) fn put_base(batch: &mut Batch, id: GroupId, base: Place) {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&base.index.to_be_bytes());
    payload[8..].copy_from_slice(&base.term.to_be_bytes());
    put(batch, id, BASE, &payload);
}

/// Hard state, members and base of a group.
pub(super) fn state(view: &dyn View, id: GroupId) -> Result<(HardState, ConfState, Place), StoreError> {
    let malformed = |what: &str| StoreError::corrupt(format!("{what} of group {id} does not read"));
    let hard = HardState::decode(get(view, id, HARD)?).map_err(|_| malformed("the hard state"))?;
    let conf = decode_conf(&get(view, id, CONF)?)?;
    let base = get(view, id, BASE)?;
    let Some((index, term)) = base.split_first_chunk::<8>() else { return Err(malformed("the log's base")) };
    let term: [u8; 8] = term.try_into().map_err(|_| malformed("the log's base"))?;
    Ok((hard, conf, Place { index: u64::from_be_bytes(*index), term: u64::from_be_bytes(term) }))
}

/// The members of a group as a snapshot of the store shows them, as they travel.
pub(crate) fn stored_conf(view: &dyn View, id: GroupId) -> Result<Bytes, StoreError> {
    get(view, id, CONF)
}

pub(crate) fn decode_conf(bytes: &[u8]) -> Result<ConfState, StoreError> {
    ConfState::decode(bytes).map_err(|_| StoreError::corrupt("members that do not read"))
}

/// The row of an entry: what [`layout::guard`] makes, without copying the entry once more.
pub(super) fn encode_entry(id: GroupId, entry: &Entry) -> (Bytes, Bytes) {
    let key = layout::log_key(id.namespace, id.epoch, entry.index);
    let mut value = BytesMut::with_capacity(4 + entry.encoded_len());
    value.put_u32(0);
    // Only a full buffer could fail, and this one grows.
    let _ = entry.encode(&mut value);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&key), &value[4..]);
    value[..4].copy_from_slice(&checksum.to_be_bytes());
    (key, value.freeze())
}

pub(super) fn decode_entry(key: &Bytes, value: &Bytes) -> Result<Entry, StoreError> {
    let (_, _, index) = layout::split_log_key(key)?;
    match Entry::decode(layout::unguard(key, value)?) {
        Ok(entry) if entry.index == index => Ok(entry),
        _ => Err(StoreError::corrupt(format!("the log entry {} does not read", key.escape_ascii()))),
    }
}
