//! Exactly once over switches: one write, sent again and again while the namespace goes through three epochs.
//!
//! The client never learns more than the answers that reach it, and any of them may be lost. A try is addressed to the
//! epoch that the client knows of; it may be under way while that epoch ends, and is then refused. In strong epochs the
//! table of answers is one thing, replicated; in eventual ones each of two members has what it brought along, and does not
//! add to it. B may be replaced by a new member, which has the records from A.

use stateright::{Model, Property};

use crate::explore::{Ending, Protocol};
use crate::rules::{Rule, Rules};
use crate::set::{Set, node};

/// The model.
#[derive(Clone, Debug)]
pub struct Retry {
    /// How often the client sends its write at most.
    pub tries: u8,
    /// The rules kept.
    pub rules: Rules,
}

/// The last epoch.
const LAST: u8 = 2;

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Whether epochs 0 and 2 are strong, and 1 is eventual; or the other way round.
    pub strong_first: bool,
    /// The epoch.
    pub epoch: u8,
    /// Whose table has the answer; in strong epochs all or none.
    pub table: Set,
    /// The table has forgotten what was known at the time of the first try, and says so.
    pub floor: bool,
    /// B was replaced.
    pub joined: bool,
    /// Tries under way.
    pub flight: Vec<Try>,
    /// Tries so far.
    pub sent: u8,
    /// The epoch of the first.
    pub first: Option<u8>,
    /// A try was sent in an eventual epoch.
    pub eventually: bool,
    /// What the client was told.
    pub answer: Option<Answer>,
    /// For the properties: how often the write took effect.
    pub runs: u8,
    /// For the properties: the answer came out of the table of an earlier epoch.
    pub travelled: bool,
    /// The epoch in which it ran last.
    pub ran_in: u8,
}

/// A try on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Try {
    /// The epoch that it is for.
    pub epoch: u8,
    /// What it says of the tries before it.
    pub before: Before,
}

/// What a try says of the tries before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Before {
    /// There were none.
    None,
    /// They were in strong epochs.
    Strong,
    /// One was in an eventual epoch.
    Eventual,
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It ran.
    Done,
    /// Nobody knows.
    Unknown,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The client sends a try.
    Send,
    /// A try arrives at a member (by number), and the answer reaches the client, or does not.
    Arrive(Try, u8, bool),
    /// A try is lost.
    Lose(Try),
    /// The table forgets.
    Evict,
    /// A new member takes B's place.
    Join,
    /// The next epoch.
    Switch,
}

/// Everywhere.
pub const ONCE: &str = "a retried write runs at most once";
/// Everywhere.
pub const TRUE: &str = "what a client is told to have been done was done";
/// From everywhere.
pub const ANSWERED: &str = "every retry can be answered";

impl State {
    fn strong(&self, epoch: u8) -> bool {
        (epoch == 1) != self.strong_first
    }
}

