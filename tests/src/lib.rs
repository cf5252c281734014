//! What Duet is tested with: histories and their checkers, the simulation of whole nodes, a ledger for real processes.
//!
//! - [`checker`] decides whether a history of operations is linearizable, and whether acknowledged writes are there. It
//!   knows nothing of how the history came about.
//! - the simulation and the process tests record histories and put them before the checkers.

pub mod checker;
pub mod process;
pub mod sim;

/// Four tests that share the seeds of a simulation among them, so that they run side by side: each calls `part(index, 4)`.
#[macro_export]
macro_rules! seeds_in_four_parts {
    ($part:path) => {
        $crate::seeds_in_four_parts!($part: seeds_0_mod_4 0, seeds_1_mod_4 1, seeds_2_mod_4 2, seeds_3_mod_4 3);
    };
    ($part:path: $($name:ident $index:literal),*) => {
        $(
            #[test]
            fn $name() {
                $part($index, 4);
            }
        )*
    };
}
