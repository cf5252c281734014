//! What can be set.

use std::{ops::Range, time::Duration};

use duet_proto::{Boot, NodeId, limits};

/// The settings of one node's strong engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Which start of it.
    pub boot: Boot,
    /// How often Raft's clock ticks. Default 50 ms; 5 ms to 1 s.
    pub tick: Duration,
    /// After how many ticks without a leader an election begins; each group draws from it anew every time. Default
    /// 12..20; the start at least three heartbeats.
    pub election: Range<u32>,
    /// Ticks between heartbeats. Default 2.
    pub heartbeat: u32,
    /// A leader whose last sign of a quorum is older than this holds new writes back instead of proposing them, so
    /// that they can still be refused with certainty. Default 300 ms; at least two heartbeats.
    pub doubt_after: Duration,
    /// Held writes and waiting reads get `NoQuorum` when the last sign of a quorum is older than this. Default 1.5 s.
    pub no_quorum_after: Duration,
    /// After this long without traffic a group sleeps: no ticks, no heartbeats of its own. Default 3 s.
    pub quiet_after: Duration,
    /// Followers learn what is committed with the next entries; when there are none for this long, by a frame of its own,
    /// within twice as long. Default 5 ms; at most a heartbeat.
    pub announce_after: Duration,
    /// Largest value, in bytes. Default 1 MiB.
    pub value_max: usize,
    /// Bytes of log that are cut at once when every member has them. Default 256 KiB.
    pub piece_bytes: u64,
    /// Log entries that are kept behind the applied position for followers that lack them; a snapshot otherwise.
    /// Default 50,000.
    pub keep_entries: u64,
    /// Bytes of log that are kept behind the applied position, on disk. Default 64 MiB.
    pub keep_bytes: u64,
    /// Bytes of each group's log tail that are kept in memory. Default 4 MiB.
    pub tail_bytes: usize,
    /// Bytes of proposals of one group that may be waiting; beyond it `Overloaded`. Default 64 MiB.
    pub pending_bytes: usize,
    /// Seeds the election jitter.
    pub seed: u64,
    /// A bug to be found.
    #[cfg(feature = "planted")]
    pub planted: Option<Planted>,
}

impl Config {
    /// The defaults for one start of one node.
    #[must_use]
    pub fn new(node: NodeId, boot: Boot) -> Config {
        Config {
            node,
            boot,
            tick: Duration::from_millis(50),
            election: 12..20,
            heartbeat: 2,
            doubt_after: Duration::from_millis(300),
            no_quorum_after: Duration::from_millis(1500),
            quiet_after: Duration::from_secs(3),
            announce_after: Duration::from_millis(5),
            value_max: limits::VALUE_DEFAULT,
            piece_bytes: 256 << 10,
            keep_entries: 50_000,
            keep_bytes: 64 << 20,
            tail_bytes: 4 << 20,
            pending_bytes: 64 << 20,
            seed: u64::from(node.0) << 32 ^ boot.0,
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

/// Bugs that the simulation's checkers must find. They are compiled in only with the feature `planted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Tells peers of entries and votes before they are durable.
    AnswerBeforeSync,
    /// Serves linearizable reads from what is applied here.
    ReadWithoutReadIndex,
    /// Uses one context for every round of ReadIndex.
    ReuseReadContext,
    /// Does not store votes.
    ForgetVote,
}
