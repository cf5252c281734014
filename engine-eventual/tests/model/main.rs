//! The randomized model: replicas over disks that lose what was not synced, under crashes, losses, duplicates, long
//! delays, joins and removals, all drawn from a seed. `DUET_EVENTUAL_SEEDS` and `DUET_EVENTUAL_FROM` choose more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod checks;
mod scenarios;
mod world;

use duet_engine_eventual::Config;
use world::World;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn whatever_happens_all_come_to_hold_the_same() {
    let from = number("DUET_EVENTUAL_FROM", 0);
    for seed in from..from + number("DUET_EVENTUAL_SEEDS", 200) {
        let mut world = World::new(seed, |_: &mut Config| {});
        if let Err(violation) = world.run() {
            panic!("seed {seed}, {:?}: {violation}", world.plan);
        }
    }
}

/// Seeds after which a planted bug counts as not found.
#[cfg(feature = "planted")]
const PATIENCE: u64 = 3000;

/// The violation that the model finds with a bug planted, and the seed.
#[cfg(feature = "planted")]
fn hunt(configure: fn(&mut Config)) -> Option<(u64, String)> {
    (0..number("DUET_EVENTUAL_PATIENCE", PATIENCE))
        .find_map(|seed| Some((seed, World::new(seed, configure).run().err()?)))
}

#[cfg(feature = "planted")]
macro_rules! planted {
    ($($test:ident: $bug:ident;)*) => {$(
        #[test]
        fn $test() {
            let found = hunt(|config| config.planted = Some(duet_engine_eventual::Planted::$bug));
            let (seed, violation) = found.expect("the planted bug was not found");
            println!("seed {seed}: {violation}");
        }
    )*};
}

#[cfg(feature = "planted")]
planted! {
    finds_a_frontier_raised_per_chunk: FrontierPerChunk;
    finds_a_session_resumed_with_another_sender: ResumeWithAnother;
    finds_covered_records_merged_again: CoveredMergedAgain;
    finds_a_floor_that_is_ignored: FloorIgnored;
    finds_tombstones_forgotten_by_age: ForgetByAge;
    finds_a_marker_used_twice: MarkerTwice;
    finds_what_is_told_before_the_sync: TellBeforeSync;
    finds_a_push_with_a_gap_applied_as_if_whole: PushWithGap;
    finds_a_token_without_the_stamps_returned: TokenWithoutStamps;
    finds_copies_counted_between_versions: CopiesOfAnyVersion;
}
