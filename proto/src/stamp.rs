//! Stamps: the version of a record, the same in both modes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Epoch, Hlc, NodeId};

/// The version of a record: epoch first, so that a write of a later epoch wins whatever the clocks say; then hybrid
/// time; then the node that gave it, which makes it unique.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The epoch of the namespace in which it was written.
    pub epoch: Epoch,
    /// When, in hybrid time.
    pub hlc: Hlc,
    /// The node that gave the stamp.
    pub node: NodeId,
}

impl Stamp {
    /// Bytes of an encoded stamp.
    pub const LEN: usize = 16;

    /// Fixed width, big-endian, so that bytes compare as stamps do: epoch 4, hlc 8, node 4.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let word = (u128::from(self.epoch.0) << 96) | (u128::from(self.hlc.0) << 32) | u128::from(self.node.0);
        word.to_be_bytes()
    }

    /// The inverse of [`Stamp::to_bytes`]; every sixteen bytes are a stamp.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Stamp {
        let word = u128::from_be_bytes(bytes);
        Stamp { epoch: Epoch((word >> 96) as u32), hlc: Hlc((word >> 32) as u64), node: NodeId(word as u32) }
    }
}

/// `EPOCH-MILLIS.COUNTER-NODE`, which [`Stamp::from_str`] reads back.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}-{}", self.epoch, self.hlc, self.node))
    }
}

/// A text that is not a stamp.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a stamp: expected EPOCH-MILLIS.COUNTER-NODE, as `duet get` prints it")]
pub struct InvalidStamp(pub String);

impl FromStr for Stamp {
    type Err = InvalidStamp;

    fn from_str(text: &str) -> Result<Stamp, InvalidStamp> {
        let parse = || {
            let mut parts = text.splitn(3, '-');
            let epoch = parts.next()?.parse().ok()?;
            let (millis, counter) = parts.next()?.split_once('.')?;
            let (millis, counter): (u64, u16) = (millis.parse().ok()?, counter.parse().ok()?);
            let node = parts.next()?.parse().ok()?;
            (millis < 1 << 48).then_some(Stamp { epoch, hlc: Hlc(millis << 16 | u64::from(counter)), node })
        };
        parse().ok_or_else(|| InvalidStamp(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamps() -> impl Strategy<Value = Stamp> {
        (any::<u32>(), any::<u64>(), any::<u32>()).prop_map(|(epoch, hlc, node)| Stamp {
            epoch: Epoch(epoch),
            hlc: Hlc(hlc),
            node: NodeId(node),
        })
    }

    proptest! {
        #[test]
        fn bytes_compare_as_stamps(a in stamps(), b in stamps()) {
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
            prop_assert_eq!(Stamp::from_bytes(a.to_bytes()), a);
        }

        #[test]
        fn text_reads_back(a in stamps()) {
            prop_assert_eq!(a.to_string().parse::<Stamp>().unwrap(), a);
        }
    }
}
