//! From strong to eventual: the seal is an entry in the log, and the last one that counts.
//!
//! Raft is an atomic log: what is proposed may be committed at any later time, or never, and each of three members
//! applies the log at its own pace. One key is enough: what matters is which entries a member has applied, under which
//! stamps, when it opens the next epoch. A proposal carries the time of its proposer's clock, in any order; strong
//! mode keeps no tombstones. In the next epoch there is one more write, and members merge by stamp.
//!
//! A coordinator has no state here either, see [`to_strong`](crate::to_strong).

use stateright::{Model, Property};

use crate::explore::{Ending, Protocol};
use crate::rules::{Rule, Rules};
use crate::set::node;

const MEMBERS: usize = 3;
const MAJORITY: usize = 2;

/// The model.
#[derive(Clone, Debug)]
pub struct ToEventual {
    /// Writes that clients make in the strong epoch.
    pub writes: u8,
    /// The rules kept.
    pub rules: Rules,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The namespace's entry.
    pub catalog: Catalog,
    /// Whether the operator still wants the switch.
    pub wanted: bool,
    /// What is committed.
    pub log: Vec<Entry>,
    /// What is proposed and not committed.
    pub flight: Option<Entry>,
    /// A seal is proposed and not committed.
    pub seal_in_flight: bool,
    /// Writes that clients have made.
    pub written: u8,
    /// What clients were answered, by position in the log.
    pub answers: Vec<(u8, Stamp)>,
    /// The members.
    pub members: [Member; MEMBERS],
    /// There was a write in the next epoch.
    pub next_written: bool,
}

/// The namespace's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Catalog {
    /// `STABLE(strong, e)`.
    Strong,
    /// `SEALING(e)`.
    Sealing,
    /// `STABLE(eventual, e+1)`.
    Eventual,
    /// `STABLE(strong, e+1)`: given up after the seal.
    StrongAgain,
}

/// An entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A put, with its proposer's time.
    Put(u8),
    /// A delete, with its proposer's time.
    Delete(u8),
    /// Nothing behind it counts.
    Seal,
}

/// Epoch (0 or 1) and time.
pub type Stamp = (u8, u8);

/// A stamp, and which write it is of; none for a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Its version.
    pub stamp: Stamp,
    /// The position in the log of the put, or that of the next epoch's write.
    pub value: Option<u8>,
}

/// The value that the next epoch's write gives.
const NEXT: u8 = 100;

/// A member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Member {
    /// How much of the log it has applied.
    pub applied: u8,
    /// The highest time that it has given.
    pub last: u8,
    /// What it holds of the key.
    pub record: Option<Record>,
    /// It has applied the seal.
    pub sealed: bool,
    /// It is in the next epoch.
    pub open: bool,
}

/// What can happen. Numbers are members, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A client's write is proposed.
    Propose(Entry),
    /// It is committed.
    Commit,
    /// It is lost.
    Lose,
    /// `SEALING(e)`.
    Begin,
    /// The leader proposes the seal.
    ProposeSeal,
    /// The seal is committed.
    CommitSeal,
    /// The seal is lost with its leader.
    LoseSeal,
    /// The operator gives the switch up.
    Abort,
    /// The entry goes back to what it was.
    Undo,
    /// The next epoch is active.
    Activate,
    /// A member applies its next entry.
    Apply(u8),
    /// A member enters the next epoch.
    Open(u8),
    /// A member gets the base from another one that is in the next epoch.
    Install(u8, u8),
    /// A member takes a write in the next epoch, a put or a delete.
    Write(u8, bool),
    /// The first sends its record to the second.
    Sync(u8, u8),
}

/// Of every member in the next epoch.
pub const READS: &str = "reads in the next epoch see every write acknowledged before";
/// Of every member in the next epoch.
pub const RESURRECTED: &str = "no delete is undone";
/// Of every two members.
pub const AGREE: &str = "members that have applied the same hold the same";
/// Of the answers.
pub const RISE: &str = "of two writes of a key, the later one has the higher version";
/// From everywhere.
pub const FINISH: &str = "every switch can finish";
/// From everywhere, without C.
pub const QUORUM: &str = "strong to eventual completes with any quorum";
/// From everywhere, without a person.
pub const TAKES: &str = "a namespace can always come to take writes again";

