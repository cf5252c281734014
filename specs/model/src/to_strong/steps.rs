//! When each step is possible, and what it does.

use super::{Action, Catalog, Member, Phase, Place, Pull, State, Step, ToStrong};
use crate::rules::Rule;
use crate::set::Set;

impl<const N: usize> Catalog<N> {
    /// Who has told what it holds.
    pub(super) fn told(&self) -> Set {
        (0u8..).zip(&self.acks).filter(|(_, ack)| ack.is_some()).map(|(at, _)| at).collect()
    }

    /// What all of `base` hold, if that is the same.
    fn agreed(&self, base: Set) -> Option<Set> {
        let mut told = base.iter().map(|at| self.acks[usize::from(at)]);
        let first = told.next()??;
        told.all(|ack| ack == Some(first)).then_some(first)
    }

    /// The entry after a step, if that step follows from it.
    #[must_use]
    pub fn after(&self, step: Step, model: &ToStrong<N>) -> Option<Catalog<N>> {
        let keep = |rule| model.rules.keep(rule);
        let mut next = *self;
        let strong = |base: Set| Some(Phase::Strong { base, content: self.agreed(base)? });
        next.phase = match (step, self.phase) {
            (Step::Begin, Phase::Open) | (Step::Restart, Phase::Sealing | Phase::Frozen { .. }) => Phase::Sealing,
            (Step::GiveUp, Phase::Sealing | Phase::Frozen { .. }) => Phase::Open,
            (Step::Freeze, Phase::Sealing) if keep(Rule::BaseFrozen) && model.enough(self.told(), self.without) => {
                Phase::Frozen { base: self.told() }
            }
            (Step::Activate, Phase::Frozen { base }) => strong(base)?,
            (Step::ActivateWith(base), Phase::Sealing) if model.enough(base, self.without) => strong(base)?,
            _ => return None,
        };
        match next.phase {
            Phase::Sealing | Phase::Open => {
                next.attempt += 1;
                if keep(Rule::AcksOfAttempt) {
                    next.acks = [None; N];
                }
            }
            Phase::Strong { base, .. } => {
                next.acks = [None; N];
                next.owed = Set::below(N as u8).minus(base);
            }
            Phase::Frozen { .. } => {}
        }
        Some(next)
    }
}

