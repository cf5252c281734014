//! Switches among members that write, acknowledge, pull, seal, report and learn of them in any order.

use std::collections::{BTreeMap, BTreeSet};

use duet_proto::{Admin, Digest, Epoch, Hlc, Stamp};
use proptest::prelude::*;

use super::*;
use crate::plan::{
    plan,
    tests::{Store, create_eventual, name, nodes},
};

/// A member's replica of the eventual epoch, as far as the switch goes.
#[derive(Clone, Debug, Default)]
struct Replica {
    held: Frontier,
    fence: Option<u64>,
    /// From whom alone it takes anything while it is fenced.
    only: Vec<NodeId>,
    /// From which of them it has, since.
    pulled: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Write {
    origin: NodeId,
    hlc: Hlc,
    acknowledged: bool,
}

struct World {
    store: Store,
    copies: u32,
    replicas: BTreeMap<NodeId, Replica>,
    writes: Vec<Write>,
}

#[derive(Clone, Debug)]
enum Act {
    Switch,
    Abort,
    Learn(u32),
    Write(u32),
    Pull(u32, u32),
    Acknowledge,
    /// And whether the entry has been as it is for long.
    Report(u32, bool),
}

fn acts() -> impl Strategy<Value = Act> {
    let node = || 1u32..4;
    prop_oneof![
        2 => Just(Act::Switch),
        1 => Just(Act::Abort),
        8 => node().prop_map(Act::Learn),
        4 => node().prop_map(Act::Write),
        8 => (node(), node()).prop_map(|(a, b)| Act::Pull(a, b)),
        4 => Just(Act::Acknowledge),
        8 => (node(), any::<bool>()).prop_map(|(node, long)| Act::Report(node, long)),
    ]
}

fn ask(to: Mode, without: &[u32]) -> Admin {
    Admin::SwitchMode { name: name("e").unwrap(), to, without: nodes(without) }
}

impl World {
    fn new(copies: u32) -> World {
        let mut store = Store::founded();
        store.admin(&create_eventual("e", &[1, 2, 3], copies)).unwrap();
        let replicas = nodes(&[1, 2, 3]).into_iter().map(|node| (node, Replica::default())).collect();
        World { store, copies, replicas, writes: Vec::new() }
    }

    fn record(&self) -> NamespaceRecord {
        self.store.record("e")
    }

    fn take(&mut self, act: &Act) {
        if self.record().mode == Mode::Strong {
            return;
        }
        match act {
            Act::Switch => self.admin(&ask(Mode::Strong, &[])),
            Act::Abort => self.admin(&Admin::AbortSwitch { name: name("e").unwrap() }),
            Act::Learn(node) => self.learn(NodeId(*node)),
            Act::Write(node) => {
                let (origin, hlc) = (NodeId(*node), Hlc(self.writes.len() as u64 + 1));
                if let Some(replica) = self.replicas.get_mut(&origin).filter(|r| r.fence.is_none()) {
                    replica.held.raise(origin, hlc);
                    self.writes.push(Write { origin, hlc, acknowledged: false });
                }
            }
            Act::Pull(to, from) => self.pull(NodeId(*to), NodeId(*from)),
            Act::Acknowledge => {
                for write in &mut self.writes {
                    let holds = |replica: &&Replica| replica.held.get(write.origin) >= write.hlc;
                    // A fenced member tells nobody that it holds something: what it held was told before.
                    let copies = self.replicas.values().filter(|r| r.fence.is_none()).filter(holds).count();
                    write.acknowledged |= copies >= self.copies as usize;
                }
            }
            Act::Report(node, long) => self.report(NodeId(*node), *long),
        }
    }

    fn admin(&mut self, admin: &Admin) {
        if let Ok(plan) = plan(&self.store.view(), admin, 0) {
            assert!(self.store.commit(&plan));
        }
    }

    fn abort(&mut self, wall_ms: u64) {
        let plan = plan(&self.store.view(), &Admin::AbortSwitch { name: name("e").unwrap() }, wall_ms);
        assert!(self.store.commit(&plan.unwrap()));
    }

