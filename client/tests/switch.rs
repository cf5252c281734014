//! A client whose namespace is switched to another mode under its hands: every row of what nodes answer then, lost
//! connections included. No write runs twice, and none is said not to be done that may have been.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use duet_client::{Change, ClientError, Consistency, Expect, KeyRange, Namespace};
use duet_proto::{
    Admin, Class, Cursor, DataRequest, Entry, Epoch, Error, Hlc, LateState, LateWrite, Meta, Mode, NodeId, Op,
    Outcome, Response, SessionId, Token,
};
use fake::{Act, Fake, cluster, data, fails, name, stamp};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

/// A namespace whose epochs alternate in mode, as the members of a cluster know it. It keeps the contract of nodes.
#[derive(Clone)]
struct World(Arc<Mutex<State>>);

struct State {
    first: Mode,
    epoch: u32,
    /// Answers by number, of strong epochs.
    table: BTreeMap<(SessionId, u64), u64>,
    /// How often each key was written.
    ran: BTreeMap<Vec<u8>, u32>,
    position: u64,
}

/// What becomes of a request that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Well,
    /// The connection breaks before it is looked at.
    Unseen,
    /// The connection breaks before its answer is sent.
    Unanswered,
    /// The member does not know what became of what was sent earlier.
    Ignorant,
}

impl World {
    fn new(first: Mode) -> World {
        let (table, ran) = (BTreeMap::new(), BTreeMap::new());
        World(Arc::new(Mutex::new(State { first, epoch: 1, table, ran, position: 0 })))
    }

    /// Three members of it; `fate` decides of each request, by its number from 0, and may switch before it arrives.
    fn fake(&self, mut fate: impl FnMut(&mut State, usize, u32) -> Fate + Send + 'static) -> Fake {
        let (world, first) = (self.clone(), self.0.lock().unwrap().first);
        let mut count = 0;
        let fake = Fake::new(3, move |node, request| {
            let mut state = world.0.lock().unwrap();
            let fate = fate(&mut state, count, node);
            count += 1;
            if fate == Fate::Unseen {
                return Act::Break;
            }
            let act = state.answer(request, fate == Fate::Ignorant);
            if fate == Fate::Unanswered { Act::Break } else { act }
        });
        fake.stage(|stage| stage.modes[0].1 = first);
        fake
    }

    fn ran(&self, key: &str) -> u32 {
        self.0.lock().unwrap().ran.get(key.as_bytes()).copied().unwrap_or(0)
    }
}

impl State {
    fn mode(&self, epoch: u32) -> Mode {
        match self.first {
            first if epoch % 2 == 1 => first,
            Mode::Strong => Mode::Eventual,
            Mode::Eventual => Mode::Strong,
        }
    }

    fn meta(&self) -> Meta {
        let strong = self.mode(self.epoch) == Mode::Strong;
        let token = Token { epoch: Epoch(self.epoch), seen: vec![(NodeId(1), Hlc(self.position))] };
        Meta {
            epoch: Epoch(self.epoch),
            position: if strong { self.position } else { 0 },
            leader: None,
            token: (!strong).then_some(token),
        }
    }

    fn changed(&self) -> Act {
        let (epoch, mode) = (Epoch(self.epoch), self.mode(self.epoch));
        fails(Error::EpochChanged { namespace: name(), epoch, mode })
    }

    fn answer(&mut self, request: &DataRequest, ignorant: bool) -> Act {
        let now = self.mode(self.epoch);
        assert!(request.epoch.0 <= self.epoch, "nobody has told of such an epoch");
        let key = match &request.op {
            Op::Write { mutation } | Op::CompareAndSet { mutation, .. } => mutation.key.to_vec(),
            Op::Transaction { then, .. } => then[0].key.to_vec(),
            _ => return data(Outcome::Value(None), self.meta()),
        };
        let number = request.attempt.map(|t| (t.session, t.sequence));
        let old = request.attempt.filter(|t| t.epoch.0 < self.epoch && self.mode(t.epoch.0) == Mode::Strong);
        if old.is_some() {
            let done = number.and_then(|number| self.table.get(&number).copied());
            return match done {
                _ if ignorant => fails(Error::OutcomeUnknown { why: "this member cannot know".into() }),
                Some(at) => data(Outcome::Written(stamp(at)), self.meta()),
                None => self.changed(),
            };
        }
        if request.epoch != Epoch::default() && request.epoch.0 != self.epoch {
            return self.changed();
        }
        if now == Mode::Eventual && request.op.is_conditional() {
            return fails(Error::Unsupported { mode: now, why: "it compares".into() });
        }
        if let Some(at) = number.filter(|_| now == Mode::Strong).and_then(|number| self.table.get(&number)) {
            return data(Outcome::Written(stamp(*at)), self.meta());
        }
        self.position += 1;
        *self.ran.entry(key).or_default() += 1;
        if let Some(number) = number.filter(|_| now == Mode::Strong) {
            self.table.insert(number, self.position);
        }
        data(Outcome::Written(stamp(self.position)), self.meta())
    }
}

