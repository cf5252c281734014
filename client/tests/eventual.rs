//! A client of an eventual namespace: what a session sees across members, and which writes are tried again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use duet_client::{Change, Expect, KeyRange, Options};
use duet_proto::{
    Change as Changed, ClockFault, DataRequest, Entry, Epoch, Error, Hlc, Meta, Mode, NodeId, Op, Outcome, Stamp,
    Token,
};
use fake::{Act, Fake, address, cluster, data, fails};
use tokio::time::Instant;

/// Three members that hold what they were told, and tell each other only when the test says so.
#[derive(Clone, Default)]
struct Members(Arc<Mutex<World>>);

type Records = BTreeMap<Vec<u8>, (Stamp, Vec<u8>)>;

#[derive(Default)]
struct World {
    held: BTreeMap<u32, Records>,
    frontiers: BTreeMap<u32, BTreeMap<u32, u64>>,
    silent: BTreeSet<u32>,
    time: u64,
}

impl Members {
    fn fake(&self) -> Fake {
        let members = self.clone();
        let fake = Fake::new(3, move |node, request| members.0.lock().unwrap().answer(node, request));
        fake.stage(|stage| stage.modes[0].1 = Mode::Eventual);
        fake
    }

    fn silence(&self, node: u32, silent: bool) {
        let nodes = &mut self.0.lock().unwrap().silent;
        if silent {
            nodes.insert(node)
        } else {
            nodes.remove(&node)
        };
    }

    /// `to` learns all that `from` holds.
    fn sync(&self, from: u32, to: u32) {
        let mut world = self.0.lock().unwrap();
        let (theirs, reach) = (world.held.get(&from).cloned(), world.frontiers.get(&from).cloned());
        for (key, record) in theirs.unwrap_or_default() {
            let held = world.held.entry(to).or_default().entry(key).or_insert_with(|| record.clone());
            if record.0 > held.0 {
                *held = record;
            }
        }
        for (origin, hlc) in reach.unwrap_or_default() {
            let mine = world.frontiers.entry(to).or_default().entry(origin).or_default();
            *mine = hlc.max(*mine);
        }
    }
}

impl World {
    fn answer(&mut self, node: u32, request: &DataRequest) -> Act {
        if self.silent.contains(&node) {
            return Act::Silence;
        }
        let frontier = self.frontiers.entry(node).or_default();
        let mut seen = request.tokens.first().cloned().unwrap_or_default().seen;
        if let Op::Write { mutation } = &request.op {
            let floor = seen.iter().map(|(_, hlc)| hlc.0).max().unwrap_or(0);
            self.time = self.time.max(floor) + 1;
            let stamp = Stamp { epoch: Epoch(1), hlc: Hlc(self.time), node: NodeId(node) };
            let Changed::Put(value) = &mutation.change else { unreachable!() };
            self.held.entry(node).or_default().insert(mutation.key.to_vec(), (stamp, value.to_vec()));
            frontier.insert(node, self.time);
            seen.retain(|(origin, _)| *origin != NodeId(node));
            seen.push((NodeId(node), stamp.hlc));
            seen.sort_unstable();
            return data(Outcome::Written(stamp), meta(seen));
        }
        let lacks = seen.iter().any(|(origin, hlc)| frontier.get(&origin.0).is_none_or(|have| *have < hlc.0));
        if lacks {
            return fails(Error::TokenNotCovered { why: "behind".into() });
        }
        let reach = frontier.iter().map(|(origin, hlc)| (NodeId(*origin), Hlc(*hlc))).collect();
        let held = self.held.entry(node).or_default();
        let outcome = match &request.op {
            Op::Get { key } => {
                let found = held.get(&key[..]).cloned();
                Outcome::Value(found.map(|(stamp, value)| (stamp, value.into())))
            }
            _ => {
                let entry = |(key, (stamp, value)): (&Vec<u8>, &(Stamp, Vec<u8>))| Entry {
                    key: key.clone().into(),
                    stamp: *stamp,
                    value: value.clone().into(),
                };
                Outcome::Page { entries: held.iter().map(entry).collect(), next: None }
            }
        };
        data(outcome, meta(reach))
    }
}

fn meta(seen: Vec<(NodeId, Hlc)>) -> Meta {
    Meta { token: Some(Token { epoch: Epoch(1), seen }), ..fake::meta(0) }
}

