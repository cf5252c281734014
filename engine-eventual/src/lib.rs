//! The eventual engine: every member takes writes, on every side of a partition, and all come to hold the same.
//!
//! A record is a last-writer-wins register whose marker is its stamp, so replicas may merge in any order and any
//! number of times. What remains to be known is *what a peer lacks*, without a log that grows and without comparing
//! everything. For that a replica keeps, beside the records:
//!
//! - a [`Frontier`]: for each origin the time up to which it holds every write, or one that supersedes it;
//! - an index of the live records by origin and time, in which what a frontier lacks is a short walk;
//! - a digest and counts, and the list of its tombstones.
//!
//! ```text
//!  clients ──► Input::Write ─┐                         ┌─► batch ─► the committer ─► persisted
//!  peers   ──► Input::Peer  ─┼─► Replica::step(cx) ────┤                                 │
//!  catalog ──► Input::Members┘   pure: view, clock,    └─► Unpersisted ─► Persisting ────┴─► Effects
//!              Input::Tick       time are arguments        (tells nothing)                  messages, answers
//! ```
//!
//! [`Replica`] is the whole engine as a state machine: no task, socket, clock, thread or randomness. One step takes
//! all that has arrived and makes one batch; only when that is durable can its messages and answers be reached, and
//! only then may the next step begin. So whatever a step reads is durable, which half of the rules ask for.
//!
//! The rules, each with the timeline that it prevents, are in `specs/eventual-engine.md`; the model that found them
//! lives on in `tests/model.rs`, with the bugs that it must find.
//!
//! What this crate leaves out: it does not know names, addresses, or how a message travels, and not yet when to
//! switch modes. Liveness (who is worth asking) only ever speeds things up; no decision here rests on it.

mod clock;
mod config;
mod driver;
mod frontier;
mod gossip;
mod handle;
mod members;
pub mod message;
mod replica;
mod rows;
mod scrub;
mod table;
mod window;

pub use clock::Clock;
pub use config::{Config, Planted};
pub use driver::{EngineConfig, EventualEngine, PeerLink};
pub use frontier::Frontier;
pub use gossip::{GossipConfig, NodeWord, SpaceWord};
pub use handle::{Call, Handle, Metrics, SpaceError, SpaceId, SpaceInfo, SpaceSpec, Standing};
pub use members::{Change, Members};
pub use message::{Envelope, Message, MessageError};
pub use replica::{Counters, Cx, Effects, Input, Persisting, Replica, Start, Status, Ticket, Unpersisted};
