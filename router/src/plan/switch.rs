//! How a namespace changes its mode: each step one transaction on its entry, taken by whichever member completes it.
//!
//! ```text
//!   eventual, e:  Stable ──► Gathering ──► Sealing ──► Converging ──► Stable, strong, e+1
//!                    ▲         ▲   │          │            │
//!                    └─ abort ─┴───┴──────────┴────────────┘  in time, or the fences go and it begins again
//!
//!   strong, e:    Stable ──► Ending ──► Stable, eventual, e+1
//! ```
//!
//! Nobody coordinates. A member moves its own replica to what the entry says, and says in the entry what came of it; the
//! one whose word was missing takes the next step in the same transaction. So a switch goes on as long as the members
//! that it needs are there, and whoever dies is replaced by whoever reads the entry next.
//!
//! Writes stop when the fences are set, so that is not done before every member that is needed has said that it is
//! there and lacks nothing. Who does not become part of the base may hold writes that nobody else has: the entry
//! says who is owed what, for as long as it takes. The protocol and its rules: `specs/switch.md`.

use std::{collections::BTreeSet, time::Duration};

use duet_engine_eventual::Frontier;
use duet_proto::{Error, Mode, NamespaceName, NodeId};

use super::{Goal, Plan, changing, copy, find, invalid, protect};
use crate::{
    catalog::{Base, Key, NamespaceRecord, NamespaceState, Past, Step, Switch},
    view::{Entry, View},
};

/// How long members that are away are waited for before a switch goes on without them, where enough others are there.
const AWAY: Duration = Duration::from_secs(1);
/// How long those that were near are waited for once writes have stopped, where enough others have sealed.
const SLOW: Duration = Duration::from_millis(300);
/// How long writes may stop before the fences are lifted and the switch begins again.
const BOUND: Duration = Duration::from_secs(2);
/// Switches that the entry remembers.
const HISTORY: usize = 16;

/// What this member's replica has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// An eventual replica.
    Eventual {
        /// It has its first copy and lacks nothing that it knows of.
        near: bool,
        /// The attempt that it is durably fenced for.
        fence: Option<u64>,
        /// What it durably holds, its frontier among it.
        base: Base,
    },
    /// A strong one: what the epoch has come to, if its seal is applied here.
    Strong(Option<Base>),
    /// It is not here, or cannot be asked.
    Nothing,
}

/// The plan for another mode.
pub(super) fn request(view: &View, name: &NamespaceName, to: Mode, without: &[NodeId]) -> Result<Plan, Error> {
    protect(name)?;
    let entry = find(view, name)?;
    let record = &entry.record;
    let without = checked_without(record, to, without)?;
    let plan = Plan::new(Goal::Namespace(name.clone()));
    let asked_ms = entry.stamp.hlc.millis();
    let switch = match &record.state {
        NamespaceState::Stable if record.mode == to => return Ok(plan),
        NamespaceState::Stable => Switch { step: first(record.mode), without, asked_ms, sealed_ms: 0 },
        NamespaceState::Switching(_) if record.mode == to => {
            return Err(changing(name, "it is being switched to the other mode; abort that first"));
        }
        NamespaceState::Switching(switch) if switch.without == without => return Ok(plan),
        // Those that are fenced are let go; they are fenced again, for another attempt.
        NamespaceState::Switching(switch) => Switch { step: first(record.mode), without, ..switch.clone() },
        NamespaceState::Deleting { .. } => return Err(changing(name, "it is being deleted")),
        NamespaceState::Moving { .. } | NamespaceState::Filling { .. } | NamespaceState::Settling { .. } => {
            return Err(changing(name, "its members are being changed; switch it when that is done"));
        }
    };
    Ok(plan.replace(key(name), Some(entry), &moved_on(entry, NamespaceState::Switching(switch))))
}

/// The plan for ending a switch before it is done.
pub(super) fn abort(view: &View, name: &NamespaceName) -> Result<Plan, Error> {
    let entry = find(view, name)?;
    let plan = Plan::new(Goal::Namespace(name.clone()));
    match &entry.record.state {
        NamespaceState::Switching(Switch { step: Step::Ending, .. }) => {
            let why = "the seal may be in the log already, so the switch will end; switch back when it has";
            Err(changing(name, why))
        }
        NamespaceState::Switching(_) => {
            Ok(plan.replace(key(name), Some(entry), &moved_on(entry, NamespaceState::Stable)))
        }
        _ => Err(invalid(format!("namespace {name} is not being switched"))),
    }
}