    fn learn(&mut self, node: NodeId) {
        let record = self.record();
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        let only = match &record.state {
            NamespaceState::Switching(Switch { step: Step::Converging { base, .. }, .. }) => base.clone(),
            _ => Vec::new(),
        };
        if (replica.fence, &replica.only) != (record.fence(), &only) {
            (replica.fence, replica.only, replica.pulled) = (record.fence(), only, BTreeSet::from([node]));
        }
    }

    fn pull(&mut self, to: NodeId, from: NodeId) {
        let held = self.replicas[&from].held.clone();
        if let Some(replica) = self.replicas.get_mut(&to)
            && (replica.fence.is_none() || replica.only.contains(&from) && replica.only.contains(&to))
        {
            replica.held.join(&held);
            replica.pulled.insert(from);
        }
    }

    fn report(&mut self, node: NodeId, long: bool) {
        let (entry, replica) = (self.store.entry("e"), &self.replicas[&node]);
        let last = Stamp { epoch: Epoch(1), ..Stamp::default() };
        let digest =
            replica.held.iter().fold(0u128, |sum, (node, hlc)| sum * 1000 + u128::from(node.0) + u128::from(hlc.0));
        let held = Held { last, digest: Digest(digest), keys: 0, frontier: replica.held.clone(), answers: None };
        let whole = !replica.only.is_empty() && replica.only.iter().all(|from| replica.pulled.contains(from));
        let converged = replica.fence.filter(|_| whole);
        let came = Came::Eventual { near: true, fence: replica.fence, converged, held: Box::new(held) };
        let waited = if long { BOUND * 30 } else { Duration::ZERO };
        let at = Moment { waited, wall_ms: 0, bug: None };
        let Some(plan) = advance(&name("e").unwrap(), &entry, node, &came, at) else { return };
        assert!(self.store.commit(&plan), "planned on what is there");
        let after = self.record();
        assert!(after.attempts >= entry.record.attempts);
        if after.mode == Mode::Strong {
            self.is_safe(&after);
        }
    }

    /// What was acknowledged is in the base, whoever is in it.
    fn is_safe(&self, record: &NamespaceRecord) {
        let end = record.end_of(Epoch(1)).unwrap();
        for write in self.writes.iter().filter(|write| write.acknowledged) {
            assert!(end.get(write.origin) >= write.hlc, "{write:?} is not in {record:?}");
        }
        assert_eq!((record.epoch, &record.state), (Epoch(2), &NamespaceState::Stable));
        assert_eq!(record.owed.len(), record.left.len());
        assert!(record.left.len() * 2 < record.members.len());
    }

