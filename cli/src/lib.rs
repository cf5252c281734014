//! `duet`: the command line.
//!
//! ```text
//! arguments ─ args ─▶ verbs ─ duet-client ─▶ cluster        files, text    import and export, binary-safe
//!                       │                                   status, top    what nodes say, side by side; live
//!                       ▼                                   playground     real nodes on this machine, links between
//!                                                           switch, verify a change of mode, asked for, watched, judged
//!             output: a table or one JSON document          pki            certificates      them that can be cut
//!             failure: a message, an exit code              bench, demo    measure it, show it
//! ```
//!
//! What scripts may rely on (verbs, exit codes, the shape of documents) is in `specs/command-line.md`. The client
//! library does all that talks to a cluster: retries, leaders and sessions are none of this crate's business.

pub mod args;
mod bench;
mod cluster;
mod demo;
pub mod failure;
pub mod files;
pub mod links;
pub mod output;
pub mod pki;
pub mod playground;
pub mod run;
pub mod status;
pub mod switch;
pub mod text;
mod top;
mod transfer;
pub mod verbs;
pub mod verify;
