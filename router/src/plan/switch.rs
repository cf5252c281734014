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

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use duet_engine_eventual::Frontier;
use duet_proto::{Epoch, Error, Mode, NamespaceName, NodeId, SwitchPast};

use super::{Goal, Plan, changing, copy, find, invalid, protect, reform};
use crate::{
    catalog::{Base, Held, Key, NamespaceRecord, NamespaceState, Step, Switch},
    planted::Planted,
    view::{Entry, View},
};

/// How long members that are away are waited for before a switch goes on without them, where enough others are there.
const AWAY: Duration = Duration::from_secs(1);
/// How long those that were near are waited for once writes have stopped, where enough others have sealed.
const SLOW: Duration = Duration::from_millis(300);
/// How long what members have said of being near counts.
const FRESH: Duration = Duration::from_secs(5);
/// How long writes may stop before the fences are lifted and the switch begins again.
const BOUND: Duration = Duration::from_secs(2);
/// The rest after the first attempt that did not end in time; each further one doubles it, up to 32 times.
const REST: Duration = Duration::from_millis(250);
/// Switches and ends of epochs that the entry remembers.
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
        /// The attempt in which it has got all from every other member of the base.
        converged: Option<u64>,
        /// What it durably holds.
        held: Box<Held>,
    },
    /// A strong one: what the epoch has come to, if its seal is applied here.
    Strong(Option<Base>),
    /// It is not here, or cannot be asked.
    Nothing,
}

/// When a member speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// How long it has seen the switch gather, or the present attempt to stop writes.
    pub(crate) waited: Duration,
    /// Its clock, in milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// What is wrong with it.
    pub(crate) bug: Option<Planted>,
}

/// The plan for another mode.
pub(super) fn request(view: &View, name: &NamespaceName, to: Mode, without: &[NodeId]) -> Result<Plan, Error> {
    protect(name)?;
    let entry = find(view, name)?;
    let record = &entry.record;
    let without = checked_without(record, to, without)?;
    if to == Mode::Eventual {
        reform::check_enough(record.copies, &record.members)?;
    }
    let plan = Plan::new(Goal::Namespace(name.clone()));
    let switch = match &record.state {
        NamespaceState::Stable if record.mode == to => return Ok(plan),
        NamespaceState::Stable => Switch { step: first(record.mode), without, tries: 0, asked_ms: 0, sealed_ms: 0 },
        NamespaceState::Switching(_) if record.mode == to => {
            return Err(changing(name, "it is being switched to the other mode; abort that first"));
        }
        // Asked for again, it is to stay.
        NamespaceState::Switching(switch @ Switch { step: Step::Ending { back: true }, .. }) => {
            let stay = go_on(entry, switch, Step::Ending { back: false });
            return Ok(plan.replace(key(name), Some(entry), &stay));
        }
        NamespaceState::Switching(switch) if switch.without == without => return Ok(plan),
        // Those that are fenced are let go; they are fenced again, for another attempt.
        NamespaceState::Switching(switch) => Switch { step: first(record.mode), without, ..switch.clone() },
        NamespaceState::Deleting { .. } => return Err(changing(name, "it is being deleted")),
        NamespaceState::Moving { .. } | NamespaceState::Filling { .. } | NamespaceState::Settling { .. } => {
            return Err(changing(name, "its members are being changed; switch it when that is done"));
        }
    };
    Ok(plan.replace(key(name), Some(entry), &with_state(entry, NamespaceState::Switching(switch))))
}

/// The plan for ending a switch before it is done.
pub(super) fn abort(view: &View, name: &NamespaceName, wall_ms: u64) -> Result<Plan, Error> {
    let entry = find(view, name)?;
    let plan = Plan::new(Goal::Namespace(name.clone()));
    match &entry.record.state {
        // The seal may be in the log already: the only way back leads on.
        NamespaceState::Switching(switch @ Switch { step: Step::Ending { back: false }, .. }) => {
            Ok(plan.replace(key(name), Some(entry), &go_on(entry, switch, Step::Ending { back: true })))
        }
        NamespaceState::Switching(Switch { step: Step::Ending { back: true }, .. }) => Ok(plan),
        NamespaceState::Switching(switch) => {
            let mut record = with_state(entry, NamespaceState::Stable);
            let writes_wait = !matches!(switch.step, Step::Gathering { .. } | Step::Ending { .. });
            let past = past(entry, switch, wall_ms.max(entry.stamp.hlc.millis()), Vec::new());
            let sealed_ms = if writes_wait { past.sealed_ms } else { 0 };
            remember(&mut record, SwitchPast { aborted: true, sealed_ms, ..past });
            Ok(plan.replace(key(name), Some(entry), &record))
        }
        _ => Err(invalid(format!("namespace {name} is not being switched"))),
    }
}

