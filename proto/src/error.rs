//! Everything that can go wrong with a request, each with what its sender should do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ClockFault, Epoch, InvalidName, Mode, NamespaceName, NodeId, Role, Stamp};

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Nothing was done; the same request may succeed later or elsewhere.
    Retry,
    /// Nothing was done; the request is at fault and will fail again.
    Caller,
    /// Nothing was done; an operator is needed.
    Fatal,
    /// It may have been done or not, now or later. Only a [`Try`](crate::Try) makes asking again safe.
    Unknown,
}

/// What there was too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Resource {
    /// A key, in bytes.
    Key,
    /// A value, in bytes.
    Value,
    /// The operations of a transaction.
    TransactionOps,
    /// The keys and values of a transaction, in bytes.
    TransactionBytes,
    /// The entries asked of one page of a scan.
    ScanEntries,
    /// The bytes asked of one page of a scan.
    ScanBytes,
    /// A frame, in bytes.
    Frame,
    /// The namespaces of a cluster.
    Namespaces,
    /// The members of a namespace.
    Members,
    /// The nodes of a cluster.
    Nodes,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resource::Key => "key (bytes)",
            Resource::Value => "value (bytes)",
            Resource::TransactionOps => "transaction (operations)",
            Resource::TransactionBytes => "transaction (bytes)",
            Resource::ScanEntries => "scan page (entries)",
            Resource::ScanBytes => "scan page (bytes)",
            Resource::Frame => "frame (bytes)",
            Resource::Namespaces => "namespaces of the cluster",
            Resource::Members => "members of the namespace",
            Resource::Nodes => "nodes of the cluster",
        })
    }
}

/// What a replica that cannot reach a quorum sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumView {
    /// Its term.
    pub term: u64,
    /// The leader, if it knows of one.
    pub leader: Option<NodeId>,
    /// The voters of the group.
    pub voters: Vec<NodeId>,
    /// The voters it has lately heard from, itself included.
    pub reachable: Vec<NodeId>,
}

impl fmt::Display for QuorumView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {}, ", self.term)?;
        match self.leader {
            Some(leader) => write!(f, "leader {leader}, ")?,
            None => f.write_str("no leader, ")?,
        }
        let list = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        write!(f, "reachable [{}] of voters [{}]", list(&self.reachable), list(&self.voters))
    }
}

