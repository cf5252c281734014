//! The strong engine: one Raft group per strong namespace and epoch, many groups on a node, driven together.

mod config;
mod driver;
mod handle;
mod host;
mod log;
pub mod machine;
pub mod snapshot;

pub use config::{Config, Planted};
pub use driver::{PeerLink, StrongEngine};
pub use handle::{Call, Changes, GroupError, GroupId, GroupInfo, GroupSpec, Handle, MembersChange, Metrics};
