//! The load generator: the workloads of YCSB and plain ones, put before anything that keeps values under keys.
//!
//! ```text
//! Load ─▶ Client × n ─ Workload: which kind ─ Choice: which key ─▶ Target ─▶ Duet | etcd | redis
//!              │                                                     │
//!              └── Record: histograms that clients share ◀───────────┘
//!                     │
//!                     ├─▶ Glimpse   each second, for a progress line
//!                     └─▶ Report    at the end, for a table or JSON
//! ```
//!
//! **Two loops.** In the closed one a client asks again when it has its answer: it shows what a caller who waits would see,
//! and how much there is room for. In the open one requests are due at a rate, and each counts from when it was due, so
//! that a stall shows in full though nobody could be asked while it lasted.
//!
//! **It must be cheap**, as it runs beside what it measures: a client is a task that lives as long as the load, values are
//! slices of a pool, clients share a few histograms.
//!
//! **Side by side.** With the feature `peers` there are binaries that put the same load before Duet and before etcd or redis,
//! in turns, and compare round by round: only ratios within a run mean anything on a shared machine.
//!
//! What is left out: load from several machines, and values that differ in size.

mod choice;
mod duet;
mod load;
mod report;
mod seen;
#[cfg(feature = "clusters")]
pub mod side;
mod target;
mod workload;

pub use choice::{Choice, Spread};
pub use duet::Duet;
pub use load::{Glimpse, Load, LoadError, fill, key, run};
pub use report::{Latency, Line, Report};
pub use target::{Failure, Target};
pub use workload::{Kind, Workload};
