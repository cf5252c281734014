//! One scenario for each promise, told step by step.

use bytes::Bytes;
use duet_engine_eventual::{Config, Input, Members, Message, Start, Ticket};
use duet_proto::{Error, Expect, KeyRange, Mode, Mutation, NodeId, Op, Outcome, ScanLimit, Token};
use duet_store::{Family, Store, layout};

use crate::{
    plain,
    world::{SPACE, World},
};

fn put(key: &str, value: &str) -> Mutation {
    Mutation::put(key.as_bytes().to_vec(), value.as_bytes().to_vec())
}

fn delete(key: &str) -> Mutation {
    Mutation::delete(key.as_bytes().to_vec())
}

fn get(world: &World, id: u32, key: &str, token: Option<&Token>) -> Result<duet_proto::Answer, Error> {
    let op = Op::Get { key: Bytes::copy_from_slice(key.as_bytes()) };
    world.replica(id).read(&*world.nodes[&NodeId(id)].durable, &op, token)
}

/// A member that is copied to while the others forget: what it was given before the delete must not outlive it.
///
/// ```text
/// 1, 2 hold k at version 1. Version 2 adds 3; only 2 and 3 know of it
/// 3 copies k from 2, and no further
/// k is deleted: 1 and 2 have the tombstone, 2 reports so, at version 2
/// 1, still at version 1, must not take that report for one of version 1 and forget
/// 2 is lost with its disk; version 3 is 1 and 3
/// ```
fn forgetting_while_a_member_joins(configure: fn(&mut Config)) -> Result<(), String> {
    let mut world = World::scripted(2, 2, configure);
    for key in ["a", "b", "c"] {
        world.write(1, put(key, &"x".repeat(200)));
    }
    world.rounds(40);
    let two = [1, 2, 3].map(NodeId).into();
    let second = Members { version: 2, nodes: two, copies: 2, ..Members::default() };
    world.add(NodeId(3), Start::Joining, second.clone());
    world.link(1, 3, false);
    world.give(2, Input::Members(second));
    while world.holds(3, "a").is_none() {
        world.rounds(1);
    }
    world.link(2, 3, false);
    assert!(!world.replica(3).status().whole);
    world.write(2, delete("a"));
    world.rounds(200);
    world.nodes.get_mut(&NodeId(2)).unwrap().wiped = true;
    world.members = Members { version: 3, nodes: [1, 3].map(NodeId).into(), copies: 2, ..Members::default() };
    world.settle(20_000)
}

#[test]
fn a_member_that_joins_holds_up_forgetting() {
    forgetting_while_a_member_joins(plain).unwrap();
}

#[cfg(feature = "planted")]
#[test]
fn finds_tombstones_forgotten_on_a_stale_view() {
    let stale = |config: &mut Config| config.planted = Some(duet_engine_eventual::Planted::ForgetOnStaleView);
    let violation = forgetting_while_a_member_joins(stale).unwrap_err();
    assert!(violation.contains("not converged"), "{violation}");
}

/// A member stays away while everything is deleted, and comes back with its old data.
#[test]
fn nothing_comes_back_with_a_member_that_was_away() {
    let mut world = World::scripted(3, 1, plain);
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    keys.iter().for_each(|key| world.write(1, put(key, "old")));
    world.rounds(60);
    assert_eq!(world.replica(3).status().summary.keys, 20);
    (1..3).for_each(|id| world.link(id, 3, false));
    keys.iter().for_each(|key| world.write(2, delete(key)));
    world.rounds(2000);
    let waiting = world.replica(1).status();
    assert_eq!((waiting.summary.keys, waiting.summary.tombstones), (0, 20), "what 3 has not seen is not forgotten");
    world.settle(20_000).unwrap();
    for id in 1..=3 {
        let status = world.replica(id).status();
        assert_eq!((status.summary.keys, status.summary.tombstones), (0, 0), "space is given back");
        let (from, to) = layout::prefix_range(layout::namespace_prefix(SPACE));
        let node = &world.nodes[&NodeId(id)];
        for family in [Family::Data, Family::Origin] {
            assert_eq!(node.durable.scan(family, &from, Some(&to)).unwrap().count(), 0);
        }
    }
}

