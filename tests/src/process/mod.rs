//! Real processes: `duetd` with real RocksDB, real sockets, and real signals.
//!
//! The binaries are those of the folder that `DUET_BIN_DIR` names, which `make test` builds first. Everything listens on
//! loopback, or on addresses of network namespaces made here; a [`Cluster`] ends what it started when it is dropped, and
//! nothing else.

mod cluster;
mod ledger;

pub use cluster::{Cluster, Host, Layout};
pub use ledger::{Ledger, Writers};
