//! Plans against a catalog in memory: any order of changes, planned on views of any age.

use std::collections::BTreeMap;

use bytes::Bytes;
use duet_proto::{Epoch, Hlc, InvalidName};
use proptest::prelude::*;

use super::*;

/// What the system group would hold.
#[derive(Clone, Default)]
pub(super) struct Store {
    rows: BTreeMap<Bytes, (Stamp, Bytes)>,
    time: u64,
}

impl Store {
    pub(super) fn view(&self) -> View {
        let mut view = View { version: self.time, ..View::default() };
        for (key, (stamp, value)) in &self.rows {
            view.apply(key, Some((*stamp, value)));
        }
        view
    }

    /// As the state machine does it; whether the compares held.
    pub(super) fn commit(&mut self, plan: &Plan) -> bool {
        let Some(Op::Transaction { compares, then, .. }) = plan.transaction() else { return true };
        assert!(
            Op::Transaction { compares: compares.clone(), then: then.clone(), otherwise: vec![], reads: vec![] }
                .validate(limits::VALUE_DEFAULT)
                .is_ok()
        );
        let held = compares.iter().all(|compare| match (compare.expect, self.rows.get(&compare.key)) {
            (Expect::Absent, None) => true,
            (Expect::Stamp(stamp), Some((found, _))) => stamp == *found,
            _ => false,
        });
        if held {
            self.time += 1;
            let stamp = Stamp { epoch: Epoch::FIRST, hlc: Hlc(self.time), node: NodeId(1) };
            for Mutation { key, change } in then {
                match change {
                    Change::Put(value) => drop(self.rows.insert(key, (stamp, value))),
                    Change::Delete => drop(self.rows.remove(&key)),
                }
            }
        }
        held
    }

    pub(super) fn register(&mut self, node: u32, boot: u64) {
        let founders = [NodeId(1), NodeId(2), NodeId(3)];
        match register(&self.view(), NodeId(node), &format!("n{node}:1"), Boot(boot), &founders) {
            Registration::Due(plan) => assert!(self.commit(&plan)),
            other => panic!("node {node}: {other:?}"),
        }
    }

    pub(super) fn founded() -> Store {
        let mut store = Store::default();
        (1..=3).for_each(|node| store.register(node, 1));
        store
    }

    pub(super) fn admin(&mut self, admin: &Admin) -> Result<Goal, Error> {
        let plan = plan(&self.view(), admin, 0)?;
        assert!(self.commit(&plan), "the view is fresh");
        Ok(plan.goal)
    }

    pub(super) fn record(&self, text: &str) -> NamespaceRecord {
        NamespaceRecord::clone(&self.view().namespace(&name(text).unwrap()).unwrap().record)
    }

    pub(super) fn entry(&self, text: &str) -> Entry<NamespaceRecord> {
        self.view().namespace(&name(text).unwrap()).unwrap().clone()
    }
}

pub(super) fn name(text: &str) -> Result<NamespaceName, InvalidName> {
    NamespaceName::new(text)
}

fn create_on(text: &str, replicas: Option<u32>, members: &[u32]) -> Admin {
    Admin::CreateNamespace {
        name: name(text).unwrap(),
        mode: Mode::Strong,
        replicas,
        members: nodes(members),
        copies: 1,
    }
}

pub(super) fn create_eventual(text: &str, members: &[u32], copies: u32) -> Admin {
    let (name, mode) = (name(text).unwrap(), Mode::Eventual);
    Admin::CreateNamespace { name, mode, replicas: None, members: nodes(members), copies }
}

fn move_to(text: &str, members: &[u32]) -> Admin {
    Admin::SetMembers { name: name(text).unwrap(), members: nodes(members) }
}

