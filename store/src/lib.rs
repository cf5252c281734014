//! The store that both engines share.
//!
//! A node has one ordered store of bytes with one write-ahead log. Engines read it through [`View`], write what may
//! be lost in a crash straight to it, and everything that somebody will be told about through one [`Committer`]:
//!
//! ```text
//!  raft groups ──┐ submit                           ┌─ RocksStore   (the daemon)
//!                ├───────► Committer ─► write, sync ─┤
//!  eventual   ───┘ ◄───────── durable, in order      └─ MemoryStore  (the simulation)
//!      │ write: visible now, durable with the next sync     ▲
//!      └────────────────────────────────────────────────────┘
//! ```
//!
//! Two facts carry the rest. *The log is ordered*: what survives a crash is a prefix of what was written, so a sync
//! covers everything before it, whoever wrote it. *One failure is the last*: after a failed write or sync nothing is
//! known of the disk, the store takes no more writes and the node stops.
//!
//! Around the store lie the things a node keeps in it: whose directory it is and how often it started
//! ([`open_node`]), hybrid time that never goes back ([`HybridClock`]), and the reserve that keeps the disk from
//! filling up ([`DiskGuard`]). [`layout`] is the only place that knows how keys are encoded.
//!
//! What this crate leaves out: it does not know what a record, an entry or a session is, and it runs no task but the
//! committer's, and those that bring rows into memory before they are read ([`warm()`]). Only `rocks.rs` names RocksDB;
//! without the feature `rocks` it is not even built.

mod batch;
mod clock;
mod committer;
mod disk;
mod error;
mod identity;
pub mod layout;
pub mod memory;
#[cfg(feature = "rocks")]
mod recent;
#[cfg(feature = "rocks")]
pub mod rocks;
mod store;
mod warm;

pub use batch::{Batch, Edit, Family};
pub use clock::{HybridClock, SystemClock, WallClock};
pub use committer::{CommitStats, Committed, Committer};
pub use disk::{DiskFull, DiskGuard};
pub use error::StoreError;
pub use identity::{NodeIdentity, open_node, read_identity};
pub use store::{FamilyTables, Level, Scan, Snapshot, Store, StoreStats, Tables, View};
pub use warm::{warm, warm_soon};
