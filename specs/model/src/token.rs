//! Tokens and cursors over a switch: what a session was promised, and a scan that is in progress.
//!
//! A client wrote x through C in epoch e (eventual) and has a token that says so. Then the namespace becomes strong, with a
//! base that holds x or, if C was left out, does not; C's late write may follow. C itself may not know yet, and still be
//! in epoch e. The client reads, writes again, and scans two pages, wherever it likes. Once the namespace is eventual again it
//! writes y, and holds a token of that too, beside the one it had.

use stateright::{Model, Property};

use crate::explore::{Ending, Protocol};
use crate::rules::{Rule, Rules};

/// The model.
#[derive(Clone, Debug)]
pub struct Token {
    /// The rules kept.
    pub rules: Rules,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// 0, eventual; 1, strong; 2, eventual again.
    pub epoch: u8,
    /// The base of epoch 1 will hold, or holds, x.
    pub base_covers: bool,
    /// C's late write was merged.
    pub merged: bool,
    /// C knows of epoch 1.
    pub follows: bool,
    /// The epoch that the client's token is of.
    pub token: u8,
    /// A read with the token was answered, and showed x.
    pub read: Option<bool>,
    /// A write with a token was acknowledged, in an epoch not before the token's.
    pub wrote: Option<bool>,
    /// The epoch of the first page.
    pub page: Option<u8>,
    /// The scan is over: it was of one epoch, or its client was told.
    pub scanned: Option<bool>,
    /// The client has written y in epoch 2, at another member than F, and has a token that says so.
    pub wrote_y: bool,
    /// F has y.
    pub reached_f: bool,
    /// The client's read at F was answered, and showed y.
    pub read_at_f: Option<bool>,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The switch.
    Switch,
    /// The namespace becomes eventual again.
    SwitchBack,
    /// C learns of it.
    Follow,
    /// C's late write is merged.
    Merge,
    /// The client reads after the switch, with its token, and is answered if the token is satisfied.
    Read,
    /// The client gets a token of epoch 1.
    See,
    /// The client writes at C, with its token.
    WriteAtC,
    /// The first page of a scan.
    Page,
    /// The second page.
    NextPage,
    /// The client writes y.
    WriteY,
    /// F gets y.
    ReachF,
    /// The client reads at F, with the tokens that it shows, and is answered if they are satisfied.
    ReadAtF,
}

/// Of reads.
pub const SEES: &str = "a read with a token sees what the token saw";
/// Of writes and reads of one client.
pub const OWN: &str = "a session sees what it has written";
/// Of writes.
pub const ABOVE: &str = "a write is newer than what its client has seen";
/// Of scans.
pub const ONE_EPOCH: &str = "a scan is of one epoch, or says that it is not";
/// From everywhere.
pub const GOES_ON: &str = "a session can go on after a switch";

