//! The simulation finds bugs of the eventual engine where the model in `engine-eventual/tests/model` cannot look: in what
//! stands between a replica and its clients and peers. The rest of `Planted` is the model's.
#![cfg(feature = "planted")]
#![allow(clippy::print_stdout, reason = "what was found belongs to the output")]

use duet_engine_eventual::Planted;
use duet_tests::sim::{EventualPlan, run_eventual};

/// Seeds to look through for each bug.
const SEEDS: u64 = 100;

fn is_found(bug: Planted, about: &str) {
    let finding = (0..SEEDS).find_map(|seed| run_eventual(&EventualPlan::draw(seed), Some(bug)).err());
    let finding = finding.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
    println!("{bug:?} was found: {finding}");
    assert!(finding.what.contains(about), "{bug:?} was found as something else: {finding}");
    let plan = EventualPlan::draw(finding.seed);
    assert!(run_eventual(&plan, None).is_ok(), "seed {} fails without the bug", finding.seed);
}

/// The driver is what waits for the disk.
#[test]
fn what_is_told_before_the_sync() {
    is_found(Planted::AcknowledgeBeforeSync, "acknowledged");
}

/// Reads are served beside the replica's driver.
#[test]
fn a_token_without_the_stamps_returned() {
    is_found(Planted::TokenWithoutStamps, "a session that had seen");
}