/// Why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No quorum of the namespace's voters can be reached. The operation was not done and will not be.
    #[error("no quorum in namespace {namespace}: {seen}")]
    NoQuorum {
        /// The namespace.
        namespace: NamespaceName,
        /// What the answering replica sees.
        seen: QuorumView,
    },
    /// It may have been done or not, now or later.
    #[error("the outcome is unknown: {why}")]
    OutcomeUnknown {
        /// What happened.
        why: String,
    },
    /// A compare did not hold.
    #[error("compare failed: the key holds {}", .found.map_or("no value".into(), |s| format!("version {s}")))]
    CompareFailed {
        /// The version that the key holds, if it holds a value.
        found: Option<Stamp>,
    },
    /// There is no such namespace, as far as the answering node's view of the catalog goes.
    #[error("namespace {name} not found")]
    NamespaceNotFound {
        /// The name asked for.
        name: NamespaceName,
    },
    /// There is one of that name already.
    #[error("namespace {name} exists already")]
    NamespaceExists {
        /// The name.
        name: NamespaceName,
    },
    /// There is no such node.
    #[error("node {node} not found")]
    NodeNotFound {
        /// The id asked for.
        node: NodeId,
    },
    /// The answering node holds no replica; these do.
    #[error("this node holds no replica of the namespace; nodes {} do", .members.iter().map(|(n, a)| format!("{n} ({a})")).collect::<Vec<_>>().join(", "))]
    NotHere {
        /// The members and their addresses, the likely leader first.
        members: Vec<(NodeId, String)>,
    },
    /// The namespace is in another epoch than the request names.
    #[error("namespace {namespace} is {mode} in epoch {epoch} now")]
    EpochChanged {
        /// The namespace.
        namespace: NamespaceName,
        /// Its epoch.
        epoch: Epoch,
        /// Its mode.
        mode: Mode,
    },
    /// A change of mode or members holds the request up.
    #[error("namespace {namespace} is changing: {why}")]
    Changing {
        /// The namespace.
        namespace: NamespaceName,
        /// What is going on.
        why: String,
    },
    /// The namespace's mode cannot do this.
    #[error("a namespace in {mode} mode cannot do this: {why}")]
    Unsupported {
        /// The namespace's mode.
        mode: Mode,
        /// Why, and what would.
        why: String,
    },
    /// Over a limit.
    #[error("too large: {what} of {size}, the limit is {limit}")]
    TooLarge {
        /// What.
        what: Resource,
        /// How large, or how many.
        size: u64,
        /// How large, or how many, it may be.
        limit: u64,
    },
    /// A name that is not one.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// A request that makes no sense.
    #[error("invalid request: {why}")]
    InvalidRequest {
        /// What is wrong with it.
        why: String,
    },
    /// The certificate's role does not allow it.
    #[error("not allowed: this needs the role {needed}, the certificate has the role {has}")]
    Unauthorized {
        /// The role it takes.
        needed: Role,
        /// The role presented.
        has: Role,
    },
    /// The exactly-once table no longer reaches back to when the request was first sent. Nothing was done.
    #[error("session expired: answers are remembered back to position {floor}, the request was first sent at {seen}")]
    SessionExpired {
        /// The lowest position that is remembered.
        floor: u64,
        /// Where the request says it was first sent.
        seen: u64,
    },
    /// This node's clock is out of line with its peers'; it takes no eventual writes.
    #[error("clock skew: {0}")]
    ClockSkew(ClockFault),
    /// Fewer members have synced the write than `copies` asks for. It may spread later.
    #[error("not enough copies: {have} members have synced the write, {need} are asked for")]
    NotEnoughCopies {
        /// Members that have it.
        have: u32,
        /// Members that should.
        need: u32,
    },
    /// This member has not yet seen what the token has seen.
    #[error("this member has not yet seen what the session has: {why}")]
    TokenNotCovered {
        /// What is missing.
        why: String,
    },
    /// The disk's reserve is reached: reads go on, writes are refused.
    #[error("disk full on node {node}: {free} bytes are free, {reserve} are kept in reserve; reads go on")]
    DiskFull {
        /// The node.
        node: NodeId,
        /// Free bytes.
        free: u64,
        /// Bytes that stay free.
        reserve: u64,
    },
    /// Too much is waiting already.
    #[error("overloaded: {why}")]
    Overloaded {
        /// Which queue.
        why: String,
    },
    /// It did not happen in time, and will not. Only reads and refusals end like this; a write ends as unknown.
    #[error("timed out after {after_ms} ms: {why}")]
    TimedOut {
        /// How long it was waited for, in milliseconds.
        after_ms: u64,
        /// For what.
        why: String,
    },
    /// The node is stopping or starting.
    #[error("node {node} is not serving: {why}")]
    Unavailable {
        /// The node.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// A protocol version that this side does not speak.
    #[error("protocol version {theirs} is not spoken here ({ours} is)")]
    Version {
        /// The other side's.
        theirs: u32,
        /// This side's.
        ours: u32,
    },
    /// Bytes that are not a message.
    #[error("malformed message: {why}")]
    Malformed {
        /// What was wrong.
        why: String,
    },
    /// A record on disk does not match its checksum. It is not served.
    #[error("corrupt data on node {node}: {what}")]
    Corrupt {
        /// The node.
        node: NodeId,
        /// What was found.
        what: String,
    },
    /// A fault of the node's own: its store failed, or a bug.
    #[error("internal error on node {node}: {why}")]
    Internal {
        /// The node.
        node: NodeId,
        /// What happened.
        why: String,
    },
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        use Error as E;
        match self {
            E::NoQuorum { .. }
            | E::NotHere { .. }
            | E::EpochChanged { .. }
            | E::Changing { .. }
            | E::SessionExpired { .. }
            | E::ClockSkew(_)
            | E::TokenNotCovered { .. }
            | E::Overloaded { .. }
            | E::TimedOut { .. }
            | E::Unavailable { .. } => Class::Retry,
            E::CompareFailed { .. }
            | E::NamespaceNotFound { .. }
            | E::NamespaceExists { .. }
            | E::NodeNotFound { .. }
            | E::Unsupported { .. }
            | E::TooLarge { .. }
            | E::InvalidName(_)
            | E::InvalidRequest { .. }
            | E::Unauthorized { .. }
            | E::Version { .. }
            | E::Malformed { .. } => Class::Caller,
            E::DiskFull { .. } | E::Corrupt { .. } | E::Internal { .. } => Class::Fatal,
            E::OutcomeUnknown { .. } | E::NotEnoughCopies { .. } => Class::Unknown,
        }
    }

    /// A short name for scripts and metrics, stable across versions.
    #[must_use]
    pub fn code(&self) -> &'static str {
        use Error as E;
        match self {
            E::NoQuorum { .. } => "no_quorum",
            E::OutcomeUnknown { .. } => "outcome_unknown",
            E::CompareFailed { .. } => "compare_failed",
            E::NamespaceNotFound { .. } => "namespace_not_found",
            E::NamespaceExists { .. } => "namespace_exists",
            E::NodeNotFound { .. } => "node_not_found",
            E::NotHere { .. } => "not_here",
            E::EpochChanged { .. } => "epoch_changed",
            E::Changing { .. } => "changing",
            E::Unsupported { .. } => "unsupported",
            E::TooLarge { .. } => "too_large",
            E::InvalidName(_) => "invalid_name",
            E::InvalidRequest { .. } => "invalid_request",
            E::Unauthorized { .. } => "unauthorized",
            E::SessionExpired { .. } => "session_expired",
            E::ClockSkew(_) => "clock_skew",
            E::NotEnoughCopies { .. } => "not_enough_copies",
            E::TokenNotCovered { .. } => "token_not_covered",
            E::DiskFull { .. } => "disk_full",
            E::Overloaded { .. } => "overloaded",
            E::TimedOut { .. } => "timed_out",
            E::Unavailable { .. } => "unavailable",
            E::Version { .. } => "version",
            E::Malformed { .. } => "malformed",
            E::Corrupt { .. } => "corrupt",
            E::Internal { .. } => "internal",
        }
    }
}
