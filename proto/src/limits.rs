//! Every limit of the system in one place; their relations are checked when this is compiled.

/// Shortest key, in bytes.
pub const KEY_MIN: usize = 1;
/// Longest key, in bytes.
pub const KEY_MAX: usize = 4096;
/// Largest value unless configured otherwise, in bytes.
pub const VALUE_DEFAULT: usize = 1 << 20;
/// Largest value that may be configured, in bytes.
pub const VALUE_MAX: usize = 16 << 20;
/// Most operations (compares, then and else together) in one transaction.
pub const TXN_OPS: usize = 1024;
/// Most bytes of keys and values in one transaction.
pub const TXN_BYTES: usize = 4 << 20;
/// Longest namespace name, in bytes.
pub const NAMESPACE_NAME: usize = 128;
/// Longest cluster name, in bytes.
pub const CLUSTER_NAME: usize = 64;
/// Most entries in one page of a scan.
pub const SCAN_ENTRIES: u32 = 10_000;
/// Most bytes of keys and values in one page of a scan. One entry always fits, whatever its size.
pub const SCAN_BYTES: u32 = 1 << 20;
/// Values above this get a stream of their own between client and node, in bytes.
pub const INLINE_VALUE: usize = 64 << 10;
/// Largest frame of the client protocol, in bytes.
pub const CLIENT_FRAME: usize = VALUE_MAX + TXN_BYTES + (64 << 10);
/// Largest frame between nodes, in bytes.
pub const PEER_FRAME: usize = 32 << 20;
/// Most namespaces in a cluster.
pub const NAMESPACES: usize = 10_000;
/// Most nodes in a cluster.
pub const NODES: usize = 64;
/// Most members of one namespace.
pub const MEMBERS: usize = 9;
/// Requests of one client connection that may wait for their answers; beyond it the node stops reading.
pub const IN_FLIGHT: usize = 8192;
/// How far ahead of this node's clock a stamp may be, unless configured otherwise, in milliseconds.
pub const CLOCK_DRIFT_MS: u64 = 500;
/// Sessions remembered per namespace for exactly-once answers.
pub const SESSIONS: usize = 4096;
/// For how many positions of its log a namespace remembers an answer, for exactly-once retries.
pub const SESSION_POSITIONS: u64 = 100_000;
/// Answers that a namespace remembers, all sessions together; beyond it the oldest go.
pub const SESSION_ANSWERS: usize = 100_000;

const _: () = {
    assert!(KEY_MIN >= 1 && KEY_MIN <= KEY_MAX);
    assert!(VALUE_DEFAULT <= VALUE_MAX);
    assert!(TXN_BYTES >= KEY_MAX + INLINE_VALUE);
    assert!(CLIENT_FRAME >= VALUE_MAX + KEY_MAX + 1024, "a put of the largest value fits a frame");
    assert!(PEER_FRAME >= CLIENT_FRAME, "whatever a client may send, a Raft entry can carry");
    assert!(SCAN_BYTES as usize <= CLIENT_FRAME);
};
