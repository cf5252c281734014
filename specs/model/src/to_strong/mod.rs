//! From eventual to strong: sealing, freezing, converging, activating, electing, and giving up at any step.
//!
//! What is real here: the namespace's catalog entry as a register that is changed by compare-and-set; the members' disks
//! (writes held, fence, stash); one answer to a pull that may be under way while everything else goes on; members that go
//! away and return, or lose their disk; an operator who aborts or excludes a member; the first election of the strong
//! group, by position, with voters that hold nothing.
//!
//! What is smaller than life, and why that loses nothing:
//!
//! - *A coordinator has no state.* What it does next is a function of the entry ([`Catalog::after`]), and it may do it
//!   only if the entry has not changed since. So a crash, a restart and any number of racing coordinators come to the
//!   same thing as one that does any enabled step at any time. Without [`Cas`](crate::rules::Rule::Cas) the second
//!   coordinator and its old view are there.
//! - *A member's view of the catalog* is what it acted on last. Looking at the catalog late is not looking yet; acting
//!   late on a look is the same as having acted at once, because what a look leads to (fence, lift) reads nothing else.
//!   A pull that was begun on an old look changes a member that has yet to fence again, like a push.
//! - *Attempts* are compared, never calculated with. They are renumbered after every step, in their order, which
//!   makes any number of attempts a finite thing.
//! - *A write is its own key.* Two writes of one key are for [`late`](crate::late) and [`to_eventual`](crate::to_eventual).
//! - *Raft is atomic once it has a leader*; until then only positions count, as in its election restriction.
//!
//! Durations do not exist: "after its bound" is "at any time".

mod state;
mod steps;

use stateright::{Model, Property};

pub use state::{Action, Catalog, Member, Phase, Place, Pull, State, Step};

use crate::explore::{Ending, Protocol};
use crate::rules::Rules;
use crate::set::{Set, node, write};

/// The model, of `N` members.
#[derive(Clone, Debug)]
pub struct ToStrong<const N: usize> {
    /// Members that must hold a write before it is acknowledged.
    pub copies: u8,
    /// Writes that clients make.
    pub writes: u8,
    /// The members that the operator may exclude with `--without`.
    pub excludable: Set,
    /// How many members may be away at once.
    pub absences: u8,
    /// How many disks may be lost; fewer than `copies`.
    pub wipes: u8,
    /// Whether an attempt may be given up, by the operator too.
    pub attempts: bool,
    /// The rules kept.
    pub rules: Rules,
}

/// Three members, a write is acknowledged by one; C may be excluded.
#[must_use]
pub fn one_copy(writes: u8, rules: Rules) -> ToStrong<3> {
    ToStrong { copies: 1, writes, excludable: Set::of(2), absences: 1, wipes: 0, attempts: true, rules }
}

/// Three members, two of which must have a write; a disk may be lost.
#[must_use]
pub fn two_copies(writes: u8, rules: Rules) -> ToStrong<3> {
    ToStrong { copies: 2, writes, excludable: Set::EMPTY, absences: 1, wipes: 1, attempts: true, rules }
}

/// Three members, each of which must have a write.
#[must_use]
pub fn three_copies(writes: u8, rules: Rules) -> ToStrong<3> {
    ToStrong { copies: 3, writes, excludable: Set::EMPTY, absences: 1, wipes: 0, attempts: true, rules }
}

/// Five members, two copies, E may be excluded: the smallest setting in which counting the excluded makes a difference.
#[must_use]
pub fn five_members(rules: Rules) -> ToStrong<5> {
    ToStrong { copies: 2, writes: 1, excludable: Set::of(4), absences: 0, wipes: 0, attempts: false, rules }
}

