//! Whole nodes with eventual namespaces beside a strong one, under seeded faults and clocks that drift and jump.
//! `make sim SEEDS=1000 FROM=5000` runs other seeds; a failure prints its own.

#![allow(clippy::print_stdout, reason = "a seed's outcome belongs to the output")]

use duet_tests::sim::{EventualPlan, run_eventual, seeds};

/// Seeds in continuous integration, over all tests of this file.
const SEEDS: u64 = 100;

/// Runs the seeds of one part of several, so that parts run side by side.
fn part(index: u64, parts: u64) {
    let (mut acknowledged, mut unknown, mut refused, mut did) = (0, 0, 0, [0; 4]);
    for seed in seeds(SEEDS).filter(|seed| seed % parts == index) {
        match run_eventual(&EventualPlan::draw(seed), None) {
            Ok(report) => {
                println!("{report:?}");
                acknowledged += report.acknowledged;
                unknown += report.sessions.unknown;
                refused += report.sessions.refused;
                did.iter_mut().zip(report.did).for_each(|(did, more)| *did += more);
            }
            Err(finding) => panic!("{finding}"),
        }
    }
    println!("part {index}: {acknowledged} writes acknowledged, {unknown} unknown, {refused} requests refused");
    println!("anti-entropy sessions, gaps, tombstones forgotten, stamps refused: {did:?}");
}

duet_tests::seeds_in_four_parts!(part);

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        let plan = EventualPlan::draw(seed);
        let [first, second] =
            [(); 2].map(|()| run_eventual(&plan, None).unwrap_or_else(|finding| panic!("{finding}")));
        assert_eq!(first, second, "seed {seed} had two different runs");
    }
}
