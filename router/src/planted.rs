//! Bugs that the simulation must find.

use crate::router::Inner;

/// Takes one rule of `specs/switch.md` away each. They can be chosen only with the feature `planted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Serves reads of an epoch from what the next one has written.
    ReadsOfNextEpoch,
    /// Opens an eventual epoch over what is here, whether or not the seal is applied (before all others).
    OpenBeforeSeal,
    /// Makes do with a majority, however few copies there are (rule 1).
    MajorityIsEnough,
    /// Lists nobody who may have been left out with writes (rule 7).
    OwedForgotten,
    /// Keeps no tombstones for those who are listed (rule 7).
    TombstonesForgotten,
    /// Runs a write of an earlier strong epoch if the table does not know it (rule 9).
    EarlierTriesRun,
    /// Honours tokens of earlier epochs without a look (rule 10).
    TokenOfAnyEpoch,
}

impl Inner {
    #[cfg(feature = "planted")]
    pub(crate) fn bug(&self) -> Option<Planted> {
        self.config.planted
    }

    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self, reason = "with the feature it is of the configuration")]
    pub(crate) fn bug(&self) -> Option<Planted> {
        None
    }

    /// Whether this bug is planted.
    pub(crate) fn planted(&self, bug: Planted) -> bool {
        self.bug() == Some(bug)
    }
}