pub(super) fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// What must hold of every catalog, however it came about.
fn check_invariants(view: &View) {
    let next = &view.next.as_ref().expect("written").record;
    assert!(view.unreadable.is_empty());
    for (name, entry) in &view.namespaces {
        let record = &entry.record;
        assert!(record.id < next.namespace, "{name} has an id that may be given out again");
        assert_eq!(view.by_id.get(&record.id), Some(name), "ids are distinct");
        assert!(!record.members.is_empty());
        assert!(name.is_system() || record.members.len() <= limits::MEMBERS);
        for node in record.involved() {
            assert!(view.is_active(node), "{name} is held by node {node}, which is not in the cluster");
        }
        let known = |node| record.initial.contains(node) || record.mode == Mode::Eventual;
        assert!(record.left.iter().all(known));
        assert!(record.members.iter().all(|node| record.mode == Mode::Strong || !record.left.contains(node)));
    }
    assert!(view.nodes.keys().all(|node| *node < next.node));
}

#[derive(Clone, Debug)]
enum Step {
    Admin(Admin),
    /// A node starts once more.
    Start(u32),
    /// The group has changed over.
    Moved(NamespaceName),
    /// A member has dropped its replica.
    Gone(NamespaceName, u32),
    /// A member of an eventual namespace is whole and holds everything.
    Reports(NamespaceName, u32),
}

fn steps() -> impl Strategy<Value = Step> {
    let names = || prop::sample::select(vec!["a", "b", "c"]).prop_map(|text| name(text).unwrap());
    let ids = || prop::collection::btree_set(1u32..7, 1..4).prop_map(|set| set.into_iter().map(NodeId).collect());
    let none = || Just(Vec::<NodeId>::new());
    prop_oneof![
        (names(), prop::option::of(1u32..4), none()).prop_map(|(name, replicas, members)| Step::Admin(
            Admin::CreateNamespace { name, mode: Mode::Strong, replicas, members, copies: 1 }
        )),
        (names(), ids()).prop_map(|(name, members)| Step::Admin(Admin::CreateNamespace {
            name,
            mode: Mode::Strong,
            replicas: None,
            members,
            copies: 1
        })),
        names().prop_map(|name| Step::Admin(Admin::DeleteNamespace { name })),
        (names(), ids()).prop_map(|(name, members)| Step::Admin(Admin::SetMembers { name, members })),
        (0u32..3).prop_map(|n| Step::Admin(Admin::AddNode { address: format!("new{n}:1") })),
        (1u32..7).prop_map(|node| Step::Admin(Admin::RemoveNode { node: NodeId(node) })),
        (1u32..7).prop_map(Step::Start),
        names().prop_map(Step::Moved),
        (names(), 1u32..7).prop_map(|(name, node)| Step::Gone(name, node)),
        (names(), 1u32..4).prop_map(|(name, copies)| {
            Step::Admin(Admin::CreateNamespace {
                name,
                mode: Mode::Eventual,
                replicas: None,
                members: vec![],
                copies,
            })
        }),
        (names(), 1u32..4).prop_map(|(name, copies)| Step::Admin(Admin::SetCopies { name, copies })),
        (names(), 1u32..7).prop_map(|(name, node)| Step::Reports(name, node)),
        (names(), 1u32..7).prop_map(|(name, node)| Step::Reports(name, node)),
    ]
}

fn planned(view: &View, step: &Step) -> Option<Plan> {
    match step {
        Step::Admin(admin) => plan(view, admin, 0).ok(),
        Step::Start(node) => {
            let id = NodeId(*node);
            let boot = view.nodes.get(&id).map_or(Boot(1), |entry| Boot(entry.record.boot.0 + 1));
            match register(view, id, &format!("n{node}:1"), boot, &nodes(&[1, 2, 3])) {
                Registration::Due(plan) => Some(plan),
                _ => None,
            }
        }
        Step::Moved(name) => {
            let entry = view.namespace(name)?;
            let NamespaceState::Moving { to, .. } = &entry.record.state else { return None };
            Some(moved(name, entry, to))
        }
        Step::Gone(name, node) => gone(name, view.namespace(name)?, NodeId(*node)),
        Step::Reports(name, node) => {
            let entry = view.namespace(name)?;
            let (moved, frontier) = Default::default();
            let stand = Stand { version: entry.record.version, whole: true, moved, frontier };
            report(name, entry, NodeId(*node), &stand)
        }
    }
}