/// What all hold is listed no more. While a member is away the rest stays, a row for each record, and brings it all when
/// the member is back.
#[test]
fn the_index_is_trimmed_by_what_all_hold() {
    let mut world = World::scripted(3, 1, plain);
    let listed = |world: &World, id| {
        let (from, to) = layout::prefix_range(layout::namespace_prefix(SPACE));
        world.nodes[&NodeId(id)].durable.scan(Family::Origin, &from, Some(&to)).unwrap().count()
    };
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    keys.iter().for_each(|key| world.write(1, put(key, "old")));
    world.rounds(200);
    // Some may be left of the first: this is when it is looked at again.
    keys[..6].iter().for_each(|key| world.write(1, put(key, "newer")));
    world.rounds(200);
    (1..=3).for_each(|id| assert!(listed(&world, id) <= 6, "{} rows on {id}", listed(&world, id)));
    (1..3).for_each(|id| world.link(id, 3, false));
    for value in ["once", "again"] {
        keys.iter().for_each(|key| world.write(2, put(key, value)));
        world.rounds(200);
    }
    (1..3).for_each(|id| assert_eq!(listed(&world, id), 20, "what 3 has not seen stays"));
    world.settle(20_000).unwrap();
    assert!(keys.iter().all(|key| world.holds(3, key) == world.holds(1, key)));
}

#[test]
fn what_two_cannot_tell_each_other_comes_by_a_third() {
    let mut world = World::scripted(3, 1, plain);
    world.link(1, 2, false);
    world.write(1, put("a", "1"));
    world.write(2, put("b", "2"));
    world.rounds(200);
    assert!(world.holds(2, "a").is_some() && world.holds(1, "b").is_some());
}

#[test]
fn copies_are_waited_for_and_counted() {
    let mut world = World::scripted(3, 3, plain);
    world.write(1, put("a", "1"));
    world.rounds(60);
    assert!(matches!(world.answers.pop(), Some(Ok(_))));
    world.link(1, 3, false);
    world.link(2, 3, false);
    world.write(1, put("a", "2"));
    world.rounds(100);
    assert_eq!(world.answers.pop(), Some(Err(Error::NotEnoughCopies { have: 2, need: 3 })));
}

#[test]
fn compares_are_refused_with_a_reason() {
    let mut world = World::scripted(1, 1, plain);
    let op = Op::CompareAndSet { expect: Expect::Absent, mutation: put("a", "1") };
    world.give(1, Input::Write { ticket: Ticket(1), op, token: None, deadline_ms: 1000 });
    world.rounds(10);
    let answer = world.answers.pop().unwrap();
    assert!(matches!(answer, Err(Error::Unsupported { mode: Mode::Eventual, .. })), "{answer:?}");
}

#[test]
fn a_token_is_honoured_or_refused() {
    let mut world = World::scripted(3, 1, plain);
    world.link(1, 2, false);
    world.link(3, 2, false);
    world.write(1, put("a", "1"));
    world.rounds(20);
    let Some(Ok(written)) = world.answers.pop() else { panic!("not written") };
    let token = written.meta.token.unwrap();
    let here = get(&world, 1, "a", Some(&token)).unwrap();
    assert!(matches!(here.outcome, Outcome::Value(Some(_))));
    assert!(matches!(get(&world, 2, "a", Some(&token)), Err(Error::TokenNotCovered { .. })));
    assert!(matches!(get(&world, 2, "a", None).unwrap().outcome, Outcome::Value(None)));
    world.settle(20_000).unwrap();
    assert_eq!(get(&world, 2, "a", Some(&token)).unwrap().outcome, here.outcome);
}

