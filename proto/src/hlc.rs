//! Hybrid logical clocks: physical milliseconds that never run backwards.
//!
//! After Kulkarni et al., "Logical Physical Clocks" (OPODIS 2014), with both parts in one word.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A hybrid logical time: 48 bits of milliseconds since the Unix epoch, 16 bits of counter, compared as one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Before every time.
    pub const ZERO: Hlc = Hlc(0);
    /// After every time.
    pub const MAX: Hlc = Hlc(u64::MAX);

    /// The first time of a millisecond.
    #[must_use]
    pub fn from_millis(millis: u64) -> Hlc {
        Hlc(millis << 16)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The position within its millisecond.
    #[must_use]
    pub fn counter(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The time right after this one. Past 65,535 within a millisecond it runs into the next one.
    #[must_use]
    pub fn next(self) -> Hlc {
        Hlc(self.0.saturating_add(1))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.counter())
    }
}

/// A remote time further ahead than the configured drift allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("a time {ahead_ms} ms ahead of this node's clock was refused (at most {allowed_ms} ms are allowed)")]
pub struct ClockFault {
    /// How far ahead it is, in milliseconds.
    pub ahead_ms: u64,
    /// How far ahead it may be, in milliseconds.
    pub allowed_ms: u64,
}

/// The state of one node's clock. Pure: the wall clock is an argument.
///
/// Invariants: the times that [`HlcState::tick`] gives rise strictly; none is at or below one that was observed
/// before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HlcState {
    last: Hlc,
}

impl HlcState {
    /// A clock that will give only times above `floor` (the persisted bound, after a restart).
    #[must_use]
    pub fn above(floor: Hlc) -> HlcState {
        HlcState { last: floor }
    }

    /// The latest time given or observed.
    #[must_use]
    pub fn last(&self) -> Hlc {
        self.last
    }

    /// The next time: the wall clock where it has moved on, else right after the last one.
    pub fn tick(&mut self, wall_ms: u64) -> Hlc {
        self.last = self.last.next().max(Hlc::from_millis(wall_ms));
        self.last
    }

    /// Takes note of a remote time, so that what follows here is after it.
    ///
    /// # Errors
    /// If it is more than `allowed_ms` ahead of the wall clock; the clock is then left as it was.
    pub fn observe(&mut self, remote: Hlc, wall_ms: u64, allowed_ms: u64) -> Result<(), ClockFault> {
        let ahead_ms = remote.millis().saturating_sub(wall_ms);
        if ahead_ms > allowed_ms {
            return Err(ClockFault { ahead_ms, allowed_ms });
        }
        self.last = self.last.max(remote);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ticks_rise_whatever_the_wall_clock_does(walls in prop::collection::vec(0u64..1 << 40, 1..200)) {
            let mut clock = HlcState::default();
            let mut before = Hlc::ZERO;
            for wall in walls {
                let now = clock.tick(wall);
                prop_assert!(now > before);
                prop_assert!(now.millis() >= wall);
                before = now;
            }
        }

        #[test]
        fn what_was_observed_is_passed(remote in 0u64..1 << 56, wall in 0u64..1 << 40, allowed in 0u64..10_000) {
            let mut clock = HlcState::default();
            let result = clock.observe(Hlc(remote), wall, allowed);
            prop_assert_eq!(result.is_ok(), Hlc(remote).millis() <= wall + allowed);
            let next = clock.tick(wall);
            prop_assert!(result.is_err() || next > Hlc(remote));
        }
    }

    #[test]
    fn a_full_millisecond_runs_over() {
        let mut clock = HlcState::above(Hlc(u64::from(u16::MAX) | (7 << 16)));
        assert_eq!(clock.tick(7), Hlc::from_millis(8));
    }
}