/// A client's own setting: how long a member may be silent before another one is asked.
const PATIENCE: Duration = Duration::from_millis(400);

#[tokio::test(start_paused = true)]
async fn a_session_reads_its_writes_on_any_member_or_is_told_that_it_cannot_yet() {
    let members = Members::default();
    let mut fake = members.fake();
    let orders = fake.orders().await.timeout(Duration::from_secs(2));
    orders.put("k", "mine").await.unwrap();
    let wrote = fake.asked()[0];
    let (second, third) = (wrote % 3 + 1, (wrote + 1) % 3 + 1);
    members.silence(wrote, true);
    let start = Instant::now();
    let error = cluster(orders.get("k").await);
    assert!(matches!(error, Error::TokenNotCovered { .. }), "{error}");
    assert!(start.elapsed() <= Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(fake.asked().into_iter().collect::<BTreeSet<_>>(), [1, 2, 3].into(), "anyone might have seen it");
    // Whoever asks for no more is served at once, with what there is.
    assert_eq!(orders.session(false).get("k").await.unwrap(), None);
    members.sync(wrote, third);
    assert_eq!(orders.get("k").await.unwrap().unwrap().value, "mine");
    let mut scan = orders.scan(KeyRange::all());
    assert_eq!(scan.next().await.unwrap().unwrap().value, "mine");
    assert!(second != wrote && fake.asked().last() == Some(&third));
}

#[tokio::test(start_paused = true)]
async fn a_session_never_goes_back_in_time() {
    let members = Members::default();
    let mut fake = members.fake();
    let (reader, writer) = (fake.orders().await, fake.orders().await);
    writer.put("k", "1").await.unwrap();
    let wrote = fake.asked()[0];
    (1..=3).for_each(|node| members.sync(wrote, node));
    assert_eq!(reader.get("k").await.unwrap().unwrap().value, "1");
    writer.put("k", "2").await.unwrap();
    let fresh = fake.asked()[0];
    members.silence(fresh % 3 + 1, true);
    members.silence((fresh + 1) % 3 + 1, true);
    assert_eq!(reader.get("k").await.unwrap().unwrap().value, "2", "only {fresh} answers");
    (1..=3).for_each(|node| members.silence(node, node == fresh));
    let late = cluster(reader.timeout(Duration::from_secs(2)).get("k").await);
    assert!(matches!(late, Error::TokenNotCovered { .. }), "the others still have the old value: {late}");
}

#[tokio::test(start_paused = true)]
async fn a_write_comes_after_everything_its_session_has_seen() {
    let members = Members::default();
    let mut fake = members.fake();
    let orders = fake.orders().await;
    let other = fake.orders().await;
    let read = other.put("k", "theirs").await.unwrap();
    orders.resume(&other.tokens());
    fake.requests();
    let written = orders.put("k", "mine").await.unwrap();
    assert_eq!(fake.requests()[0].1.tokens, other.tokens());
    assert!(written > read);
}

#[tokio::test(start_paused = true)]
async fn a_client_without_sessions_neither_shows_nor_keeps_tokens() {
    let members = Members::default();
    let mut fake = members.fake();
    let client = fake.builder(&[1], Options::default()).session(false).connect().await.unwrap();
    let orders = client.namespace("orders").unwrap();
    orders.put("k", "v").await.unwrap();
    orders.get("k").await.unwrap();
    assert!(fake.requests().iter().all(|(_, request)| request.tokens.is_empty()));
    assert_eq!(orders.tokens(), []);
    let strict = orders.session(true);
    strict.put("k", "v").await.unwrap();
    strict.get("k").await.unwrap();
    assert!(fake.requests().last().unwrap().1.tokens.len() == 1, "one handle may ask for more");
}

#[tokio::test(start_paused = true)]
async fn who_answered_last_is_asked_again() {
    // One of these begins with the member that this client would turn to first among equals.
    for begin in 1..=3 {
        let members = Members::default();
        let mut fake = members.fake();
        let client = fake.builder(&[begin], Options::default()).connect().await.unwrap();
        let orders = client.namespace("orders").unwrap().session(false);
        orders.get("k").await.unwrap();
        let first = fake.asked()[0];
        assert_eq!(first, begin, "it is connected");
        members.silence(first, true);
        let start = Instant::now();
        orders.get("k").await.unwrap();
        assert!(start.elapsed() < 2 * PATIENCE, "another member is asked beside it: {:?}", start.elapsed());
        let second = *fake.asked().last().unwrap();
        members.silence(first, false);
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..3 {
            orders.get("k").await.unwrap();
        }
        assert_eq!(fake.asked(), [second; 3], "{first} is well again, but so is this one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_cut_off_holds_up_no_later_write() {
    let members = Members::default();
    let mut fake = members.fake();
    let orders = fake.orders().await.timeout(Duration::from_secs(4));
    orders.put("k", "0").await.unwrap();
    let first = fake.asked()[0];
    members.silence(first, true);
    let stuck = tokio::spawn({
        let orders = orders.clone();
        async move { orders.put("stuck", "v").await }
    });
    tokio::time::sleep(PATIENCE + Duration::from_millis(50)).await;
    let start = Instant::now();
    for n in 0..5 {
        orders.put(format!("k{n}"), "v").await.unwrap();
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    let error = cluster(stuck.await.unwrap());
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    let stuck: Vec<_> = fake.requests().into_iter().filter(|(_, request)| wrote(request, "stuck")).collect();
    assert_eq!(stuck.len(), 1, "it may have been done: nobody else was asked to do it");
}

fn wrote(request: &DataRequest, key: &str) -> bool {
    matches!(&request.op, Op::Write { mutation } if mutation.key == key)
}

#[tokio::test(start_paused = true)]
async fn a_write_that_certainly_was_not_done_is_tried_elsewhere() {
    let node = NodeId(1);
    for refusal in [
        Error::NotHere { members: vec![(NodeId(2), address(2)), (NodeId(3), address(3))] },
        Error::Unavailable { node, why: "its first copy".into() },
        Error::Overloaded { why: "queue".into() },
        Error::TimedOut { after_ms: 5, why: "queue".into() },
        Error::ClockSkew(ClockFault { ahead_ms: 3_600_000, allowed_ms: 500 }),
        Error::DiskFull { node, free: 1, reserve: 2 },
    ] {
        let refuses = refusal.clone();
        let mut fake = Fake::new(3, move |node, _| if node == 1 { fails(refuses.clone()) } else { fake::written(1) });
        fake.stage(|stage| stage.modes[0].1 = Mode::Eventual);
        fake.orders().await.put("k", "v").await.unwrap_or_else(|e| panic!("{refusal}: {e}"));
        let asked = fake.asked();
        assert!(asked.len() == 2 && asked[0] == 1 && asked[1] != 1, "{refusal}: {asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_may_have_been_done_is_not_tried_again() {
    let copies = || Error::NotEnoughCopies { have: 1, need: 2 };
    for act in [
        || Act::Break,
        || Act::Silence,
        || fails(Error::OutcomeUnknown { why: "stopping".into() }),
        || fails(Error::NotEnoughCopies { have: 1, need: 2 }),
    ] {
        let mut fake = Fake::new(3, move |_, _| act());
        fake.stage(|stage| stage.modes[0].1 = Mode::Eventual);
        let error = cluster(fake.orders().await.timeout(Duration::from_secs(2)).put("k", "v").await);
        assert!(matches!(error, Error::OutcomeUnknown { .. }) || error == copies(), "{error}");
        assert_eq!(fake.asked().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn conditional_writes_are_refused_once_and_say_why() {
    let refusal = || Error::Unsupported { mode: Mode::Eventual, why: "conditional writes need a strong one".into() };
    let mut fake = Fake::new(3, move |_, _| fails(refusal()));
    fake.stage(|stage| stage.modes[0].1 = Mode::Eventual);
    let orders = fake.orders().await;
    assert_eq!(cluster(orders.cas("k", Expect::Absent, Change::Put("v".into())).await), refusal());
    assert_eq!(cluster(orders.txn().put("k", "v").commit().await), refusal());
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_forgotten_with_the_namespace_that_it_is_of() {
    let members = Members::default();
    let mut fake = members.fake();
    let orders = fake.orders().await;
    orders.put("k", "v").await.unwrap();
    assert_eq!(orders.tokens().len(), 1);
    // Somebody deletes it and creates another one of the same name: nothing of the old one will ever be seen.
    *members.0.lock().unwrap() = World::default();
    fake.stage(|stage| {
        stage.modes.insert(0, ("new".into(), Mode::Eventual, vec![1, 2, 3], None));
        stage.version += 1;
    });
    assert_eq!(orders.get("k").await.unwrap(), None);
}
