//! Late writes and tombstones: what becomes of a write that only an excluded member has.
//!
//! The first switch (epoch 0, eventual, to epoch 1, strong) is done, and C was left out of it. C holds one acknowledged
//! write of the only key, a put or a delete, that nobody else has. Clients go on in epoch 1; a second switch may lead to
//! epoch 2, eventual, and a third one to epoch 3, strong, without C if it is still away, which is then owed epoch 2; C
//! returns at any time, in any of them, or is forgotten by the operator, or taken out of the namespace, and returns all
//! the same. Of epoch 2 it has nothing to bring.
//!
//! The strong group is one record and one list of who is owed, changed in the order of the log. A late write that was
//! proposed may be committed any time later, and C proposes it again when it does not know what became of it. In
//! epoch 2, A, B and C each have a record, and merge by stamp. Epoch 3 begins when those that take part are equal.

use stateright::{Model, Property};

use crate::explore::{Ending, Protocol};
use crate::rules::{Rule, Rules};
use crate::set::node;

const C: u8 = 2;

/// The model.
#[derive(Clone, Debug)]
pub struct Late {
    /// Writes in the epochs from 1.
    pub writes: u8,
    /// How often C proposes its late write at most.
    pub proposals: u8,
    /// The rules kept.
    pub rules: Rules,
}

/// Epoch and time.
pub type Stamp = (u8, u8);

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Its version.
    pub stamp: Stamp,
    /// A value, or a tombstone.
    pub alive: bool,
}

/// Where C is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In epoch 0, and knows nothing of what came after.
    Old,
    /// Fenced, its late write stashed.
    Stashed,
    /// In the current epoch, its late write still stashed.
    Based,
    /// In the current epoch, and owes nothing.
    Paid,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// 1, strong; 2, eventual; or 3, strong.
    pub epoch: u8,
    /// The catalog: C is owed.
    pub owed: bool,
    /// The strong group's own list: C is owed.
    pub listed: bool,
    /// What C is owed is epoch 2: in both lists.
    pub again: bool,
    /// The operator has forgotten what C has of epoch 0.
    pub forgotten: bool,
    /// C was taken out of the namespace.
    pub removed: bool,
    /// What the strong group holds.
    pub strong: Option<Record>,
    /// What A, B and C hold in epoch 2; C's in epoch 0 before.
    pub members: [Option<Record>; 3],
    /// Where C is.
    pub place: Place,
    /// C's late write.
    pub late: Record,
    /// Proposals of it that are under way.
    pub flight: u8,
    /// Proposals of it so far.
    pub proposed: u8,
    /// Writes so far.
    pub written: u8,
    /// For the properties: the newest write acknowledged after the first switch.
    pub newest: Option<Record>,
    /// For the properties: the newest delete that left no trace, or of which the last one is gone.
    pub gone: Stamp,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A client puts or deletes, in epoch 2 at A.
    Write(bool),
    /// C learns of the switch, fences, and stashes.
    Return,
    /// C gets what is current from the others.
    Install,
    /// C proposes its late write.
    Propose,
    /// A proposal is committed.
    Commit,
    /// In epoch 2, C merges its late write into its own data.
    Merge,
    /// The strong group's list ends, by an entry of its log.
    Release,
    /// The catalog's list ends.
    Clear,
    /// The operator forgets C.
    Forget,
    /// The operator takes C out of the namespace.
    Remove,
    /// The second switch.
    Switch,
    /// The third switch.
    Again,
    /// The first member sends its record to the second.
    Sync(u8, u8),
    /// A member forgets a tombstone.
    Collect(u8),
}

/// Of every record that can be read.
pub const RESURRECTED: &str = "no delete is undone";
/// Everywhere.
pub const LOST: &str = "no acknowledged write is lost";
/// Of the strong group.
pub const ORDER: &str = "an older write never takes the place of a newer one";
/// From everywhere.
pub const FINISH: &str = "late writes can always be settled";

