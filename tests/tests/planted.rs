//! The simulation finds bugs: each of these is planted in the strong engine, and must be found within a few seeds.
#![cfg(feature = "planted")]

use duet_tests::sim::{Plan, Planted, run};

/// Seeds to look through for each bug.
const SEEDS: u64 = 100;

fn is_found(bug: Planted, about: &str) {
    let finding = (0..SEEDS).find_map(|seed| run(&Plan::draw(seed), Some(bug)).err());
    let finding = finding.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
    println!("{bug:?} was found: {finding}");
    assert!(finding.what.contains(about), "{bug:?} was found as something else: {finding}");
    assert!(run(&Plan::draw(finding.seed), None).is_ok(), "seed {} fails without the bug", finding.seed);
}

#[test]
fn an_answer_before_the_sync() {
    is_found(Planted::AnswerBeforeSync, "");
}

#[test]
fn a_read_without_read_index() {
    is_found(Planted::ReadWithoutReadIndex, "not linearizable");
}

#[test]
fn a_reused_read_context() {
    is_found(Planted::ReuseReadContext, "not linearizable");
}

#[test]
fn a_forgotten_vote() {
    is_found(Planted::ForgetVote, "");
}
