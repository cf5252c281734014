//! The randomized model: replicas over disks that lose what was not synced, under crashes, losses, duplicates, long
//! delays, joins and removals, all drawn from a seed. `DUET_EVENTUAL_SEEDS` and `DUET_EVENTUAL_FROM` choose more.

mod checks;
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