#[test]
fn pages_go_on_where_they_ended() {
    let mut world = World::scripted(1, 1, plain);
    (0..7).for_each(|n| world.write(1, put(&format!("k{n}"), "v")));
    world.write(1, delete("k3"));
    world.rounds(20);
    let (mut keys, mut cursor) = (Vec::new(), None);
    loop {
        let limit = ScanLimit { entries: 2, ..ScanLimit::default() };
        let op = Op::Scan { range: KeyRange::prefix("k"), limit, cursor };
        let node = &world.nodes[&NodeId(1)];
        let Outcome::Page { entries, next } = world.replica(1).read(&*node.durable, &op, None).unwrap().outcome
        else {
            panic!("not a page")
        };
        assert!(entries.len() <= 2);
        keys.extend(entries.into_iter().map(|entry| entry.key));
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(keys, ["k0", "k1", "k2", "k4", "k5", "k6"]);
}

#[test]
fn a_clock_an_hour_ahead_poisons_nobody() {
    const HOUR: u64 = 3_600_000;
    let mut world = World::scripted(3, 1, plain);
    (1..3).for_each(|id| world.link(id, 3, false));
    world.skew(3, HOUR);
    world.write(3, put("a", "from the future"));
    world.rounds(20);
    (1..3).for_each(|id| world.link(id, 3, true));
    world.write(1, put("a", "now"));
    world.rounds(300);
    assert!(world.replica(1).status().counters.clock_refused > 0);
    assert_eq!(world.holds(2, "a"), world.holds(1, "a"), "the others go on");
    assert!(world.holds(1, "a").is_some());
    world.write(3, put("b", "again"));
    world.rounds(20);
    assert!(matches!(world.answers.pop(), Some(Err(Error::ClockSkew(_)))));
    world.write(1, put("c", "fine"));
    world.rounds(20);
    assert!(matches!(world.answers.pop(), Some(Ok(_))));
}

#[test]
fn a_clock_an_hour_behind_recovers_when_it_is_set() {
    const HOUR: u64 = 3_600_000;
    let mut world = World::scripted(3, 1, plain);
    (1..3).for_each(|id| world.skew(id, HOUR));
    world.write(1, put("a", "1"));
    world.rounds(100);
    assert!(world.holds(2, "a").is_some() && world.holds(3, "a").is_none());
    world.write(3, put("b", "behind"));
    world.rounds(20);
    assert!(matches!(world.answers.pop(), Some(Err(Error::ClockSkew(_)))));
    world.skew(3, HOUR);
    world.rounds(100);
    world.write(3, put("b", "set"));
    world.rounds(20);
    assert!(matches!(world.answers.pop(), Some(Ok(_))));
    world.settle(20_000).unwrap();
}

/// A bit flips on the disk of one member.
#[test]
fn a_damaged_record_is_found_reported_and_healed() {
    let mut world = World::scripted(3, 1, plain);
    (0..5).for_each(|n| world.write(1, put(&format!("k{n}"), "value")));
    world.rounds(60);
    let whole = world.holds(1, "k2");
    let place = layout::data_key(SPACE, b"k2");
    world.unchecked = true;
    assert!(world.nodes[&NodeId(2)].store.damage(Family::Data, &place));
    world.nodes.get_mut(&NodeId(2)).unwrap().durable = world.nodes[&NodeId(2)].store.snapshot();
    assert!(matches!(get(&world, 2, "k2", None), Err(Error::Corrupt { .. })), "it is not served");
    world.give(2, Input::Scrub);
    world.rounds(60);
    assert_eq!(world.holds(2, "k2"), whole);
    let counters = world.replica(2).status().counters;
    assert_eq!((counters.damaged, counters.healed), (1, 1));
    assert!(world.converged().is_ok());
}

/// A record is gone from one member, by a fault that no checksum shows: the digests say so.
#[test]
fn replicas_that_claim_the_same_and_differ_find_out() {
    let mut world = World::scripted(3, 1, plain);
    (0..9).for_each(|n| world.write(1, put(&format!("k{n}"), "value")));
    world.rounds(60);
    let node = world.nodes.get_mut(&NodeId(2)).unwrap();
    let mut batch = duet_store::Batch::new();
    let stamp = crate::world::held(&*node.durable, &"k4".into()).unwrap().stamp;
    batch.delete(Family::Data, layout::data_key(SPACE, b"k4"));
    batch.delete(Family::Origin, layout::origin_key(SPACE, stamp.epoch, stamp.node, stamp.hlc));
    node.store.write(batch).unwrap();
    node.store.sync().unwrap();
    world.unchecked = true;
    world.give(2, Input::Scrub);
    world.rounds(400);
    assert!(world.replica(2).status().counters.digest_mismatch > 0);
    assert_eq!(world.holds(2, "k4"), world.holds(1, "k4"));
    assert!(world.converged().is_ok());
}

/// A new member that loses its sender goes on with another, from the key it has come to.
#[test]
fn a_copy_goes_on_with_another_sender() {
    let mut world = World::scripted(2, 1, plain);
    (0..30).for_each(|n| world.write(1, put(&format!("k{n:02}"), &"x".repeat(50))));
    world.rounds(60);
    let nodes = [1, 2, 3].map(NodeId).into();
    world.members = Members { version: 2, nodes, copies: 1, ..Members::default() };
    world.add(NodeId(3), Start::Joining, world.members.clone());
    for id in 1..=2 {
        let members = world.members.clone();
        world.give(id, Input::Members(members));
    }
    world.link(2, 3, false);
    while world.holds(3, "k10").is_none() {
        world.rounds(1);
    }
    world.link(1, 3, false);
    world.link(2, 3, true);
    world.write(1, delete("k03"));
    world.rounds(20);
    world.bytes = 0;
    while !world.replica(3).status().whole {
        world.rounds(1);
    }
    assert!(world.bytes < 20 * 200, "{} bytes: it began again", world.bytes);
    world.settle(20_000).unwrap();
    assert_eq!(world.holds(3, "k03"), None);
}

/// A new member that crashes goes on from the key it has come to: its place is on its disk.
#[test]
fn a_copy_goes_on_after_a_crash() {
    let mut world = World::scripted(2, 1, plain);
    (0..30).for_each(|n| world.write(1, put(&format!("k{n:02}"), &"x".repeat(50))));
    world.rounds(60);
    world.members = Members { version: 2, nodes: [1, 2, 3].map(NodeId).into(), copies: 1, ..Members::default() };
    world.add(NodeId(3), Start::Joining, world.members.clone());
    (1..=2).for_each(|id| world.give(id, Input::Members(world.members.clone())));
    while world.holds(3, "k20").is_none() {
        world.rounds(1);
    }
    world.crash(NodeId(3));
    while world.nodes[&NodeId(3)].replica.is_none() {
        world.rounds(1);
    }
    assert!(!world.replica(3).status().whole);
    world.bytes = 0;
    while !world.replica(3).status().whole {
        world.rounds(1);
    }
    assert!(world.bytes < 15 * 150, "{} bytes: it began again", world.bytes);
    world.settle(20_000).unwrap();
}

/// A node whose clock runs ahead is told so by its peers before it has stamped anything, and recovers when it is set.
#[test]
fn a_clock_an_hour_ahead_recovers_when_it_is_set() {
    const HOUR: u64 = 3_600_000;
    let mut world = World::scripted(3, 1, plain);
    world.rounds(40);
    world.skew(3, HOUR);
    world.rounds(100);
    world.write(3, put("a", "ahead"));
    world.rounds(20);
    assert!(matches!(world.answers.pop(), Some(Err(Error::ClockSkew(_)))));
    world.skew(3, 0);
    world.rounds(100);
    world.write(3, put("a", "set"));
    world.rounds(20);
    assert!(matches!(world.answers.pop(), Some(Ok(_))));
    world.settle(20_000).unwrap();
    assert_eq!(world.holds(1, "a"), world.holds(3, "a"));
}

/// Bytes of any sort from a peer are an error or a message, and a message of a stranger is not heard.
#[test]
fn strangers_and_other_epochs_are_not_heard() {
    let mut world = World::scripted(2, 1, plain);
    let mut envelope = duet_engine_eventual::Envelope {
        namespace: SPACE,
        epoch: crate::world::EPOCH,
        version: 1,
        wall_ms: 0,
        message: Message::Fetch { keys: vec!["a".into()] },
    };
    world.give(1, Input::Peer(NodeId(9), envelope.clone()));
    envelope.epoch = envelope.epoch.next();
    world.give(1, Input::Peer(NodeId(2), envelope));
    world.rounds(20);
    assert_eq!(world.replica(1).status().counters.not_heard, 2);
}
