//! `duetd`: one node of a Duet cluster.
pub mod config;
pub mod log;
mod metrics;
pub mod systemd;
