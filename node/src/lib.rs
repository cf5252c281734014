//! `duetd`: one node of a Duet cluster.
//!
//! ```text
//!  file, environment, flags ─► config::Resolved ─┐
//!                                                ├─► Node::start ─► a running node
//!  store, network, clock, certificate: Parts ────┘
//!
//!  client ─► transport ─► serve: role, deadline ─► router ─► engine ─► answer ─► transport ─► client
//!  peer   ─► transport lane ─────────────────────────────► engine
//! ```
//!
//! [`Node::start`] is the composition root: it wires the lanes of the transport to the engine once and is then off the
//! path of every request. It is given everything that touches a machine, so that the [`daemon`] and the simulation
//! run the same node: the one gives it RocksDB, UDP sockets and the system's clock, the other a memory store that
//! forgets what was not synced, a network that loses packets, and a seed. Nothing between here and the engines
//! asks the system for time, threads or randomness.
//!
//! What this crate leaves out: what a request means (`router` and the engines), what a byte on the wire or on disk
//! means (`transport`, `proto`, `store`), and every decision about consistency.

mod certificates;
pub mod config;
pub mod daemon;
#[cfg(test)]
mod documented;
mod http;
pub mod log;
mod metrics;
mod node;
mod rotate;
mod scrub;
mod serve;
mod settings;
pub mod systemd;
mod wiring;
mod words;

pub use node::{Node, Parts, StartError};
#[cfg(feature = "planted")]
pub use settings::Planted;