/// Of the first states with a running strong group.
pub const READS: &str = "strong reads after activation see every write acknowledged before";
/// Everywhere.
pub const LOST: &str = "no acknowledged write is lost";
/// Of the base set.
pub const AGREE: &str = "replicas of a strong epoch agree on the base";
/// Of every member.
pub const FENCED: &str = "no operation takes effect in an epoch that is sealed at the replica";
/// Of every member.
pub const EPOCHS: &str =
    "once the next epoch is active, only members that the catalog waits for take writes of the old one";
/// From everywhere.
pub const FINISH: &str = "every switch can finish";
/// From everywhere, without anybody's return.
pub const GO_ON: &str = "while a needed member is away, writes go on";

impl<const N: usize> ToStrong<N> {
    /// More than half of the members.
    pub(crate) const MAJORITY: u8 = (N / 2 + 1) as u8;

    /// The strong epoch's content, if it is active: what its group holds, or will start with.
    fn visible(state: &State<N>) -> Option<Set> {
        match state.catalog.phase {
            Phase::Strong { content, .. } => Some(state.group.unwrap_or(content)),
            _ => None,
        }
    }

    /// What the members the catalog waits for still have.
    fn owed(state: &State<N>) -> Set {
        state.live().filter(|(at, _)| state.catalog.owed.has(*at)).fold(Set::EMPTY, |all, (_, m)| all.or(m.all()))
    }

    fn nothing_lost(&self, state: &State<N>) -> bool {
        let found = match Self::visible(state) {
            Some(visible) => visible.or(Self::owed(state)),
            None => state.live().fold(Set::EMPTY, |all, (_, member)| all.or(member.all())),
        };
        found.covers(state.acked)
    }

    fn base_agrees(&self, state: &State<N>) -> bool {
        let Phase::Strong { base, content } = state.catalog.phase else { return true };
        state.live().all(|(at, member)| !base.has(at) || member.held == content)
    }

    fn finished(&self, state: &State<N>) -> bool {
        match state.catalog.phase {
            Phase::Open => !state.wanted && state.live().all(|(_, member)| member.fence == 0),
            Phase::Strong { .. } => {
                state.group.is_some()
                    && state.catalog.owed.is_empty()
                    && state.live().all(|(_, member)| member.place == Place::Based)
            }
            _ => false,
        }
    }

    /// Some write is taken by somebody who is here, or too few are here for a strong namespace.
    fn takes_writes(&self, state: &State<N>) -> bool {
        let here = || state.live().filter(|(at, _)| !state.away.has(*at));
        match state.catalog.phase {
            Phase::Strong { .. } => state.group.is_some() || here().count() < usize::from(Self::MAJORITY),
            _ => here().any(|(_, member)| member.fence == 0),
        }
    }
}

impl<const N: usize> Model for ToStrong<N> {
    type State = State<N>;
    type Action = Action;

    fn init_states(&self) -> Vec<State<N>> {
        vec![State::new()]
    }

    fn actions(&self, state: &State<N>, actions: &mut Vec<Action>) {
        self.enabled(state, actions);
    }

    fn next_state(&self, last: &State<N>, action: Action) -> Option<State<N>> {
        let mut state = last.clone();
        self.apply(&mut state, &action)?;
        state.settle();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(READS, |_, state: &State<N>| {
                Self::visible(state).is_none_or(|visible| visible.covers(state.must))
            }),
            Property::always(LOST, Self::nothing_lost),
            Property::always(AGREE, Self::base_agrees),
            Property::always(EPOCHS, |_, state: &State<N>| {
                let stray = |at: u8, member: &Member| member.open() && !state.catalog.owed.has(at);
                Self::visible(state).is_none() || !state.live().any(|(at, member)| stray(at, member))
            }),
            Property::always(FENCED, |_, state: &State<N>| !state.behind_fence),
            Property::sometimes("a switch ends with a running group", |_, state: &State<N>| state.group.is_some()),
        ]
    }
}

impl<const N: usize> Protocol for ToStrong<N> {
    fn endings(&self) -> Vec<Ending<Self>> {
        vec![
            Ending { name: FINISH, reached: Self::finished, by: |_, _| true },
            Ending { name: GO_ON, reached: Self::takes_writes, by: |_, action| !action.is_of_luck() },
        ]
    }

