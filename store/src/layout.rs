//! Where everything lies: all key encodings, byte by byte. Values are their owners' affair; see
//! `specs/data-layout.md`. Integers are big-endian, so that keys sort as what they stand for.
//!
//! | family | key |
//! | --- | --- |
//! | `node` | an ASCII name |
//! | `raft_log` | namespace 8, epoch 4, index 8 |
//! | `raft_state` | namespace 8, epoch 4, what 1, the rest as `what` says |
//! | `data` | namespace 8, the user's key |
//! | `origin` | namespace 8, epoch 4, origin node 4, hlc 8 |
//! | `namespace` | namespace 8, what 1, the rest as `what` says |

use bytes::{BufMut, Bytes, BytesMut};
use duet_proto::{Epoch, Hlc, NamespaceId, NodeId, Stamp, limits};

use crate::StoreError;

/// The version of the layout as a whole, kept in the identity record.
pub const VERSION: u8 = 3;
/// In `node`: who the directory belongs to.
pub const IDENTITY: &[u8] = b"identity";
/// In `node`: how often the node has started.
pub const BOOT: &[u8] = b"boot";
/// In `node`: the time below which all stamps in this directory lie.
pub const CLOCK: &[u8] = b"clock";

/// A key above every key of every family.
const TOP: [u8; limits::KEY_MAX + 64] = [0xff; limits::KEY_MAX + 64];

/// The first key after all those that begin with `prefix`.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|b| *b != 0xff) {
        None => Bytes::from_static(&TOP),
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
    }
}

/// The keys that begin with `prefix`, as a range `from..to`.
#[must_use]
pub fn prefix_range(prefix: impl Into<Bytes>) -> (Bytes, Bytes) {
    let prefix = prefix.into();
    let end = after_prefix(&prefix);
    (prefix, end)
}

/// What the keys of a namespace begin with, in every family but `node`.
#[must_use]
pub fn namespace_prefix(namespace: NamespaceId) -> Bytes {
    Bytes::copy_from_slice(&namespace.0.to_be_bytes())
}

/// What the keys of a group begin with, in `raft_log` and `raft_state` (and `origin`).
#[must_use]
pub fn group_prefix(namespace: NamespaceId, epoch: Epoch) -> Bytes {
    group(namespace, epoch, 0).freeze()
}

fn group(namespace: NamespaceId, epoch: Epoch, more: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(12 + more);
    key.put_u64(namespace.0);
    key.put_u32(epoch.0);
    key
}

/// In `data`: where a user's key lies.
#[must_use]
pub fn data_key(namespace: NamespaceId, key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(8 + key.len());
    bytes.put_u64(namespace.0);
    bytes.put_slice(key);
    bytes.freeze()
}

/// The inverse of [`data_key`]; the key shares the memory of `bytes`.
///
/// # Errors
/// If the bytes are too short to be one.
pub fn split_data_key(bytes: &Bytes) -> Result<(NamespaceId, Bytes), StoreError> {
    let namespace = NamespaceId(u64::from_be_bytes(fixed(bytes, 0)?));
    Ok((namespace, bytes.slice(8..)))
}

/// In `raft_log`: where an entry lies.
#[must_use]
pub fn log_key(namespace: NamespaceId, epoch: Epoch, index: u64) -> Bytes {
    let mut key = group(namespace, epoch, 8);
    key.put_u64(index);
    key.freeze()
}

/// The inverse of [`log_key`].
///
/// # Errors
/// If the bytes are not twenty.
pub fn split_log_key(bytes: &[u8]) -> Result<(NamespaceId, Epoch, u64), StoreError> {
    exactly(bytes, 20)?;
    let (namespace, epoch) = split_group(bytes)?;
    Ok((namespace, epoch, u64::from_be_bytes(fixed(bytes, 12)?)))
}

/// In `raft_state`: a row of a group.
#[must_use]
pub fn state_key(namespace: NamespaceId, epoch: Epoch, what: u8, rest: &[u8]) -> Bytes {
    let mut key = group(namespace, epoch, 1 + rest.len());
    key.put_u8(what);
    key.put_slice(rest);
    key.freeze()
}

/// In `namespace`: a row of a namespace.
#[must_use]
pub fn namespace_key(namespace: NamespaceId, what: u8, rest: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(9 + rest.len());
    key.put_u64(namespace.0);
    key.put_u8(what);
    key.put_slice(rest);
    key.freeze()
}

const TOMBSTONE: u8 = 0x21;

/// In `namespace`: the row under which the key of a tombstone is listed, by the tombstone's stamp. Both engines list
/// theirs, so that they are found without reading everything.
#[must_use]
pub fn tombstone_key(namespace: NamespaceId, stamp: Stamp) -> Bytes {
    namespace_key(namespace, TOMBSTONE, &stamp.to_bytes())
}

/// What the rows of all tombstones of a namespace begin with.
#[must_use]
pub fn tombstone_prefix(namespace: NamespaceId) -> Bytes {
    namespace_key(namespace, TOMBSTONE, &[])
}

/// The stamp in a key made by [`tombstone_key`].
///
/// # Errors
/// If it is none.
pub fn tombstone_stamp(key: &[u8]) -> Result<Stamp, StoreError> {
    exactly(key, 9 + Stamp::LEN)?;
    Ok(Stamp::from_bytes(fixed(key, 9)?))
}

/// The list of a namespace's tombstones from a stamp on, as a range.
#[must_use]
pub fn tombstones_from(namespace: NamespaceId, from: Stamp) -> (Bytes, Bytes) {
    (tombstone_key(namespace, from), after_prefix(&tombstone_prefix(namespace)))
}