proptest! {
    /// Each step is planned on a view that may be some steps old: then its compares fail, or it harms nothing.
    #[test]
    fn no_order_of_changes_breaks_the_catalog(steps in prop::collection::vec((steps(), 0usize..4), 1..60)) {
        let mut store = Store::founded();
        let mut views = vec![store.view()];
        let mut given = BTreeSet::new();
        for (step, age) in steps {
            let view = &views[views.len().saturating_sub(1 + age)];
            let Some(plan) = planned(view, &step) else { continue };
            let before = store.view();
            if store.commit(&plan) {
                let after = store.view();
                check_invariants(&after);
                for (id, name) in &after.by_id {
                    let new = !before.by_id.contains_key(id);
                    prop_assert!(!new || given.insert(*id), "the id of {name} has been given out before");
                    if let Some((_, old)) = before.by_id(*id) {
                        let now = after.by_id(*id).unwrap().1;
                        let going = name.is_system() || matches!(now.state, NamespaceState::Deleting { .. });
                        let same = (&old.members, old.copies) == (&now.members, now.copies);
                        let risen = now.version > old.version || now.version == old.version && (same || going);
                        prop_assert!(risen, "{name} went from {old:?} to {now:?}");
                    }
                }
                views.push(after);
            }
        }
    }

    #[test]
    fn replicas_spread_evenly(creates in prop::collection::vec(1u32..4, 1..40)) {
        let mut store = Store::founded();
        store.admin(&Admin::AddNode { address: "n4:1".into() }).unwrap();
        store.register(4, 1);
        store.admin(&Admin::AddNode { address: "never-started:1".into() }).unwrap();
        for (i, replicas) in creates.into_iter().enumerate() {
            store.admin(&create_on(&format!("n{i}"), Some(replicas), &[])).unwrap();
            let counts = store.view().replicas();
            prop_assert_eq!(counts[&NodeId(5)], 0, "it has never started");
            let started: Vec<_> = (1..=4).map(|node| counts[&NodeId(node)]).collect();
            prop_assert!(started.iter().max().unwrap() - started.iter().min().unwrap() <= 1, "{started:?}");
        }
    }

    /// What the view makes of single changes is what it makes of the whole.
    #[test]
    fn a_view_follows_every_change(steps in prop::collection::vec(steps(), 1..40)) {
        let mut store = Store::founded();
        let mut followed = store.view();
        for step in steps {
            let Some(plan) = planned(&store.view(), &step) else { continue };
            let before = store.rows.clone();
            prop_assert!(store.commit(&plan));
            for key in before.keys().chain(store.rows.keys()) {
                followed.apply(key, store.rows.get(key).map(|(stamp, value)| (*stamp, &value[..])));
            }
            let whole = store.view();
            prop_assert_eq!(&followed.nodes, &whole.nodes);
            prop_assert_eq!(&followed.namespaces, &whole.namespaces);
            prop_assert_eq!(&followed.by_id, &whole.by_id);
            prop_assert_eq!(&followed.next, &whole.next);
        }
    }
}

#[test]
fn refusals_name_what_is_wrong() {
    let mut store = Store::founded();
    store.admin(&create_on("a", None, &[])).unwrap();
    let refused = |admin: Admin| plan(&store.view(), &admin, 0).unwrap_err().code();
    assert_eq!(refused(create_on("a", None, &[])), "namespace_exists");
    assert_eq!(refused(create_on("_system", None, &[])), "namespace_exists");
    assert_eq!(refused(create_on("b", Some(4), &[])), "invalid_request");
    assert_eq!(refused(create_on("b", Some(0), &[])), "invalid_request");
    assert_eq!(refused(create_on("b", Some(10), &[])), "too_large");
    assert_eq!(refused(create_on("b", Some(2), &[1])), "invalid_request");
    assert_eq!(refused(create_on("b", None, &[1, 1])), "invalid_request");
    assert_eq!(refused(create_on("b", None, &[9])), "node_not_found");
    assert_eq!(refused(Admin::DeleteNamespace { name: name("b").unwrap() }), "namespace_not_found");
    assert_eq!(refused(Admin::DeleteNamespace { name: name("_system").unwrap() }), "invalid_request");
    assert_eq!(refused(Admin::ShowNamespace { name: name("b").unwrap() }), "namespace_not_found");
    assert_eq!(refused(move_to("a", &[])), "invalid_request");
    assert_eq!(refused(move_to("_system", &[1])), "invalid_request");
    assert_eq!(refused(Admin::RemoveNode { node: NodeId(1) }), "invalid_request");
    assert_eq!(refused(Admin::RemoveNode { node: NodeId(9) }), "node_not_found");
    for address in ["", "host", ":1", "host:", "host:0", "host:65536", "n1:1"] {
        assert_eq!(refused(Admin::AddNode { address: address.into() }), "invalid_request", "{address}");
    }
    assert_eq!(refused(create_eventual("e", &[1, 2], 0)), "invalid_request");
    assert_eq!(refused(create_eventual("e", &[1, 2], 3)), "invalid_request");
    assert_eq!(refused(Admin::SetCopies { name: name("a").unwrap(), copies: 9 }), "invalid_request");
    assert_eq!(refused(Admin::SetCopies { name: name("_system").unwrap(), copies: 2 }), "invalid_request");
}

