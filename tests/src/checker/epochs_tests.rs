//! Each rule refuses the history that it is for, and leaves in peace what may be.

use duet_proto::Hlc;

use super::*;
use crate::checker::Expected;

/// Epoch 1 is eventual, 2 strong, 3 eventual, 4 strong.
fn epochs(without: &[u32]) -> Epochs {
    let ended = |to, apart: &[u32]| Ended {
        to,
        apart: apart.iter().map(|node| NodeId(*node)).collect(),
        alone: !apart.is_empty(),
        forgotten: Vec::new(),
    };
    let ended = [(1, Mode::Strong, without), (2, Mode::Eventual, &[]), (3, Mode::Strong, &[])]
        .map(|(epoch, to, apart)| (Epoch(epoch), ended(to, apart)));
    Epochs { first: Mode::Eventual, ended: ended.into() }
}

fn at(epoch: u32, hlc: u64, node: u32) -> Stamp {
    Stamp { epoch: Epoch(epoch), hlc: Hlc(hlc), node: NodeId(node) }
}

#[derive(Clone, Default)]
struct Story(Chronicle, i64);

impl Story {
    /// The moment of the next call; it returns five later.
    fn now(&mut self) -> i64 {
        self.1 += 10;
        self.1
    }

    fn tell(&mut self, client: u32, called: i64, epoch: u32, told: (Step, Option<Stamp>), reads: Reads) -> Verdicts {
        let (step, stamp) = told;
        let operation = Operation { client, called, returned: Some(called + 5), step, stamp };
        let epoch = Epoch(epoch);
        self.0.answer(Told { operation, session: Some(client), tokens: Vec::new(), epoch, reads })
    }

    fn write(&mut self, client: u32, value: Option<Value>, stamp: Stamp) {
        let (called, step) = (self.now(), Step::write(1, value));
        self.0.begin(&step, called);
        self.tell(client, called, stamp.epoch.0, (step, Some(stamp)), vec![]).unwrap();
    }

    fn unknown(&mut self, client: u32, value: Option<Value>) {
        let (called, step) = (self.now(), Step::write(1, value));
        self.0.begin(&step, called);
        self.0.lost(Operation { client, called, returned: None, step, stamp: None });
    }

    fn read(&mut self, client: u32, epoch: u32, found: Option<(Stamp, Value)>) -> Verdicts {
        let called = self.now();
        self.tell(client, called, epoch, (Step::default(), None), vec![(1, found)])
    }

    fn judge(&self, without: &[u32]) -> Verdicts {
        self.0.judge(&epochs(without))
    }
}

type Reads = Vec<(Key, Option<(Stamp, Value)>)>;
type Verdicts = Result<(), String>;

#[track_caller]
fn refuses(found: Verdicts, what: &str) {
    let told = found.expect_err("it is refused");
    assert!(told.contains(what), "for another reason: {told}");
}

#[test]
fn the_first_strong_read_sees_what_was_acknowledged_before() {
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 3));
    let mut lost = story.clone();
    lost.read(2, 2, None).unwrap();
    refuses(lost.judge(&[]), "at the border of epoch 2");
    assert_eq!(lost.judge(&[3]), Ok(()), "its member was left out and has it still");
    refuses(lost.judge(&[2]), "at the border of epoch 2");
    story.read(2, 2, Some((at(1, 5, 3), 10))).unwrap();
    assert_eq!(story.judge(&[]), Ok(()));
}

#[test]
fn an_older_value_is_not_enough_either() {
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 3));
    story.write(2, Some(11), at(1, 6, 1));
    story.read(3, 2, Some((at(1, 5, 3), 10))).unwrap();
    refuses(story.judge(&[]), "at the border of epoch 2");
}

#[test]
fn every_eventual_read_sees_what_was_acknowledged_in_the_strong_epoch() {
    let mut story = Story::default();
    story.write(1, Some(10), at(2, 5, 3));
    story.read(2, 3, None).unwrap();
    refuses(story.judge(&[]), "at the border of epoch 3");
    refuses(story.judge(&[3]), "at the border of epoch 3");
    let mut story = Story::default();
    story.write(1, Some(10), at(2, 5, 3));
    story.write(1, None, at(2, 6, 3));
    story.read(2, 3, None).unwrap();
    assert_eq!(story.judge(&[]), Ok(()), "it was deleted");
    story.read(3, 3, Some((at(2, 5, 3), 10))).unwrap();
    refuses(story.judge(&[]), "at the border of epoch 3");
}

#[test]
fn a_strong_epoch_is_linearizable_over_its_base() {
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 1));
    story.unknown(2, Some(11));
    story.read(3, 2, Some((at(1, 6, 1), 11))).unwrap();
    assert_eq!(story.judge(&[]), Ok(()), "a write of unknown outcome may be in the base");
    story.write(1, Some(12), at(2, 7, 1));
    let mut stale = story.clone();
    stale.read(4, 2, Some((at(1, 6, 1), 11))).unwrap();
    refuses(stale.judge(&[]), "in epoch 2: key 1: a read");
    let (called, none) = (story.now(), Step::compare_and_set(1, Expected::Absent, Some(13), Some(false)));
    story.tell(3, called, 2, (none, None), vec![]).unwrap();
    assert_eq!(story.judge(&[]), Ok(()));
    let (called, gone) = (story.now(), Step::compare_and_set(1, Expected::Absent, Some(14), Some(true)));
    story.0.begin(&gone, called);
    story.tell(3, called, 2, (gone, Some(at(2, 9, 1))), vec![]).unwrap();
    refuses(story.judge(&[]), "epoch 2 is not linearizable");
}

