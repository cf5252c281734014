//! The simulation finds what is wrong with a switch: each of these is planted in the router, takes one rule
//! of `specs/switch.md` away, and must be found within a few seeds. What a fence and a base set must not do is also the
//! subject of `engine-eventual/tests/model`, and every rule one of `specs/model`.
#![cfg(feature = "planted")]
#![allow(clippy::print_stdout, reason = "what was found belongs to the output")]

use duet_router::Planted;
use duet_tests::sim::{Bug, SwitchPlan, run_switching};

/// Seeds to look through for each bug.
const SEEDS: u64 = 120;

fn is_found(bug: Bug, about: &[&str], plan: impl Fn(u64) -> SwitchPlan) {
    let finding = (0..SEEDS).find_map(|seed| run_switching(&plan(seed), Some(bug)).err());
    let finding = finding.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
    println!("{bug:?} was found: {finding}");
    let right = about.iter().any(|about| finding.what.contains(about));
    assert!(right, "{bug:?} was found as something else: {finding}");
    assert!(run_switching(&plan(finding.seed), None).is_ok(), "seed {} fails without the bug", finding.seed);
}

/// Before all others: an epoch is checked at the replica, with the effect. A value tells of which epoch it is; where the next
/// one has deleted it, nothing does, and the strong epoch has no order in which it was gone.
#[test]
fn reads_of_what_the_next_epoch_wrote() {
    let about = ["was read in epoch", "is not linearizable"];
    is_found(Bug::Router(Planted::ReadsOfNextEpoch), &about, SwitchPlan::draw);
}

/// Before all others: a member opens an eventual epoch only when it has applied the seal.
#[test]
fn an_epoch_that_opens_before_the_seal() {
    is_found(Bug::Router(Planted::OpenBeforeSeal), &[""], SwitchPlan::draw);
}

/// Rule 1.
#[test]
fn a_majority_of_too_few_copies() {
    is_found(Bug::Router(Planted::MajorityIsEnough), &["ended without enough"], SwitchPlan::ambush);
}

/// Rule 7: who is owed.
#[test]
fn nobody_is_listed() {
    is_found(Bug::Router(Planted::OwedForgotten), &["is lost", "was undone"], SwitchPlan::draw);
}

/// Rule 7: tombstones are kept for them.
#[test]
fn no_tombstones_for_those_who_are_listed() {
    is_found(Bug::Router(Planted::TombstonesForgotten), &[""], SwitchPlan::draw);
}

/// Rule 9.
#[test]
fn a_retry_that_runs_in_a_later_strong_epoch() {
    // What runs so late may also take the place of what was acknowledged meanwhile.
    let found_as = ["written twice", "nobody wrote", "an acknowledged write is lost"];
    is_found(Bug::Router(Planted::EarlierTriesRun), &found_as, SwitchPlan::ambush);
}

/// Rule 10.
#[test]
fn a_token_that_nobody_looks_at() {
    is_found(Bug::Router(Planted::TokenOfAnyEpoch), &["a session that had seen"], SwitchPlan::draw);
}