#[test]
fn a_namespace_that_comes_early_waits_for_the_founders() {
    let mut store = Store::default();
    (1..=2).for_each(|node| store.register(node, 1));
    let refused =
        |store: &Store, replicas| plan(&store.view(), &create_on("a", replicas, &[]), 0).unwrap_err().code();
    assert_eq!((refused(&store, None), refused(&store, Some(3))), ("changing", "changing"));
    assert_eq!(refused(&store, Some(4)), "invalid_request");
    store.clone().admin(&create_on("two", Some(2), &[])).unwrap();
    store.register(3, 1);
    store.admin(&create_on("a", None, &[])).unwrap();
    assert_eq!(store.record("a").members, nodes(&[1, 2, 3]));
}

#[test]
fn the_limits_hold() {
    let mut store = Store::founded();
    for n in store.view().active().count()..limits::NODES {
        store.admin(&Admin::AddNode { address: format!("x{n}:1") }).unwrap();
    }
    let error = store.admin(&Admin::AddNode { address: "last:1".into() }).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: Resource::Nodes, .. }));

    let mut view = store.view();
    let record = system_record(&nodes(&[1]));
    for n in 0..limits::NAMESPACES as u64 {
        let record = NamespaceRecord { id: NamespaceId(n + 1), ..record.clone() };
        view.apply(
            &Key::Namespace(name(&format!("n{n}")).unwrap()).encode(),
            Some((Stamp::default(), &encode(&record))),
        );
    }
    let error = plan(&view, &create_on("last", None, &[]), 0).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: Resource::Namespaces, .. }));
}

#[test]
fn a_node_cannot_leave_while_a_namespace_is_placed_on_it() {
    let mut store = Store::founded();
    let view = store.view();
    let create = plan(&view, &create_on("a", None, &[3]), 0).unwrap();
    let remove = plan(&view, &Admin::RemoveNode { node: NodeId(3) }, 0).unwrap();
    let mut other = store.clone();
    assert!(store.commit(&create) && !store.commit(&remove));
    assert!(other.commit(&remove) && !other.commit(&create));
}

#[test]
fn a_move_keeps_everyone_who_may_be_in_the_group() {
    let mut store = Store::founded();
    store.admin(&Admin::AddNode { address: "n4:1".into() }).unwrap();
    store.register(4, 1);
    store.admin(&create_on("a", None, &[1, 2])).unwrap();
    store.admin(&move_to("a", &[2, 4])).unwrap();
    store.admin(&move_to("a", &[2, 3])).unwrap();
    let record = store.record("a");
    assert!((1..=4).all(|node| record.holds(NodeId(node))), "node 4 may have been taken in before");
    assert_eq!(
        plan(&store.view(), &Admin::DeleteNamespace { name: name("a").unwrap() }, 0).unwrap_err().code(),
        "changing"
    );
    let done = moved(&name("a").unwrap(), &store.entry("a"), &nodes(&[2, 3]));
    assert!(store.commit(&done));
    let record = store.record("a");
    assert_eq!((record.members.clone(), record.state.clone()), (nodes(&[2, 3]), NamespaceState::Stable));
    assert_eq!(
        (1..=4).filter(|node| record.starts(NodeId(*node))).collect::<Vec<_>>(),
        [2],
        "1 left, 3 and 4 joined"
    );
    store.admin(&move_to("a", &[1, 2])).unwrap();
    assert!(!store.record("a").starts(NodeId(1)), "its log and its votes are gone");
}