/// The plan for not waiting any longer for what a member may bring.
pub(super) fn forget(view: &View, name: &NamespaceName, node: NodeId) -> Result<Plan, Error> {
    let entry = find(view, name)?;
    let mut record = copy(entry);
    let gone: Vec<_> = record.owed.extract_if(.., |(owed, _)| *owed == node).collect();
    if gone.is_empty() {
        return Err(invalid(format!("node {node} has nothing to bring to namespace {name}")));
    }
    for past in record.history.iter_mut().filter(|past| gone.iter().any(|(_, epoch)| *epoch == past.epoch)) {
        add(&mut past.forgotten, node);
    }
    record.version += 1;
    Ok(Plan::new(Goal::Namespace(name.clone())).replace(key(name), Some(entry), &record))
}

/// The plan by which a member says that it has brought all that it held of earlier epochs, up to these frontiers; `None`
/// if nobody waits for it.
pub(crate) fn brought(
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    node: NodeId,
    upto: &BTreeMap<Epoch, Frontier>,
) -> Option<Plan> {
    let mut record = copy(entry);
    let done: Vec<_> = record.owed.extract_if(.., |(owed, _)| *owed == node).collect();
    if done.is_empty() {
        return None;
    }
    for (epoch, frontier) in &mut record.ended {
        if let Some(held) = upto.get(epoch).filter(|_| done.contains(&(node, *epoch))) {
            frontier.join(held);
        }
    }
    record.version += 1;
    Some(Plan::new(Goal::Done).replace(key(name), Some(entry), &record))
}

/// The plan by which a member says what its replica has come to, and takes the step that this completes; `None` if it
/// is no news.
pub(crate) fn advance(
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    me: NodeId,
    came: &Came,
    at: Moment,
) -> Option<Plan> {
    let NamespaceState::Switching(switch) = &entry.record.state else { return None };
    let mut switch = switch.clone();
    if switch.asked_ms == 0 {
        switch.asked_ms = entry.stamp.hlc.millis();
    }
    let step = switch.step.clone();
    let next = match step {
        Step::Gathering { near } => gather(entry, &switch, near, me, came, at),
        Step::Sealing { expected, sealed } => seal(entry, &switch, expected, sealed, me, came, at),
        Step::Converging { base, target, held } => converge(entry, &switch, base, target, held, me, came, at),
        Step::Ending { back } => match came {
            Came::Strong(Some(base)) => {
                switch.sealed_ms = switch.asked_ms;
                let next = activated(entry, &switch, base.clone(), None, &entry.record.members, at);
                if back { turned(next) } else { next }
            }
            _ => return None,
        },
    };
    (next != *entry.record).then(|| Plan::new(Goal::Done).replace(key(name), Some(entry), &next))
}

/// Writes go on. Those that lack nothing say so; when enough have, writes are stopped.
fn gather(
    entry: &Entry<NamespaceRecord>,
    switch: &Switch,
    mut near: Vec<NodeId>,
    me: NodeId,
    came: &Came,
    at: Moment,
) -> NamespaceRecord {
    let record = &entry.record;
    if takes_part(record, switch, me) && matches!(came, Came::Eventual { near: true, .. }) {
        add(&mut near, me);
    }
    if !gathered(record, switch, &near, at) {
        return go_on(entry, switch, Step::Gathering { near });
    }
    let since = switch.asked_ms.max(switch.sealed_ms);
    let switch = Switch { sealed_ms: now(entry, at), ..switch.clone() };
    // Some may have said so long ago, and be away by now: all are asked once more.
    if switch.sealed_ms.saturating_sub(since) > FRESH.as_millis() as u64 {
        near.retain(|node| *node == me && matches!(came, Came::Eventual { near: true, .. }));
        return go_on(entry, &switch, Step::Gathering { near });
    }
    let step = Step::Sealing { expected: near, sealed: Vec::new() };
    let switch = Switch { tries: switch.tries + 1, ..switch };
    NamespaceRecord { attempts: record.attempts + 1, ..go_on(entry, &switch, step) }
}