/// The epoch that each request was sent in, and its number and epoch, if it had one.
fn sent(fake: &Fake) -> Vec<(u32, Option<(u64, u32)>)> {
    let of = |(_, r): (u32, DataRequest)| (r.epoch.0, r.attempt.map(|t| (t.sequence, t.epoch.0)));
    fake.requests().into_iter().map(of).collect()
}

/// Does nothing to the requests, and switches before the one with this number arrives.
fn switches_before(at: usize) -> impl FnMut(&mut State, usize, u32) -> Fate + Send {
    move |state, count, _| {
        state.epoch += u32::from(count == at);
        Fate::Well
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_follows_into_either_mode_and_later_ones_know() {
    let world = World::new(Mode::Strong);
    let mut fake = world.fake(switches_before(0));
    let orders = fake.orders().await;
    let start = Instant::now();
    orders.put("a", "v").await.unwrap();
    orders.put("b", "v").await.unwrap();
    assert_eq!(sent(&fake), [(1, Some((1, 1))), (2, None), (2, None)]);
    assert!(start.elapsed() < Duration::from_millis(100), "it goes on at once: {:?}", start.elapsed());

    let world = World::new(Mode::Eventual);
    let mut fake = world.fake(switches_before(0));
    let orders = fake.orders().await;
    orders.put("a", "v").await.unwrap();
    orders.cas("b", Expect::Absent, Change::Put("v".into())).await.unwrap();
    assert_eq!(sent(&fake), [(1, None), (2, Some((1, 2))), (2, Some((2, 2)))]);
    assert_eq!((world.ran("a"), world.ran("b")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_strong_write_whose_answer_was_lost_is_answered_from_the_table() {
    for later in [1, 2] {
        let world = World::new(Mode::Strong);
        let mut fake = world.fake(move |state, count, _| match count {
            0 => Fate::Unanswered,
            1 => {
                state.epoch += later;
                Fate::Well
            }
            _ => Fate::Well,
        });
        let orders = fake.orders().await;
        assert_eq!(orders.put("a", "v").await.unwrap(), stamp(1));
        assert_eq!(sent(&fake), [(1, Some((1, 1))), (1, Some((1, 1)))], "the same number, of the same epoch");
        assert_eq!(world.ran("a"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_strong_write_that_was_lost_and_never_ran_is_sent_as_new() {
    for (later, number) in [(1, None), (2, Some((2, 3)))] {
        let world = World::new(Mode::Strong);
        let mut fake = world.fake(move |state, count, _| match count {
            0 => Fate::Unseen,
            1 => {
                state.epoch += later;
                Fate::Well
            }
            _ => Fate::Well,
        });
        fake.orders().await.put("a", "v").await.unwrap();
        assert_eq!(sent(&fake), [(1, Some((1, 1))), (1, Some((1, 1))), (1 + later, number)]);
        assert_eq!(world.ran("a"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn members_that_cannot_know_are_passed_over_until_one_does() {
    for (lost, answers) in [(Fate::Unseen, 2), (Fate::Unanswered, 1)] {
        let world = World::new(Mode::Strong);
        let mut fake = world.fake(move |state, count, node| match count {
            0 => lost,
            _ => {
                state.epoch = 2;
                if node == 2 { Fate::Well } else { Fate::Ignorant }
            }
        });
        fake.orders().await.put("a", "v").await.unwrap();
        let requests = fake.requests();
        let settled = requests.iter().position(|(node, _)| *node == 2).unwrap();
        assert!(requests[..=settled].iter().all(|(_, r)| r.attempt == requests[0].1.attempt && r.epoch == Epoch(1)));
        assert_eq!((requests.len() - settled, world.ran("a")), (answers, 1), "{lost:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_nobody_knows_the_outcome_is_unknown_and_nothing_is_sent_anew() {
    for lost in [Fate::Unseen, Fate::Unanswered] {
        let world = World::new(Mode::Strong);
        let mut fake = world.fake(move |state, count, _| match count {
            0 => lost,
            _ => {
                state.epoch = 2;
                Fate::Ignorant
            }
        });
        let orders = fake.orders().await.timeout(Duration::from_secs(2));
        let error = cluster(orders.cas("a", Expect::Absent, Change::Put("v".into())).await);
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
        let sent = sent(&fake);
        assert!(sent.len() > 3 && sent.iter().all(|one| *one == (1, Some((1, 1)))), "{sent:?}");
        assert!(world.ran("a") <= 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_eventual_write_of_unknown_fate_stays_unknown() {
    for fate in [Fate::Unseen, Fate::Unanswered] {
        let world = World::new(Mode::Eventual);
        let mut fake = world.fake(move |state, count, _| {
            state.epoch += u32::from(count > 0);
            if count == 0 { fate } else { Fate::Well }
        });
        let error = cluster(fake.orders().await.put("a", "v").await);
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
        assert_eq!(sent(&fake).len(), 1, "nobody could tell whether it was done");
    }
    // It was refused for certain, followed, and then lost in the eventual epoch.
    let world = World::new(Mode::Strong);
    let mut fake = world.fake(|state, count, _| {
        state.epoch = 2;
        if count == 1 { Fate::Unanswered } else { Fate::Well }
    });
    let error = cluster(fake.orders().await.put("a", "v").await);
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!(world.ran("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_compares_ends_with_the_strong_epoch() {
    let cas = async |orders: &Namespace| orders.cas("a", Expect::Absent, Change::Put("v".into())).await;
    // Refused: nothing was done, and it cannot be done. The first time the client has not yet heard of the switch.
    let world = World::new(Mode::Strong);
    let mut fake = world.fake(switches_before(0));
    let orders = fake.orders().await;
    for _ in 0..2 {
        let error = cluster(cas(&orders).await);
        assert!(matches!(error, Error::Unsupported { mode: Mode::Eventual, .. }), "{error}");
    }
    let error = cluster(orders.txn().put("a", "v").commit().await);
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    // Its answer was lost, and the table has it. It was lost itself, and the table says so.
    for (fate, ran) in [(Fate::Unanswered, 1), (Fate::Unseen, 0)] {
        let world = World::new(Mode::Strong);
        let mut fake = world.fake(move |state, count, _| {
            state.epoch += u32::from(count == 1);
            if count == 0 { fate } else { Fate::Well }
        });
        match cas(&fake.orders().await).await {
            Ok(at) => assert_eq!((at, ran), (stamp(1), 1)),
            Err(error) => assert!(matches!(error.cluster(), Some(Error::Unsupported { .. })) && ran == 0, "{error}"),
        }
        assert_eq!(world.ran("a"), ran);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_without_a_number_is_refused_for_certain_and_follows() {
    let world = World::new(Mode::Strong);
    let mut fake = world.fake(switches_before(0));
    fake.orders().await.exactly_once(false).put("a", "v").await.unwrap();
    assert_eq!(sent(&fake), [(1, None), (2, None)]);
    assert_eq!(world.ran("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_read_of_an_earlier_epoch_is_not_taken() {
    for local in [Consistency::Linearizable, Consistency::Local] {
        let world = World::new(Mode::Eventual);
        let mut fake = world.fake(switches_before(0));
        let orders = fake.orders().await.consistency(local);
        orders.put("a", "v").await.unwrap();
        fake.requests();
        // Node 3 alone has heard of epoch 2 as well; the others answer from the first one.
        fake.script(|node, request| {
            let epoch = Epoch(if node == 3 { 2 } else { 1 });
            assert_eq!(request.epoch, Epoch(2), "a request says what the session has seen");
            data(Outcome::Value(Some((stamp(1), node.to_string().into()))), Meta { epoch, ..fake::meta(1) })
        });
        assert_eq!(orders.get("a").await.unwrap().unwrap().value, "3");
        assert_eq!(orders.get_with_epoch("a").await.unwrap().1, Epoch(2));
        fake.script(|_, _| data(Outcome::Value(None), fake::meta(1)));
        let stale = orders.timeout(Duration::from_secs(1)).get("a").await.unwrap_err();
        assert!(matches!(stale, ClientError::TimedOut { .. }), "{stale}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_tried_again_says_what_the_session_has_seen_by_then() {
    // Somebody else's request learns of epoch 2 while this one is held up.
    let mut fake = Fake::new(1, |_, request| match (&request.op, request.epoch) {
        (Op::Get { .. }, Epoch(1)) => fails(Error::Changing { namespace: name(), why: "in a moment".into() }),
        (Op::Get { .. }, epoch) => data(Outcome::Value(None), Meta { epoch, ..fake::meta(0) }),
        _ => data(Outcome::Written(stamp(1)), Meta { epoch: Epoch(2), ..fake::meta(0) }),
    });
    let orders = fake.orders().await;
    let read = tokio::spawn({
        let orders = orders.clone();
        async move { orders.get_with_epoch("a").await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    orders.put("b", "v").await.unwrap();
    assert_eq!(read.await.unwrap().unwrap().1, Epoch(2));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_never_to_have_run_is_refused_for_certain_afterwards() {
    let refusal = || Error::DiskFull { node: NodeId(1), free: 1, reserve: 2 };
    let mut count = 0;
    let mut fake = Fake::new(1, move |_, request| {
        count += 1;
        match request.attempt {
            Some(_) if count == 1 => Act::Break,
            Some(_) => fails(Error::EpochChanged { namespace: name(), epoch: Epoch(2), mode: Mode::Eventual }),
            None => fails(refusal()),
        }
    });
    assert_eq!(cluster(fake.orders().await.put("a", "v").await), refusal());
}

#[tokio::test(start_paused = true)]
async fn a_write_of_an_earlier_epoch_is_acknowledged_and_comes_in_late() {
    // A member that has not heard of the switch takes the write, in an epoch that is over elsewhere.
    let late = Token { epoch: Epoch(1), seen: vec![(NodeId(3), Hlc(9))] };
    let mut fake = Fake::new(3, {
        let late = late.clone();
        move |_, _| data(Outcome::Written(stamp(9)), Meta { token: Some(late.clone()), ..fake::meta(0) })
    });
    fake.stage(|stage| (stage.modes[0].1, stage.epoch) = (Mode::Strong, 2));
    let orders = fake.orders().await;
    assert_eq!(orders.put("a", "v").await.unwrap(), stamp(9));
    assert_eq!(orders.epoch(), Epoch(2), "it does not go back");
    let shown = vec![late.clone()];
    assert_eq!(orders.tokens(), shown, "until an epoch stands for it");
    // Nobody has it yet, then it has been merged.
    let mut asked = 0;
    fake.script(move |_, request| {
        assert_eq!(request.tokens, shown);
        asked += 1;
        if asked < 5 {
            return fails(Error::TokenNotCovered { why: "a write that has not come in yet".into() });
        }
        data(Outcome::Value(None), Meta { epoch: Epoch(2), ..fake::meta(7) })
    });
    orders.get("a").await.unwrap();
    assert_eq!(orders.tokens(), [], "the strong answer stands for it");
}

#[tokio::test(start_paused = true)]
async fn a_token_of_an_eventual_epoch_is_dropped_once_a_later_one_has_answered() {
    let world = World::new(Mode::Eventual);
    let mut fake = world.fake(switches_before(1));
    let orders = fake.orders().await;
    orders.put("a", "v").await.unwrap();
    let tokens = orders.tokens();
    assert_eq!(tokens.len(), 1);
    orders.put("b", "v").await.unwrap();
    orders.get("a").await.unwrap();
    let shown: Vec<_> = fake.requests().into_iter().map(|(_, request)| request.tokens).collect();
    assert_eq!(shown, [vec![], tokens.clone(), tokens, vec![]], "shown on every copy, then stood for");
}

#[tokio::test(start_paused = true)]
async fn copies_that_still_wait_are_let_go_once_a_member_knows_what_became_of_them() {
    // Node 1 holds its copy through the switch and says something only when nobody listens any more.
    for to in [1, 2] {
        let world = World::new(Mode::Strong);
        let state = world.clone();
        let mut fake = Fake::new(3, move |node, request| {
            let mut state = state.0.lock().unwrap();
            if node == 1 && request.attempt.is_some_and(|attempt| attempt.epoch == Epoch(1)) {
                state.epoch = 1 + to;
                let Act::Answer(late) = state.changed() else { unreachable!() };
                return Act::Late(Duration::from_secs(3), late);
            }
            state.answer(request, false)
        });
        let orders = fake.orders().await;
        let start = Instant::now();
        orders.put("a", "v").await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "another member is asked beside it: {:?}", start.elapsed());
        assert_eq!(world.ran("a"), 1);
        tokio::time::sleep(Duration::from_secs(5)).await;
        orders.put("b", "v").await.unwrap();
        assert_eq!((world.ran("a"), world.ran("b"), orders.epoch()), (1, 1, Epoch(1 + to)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_created_anew_begins_with_its_first_epoch_again() {
    // The old one was in epoch 3; members of the new one know of no such epoch.
    let mut fake = Fake::new(3, |_, request| match request.epoch {
        Epoch(0 | 1) => fake::written(1),
        _ => fails(Error::Changing { namespace: name(), why: "it has no epoch 3 yet".into() }),
    });
    fake.stage(|stage| stage.epoch = 3);
    let orders = fake.orders().await;
    fake.stage(|stage| {
        stage.modes.insert(0, ("other".into(), Mode::Strong, vec![1, 2, 3], Some(1)));
        (stage.epoch, stage.version) = (1, 2);
    });
    orders.put("a", "v").await.unwrap();
    assert_eq!(orders.epoch(), Epoch(1));
    let sent = sent(&fake);
    assert_eq!(sent.last(), Some(&(1, Some((2, 1)))), "with a number that was never used: {sent:?}");
}

#[tokio::test(start_paused = true)]
async fn changing_is_waited_out_with_short_pauses() {
    let changing = || Error::Changing { namespace: name(), why: "writes are held up by a switch".into() };
    let world = World::new(Mode::Strong);
    let mut fake = world.fake(|_, _, _| Fate::Well);
    let orders = fake.orders().await;
    orders.put("a", "v").await.unwrap();
    fake.asked();
    let over = Instant::now() + Duration::from_millis(600);
    fake.script(move |_, request| {
        if Instant::now() < over { fails(changing()) } else { world.0.lock().unwrap().answer(request, false) }
    });
    orders.put("b", "v").await.unwrap();
    assert!(over.elapsed() < Duration::from_millis(150), "{:?}", over.elapsed());
    let asked = fake.asked();
    assert!(asked.len() > 10 && asked.iter().collect::<BTreeSet<_>>().len() == 3, "{asked:?}");
    // To the end of its time: it was refused, for certain.
    fake.script(move |_, _| fails(changing()));
    assert_eq!(cluster(orders.timeout(Duration::from_secs(1)).put("c", "v").await), changing());
}

#[tokio::test(start_paused = true)]
async fn a_member_that_has_not_heard_of_the_epoch_is_asked_again_in_a_while() {
    // It names an epoch that the session is past: it has not caught up.
    let mut fake = Fake::new(3, |node, request| match node {
        1 => fails(Error::EpochChanged { namespace: name(), epoch: Epoch(2), mode: Mode::Eventual }),
        _ => data(Outcome::Written(stamp(1)), Meta { epoch: request.epoch, ..fake::meta(1) }),
    });
    fake.stage(|stage| stage.epoch = 3);
    fake.orders().await.put("a", "v").await.unwrap();
    assert_eq!(sent(&fake), [(3, Some((1, 3))), (3, Some((1, 3)))]);
}

#[tokio::test(start_paused = true)]
async fn a_scan_goes_on_behind_its_last_key_and_says_so() {
    let entry = |key: u8| Entry { key: vec![key].into(), stamp: stamp(u64::from(key)), value: "v".into() };
    // Two keys a page; the third page finds the namespace in its second epoch.
    let mut pages = 0;
    let mut fake = Fake::new(1, move |_, request| {
        let Op::Scan { range, cursor, .. } = &request.op else { return Act::Break };
        pages += 1;
        let epoch = Epoch(if pages < 3 { 1 } else { 2 });
        if cursor.as_ref().is_some_and(|cursor| cursor.epoch != epoch) {
            return fails(Error::EpochChanged { namespace: name(), epoch, mode: Mode::Eventual });
        }
        let begin = cursor.as_ref().map_or(&range.start, |cursor| &cursor.last);
        let after = |key: &u8| [*key][..] > begin[..] || (cursor.is_none() && [*key][..] == begin[..]);
        let keys: Vec<u8> = (b'a'..=b'j').filter(after).take(2).collect();
        let next = keys.last().filter(|key| **key < b'j').map(|key| Cursor { epoch, last: vec![*key].into() });
        let entries = keys.into_iter().map(entry).collect();
        data(Outcome::Page { entries, next }, Meta { epoch, ..fake::meta(1) })
    });
    let mut scan = fake.orders().await.scan(KeyRange::all()).page(2);
    let (mut keys, mut crossed) = (Vec::new(), Vec::new());
    while let Some(entry) = scan.next().await {
        keys.extend_from_slice(&entry.unwrap().key);
        crossed.extend(scan.crossed().map(|crossed| (keys.len(), crossed)));
    }
    assert_eq!(keys, b"abcdefghij");
    let [(at, crossed)] = &crossed[..] else { panic!("{crossed:?}") };
    assert_eq!((*at, &crossed.last[..], crossed.epoch, crossed.mode), (5, &b"d"[..], Epoch(2), Mode::Eventual));
}

#[tokio::test(start_paused = true)]
async fn one_replica_can_be_read_by_itself() {
    let mut fake = Fake::new(3, |_, request| {
        assert_eq!((request.consistency, &request.tokens), (Consistency::Local, &vec![]));
        data(Outcome::Value(None), fake::meta(1))
    });
    let orders = fake.orders().await;
    for node in [2, 3, 1, 3] {
        orders.on(NodeId(node)).get("a").await.unwrap();
    }
    assert_eq!(fake.asked(), [2, 3, 1, 3]);
    // A member that holds nothing of it says so, and nobody else is asked.
    fake.script(|_, _| fails(Error::NotHere { members: vec![(NodeId(1), fake::address(1))] }));
    assert!(matches!(cluster(orders.on(NodeId(2)).get("a").await), Error::NotHere { .. }));
    assert_eq!(fake.asked(), [2]);
}

#[tokio::test(start_paused = true)]
async fn an_operator_is_told_at_once_what_stands_in_the_way() {
    let why = "the seal may be in the log already";
    let mut fake = Fake::new(3, |_, _| Act::Break);
    let refusal = Error::Changing { namespace: name(), why: why.into() };
    fake.stage(|stage| {
        let write = |node: u32| LateWrite {
            key: vec![node as u8].into(),
            stamp: stamp(1),
            tombstone: false,
            state: LateState::Waiting,
        };
        stage.admin = Box::new(move |node, admin| match admin {
            Admin::ListLate { .. } => Response::Late(vec![write(node)]),
            _ => Response::Error(refusal.clone()),
        });
    });
    let admin = fake.client().await.admin();
    let start = Instant::now();
    for refused in [
        admin.abort_switch("orders").await,
        admin.switch_mode("orders", Mode::Strong, vec![]).await,
        admin.forget("orders", NodeId(3)).await,
    ] {
        assert!(cluster(refused).to_string().contains(why));
    }
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    for node in 1..=3 {
        assert_eq!(admin.late("orders", NodeId(node), 10).await.unwrap()[0].key[..], [node as u8]);
    }
}

/// Whatever happens to its copies, a write that is acknowledged ran once, one of unknown outcome at most once, one that
/// was refused never.
#[tokio::test(start_paused = true)]
async fn no_write_runs_twice_and_none_is_said_not_to_be_done_that_was() {
    let mut counts = BTreeMap::<&str, u32>::new();
    for seed in 0..8 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let world = World::new(if seed % 2 == 0 { Mode::Strong } else { Mode::Eventual });
        let mut fake = world.fake(move |state, _, _| {
            state.epoch += [0, 0, 0, 0, 1, 1, 2][rng.random_range(0..7)];
            [Fate::Well, Fate::Well, Fate::Unseen, Fate::Unanswered, Fate::Ignorant][rng.random_range(0..5)]
        });
        let orders = fake.orders().await;
        for n in 0..100 {
            let key = format!("k{n}");
            let result = match n % 3 {
                0 => orders.cas(key.clone(), Expect::Absent, Change::Put("v".into())).await,
                _ => orders.put(key.clone(), "v").await,
            };
            let ran = world.ran(&key);
            let (kind, right) = match &result {
                Ok(_) => ("acknowledged", ran == 1),
                Err(error) if error.class() == Class::Unknown => ("unknown", ran <= 1),
                Err(_) => ("refused", ran == 0),
            };
            assert!(right, "seed {seed}, {key}: ran {ran} times, and then: {result:?}");
            *counts.entry(kind).or_default() += 1;
        }
    }
    assert!(counts.len() == 3 && counts.values().all(|count| *count > 20), "{counts:?}");
}
