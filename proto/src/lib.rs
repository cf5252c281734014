//! Duet's vocabulary: the words that every other crate shares, and nothing that does anything.
//!
//! A request is born in the client as a [`Request`], crosses the wire inside a [`frame`], is routed by
//! [`NamespaceName`] to an engine, becomes a [`Record`] with a [`Stamp`], and is answered by a [`Response`] or a
//! typed [`Error`]. Those types live here so that no crate has to know another one to speak of them.
//!
//! What this crate leaves out, on purpose: no I/O, no clock (time is an argument), no randomness, no task, no lock.
//! Catalog entries live in `router`, Raft messages in `engine-strong`, anti-entropy messages in `engine-eventual`.

mod digest;
mod error;
pub mod frame;
mod hlc;
mod ids;
pub mod limits;
mod record;
mod request;
mod response;
mod stamp;
mod status;
mod switch;

pub use digest::Digest;
pub use error::{Class, Error, QuorumView, Resource};
pub use hlc::{ClockFault, Hlc, HlcState};
pub use ids::{Boot, ClusterName, Epoch, InvalidName, NamespaceId, NamespaceName, NodeId, Role};
pub use record::{Body, Record, RecordError};
pub use request::{
    Admin, Change, Compare, Consistency, Cursor, DataRequest, Expect, KeyRange, Mutation, Op, Request, ScanLimit,
    SessionId, Token, Try,
};
pub use response::{Answer, Entry, Meta, NamespaceInfo, NodeInfo, Outcome, Phase, Response, Topology, TxnResult};
pub use stamp::Stamp;
pub use status::{
    Answered, Certificate, CertificateStatus, EventualStatus, GroupRole, MemberProgress, NamespaceStatus, NodeStatus,
    QuorumHealth,
};
pub use switch::{BaseInfo, LateState, LateWrite, SwitchInfo, SwitchPast, SwitchProgress, SwitchStep};

/// How a namespace keeps its replicas in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A Raft group: linearizable, refuses without a quorum.
    Strong,
    /// Last-writer-wins registers: takes writes on every side of a partition, converges once healed.
    Eventual,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Strong => "strong",
            Mode::Eventual => "eventual",
        })
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "strong" => Ok(Mode::Strong),
            "eventual" => Ok(Mode::Eventual),
            other => Err(format!("unknown mode {other:?}: expected strong or eventual")),
        }
    }
}
