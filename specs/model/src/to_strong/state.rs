//! What there is, and what can happen.

use crate::set::{Set, node, write};

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State<const N: usize> {
    /// The namespace's entry.
    pub catalog: Catalog<N>,
    /// What a second coordinator read of it before; only without the compare-and-set.
    pub stale: Option<Catalog<N>>,
    /// Whether the operator still wants the switch.
    pub wanted: bool,
    /// The members.
    pub members: [Member; N],
    /// Who is out of reach.
    pub away: Set,
    /// The answer to a pull that is under way.
    pub pull: Option<Pull>,
    /// What the strong group holds, once it has had a leader.
    pub group: Option<Set>,
    /// How many writes clients have made.
    pub written: u8,
    /// The writes that were acknowledged.
    pub acked: Set,
    /// For the properties: of those, the ones that strong reads must see.
    pub must: Set,
    /// For the properties: a member wrote although it was fenced.
    pub behind_fence: bool,
}

/// The namespace's entry in the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Catalog<const N: usize> {
    /// How far the switch is.
    pub phase: Phase,
    /// The attempt, which rises with each new one and with each that is given up.
    pub attempt: u8,
    /// What each member has told that it holds, in this attempt.
    pub acks: [Option<Set>; N],
    /// Whom the operator excluded.
    pub without: Set,
    /// Who is owed late writes.
    pub owed: Set,
}

/// How far the switch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The eventual epoch takes writes.
    Open,
    /// Members are to fence.
    Sealing,
    /// The base set is fixed, and converges.
    Frozen {
        /// The base set.
        base: Set,
    },
    /// The strong epoch is active.
    Strong {
        /// The base set.
        base: Set,
        /// What its members hold.
        content: Set,
    },
}

/// A member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Member {
    /// The writes it holds, durably.
    pub held: Set,
    /// The attempt it is fenced for, 0 if it is not.
    pub fence: u8,
    /// Which epoch it is in, and with what.
    pub place: Place,
    /// Its late writes.
    pub stash: Set,
    /// It has lost its disk, and with it its membership.
    pub wiped: bool,
    /// A frontier read before the fence; only where the two are not one batch.
    pub noted: Option<Set>,
    /// A write admitted and not yet done; only where the two are not one step.
    pub admitted: Option<u8>,
}

/// Which epoch a member is in, and with what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the eventual epoch.
    #[default]
    Old,
    /// In the strong epoch, with an empty log.
    Blank,
    /// In the strong epoch, with the base.
    Based,
}

/// An answer to a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pull {
    /// Who asked.
    pub to: u8,
    /// In which attempt.
    pub attempt: u8,
    /// What it brings.
    pub content: Set,
}

/// A step of a coordinator: a function of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Start an attempt.
    Begin,
    /// Fix the base set.
    Freeze,
    /// Make the strong epoch active, with what is frozen.
    Activate,
    /// The same with a set that was never frozen.
    ActivateWith(Set),
    /// Start the next attempt, without lifting the fences between.
    Restart,
    /// Give the attempt up and lift its fences.
    GiveUp,
}

