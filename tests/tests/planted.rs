//! The simulation finds bugs: each of these is planted in the strong engine, and must be found within a few seeds.
#![cfg(feature = "planted")]
#![allow(clippy::print_stdout, reason = "what was found belongs to the output")]

use std::time::Duration;

use duet_tests::sim::{Fault, Plan, Planted, run};
use rand::Rng;

/// Seeds to look through for each bug.
const SEEDS: u64 = 100;

fn is_found(bug: Planted, about: &str, plan: impl Fn(u64) -> Plan) {
    let finding = (0..SEEDS).find_map(|seed| run(&plan(seed), Some(bug)).err());
    let finding = finding.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
    println!("{bug:?} was found: {finding}");
    assert!(finding.what.contains(about), "{bug:?} was found as something else: {finding}");
    assert!(run(&plan(finding.seed), None).is_ok(), "seed {} fails without the bug", finding.seed);
}

#[test]
fn an_answer_before_the_sync() {
    is_found(Planted::AnswerBeforeSync, "", Plan::draw);
}

#[test]
fn a_read_without_read_index() {
    is_found(Planted::ReadWithoutReadIndex, "not linearizable", Plan::draw);
}

#[test]
fn a_reused_read_context() {
    is_found(Planted::ReuseReadContext, "not linearizable", |seed| {
        Plan::ambush(seed, |rng| Fault::LateLeader { delay: Duration::from_millis(rng.random_range(800..1400)) })
    });
}

#[test]
fn a_forgotten_vote() {
    is_found(Planted::ForgetVote, "both led", |seed| Plan::ambush(seed, |_| Fault::CrashVoters));
}
