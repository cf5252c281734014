//! What an administrator asks for, as one transaction on the catalog. Pure: a view goes in, a plan comes out.
//!
//! A plan compares the version of everything it changes. Whatever gives a node something to hold or takes a
//! node away also compares and rewrites `i/next`, so that such plans exclude
//! each other: otherwise a node could leave while a namespace is being placed on it.

mod reform;
mod switch;

use std::collections::BTreeSet;

use duet_proto::{
    Admin, Boot, Change, Compare, Error, Expect, Mode, Mutation, NamespaceId, NamespaceName, NodeId, Op, Resource,
    Stamp, limits,
};
use serde::Serialize;

use crate::{
    catalog::{Counters, Key, NamespaceRecord, NamespaceState, NodeRecord, NodeState, encode},
    view::{Entry, View},
};

pub(crate) use reform::{Stand, report};
pub(crate) use switch::{Came, Moment, advance, brought, other};

/// Replicas of a namespace where nobody says otherwise and there are nodes enough.
const REPLICAS: usize = 3;

/// One step on the catalog, and what the one who asked waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    compares: Vec<Compare>,
    then: Vec<Mutation>,
    pub(crate) goal: Goal,
}

/// What answers the request, once the plan is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The namespace as it is then.
    Namespace(NamespaceName),
    /// The node as it is then.
    Node(NodeId),
    /// That this namespace is no more.
    Gone(NamespaceName, NamespaceId),
    /// Nothing further.
    Done,
}

impl Plan {
    fn new(goal: Goal) -> Plan {
        Plan { compares: Vec::new(), then: Vec::new(), goal }
    }

    /// The transaction; `None` if the catalog already is as asked.
    pub(crate) fn transaction(&self) -> Option<Op> {
        let (compares, then) = (self.compares.clone(), self.then.clone());
        (!then.is_empty()).then_some(Op::Transaction { compares, then, otherwise: Vec::new(), reads: Vec::new() })
    }

    fn compare(mut self, key: Key, stamp: Option<Stamp>) -> Plan {
        let expect = stamp.map_or(Expect::Absent, Expect::Stamp);
        self.compares.push(Compare { key: key.encode(), expect });
        self
    }

    fn put(mut self, key: Key, record: &impl Serialize) -> Plan {
        self.then.push(Mutation { key: key.encode(), change: Change::Put(encode(record)) });
        self
    }

    /// Puts `record` if the key still has the version of `entry`.
    fn replace<T: Serialize>(self, key: Key, entry: Option<&Entry<T>>, record: &T) -> Plan {
        self.compare(key.clone(), entry.map(|entry| entry.stamp)).put(key, record)
    }

    fn delete(mut self, key: Key) -> Plan {
        self.then.push(Mutation::delete(key.encode()));
        self
    }
}

/// The plan for a change that an administrator asks for. `ListNamespaces` and `ShowNamespace` change nothing.
///
/// `wall_ms` is the clock's, in milliseconds since 1970.
pub(crate) fn plan(view: &View, admin: &Admin, wall_ms: u64) -> Result<Plan, Error> {
    match admin {
        Admin::CreateNamespace { name, mode, replicas, members, copies } => {
            create(view, name, *mode, *replicas, members, *copies)
        }
        Admin::DeleteNamespace { name } => delete(view, name),
        Admin::SetMembers { name, members } => set_members(view, name, members),
        Admin::SetCopies { name, copies } => reform::set_copies(view, name, *copies),
        Admin::SwitchMode { name, to, without } => switch::request(view, name, *to, without),
        Admin::AbortSwitch { name } => switch::abort(view, name, wall_ms),
        Admin::Forget { name, node } => switch::forget(view, name, *node),
        Admin::AddNode { address } => add_node(view, address),
        Admin::RemoveNode { node } => remove_node(view, *node),
        Admin::ListNamespaces | Admin::ListLate { .. } => Ok(Plan::new(Goal::Done)),
        Admin::ShowNamespace { name } | Admin::ShowSwitch { name } => {
            find(view, name)?;
            Ok(Plan::new(Goal::Namespace(name.clone())))
        }
    }
}