impl ToEventual {
    fn apply_entry(&self, state: &mut State, at: u8) -> Option<()> {
        let member = &mut state.members[usize::from(at)];
        let entry = *state.log.get(usize::from(member.applied)).filter(|_| !member.open)?;
        let position = member.applied;
        member.applied += 1;
        let (Entry::Put(proposed) | Entry::Delete(proposed)) = entry else {
            member.sealed = true;
            return Some(());
        };
        if member.sealed && self.rules.keep(Rule::EpochAtReplica) {
            return Some(());
        }
        let above = if self.rules.keep(Rule::StampAtApply) { proposed.max(member.last + 1) } else { proposed };
        let clock = if self.rules.keep(Rule::NoClockAtApply) { 0 } else { at };
        member.last = above + clock;
        let stamp = (0, member.last);
        member.record = matches!(entry, Entry::Put(_)).then_some(Record { stamp, value: Some(position) });
        // The first member to apply it is the one that the client asked.
        if state.answers.iter().all(|(answered, _)| *answered != position) {
            state.answers.push((position, stamp));
        }
        Some(())
    }

    fn switch(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Begin => {
                (state.catalog == Catalog::Strong && state.wanted).then_some(())?;
                state.catalog = Catalog::Sealing;
            }
            Action::ProposeSeal => {
                let may = state.catalog == Catalog::Sealing && !state.log.contains(&Entry::Seal);
                (may && !state.seal_in_flight).then_some(())?;
                state.seal_in_flight = true;
            }
            Action::CommitSeal => {
                std::mem::take(&mut state.seal_in_flight).then_some(())?;
                state.log.push(Entry::Seal);
            }
            Action::LoseSeal => std::mem::take(&mut state.seal_in_flight).then_some(())?,
            Action::Abort => {
                let early = matches!(state.catalog, Catalog::Strong | Catalog::Sealing);
                (early && std::mem::take(&mut state.wanted)).then_some(())?;
            }
            Action::Undo => {
                let may = state.catalog == Catalog::Sealing && !state.wanted;
                (may && !self.rules.keep(Rule::SealBeforeAbort)).then_some(())?;
                state.catalog = Catalog::Strong;
            }
            Action::Activate => {
                let sealed = state.members.iter().any(|member| member.sealed);
                (state.catalog == Catalog::Sealing && sealed).then_some(())?;
                state.catalog = if state.wanted { Catalog::Eventual } else { Catalog::StrongAgain };
            }
            _ => return None,
        }
        Some(())
    }

    fn next_epoch(&self, state: &mut State, action: Action) -> Option<()> {
        let active = matches!(state.catalog, Catalog::Eventual | Catalog::StrongAgain);
        match action {
            Action::Open(at) => {
                let member = &mut state.members[usize::from(at)];
                let may = member.sealed || !self.rules.keep(Rule::OpenAfterSeal);
                (active && !member.open && may).then_some(())?;
                member.open = true;
            }
            Action::Install(at, from) => {
                let source = state.members[usize::from(from)];
                let member = &mut state.members[usize::from(at)];
                (source.open && !member.open).then_some(())?;
                member.record = if self.rules.keep(Rule::InstallReplaces) {
                    source.record
                } else {
                    newer(member.record, source.record)
                };
                member.open = true;
            }
            Action::Write(at, put) => {
                let member = &mut state.members[usize::from(at)];
                let may = state.catalog == Catalog::Eventual && member.open && !state.next_written;
                may.then_some(())?;
                member.record = Some(Record { stamp: (1, 1), value: put.then_some(NEXT) });
                state.next_written = true;
            }
            Action::Sync(from, to) => {
                let source = state.members[usize::from(from)];
                let member = &mut state.members[usize::from(to)];
                (state.catalog == Catalog::Eventual && source.open && member.open).then_some(())?;
                member.record = newer(member.record, source.record);
            }
            _ => return None,
        }
        Some(())
    }

    /// What the strong epoch left: the last put that counts, unless it was deleted.
    fn left(state: &State) -> Option<u8> {
        let seal = state.log.iter().position(|entry| *entry == Entry::Seal).unwrap_or(state.log.len());
        let counts = |at: u8| usize::from(at) < seal || state.answers.iter().any(|(answered, _)| *answered == at);
        let last = (0u8..).zip(&state.log).filter(|(at, entry)| **entry != Entry::Seal && counts(*at)).last();
        last.and_then(|(at, entry)| matches!(entry, Entry::Put(_)).then_some(at))
    }

    /// What members in the next epoch have from the strong one, where nothing newer hides it.
    fn kept(state: &State) -> impl Iterator<Item = Option<u8>> {
        let open = state.members.iter().filter(|member| member.open);
        let old = open.filter(|member| member.record.is_none_or(|record| record.stamp.0 == 0));
        old.map(|member| member.record.and_then(|record| record.value))
    }
}

