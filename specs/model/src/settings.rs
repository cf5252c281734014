//! The settings that are explored, and what becomes of each when a rule is taken out.

use std::fmt::Debug;
use std::hash::Hash;

use crate::explore::{self, Protocol, Verdict};
use crate::late::{self, Late};
use crate::retry::{self, Retry};
use crate::rules::{Rule, Rules};
use crate::to_eventual::{self, ToEventual};
use crate::to_strong;
use crate::token::{self, Token};

/// A model with its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Eventual to strong: three members, one copy, C may be excluded.
    OneCopy,
    /// Eventual to strong: three members, two copies, a disk may be lost.
    TwoCopies,
    /// Eventual to strong: three members, three copies.
    ThreeCopies,
    /// Eventual to strong: five members, two copies, E may be excluded, one attempt.
    FiveMembers,
    /// Strong to eventual.
    ToEventual,
    /// Late writes and tombstones.
    Late,
    /// Exactly once.
    Retry,
    /// Tokens and cursors.
    Token,
}

/// How much is explored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// What continuous integration has time for.
    Small,
    /// What `make model` explores.
    Whole,
}

impl Setting {
    /// All of them.
    pub const ALL: &[Setting] = &[
        Setting::OneCopy,
        Setting::TwoCopies,
        Setting::ThreeCopies,
        Setting::FiveMembers,
        Setting::ToEventual,
        Setting::Late,
        Setting::Retry,
        Setting::Token,
    ];

    /// Explores it with these rules.
    #[must_use]
    pub fn check(self, size: Size, rules: Rules, threads: usize) -> Verdict {
        self.ask(size, rules, Check { threads })
    }

    /// Looks for a counterexample to one property when a rule is taken out, and tells it, a line a step.
    #[must_use]
    pub fn hunt(self, without: Rule, property: &str) -> Option<Vec<String>> {
        self.ask(Size::Small, Rules::without(without), Hunt { property })
    }

    /// The same as text, indented, with the property that breaks as its last line.
    #[must_use]
    pub fn timeline(self, without: Rule, property: &str) -> Option<String> {
        let mut lines = self.hunt(without, property)?;
        lines.push(format!("broken: {property}"));
        Some(lines.iter().map(|line| format!("    {line}\n")).collect())
    }

    fn ask<Q: Question>(self, size: Size, rules: Rules, question: Q) -> Q::Answer {
        let of = |small: u8, whole: u8| if size == Size::Small { small } else { whole };
        match self {
            Setting::OneCopy => question.of(&to_strong::one_copy(of(1, 2), rules)),
            Setting::TwoCopies => question.of(&to_strong::two_copies(of(1, 2), rules)),
            Setting::ThreeCopies => question.of(&to_strong::three_copies(of(1, 2), rules)),
            Setting::FiveMembers => question.of(&to_strong::five_members(rules)),
            Setting::ToEventual => question.of(&ToEventual { writes: of(2, 3), rules }),
            Setting::Late => question.of(&Late { writes: of(2, 3), proposals: of(2, 3), rules }),
            Setting::Retry => question.of(&Retry { tries: of(3, 4), rules }),
            Setting::Token => question.of(&Token { rules }),
        }
    }
}

/// What can be asked of any model.
trait Question {
    type Answer;
    fn of<M>(self, model: &M) -> Self::Answer
    where
        M: Protocol,
        M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
        M::Action: Clone + Debug + PartialEq + Send + Sync + 'static;
}

struct Check {
    threads: usize,
}

impl Question for Check {
    type Answer = Verdict;
    fn of<M>(self, model: &M) -> Verdict
    where
        M: Protocol,
        M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
        M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
    {
        explore::check(model, self.threads)
    }
}

struct Hunt<'a> {
    property: &'a str,
}

impl Question for Hunt<'_> {
    type Answer = Option<Vec<String>>;
    fn of<M>(self, model: &M) -> Option<Vec<String>>
    where
        M: Protocol,
        M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
        M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
    {
        explore::hunt(model, self.property)
    }
}

/// What is found when a rule is taken out: the setting in which to look, and the property that breaks.
pub const COUNTEREXAMPLES: &[(Rule, Setting, &str)] = &[
    (Rule::EpochAtReplica, Setting::OneCopy, to_strong::FENCED),
    (Rule::EpochAtReplica, Setting::ToEventual, to_eventual::READS),
    (Rule::Cas, Setting::TwoCopies, to_strong::AGREE),
    (Rule::OpenAfterSeal, Setting::ToEventual, to_eventual::READS),
    (Rule::InstallReplaces, Setting::ToEventual, to_eventual::RESURRECTED),
    (Rule::EnoughForCopies, Setting::OneCopy, to_strong::READS),
    (Rule::EnoughForMajority, Setting::ThreeCopies, to_strong::LOST),
    (Rule::WithoutKeepsCount, Setting::FiveMembers, to_strong::READS),
    (Rule::FenceDurable, Setting::OneCopy, to_strong::LOST),
    (Rule::FenceDurable, Setting::OneCopy, to_strong::EPOCHS),
    (Rule::FenceReadsFrontier, Setting::OneCopy, to_strong::LOST),
    (Rule::FenceRefusesCopies, Setting::TwoCopies, to_strong::AGREE),
    (Rule::Incarnation, Setting::TwoCopies, to_strong::READS),
    (Rule::BaseFrozen, Setting::TwoCopies, to_strong::AGREE),
    (Rule::BaseClosed, Setting::TwoCopies, to_strong::AGREE),
    (Rule::PullOfAttempt, Setting::TwoCopies, to_strong::AGREE),
    (Rule::ElectAfterActivation, Setting::TwoCopies, to_strong::LOST),
    (Rule::AcksOfAttempt, Setting::OneCopy, to_strong::LOST),
    (Rule::FenceAgain, Setting::OneCopy, to_strong::LOST),
    (Rule::LiftByNewer, Setting::OneCopy, to_strong::LOST),
    (Rule::SealBeforeAbort, Setting::ToEventual, to_eventual::FINISH),
    (Rule::OwedKeepsTombstones, Setting::Late, late::RESURRECTED),
    (Rule::OwedMarksAbsent, Setting::Late, late::RESURRECTED),
    (Rule::OwedStopsForgetting, Setting::Late, late::RESURRECTED),
    (Rule::ReportAfterMerge, Setting::Late, late::RESURRECTED),
    (Rule::OwedInLog, Setting::Late, late::RESURRECTED),
    (Rule::OwedByEpoch, Setting::Late, late::RESURRECTED),
    (Rule::EqualEpochs, Setting::Late, late::RESURRECTED),
    (Rule::StampAtApply, Setting::ToEventual, to_eventual::RISE),
    (Rule::NoClockAtApply, Setting::ToEventual, to_eventual::AGREE),
    (Rule::TableInBase, Setting::Retry, retry::ONCE),
    (Rule::TableInCheck, Setting::Retry, retry::ONCE),
    (Rule::TableByPosition, Setting::Retry, retry::ONCE),
    (Rule::RetryKeepsEpoch, Setting::Retry, retry::ONCE),
    (Rule::RetryRemembersEventual, Setting::Retry, retry::ONCE),
    (Rule::TokenOfEpoch, Setting::Token, token::SEES),
    (Rule::TokenCountsLate, Setting::Token, token::GOES_ON),
    (Rule::ShowsAll, Setting::Token, token::OWN),
    (Rule::CursorOfEpoch, Setting::Token, token::ONE_EPOCH),
    (Rule::WritesGoOn, Setting::OneCopy, to_strong::GO_ON),
];
