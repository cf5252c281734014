//! How the members and the copies of an eventual namespace change: in two phases, each step one transaction on the
//! namespace's entry. Everything that a step rests on is in that entry, so whoever reads it can take the next one.
//!
//! ```text
//!            ask, someone new               last of them is filled
//!   Stable ───────────────────► Filling ──────────────────────────────┐
//!     ▲  └──────────────────────────────────────────────────────────► Settling
//!     │      ask, nobody new                                           │
//!     └────────────────────────────────────────────────────────────────┘
//!        enough of those before have moved, every member holds what they held
//! ```
//!
//! Each arrow raises the version, and so does a change of the target on the way.

use std::collections::{BTreeMap, BTreeSet};

use duet_engine_eventual::{Change, Frontier};
use duet_proto::{Error, Mode, NamespaceName, NodeId};

use super::{Goal, Plan, changing, copy, counters, find, invalid, protect};
use crate::{
    catalog::{Electorate, Key, NamespaceRecord, NamespaceState},
    view::{Entry, View},
};

/// How many earlier sets of members may be waited for at once.
const BEFORE: usize = 8;

/// What a replica durably is, as far as a change of the members rests on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    /// The version of the members that it goes by.
    pub(crate) version: u64,
    /// Whether it has its first copy.
    pub(crate) whole: bool,
    /// What it held when it moved to that version.
    pub(crate) moved: Frontier,
    /// What it holds.
    pub(crate) frontier: Frontier,
}

/// Refuses copies that so many members cannot give.
pub(super) fn check_copies(copies: u32, members: &[NodeId]) -> Result<(), Error> {
    if copies == 0 || copies as usize > members.len() {
        let why = format!("{copies} copies are asked for; of {} members 1 to {0} can give one", members.len());
        return Err(invalid(why));
    }
    Ok(())
}

/// Refuses members that cannot give the copies of before.
pub(super) fn check_enough(copies: u32, nodes: &[NodeId]) -> Result<(), Error> {
    if copies as usize > nodes.len() {
        let why =
            format!("{copies} copies are asked for, {} members cannot give them: lower them first", nodes.len());
        return Err(invalid(why));
    }
    Ok(())
}

/// The plan for other copies.
pub(super) fn set_copies(view: &View, name: &NamespaceName, copies: u32) -> Result<Plan, Error> {
    protect(name)?;
    let entry = find(view, name)?;
    let nodes = target(&entry.record).nodes;
    check_copies(copies, &nodes)?;
    if entry.record.mode == Mode::Eventual {
        return retarget(view, name, entry, Electorate { nodes, copies });
    }
    may_change(name, &entry.record)?;
    let plan = Plan::new(Goal::Namespace(name.clone()));
    if entry.record.copies == copies {
        return Ok(plan);
    }
    // Its writes are synced by a majority, whatever is asked for: this is for when it is switched.
    let record = NamespaceRecord { copies, version: entry.record.version + 1, ..copy(entry) };
    Ok(plan.replace(Key::Namespace(name.clone()), Some(entry), &record))
}

/// The plan for other members.
pub(super) fn set_members(
    view: &View,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    nodes: Vec<NodeId>,
) -> Result<Plan, Error> {
    let copies = target(&entry.record).copies;
    check_enough(copies, &nodes)?;
    if let Some(node) = nodes.iter().find(|node| entry.record.left.contains(node)) {
        let why = format!(
            "node {node} was a member of {name} and left: others may have forgotten some of what it wrote then, and \
             would take its new writes to follow on it. Another node can take its place"
        );
        return Err(invalid(why));
    }
    retarget(view, name, entry, Electorate { nodes, copies })
}

fn may_change(name: &NamespaceName, record: &NamespaceRecord) -> Result<(), Error> {
    match record.state {
        NamespaceState::Deleting { .. } => Err(changing(name, "it is being deleted")),
        NamespaceState::Switching(_) => Err(changing(name, "its mode is being switched")),
        _ => Ok(()),
    }
}

/// What the namespace is on its way to, or is.
fn target(record: &NamespaceRecord) -> Electorate {
    match &record.state {
        NamespaceState::Moving { to, .. } => Electorate { nodes: to.clone(), copies: record.copies },
        NamespaceState::Filling { to, copies, .. } => Electorate { nodes: to.clone(), copies: *copies },
        _ => record.electorate(),
    }
}

