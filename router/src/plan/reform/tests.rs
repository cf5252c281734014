//! Changes of members among replicas that write, acknowledge, pull, report and learn of them in any order.

use duet_proto::{Admin, Hlc, NodeId};
use proptest::prelude::*;

use super::*;
use crate::plan::{
    plan,
    tests::{Store, create_eventual, name, nodes},
};

/// A replica, as far as rule 8 goes.
#[derive(Clone, Debug, Default)]
struct Replica {
    members: duet_engine_eventual::Members,
    whole: bool,
    moved: Frontier,
    frontier: Frontier,
}

/// A write and everyone who held it, each with the version that it went by when it did.
#[derive(Debug)]
struct Write {
    origin: NodeId,
    hlc: Hlc,
    holders: BTreeSet<(NodeId, u64)>,
    acknowledged: Option<u64>,
}

struct World {
    store: Store,
    replicas: BTreeMap<NodeId, Replica>,
    writes: Vec<Write>,
}

#[derive(Clone, Debug)]
enum Step {
    Members(BTreeSet<u32>),
    Copies(u32),
    /// A node follows the catalog.
    Learn(u32),
    Write(u32),
    /// The first gets what the second has.
    Pull(u32, u32),
    /// An origin acknowledges what it can.
    Acknowledge(u32),
    Report(u32),
}

fn steps() -> impl Strategy<Value = Step> {
    let node = || 1u32..6;
    prop_oneof![
        1 => prop::collection::btree_set(node(), 1..5).prop_map(Step::Members),
        1 => (1u32..4).prop_map(Step::Copies),
        6 => node().prop_map(Step::Learn),
        4 => node().prop_map(Step::Write),
        12 => (node(), node()).prop_map(|(a, b)| Step::Pull(a, b)),
        4 => node().prop_map(Step::Acknowledge),
        6 => node().prop_map(Step::Report),
    ]
}

impl World {
    fn new(copies: u32) -> World {
        let mut store = Store::founded();
        for node in 4..6 {
            store.admin(&Admin::AddNode { address: format!("n{node}:1") }).unwrap();
            store.register(node, 1);
        }
        store.admin(&create_eventual("e", &[1, 2, 3], copies)).unwrap();
        World { store, replicas: BTreeMap::new(), writes: Vec::new() }
    }

    fn record(&self) -> NamespaceRecord {
        self.store.record("e")
    }

    /// Whether the change that it brought about was the end of one.
    fn take(&mut self, step: &Step) {
        match step {
            Step::Members(members) => {
                let members = members.iter().copied().map(NodeId).collect();
                self.ask(&Admin::SetMembers { name: name("e").unwrap(), members });
            }
            Step::Copies(copies) => self.ask(&Admin::SetCopies { name: name("e").unwrap(), copies: *copies }),
            Step::Learn(node) => self.learn(NodeId(*node)),
            Step::Write(node) => self.write(NodeId(*node)),
            Step::Pull(to, from) => self.pull(NodeId(*to), NodeId(*from)),
            Step::Acknowledge(node) => self.acknowledge(NodeId(*node)),
            Step::Report(node) => self.report(NodeId(*node)),
        }
        for (node, replica) in &self.replicas {
            for write in self.writes.iter_mut().filter(|w| w.hlc <= replica.frontier.get(w.origin)) {
                write.holders.insert((*node, replica.members.version));
            }
        }
    }

    fn ask(&mut self, admin: &Admin) {
        if let Ok(plan) = plan(&self.store.view(), admin, 0) {
            assert!(self.store.commit(&plan));
        }
    }

    fn learn(&mut self, node: NodeId) {
        let record = self.record();
        if !record.holds(node) {
            self.replicas.remove(&node);
            return;
        }
        let members = record.engine_members();
        let fresh = Replica { members: members.clone(), whole: record.starts(node), ..Replica::default() };
        let replica = self.replicas.entry(node).or_insert(fresh);
        if replica.members.version < members.version {
            (replica.members, replica.moved) = (members, replica.frontier.clone());
        }
    }

    fn write(&mut self, node: NodeId) {
        let hlc = Hlc(self.writes.len() as u64 + 1);
        if let Some(replica) = self.replicas.get_mut(&node)
            && replica.whole
            && replica.members.nodes.contains(&node)
        {
            replica.frontier.raise(node, hlc);
            self.writes.push(Write { origin: node, hlc, holders: BTreeSet::new(), acknowledged: None });
        }
    }

    fn pull(&mut self, to: NodeId, from: NodeId) {
        let Some(sender) = self.replicas.get(&from).cloned() else { return };
        if let Some(replica) = self.replicas.get_mut(&to)
            && sender.whole
            && sender.members.hears(to)
            && replica.members.hears(from)
        {
            replica.frontier.join(&sender.frontier);
            replica.whole = true;
        }
    }