/// What can happen. Numbers are members, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A client's write arrives and takes effect.
    Write(u8),
    /// It arrives; it takes effect later.
    Admit(u8),
    /// What was admitted takes effect.
    Effect(u8),
    /// The first sends what it holds to the second.
    Push(u8, u8),
    /// A write (by number) is acknowledged.
    Acknowledge(u8),
    /// A member reads its frontier and has not yet fenced.
    Note(u8),
    /// A member looks at the catalog and does what it says.
    Follow(u8),
    /// A member lifts the fence of an older attempt.
    Lift(u8),
    /// A member's seal acknowledgement reaches the catalog.
    Ack(u8),
    /// The first asks the second for what it lacks.
    Fetch(u8, u8),
    /// The answer under way arrives.
    Deliver,
    /// The answer under way does not arrive.
    Lose,
    /// A member tells the catalog what it holds by now.
    Report(u8),
    /// A coordinator's step.
    Step(Step),
    /// The second coordinator reads the entry.
    Look,
    /// It writes what follows from what it read.
    Blind(Step),
    /// The operator gives the switch up.
    Abort,
    /// The operator goes on without a member.
    Exclude(u8),
    /// The operator waits no longer for a member's late writes.
    Forget(u8),
    /// A member is cut off.
    GoAway(u8),
    /// It is back.
    Return(u8),
    /// A member starts again from its disk.
    Crash(u8),
    /// A member starts again, with a view of the catalog from before it fenced, and lifts its fence.
    LookBack(u8),
    /// A member loses its disk.
    Wipe(u8),
    /// A member becomes the strong group's first leader.
    Elect(u8),
    /// A member gets the base, or what is behind it, from the group.
    Install(u8),
    /// A member's late writes are committed.
    Offer(u8),
    /// The catalog no longer waits for a member.
    Paid(u8),
}

impl Action {
    /// Whether it is a fault, a repair or a person: nothing that a promise may count on.
    #[must_use]
    pub fn is_of_luck(&self) -> bool {
        use Action::{Abort, Crash, Exclude, Forget, GoAway, LookBack, Return, Wipe};
        matches!(self, Abort | Crash(_) | Exclude(_) | Forget(_) | GoAway(_) | LookBack(_) | Return(_) | Wipe(_))
    }
}

impl Member {
    /// Everything that is on its disk.
    #[must_use]
    pub fn all(&self) -> Set {
        self.held.or(self.stash)
    }
}

impl Step {
    /// The step in words, and the entry after it.
    pub(super) fn tell<const N: usize>(self, after: &Catalog<N>) -> String {
        match (self, after.phase) {
            (_, Phase::Frozen { base }) => format!("the base set is {}", base.named(node)),
            (_, Phase::Strong { base, content }) => {
                format!("STABLE(strong, e+1), base set {}, base {}", base.named(node), content.named(write))
            }
            (Step::Restart, _) => "SEALING(e), the next attempt".to_owned(),
            (_, Phase::Sealing) => "SEALING(e)".to_owned(),
            (_, Phase::Open) => "STABLE(eventual, e): the attempt is given up".to_owned(),
        }
    }
}

impl<const N: usize> State<N> {
    pub(super) fn new() -> State<N> {
        State {
            catalog: Catalog {
                phase: Phase::Open,
                attempt: 0,
                acks: [None; N],
                without: Set::EMPTY,
                owed: Set::EMPTY,
            },
            stale: None,
            wanted: true,
            members: [Member::default(); N],
            away: Set::EMPTY,
            pull: None,
            group: None,
            written: 0,
            acked: Set::EMPTY,
            must: Set::EMPTY,
            behind_fence: false,
        }
    }

    /// The members that have their disk.
    pub(super) fn live(&self) -> impl Iterator<Item = (u8, &Member)> {
        (0u8..).zip(&self.members).filter(|(_, member)| !member.wiped)
    }

    /// Renumbers the attempts in their order, so that what differs only in how many there were is one state.
    pub(super) fn settle(&mut self) {
        let mut used = Set::of(0).or(Set::of(self.catalog.attempt));
        self.each_attempt(|attempt| used = used.or(Set::of(*attempt)));
        let rank = |attempt: u8| used.and(Set::below(attempt)).len();
        self.catalog.attempt = rank(self.catalog.attempt);
        self.each_attempt(|attempt| *attempt = rank(*attempt));
    }

    fn each_attempt(&mut self, mut visit: impl FnMut(&mut u8)) {
        self.members.iter_mut().for_each(|member| visit(&mut member.fence));
        self.pull.iter_mut().for_each(|pull| visit(&mut pull.attempt));
        self.stale.iter_mut().for_each(|stale| visit(&mut stale.attempt));
    }
}