#[test]
fn the_base_holds_one_value_of_a_key() {
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 1));
    story.unknown(1, Some(11));
    story.read(2, 2, Some((at(1, 6, 2), 11))).unwrap();
    story.read(3, 2, Some((at(1, 5, 1), 10))).unwrap();
    refuses(story.judge(&[]), "in epoch 2");
}

#[test]
fn late_writes_come_in_by_their_stamp() {
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 1));
    story.write(2, Some(11), at(1, 6, 3));
    story.read(4, 2, Some((at(1, 5, 1), 10))).unwrap();
    story.read(4, 2, Some((at(1, 6, 3), 11))).unwrap();
    assert_eq!(story.judge(&[3]), Ok(()), "it came in between the reads");
    story.write(4, Some(12), at(2, 7, 1));
    assert_eq!(story.judge(&[3]), Ok(()));
    story.read(4, 2, Some((at(1, 6, 3), 11))).unwrap();
    assert!(story.judge(&[3]).is_err(), "an earlier epoch never overwrites a later one");
}

#[test]
fn nobody_goes_back() {
    let mut story = Story::default();
    story.read(1, 2, None).unwrap();
    refuses(story.read(1, 1, None), "client 1 was answered in epoch");
    // An eventual read may be of a member that has not heard; a write may not, unless it is listed.
    let mut story = Story::default();
    story.write(1, Some(9), at(2, 1, 1));
    story.read(2, 1, None).unwrap();
    assert_eq!(story.judge(&[]), Ok(()));
    story.write(3, Some(10), at(1, 5, 3));
    refuses(story.judge(&[]), "epoch 2 had answered already");
    assert_eq!(story.judge(&[3]), Ok(()));
    // A strong read not even that, once there is a later strong epoch.
    let mut story = Story::default();
    story.read(1, 3, None).unwrap();
    story.read(2, 2, None).unwrap();
    assert_eq!(story.judge(&[]), Ok(()));
    story.read(1, 4, None).unwrap();
    story.read(3, 2, None).unwrap();
    refuses(story.judge(&[]), "epoch 4 had answered already");
}

#[test]
fn a_session_sees_across_epochs_what_it_saw() {
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 3));
    story.read(1, 2, None).unwrap();
    assert!(story.judge(&[3]).is_err(), "its own write, whoever was left out");
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 3));
    let (called, reads) = (story.now(), vec![(1, None)]);
    let operation = Operation { client: 2, called, returned: Some(called), step: Step::default(), stamp: None };
    let tokens = vec![Token { epoch: Epoch(1), seen: vec![(NodeId(3), Hlc(5))] }];
    story.0.answer(Told { operation, session: Some(2), tokens, epoch: Epoch(2), reads }).unwrap();
    refuses(story.judge(&[3]), "a session that had seen");
}

#[test]
fn a_write_runs_once_and_in_the_epoch_that_says_so() {
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 3));
    refuses(story.read(2, 2, Some((at(2, 1, 1), 10))), "written twice");
    let mut story = Story::default();
    story.unknown(1, Some(10));
    refuses(story.read(2, 1, Some((at(2, 1, 1), 10))), "was read in epoch 1");
    let mut story = Story::default();
    let (called, step) = (story.now(), Step::write(1, Some(10)));
    story.0.begin(&step, called);
    refuses(story.tell(1, called, 2, (step, Some(at(1, 5, 1))), vec![]), "got the version");
}

#[test]
fn what_was_refused_is_never_seen() {
    let mut story = Story::default();
    let (called, step) = (story.now(), Step::write(1, Some(10)));
    story.0.begin(&step, called);
    story.0.refused(&step, called).unwrap();
    refuses(story.read(2, 2, Some((at(1, 1, 1), 10))), "nobody wrote");
}

fn holding(records: &[(Stamp, Option<Value>)]) -> Holding {
    Holding { frontier: BTreeMap::new(), records: records.iter().map(|record| (1, *record)).collect() }
}

#[test]
fn at_the_end_everything_acknowledged_is_there_but_what_was_given_up() {
    let mut story = Story::default();
    story.write(1, Some(10), at(1, 5, 3));
    refuses(story.0.complete(&epochs(&[3]), &holding(&[])), "an acknowledged write is lost");
    assert_eq!(story.0.complete(&epochs(&[3]), &holding(&[(at(1, 5, 3), Some(10))])), Ok(()));
    assert_eq!(story.0.complete(&epochs(&[3]), &holding(&[(at(2, 1, 1), Some(11))])), Ok(()));
    let mut forgotten = epochs(&[3]);
    forgotten.ended.entry(Epoch(1)).and_modify(|ended| ended.forgotten.push(NodeId(3)));
    assert_eq!(story.0.complete(&forgotten, &holding(&[])), Ok(()));
    story.write(1, None, at(2, 6, 1));
    refuses(story.0.complete(&forgotten, &holding(&[(at(1, 5, 3), Some(10))])), "a delete was undone");
    assert_eq!(story.0.complete(&forgotten, &holding(&[])), Ok(()));
}