/// Writes have stopped at whoever has sealed. When enough have, they are the base.
fn seal(
    entry: &Entry<NamespaceRecord>,
    switch: &Switch,
    expected: Vec<NodeId>,
    mut sealed: Vec<(NodeId, Frontier)>,
    me: NodeId,
    came: &Came,
    at: Moment,
) -> NamespaceRecord {
    let record = &entry.record;
    if let Came::Eventual { fence, held, .. } = came
        && *fence == Some(record.attempts)
        && takes_part(record, switch, me)
        && sealed.iter().all(|(node, _)| *node != me)
    {
        sealed.push((me, held.frontier.clone()));
    }
    let have: Vec<NodeId> = sealed.iter().map(|(node, _)| *node).collect();
    let all = expected.iter().all(|node| have.contains(node));
    if !enough(record, &switch.without, &have, at) || !(all || at.waited >= SLOW) {
        return over(entry, switch, at).unwrap_or_else(|| go_on(entry, switch, Step::Sealing { expected, sealed }));
    }
    let mut target = Frontier::default();
    sealed.iter().for_each(|(_, frontier)| target.join(frontier));
    go_on(entry, switch, Step::Converging { base: have, target, held: Vec::new() })
}

/// The members of the base get from each other what any of them held. When all hold the same, the next epoch begins.
#[allow(clippy::too_many_arguments, reason = "the parts of the step, and who speaks when")]
fn converge(
    entry: &Entry<NamespaceRecord>,
    switch: &Switch,
    base: Vec<NodeId>,
    target: Frontier,
    mut held: Vec<(NodeId, Held)>,
    me: NodeId,
    came: &Came,
    at: Moment,
) -> NamespaceRecord {
    let record = &entry.record;
    if let Came::Eventual { fence, converged, held: mine, .. } = came
        && (*fence, *converged) == (Some(record.attempts), Some(record.attempts))
        && base.contains(&me)
        && mine.frontier.covers(&target)
        && held.iter().all(|(node, _)| *node != me)
    {
        held.push((me, Held::clone(mine)));
    }
    if held.len() == base.len()
        && let Some((common, frontier)) = agreement(&held)
    {
        return activated(entry, switch, common, Some(frontier), &base, at);
    }
    over(entry, switch, at).unwrap_or_else(|| go_on(entry, switch, Step::Converging { base, target, held }))
}

fn takes_part(record: &NamespaceRecord, switch: &Switch, node: NodeId) -> bool {
    record.members.contains(&node) && !switch.without.contains(&node)
}

/// Whether so many members make up a base: of every acknowledged write at least one of them holds a copy, and they
/// are a majority, which the group that follows needs. An operator may give up members that are away; then what they
/// alone hold comes in late.
fn enough(record: &NamespaceRecord, without: &[NodeId], have: &[NodeId], at: Moment) -> bool {
    let members = record.members.len();
    let copies = if at.bug == Some(Planted::MajorityIsEnough) { members } else { record.copies.max(1) as usize };
    let all_others = record.members.iter().all(|node| without.contains(node) || have.contains(node));
    have.len() > members / 2 && (have.len() > members.saturating_sub(copies) || (!without.is_empty() && all_others))
}

/// Whether writes may be stopped: everybody is near, or enough are, and the others have been away for a while. After an
/// attempt that failed, not at once.
fn gathered(record: &NamespaceRecord, switch: &Switch, near: &[NodeId], at: Moment) -> bool {
    let all = record.members.iter().all(|node| switch.without.contains(node) || near.contains(node));
    let rest = if switch.tries == 0 { Duration::ZERO } else { REST.saturating_mul(1 << switch.tries.min(5)) };
    enough(record, &switch.without, near, at) && at.waited >= rest && (all || at.waited >= AWAY)
}

