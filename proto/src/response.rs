//! What a node answers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Boot, ClusterName, Cursor, Epoch, Error, LateWrite, Mode, NamespaceId, NamespaceName, NodeId, NodeStatus, Stamp,
    SwitchInfo, Token,
};

/// The answer to a [`Request`](crate::Request).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To `Topology`.
    Topology(Topology),
    /// To `Data`.
    Data(Answer),
    /// To `Status`.
    Status(Box<NodeStatus>),
    /// To `ListNamespaces`.
    Namespaces(Vec<NamespaceInfo>),
    /// To `CreateNamespace`, `ShowNamespace`, `SetMembers`, `SetCopies`, `SwitchMode`, `AbortSwitch`, `Forget`.
    Namespace(NamespaceInfo),
    /// To `AddNode`.
    Node(NodeInfo),
    /// To whatever else succeeded.
    Done,
    /// To anything that did not.
    Error(Error),
    /// To `ShowSwitch`.
    Switch(Box<SwitchInfo>),
    /// To `ListLate`.
    Late(Vec<LateWrite>),
}

/// The answer to an operation on data, and what the client should know for its next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What came of it.
    pub outcome: Outcome,
    /// What to remember.
    pub meta: Meta,
}

/// What a client should remember of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The namespace's epoch.
    pub epoch: Epoch,
    /// The namespace's log position (Raft index) that the answering replica has applied; 0 in eventual mode.
    pub position: u64,
    /// Another node would have answered faster: the leader, as this replica sees it.
    pub leader: Option<NodeId>,
    /// In eventual mode: what the client has now seen.
    pub token: Option<Token>,
}

/// What came of an operation that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The value and its version, if there is one.
    Value(Option<(Stamp, Bytes)>),
    /// A page of a scan.
    Page {
        /// In order of key.
        entries: Vec<Entry>,
        /// Where to go on, if there is more.
        next: Option<Cursor>,
    },
    /// Written, as this version. A delete of an absent key has the stamp it would have had.
    Written(Stamp),
    /// A transaction that ran.
    Transaction(TxnResult),
}

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnResult {
    /// Whether the compares held and `then` ran.
    pub held: bool,
    /// The version of everything it wrote.
    pub stamp: Stamp,
    /// The keys asked for, as they are after the step, in the order asked for.
    pub reads: Vec<Option<(Stamp, Bytes)>>,
}

/// A key in a page of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// Its version.
    pub stamp: Stamp,
    /// Its value; empty if only keys were asked for.
    pub value: Bytes,
}

/// Who there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node that answers.
    pub me: NodeId,
    /// Every node of the catalog.
    pub nodes: Vec<NodeInfo>,
    /// Every namespace of the catalog, the system namespace included.
    pub namespaces: Vec<NamespaceInfo>,
    /// The catalog's version: the larger one is the newer.
    pub version: u64,
}

/// A node of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Where peers and clients reach it: a host name or address, and a port.
    pub address: String,
    /// How often it has started, as far as the catalog knows.
    pub boot: Boot,
}

/// A namespace of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceInfo {
    /// Its id.
    pub id: NamespaceId,
    /// Its name.
    pub name: NamespaceName,
    /// How it keeps its replicas in step.
    pub mode: Mode,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it is settled.
    pub phase: Phase,
    /// The nodes that hold it, in order.
    pub members: Vec<NodeId>,
    /// In eventual mode, how many members must have synced a write before it is acknowledged.
    pub copies: u32,
    /// The leader, as the answering node sees it.
    pub leader: Option<NodeId>,
}

/// Where a namespace stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Takes requests.
    Stable,
    /// Its members are being changed; takes requests.
    Moving,
    /// Its mode is being changed.
    Switching,
    /// On its way out; takes none.
    Deleting,
}
