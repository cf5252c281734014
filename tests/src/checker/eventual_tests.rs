//! Each check finds what it is for, and leaves in peace what may be.

use duet_proto::Epoch;

use super::*;

fn at(hlc: u64, node: u32) -> Stamp {
    Stamp { epoch: Epoch(1), hlc: Hlc(hlc), node: NodeId(node) }
}

fn token(seen: &[(u32, u64)]) -> Token {
    Token { epoch: Epoch(1), seen: seen.iter().map(|(node, hlc)| (NodeId(*node), Hlc(*hlc))).collect() }
}

#[derive(Default)]
struct Story(Journal, i64);

impl Story {
    fn tell(&mut self, session: u32, token: Token, act: Act) -> Result<(), String> {
        self.1 += 10;
        if let Act::Write { key, value, .. } = act {
            self.0.begin(key, value, self.1);
        }
        self.0.told(Event { session: Some(session), called: self.1, returned: self.1 + 5, tokens: vec![token], act })
    }

    fn write(&mut self, session: u32, key: Key, value: Option<Value>, stamp: Option<Stamp>) {
        self.tell(session, token(&[]), Act::Write { key, value, stamp }).unwrap();
    }

    fn read(&mut self, session: u32, seen: Token, key: Key, found: Option<(Stamp, Value)>) -> Result<(), String> {
        self.tell(session, seen, Act::Read { key, found })?;
        self.0.sessions_hold()
    }
}

#[test]
fn a_session_reads_its_own_writes() {
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    story.read(2, token(&[]), 1, None).unwrap();
    story.read(1, token(&[]), 1, Some((at(5, 1), 10))).unwrap();
    assert!(story.read(1, token(&[]), 1, None).is_err());
}

#[test]
fn a_session_does_not_go_back() {
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    story.write(1, 1, Some(11), Some(at(6, 1)));
    story.read(2, token(&[]), 1, Some((at(6, 1), 11))).unwrap();
    story.read(3, token(&[]), 1, Some((at(5, 1), 10))).unwrap();
    assert!(story.read(2, token(&[]), 1, Some((at(5, 1), 10))).is_err());
}

#[test]
fn a_token_is_a_promise_about_every_key() {
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    story.read(2, token(&[(1, 4)]), 1, None).unwrap();
    assert!(story.read(2, token(&[(1, 5)]), 1, None).is_err());
}

#[test]
fn an_absence_is_a_delete_or_a_fault() {
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    story.write(2, 1, None, Some(at(7, 2)));
    story.read(1, token(&[]), 1, None).unwrap();
    assert!(story.read(1, token(&[]), 1, Some((at(5, 1), 10))).is_err(), "it has seen the delete");
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    story.write(2, 1, None, None);
    story.read(1, token(&[]), 1, None).unwrap();
    story.read(1, token(&[]), 1, Some((at(5, 1), 10))).unwrap();
}

#[test]
fn stamps_name_one_write_each_and_lie_above_what_was_seen() {
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    let again = Act::Write { key: 1, value: Some(11), stamp: Some(at(5, 1)) };
    assert!(story.tell(1, token(&[]), again).is_err());
    let below = Act::Write { key: 1, value: Some(12), stamp: Some(at(6, 2)) };
    assert!(story.tell(1, token(&[(1, 6)]), below).is_err());
    assert!(story.tell(1, token(&[]), Act::Read { key: 2, found: Some((at(9, 1), 10)) }).is_err(), "another key's");
    assert!(story.tell(1, token(&[]), Act::Read { key: 1, found: Some((at(9, 1), 99)) }).is_err(), "nobody's");
}

fn holding(frontier: &[(u32, u64)], records: &[(Key, Stamp, Option<Value>)]) -> Holding {
    Holding {
        frontier: frontier.iter().map(|(node, hlc)| (NodeId(*node), Hlc(*hlc))).collect(),
        records: records.iter().map(|(key, stamp, value)| (*key, (*stamp, *value))).collect(),
    }
}

#[test]
fn what_is_claimed_is_held_or_superseded() {
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    let journal = &mut story.0;
    assert!(journal.claims_hold(&holding(&[(1, 4)], &[])).is_ok());
    assert!(journal.claims_hold(&holding(&[(1, 5)], &[])).is_err());
    assert!(journal.claims_hold(&holding(&[(1, 5)], &[(1, at(5, 1), Some(10))])).is_ok());
    assert!(journal.claims_hold(&holding(&[(1, 5)], &[(1, at(6, 2), Some(11))])).is_ok());
    journal.begin(1, None, 0);
    journal.note(at(7, 2), 1, None).unwrap();
    assert!(journal.claims_hold(&holding(&[(1, 5)], &[])).is_ok(), "it was deleted, and the tombstone forgotten");
}

#[test]
fn acknowledged_writes_are_counted_on_disks() {
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    story.write(1, 2, Some(20), None);
    let (with, without) = (holding(&[(1, 5)], &[(1, at(5, 1), Some(10))]), holding(&[], &[]));
    assert!(story.0.origin_keeps(NodeId(1), &with).is_ok() && story.0.origin_keeps(NodeId(2), &without).is_ok());
    assert!(story.0.origin_keeps(NodeId(1), &without).is_err());
    let disks = BTreeMap::from([(NodeId(1), with.clone()), (NodeId(2), without.clone())]);
    assert!(story.0.copies_hold(1, &disks).is_ok());
    assert!(story.0.copies_hold(2, &disks).is_err());
    assert!(story.0.complete(&with).is_ok() && story.0.complete(&without).is_err());
}

#[test]
fn deletes_stay_done() {
    let mut story = Story::default();
    story.write(1, 1, Some(10), Some(at(5, 1)));
    story.write(1, 1, None, Some(at(6, 1)));
    assert!(story.0.complete(&holding(&[], &[])).is_ok());
    assert!(story.0.complete(&holding(&[], &[(1, at(5, 1), Some(10))])).is_err());
    let mut memory = Memory::default();
    memory.look(&holding(&[], &[(1, at(6, 1), None)])).unwrap();
    memory.look(&holding(&[], &[])).unwrap();
    assert!(memory.clone().look(&holding(&[], &[(1, at(5, 1), Some(10))])).is_err());
    assert!(memory.look(&holding(&[], &[(1, at(7, 1), Some(11))])).is_ok());
    assert!(memory.look(&holding(&[], &[(1, at(6, 9), Some(12))])).is_err(), "it went back");
}

#[test]
fn a_frontier_does_not_go_back() {
    let mut memory = Memory::default();
    memory.look(&holding(&[(1, 5)], &[])).unwrap();
    assert!(memory.look(&holding(&[(1, 4)], &[])).is_err());
}