impl Retry {
    fn keep(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    fn send(&self, state: &mut State) -> Option<()> {
        (state.answer.is_none() && state.sent < self.tries).then_some(())?;
        let first_was_strong = state.first.map(|first| state.strong(first));
        let before = match first_was_strong {
            _ if !self.keep(Rule::RetryKeepsEpoch) => Before::None,
            None => Before::None,
            Some(true) if !state.eventually || !self.keep(Rule::RetryRemembersEventual) => Before::Strong,
            _ => Before::Eventual,
        };
        state.sent += 1;
        state.first = state.first.or(Some(state.epoch));
        state.eventually |= !state.strong(state.epoch);
        state.flight.push(Try { epoch: state.epoch, before });
        state.flight.sort_unstable();
        Some(())
    }

    fn arrive(&self, state: &mut State, message: Try, at: u8, heard: bool) -> Option<()> {
        let place = state.flight.iter().position(|other| *other == message)?;
        state.flight.remove(place);
        if message.epoch != state.epoch {
            return Some(());
        }
        let strong = state.strong(state.epoch);
        let answer = if state.table.has(at) {
            state.travelled |= heard && state.ran_in != state.epoch;
            Answer::Done
        } else if state.floor || message.before == Before::Eventual {
            Answer::Unknown
        } else {
            state.runs += 1;
            state.ran_in = state.epoch;
            if strong {
                state.table = Set::below(2);
            }
            Answer::Done
        };
        if heard {
            state.answer = Some(answer);
        }
        Some(())
    }

    fn switch(&self, state: &mut State) -> Option<()> {
        (state.epoch < LAST).then_some(())?;
        state.epoch += 1;
        if !self.keep(Rule::TableInBase) {
            state.table = Set::EMPTY;
        } else if state.strong(state.epoch) && self.keep(Rule::TableInCheck) {
            // The members of the base set come into step first.
            state.table = if state.table.is_empty() { Set::EMPTY } else { Set::below(2) };
        } else if state.strong(state.epoch) {
            // Whoever is elected gives its own to all.
            state.table = if state.table.has(1) { Set::below(2) } else { Set::EMPTY };
        }
        Some(())
    }
}

impl Model for Retry {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let state = |strong_first| State {
            strong_first,
            epoch: 0,
            table: Set::EMPTY,
            floor: false,
            joined: false,
            flight: Vec::new(),
            sent: 0,
            first: None,
            eventually: false,
            answer: None,
            runs: 0,
            travelled: false,
            ran_in: 0,
        };
        vec![state(true), state(false)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, message) in state.flight.iter().enumerate() {
            if state.flight[..index].contains(message) {
                continue;
            }
            let ways = [(0, true), (0, false), (1, true), (1, false)];
            actions.extend(ways.map(|(at, heard)| Action::Arrive(*message, at, heard)));
            actions.push(Action::Lose(*message));
        }
        actions.extend([Action::Send, Action::Evict, Action::Join, Action::Switch]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Send => self.send(&mut state)?,
            Action::Arrive(message, at, heard) => self.arrive(&mut state, message, at, heard)?,
            Action::Lose(message) => {
                let place = state.flight.iter().position(|other| *other == message)?;
                state.flight.remove(place);
            }
            Action::Evict => {
                let may = state.strong(state.epoch) && state.first.is_some() && !state.table.is_empty();
                may.then_some(())?;
                state.table = Set::EMPTY;
                state.floor = self.keep(Rule::TableByPosition);
            }
            Action::Join => {
                (!state.strong(state.epoch) && !state.joined).then_some(())?;
                state.joined = true;
                let brought = self.keep(Rule::TableInCheck) && state.table.has(0);
                state.table = state.table.and(Set::of(0)).or(if brought { Set::of(1) } else { Set::EMPTY });
            }
            Action::Switch => self.switch(&mut state)?,
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONCE, |_, state: &State| state.runs <= 1),
            Property::always(TRUE, |_, state: &State| state.answer != Some(Answer::Done) || state.runs > 0),
            Property::sometimes("an answer travels over a switch", |_, state: &State| state.travelled),
            Property::sometimes("a retry runs in a later epoch than its first try", |_, state: &State| {
                state.runs > 0 && state.first.is_some_and(|first| state.ran_in > first)
            }),
        ]
    }
}

impl Protocol for Retry {
    fn endings(&self) -> Vec<Ending<Self>> {
        vec![Ending {
            name: ANSWERED,
            // A client that has no tries left and no answer has itself to thank.
            reached: |model, state| state.answer.is_some() || state.sent == model.tries,
            by: |_, action| !matches!(action, Action::Lose(_) | Action::Arrive(_, _, false) | Action::Switch),
        }]
    }

    fn tell(&self, before: &State, action: &Action, after: &State) -> String {
        let mode = |epoch: u8| if before.strong(epoch) { "strong" } else { "eventual" };
        let name = |epoch: u8| ["e", "e+1", "e+2"][usize::from(epoch)];
        match *action {
            Action::Send => {
                format!(
                    "the client sends its write for {} ({}), try {}",
                    name(before.epoch),
                    mode(before.epoch),
                    after.sent
                )
            }
            Action::Arrive(message, ..) if message.epoch != before.epoch => {
                format!("a try for {} arrives: refused, it is over", name(message.epoch))
            }
            Action::Arrive(_, at, heard) => {
                let what = match (after.runs > before.runs, after.answer) {
                    (true, _) => "it runs",
                    (_, Some(Answer::Unknown)) => "outcome unknown",
                    _ => "answered without running it",
                };
                format!(
                    "it arrives at {}: {what}; {}",
                    node(at),
                    if heard { "answered" } else { "the answer is lost" }
                )
            }
            Action::Lose(_) => "a try is lost".to_owned(),
            Action::Evict => "the table forgets the answer".to_owned(),
            Action::Join => "a new member takes B's place".to_owned(),
            Action::Switch => format!("STABLE({}, {})", mode(after.epoch), name(after.epoch)),
        }
    }
}
