//! Whole nodes under seeded faults. `make sim SEEDS=1000 FROM=5000` runs other seeds; a failure prints its own.

#![allow(clippy::print_stdout, reason = "a seed's outcome belongs to the output")]

use duet_tests::sim::{Plan, run, seeds};

/// Seeds in continuous integration, over all tests of this file.
const SEEDS: u64 = 200;

/// Runs the seeds of one part of several, so that parts run side by side.
fn part(index: u64, parts: u64) {
    let (mut acknowledged, mut unknown, mut refused) = (0, 0, 0);
    for seed in seeds(SEEDS).filter(|seed| seed % parts == index) {
        match run(&Plan::draw(seed), None) {
            Ok(report) => {
                println!("{report:?}");
                acknowledged += report.acknowledged;
                unknown += report.unknown;
                refused += report.refused;
            }
            Err(finding) => panic!("{finding}"),
        }
    }
    println!("part {index}: {acknowledged} writes acknowledged, {unknown} unknown, {refused} requests refused");
}

duet_tests::seeds_in_four_parts!(part);

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        let plan = Plan::draw(seed);
        let [first, second] = [(); 2].map(|()| run(&plan, None).unwrap_or_else(|finding| panic!("{finding}")));
        assert_eq!(first, second, "seed {seed} had two different runs");
    }
}
