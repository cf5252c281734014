//! Records: what a key holds, in one format for both modes.
//!
//! That format is why a change of mode costs what differs between replicas and not what is stored. On disk:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 1 | kind: 1 value, 2 tombstone |
//! | 1 | 4 | CRC-32C of the kind, the key, the stamp and the value, little-endian |
//! | 5 | 16 | stamp, big-endian |
//! | 21 | rest | the value; absent in a tombstone |

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::Stamp;

const KIND_VALUE: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
const HEADER: usize = 5 + Stamp::LEN;

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Body {
    /// A value, possibly empty.
    Value(Bytes),
    /// The memory of a delete.
    Tombstone,
}

/// What a key holds: its version, and a value or a tombstone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The version.
    pub stamp: Stamp,
    /// The value or its absence.
    pub body: Body,
}

/// Bytes that are not a whole record of that key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than a header has.
    #[error("a record of {0} bytes is shorter than its header")]
    Short(usize),
    /// A kind that this version does not know.
    #[error("unknown record kind {0}")]
    Kind(u8),
    /// The checksum is another one: damaged bytes, or the record of another key.
    #[error("record checksum {found:08x} where {expected:08x} is stored")]
    Checksum {
        /// As computed.
        found: u32,
        /// As stored.
        expected: u32,
    },
}

impl Record {
    /// A record that holds a value.
    #[must_use]
    pub fn value(stamp: Stamp, value: Bytes) -> Record {
        Record { stamp, body: Body::Value(value) }
    }

    /// A record that remembers a delete.
    #[must_use]
    pub fn tombstone(stamp: Stamp) -> Record {
        Record { stamp, body: Body::Tombstone }
    }

    /// The value, unless it is a tombstone.
    #[must_use]
    pub fn live(&self) -> Option<&Bytes> {
        match &self.body {
            Body::Value(value) => Some(value),
            Body::Tombstone => None,
        }
    }

    /// The bytes that are stored under `key`.
    #[must_use]
    pub fn encode(&self, key: &[u8]) -> Bytes {
        let (kind, value): (u8, &[u8]) = match &self.body {
            Body::Value(value) => (KIND_VALUE, value),
            Body::Tombstone => (KIND_TOMBSTONE, &[]),
        };
        let stamp = self.stamp.to_bytes();
        let mut bytes = BytesMut::with_capacity(HEADER + value.len());
        bytes.put_u8(kind);
        bytes.put_u32_le(checksum(kind, key, &stamp, value));
        bytes.put_slice(&stamp);
        bytes.put_slice(value);
        bytes.freeze()
    }

    /// Reads what [`Record::encode`] made for the same key. The value shares the memory of `bytes`.
    ///
    /// # Errors
    /// If the bytes are cut, of an unknown kind, damaged, or the record of another key.
    pub fn decode(key: &[u8], bytes: Bytes) -> Result<Record, RecordError> {
        if bytes.len() < HEADER {
            return Err(RecordError::Short(bytes.len()));
        }
        let kind = bytes[0];
        let expected = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        let mut stamp = [0; Stamp::LEN];
        stamp.copy_from_slice(&bytes[5..HEADER]);
        let value = bytes.slice(HEADER..);
        let found = checksum(kind, key, &stamp, &value);
        if found != expected {
            return Err(RecordError::Checksum { found, expected });
        }
        let body = match kind {
            KIND_VALUE => Body::Value(value),
            KIND_TOMBSTONE if value.is_empty() => Body::Tombstone,
            other => return Err(RecordError::Kind(other)),
        };
        Ok(Record { stamp: Stamp::from_bytes(stamp), body })
    }
}

fn checksum(kind: u8, key: &[u8], stamp: &[u8], value: &[u8]) -> u32 {
    [key, stamp, value].into_iter().fold(crc32c::crc32c(&[kind]), crc32c::crc32c_append)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Epoch, Hlc, NodeId};

    fn records() -> impl Strategy<Value = Record> {
        let body = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64).prop_map(|v| Body::Value(v.into())),
            Just(Body::Tombstone)
        ];
        (any::<u32>(), any::<u64>(), any::<u32>(), body).prop_map(|(epoch, hlc, node, body)| Record {
            stamp: Stamp { epoch: Epoch(epoch), hlc: Hlc(hlc), node: NodeId(node) },
            body,
        })
    }

    proptest! {
        #[test]
        fn reads_back(key in prop::collection::vec(any::<u8>(), 1..32), record in records()) {
            prop_assert_eq!(Record::decode(&key, record.encode(&key)), Ok(record));
        }

        #[test]
        fn every_flipped_bit_is_found(record in records(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = record.encode(b"key").to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Record::decode(b"key", bytes.into()).is_err());
        }

        #[test]
        fn no_bytes_panic(key in prop::collection::vec(any::<u8>(), 0..8), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Record::decode(&key, bytes.into());
        }
    }

    #[test]
    fn a_record_under_another_key_is_damaged() {
        let bytes = Record::value(Stamp::default(), "v".into()).encode(b"a");
        assert!(matches!(Record::decode(b"b", bytes), Err(RecordError::Checksum { .. })));
    }
}