fn create(
    view: &View,
    name: &NamespaceName,
    mode: Mode,
    replicas: Option<u32>,
    members: &[NodeId],
    copies: u32,
) -> Result<Plan, Error> {
    match view.namespace(name) {
        Some(entry) if matches!(entry.record.state, NamespaceState::Deleting { .. }) => {
            return Err(changing(name, "one of that name is being deleted"));
        }
        Some(_) => return Err(Error::NamespaceExists { name: name.clone() }),
        None if name.is_system() => return Err(Error::NamespaceExists { name: name.clone() }),
        None => {}
    }
    let next = counters(view)?;
    check(Resource::Namespaces, users(view) + 1, limits::NAMESPACES)?;
    let members = match (replicas, members) {
        (Some(n), named) if !named.is_empty() && n as usize != named.len() => {
            return Err(invalid(format!("{n} replicas are asked for, but {} members are named", named.len())));
        }
        (replicas, []) => place(view, replicas)?,
        (_, named) => checked_members(view, named)?,
    };
    // A strong one may be switched.
    reform::check_copies(copies, &members)?;
    let record = NamespaceRecord::new(next.record.namespace, mode, members, copies);
    let after = Counters { namespace: NamespaceId(record.id.0 + 1), ..*next.record };
    let plan = Plan::new(Goal::Namespace(name.clone()));
    Ok(plan.replace(Key::Next, Some(next), &after).replace(Key::Namespace(name.clone()), None, &record))
}

/// The nodes with the fewest replicas; of equals, those with the lowest ids. Nodes that never started are left out, but
/// founders that are still starting are waited for: a namespace must not have fewer replicas because it came early.
fn place(view: &View, replicas: Option<u32>) -> Result<Vec<NodeId>, Error> {
    let started = |node: &NodeId| view.nodes.get(node).is_some_and(|entry| entry.record.boot > Boot(0));
    let mut nodes: Vec<_> =
        view.replicas().into_iter().filter(|(node, _)| view.is_active(*node) && started(node)).collect();
    nodes.sort_by_key(|(node, count)| (*count, *node));
    let founders = view.namespace(&system_name()).map_or(&[][..], |entry| &entry.record.members);
    let starting = founders.iter().filter(|node| !view.nodes.contains_key(node)).count();
    let wanted = replicas.map_or(REPLICAS.min(nodes.len() + starting), |n| n as usize);
    check(Resource::Members, wanted, limits::MEMBERS)?;
    if wanted == 0 {
        return Err(invalid("a namespace of no replicas".into()));
    }
    if wanted > nodes.len() && wanted <= nodes.len() + starting {
        let why = format!(
            "{wanted} replicas are to be placed, and {starting} of the founding nodes have not started yet; ask for \
             fewer replicas to go on without them"
        );
        return Err(changing(&system_name(), &why));
    }
    if wanted > nodes.len() {
        return Err(invalid(format!("{wanted} replicas are asked for, but only {} nodes have started", nodes.len())));
    }
    Ok(nodes[..wanted].iter().map(|(node, _)| *node).collect::<BTreeSet<_>>().into_iter().collect())
}

fn delete(view: &View, name: &NamespaceName) -> Result<Plan, Error> {
    protect(name)?;
    let entry = find(view, name)?;
    let plan = Plan::new(Goal::Gone(name.clone(), entry.record.id));
    match &entry.record.state {
        NamespaceState::Deleting { .. } => Ok(plan),
        NamespaceState::Moving { .. } => {
            Err(changing(name, "its members are being changed; delete it when that is done, or set them back first"))
        }
        NamespaceState::Stable
        | NamespaceState::Filling { .. }
        | NamespaceState::Settling { .. }
        | NamespaceState::Switching(_) => {
            let members = entry.record.involved().into_iter().collect();
            let state = NamespaceState::Deleting { gone: Vec::new() };
            let record = NamespaceRecord { members, state, ..copy(entry) };
            Ok(plan.replace(Key::Namespace(name.clone()), Some(entry), &record))
        }
    }
}

fn set_members(view: &View, name: &NamespaceName, members: &[NodeId]) -> Result<Plan, Error> {
    protect(name)?;
    let entry = find(view, name)?;
    let to = checked_members(view, members)?;
    if let Some((node, _)) = entry.record.owed.iter().find(|(node, _)| !to.contains(node)) {
        let why = format!("node {node} has yet to bring its late writes; wait for them, or forget them first");
        return Err(invalid(why));
    }
    if entry.record.mode == Mode::Eventual {
        return reform::set_members(view, name, entry, to);
    }
    reform::check_enough(entry.record.copies, &to)?;
    let mut record = match &entry.record.state {
        NamespaceState::Deleting { .. } => return Err(changing(name, "it is being deleted")),
        NamespaceState::Switching(_) => return Err(changing(name, "its mode is being switched")),
        NamespaceState::Filling { .. } | NamespaceState::Settling { .. } => {
            return Err(changing(name, "its entry is one of an eventual namespace's"));
        }
        NamespaceState::Stable if entry.record.members == to => copy(entry),
        NamespaceState::Stable => {
            NamespaceRecord { state: NamespaceState::Moving { to, also: Vec::new() }, ..copy(entry) }
        }
        NamespaceState::Moving { to: before, .. } if *before == to => copy(entry),
        NamespaceState::Moving { .. } => {
            let also = entry.record.involved().into_iter().filter(|node| !to.contains(node)).collect();
            NamespaceRecord { state: NamespaceState::Moving { to, also }, ..copy(entry) }
        }
    };
    let plan = Plan::new(Goal::Namespace(name.clone()));
    if record == *entry.record {
        return Ok(plan);
    }
    record.version += 1;
    let next = counters(view)?;
    Ok(plan.replace(Key::Next, Some(next), &next.record).replace(Key::Namespace(name.clone()), Some(entry), &record))
}