    fn acknowledge(&mut self, node: NodeId) {
        let Some(replica) = self.replicas.get(&node) else { return };
        let members = &replica.members;
        for write in self.writes.iter_mut().filter(|w| w.origin == node && w.acknowledged.is_none()) {
            let copies = members.nodes.iter().filter(|n| write.holders.contains(&(**n, members.version))).count();
            if copies >= members.copies as usize {
                write.acknowledged = Some(members.version);
            }
        }
    }

    fn report(&mut self, node: NodeId) {
        let (entry, Some(replica)) = (self.store.entry("e"), self.replicas.get(&node)) else { return };
        let stand = Stand {
            version: replica.members.version,
            whole: replica.whole,
            moved: replica.moved.clone(),
            frontier: replica.frontier.clone(),
        };
        let Some(plan) = report(&name("e").unwrap(), &entry, node, &stand) else { return };
        assert!(self.store.commit(&plan), "planned on what is there");
        let (before, after) = (&entry.record, self.record());
        assert!(after.version == before.version || after.version == before.version + 1);
        if before.state != NamespaceState::Stable && after.state == NamespaceState::Stable {
            for write in self.writes.iter().filter(|w| w.acknowledged.is_some_and(|v| v < before.version)) {
                for member in &after.members {
                    let held = self.replicas.get(member).map_or(Hlc::ZERO, |r| r.frontier.get(write.origin));
                    assert!(held >= write.hlc, "{member} lacks {write:?}");
                }
            }
        }
    }

    /// Whatever was acknowledged lies on a node that keeps its replica.
    fn nothing_lost(&self) {
        let record = self.record();
        for write in self.writes.iter().filter(|w| w.acknowledged.is_some()) {
            let kept = self
                .replicas
                .iter()
                .any(|(node, replica)| record.holds(*node) && replica.frontier.get(write.origin) >= write.hlc);
            assert!(kept, "{write:?} is nowhere any more: {record:?}");
        }
    }

