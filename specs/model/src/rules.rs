//! The rules, each of which can be taken out of a model.

macro_rules! rules {
    ($($(#[doc = $text:literal])+ $rule:ident = $number:literal;)*) => {
        /// A rule of the protocol. What `specs/switch.md` counts as one rule may be several here, each of which is
        /// needed by itself.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule { $($(#[doc = $text])+ $rule,)* }

        impl Rule {
            /// All of them.
            pub const ALL: &[Rule] = &[$(Rule::$rule,)*];

            /// The rules that another one makes superfluous: what they are for is speed.
            pub const FOR_SPEED: &[Rule] = &[Rule::RestartAtOnce, Rule::BeginWhenReachable];

            /// Its number in `specs/switch.md`; 0 is what is said there before the numbered rules.
            #[must_use]
            pub fn number(self) -> u8 {
                match self { $(Rule::$rule => $number,)* }
            }

            /// The rule in words.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Rule::$rule => concat!($($text),+).trim_ascii(),)* }
            }
        }
    };
}

rules! {
    /// Every operation is checked against the epoch at the replica, in the same critical section as its effect.
    EpochAtReplica = 0;
    /// Every step of a coordinator is a compare-and-set on the namespace's entry.
    Cas = 0;
    /// A member opens an eventual epoch only when it has applied the seal, or holds the base.
    OpenAfterSeal = 0;
    /// A member that gets the base from another one puts it in the place of what it had; it does not merge.
    InstallReplaces = 0;

    /// More than `members - copies` members have acknowledged the seal.
    EnoughForCopies = 1;
    /// A majority of the original members has acknowledged the seal.
    EnoughForMajority = 1;
    /// `--without` never lowers the count of copies.
    WithoutKeepsCount = 1;

    /// The fence is durable before it is acknowledged.
    FenceDurable = 2;
    /// The fence is set in the same batch that reads the frontier.
    FenceReadsFrontier = 2;
    /// A fenced member does not count as a copy.
    FenceRefusesCopies = 2;
    /// A member that has lost its disk is no member any more.
    Incarnation = 2;

    /// The base set is frozen by a compare-and-set before its members converge.
    BaseFrozen = 3;
    /// No member of the base set merges from outside of it.
    BaseClosed = 3;
    /// What was asked for in one attempt is not merged in another.
    PullOfAttempt = 3;

    /// No election before activation.
    ElectAfterActivation = 4;

    /// Giving up raises the attempt: what was acknowledged in an older one is void.
    AcksOfAttempt = 5;
    /// A member that is still fenced for an older attempt fences again.
    FenceAgain = 5;
    /// A fence is lifted by a newer attempt only: after a crash a member's view of the catalog may be older than its fence.
    LiftByNewer = 5;
    /// The loss of a member of the base set starts a new attempt by itself.
    RestartAtOnce = 5;

    /// Strong to eventual is not given up before its seal is committed.
    SealBeforeAbort = 6;

    /// While somebody is owed late writes, a strong delete leaves a tombstone.
    OwedKeepsTombstones = 7;
    /// While somebody is owed late writes, a delete of an absent key leaves a tombstone too.
    OwedMarksAbsent = 7;
    /// While somebody is owed late writes, an eventual epoch forgets no tombstone.
    OwedStopsForgetting = 7;
    /// A member that owes late writes reports no frontier of an eventual epoch before it has merged them.
    ReportAfterMerge = 7;
    /// The list of who is owed is part of the replicated state: it ends by an entry in the log, and a late write behind
    /// that entry is refused.
    OwedInLog = 7;
    /// A late write is brought only while its member is on the list for the epoch of its stamp.
    OwedByEpoch = 7;
    /// Sessions need equal epochs.
    EqualEpochs = 7;

    /// A strong stamp is given when an entry is applied, above the last one.
    StampAtApply = 8;
    /// Applying reads no clock.
    NoClockAtApply = 8;

    /// The exactly-once table is part of the base.
    TableInBase = 9;
    /// Members are in step only if their exactly-once tables are.
    TableInCheck = 9;
    /// The table forgets by log position only, and a retry says from which position it is.
    TableByPosition = 9;
    /// A retry carries the epoch of its first try.
    RetryKeepsEpoch = 9;
    /// A retry that was sent in an eventual epoch is from then on one that may have run there.
    RetryRemembersEventual = 9;

    /// Tokens carry their epoch, and a later epoch satisfies one only if it covers it.
    TokenOfEpoch = 10;
    /// Late writes that were merged count as covered.
    TokenCountsLate = 10;
    /// A client that holds tokens of several epochs shows them all.
    ShowsAll = 10;
    /// Cursors carry their epoch.
    CursorOfEpoch = 10;

    /// An attempt that does not activate within its bound lifts its fences.
    WritesGoOn = 11;
    /// No fence is set while a member that is needed is out of reach.
    BeginWhenReachable = 11;
}

/// The rules that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules(u64);

impl Rules {
    /// Every rule.
    #[must_use]
    pub const fn all() -> Rules {
        Rules(u64::MAX)
    }

    /// Every rule but one.
    #[must_use]
    pub const fn without(rule: Rule) -> Rules {
        Rules(!(1 << rule as u32))
    }

    /// Whether a rule is kept.
    #[must_use]
    pub const fn keep(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u32) != 0
    }
}