impl Token {
    fn keep(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    /// Rule 10: whether epoch 1 satisfies the token.
    fn satisfied(&self, state: &State) -> bool {
        let late = state.merged && self.keep(Rule::TokenCountsLate);
        state.token == 1 || state.base_covers || late || !self.keep(Rule::TokenOfEpoch)
    }

    /// Whether F serves the client's read in epoch 2: its base is what epoch 1 had, so it satisfies the earlier token as
    /// that does.
    fn served_at_f(&self, state: &State) -> bool {
        self.satisfied(state) && (state.reached_f || !self.keep(Rule::ShowsAll))
    }
}

impl Model for Token {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let state = |base_covers| State {
            epoch: 0,
            base_covers,
            merged: false,
            follows: false,
            token: 0,
            read: None,
            wrote: None,
            page: None,
            scanned: None,
            wrote_y: false,
            reached_f: false,
            read_at_f: None,
        };
        vec![state(true), state(false)]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        use Action::{
            Follow, Merge, NextPage, Page, ReachF, Read, ReadAtF, See, Switch, SwitchBack, WriteAtC, WriteY,
        };
        actions.extend([Switch, SwitchBack, Follow, Merge, Read, See, WriteAtC, Page, NextPage]);
        actions.extend([WriteY, ReachF, ReadAtF]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Switch => {
                (state.epoch == 0).then_some(())?;
                state.epoch = 1;
            }
            Action::SwitchBack => {
                (state.epoch == 1).then_some(())?;
                state.epoch = 2;
            }
            Action::Follow => {
                (state.epoch >= 1).then_some(())?;
                state.follows = true;
            }
            Action::Merge => {
                (state.follows && !state.base_covers).then_some(())?;
                state.merged = true;
            }
            Action::Read => {
                (state.epoch >= 1 && state.read.is_none() && self.satisfied(&state)).then_some(())?;
                // A token of epoch 1 that was got without x promises nothing of x.
                state.read = Some(state.base_covers || state.merged || state.token == 1);
            }
            Action::See => {
                (state.epoch == 1 && state.token == 0 && self.satisfied(&state)).then_some(())?;
                state.token = 1;
            }
            Action::WriteAtC => {
                (state.wrote.is_none()).then_some(())?;
                let epoch = u8::from(state.follows);
                (epoch >= state.token || !self.keep(Rule::TokenOfEpoch)).then_some(())?;
                state.wrote = Some(epoch >= state.token);
            }
            Action::Page => {
                (state.page.is_none()).then_some(())?;
                state.page = Some(state.epoch);
            }
            Action::NextPage => {
                let page = state.page.filter(|_| state.scanned.is_none())?;
                // `EpochChanged` tells the client, which goes on behind its last key.
                state.scanned = Some(page == state.epoch || self.keep(Rule::CursorOfEpoch));
            }
            Action::WriteY => {
                (state.epoch == 2).then_some(())?;
                state.wrote_y = true;
            }
            Action::ReachF => {
                state.wrote_y.then_some(())?;
                state.reached_f = true;
            }
            Action::ReadAtF => {
                (state.wrote_y && state.read_at_f.is_none() && self.served_at_f(&state)).then_some(())?;
                state.read_at_f = Some(state.reached_f);
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SEES, |_, state: &State| state.read != Some(false)),
            Property::always(OWN, |_, state: &State| state.read_at_f != Some(false)),
            Property::always(ABOVE, |_, state: &State| state.wrote != Some(false)),
            Property::always(ONE_EPOCH, |_, state: &State| state.scanned != Some(false)),
            Property::sometimes("a token is satisfied by a late write", |_, state: &State| {
                state.read == Some(true) && state.merged && state.token == 0
            }),
        ]
    }
}

impl Protocol for Token {
    fn endings(&self) -> Vec<Ending<Self>> {
        vec![Ending { name: GOES_ON, reached: |_, state| state.read.is_some(), by: |_, _| true }]
    }

    fn tell(&self, _: &State, action: &Action, after: &State) -> String {
        let base = if after.base_covers { "with x" } else { "without x, which C alone has" };
        match action {
            Action::Switch => format!("STABLE(strong, e+1), on a base {base}"),
            Action::SwitchBack => "STABLE(eventual, e+2)".to_owned(),
            Action::Follow => "C learns of e+1".to_owned(),
            Action::Merge => "C's late write x is committed in e+1".to_owned(),
            Action::Read if after.read == Some(true) => {
                format!("the client reads in e+{}, with its token: x", after.epoch)
            }
            Action::Read => format!("the client reads in e+{}, with the token of its write x: no x", after.epoch),
            Action::See => "the client reads in e+1, and has a token of e+1".to_owned(),
            Action::WriteAtC if after.follows => "the client writes at C, in e+1".to_owned(),
            Action::WriteAtC => {
                format!("the client writes at C, which is in e, with a token of epoch e+{}", after.token)
            }
            Action::Page => "the client gets the first page of a scan".to_owned(),
            Action::NextPage => "the client gets the second page".to_owned(),
            Action::WriteY => "the client writes y in e+2, and has a token of e+2 too".to_owned(),
            Action::ReachF => "F gets y".to_owned(),
            Action::ReadAtF if after.reached_f => "the client reads at F, with its tokens: y".to_owned(),
            Action::ReadAtF => format!(
                "the client reads at F, with its token of {} alone: no y",
                ["e", "e+1"][usize::from(after.token)]
            ),
        }
    }
}
