//! What a node says of itself.

use serde::{Deserialize, Serialize};

use crate::{Boot, ClockFault, Digest, Epoch, Hlc, Mode, NamespaceId, NamespaceName, NodeId, Phase};

/// The state of one node, as it sees itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its address.
    pub address: String,
    /// The version of `duetd`.
    pub version: String,
    /// How often it has started.
    pub boot: Boot,
    /// Since when it runs, in milliseconds.
    pub uptime_ms: u64,
    /// Free bytes on the disk of its data.
    pub disk_free: u64,
    /// Whether the disk's reserve is reached and writes are refused.
    pub disk_full: bool,
    /// The peers it has a connection with now.
    pub connected: Vec<NodeId>,
    /// Every replica that it holds.
    pub namespaces: Vec<NamespaceStatus>,
    /// The modes that its configuration expects namespaces to have.
    pub expected: Vec<(NamespaceName, Mode)>,
    /// Its certificates.
    pub certificates: CertificateStatus,
    /// What it has answered to clients, of every namespace that somebody has asked it about.
    pub answered: Vec<Answered>,
}

/// Reads and writes of a namespace that a node has answered since its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The namespace.
    pub namespace: NamespaceName,
    /// Those that ended with an error.
    pub refused: u64,
    /// The writes that did not.
    pub written: u64,
    /// All of them by how long they took: up to each of [`Answered::BOUNDS_US`], and longer.
    pub took: [u64; Answered::BOUNDS_US.len() + 1],
}

impl Answered {
    /// Bounds of the times, in microseconds.
    pub const BOUNDS_US: [u64; 17] = [
        50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
        2_000_000, 5_000_000, 10_000_000,
    ];
}

/// The certificates that a node uses now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// When its own ends, in seconds since the Unix epoch.
    pub expires: i64,
    /// When that of the authority that issued it ends, in seconds since the Unix epoch.
    pub authority_expires: i64,
    /// How many certificates it lets in no more, because they are on its list of revoked ones.
    pub revoked: u64,
    /// Why those in its files now are not the ones that it uses, if they are not.
    pub fault: Option<String>,
}

/// One of the certificates that a node goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// The node's own.
    Node,
    /// That of the authority which issued it.
    Authority,
}

impl CertificateStatus {
    /// From so long before its end on, in seconds, a certificate is warned of: thirty days.
    pub const SOON_S: i64 = 30 * 24 * 3600;

    /// In how many seconds each certificate ends, below zero once it has, at a time in seconds since the Unix epoch. Of
    /// one of whose end nothing is said there is nothing.
    pub fn ends(&self, now_s: i64) -> impl Iterator<Item = (Certificate, i64)> {
        let ends = [(Certificate::Node, self.expires), (Certificate::Authority, self.authority_expires)];
        ends.into_iter().filter(|(_, end)| *end != 0).map(move |(which, end)| (which, end.saturating_sub(now_s)))
    }
}

/// One replica of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceStatus {
    /// Its id.
    pub id: NamespaceId,
    /// Its name.
    pub name: NamespaceName,
    /// Its mode.
    pub mode: Mode,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it is settled.
    pub phase: Phase,
    /// What this replica is.
    pub role: GroupRole,
    /// Whether a quorum answers, as this replica sees it.
    pub quorum: QuorumHealth,
    /// Its Raft term.
    pub term: u64,
    /// The leader, if it knows of one.
    pub leader: Option<NodeId>,
    /// The last index of its log.
    pub last: u64,
    /// The highest index it knows to be committed.
    pub committed: u64,
    /// The highest index it has applied.
    pub applied: u64,
    /// The first index of its log; what lies below is in snapshots only.
    pub first: u64,
    /// Live keys.
    pub keys: u64,
    /// Tombstones held.
    pub tombstones: u64,
    /// The digest of its live values, at `applied`.
    pub digest: Digest,
    /// On the leader: how far each other member is. In eventual mode, on every member: in units of its own writes.
    pub members: Vec<MemberProgress>,
    /// In eventual mode: how far behind it is, and what it has seen.
    pub eventual: Option<EventualStatus>,
}

/// What a member of an eventual namespace says of itself. Counts are since the start of its node; those that should
/// stay at zero are alarms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventualStatus {
    /// Whether it has received its first copy; before that it serves nobody.
    pub whole: bool,
    /// Whether it holds nothing beyond its frontier. Only clean members of equal frontiers must have equal digests.
    pub clean: bool,
    /// The version of the members that it goes by.
    pub version: u64,
    /// How many members must have synced a write before it is acknowledged.
    pub copies: u32,
    /// For each origin: up to when it durably holds every write.
    pub frontier: Vec<(NodeId, Hlc)>,
    /// Age of the oldest of its own writes that is not known to be held by every member, in milliseconds.
    pub lag_ms: u64,
    /// How many of its own writes are not known to be held by every member; those from before its start count as one.
    pub lag_writes: u64,
    /// Its own writes by how long it took until every member was known to hold them: up to 1, 2, 4, … 2^14
    /// milliseconds, and longer.
    pub converged_ms: [u64; 16],
    /// The sum of those times, in milliseconds.
    pub converged_sum_ms: u64,
    /// Why it refuses writes, if its clock is out of line.
    pub clock: Option<ClockFault>,
    /// The attempt at a switch for which it takes no writes.
    pub fence: Option<u64>,
    /// Remote records that superseded what was held, or were new.
    pub conflicts_won: u64,
    /// Remote records that came after something later.
    pub conflicts_lost: u64,
    /// Alarm: replicas that claim the same and whose digests differ.
    pub digest_mismatches: u64,
    /// Alarm: one stamp with two values.
    pub conflicting_markers: u64,
    /// Alarm: records that could not be read.
    pub damaged: u64,
    /// Damaged or missing records that were replaced by a peer's.
    pub healed: u64,
    /// Stamps refused because they were too far ahead of this node's clock.
    pub clock_refused: u64,
    /// Messages refused: of nodes that are no members, or of another epoch.
    pub strangers: u64,
    /// Messages refused: their senders had not seen what was forgotten here.
    pub below_floor: u64,
    /// Pushes that came before their predecessors.
    pub gaps: u64,
    /// Anti-entropy sessions that came to their end.
    pub sessions: u64,
    /// Anti-entropy sessions that did not.
    pub interrupted: u64,
    /// Tombstones forgotten.
    pub forgotten: u64,
}

/// How far a member is, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberProgress {
    /// The member.
    pub node: NodeId,
    /// The highest index it is known to hold.
    pub matched: u64,
    /// How many entries it lacks.
    pub lag: u64,
    /// Whether it was heard from lately.
    pub active: bool,
    /// Whether a snapshot is on its way to it.
    pub snapshot: bool,
    /// Whether it has no vote.
    pub learner: bool,
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupRole {
    /// Leads its Raft group.
    Leader,
    /// Follows a leader, or has none.
    Follower,
    /// Stands for election.
    Candidate,
    /// Has no vote.
    Learner,
    /// A member of an eventual namespace.
    Member,
    /// Stopped: its data is damaged or a fault was contained.
    Failed,
}

/// Whether a quorum answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuorumHealth {
    /// Yes.
    Healthy,
    /// Yes, but not every voter does.
    Degraded,
    /// No.
    Lost,
    /// The mode needs none.
    NotNeeded,
}