/// The plan for not waiting any longer for what a member may bring.
pub(super) fn forget(view: &View, name: &NamespaceName, node: NodeId) -> Result<Plan, Error> {
    let entry = find(view, name)?;
    match brought(name, entry, node) {
        Some(plan) => Ok(Plan { goal: Goal::Namespace(name.clone()), ..plan }),
        None => Err(invalid(format!("node {node} is owed nothing in namespace {name}"))),
    }
}

/// The plan by which a member says that it has brought everything; `None` if nothing is owed to it.
pub(crate) fn brought(name: &NamespaceName, entry: &Entry<NamespaceRecord>, node: NodeId) -> Option<Plan> {
    let mut record = copy(entry);
    record.owed.retain(|(owed, _)| *owed != node);
    if record == *entry.record {
        return None;
    }
    record.version += 1;
    Some(Plan::new(Goal::Done).replace(key(name), Some(entry), &record))
}

/// The plan by which a member says what its replica has come to, and takes the step that this completes; `None` if it
/// is no news. `waited` is how long this node has seen the entry at its version.
pub(crate) fn advance(
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    me: NodeId,
    came: &Came,
    waited: Duration,
) -> Option<Plan> {
    let record = &entry.record;
    let NamespaceState::Switching(switch) = &record.state else { return None };
    let mut switch = switch.clone();
    let part = record.members.contains(&me) && !switch.without.contains(&me);
    let without = switch.without.clone();
    let before = switch.clone();
    let next = match (&mut switch.step, came) {
        (Step::Ending, Came::Strong(Some(base))) => Some(activated(entry, &switch, base.clone(), &record.members)),
        (Step::Ending, _) => None,
        (Step::Gathering { near }, came) => {
            if part && matches!(came, Came::Eventual { near: true, .. }) {
                add(near, me);
            }
            gathered(record, &without, near, waited).then(|| {
                let (attempt, expected) = (record.version + 1, near.clone());
                let step = Step::Sealing { attempt, expected, sealed: Vec::new() };
                moved_on(entry, NamespaceState::Switching(Switch { step, sealed_ms: 0, ..before.clone() }))
            })
        }
        (Step::Sealing { attempt, expected, sealed }, came) => {
            if switch.sealed_ms == 0 {
                switch.sealed_ms = entry.stamp.hlc.millis();
            }
            if let Came::Eventual { fence: Some(fence), base, .. } = came
                && part
                && fence == attempt
                && sealed.iter().all(|(node, _)| *node != me)
            {
                sealed.push((me, base.frontier.clone()));
            }
            let have: Vec<NodeId> = sealed.iter().map(|(node, _)| *node).collect();
            let all = expected.iter().all(|node| have.contains(node));
            if enough(record, &switch.without, &have) && (all || waited >= SLOW) {
                let mut target = Frontier::default();
                sealed.iter().for_each(|(_, frontier)| target.join(frontier));
                let step = Step::Converging { attempt: *attempt, base: have, target, held: Vec::new() };
                Some(moved_on(entry, NamespaceState::Switching(Switch { step, ..switch.clone() })))
            } else {
                over(entry, &switch, waited)
            }
        }
        (Step::Converging { attempt, base, target, held }, came) => {
            if let Came::Eventual { fence: Some(fence), base: mine, .. } = came
                && fence == attempt
                && base.contains(&me)
                && mine.frontier.covers(target)
                && !held.contains(&(me, mine.clone()))
            {
                held.retain(|(node, _)| *node != me);
                held.push((me, mine.clone()));
            }
            let agreed = (held.len() == base.len()).then(|| agreement(held)).flatten();
            let members = base.clone();
            match agreed {
                Some(common) => Some(activated(entry, &switch, common, &members)),
                None => over(entry, &switch, waited),
            }
        }
    };
    let next = next.unwrap_or_else(|| NamespaceRecord { state: NamespaceState::Switching(switch), ..copy(entry) });
    (next != *entry.record).then(|| Plan::new(Goal::Done).replace(key(name), Some(entry), &next))
}