fn retarget(
    view: &View,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    to: Electorate,
) -> Result<Plan, Error> {
    let plan = Plan::new(Goal::Namespace(name.clone()));
    may_change(name, &entry.record)?;
    if target(&entry.record) == to {
        return Ok(plan);
    }
    let before = entry.record.before().to_vec();
    if before.len() >= BEFORE {
        return Err(changing(name, "too many earlier changes wait for members that are away"));
    }
    let mut record = copy(entry);
    record.version += 1;
    if to.nodes.iter().any(|node| !record.members.contains(node)) {
        let Electorate { nodes, copies } = to;
        record.state = NamespaceState::Filling { to: nodes, copies, before, filled: Vec::new() };
    } else {
        reform(&mut record, before, to);
    }
    let next = counters(view)?;
    Ok(plan.replace(Key::Next, Some(next), &next.record).replace(Key::Namespace(name.clone()), Some(entry), &record))
}

/// Puts `to` in force. Whoever may have acknowledged writes before is among `before`, from here on.
fn reform(record: &mut NamespaceRecord, mut before: Vec<Electorate>, to: Electorate) {
    let now = record.electorate();
    if now != to && !before.contains(&now) {
        before.push(now);
    }
    (record.members, record.copies) = (to.nodes, to.copies);
    record.state = match before.is_empty() {
        // A target that was given up before anything had changed.
        true => NamespaceState::Stable,
        false => NamespaceState::Settling { before, moved: Vec::new(), held: Vec::new() },
    };
}

/// The plan by which a member says what its replica has come to, if that is news to the catalog. The one that makes
/// a step complete takes it in the same transaction, so that nobody has to be there to take it afterwards.
pub(crate) fn report(
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    me: NodeId,
    stand: &Stand,
) -> Option<Plan> {
    if stand.version != entry.record.version {
        return None;
    }
    let mut record = copy(entry);
    match record.state.clone() {
        NamespaceState::Filling { to, copies, before, mut filled } => {
            if !stand.whole || !to.contains(&me) || record.members.contains(&me) || filled.contains(&me) {
                return None;
            }
            filled.push(me);
            if to.iter().all(|node| record.members.contains(node) || filled.contains(node)) {
                record.version += 1;
                reform(&mut record, before, Electorate { nodes: to, copies });
            } else {
                record.state = NamespaceState::Filling { to, copies, before, filled };
            }
        }
        NamespaceState::Settling { before, moved, held } => settle(&mut record, before, moved, held, me, stand),
        NamespaceState::Stable
        | NamespaceState::Moving { .. }
        | NamespaceState::Deleting { .. }
        | NamespaceState::Switching(_) => return None,
    }
    if record == *entry.record {
        return None;
    }
    Some(Plan::new(Goal::Done).replace(Key::Namespace(name.clone()), Some(entry), &record))
}

fn settle(
    record: &mut NamespaceRecord,
    before: Vec<Electorate>,
    moved: Vec<(NodeId, Frontier)>,
    held: Vec<(NodeId, Frontier)>,
    me: NodeId,
    stand: &Stand,
) {
    let mut moved: BTreeMap<_, _> = moved.into_iter().collect();
    let mut held: BTreeMap<_, _> = held.into_iter().collect();
    if before.iter().any(|electorate| electorate.nodes.contains(&me)) {
        moved.entry(me).or_insert_with(|| stand.moved.clone());
    }
    let change = |electorate: &Electorate| Change {
        before: electorate.nodes.iter().copied().collect(),
        copies_before: electorate.copies,
        moved: moved.clone(),
    };
    let changes: Vec<Change> = before.iter().map(change).collect();
    let owed = changes.iter().map(Change::owed).try_fold(Frontier::default(), |mut all, owed| {
        all.join(&owed?);
        Some(all)
    });
    if let Some(owed) = owed
        && record.members.contains(&me)
        && stand.whole
        && stand.frontier.covers(&owed)
        && !held.get(&me).is_some_and(|told| told.covers(&owed))
    {
        held.insert(me, stand.frontier.clone());
    }
    let members: BTreeSet<_> = record.members.iter().copied().collect();
    if changes.iter().all(|change| change.complete(&members, &held)) {
        let gone = before.iter().flat_map(|electorate| &electorate.nodes).filter(|node| !members.contains(node));
        let left: BTreeSet<_> = record.left.iter().chain(gone).copied().collect();
        record.left = left.into_iter().collect();
        record.version += 1;
        record.state = NamespaceState::Stable;
    } else {
        let (moved, held) = (moved.into_iter().collect(), held.into_iter().collect());
        record.state = NamespaceState::Settling { before, moved, held };
    }
}

#[cfg(test)]
mod tests;