/// The newer of two records.
fn newer(left: Option<Record>, right: Option<Record>) -> Option<Record> {
    [left, right].into_iter().flatten().max_by_key(|record| record.stamp)
}

impl Model for ToEventual {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            catalog: Catalog::Strong,
            wanted: true,
            log: Vec::new(),
            flight: None,
            seal_in_flight: false,
            written: 0,
            answers: Vec::new(),
            members: [Member::default(); MEMBERS],
            next_written: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        use Action::{
            Abort, Activate, Apply, Begin, Commit, CommitSeal, Install, Lose, LoseSeal, Open, Propose, ProposeSeal,
            Sync, Undo, Write,
        };
        actions.extend((1..=self.writes).flat_map(|time| [Propose(Entry::Put(time)), Propose(Entry::Delete(time))]));
        actions.extend([Commit, Lose, Begin, ProposeSeal, CommitSeal, LoseSeal, Abort, Undo, Activate]);
        for at in 0..MEMBERS as u8 {
            actions.extend([Apply(at), Open(at), Write(at, true), Write(at, false)]);
            let others = (0..MEMBERS as u8).filter(|other| *other != at);
            actions.extend(others.flat_map(|other| [Install(at, other), Sync(at, other)]));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Propose(entry) => {
                // Proposers' stamps are unique. That the epoch has ended, the proposer need not know.
                let time = |entry: &Entry| if let Entry::Put(time) | Entry::Delete(time) = entry { *time } else { 0 };
                let unique = state.log.iter().all(|other| time(other) != time(&entry));
                (unique && state.written < self.writes && state.flight.is_none()).then_some(())?;
                state.written += 1;
                state.flight = Some(entry);
            }
            Action::Commit => state.log.push(state.flight.take()?),
            Action::Lose => drop(state.flight.take()?),
            Action::Apply(at) => self.apply_entry(&mut state, at)?,
            Action::Open(_) | Action::Install(..) | Action::Write(..) | Action::Sync(..) => {
                self.next_epoch(&mut state, action)?;
            }
            _ => self.switch(&mut state, action)?,
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(READS, |_, state: &State| {
                Self::left(state).is_none_or(|left| Self::kept(state).all(|value| value == Some(left)))
            }),
            Property::always(RESURRECTED, |_, state: &State| {
                Self::left(state).is_some() || Self::kept(state).all(|value| value.is_none())
            }),
            Property::always(AGREE, |_, state: &State| {
                let same = |left: &Member, right: &Member| {
                    left.open || right.open || left.applied != right.applied || left.record == right.record
                };
                state.members.iter().all(|left| state.members.iter().all(|right| same(left, right)))
            }),
            Property::always(RISE, |_, state: &State| {
                let of = |(position, stamp): &(u8, Stamp)| (*position, *stamp);
                let rising = |left: (u8, Stamp), right: (u8, Stamp)| left.0 >= right.0 || left.1 < right.1;
                state.answers.iter().all(|left| state.answers.iter().all(|right| rising(of(left), of(right))))
            }),
            Property::sometimes("all members are in the next epoch", |_, state: &State| {
                state.members.iter().all(|member| member.open) && state.next_written
            }),
            Property::sometimes("a switch is given up after its seal", |_, state: &State| {
                state.catalog == Catalog::StrongAgain
            }),
        ]
    }
}

