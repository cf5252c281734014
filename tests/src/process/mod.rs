//! Real processes: `duetd` with real RocksDB, real sockets, and real signals.
//!
//! ```text
//! Cluster   starts, kills, pauses, stops and revives daemons
//! Link      network namespaces that a cluster's nodes run in, and cuts between them
//! Disk      a small tmpfs for one node's data
//! Ledger    what clients were told about their writes, and whether it is true; Writers fill it
//! Port      a port of loopback that nobody else takes
//! Direct    a line to one node, for what that very node says
//! ```
//!
//! The binaries are those of the folder that `DUET_BIN_DIR` names: of `make test` those that it builds with the tests, with
//! points of failure and planted bugs that nobody asks for. Everything listens on loopback, or on addresses of
//! network namespaces made here; each of these ends what it started when it is dropped, and nothing else.

mod cluster;
mod direct;
mod disk;
mod eventual;
mod leader;
mod ledger;
mod link;
mod port;
mod stop;
mod switch;

use std::time::Duration;

pub use cluster::{Cluster, Host, Layout, binary};
pub use direct::{Answered, Direct};
pub use disk::Disk;
pub use eventual::{LocalWriters, settled, shown, status_of};
pub use leader::{converged, leader};
pub use ledger::{Ledger, Tally, Writers, patiently};
pub use link::Link;
pub use port::Port;
pub use stop::unless_stopped;
pub use switch::{Passage, agreed};

/// How long anything may take on a slow machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);