/// What all that have converged come to, if they agree.
fn agreement(held: &[(NodeId, Held)]) -> Option<(Base, Frontier)> {
    let (_, one) = held.first()?;
    let same = |other: &Held| (other.digest, other.keys, &other.frontier) == (one.digest, one.keys, &one.frontier);
    if !held.iter().all(|(_, other)| same(other)) {
        return None;
    }
    let last = held.iter().map(|(_, other)| other.last).max().unwrap_or_default();
    let answers = held.iter().all(|(_, other)| other.answers == one.answers);
    let base = Base { last, digest: one.digest, keys: one.keys, answers, keep_tombstones: false };
    Some((base, one.frontier.clone()))
}

/// Writes have been stopped for too long: the fences go, and the switch begins again when the way is clear.
fn over(entry: &Entry<NamespaceRecord>, switch: &Switch, at: Moment) -> Option<NamespaceRecord> {
    (at.waited >= BOUND).then(|| go_on(entry, switch, Step::Gathering { near: Vec::new() }))
}

/// The next epoch, over what `with` hold; `end` is up to where they hold every write, if the old one was eventual.
fn activated(
    entry: &Entry<NamespaceRecord>,
    switch: &Switch,
    base: Base,
    end: Option<Frontier>,
    with: &[NodeId],
    at: Moment,
) -> NamespaceRecord {
    let mut record = with_state(entry, NamespaceState::Stable);
    let apart: Vec<NodeId> = record.members.iter().copied().filter(|node| !with.contains(node)).collect();
    remember(&mut record, past(entry, switch, now(entry, at), apart.clone()));
    if let Some(end) = end {
        if at.bug != Some(Planted::OwedForgotten) {
            record.owed.extend(apart.iter().map(|node| (*node, record.epoch)));
        }
        record.ended.push((record.epoch, end));
        let old = record.ended.len().saturating_sub(HISTORY);
        record.ended.drain(..old);
    }
    record.version += 1;
    record.mode = other(record.mode);
    record.epoch = Epoch(record.epoch.0 + 1);
    record.initial = record.members.clone();
    record.left = apart;
    record.base = Some(Base { keep_tombstones: !record.owed.is_empty(), ..base });
    record
}

/// A switch that was aborted when it could only go on: the way back begins with the epoch that it led to.
fn turned(mut record: NamespaceRecord) -> NamespaceRecord {
    if let Some(past) = record.history.last_mut() {
        past.aborted = true;
    }
    let step = first(record.mode);
    record.state =
        NamespaceState::Switching(Switch { step, without: Vec::new(), tries: 0, asked_ms: 0, sealed_ms: 0 });
    record
}

fn past(entry: &Entry<NamespaceRecord>, switch: &Switch, ended_ms: u64, apart: Vec<NodeId>) -> SwitchPast {
    let record = &entry.record;
    SwitchPast {
        epoch: record.epoch,
        to: other(record.mode),
        // Until somebody has said what it has come to, the entry is as it was asked for.
        asked_ms: if switch.asked_ms == 0 { entry.stamp.hlc.millis() } else { switch.asked_ms },
        sealed_ms: switch.sealed_ms,
        ended_ms,
        attempts: switch.tries,
        apart,
        aborted: false,
        forgotten: Vec::new(),
    }
}

fn remember(record: &mut NamespaceRecord, past: SwitchPast) {
    record.history.push(past);
    let old = record.history.len().saturating_sub(HISTORY);
    record.history.drain(..old);
}

/// The speaker's clock, but never before the entry.
fn now(entry: &Entry<NamespaceRecord>, at: Moment) -> u64 {
    at.wall_ms.max(entry.stamp.hlc.millis())
}

fn first(mode: Mode) -> Step {
    match mode {
        Mode::Eventual => Step::Gathering { near: Vec::new() },
        Mode::Strong => Step::Ending { back: false },
    }
}

pub(crate) fn other(mode: Mode) -> Mode {
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
    if !without.is_empty() && without.len() * 2 >= record.members.len() {
        return Err(invalid("without them there is no majority".into()));
    }
    Ok(without.into_iter().collect())
}

fn go_on(entry: &Entry<NamespaceRecord>, switch: &Switch, step: Step) -> NamespaceRecord {
    NamespaceRecord { state: NamespaceState::Switching(Switch { step, ..switch.clone() }), ..copy(entry) }
}

fn with_state(entry: &Entry<NamespaceRecord>, state: NamespaceState) -> NamespaceRecord {
    NamespaceRecord { state, ..copy(entry) }
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
