//! What a node tells of switches of modes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Digest, Epoch, Mode, NamespaceInfo, NodeId, Stamp};

/// How a namespace stands between its modes. Times are in milliseconds since 1970, as the catalog's stamps have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchInfo {
    /// The namespace.
    pub namespace: NamespaceInfo,
    /// The switch that is under way.
    pub progress: Option<SwitchProgress>,
    /// What the epoch began with; nothing in the first one.
    pub base: Option<BaseInfo>,
    /// Who may still bring writes of which earlier epoch. While there are any, no tombstone is forgotten.
    pub owed: Vec<(NodeId, Epoch)>,
    /// The latest switches, the oldest first.
    pub history: Vec<SwitchPast>,
}

/// How far a switch is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchProgress {
    /// The mode that is to follow.
    pub to: Mode,
    /// What is being done.
    pub step: SwitchStep,
    /// How often writes were stopped for it, this time included.
    pub attempts: u64,
    /// When it was asked for.
    pub asked_ms: u64,
    /// Members that an operator has said not to wait for.
    pub without: Vec<NodeId>,
    /// Members that have done their part of this step.
    pub done: Vec<NodeId>,
    /// Members that it waits for. Empty: for any quorum.
    pub waits_for: Vec<NodeId>,
}

/// What a switch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwitchStep {
    /// Eventual to strong: the members that are needed come close while writes go on.
    Gathering,
    /// Writes have stopped; each member says what it held then.
    Sealing,
    /// Writes have stopped; the members of the base get what the others of them hold.
    Converging,
    /// Strong to eventual: the end of the epoch goes through the log.
    Ending,
}

/// The data that an epoch began with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseInfo {
    /// The highest stamp.
    pub last: Stamp,
    /// The digest of the live values.
    pub digest: Digest,
    /// Live keys.
    pub keys: u64,
}

/// A switch that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchPast {
    /// The epoch that it ended, or was to end.
    pub epoch: Epoch,
    /// The mode that followed, or was to follow.
    pub to: Mode,
    /// When it was asked for.
    pub asked_ms: u64,
    /// When the old epoch stopped taking writes, the last time; 0 if it never did.
    pub sealed_ms: u64,
    /// When the catalog had all it took to begin the next epoch, or the switch was aborted.
    pub ended_ms: u64,
    /// How often writes were stopped for it.
    pub attempts: u64,
    /// Members that did not take part: what they alone held comes in late.
    pub apart: Vec<NodeId>,
    /// Whether it was aborted.
    pub aborted: bool,
    /// Members whose late writes an operator has given up since.
    pub forgotten: Vec<NodeId>,
}

/// A write of an eventual epoch that ended without the member that holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateWrite {
    /// The key.
    pub key: Bytes,
    /// Its version.
    pub stamp: Stamp,
    /// Whether it deletes the key.
    pub tombstone: bool,
    /// What has become of it.
    pub state: LateState,
}

/// What has become of a late write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LateState {
    /// Kept on the member's disk until it can be brought in.
    Waiting,
    /// Merged by its stamp: it counts unless something later was written.
    Brought,
    /// Nobody waited for it any more. It had no effect.
    Refused,
}
