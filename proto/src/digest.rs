//! The digest of a namespace: equal data, equal digest, at O(1) per write.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

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
        let mut hash = Xxh3::new();
        hash.update(&(key.len() as u32).to_le_bytes());
        hash.update(key);
        hash.update(&record.stamp.to_bytes());
        hash.update(value);
        Digest(hash.digest128())
    }

    /// Puts one record in the place of another, or of nothing.
    pub fn replace(&mut self, key: &[u8], old: Option<&Record>, new: Option<&Record>) {
        let old = old.map_or(Digest::EMPTY, |r| Digest::of(key, r));
        let new = new.map_or(Digest::EMPTY, |r| Digest::of(key, r));
        self.0 = self.0.wrapping_sub(old.0).wrapping_add(new.0);
    }
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