    fn tell(&self, before: &State<N>, action: &Action, after: &State<N>) -> String {
        let held = |at: u8| after.members[usize::from(at)].held.named(write);
        match *action {
            Action::Write(at) if self.copies == 1 => {
                format!("{} takes {}, syncs it, acknowledges it", node(at), write(before.written))
            }
            Action::Write(at) => format!("{} takes {} and syncs it", node(at), write(before.written)),
            Action::Admit(at) => {
                format!("{} checks the epoch for {}, and has not yet written it", node(at), write(before.written))
            }
            Action::Effect(at) => format!("{} writes it, fenced by now: {}", node(at), held(at)),
            Action::Push(from, to) => format!("{} pushes to {}, which syncs: {}", node(from), node(to), held(to)),
            Action::Acknowledge(item) => format!("{} is acknowledged: enough copies", write(item)),
            Action::Note(at) => format!("{} reads its frontier: {}", node(at), held(at)),
            Action::Follow(at) => self.tell_follow(at, after),
            Action::Lift(at) => format!("{} sees the newer attempt and lifts its fence", node(at)),
            Action::Ack(at) => format!(
                "{} acknowledges the seal: {}",
                node(at),
                after.catalog.acks[usize::from(at)].unwrap_or_default().named(write)
            ),
            Action::Fetch(to, from) => {
                format!("{} asks {} for what it lacks; the answer is under way", node(to), node(from))
            }
            Action::Deliver => {
                let to = before.pull.map_or(0, |pull| pull.to);
                format!("the answer reaches {}, which now holds {}", node(to), held(to))
            }
            Action::Lose => "the answer is lost".to_owned(),
            Action::Report(at) => format!("{} reports {}", node(at), held(at)),
            Action::Step(step) => format!("coordinator: {}", step.tell(&after.catalog)),
            Action::Look => "a second coordinator reads the entry, and is slow".to_owned(),
            Action::Blind(step) => {
                format!("the second coordinator, from what it read: {}", step.tell(&after.catalog))
            }
            Action::Abort => "operator: --abort".to_owned(),
            Action::Exclude(at) => format!("operator: --without {}", node(at)),
            Action::Forget(at) => format!("operator: forget {}", node(at)),
            Action::GoAway(at) => format!("{} is cut off", node(at)),
            Action::Return(at) => format!("{} is back", node(at)),
            Action::Crash(at) => format!("{} crashes and starts again, its fence forgotten", node(at)),
            Action::LookBack(at) => {
                format!("{} crashes, sees the catalog as it was before it fenced, and lifts its fence", node(at))
            }
            Action::Wipe(at) => format!("{} loses its disk", node(at)),
            Action::Elect(at) => {
                format!(
                    "{} is elected; the strong group holds {}",
                    node(at),
                    after.group.unwrap_or_default().named(write)
                )
            }
            Action::Install(at) => format!("{} installs {}", node(at), held(at)),
            Action::Offer(at) => {
                format!(
                    "{} offers its late writes: the group holds {}",
                    node(at),
                    after.group.unwrap_or_default().named(write)
                )
            }
            Action::Paid(at) => format!("{} owes nothing any more", node(at)),
        }
    }
}

impl<const N: usize> ToStrong<N> {
    fn tell_follow(&self, at: u8, after: &State<N>) -> String {
        let member = &after.members[usize::from(at)];
        match member.place {
            Place::Based => format!("{} sees the activation: {} is its base", node(at), member.held.named(write)),
            Place::Blank => {
                format!("{} fences itself, stashes {}, starts with nothing", node(at), member.stash.named(write))
            }
            Place::Old if member.fence == 0 => format!("{} lifts its fence", node(at)),
            Place::Old => format!("{} fences, holding {}", node(at), member.held.named(write)),
        }
    }
}