/// Whether the switch is over for these members.
fn finished(state: &State, members: &[Member]) -> bool {
    match state.catalog {
        Catalog::Strong => !state.wanted && !state.seal_in_flight && !state.log.contains(&Entry::Seal),
        Catalog::Sealing => false,
        Catalog::Eventual | Catalog::StrongAgain => members.iter().all(|member| member.open),
    }
}

impl Protocol for ToEventual {
    fn endings(&self) -> Vec<Ending<Self>> {
        use Action::{Abort, Apply, Install, Open, Sync, Write};
        vec![
            Ending { name: FINISH, reached: |_, state| finished(state, &state.members), by: |_, _| true },
            Ending {
                name: QUORUM,
                reached: |_, state| finished(state, &state.members[..MAJORITY]),
                by: |_, action| {
                    !matches!(action, Apply(2) | Open(2) | Write(2, _) | Install(2, _) | Install(_, 2) | Sync(..))
                },
            },
            Ending {
                name: TAKES,
                reached: |_, state| match state.catalog {
                    Catalog::Strong | Catalog::Sealing => !state.log.contains(&Entry::Seal),
                    Catalog::Eventual => state.members.iter().any(|member| member.open),
                    Catalog::StrongAgain => state.members.iter().filter(|member| member.open).count() >= MAJORITY,
                },
                by: |_, action| !matches!(action, Abort),
            },
        ]
    }

    fn tell(&self, before: &State, action: &Action, after: &State) -> String {
        let shown = |at: u8| match after.members[usize::from(at)].record {
            None => "nothing".to_owned(),
            Some(Record { stamp: (epoch, time), value }) => {
                let epoch = if epoch == 0 { "e" } else { "e+1" };
                format!("a {} of ({epoch}, {time})", if value.is_some() { "value" } else { "tombstone" })
            }
        };
        match *action {
            Action::Propose(Entry::Put(time)) => format!("put proposed at time {time}"),
            Action::Propose(Entry::Delete(time)) => format!("delete proposed at time {time}"),
            Action::Propose(Entry::Seal) | Action::ProposeSeal => "the leader proposes Seal(e+1)".to_owned(),
            Action::Commit => format!("it is committed at position {}", after.log.len()),
            Action::Lose => "it is lost".to_owned(),
            Action::Begin => "coordinator: SEALING(e)".to_owned(),
            Action::CommitSeal => format!("the seal is committed at position {}", after.log.len()),
            Action::LoseSeal => "the seal is lost with its leader".to_owned(),
            Action::Abort => "operator: --abort".to_owned(),
            Action::Undo => "coordinator: back to STABLE(strong, e)".to_owned(),
            Action::Activate if after.catalog == Catalog::Eventual => "coordinator: STABLE(eventual, e+1)".to_owned(),
            Action::Activate => "coordinator: STABLE(strong, e+1)".to_owned(),
            Action::Apply(at) => {
                let position = after.members[usize::from(at)].applied;
                let what = match (after.log[usize::from(position) - 1], after.answers.len() > before.answers.len()) {
                    (Entry::Seal, _) => "applies the seal".to_owned(),
                    (_, true) => format!("applies position {position}, acknowledges it"),
                    (_, false) => format!("applies position {position}"),
                };
                format!("{} {what}; it holds {}", node(at), shown(at))
            }
            Action::Open(at) => format!("{} opens e+1 with {}", node(at), shown(at)),
            Action::Install(at, from) => {
                format!("{} gets the base from {}, opens e+1 with {}", node(at), node(from), shown(at))
            }
            Action::Write(at, put) => format!("{} takes a {} in e+1", node(at), if put { "put" } else { "delete" }),
            Action::Sync(from, to) => format!("{} sends to {}, which holds {}", node(from), node(to), shown(to)),
        }
    }
}
