//! What follows an error: pure decisions.
//!
//! Two questions decide everything. *Safe*: may the request be done again without harm, because it reads, or because
//! a [`Try`](duet_proto::Try) makes the cluster do it once? *Uncertain*: may an earlier try of this call already have
//! been done? An uncertain call never ends with an error that says that nothing was done.
//!
//! ```text
//! client           node 1            node 2
//!   | put(try 7) --> | applied
//!   |      (connection breaks: uncertain)
//!   | put(try 7) ----------------------> | no quorum: "was not done and will not be"
//!   |   <- NoQuorum would be a lie: the first try was done. OutcomeUnknown is the truth.
//! ```
//!
//! A third one where the namespace has changed its mode meanwhile: may a write be sent as if for the first time? It
//! may if no copy of it was done or ever will be ([`onward`]).
//!
//! ```text
//! client           node 1, strong, e         node 2, eventual, e+1
//!   | put(try 7, e) --> | applied
//!   |      (connection breaks: uncertain)
//!   | put(no try, e+1) ----------------------> | done twice
//!   | put(try 7, e) -------------------------> | the table knows: the answer, or that it never ran
//! ```

use std::time::Duration;

use duet_proto::{Class, Error, Mode};
use rand::Rng;

/// What is known of a call when an error comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Situation {
    /// Doing it again does no harm.
    pub(crate) safe: bool,
    /// An earlier try may have been done.
    pub(crate) uncertain: bool,
    /// Whether some member has not been asked in this round.
    pub(crate) untried: bool,
    /// How often the namespace was said not to exist.
    pub(crate) not_found: u32,
    /// It goes on from a page of an epoch: it is of no use in another one.
    pub(crate) cursor: bool,
    /// A change of the namespace's mode or members is waited out.
    pub(crate) patient: bool,
}

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Hand it to the caller (as `OutcomeUnknown` if the call is uncertain, see [`verdict`]).
    Give,
    /// Ask another member at once.
    Elsewhere,
    /// Ask another member, within the grace that follows a `NoQuorum`.
    Grace,
    /// Ask the members that the error names.
    Redirect,
    /// Pause, then ask again.
    Pause,
    /// Learn the topology, pause, then ask again.
    Learn,
    /// Learn the namespace's position, then send it as if for the first time.
    Refresh,
    /// The namespace is in another epoch: go on there, as [`onward`] says.
    Follow,
    /// Ask another member, or the same ones again, after a short pause: what holds it up does not take long.
    Wait,
}

/// A write whose namespace is in another epoch than the one it was sent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crossing {
    /// It carries a [`Try`](duet_proto::Try), of a strong epoch.
    pub(crate) numbered: bool,
    /// The mode that the namespace has now.
    pub(crate) now: Mode,
    /// Another copy of it than the one refused may have been done, or may yet be.
    pub(crate) uncertain: bool,
    /// It compares.
    pub(crate) conditional: bool,
}

/// How a write goes on in another epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onward {
    /// As if for the first time, with what makes it exactly once where the epoch is strong: no copy of it was done.
    Anew,
    /// It ends: nobody knows whether it was done.
    Unknown,
    /// It ends: nothing was done, and this mode cannot do it.
    Unsupported,
}

/// How many nodes must say that a namespace does not exist: the view of one may lag behind its creation.
pub(crate) const BELIEVE_NOT_FOUND: u32 = 3;

/// Decides.
pub(crate) fn decide(error: &Error, at: Situation) -> Step {
    match (error, error.class()) {
        (Error::NamespaceNotFound { .. }, _) if at.not_found < BELIEVE_NOT_FOUND => Step::Learn,
        (_, Class::Caller) => Step::Give,
        (Error::OutcomeUnknown { .. }, _) if at.safe => Step::Elsewhere,
        (_, Class::Unknown) => Step::Give,
        // One member's full disk or damaged record need not be another's.
        (_, Class::Fatal) if at.untried => Step::Elsewhere,
        (_, Class::Fatal) => Step::Give,
        (Error::NoQuorum { .. }, _) => Step::Grace,
        (Error::NotHere { .. }, _) => Step::Redirect,
        (Error::EpochChanged { .. }, _) if at.cursor => Step::Give,
        (Error::EpochChanged { .. }, _) => Step::Follow,
        (Error::Changing { .. }, _) if !at.patient => Step::Give,
        (Error::Changing { .. }, _) => Step::Wait,
        // The namespace may be another one of the same name, which has never seen what the token has.
        (Error::TokenNotCovered { .. }, _) if !at.untried => Step::Learn,
        (Error::SessionExpired { .. }, _) if at.uncertain => Step::Give,
        (Error::SessionExpired { .. }, _) => Step::Refresh,
        (_, Class::Retry) if at.untried => Step::Elsewhere,
        (_, Class::Retry) => Step::Pause,
    }
}

