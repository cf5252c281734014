//! Whole nodes with namespaces that are switched back and forth while clients use them, under seeded faults.
//! `make sim SEEDS=1000 FROM=5000` runs other seeds; a failure prints its own.

#![allow(clippy::print_stdout, reason = "a seed's outcome belongs to the output")]

use duet_tests::sim::{SwitchPlan, Switches, run_switching, seeds};

/// Seeds in continuous integration, over all tests of this file.
const SEEDS: u64 = 48;
/// Switches that must be completed on average by a seed, so that those in continuous integration come to 2,000.
const EACH: u64 = 42;

/// Runs the seeds of one part of several, so that parts run side by side.
fn part(index: u64, parts: u64) {
    let (mut sum, mut runs) = (Switches::default(), 0);
    let (mut acknowledged, mut unknown, mut refused) = (0, 0, 0);
    for seed in seeds(SEEDS).filter(|seed| seed % parts == index) {
        match run_switching(&SwitchPlan::draw(seed), None) {
            Ok(report) => {
                println!("{report:?}");
                runs += 1;
                sum.completed += report.switches.completed;
                sum.apart += report.switches.apart;
                sum.aborted += report.switches.aborted;
                sum.attempts += report.switches.attempts;
                acknowledged += report.acknowledged;
                unknown += report.clients.unknown;
                refused += report.clients.refused;
            }
            Err(finding) => panic!("{finding}"),
        }
    }
    println!("part {index}: {sum:?} in {runs} runs");
    println!("{acknowledged} writes acknowledged, {unknown} unknown, {refused} requests refused");
    // A few seeds may well have fewer.
    let enough = runs < SEEDS / parts || u64::from(sum.completed) >= runs * EACH;
    assert!(enough, "too few switches for what they are to show: {sum:?} in {runs} runs");
}

duet_tests::seeds_in_four_parts!(part);

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2] {
        let plan = SwitchPlan::draw(seed);
        let [first, second] =
            [(); 2].map(|()| run_switching(&plan, None).unwrap_or_else(|finding| panic!("{finding}")));
        assert_eq!(first, second, "seed {seed} had two different runs");
    }
}
