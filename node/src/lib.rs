//! `duetd`: one node of a Duet cluster.
pub mod config;
