//! The digest of a namespace: equal data, equal digest, at O(1) per write.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::{Body, Record};

/// A wrapping sum of 128-bit hashes of `(key, stamp, value)` over the live values of a namespace.
///
/// Addition commutes, so replicas that hold the same records have the same digest whatever the order they came in.
/// Tombstones do not count: forgetting one leaves the digest as it is. After Bellare and Micciancio's AdHash
/// (Eurocrypt 1997); it guards against faults, not against an adversary who chooses values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub u128);

impl Digest {
    /// The digest of an empty namespace.
    pub const EMPTY: Digest = Digest(0);

    /// What one record adds; zero for a tombstone.
    #[must_use]
    pub fn of(key: &[u8], record: &Record) -> Digest {
        let Body::Value(value) = &record.body else { return Digest::EMPTY };
        let (len, stamp) = ((key.len() as u32).to_le_bytes(), record.stamp.to_bytes());
        let parts: [&[u8]; 4] = [&len, key, &stamp, value];
        Digest(if parts.iter().map(|part| part.len()).sum::<usize>() <= SHORT {
            at_once(parts)
        } else {
            in_turn(parts)
        })
    }

    /// Puts one record in the place of another, or of nothing.
    pub fn replace(&mut self, key: &[u8], old: Option<&Record>, new: Option<&Record>) {
        let old = old.map_or(Digest::EMPTY, |r| Digest::of(key, r));
        let new = new.map_or(Digest::EMPTY, |r| Digest::of(key, r));
        self.0 = self.0.wrapping_sub(old.0).wrapping_add(new.0);
    }
}

/// Bytes that are hashed together: most records are no longer, and the state for a hash that goes on costs more than them.
const SHORT: usize = 512;

fn at_once(parts: [&[u8]; 4]) -> u128 {
    let (mut bytes, mut end) = ([0; SHORT], 0);
    for part in parts {
        bytes[end..end + part.len()].copy_from_slice(part);
        end += part.len();
    }
    xxh3_128(&bytes[..end])
}

fn in_turn(parts: [&[u8]; 4]) -> u128 {
    let mut hash = Xxh3::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.digest128()
}

/// Thirty-two hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Hlc, NodeId, Stamp};

    #[test]
    fn it_does_not_matter_how_it_is_hashed() {
        let bytes: Vec<u8> = (0..SHORT).map(|n| (n * n) as u8).collect();
        for len in [0, 1, 100, 240, 241, 256, 300, SHORT - 20, SHORT - 16] {
            let parts: [&[u8]; 4] = [b"key", &bytes[..len], b"", b"and the stamp"];
            assert_eq!(at_once(parts), in_turn(parts), "{len}");
        }
    }

    #[test]
    fn order_and_tombstones_do_not_matter() {
        let at = |hlc| Stamp { epoch: Epoch(1), hlc: Hlc(hlc), node: NodeId(1) };
        let (a, b) = (Record::value(at(1), "1".into()), Record::value(at(2), "2".into()));
        let gone = Record::tombstone(at(3));
        let mut one = Digest::EMPTY;
        one.replace(b"a", None, Some(&a));
        one.replace(b"b", None, Some(&b));
        one.replace(b"b", Some(&b), Some(&gone));
        one.replace(b"b", Some(&gone), None);
        let mut two = Digest::EMPTY;
        two.replace(b"a", None, Some(&a));
        assert_eq!(one, two);
        two.replace(b"a", Some(&a), None);
        assert_eq!(two, Digest::EMPTY);
    }
}
