//! Time as the engine meets it: an argument. And whose clock is out of line, by what peers say of each other.

use std::collections::BTreeMap;

use duet_proto::{ClockFault, Hlc, NodeId};
use duet_store::{HybridClock, StoreError};

/// The node's hybrid clock.
pub trait Clock {
    /// The next time, above every time given or observed, on this disk at least.
    ///
    /// # Errors
    /// If the clock cannot keep its bound.
    fn tick(&self) -> Result<Hlc, StoreError>;
    /// Takes note of a remote time.
    ///
    /// # Errors
    /// If it is too far ahead of the wall clock; it is then not taken note of.
    fn observe(&self, remote: Hlc) -> Result<(), ClockFault>;
    /// The latest time given or observed.
    fn last(&self) -> Hlc;
    /// The wall clock, in milliseconds.
    fn wall_ms(&self) -> u64;
    /// How far ahead of the wall clock a time may be, in milliseconds.
    fn drift_ms(&self) -> u64;
}

impl Clock for HybridClock {
    fn tick(&self) -> Result<Hlc, StoreError> {
        HybridClock::tick(self)
    }

    fn observe(&self, remote: Hlc) -> Result<(), ClockFault> {
        HybridClock::observe(self, remote)
    }

    fn last(&self) -> Hlc {
        HybridClock::last(self)
    }

    fn wall_ms(&self) -> u64 {
        HybridClock::wall_ms(self)
    }

    fn drift_ms(&self) -> u64 {
        HybridClock::drift_ms(self)
    }
}

/// What peers' messages say of clocks.
///
/// A message that bears a wall clock ahead of the receiver's proves a difference: a delay only makes it look smaller.
/// So each side judges only what is ahead of it, and tells. A node that differs from more than half of the peers it
/// has lately heard takes itself to be the one out of line; between two, nobody can tell, and both do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clocks(BTreeMap<NodeId, Word>);

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    heard_ms: u64,
    /// How far the peer is ahead of this node, as it shows.
    ahead_ms: u64,
    /// How far this node is ahead of the peer, as the peer says.
    behind_ms: u64,
}

impl Clocks {
    /// A message of `peer` that bears its wall clock.
    pub(crate) fn heard(&mut self, peer: NodeId, now_ms: u64, their_ms: u64, clock: &dyn Clock) {
        let word = self.0.entry(peer).or_default();
        word.heard_ms = now_ms;
        let ahead = their_ms.saturating_sub(clock.wall_ms());
        word.ahead_ms = if ahead > clock.drift_ms() { ahead } else { 0 };
    }

    /// What `peer` says of this node's clock.
    pub(crate) fn told(&mut self, peer: NodeId, ahead_ms: u64) {
        self.0.entry(peer).or_default().behind_ms = ahead_ms;
    }

    /// The peers that are ahead of this node, to be told so.
    pub(crate) fn ahead(&self) -> Vec<(NodeId, u64)> {
        self.0.iter().filter(|(_, w)| w.ahead_ms > 0).map(|(node, w)| (*node, w.ahead_ms)).collect()
    }

    /// Whether this node may give stamps that its peers will take.
    pub(crate) fn check(&self, now_ms: u64, word_ms: u64, clock: &dyn Clock) -> Result<(), ClockFault> {
        let allowed_ms = clock.drift_ms();
        let own = clock.last().millis().saturating_sub(clock.wall_ms());
        if own > allowed_ms {
            return Err(ClockFault { ahead_ms: own, allowed_ms });
        }
        let fresh = || self.0.values().filter(|w| now_ms.saturating_sub(w.heard_ms) <= word_ms);
        let differ = fresh().map(|w| w.ahead_ms.max(w.behind_ms)).filter(|ms| *ms > 0);
        match differ.clone().max() {
            Some(ahead_ms) if differ.count() * 2 > fresh().count() => Err(ClockFault { ahead_ms, allowed_ms }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u64);

    impl Clock for Fixed {
        fn tick(&self) -> Result<Hlc, StoreError> {
            Ok(Hlc::from_millis(self.0))
        }

        fn observe(&self, _: Hlc) -> Result<(), ClockFault> {
            Ok(())
        }

        fn last(&self) -> Hlc {
            Hlc::ZERO
        }

        fn wall_ms(&self) -> u64 {
            self.0
        }

        fn drift_ms(&self) -> u64 {
            500
        }
    }

    const HOUR: u64 = 3_600_000;

    #[test]
    fn who_differs_from_most_is_out_of_line() {
        let (here, mut clocks) = (Fixed(10 * HOUR), Clocks::default());
        clocks.heard(NodeId(2), 0, 10 * HOUR + 500, &here);
        clocks.heard(NodeId(3), 0, 11 * HOUR, &here);
        assert_eq!(clocks.ahead(), [(NodeId(3), HOUR)]);
        assert_eq!(clocks.check(0, 30_000, &here), Ok(()), "one of two is ahead: that is its affair");
        clocks.told(NodeId(2), HOUR);
        assert!(clocks.check(0, 30_000, &here).is_err(), "both differ from this node");
        clocks.told(NodeId(2), 0);
        assert_eq!(clocks.check(0, 30_000, &here), Ok(()), "it recovers when its clock does");
    }

    #[test]
    fn a_word_grows_old() {
        let (here, mut clocks) = (Fixed(10 * HOUR), Clocks::default());
        clocks.heard(NodeId(2), 0, 11 * HOUR, &here);
        assert!(clocks.check(30_000, 30_000, &here).is_err());
        assert_eq!(clocks.check(30_001, 30_000, &here), Ok(()));
    }
}