impl Late {
    fn keep(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    /// Whether C may bring what it has: it is on the list, for that epoch.
    fn owes(&self, state: &State) -> bool {
        self.waits(state) && !(state.again && self.keep(Rule::OwedByEpoch))
    }

    /// Whether C is on the list: the one that comes with the data, or without the rule the catalog's, which may be older
    /// or newer than the data.
    fn waits(&self, state: &State) -> bool {
        if self.keep(Rule::OwedInLog) { state.listed } else { state.owed }
    }

    fn write(&self, state: &mut State, put: bool) -> Option<()> {
        (state.written < self.writes).then_some(())?;
        state.written += 1;
        let record = Record { stamp: (state.epoch, state.written), alive: put };
        state.newest = Some(record);
        if state.epoch == 2 {
            state.members[0] = Some(record);
            return Some(());
        }
        let absent = state.strong.is_none_or(|record| !record.alive);
        let tombstone = self.waits(state)
            && self.keep(Rule::OwedKeepsTombstones)
            && (!absent || self.keep(Rule::OwedMarksAbsent));
        if put || tombstone {
            state.strong = Some(record);
        } else {
            state.strong = None;
            state.gone = record.stamp;
        }
        Some(())
    }

    fn late(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Return => {
                (state.place == Place::Old).then_some(())?;
                state.members[usize::from(C)] = None;
                state.place = Place::Stashed;
            }
            Action::Install => {
                (state.place == Place::Stashed).then_some(())?;
                state.members[usize::from(C)] = state.members[0];
                // One that is no longer on the list has nothing to offer: what it has is for the audit.
                state.place = if self.owes(state) { Place::Based } else { Place::Paid };
            }
            Action::Propose => {
                let may = state.epoch != 2 && state.place == Place::Based && state.proposed < self.proposals;
                may.then_some(())?;
                state.proposed += 1;
                state.flight += 1;
            }
            Action::Commit => {
                (state.epoch != 2 && state.flight > 0).then_some(())?;
                state.flight -= 1;
                // Refused or merged, C learns of it and is done.
                if state.listed || !self.keep(Rule::OwedInLog) {
                    state.strong = newer(state.strong, Some(state.late));
                }
                state.place = Place::Paid;
            }
            Action::Merge => {
                (state.epoch == 2 && state.place == Place::Based).then_some(())?;
                // It was on the list when it installed; that it may be off it by now, it need not know.
                let mine = &mut state.members[usize::from(C)];
                *mine = newer(*mine, Some(state.late));
                state.place = Place::Paid;
            }
            _ => return None,
        }
        Some(())
    }