/// Decides how a write that was refused with `EpochChanged` goes on.
///
/// The refusal is certain for the copy that was refused. It is certain for all of them where they have a number: that was
/// looked up, in the table that the strong epoch left behind, and no later epoch runs it.
pub(crate) fn onward(at: Crossing) -> Onward {
    match (at.numbered, at.now) {
        // Nobody remembers what came without a number.
        (false, _) if at.uncertain => Onward::Unknown,
        (_, Mode::Eventual) if at.conditional => Onward::Unsupported,
        _ => Onward::Anew,
    }
}

/// The error that the caller gets: never one that says that nothing was done if something may have been.
pub(crate) fn verdict(error: Error, uncertain: bool) -> Error {
    match error {
        // These are answers of the replicated state itself, the same for every try.
        error @ (Error::CompareFailed { .. } | Error::OutcomeUnknown { .. } | Error::NotEnoughCopies { .. }) => error,
        error if uncertain => {
            Error::OutcomeUnknown { why: format!("an earlier try was sent and not answered; then: {error}") }
        }
        error => error,
    }
}

/// The pause while a change of mode or members holds a request up, before the `n`th time (from 0) that it is asked for
/// again: from 5 to 50 ms, its second half random. Members hold writes themselves, so that it is rarely needed.
pub(crate) fn short_pause(n: u32, rng: &mut impl Rng) -> Duration {
    backoff(n, Duration::from_millis(10), Duration::from_millis(50), rng)
}

/// The pause before round `round` (from 0): twice the one before it, at most `max`, its second half random so that
/// clients that failed together do not come back together.
pub(crate) fn backoff(round: u32, min: Duration, max: Duration, rng: &mut impl Rng) -> Duration {
    let full = min.saturating_mul(1u32.checked_shl(round).unwrap_or(u32::MAX)).min(max);
    let half = full / 2;
    half + half.mul_f64(rng.random_range(0.0..=1.0))
}

#[cfg(test)]
mod tests {
    use duet_proto::{ClockFault, Epoch, Mode, NamespaceName, NodeId, QuorumView, Resource, Role};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const CLEAN: Situation =
        Situation { safe: true, uncertain: false, untried: true, not_found: 1, cursor: false, patient: true };

    fn name() -> NamespaceName {
        NamespaceName::new("orders").unwrap()
    }

    /// One of every kind.
    fn errors() -> Vec<Error> {
        let why = || "why".to_string();
        let (node, namespace) = (NodeId(1), name());
        vec![
            Error::NoQuorum { namespace: name(), seen: QuorumView::default() },
            Error::OutcomeUnknown { why: why() },
            Error::CompareFailed { found: None },
            Error::NamespaceNotFound { name: name() },
            Error::NamespaceExists { name: name() },
            Error::NodeNotFound { node },
            Error::NotHere { members: vec![] },
            Error::EpochChanged { namespace: name(), epoch: Epoch(2), mode: Mode::Strong },
            Error::Changing { namespace, why: why() },
            Error::Unsupported { mode: Mode::Eventual, why: why() },
            Error::TooLarge { what: Resource::Key, size: 2, limit: 1 },
            Error::InvalidRequest { why: why() },
            Error::Unauthorized { needed: Role::Admin, has: Role::Client },
            Error::SessionExpired { floor: 2, seen: 1 },
            Error::ClockSkew(ClockFault { ahead_ms: 2, allowed_ms: 1 }),
            Error::NotEnoughCopies { have: 1, need: 2 },
            Error::TokenNotCovered { why: why() },
            Error::DiskFull { node, free: 1, reserve: 2 },
            Error::Overloaded { why: why() },
            Error::TimedOut { after_ms: 1, why: why() },
            Error::Unavailable { node, why: why() },
            Error::Version { theirs: 2, ours: 1 },
            Error::Malformed { why: why() },
            Error::Corrupt { node, what: why() },
            Error::Internal { node, why: why() },
        ]
    }