/// Whether so many members make up a base: of every acknowledged write at least one of them holds a copy, and they
/// are a majority, which the group that follows needs. An operator may give up members that are away; then what they
/// alone hold comes in late.
fn enough(record: &NamespaceRecord, without: &[NodeId], have: &[NodeId]) -> bool {
    let (members, copies) = (record.members.len(), record.copies.max(1) as usize);
    let all_others = record.members.iter().all(|node| without.contains(node) || have.contains(node));
    have.len() > members / 2 && (have.len() > members.saturating_sub(copies) || (!without.is_empty() && all_others))
}

/// Whether writes may be stopped: everybody is near, or enough are, and the others have been away for a while.
fn gathered(record: &NamespaceRecord, without: &[NodeId], near: &[NodeId], waited: Duration) -> bool {
    let all = record.members.iter().all(|node| without.contains(node) || near.contains(node));
    enough(record, without, near) && (all || waited >= AWAY)
}

/// What all that hold the target come to, if they agree.
fn agreement(held: &[(NodeId, Base)]) -> Option<Base> {
    let (_, first) = held.first()?;
    let equal = held.iter().all(|(_, base)| (base.digest, base.keys) == (first.digest, first.keys));
    equal.then(|| {
        let mut common = first.clone();
        for (_, base) in held {
            common.last = common.last.max(base.last);
            common.frontier.meet(&base.frontier);
        }
        common
    })
}

/// Writes have been stopped for too long: the fences go, and the switch begins again when the way is clear.
fn over(entry: &Entry<NamespaceRecord>, switch: &Switch, waited: Duration) -> Option<NamespaceRecord> {
    let again = Switch { step: Step::Gathering { near: Vec::new() }, sealed_ms: 0, ..switch.clone() };
    (waited >= BOUND).then(|| moved_on(entry, NamespaceState::Switching(again)))
}

/// The next epoch, over what `with` hold.
fn activated(entry: &Entry<NamespaceRecord>, switch: &Switch, base: Base, with: &[NodeId]) -> NamespaceRecord {
    let mut record = moved_on(entry, NamespaceState::Stable);
    let (ended, ended_ms) = (record.epoch, entry.stamp.hlc.millis());
    let sealed_ms = if switch.sealed_ms == 0 { ended_ms } else { switch.sealed_ms };
    let apart: Vec<NodeId> = record.members.iter().copied().filter(|node| !with.contains(node)).collect();
    if record.mode == Mode::Eventual {
        record.owed.extend(apart.iter().map(|node| (*node, ended)));
    }
    record.mode = other(record.mode);
    record.epoch = duet_proto::Epoch(ended.0 + 1);
    record.initial = record.members.clone();
    record.left = apart.clone();
    record.base = Some(base);
    let to = record.mode;
    record.history.push(Past { epoch: ended, to, asked_ms: switch.asked_ms, sealed_ms, ended_ms, without: apart });
    let old = record.history.len().saturating_sub(HISTORY);
    record.history.drain(..old);
    record
}

fn first(mode: Mode) -> Step {
    match mode {
        Mode::Eventual => Step::Gathering { near: Vec::new() },
        Mode::Strong => Step::Ending,
    }
}

fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Eventual => Mode::Strong,
        Mode::Strong => Mode::Eventual,
    }
}

fn checked_without(record: &NamespaceRecord, to: Mode, without: &[NodeId]) -> Result<Vec<NodeId>, Error> {
    let without: BTreeSet<NodeId> = without.iter().copied().collect();
    if let Some(node) = without.iter().find(|node| !record.members.contains(node)) {
        return Err(invalid(format!("node {node} is no member")));
    }
    if to == Mode::Eventual && !without.is_empty() {
        return Err(invalid("a switch to eventual waits for no particular member: any quorum completes it".into()));
    }
    if without.len() * 2 >= record.members.len() {
        return Err(invalid("without them there is no majority".into()));
    }
    Ok(without.into_iter().collect())
}

fn moved_on(entry: &Entry<NamespaceRecord>, state: NamespaceState) -> NamespaceRecord {
    NamespaceRecord { version: entry.record.version + 1, state, ..copy(entry) }
}

fn add(list: &mut Vec<NodeId>, node: NodeId) {
    if !list.contains(&node) {
        list.push(node);
    }
}

fn key(name: &NamespaceName) -> Key {
    Key::Namespace(name.clone())
}

#[cfg(test)]
mod tests;