    fn settle(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Release => {
                (due(state) && state.epoch != 2 && state.listed && self.keep(Rule::OwedInLog)).then_some(())?;
                state.listed = false;
                drop_tombstone(&mut state.strong, &mut state.gone);
            }
            Action::Clear => {
                // In epoch 2 there is no log, and no proposal left over that could arrive late.
                let released = state.epoch == 2 || !state.listed || !self.keep(Rule::OwedInLog);
                (due(state) && state.owed && released).then_some(())?;
                (state.owed, state.listed) = (false, false);
                if state.epoch != 2 {
                    drop_tombstone(&mut state.strong, &mut state.gone);
                }
            }
            Action::Forget => {
                (state.owed && !state.forgotten && state.place == Place::Old).then_some(())?;
                state.forgotten = true;
            }
            Action::Remove => {
                (!state.removed && state.place == Place::Old).then_some(())?;
                state.removed = true;
            }
            Action::Switch => {
                (state.epoch == 1).then_some(())?;
                state.epoch = 2;
                state.flight = 0;
                state.members[0] = state.strong;
                state.members[1] = state.strong;
                // C opens the epoch when it has applied the seal; one in epoch 0 knows nothing.
                if state.place != Place::Old {
                    state.members[usize::from(C)] = state.strong;
                }
                if state.place == Place::Based && !self.owes(state) {
                    state.place = Place::Paid;
                }
                state.strong = None;
            }
            Action::Again => {
                let [a, b, c] = state.members;
                let away = matches!(state.place, Place::Old | Place::Stashed);
                (state.epoch == 2 && a == b && (away || b == c)).then_some(())?;
                state.epoch = 3;
                if away && !state.removed {
                    state.again = !self.waits(state);
                    (state.owed, state.listed) = (true, true);
                }
                state.proposed = 0;
                state.strong = a;
                state.members = [None, None, c.filter(|_| state.place == Place::Old)];
            }
            _ => return None,
        }
        Some(())
    }

    /// Whether a member takes part in anti-entropy in epoch 2.
    fn in_step(&self, state: &State, at: u8) -> bool {
        at != C
            || matches!(state.place, Place::Based | Place::Paid)
            || (state.place == Place::Old && !self.keep(Rule::EqualEpochs))
    }

    fn collect(&self, state: &mut State, at: u8) -> Option<()> {
        (state.epoch == 2 && self.in_step(state, at)).then_some(())?;
        let tombstone = state.members[usize::from(at)].filter(|record| !record.alive)?;
        // Every member has reported it; C is one again when it has returned.
        let gone = state.removed && matches!(state.place, Place::Old | Place::Stashed);
        let needed = (0..3u8).filter(|at| *at != C || !gone);
        let seen = |at: u8| {
            let early = state.place == Place::Based && !self.keep(Rule::ReportAfterMerge);
            let settled = at != C || state.place == Place::Paid || early;
            let has = state.members[usize::from(at)].map_or(state.gone, |record| record.stamp.max(state.gone));
            settled && has >= tombstone.stamp
        };
        (needed.into_iter().all(seen) && !(state.owed && self.keep(Rule::OwedStopsForgetting))).then_some(())?;
        drop_tombstone(&mut state.members[usize::from(at)], &mut state.gone);
        Some(())
    }

    /// What can be read.
    fn read(state: &State) -> impl Iterator<Item = Record> {
        let joined = matches!(state.place, Place::Based | Place::Paid);
        let members = if state.epoch == 2 { if joined { 3 } else { 2 } } else { 0 };
        state.strong.into_iter().chain(state.members.into_iter().take(members).flatten())
    }

    fn nothing_lost(&self, state: &State) -> bool {
        let covered = |stamp: Stamp| state.gone >= stamp || Self::read(state).any(|record| record.stamp >= stamp);
        let waiting = state.place != Place::Paid;
        (state.forgotten || waiting || covered(state.late.stamp))
            && state.newest.is_none_or(|record| covered(record.stamp))
    }
}

/// Whether nobody need wait for C any more.
fn due(state: &State) -> bool {
    state.place == Place::Paid || state.forgotten && !state.again
}

fn newer(left: Option<Record>, right: Option<Record>) -> Option<Record> {
    [left, right].into_iter().flatten().max_by_key(|record| record.stamp)
}

fn drop_tombstone(record: &mut Option<Record>, gone: &mut Stamp) {
    if let Some(tombstone) = record.take_if(|record| !record.alive) {
        *gone = (*gone).max(tombstone.stamp);
    }
}

