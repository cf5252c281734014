//! Rows of a namespace beside its records: a version byte and postcard, under the store's guard (a checksum bound to
//! the key).

use bytes::Bytes;
use duet_proto::{Epoch, NamespaceId};
use duet_store::{Batch, Family, StoreError, View, layout};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::State;

const VERSION: u8 = 1;
/// The [`State`] of the machine; nothing after it.
const STATE: u8 = 0x10;
/// An answer of the exactly-once table; then its [`Position`].
const ANSWER: u8 = 0x11;
/// The progress of an install; nothing after it.
const INSTALL: u8 = 0x12;
/// Where the answers lie that an epoch has ended with; nothing after it.
const ENDED: u8 = 0x13;
/// Set in the id of the namespace under which a snapshot is staged. The catalog counts ids from one.
const STAGING: u64 = 1 << 63;

/// A position in the history of a namespace: an epoch, and an index in the log of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The epoch.
    pub epoch: Epoch,
    /// The index in that epoch's log.
    pub index: u64,
}

impl Position {
    const LEN: usize = 12;

    pub(crate) fn next(self) -> Position {
        Position { index: self.index + 1, ..self }
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes[4..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Position> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let (epoch, index) = bytes.split_first_chunk::<4>()?;
        Some(Position { epoch: Epoch(u32::from_be_bytes(*epoch)), index: u64::from_be_bytes(index.try_into().ok()?) })
    }
}

/// The namespace id under which a snapshot of `namespace` is staged.
pub(crate) fn staging(namespace: NamespaceId) -> NamespaceId {
    NamespaceId(namespace.0 | STAGING)
}

pub(crate) fn state_key(namespace: NamespaceId) -> Bytes {
    layout::namespace_key(namespace, STATE, &[])
}

pub(crate) fn install_key(namespace: NamespaceId) -> Bytes {
    layout::namespace_key(namespace, INSTALL, &[])
}

/// Where the answer of a position lies. With a part of a position, where those at or after it begin.
pub(crate) fn answer_key(namespace: NamespaceId, position: &[u8]) -> Bytes {
    layout::namespace_key(namespace, ANSWER, position)
}

fn ended_key(namespace: NamespaceId) -> Bytes {
    layout::namespace_key(namespace, ENDED, &[])
}

/// Notes where the answers lie that an epoch has ended with: nothing is added to them any more, and to look for them would
/// mean to pass all that were there and are gone, which the store does one by one.
pub(crate) fn note_answers<'a>(
    batch: &mut Batch,
    namespace: NamespaceId,
    epoch: Epoch,
    positions: impl Iterator<Item = &'a Position>,
) {
    put(batch, ended_key(namespace), &(epoch, positions.collect::<Vec<_>>()));
}

/// The rows of all answers, in their order.
pub(crate) fn answers(
    view: &dyn View,
    namespace: NamespaceId,
) -> Result<impl Iterator<Item = Result<(Bytes, Bytes), StoreError>> + '_, StoreError> {
    let noted = get::<(Epoch, Vec<Position>)>(view, &ended_key(namespace))?;
    // It outlives the epoch that it is about.
    let state = get::<State>(view, &state_key(namespace))?.filter(|state| state.sealed.is_some());
    let noted = noted.filter(|(epoch, _)| state.is_some_and(|state| state.applied.epoch == *epoch));
    let all = match &noted {
        Some(_) => None,
        None => {
            let (from, to) = layout::prefix_range(answer_key(namespace, &[]));
            Some(view.scan(Family::Namespace, &from, Some(&to))?)
        }
    };
    // One may have gone since, by an entry behind the seal.
    let some = noted.into_iter().flat_map(|(_, positions)| positions).filter_map(move |position| {
        let key = answer_key(namespace, &position.to_bytes());
        let row = view.get(Family::Namespace, &key).transpose()?;
        Some(row.map(|value| (key, value)))
    });
    Ok(all.into_iter().flatten().chain(some))
}

/// The bytes of a position at the end of an answer's key.
pub(crate) fn answer_position(key: &Bytes) -> Result<Bytes, StoreError> {
    match key.len().checked_sub(Position::LEN) {
        Some(at) => Ok(key.slice(at..)),
        None => Err(StoreError::corrupt(format!("the key {} is not an answer's", key.escape_ascii()))),
    }
}

/// The payload of a row.
pub(crate) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_extend(row, vec![VERSION]).expect("plain data serializes into memory")
}

/// The inverse of [`encode`].
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, StoreError> {
    match payload.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((row, [])) => Ok(row),
            Ok(_) => Err(StoreError::corrupt("a row with bytes after its end")),
            Err(error) => Err(StoreError::corrupt(format!("a row that does not read: {error}"))),
        },
        Some((version, _)) => Err(StoreError::corrupt(format!("a row of version {version}, not {VERSION}"))),
        None => Err(StoreError::corrupt("an empty row")),
    }
}

pub(crate) fn put<T: Serialize>(batch: &mut Batch, key: Bytes, row: &T) {
    let value = layout::guard(&key, &encode(row));
    batch.put(Family::Namespace, key, value);
}

pub(crate) fn get<T: DeserializeOwned>(view: &dyn View, key: &[u8]) -> Result<Option<T>, StoreError> {
    let Some(bytes) = view.get(Family::Namespace, key)? else { return Ok(None) };
    decode(&layout::unguard(key, &bytes)?).map(Some)
}

/// Removes every answer of a namespace.
pub(crate) fn drop_answers(batch: &mut Batch, namespace: NamespaceId) {
    let (from, to) = layout::prefix_range(answer_key(namespace, &[]));
    batch.delete_range(Family::Namespace, from, to);
    batch.delete(Family::Namespace, ended_key(namespace));
}

/// Removes every record, with the list of tombstones, and every answer of a namespace.
pub(crate) fn clear(batch: &mut Batch, namespace: NamespaceId) {
    let (from, to) = layout::prefix_range(layout::namespace_prefix(namespace));
    batch.delete_range(Family::Data, from, to);
    let (from, to) = layout::prefix_range(layout::tombstone_prefix(namespace));
    batch.delete_range(Family::Namespace, from, to);
    drop_answers(batch, namespace);
}
