//! The strong engine: linearizable namespaces, by one Raft group per namespace and epoch, many groups on a node.
//!
//! ```text
//!   router ── call ──►┌────────────────────────────────────────────┐◄── raft frames, bulk ── peers
//!   (Handle)          │ driver     one task, one select!           │──► frames that may go at once
//!          ◄─ answer ─│   │ ▲                                      │
//!                     │   ▼ │ Step                                 │
//!                     │ host       pure: every group, stepped      │
//!                     │   │        together; Unpersisted ─┐        │
//!                     │   ▼                               ▼        │
//!                     │ log, machine ── apply ──► store ◄ committer│──► frames that had to wait
//!                     └────────────────────────────────────────────┘
//! ```
//!
//! One turn of the driver takes in everything that has arrived, for all groups; the host turns it into one batch for
//! the committer and one frame per peer. A leader's entries travel while its own disk works; whatever a node
//! *promises* (a vote, "I have this entry") is held until that is durable, and the types see to it
//! (`Unpersisted`, `Held`, `Persisted` in `host`). Committed entries are applied straight to the store without a
//! sync: the store's log is ordered, so what is applied is never durable before the entry it came from. Followers learn
//! what is committed with the next entries, or a little later, and apply it when they have answered.
//!
//! Any replica takes reads and writes. Reads wait for a round of ReadIndex, which all that wait share. Writes wait for
//! their entry to be applied *here*; those that name a session are proposed again when a leader is lost, and done
//! once. A replica that sees no quorum holds its writes instead of proposing them, so that it can say `NoQuorum` and
//! mean it; a write that may be in some log is answered `OutcomeUnknown`. Nobody waits longer than
//! [`Config::no_quorum_after`] for a quorum that does not come.
//!
//! Idle groups sleep: their heartbeats cost nothing, one beat per node stands for all of them. A group whose log has
//! a gap, whose data is damaged, or in which a bug panics, is stopped and reported ([`GroupInfo::failed`]); it neither
//! votes nor serves, and the other groups go on.
//!
//! What this crate leaves out: the catalog (groups are created, changed and removed by whoever holds the [`Handle`]),
//! the network (peers are channel ends), wall clocks (stamps come from a
//! [`HybridClock`](duet_store::HybridClock), and no decision rests on them). Only this crate names `raft`.
//!
//! The design is in `specs/strong-engine.md`; after Ongaro, "Consensus: Bridging Theory and Practice" (2014).

mod config;
mod driver;
mod handle;
mod host;
mod log;
pub mod machine;
pub mod snapshot;

pub use config::{Config, Planted};
pub use driver::{PeerLink, StrongEngine};
pub use handle::{
    Answers, Call, Changes, GroupError, GroupId, GroupInfo, GroupSpec, Handle, MembersChange, Metrics, Proposal,
    Recall,
};