    /// With everybody there, a switch comes to its end.
    fn settle(&mut self) {
        self.admin(&ask(Mode::Strong, &[]));
        for _ in 0..12 {
            for node in 1..4 {
                self.take(&Act::Learn(node));
                (1..4).for_each(|from| self.take(&Act::Pull(node, from)));
                // Attempts that failed are followed by a rest.
                self.take(&Act::Report(node, self.record().fence().is_none()));
            }
        }
        assert_eq!(self.record().mode, Mode::Strong, "{:?}", self.record());
    }
}

proptest! {
    #[test]
    fn nothing_acknowledged_is_left_out_of_the_base(
        copies in 1u32..4,
        acts in prop::collection::vec(acts(), 0..150),
    ) {
        let mut world = World::new(copies);
        acts.iter().for_each(|act| world.take(act));
        world.settle();
    }
}

fn eventual(world: &mut World, node: u32, long: bool) {
    world.take(&Act::Learn(node));
    (1..4).for_each(|from| world.take(&Act::Pull(node, from)));
    world.take(&Act::Report(node, long));
}

#[test]
fn a_member_that_is_away_is_waited_for_before_writes_stop() {
    let mut world = World::new(1);
    world.admin(&ask(Mode::Strong, &[]));
    for _ in 0..3 {
        eventual(&mut world, 1, true);
        eventual(&mut world, 2, true);
    }
    assert_eq!(world.record().fence(), None, "one copy: any write may be on the third alone");
    world.admin(&ask(Mode::Strong, &[3]));
    for _ in 0..3 {
        eventual(&mut world, 1, false);
        eventual(&mut world, 2, false);
    }
    let record = world.record();
    assert_eq!((record.mode, &record.left, &record.owed), (Mode::Strong, &nodes(&[3]), &vec![(NodeId(3), Epoch(1))]));
    assert_eq!(record.history.len(), 1);
    let forget = |node| Admin::Forget { name: name("e").unwrap(), node: NodeId(node) };
    assert!(plan(&world.store.view(), &forget(2), 0).is_err());
    world.store.admin(&forget(3)).unwrap();
    assert!(world.record().owed.is_empty());
}

#[test]
fn with_copies_enough_a_switch_goes_on_without_a_member_and_waits_a_moment_for_it() {
    let mut world = World::new(2);
    world.admin(&ask(Mode::Strong, &[]));
    eventual(&mut world, 1, false);
    eventual(&mut world, 2, false);
    assert_eq!(world.record().fence(), None, "the third may be on its way");
    (0..4).for_each(|round| eventual(&mut world, 1 + round % 2, true));
    assert!(world.record().fence().is_some() || world.record().mode == Mode::Strong);
}

#[test]
fn writes_do_not_stop_for_long() {
    let mut world = World::new(1);
    world.admin(&ask(Mode::Strong, &[]));
    (1..4).for_each(|node| eventual(&mut world, node, false));
    assert!(world.record().fence().is_some());
    eventual(&mut world, 1, true);
    assert_eq!(world.record().fence(), None, "two did not seal in time");
    world.settle();
}

/// Of a switch that was ended before anybody had said anything, or between two attempts, as of any other.
#[test]
fn an_aborted_switch_is_remembered_with_its_times() {
    let mut world = World::new(1);
    let asked = |world: &World| world.store.entry("e").stamp.hlc.millis();
    world.admin(&ask(Mode::Strong, &[]));
    let first = asked(&world);
    world.abort(first + 700);
    world.admin(&ask(Mode::Strong, &[]));
    let second = asked(&world);
    (1..4).for_each(|node| eventual(&mut world, node, false));
    eventual(&mut world, 1, true);
    world.abort(second + 900);
    let times = |past: &SwitchPast| (past.aborted, past.asked_ms, past.sealed_ms, past.ended_ms);
    let history: Vec<_> = world.record().history.iter().map(times).collect();
    assert_eq!(history, [(true, first, 0, first + 700), (true, second, 0, second + 900)]);
}

#[test]
fn an_end_that_is_in_the_log_cannot_be_taken_back() {
    let mut world = World::new(1);
    world.settle();
    world.store.admin(&ask(Mode::Eventual, &[])).unwrap();
    let abort = Admin::AbortSwitch { name: name("e").unwrap() };
    assert!(matches!(plan(&world.store.view(), &ask(Mode::Strong, &[]), 0), Err(Error::Changing { .. })));
    let back = |world: &World| matches!(&world.record().state, NamespaceState::Switching(Switch { step: Step::Ending { back }, .. }) if *back);
    world.store.admin(&abort).unwrap();
    assert!(back(&world));
    world.store.admin(&ask(Mode::Eventual, &[])).unwrap();
    assert!(!back(&world), "asked for again, it stays");
    world.store.admin(&abort).unwrap();
    let base = world.record().base.unwrap();
    let entry = world.store.entry("e");
    let at = Moment { waited: Duration::ZERO, wall_ms: 0, bug: None };
    let said = |came| advance(&name("e").unwrap(), &entry, NodeId(2), &came, at);
    assert_eq!(said(Came::Strong(None)), None);
    let plan = said(Came::Strong(Some(base))).unwrap();
    assert!(world.store.commit(&plan));
    let record = world.record();
    assert_eq!((record.mode, record.epoch, &record.left), (Mode::Eventual, Epoch(3), &vec![]));
    let NamespaceState::Switching(switch) = &record.state else { panic!("on its way back: {record:?}") };
    assert_eq!(switch.step, Step::Gathering { near: vec![] });
    assert!(record.history.last().unwrap().aborted);
}
