//! The client of Duet: one cloneable handle over a cluster, thousands of requests in flight, retries that are exactly
//! once, errors that say what to do.
//!
//! ```text
//! Namespace::put ── Op ──> data: number the write (session), attach the token
//!                            │
//!                          call: launch ─> flights ─> first answer counts      one state machine for each call
//!                            │      └─ retry::decide: whom to ask next, or what to tell the caller
//!                          pool ── Line ── one QUIC connection for each node, answers handed out by id
//! ```
//!
//! **Where a request goes.** To the leader of a strong namespace, as the last answer named it (by way of another member
//! until that is connected); to any member for local
//! reads and eventual namespaces, the one that answered last while it answers. A member that lets a request wait is asked
//! no more until it answers again; where a second try does no harm, another member is asked beside it, which
//! is what carries a client over the death of a leader in less time than an election takes.
//!
//! **What is retried.** Reads always. Writes to strong namespaces because each carries a [`Try`](duet_proto::Try): the
//! replicated state remembers its answer, so that a write sent three times is done once. Writes to eventual namespaces
//! and administration only if nothing can have been done (a member refused it, or it was never sent); else they end as
//! `OutcomeUnknown`, which is the truth. Nobody remembers an eventual write, and one that is sent again gets another,
//! later stamp: it could undo what another client wrote in between. No call ever says that nothing was done if
//! something may have been.
//!
//! **What happens when the mode changes.** A namespace may be switched while it is in use; each request says which epoch
//! of it the client knows. A write that is too late for its epoch is refused for certain, and sent again in the next one:
//! with a new number where that is strong, without one where it is eventual. One that may have been done already keeps
//! its number until a member knows what became of it, or ends as `OutcomeUnknown`; none runs twice. A read's answer from
//! an epoch before the latest that the session knows is not taken. A scan goes on behind its last key and says so
//! ([`Scan::crossed`]). What compares ends as `Unsupported` once the namespace is eventual.
//!
//! **What a session sees.** A client is a session: in eventual namespaces it reads its own writes, never goes back in
//! time, and writes on top of what it has read, whichever members answer. Each request shows what the session has seen,
//! a [`Token`] for each epoch of it. A member that has not yet seen as much says so ([`Error::TokenNotCovered`]);
//! another one is asked, until the timeout. [`Builder::session`] turns this off, [`Namespace::session`] for some
//! requests, [`Namespace::tokens`] and [`Namespace::resume`] carry them to another client.
//!
//! **What is bounded.** Requests in flight ([`Options::in_flight`]), the tries of one call at a time, time (every call
//! has a deadline), and what the transport queues. A call that is dropped leaves nothing behind.
//!
//! **What is left out.** No background task watches the cluster: the topology is learned when connecting, and again when
//! an answer shows that it has changed. No cache of values. Strong scans of many pages are no snapshot.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use duet_client::{Client, NewNamespace, Tls};
//!
//! let tls = Tls::load("ca.pem".as_ref(), "client.pem".as_ref(), "client.key".as_ref())?;
//! let client = Client::builder().endpoints(["127.0.0.1:7401"]).tls(tls).connect().await?;
//! client.admin().create_namespace("orders", NewNamespace::strong()).await?;
//!
//! let orders = client.namespace("orders")?;
//! orders.put("o/1", "new").await?;
//! assert_eq!(orders.get("o/1").await?.map(|held| held.value), Some("new".into()));
//! # Ok(())
//! # }
//! ```
//!

mod admin;
mod call;
mod client;
mod course;
mod error;
mod follow;
mod line;
mod namespace;
mod options;
mod pool;
mod retry;
mod route;
mod scan;
mod seen;
mod session;
mod txn;

pub use admin::{Admin, NewNamespace};
pub use client::{Builder, Client, ClusterStatus, NodeReport};
pub use duet_proto::{
    Change, Class, Consistency, Cursor, Entry, Epoch, Error, Expect, KeyRange, LateState, LateWrite, Mode,
    NamespaceInfo, NamespaceName, NamespaceStatus, NodeId, NodeInfo, NodeStatus, ScanLimit, Stamp, SwitchInfo, Token,
    Topology, TxnResult, limits,
};
pub use duet_transport::{Network, Tls, TlsError, Udp};
pub use error::ClientError;
pub use namespace::{Namespace, Value};
pub use options::{CallOptions, Options};
pub use scan::{Crossed, Scan};
pub use txn::Txn;