fn add_node(view: &View, address: &str) -> Result<Plan, Error> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(port)) if port > 0) || address.len() > 262 {
        return Err(invalid(format!("{address:?} is not an address: expected HOST:PORT")));
    }
    match view.active().find(|(_, entry)| entry.record.address == address) {
        // It was given out and never used: the same request again, or as good as that.
        Some((node, entry)) if entry.record.boot == Boot(0) => return Ok(Plan::new(Goal::Node(node))),
        Some((node, _)) => return Err(invalid(format!("node {node} is at {address} already"))),
        None => {}
    }
    check(Resource::Nodes, view.active().count() + 1, limits::NODES)?;
    let (next, system) = (counters(view)?, find(view, &system_name())?);
    let node = next.record.node;
    let after = Counters { node: NodeId(node.0 + 1), ..*next.record };
    let record = NodeRecord { address: address.into(), boot: Boot(0), state: NodeState::Active };
    let members = system.record.members.iter().copied().chain([node]).collect();
    Ok(Plan::new(Goal::Node(node))
        .replace(Key::Next, Some(next), &after)
        .replace(Key::Node(node), None, &record)
        .replace(Key::Namespace(system_name()), Some(system), &NamespaceRecord { members, ..copy(system) }))
}

fn remove_node(view: &View, node: NodeId) -> Result<Plan, Error> {
    let entry = view.nodes.get(&node).ok_or(Error::NodeNotFound { node })?;
    if entry.record.state == NodeState::Removed {
        return Ok(Plan::new(Goal::Done));
    }
    let held: Vec<_> = view
        .namespaces
        .iter()
        .filter(|(name, entry)| !name.is_system() && entry.record.involved().contains(&node))
        .map(|(name, _)| name.as_str())
        .collect();
    if !held.is_empty() {
        let some = held.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let why = format!("node {node} holds {} namespaces ({some}…): give them other members first", held.len());
        return Err(invalid(why));
    }
    let owed = |entry: &&Entry<NamespaceRecord>| entry.record.owed.iter().any(|(owed, _)| *owed == node);
    if let Some((name, _)) = view.namespaces.iter().find(|(_, entry)| owed(entry)) {
        let why = format!("node {node} has yet to bring late writes of namespace {name}; forget them first");
        return Err(invalid(why));
    }
    let (next, system) = (counters(view)?, find(view, &system_name())?);
    let voters: Vec<_> = system.record.members.iter().copied().filter(|voter| *voter != node).collect();
    if voters.is_empty() {
        return Err(invalid(format!("node {node} is the last one")));
    }
    let record = NodeRecord { state: NodeState::Removed, ..NodeRecord::clone(&entry.record) };
    Ok(Plan::new(Goal::Done)
        .replace(Key::Next, Some(next), &next.record)
        .replace(Key::Node(node), Some(entry), &record)
        .replace(Key::Namespace(system_name()), Some(system), &NamespaceRecord { members: voters, ..copy(system) }))
}

/// How a node's start stands in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// It is there.
    Done,
    /// This puts it there.
    Due(Plan),
    /// Not yet: the view has no entry of this node.
    Unknown,
    /// It never will be.
    Refused(String),
}

/// The plan by which a node makes its start known: its address, its boot; the first one also writes the catalog's
/// own entries.
pub(crate) fn register(view: &View, me: NodeId, address: &str, boot: Boot, founders: &[NodeId]) -> Registration {
    let entry = view.nodes.get(&me);
    match entry.map(|entry| &*entry.record) {
        Some(NodeRecord { state: NodeState::Removed, .. }) => {
            return Registration::Refused("it was removed from the cluster; a new node takes a new id".into());
        }
        Some(record) if record.boot > boot => {
            let why = format!(
                "the catalog knows of start {}, this is start {boot}: another disk, or an old copy",
                record.boot
            );
            return Registration::Refused(why);
        }
        Some(record) if record.boot == boot && record.address == address => return Registration::Done,
        None if !founders.contains(&me) => return Registration::Unknown,
        _ => {}
    }
    let record = NodeRecord { address: address.into(), boot, state: NodeState::Active };
    let plan = Plan::new(Goal::Done).replace(Key::Node(me), entry, &record);
    let name = system_name();
    if view.namespace(&name).is_none() {
        let next = Counters {
            node: NodeId(founders.iter().map(|node| node.0).max().unwrap_or_default() + 1),
            namespace: NamespaceId::FIRST_USER,
        };
        let system = system_record(founders);
        return Registration::Due(plan.replace(Key::Next, None, &next).replace(Key::Namespace(name), None, &system));
    }
    Registration::Due(plan)
}