impl<const N: usize> ToStrong<N> {
    fn keep(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    /// Rule 1.
    pub(super) fn enough(&self, acks: Set, without: Set) -> bool {
        let members = N as u8;
        let counted = if self.keep(Rule::WithoutKeepsCount) { acks.len() } else { acks.or(without).len() };
        let copies = counted > members - self.copies || acks.covers(Set::below(members).minus(without));
        (copies || !self.keep(Rule::EnoughForCopies))
            && (acks.len() >= Self::MAJORITY || !self.keep(Rule::EnoughForMajority))
            && !acks.is_empty()
    }

    /// Whether a member is there to do anything.
    fn acts(&self, state: &State<N>, at: u8) -> bool {
        let no_member = state.members[usize::from(at)].wiped && self.keep(Rule::Incarnation);
        !no_member && !state.away.has(at)
    }

    pub(super) fn enabled(&self, state: &State<N>, actions: &mut Vec<Action>) {
        // Whatever is proposed here and is not possible, `apply` refuses.
        for at in 0..N as u8 {
            if self.acts(state, at) {
                use Action::{Ack, Admit, Effect, Elect, Follow, Install, Lift, Note, Offer, Paid, Report, Write};
                let of = [Write, Admit, Effect, Note, Follow, Lift, Ack, Report, Elect, Install, Offer, Paid];
                actions.extend(of.map(|action| action(at)));
                let others = (0..N as u8).filter(|other| *other != at && self.acts(state, *other));
                actions.extend(others.flat_map(|other| [Action::Push(at, other), Action::Fetch(at, other)]));
                if !self.keep(Rule::FenceDurable) {
                    actions.push(Action::Crash(at));
                }
                if !self.keep(Rule::LiftByNewer) {
                    actions.push(Action::LookBack(at));
                }
            }
            actions.extend(
                [Action::Wipe, Action::Exclude, Action::Forget, Action::GoAway, Action::Return].map(|of| of(at)),
            );
        }
        actions.extend((0..state.written).map(Action::Acknowledge));
        actions.extend([Action::Deliver, Action::Lose, Action::Abort]);
        let mut steps = vec![Step::Begin, Step::Freeze, Step::Activate, Step::Restart, Step::GiveUp];
        if !self.keep(Rule::BaseFrozen) {
            steps.extend(
                (1u8..1 << N).map(|bits| Step::ActivateWith((0..8).filter(|at| bits & (1 << at) != 0).collect())),
            );
        }
        actions.extend(steps.iter().copied().map(Action::Step));
        if !self.keep(Rule::Cas) {
            actions.push(Action::Look);
            actions.extend(steps.into_iter().map(Action::Blind));
        }
    }

    /// Does it, or says that it is not possible.
    pub(super) fn apply(&self, state: &mut State<N>, action: &Action) -> Option<()> {
        match *action {
            Action::Write(_) | Action::Admit(_) | Action::Effect(_) | Action::Push(..) | Action::Acknowledge(_) => {
                self.client(state, action)
            }
            Action::Follow(at) => self.follow(state, at),
            Action::Note(_) | Action::Lift(_) | Action::Ack(_) | Action::Report(_) => self.seal(state, action),
            Action::Fetch(..) | Action::Deliver | Action::Lose => self.pull(state, action),
            Action::Elect(_) | Action::Install(_) | Action::Offer(_) | Action::Paid(_) => self.strong(state, action),
            Action::Look => {
                let new = state.stale != Some(state.catalog);
                state.stale = Some(state.catalog);
                new.then_some(())
            }
            Action::Blind(step) => {
                let next = state.stale.take()?.after(step, self)?;
                self.write_entry(state, next);
                Some(())
            }
            Action::Step(step) => {
                self.may_step(state, step).then_some(())?;
                let next = state.catalog.after(step, self)?;
                self.write_entry(state, next);
                Some(())
            }
            _ => self.luck(state, action),
        }
    }

    /// What a step depends on beside the entry: the operator's wish, and who can be reached.
    fn may_step(&self, state: &State<N>, step: Step) -> bool {
        let here: Set = state.live().map(|(at, _)| at).filter(|at| !state.away.has(*at)).collect();
        match step {
            Step::Begin => {
                state.wanted
                    && (!self.keep(Rule::BeginWhenReachable) || self.enough(here, state.catalog.without))
                    && (self.attempts || state.catalog.attempt == 0)
            }
            Step::GiveUp => self.attempts && (!state.wanted || self.keep(Rule::WritesGoOn)),
            Step::Restart => self.attempts && state.wanted && self.keep(Rule::RestartAtOnce),
            _ => true,
        }
    }

    fn write_entry(&self, state: &mut State<N>, next: Catalog<N>) {
        if matches!(next.phase, Phase::Strong { .. }) && !matches!(state.catalog.phase, Phase::Strong { .. }) {
            let kept = state.live().filter(|(at, _)| !next.without.has(*at));
            let kept = kept.fold(Set::EMPTY, |all, (_, member)| all.or(member.held));
            state.must = state.acked.and(kept);
        }
        state.catalog = next;
    }

    fn client(&self, state: &mut State<N>, action: &Action) -> Option<()> {
        match *action {
            Action::Write(at) => {
                let member = &mut state.members[usize::from(at)];
                (member.open() && state.written < self.writes).then_some(())?;
                member.held = member.held.or(Set::of(state.written));
                if self.copies == 1 {
                    state.acked = state.acked.or(Set::of(state.written));
                }
                state.written += 1;
            }
            Action::Admit(at) => {
                let member = &mut state.members[usize::from(at)];
                let may = !self.keep(Rule::EpochAtReplica) && member.open() && state.written < self.writes;
                (may && member.admitted.is_none()).then_some(())?;
                member.admitted = Some(state.written);
                state.written += 1;
            }
            Action::Effect(at) => {
                let member = &mut state.members[usize::from(at)];
                let item = Set::of(member.admitted.take()?);
                state.behind_fence |= !member.open();
                member.held = member.held.or(item);
                if self.copies == 1 {
                    state.acked = state.acked.or(item);
                }
            }
            Action::Push(from, to) => {
                let content = state.members[usize::from(from)];
                let member = &mut state.members[usize::from(to)];
                let takes = member.open() || (member.place == Place::Old && !self.keep(Rule::FenceRefusesCopies));
                (takes && content.place == Place::Old && !member.held.covers(content.held)).then_some(())?;
                member.held = member.held.or(content.held);
            }
            Action::Acknowledge(item) => {
                let holders = state.live().filter(|(_, member)| member.all().has(item)).count();
                (holders >= usize::from(self.copies) && !state.acked.has(item)).then_some(())?;
                state.acked = state.acked.or(Set::of(item));
            }
            _ => return None,
        }
        Some(())
    }

    /// A member looks at the catalog and does what it says.
    fn follow(&self, state: &mut State<N>, at: u8) -> Option<()> {
        let catalog = state.catalog;
        let member = &mut state.members[usize::from(at)];
        (member.place == Place::Old).then_some(())?;
        match catalog.phase {
            Phase::Open if member.fence > 0 => {
                (member.fence, member.noted) = (0, None);
            }
            Phase::Sealing if member.fence < catalog.attempt => {
                // A frontier that is not read with the fence was read before it.
                (self.keep(Rule::FenceReadsFrontier) || member.noted.is_some()).then_some(())?;
                // Without the rule, a member that is fenced already leaves it at that.
                (self.keep(Rule::FenceAgain) || member.fence == 0).then_some(())?;
                member.fence = catalog.attempt;
            }
            Phase::Strong { base, .. } if base.has(at) => {
                *member = Member { place: Place::Based, held: member.held, wiped: member.wiped, ..Member::default() };
            }
            Phase::Strong { content, .. } => {
                let stash = member.held.minus(content);
                *member = Member { place: Place::Blank, stash, wiped: member.wiped, ..Member::default() };
            }
            _ => return None,
        }
        Some(())
    }

    fn seal(&self, state: &mut State<N>, action: &Action) -> Option<()> {
        let catalog = &mut state.catalog;
        match *action {
            Action::Note(at) => {
                let member = &mut state.members[usize::from(at)];
                let may = !self.keep(Rule::FenceReadsFrontier) && catalog.phase == Phase::Sealing;
                (may && member.open() && member.noted != Some(member.held)).then_some(())?;
                member.noted = Some(member.held);
            }
            Action::Lift(at) => {
                let member = &mut state.members[usize::from(at)];
                let may = !self.keep(Rule::FenceAgain) && catalog.phase == Phase::Sealing;
                (may && member.fence > 0 && member.fence < catalog.attempt).then_some(())?;
                member.fence = 0;
            }
            Action::Ack(at) => {
                let member = &state.members[usize::from(at)];
                let fenced = member.fence == catalog.attempt || (member.fence > 0 && !self.keep(Rule::FenceAgain));
                let ack = &mut catalog.acks[usize::from(at)];
                (catalog.phase == Phase::Sealing && fenced && ack.is_none()).then_some(())?;
                *ack = Some(member.noted.unwrap_or(member.held));
            }
            Action::Report(at) => {
                let member = &state.members[usize::from(at)];
                let ack = &mut catalog.acks[usize::from(at)];
                let of_base = match catalog.phase {
                    Phase::Frozen { base } => base.has(at),
                    Phase::Sealing => !self.keep(Rule::BaseFrozen) && ack.is_some(),
                    _ => false,
                };
                (of_base && member.fence == catalog.attempt && *ack != Some(member.held)).then_some(())?;
                *ack = Some(member.held);
            }
            _ => return None,
        }
        Some(())
    }

    fn pull(&self, state: &mut State<N>, action: &Action) -> Option<()> {
        match *action {
            Action::Fetch(to, from) => {
                let (asks, gives) = (state.members[usize::from(to)], state.members[usize::from(from)]);
                let catalog = &state.catalog;
                let allowed = match catalog.phase {
                    Phase::Frozen { base } => base.has(to) && (base.has(from) || !self.keep(Rule::BaseClosed)),
                    Phase::Sealing => {
                        !self.keep(Rule::BaseFrozen) && catalog.told().has(to) && catalog.told().has(from)
                    }
                    _ => false,
                };
                let sealed =
                    asks.fence == catalog.attempt && (gives.fence == catalog.attempt || !self.keep(Rule::BaseClosed));
                (allowed && sealed && state.pull.is_none() && !asks.held.covers(gives.held)).then_some(())?;
                state.pull = Some(Pull { to, attempt: catalog.attempt, content: gives.held });
            }
            Action::Deliver => {
                let pull = state.pull.take()?;
                let member = &mut state.members[usize::from(pull.to)];
                let due = member.fence == pull.attempt || (member.fence > 0 && !self.keep(Rule::PullOfAttempt));
                (due && member.place == Place::Old && !state.away.has(pull.to) && !member.wiped).then_some(())?;
                member.held = member.held.or(pull.content);
            }
            Action::Lose => {
                state.pull.take()?;
            }
            _ => return None,
        }
        Some(())
    }

    fn strong(&self, state: &mut State<N>, action: &Action) -> Option<()> {
        match *action {
            Action::Elect(at) => {
                let mine = self.position(state, at)?;
                let votes = state.live().filter(|(other, _)| {
                    !state.away.has(*other) && self.position(state, *other).is_some_and(|theirs| theirs <= mine)
                });
                (votes.count() >= usize::from(Self::MAJORITY) && state.group.is_none()).then_some(())?;
                let held = state.members[usize::from(at)].held;
                state.group = Some(if mine > 0 { held } else { Set::EMPTY });
            }
            Action::Install(at) => {
                let member = &mut state.members[usize::from(at)];
                (member.place == Place::Blank).then_some(())?;
                (member.held, member.place) = (state.group?, Place::Based);
            }
            Action::Offer(at) => {
                let member = &mut state.members[usize::from(at)];
                (member.place == Place::Based && !member.stash.is_empty()).then_some(())?;
                state.group = Some(state.group?.or(member.stash));
                member.stash = Set::EMPTY;
            }
            Action::Paid(at) => {
                let member = &state.members[usize::from(at)];
                let paid = member.place == Place::Based && member.stash.is_empty();
                (paid && state.catalog.owed.has(at)).then_some(())?;
                state.catalog.owed = state.catalog.owed.minus(Set::of(at));
            }
            _ => return None,
        }
        Some(())
    }

    /// Where a member's log of the strong group ends, if it has one.
    fn position(&self, state: &State<N>, at: u8) -> Option<u8> {
        let member = &state.members[usize::from(at)];
        match member.place {
            Place::Based => Some(1),
            Place::Blank => Some(0),
            Place::Old => {
                let knows =
                    matches!(state.catalog.phase, Phase::Frozen { .. }) && member.fence == state.catalog.attempt;
                (knows && !self.keep(Rule::ElectAfterActivation)).then_some(0)
            }
        }
    }

    fn luck(&self, state: &mut State<N>, action: &Action) -> Option<()> {
        let active = matches!(state.catalog.phase, Phase::Strong { .. });
        match *action {
            Action::Abort => {
                (self.attempts && state.wanted && !active).then_some(())?;
                state.wanted = false;
            }
            Action::Exclude(at) => {
                (self.excludable.has(at) && !active && !state.catalog.without.has(at)).then_some(())?;
                state.catalog.without = state.catalog.without.or(Set::of(at));
            }
            Action::Forget(at) => {
                (state.catalog.owed.has(at) && state.members[usize::from(at)].wiped).then_some(())?;
                state.catalog.owed = state.catalog.owed.minus(Set::of(at));
            }
            Action::GoAway(at) => {
                (state.away.len() < self.absences && !state.away.has(at)).then_some(())?;
                state.away = state.away.or(Set::of(at));
            }
            Action::Return(at) => {
                state.away.has(at).then_some(())?;
                state.away = state.away.minus(Set::of(at));
            }
            Action::Crash(at) | Action::LookBack(at) => {
                let member = &mut state.members[usize::from(at)];
                (member.place == Place::Old && member.fence > 0).then_some(())?;
                member.fence = 0;
            }
            Action::Wipe(at) => {
                let lost = state.members.iter().filter(|member| member.wiped).count();
                let member = &mut state.members[usize::from(at)];
                // One that is taken for a member all the same is looked at until the activation only.
                let looked_at = self.keep(Rule::Incarnation) || !active;
                (lost < usize::from(self.wipes) && !member.wiped && looked_at).then_some(())?;
                *member = Member { wiped: true, ..Member::default() };
            }
            _ => return None,
        }
        Some(())
    }
}

impl Member {
    /// Whether it takes writes of the eventual epoch.
    pub(super) fn open(&self) -> bool {
        self.place == Place::Old && self.fence == 0
    }
}
