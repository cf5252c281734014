//! The randomized model: replicas over disks that lose what was not synced, under crashes, losses, duplicates, long
//! delays, joins and removals, all drawn from a seed. `DUET_EVENTUAL_SEEDS` and `DUET_EVENTUAL_FROM` choose more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod checks;
mod clients;
mod cost;
mod faults;
mod scenarios;
mod script;
mod switch;
mod world;

use duet_engine_eventual::Config;
use faults::Plan;
use world::World;

fn plain(_: &mut Config) {}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn run(draw: fn(&mut rand_chacha::ChaCha8Rng) -> Plan, seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        let mut world = World::new(seed, draw, plain);
        if let Err(violation) = world.run() {
            panic!("seed {seed}, {:?}: {violation}", world.plan);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let from = number("DUET_EVENTUAL_FROM", 0);
    from..from + number("DUET_EVENTUAL_SEEDS", 200)
}

#[test]
fn whatever_happens_all_come_to_hold_the_same() {
    run(Plan::draw, seeds());
}

#[test]
fn members_that_come_and_go_come_to_hold_the_same() {
    // In 955 a member once took one that was about to join for one that had left.
    run(Plan::restless, seeds().chain([955]));
    run(Plan::fleeting, seeds());
}

#[test]
fn an_epoch_goes_on_from_the_records_of_the_one_before() {
    run(Plan::heirs, seeds());
    run(Plan::restless_heirs, seeds());
}

#[test]
fn an_epoch_ends_with_everything_that_was_acknowledged() {
    run(Plan::switching, seeds());
}

/// Seeds after which a planted bug counts as not found.
#[cfg(feature = "planted")]
const PATIENCE: u64 = 2000;

/// The first seed in which the model finds a planted bug, and as what. The same seed passes without the bug.
#[cfg(feature = "planted")]
fn hunt(draw: fn(&mut rand_chacha::ChaCha8Rng) -> Plan, configure: fn(&mut Config), about: &str) {
    let found = (0..number("DUET_EVENTUAL_PATIENCE", PATIENCE))
        .find_map(|seed| Some((seed, World::new(seed, draw, configure).run().err()?)));
    let (seed, violation) = found.expect("the planted bug was not found");
    println!("seed {seed}: {violation}");
    assert!(violation.contains(about), "found as something else: {violation}");
    let without = World::new(seed, draw, plain).run();
    assert_eq!(without, Ok(()), "seed {seed} fails without the bug");
}

#[cfg(feature = "planted")]
macro_rules! planted {
    ($($test:ident: $bug:ident, $plan:ident, $about:literal;)*) => {$(
        #[test]
        fn $test() {
            hunt(Plan::$plan, |config| config.planted = Some(duet_engine_eventual::Planted::$bug), $about);
        }
    )*};
}

// Tombstones forgotten on a stale view take more seeds than there is time for: a scenario finds them.
#[cfg(feature = "planted")]
planted! {
    finds_a_frontier_raised_per_chunk: FrontierPerChunk, draw, "claims";
    finds_a_session_resumed_with_another_sender: ResumeWithAnother, draw, "claims";
    finds_covered_records_merged_again: CoveredMergedAgain, draw, "came back";
    finds_a_floor_that_is_ignored: FloorIgnored, draw, "came back";
    finds_tombstones_forgotten_by_age: ForgetByAge, draw, "";
    finds_an_index_trimmed_by_what_one_member_holds: TrimByOwnFrontier, draw, "";
    finds_a_marker_used_twice: MarkerTwice, draw, "given to two writes";
    finds_an_acknowledgement_before_the_sync: AcknowledgeBeforeSync, draw, "";
    finds_a_push_before_the_sync: PushBeforeSync, draw, "";
    finds_a_push_with_a_gap_applied_as_if_whole: PushWithGap, draw, "claims";
    finds_a_token_without_the_stamps_returned: TokenWithoutStamps, draw, "a session has seen";
    finds_copies_counted_between_versions: CopiesOfAnyVersion, fleeting, "";
    finds_a_fence_that_a_crash_takes_away: FenceForgets, switching, "the fence of";
    finds_what_is_merged_behind_a_fence: MergeWhileFenced, switching, "is fenced for";
    finds_a_base_that_others_add_to: ConvergeFromOutside, switching, "";
    finds_a_session_that_outlives_a_fence: SessionOutlivesFence, switching, "is fenced for";
    finds_a_fence_lifted_by_an_older_view: LiftByOlder, switching, "the fence of";
}
