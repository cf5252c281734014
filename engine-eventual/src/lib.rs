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
//! [`Replica`] is the whole of one namespace as a state machine: no task, socket, clock, thread or randomness. One step takes
//! all that has arrived and makes one batch; only when that is durable can its messages and answers be reached, and
//! only then may the next step begin. So whatever a step reads is durable, which half of the rules ask for.
//!
//! Around the replicas of a node stands one driver ([`EventualEngine`]), a task with one `select!`:
//!
//! ```text
//!  router ── call ──►┌──────────────────────────────────────────────────┐◄── frames ── peers
//!  (Handle)          │ driver   queues what arrives, steps each replica │
//!   │      ◄─ answer │          that is not waiting for the disk,       │──► one frame per peer and turn
//!   │                │          lets effects out once they are durable  │
//!   │                └──────│──────────────────────────────▲────────────┘
//!   │ reads                 └──► the node's committer ─────┘
//!   ▼
//!  window: what is durable, in a snapshot that shows nothing else
//! ```
//!
//! Replicas step independently, each with one batch on its way at most. What arrives meanwhile waits for the next
//! step, so the busier the disk, the more writes share a sync. Reads do not pass the driver: they get the durable
//! frontier and a snapshot that goes with it. A replica with nothing open is left alone but for a look now and then; a
//! node that has nothing to say to a peer beats once a second, whatever it holds, and a peer that is heard after a
//! silence is told at once what is held here, which is how a healed partition is found. A replica that cannot be read,
//! or in which a bug panics, is stopped and reported ([`SpaceInfo::failed`]); the others go on.
//!
//! The rules, each with the timeline that it prevents, are in `specs/eventual-engine.md`; the model that found them
//! lives on in `tests/model.rs`, with the bugs that it must find.
//!
//! An epoch ends when the namespace goes on in strong mode. Then a replica is fenced, converges once more with a set of
//! members that somebody else has chosen, and leaves its records in place ([`Handle::fence`] and what follows it there);
//! an epoch that comes after a strong one begins with the records that are in place ([`SpaceSpec::base`]).
//!
//! What this crate leaves out: it does not know addresses, how a message travels, or when modes are to be switched.
//! Gossip ([`GossipConfig`]; only this crate names `chitchat`) tells who is alive and how far; it informs, and no
//! decision here rests on it.

mod clock;
mod config;
mod driver;
mod ending;
mod frontier;
mod gossip;
mod handle;
mod members;
pub mod message;
mod replica;
mod rows;
mod scrub;
mod stash;
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
pub use replica::{
    Base, Counters, Cx, Effects, Input, Order, Persisting, Refused, Replica, Start, Status, Ticket, Unpersisted,
};