    /// With everybody there, every change comes to its end.
    fn settle(&mut self) {
        let mut rounds = 0;
        while self.record().state != NamespaceState::Stable {
            rounds += 1;
            assert!(rounds < 20, "this does not end: {:?}", self.record());
            for node in 1..6 {
                self.take(&Step::Learn(node));
                (1..6).for_each(|from| self.take(&Step::Pull(node, from)));
                self.take(&Step::Report(node));
            }
            self.nothing_lost();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_acknowledged_write_is_lost_to_a_change(
        copies in 1u32..4,
        steps in prop::collection::vec(steps(), 1..250),
    ) {
        let mut world = World::new(copies);
        (1..4).for_each(|node| world.learn(NodeId(node)));
        for step in &steps {
            world.take(step);
            world.nothing_lost();
        }
        world.settle();
    }
}

fn stand(store: &Store, frontier: &[(u32, u64)]) -> Stand {
    let frontier: Frontier = frontier.iter().map(|(node, hlc)| (NodeId(*node), Hlc(*hlc))).collect();
    Stand { version: store.record("e").version, whole: true, moved: frontier.clone(), frontier }
}

fn say(store: &mut Store, node: u32, stand: &Stand) -> bool {
    let plan = report(&name("e").unwrap(), &store.entry("e"), NodeId(node), stand);
    plan.is_some_and(|plan| store.commit(&plan))
}

fn set(members: &[u32]) -> Admin {
    Admin::SetMembers { name: name("e").unwrap(), members: nodes(members) }
}

fn copies(copies: u32) -> Admin {
    Admin::SetCopies { name: name("e").unwrap(), copies }
}

#[test]
fn a_new_member_is_filled_before_it_counts_and_an_old_one_goes_when_it_is_not_needed() {
    let mut store = World::new(1).store;
    store.admin(&set(&[1, 2, 4])).unwrap();
    let record = store.record("e");
    assert_eq!((record.version, &record.members), (2, &nodes(&[1, 2, 3])), "in force as before");
    let seen = record.engine_members();
    assert!(seen.leaving.contains(&NodeId(4)) && !seen.nodes.contains(&NodeId(4)), "4 hears and takes no writes");
    assert!((1..=4).all(|node| record.holds(NodeId(node))) && !record.starts(NodeId(4)));

    let blank = Stand { whole: false, ..stand(&store, &[]) };
    assert!(!say(&mut store, 4, &blank), "it has no copy yet");
    let old = Stand { version: 1, ..stand(&store, &[]) };
    assert!(!say(&mut store, 4, &old), "of another version");
    let whole = stand(&store, &[]);
    assert!(!say(&mut store, 2, &whole), "nobody waits for 2");
    assert!(say(&mut store, 4, &whole));
    let record = store.record("e");
    assert_eq!((record.version, &record.members), (3, &nodes(&[1, 2, 4])));
    assert_eq!(record.engine_members().leaving, [NodeId(3)].into());
    assert!(record.holds(NodeId(3)), "what it acknowledged alone is owed");

    for (node, frontier) in [(1, [(1, 5)]), (2, [(2, 6)]), (3, [(3, 7)])] {
        let said = stand(&store, &frontier);
        assert!(say(&mut store, node, &said));
        assert!(!say(&mut store, node, &said), "nothing new");
        assert!(matches!(store.record("e").state, NamespaceState::Settling { .. }));
    }
    let all = stand(&store, &[(1, 5), (2, 6), (3, 8)]);
    for node in [1, 2] {
        assert!(say(&mut store, node, &all));
        assert!(matches!(store.record("e").state, NamespaceState::Settling { .. }), "4 lacks some");
    }
    let lacking = stand(&store, &[(1, 5), (2, 6), (3, 6)]);
    assert!(!say(&mut store, 4, &lacking));
    assert!(say(&mut store, 4, &all));
    let record = store.record("e");
    assert_eq!((record.version, &record.state, &record.left), (4, &NamespaceState::Stable, &nodes(&[3])));
    assert!(!record.holds(NodeId(3)));
    assert_eq!(plan(&store.view(), &set(&[1, 2, 3]), 0).unwrap_err().code(), "invalid_request", "3 cannot come back");
}

#[test]
fn with_copies_a_change_needs_not_everyone_before_it() {
    let mut store = World::new(2).store;
    store.admin(&set(&[1, 2])).unwrap();
    let all = stand(&store, &[(1, 5)]);
    assert!(say(&mut store, 1, &all));
    assert!(say(&mut store, 2, &all));
    // What 1 held was not yet known to be owed when it spoke first.
    assert!(say(&mut store, 1, &all));
    assert_eq!(store.record("e").state, NamespaceState::Stable, "3 is away, and had to be one of two");
}

#[test]
fn a_target_can_be_changed_on_the_way() {
    let mut store = World::new(1).store;
    store.admin(&set(&[1, 2, 4])).unwrap();
    store.admin(&set(&[1, 2, 3])).unwrap();
    let record = store.record("e");
    assert_eq!((record.version, &record.state), (3, &NamespaceState::Stable), "4 never came, and nothing is owed");
    store.admin(&set(&[1, 2])).unwrap();
    store.admin(&set(&[1, 5])).unwrap();
    let whole = stand(&store, &[]);
    assert!(say(&mut store, 5, &whole));
    let record = store.record("e");
    let before: Vec<_> = record.before().iter().map(|electorate| electorate.nodes.clone()).collect();
    assert_eq!((before, &record.members), (vec![nodes(&[1, 2, 3]), nodes(&[1, 2])], &nodes(&[1, 5])));
    store.admin(&set(&[1, 2, 3])).unwrap();
    let record = store.record("e");
    assert!(record.left.is_empty() && record.holds(NodeId(5)), "3 has kept its replica and may stay");
    assert_eq!(plan(&store.view(), &Admin::RemoveNode { node: NodeId(5) }, 0).unwrap_err().code(), "invalid_request");
}

#[test]
fn copies_are_changed_in_two_phases_too() {
    let mut store = World::new(1).store;
    for refused in [0, 4] {
        assert_eq!(plan(&store.view(), &copies(refused), 0).unwrap_err().code(), "invalid_request");
    }
    let same = plan(&store.view(), &copies(1), 0).unwrap();
    assert_eq!(same.transaction(), None);
    store.admin(&copies(3)).unwrap();
    let record = store.record("e");
    assert_eq!((record.copies, record.version), (3, 2));
    assert_eq!(
        plan(&store.view(), &set(&[1, 2]), 0).unwrap_err().code(),
        "invalid_request",
        "they cannot give three"
    );
    let all = stand(&store, &[]);
    for node in [1, 2, 3, 1, 2] {
        assert!(say(&mut store, node, &all), "{node}");
    }
    assert_eq!(store.record("e").state, NamespaceState::Stable);
    store.admin(&copies(1)).unwrap();
    let Goal::Gone(..) = store.admin(&Admin::DeleteNamespace { name: name("e").unwrap() }).unwrap() else {
        panic!("it can be deleted whatever it waits for")
    };
    assert_eq!(plan(&store.view(), &copies(2), 0).unwrap_err().code(), "changing");
}
