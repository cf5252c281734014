//! What a node says of itself.

use serde::{Deserialize, Serialize};

use crate::{Boot, Digest, Epoch, Mode, NamespaceId, NamespaceName, NodeId, Phase};

/// The state of one node, as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// On the leader: how far each other member is.
    pub members: Vec<MemberProgress>,
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
