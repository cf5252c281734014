//! What a replica may be told; every setting with its unit and default.

use duet_proto::{Boot, NodeId};

/// The settings of every replica of one start of one node.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Which start of it this is: what makes a session's nonce one that was never used.
    pub boot: Boot,
    /// The least time between two reports, in milliseconds. 200.
    pub report_ms: u64,
    /// The time after which a replica reports although nothing changed, while some member is not known to hold the
    /// same, in milliseconds: how soon a healed partition is noticed. 1000.
    pub apart_report_ms: u64,
    /// The time after which a replica reports although nothing changed and all hold the same, in milliseconds. 5000.
    pub idle_report_ms: u64,
    /// How long a session may stand still before it is given up, in milliseconds. 1000.
    pub stall_ms: u64,
    /// How long a peer's word about clocks counts, in milliseconds. 30,000.
    pub clock_word_ms: u64,
    /// Keys and values in one message, in bytes, give or take one record. 256 KiB.
    pub chunk_bytes: usize,
    /// Pushes that arrived too early and are kept for the end of a session, in bytes per origin. 4 MiB.
    pub early_bytes: usize,
    /// Tombstones looked at in one step. 1024.
    pub forget_rows: usize,
    /// Rows that come into the index until those are removed that it was trimmed by, unless they are few for long: to
    /// remove a range costs what some rows do, and whoever reads meanwhile. 16,384.
    pub clear_rows: usize,
    /// A bug to be found.
    #[cfg(feature = "planted")]
    pub planted: Option<Planted>,
}

impl Config {
    /// The defaults.
    #[must_use]
    pub fn new(node: NodeId, boot: Boot) -> Config {
        Config {
            node,
            boot,
            report_ms: 200,
            apart_report_ms: 1000,
            idle_report_ms: 5000,
            stall_ms: 1000,
            clock_word_ms: 30_000,
            chunk_bytes: 256 << 10,
            early_bytes: 4 << 20,
            forget_rows: 1024,
            clear_rows: 16_384,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }

    #[cfg(feature = "planted")]
    pub(crate) fn planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    #[cfg(not(feature = "planted"))]
    pub(crate) fn planted(&self, _: Planted) -> bool {
        false
    }
}

/// Bugs that the model's checks must find. They can be chosen only with the feature `planted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Raises the frontier with each chunk of a session (rule 1).
    FrontierPerChunk,
    /// Goes on with an interrupted incremental session at another sender (rule 3).
    ResumeWithAnother,
    /// Merges what lies at or below the frontier again (rule 5).
    CoveredMergedAgain,
    /// Takes messages whatever their sender has not seen of what was forgotten here (rule 5).
    FloorIgnored,
    /// Forgets tombstones when they are old (rule 5).
    ForgetByAge,
    /// Forgets tombstones on reports of any version of the members (rule 5).
    ForgetOnStaleView,
    /// Takes out of the index what it holds itself, whatever the others do.
    TrimByOwnFrontier,
    /// Gives two writes one stamp.
    MarkerTwice,
    /// Answers clients and acknowledges copies before the sync (rule 6).
    AcknowledgeBeforeSync,
    /// Pushes before the sync (rule 6).
    PushBeforeSync,
    /// Applies a push whose predecessor is missing as if it were whole (rule 2).
    PushWithGap,
    /// Leaves the stamps of what was returned out of the token.
    TokenWithoutStamps,
    /// Counts copies between members of different versions (rule 8).
    CopiesOfAnyVersion,
    /// Keeps a fence in memory only (rule 9).
    FenceForgets,
    /// Takes in, and acknowledges, what others push to a fenced replica (rule 9).
    MergeWhileFenced,
    /// Converges with members outside the base too (rule 9).
    ConvergeFromOutside,
    /// Lets a session outlive a fence (rule 9).
    SessionOutlivesFence,
    /// Lifts a fence for the sake of an older attempt (rule 9).
    LiftByOlder,
}
