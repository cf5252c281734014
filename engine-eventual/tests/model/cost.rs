//! What anti-entropy costs: bytes on the wire, by what differs.

use duet_engine_eventual::Config;
use duet_proto::Mutation;

use crate::{number, world::World};

const VALUE: usize = 256;

fn defaults(config: &mut Config) {
    *config = Config::new(config.node, config.boot);
}

/// Two members hold `records`; `differing` of them are written while they cannot reach each other. The bytes that
/// then pass until they hold the same.
fn exchanged(records: u64, differing: u64) -> u64 {
    let mut world = World::scripted(2, 1, defaults);
    world.unchecked = true;
    let put = |n: u64, with: u8| Mutation::put(format!("key-{n:07}").into_bytes(), vec![with; VALUE]);
    for n in 0..records {
        world.write(1, put(n, b'v'));
        if n % 1000 == 999 {
            world.rounds(4);
        }
    }
    world.until_equal(1, 2);
    world.link(1, 2, false);
    for n in 0..differing {
        // On both sides, all over the key space.
        world.write(1 + (n % 2) as u32, put(n * (records / differing), b'w'));
    }
    world.rounds(40);
    assert_ne!(world.replica(1).status().summary, world.replica(2).status().summary);
    world.link(1, 2, true);
    world.bytes = 0;
    world.until_equal(1, 2);
    assert_eq!(world.replica(1).status().summary.keys, records);
    world.bytes
}

/// Per differing record: the value, the key, and at most 64 bytes more.
fn assert_cost(records: u64, differing: u64) {
    let bytes = exchanged(records, differing);
    let record = VALUE as u64 + 11;
    println!("{records} records, {differing} differ: {bytes} bytes, {} per differing record", bytes / differing);
    assert!(bytes >= differing * record, "{bytes} bytes cannot hold what differs");
    assert!(bytes < differing * (record + 64), "{bytes} bytes for {differing} records of {record}");
}

#[test]
fn anti_entropy_costs_what_differs() {
    assert_cost(number("DUET_EVENTUAL_RECORDS", 20_000), 1000);
}

/// The figure itself. Half a minute, and 2 GB of memory.
#[test]
#[ignore = "a million records; `make soak` runs it"]
fn a_million_records_of_which_a_thousand_differ_cost_less_than_a_mebibyte() {
    assert!(exchanged(1_000_000, 1000) < 1 << 20);
}