/// In `origin`: which write of which node.
#[must_use]
pub fn origin_key(namespace: NamespaceId, epoch: Epoch, origin: NodeId, hlc: Hlc) -> Bytes {
    let mut key = group(namespace, epoch, 12);
    key.put_u32(origin.0);
    key.put_u64(hlc.0);
    key.freeze()
}

/// The inverse of [`origin_key`].
///
/// # Errors
/// If the bytes are not twenty-four.
pub fn split_origin_key(bytes: &[u8]) -> Result<(NamespaceId, Epoch, NodeId, Hlc), StoreError> {
    exactly(bytes, 24)?;
    let (namespace, epoch) = split_group(bytes)?;
    let origin = NodeId(u32::from_be_bytes(fixed(bytes, 12)?));
    Ok((namespace, epoch, origin, Hlc(u64::from_be_bytes(fixed(bytes, 16)?))))
}

/// The namespace and epoch that a key of `raft_log`, `raft_state` or `origin` begins with.
///
/// # Errors
/// If there are fewer than twelve bytes.
pub fn split_group(bytes: &[u8]) -> Result<(NamespaceId, Epoch), StoreError> {
    let namespace = NamespaceId(u64::from_be_bytes(fixed(bytes, 0)?));
    Ok((namespace, Epoch(u32::from_be_bytes(fixed(bytes, 8)?))))
}

/// A small value with the checksum that guards it: CRC-32C of the key and the payload 4, then the payload.
#[must_use]
pub fn guard(key: &[u8], payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(4 + payload.len());
    bytes.put_u32(crc32c::crc32c_append(crc32c::crc32c(key), payload));
    bytes.put_slice(payload);
    bytes.freeze()
}

/// The payload of what [`guard`] made for the same key.
///
/// # Errors
/// [`StoreError::Corrupt`] if it is not what was written.
pub fn unguard(key: &[u8], bytes: &Bytes) -> Result<Bytes, StoreError> {
    let expected = u32::from_be_bytes(fixed(bytes, 0)?);
    let payload = bytes.slice(4..);
    let found = crc32c::crc32c_append(crc32c::crc32c(key), &payload);
    if found == expected {
        return Ok(payload);
    }
    Err(StoreError::corrupt(format!("the row {} has checksum {found:08x}, not {expected:08x}", key.escape_ascii())))
}

fn exactly(bytes: &[u8], len: usize) -> Result<(), StoreError> {
    if bytes.len() == len { Ok(()) } else { Err(malformed(bytes)) }
}

fn fixed<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], StoreError> {
    let slice = bytes.get(at..at + N).ok_or_else(|| malformed(bytes))?;
    slice.try_into().map_err(|_| malformed(bytes))
}

fn malformed(bytes: &[u8]) -> StoreError {
    StoreError::corrupt(format!("{} bytes where others belong: {}", bytes.len(), bytes.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_read_back_and_sort(a in any::<(u64, u32, u32, u64)>(), b in any::<(u64, u32, u32, u64)>()) {
            let origin = |t: (u64, u32, u32, u64)| origin_key(NamespaceId(t.0), Epoch(t.1), NodeId(t.2), Hlc(t.3));
            prop_assert_eq!(origin(a).cmp(&origin(b)), a.cmp(&b));
            prop_assert_eq!(
                split_origin_key(&origin(a)),
                Ok((NamespaceId(a.0), Epoch(a.1), NodeId(a.2), Hlc(a.3)))
            );
            let log = |t: (u64, u32, u32, u64)| log_key(NamespaceId(t.0), Epoch(t.1), t.3);
            prop_assert_eq!(log(a).cmp(&log(b)), (a.0, a.1, a.3).cmp(&(b.0, b.1, b.3)));
            prop_assert_eq!(split_log_key(&log(a)), Ok((NamespaceId(a.0), Epoch(a.1), a.3)));
            let stamp = |t: (u64, u32, u32, u64)| Stamp { epoch: Epoch(t.1), hlc: Hlc(t.3), node: NodeId(t.2) };
            let listed = |t: (u64, u32, u32, u64)| tombstone_key(NamespaceId(t.0), stamp(t));
            prop_assert_eq!(listed(a).cmp(&listed(b)), (a.0, stamp(a)).cmp(&(b.0, stamp(b))));
            prop_assert_eq!(tombstone_stamp(&listed(a)), Ok(stamp(a)));
            let (from, to) = tombstones_from(NamespaceId(a.0), stamp(a));
            prop_assert_eq!((from..to).contains(&listed(b)), a.0 == b.0 && stamp(a) <= stamp(b));
        }

        #[test]
        fn a_prefix_ends_where_it_should(
            prefix in prop::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..6),
            key in prop::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..9),
        ) {
            let (from, to) = prefix_range(prefix.clone());
            prop_assert_eq!(key.starts_with(&prefix), (from..to).contains(&Bytes::from(key)));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..32)) {
            let bytes = Bytes::from(bytes);
            let _ = (split_data_key(&bytes), split_log_key(&bytes), split_origin_key(&bytes), unguard(b"k", &bytes));
            let _ = tombstone_stamp(&bytes);
        }
    }

    #[test]
    fn a_guarded_row_is_bound_to_its_key() {
        let bytes = guard(BOOT, b"payload");
        assert_eq!(unguard(BOOT, &bytes), Ok(Bytes::from_static(b"payload")));
        assert!(matches!(unguard(CLOCK, &bytes), Err(StoreError::Corrupt { .. })));
    }
}