    #[test]
    fn every_error_has_its_step() {
        for error in errors() {
            let step = decide(&error, CLEAN);
            let expected = match error.code() {
                "namespace_not_found" => Step::Learn,
                "epoch_changed" => Step::Follow,
                "changing" => Step::Wait,
                "no_quorum" => Step::Grace,
                "not_here" => Step::Redirect,
                "session_expired" => Step::Refresh,
                "outcome_unknown" | "clock_skew" | "token_not_covered" | "overloaded" | "timed_out"
                | "unavailable" | "disk_full" | "corrupt" | "internal" => Step::Elsewhere,
                _ => Step::Give,
            };
            assert_eq!(step, expected, "{error}");
        }
    }

    #[test]
    fn with_nobody_left_to_ask_it_pauses_or_gives_up() {
        for error in errors() {
            let step = decide(&error, Situation { untried: false, ..CLEAN });
            match error.class() {
                Class::Fatal => assert_eq!(step, Step::Give, "{error}"),
                _ => assert!(
                    step != Step::Elsewhere || matches!(error, Error::OutcomeUnknown { .. }),
                    "{error}: {step:?}"
                ),
            }
        }
    }

    #[test]
    fn what_may_have_been_done_is_not_done_again_unless_that_is_safe() {
        let unsafe_write = Situation { safe: false, ..CLEAN };
        for error in errors().iter().filter(|e| e.class() == Class::Unknown) {
            assert_eq!(decide(error, unsafe_write), Step::Give, "{error}");
        }
        let expired = Error::SessionExpired { floor: 2, seen: 1 };
        assert_eq!(decide(&expired, Situation { uncertain: true, ..CLEAN }), Step::Give);
    }

    #[test]
    fn an_uncertain_call_never_says_that_nothing_was_done() {
        for error in errors() {
            let code = error.code();
            let class = verdict(error.clone(), true).class();
            assert!(class == Class::Unknown || code == "compare_failed", "{code}");
            assert_eq!(verdict(error.clone(), false), error);
        }
    }

    #[test]
    fn a_cursor_ends_with_its_epoch_and_an_operator_is_told_of_a_change() {
        let changed = Error::EpochChanged { namespace: name(), epoch: Epoch(2), mode: Mode::Strong };
        assert_eq!(decide(&changed, Situation { cursor: true, ..CLEAN }), Step::Give);
        let changing = Error::Changing { namespace: name(), why: "its members".into() };
        assert_eq!(decide(&changing, Situation { patient: false, ..CLEAN }), Step::Give);
        assert_eq!(decide(&changing, Situation { untried: false, ..CLEAN }), Step::Wait);
    }

    /// Every row there is: numbered, the mode now, whether another copy is in doubt, whether it compares.
    #[test]
    fn a_write_follows_its_namespace_only_if_it_cannot_run_twice() {
        use Mode::{Eventual, Strong};
        use Onward::{Anew, Unknown, Unsupported};
        for (numbered, now, uncertain, conditional, expected) in [
            // From strong to eventual: the table was looked up, so the refusal speaks for every copy.
            (true, Eventual, false, false, Anew),
            (true, Eventual, true, false, Anew),
            (true, Eventual, false, true, Unsupported),
            (true, Eventual, true, true, Unsupported),
            // From strong to strong, two switches later: the table has come along.
            (true, Strong, false, false, Anew),
            (true, Strong, true, false, Anew),
            (true, Strong, false, true, Anew),
            (true, Strong, true, true, Anew),
            // From eventual, or without a number: nobody remembers.
            (false, Eventual, false, false, Anew),
            (false, Eventual, true, false, Unknown),
            (false, Eventual, false, true, Unsupported),
            (false, Eventual, true, true, Unknown),
            (false, Strong, false, false, Anew),
            (false, Strong, true, false, Unknown),
            (false, Strong, false, true, Anew),
            (false, Strong, true, true, Unknown),
        ] {
            let at = Crossing { numbered, now, uncertain, conditional };
            assert_eq!(onward(at), expected, "{at:?}");
        }
    }

    #[test]
    fn a_change_is_waited_out_with_short_pauses() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for n in 0..100 {
            let pause = short_pause(n, &mut rng).as_millis();
            assert!((5..=50).contains(&pause), "{n}: {pause} ms");
        }
    }

    #[test]
    fn a_missing_namespace_is_believed_in_the_end() {
        let error = Error::NamespaceNotFound { name: name() };
        assert_eq!(decide(&error, Situation { not_found: BELIEVE_NOT_FOUND, ..CLEAN }), Step::Give);
    }

    #[test]
    fn pauses_grow_within_their_bounds() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(500));
        for round in 0..100 {
            let pause = backoff(round, min, max, &mut rng);
            let full = (10u128 << round.min(20)).min(500);
            assert!((full / 2..=full).contains(&pause.as_millis()), "round {round}: {pause:?}");
        }
    }
}
