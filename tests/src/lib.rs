//! What Duet is tested with: histories and their checkers, the simulation of whole nodes, a ledger for real processes.
//!
//! - [`checker`] decides whether a history of operations is linearizable, and whether acknowledged writes are there. It
//!   knows nothing of how the history came about.
//! - the simulation and the process tests record histories and put them before the checkers.

pub mod checker;
pub mod process;
pub mod sim;