/// The plan by which a group's leader says that the group has changed over to `to`.
pub(crate) fn moved(name: &NamespaceName, entry: &Entry<NamespaceRecord>, to: &[NodeId]) -> Plan {
    let record = &entry.record;
    let mut left: BTreeSet<_> = record.left.iter().copied().collect();
    left.extend(record.initial.iter().copied().filter(|node| !to.contains(node)));
    let record = NamespaceRecord {
        members: to.to_vec(),
        left: left.into_iter().collect(),
        version: record.version + 1,
        state: NamespaceState::Stable,
        ..copy(entry)
    };
    Plan::new(Goal::Done).replace(Key::Namespace(name.clone()), Some(entry), &record)
}

/// The plan by which a member says that it has dropped its replica; `None` if there is nothing to say.
pub(crate) fn gone(name: &NamespaceName, entry: &Entry<NamespaceRecord>, me: NodeId) -> Option<Plan> {
    let NamespaceState::Deleting { gone } = &entry.record.state else { return None };
    let members = &entry.record.members;
    if gone.contains(&me) || !members.contains(&me) {
        return None;
    }
    let mut gone = gone.clone();
    gone.push(me);
    let (plan, key) = (Plan::new(Goal::Done), Key::Namespace(name.clone()));
    if gone.len() > members.len() / 2 {
        return Some(plan.compare(key.clone(), Some(entry.stamp)).delete(key));
    }
    let state = NamespaceState::Deleting { gone };
    Some(plan.replace(key, Some(entry), &NamespaceRecord { state, ..copy(entry) }))
}

/// The catalog's own namespace as it begins.
pub(crate) fn system_record(founders: &[NodeId]) -> NamespaceRecord {
    let members: Vec<_> = founders.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    NamespaceRecord::new(NamespaceId::SYSTEM, Mode::Strong, members, 1)
}

/// The name of the catalog's own namespace.
pub(crate) fn system_name() -> NamespaceName {
    NamespaceName::new(NamespaceName::SYSTEM).expect("a valid constant")
}

fn checked_members(view: &View, members: &[NodeId]) -> Result<Vec<NodeId>, Error> {
    check(Resource::Members, members.len(), limits::MEMBERS)?;
    let distinct: BTreeSet<_> = members.iter().copied().collect();
    if distinct.is_empty() || distinct.len() < members.len() {
        return Err(invalid("members are to be named, each once".into()));
    }
    match distinct.iter().find(|node| !view.is_active(**node)) {
        Some(node) => Err(Error::NodeNotFound { node: *node }),
        None => Ok(distinct.into_iter().collect()),
    }
}

fn find<'a>(view: &'a View, name: &NamespaceName) -> Result<&'a Entry<NamespaceRecord>, Error> {
    view.namespace(name).ok_or_else(|| Error::NamespaceNotFound { name: name.clone() })
}

fn counters(view: &View) -> Result<&Entry<Counters>, Error> {
    view.next.as_ref().ok_or_else(|| changing(&system_name(), "the catalog has not been written yet"))
}

fn users(view: &View) -> usize {
    view.namespaces.len() - usize::from(view.by_id.contains_key(&NamespaceId::SYSTEM))
}

/// Refuses changes to the catalog's own namespace.
pub(crate) fn protect(name: &NamespaceName) -> Result<(), Error> {
    if name.is_system() {
        Err(invalid(format!("{name} holds the catalog: it is changed by administration only")))
    } else {
        Ok(())
    }
}

fn copy(entry: &Entry<NamespaceRecord>) -> NamespaceRecord {
    NamespaceRecord::clone(&entry.record)
}

fn check(what: Resource, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit { Err(Error::TooLarge { what, size: size as u64, limit: limit as u64 }) } else { Ok(()) }
}

fn changing(name: &NamespaceName, why: &str) -> Error {
    Error::Changing { namespace: name.clone(), why: why.into() }
}

fn invalid(why: String) -> Error {
    Error::InvalidRequest { why }
}

#[cfg(test)]
mod tests;