#[test]
fn a_deleted_namespace_goes_with_the_majority() {
    let mut store = Store::founded();
    store.admin(&create_on("a", None, &[])).unwrap();
    let id = store.record("a").id;
    let delete = Admin::DeleteNamespace { name: name("a").unwrap() };
    assert_eq!(store.admin(&delete).unwrap(), Goal::Gone(name("a").unwrap(), id));
    assert_eq!(store.admin(&delete).unwrap(), Goal::Gone(name("a").unwrap(), id), "again");
    assert_eq!(store.admin(&create_on("a", None, &[])).unwrap_err().code(), "changing");
    let said = |store: &Store, node| gone(&name("a").unwrap(), &store.entry("a"), NodeId(node));
    assert_eq!(said(&store, 9), None, "not a member");
    let first = said(&store, 2).unwrap();
    assert!(store.commit(&first));
    assert_eq!(said(&store, 2), None, "said already");
    assert!(!store.view().is_deleted(id));
    let second = said(&store, 1).unwrap();
    assert!(store.commit(&second));
    assert!(store.view().is_deleted(id));
    assert!(!store.view().is_deleted(NamespaceId(id.0 + 1)), "not given out yet");
    store.admin(&create_on("a", None, &[])).unwrap();
    assert!(store.record("a").id > id);
}

#[test]
fn starts_are_checked_against_the_catalog() {
    let mut store = Store::founded();
    let founders = nodes(&[1, 2, 3]);
    let at = |store: &Store, node, boot| {
        register(&store.view(), NodeId(node), &format!("n{node}:1"), Boot(boot), &founders)
    };
    assert_eq!(at(&store, 1, 1), Registration::Done);
    assert!(matches!(at(&store, 1, 2), Registration::Due(_)));
    assert_eq!(at(&store, 4, 1), Registration::Unknown, "nobody has added it");
    store.register(1, 5);
    assert!(matches!(at(&store, 1, 4), Registration::Refused(_)), "an old copy of the disk");
    store.admin(&Admin::RemoveNode { node: NodeId(3) }).unwrap();
    assert!(matches!(at(&store, 3, 2), Registration::Refused(_)), "founder or not");
    assert_eq!(store.admin(&Admin::RemoveNode { node: NodeId(3) }), Ok(Goal::Done), "again");
    assert_eq!(store.record("_system").members, nodes(&[1, 2]));
}

#[test]
fn every_node_votes_on_the_catalog() {
    let mut store = Store::founded();
    let add = Admin::AddNode { address: "n4:1".into() };
    assert_eq!(store.admin(&add), Ok(Goal::Node(NodeId(4))));
    assert_eq!(store.admin(&add), Ok(Goal::Node(NodeId(4))), "again");
    assert_eq!(store.record("_system").members, nodes(&[1, 2, 3, 4]));
    for node in [2, 1, 4] {
        store.admin(&Admin::RemoveNode { node: NodeId(node) }).unwrap();
    }
    assert_eq!(store.record("_system").members, nodes(&[3]));
    assert_eq!(
        store.admin(&Admin::RemoveNode { node: NodeId(3) }).unwrap_err().code(),
        "invalid_request",
        "the last"
    );
}

#[test]
fn an_entry_that_cannot_be_read_stops_removals() {
    let mut store = Store::founded();
    store.admin(&create_on("a", None, &[])).unwrap();
    let (mut view, id) = (store.view(), store.record("a").id);
    let key = Key::Namespace(name("a").unwrap()).encode();
    view.apply(&key, Some((Stamp::default(), &[9, 9])));
    assert!(view.namespace(&name("a").unwrap()).is_none() && !view.is_deleted(id));
    view.apply(&key, None);
    assert!(view.is_deleted(id));
}