impl Model for Late {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let before = Record { stamp: (0, 1), alive: true };
        let starts = [(None, true), (Some(before), true), (Some(before), false)];
        let state = |(strong, alive): (Option<Record>, bool)| {
            let late = Record { stamp: (0, 2), alive };
            State {
                epoch: 1,
                owed: true,
                listed: true,
                again: false,
                forgotten: false,
                removed: false,
                strong,
                members: [None, None, Some(late)],
                place: Place::Old,
                late,
                flight: 0,
                proposed: 0,
                written: 0,
                newest: None,
                gone: (0, 0),
            }
        };
        starts.into_iter().map(state).collect()
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        use Action::{
            Again, Clear, Collect, Commit, Forget, Install, Merge, Propose, Release, Remove, Return, Switch, Sync,
            Write,
        };
        actions.extend([Write(true), Write(false), Return, Install, Propose, Commit, Merge]);
        actions.extend([Release, Clear, Forget, Remove, Switch, Again]);
        for at in 0..3 {
            actions.push(Collect(at));
            actions.extend((0..3).filter(|to| *to != at).map(|to| Sync(at, to)));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Write(put) => self.write(&mut state, put)?,
            Action::Sync(from, to) => {
                let both = self.in_step(&state, from) && self.in_step(&state, to);
                (state.epoch == 2 && both).then_some(())?;
                state.members[usize::from(to)] =
                    newer(state.members[usize::from(to)], state.members[usize::from(from)]);
            }
            Action::Collect(at) => self.collect(&mut state, at)?,
            Action::Return | Action::Install | Action::Propose | Action::Commit | Action::Merge => {
                self.late(&mut state, action)?;
            }
            _ => self.settle(&mut state, action)?,
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(RESURRECTED, |_, state: &State| {
                Self::read(state).all(|record| !record.alive || record.stamp > state.gone)
            }),
            Property::always(LOST, Self::nothing_lost),
            Property::always(ORDER, |_, state: &State| {
                let newest = state.newest.map_or((0, 0), |record| record.stamp);
                state.epoch == 2 || state.strong.is_none_or(|record| record.stamp >= newest)
            }),
            Property::sometimes("a late write is read", |_, state: &State| {
                Self::read(state).any(|record| record == state.late)
            }),
            Property::sometimes("a tombstone is forgotten", |_, state: &State| state.gone.0 == 2),
        ]
    }
}

impl Protocol for Late {
    fn endings(&self) -> Vec<Ending<Self>> {
        vec![Ending {
            name: FINISH,
            reached: |_, state| {
                let joined = matches!(state.place, Place::Paid) || (state.forgotten && state.place == Place::Old);
                let [a, b, c] = state.members;
                !state.owed
                    && joined
                    && state.flight == 0
                    && (state.epoch != 2 || a == b && (b == c || state.place == Place::Old))
            },
            by: |_, _| true,
        }]
    }

    fn tell(&self, before: &State, action: &Action, after: &State) -> String {
        let shown = |record: Option<Record>| match record {
            None => "nothing".to_owned(),
            Some(Record { stamp: (epoch, time), alive }) => {
                let epoch = ["e", "e+1", "e+2", "e+3"][usize::from(epoch)];
                format!("a {} of ({epoch}, {time})", if alive { "value" } else { "tombstone" })
            }
        };
        match *action {
            Action::Write(put) => {
                let what = if put { "put" } else { "delete" };
                let place = if after.epoch == 2 { after.members[0] } else { after.strong };
                let who = if after.epoch == 2 { "A" } else { "the strong group" };
                format!("a {what} is acknowledged; {who} holds {}", shown(place))
            }
            Action::Return => format!("C returns, fences, stashes {}", shown(Some(after.late))),
            Action::Install => "C installs what is current".to_owned(),
            Action::Propose => format!("C proposes its late write, {}", shown(Some(after.late))),
            Action::Commit => {
                format!("a proposal of it is committed; the strong group holds {}", shown(after.strong))
            }
            Action::Merge => format!("C merges its late write, and holds {}", shown(after.members[2])),
            Action::Release => {
                format!("an entry of the log ends the waiting; the strong group holds {}", shown(after.strong))
            }
            Action::Clear if before.epoch != 2 => {
                format!("the catalog no longer waits for C; the strong group holds {}", shown(after.strong))
            }
            Action::Clear => "the catalog no longer waits for C".to_owned(),
            Action::Remove => "operator: C is taken out of the namespace".to_owned(),
            Action::Forget => "operator: forget C".to_owned(),
            Action::Switch => format!("STABLE(eventual, e+2) on {}", shown(before.strong)),
            Action::Again => {
                let owed = if after.again { ", without C, which is owed e+2" } else { "" };
                format!("STABLE(strong, e+3) on {}{owed}", shown(after.strong))
            }
            Action::Sync(from, to) => {
                format!("{} sends to {}, which holds {}", node(from), node(to), shown(after.members[usize::from(to)]))
            }
            Action::Collect(at) => format!("{} forgets the tombstone", node(at)),
        }
    }
}
