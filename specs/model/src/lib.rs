//! The mode switch as models that a machine explores to the end.
//!
//! A namespace changes its engine while clients write, members die and coordinators race. What could go wrong there is
//! a matter of orders of events, too many to think through and too rare to meet in a test. So the protocol is written here
//! a second time, as small as it can be and still go wrong, and [stateright] tries every order: each state that can be
//! reached is looked at, and each must keep the properties, which are sentences (`"no acknowledged write is lost"`).
//!
//! ```text
//!             to_strong ── the base, late writes ──► late ── tombstones, forgetting, the next switch
//!  eventual ◄───────────► strong
//!             to_eventual ── the seal in the log      retry ── exactly once, over three epochs
//!                                                     token ── sessions and scans
//! ```
//!
//! One model of everything would be too large to be explored and too large to be believed. Each of these five holds what
//! belongs together and says in its opening what it leaves out, and why that loses nothing. [`settings`] has the bounds.
//!
//! **Rules can be taken out.** Every rule of `specs/switch.md` is a [`Rule`](rules::Rule) that a model consults where the
//! protocol does, and for each there is a counterexample without it: `tests/rules.rs` asserts which property breaks, and
//! `timelines` prints how. A rule that could be taken out unnoticed would be one that nobody needs, or, more likely, a
//! model that does not see what it is for.
//!
//! **Finishing is a property too.** From every state that can be reached there must be a way to the end of the switch,
//! and one to a namespace that takes writes without anybody coming back. [`explore`] checks that on the graph of all
//! states, which stateright does not do.
//!
//! ```text
//! make model                                          everything, exhaustively
//! cargo run -p duet-model -- small                    what continuous integration explores
//! cargo run -p duet-model -- timelines                what happens without each rule
//! ```
//!
//! The models know nothing of the code, and the code nothing of them: what ties the two together is `specs/switch.md`,
//! and the simulation, which looks for the same properties in the real thing.

pub mod explore;
pub mod late;
pub mod retry;
pub mod rules;
pub mod set;
pub mod settings;
pub mod to_eventual;
pub mod to_strong;
pub mod token;
