//! From the name of a namespace to the replica that serves it; and the catalog that knows the one from the other.
//!
//! ```text
//!  node/serve ── Router::call ──► view: name → id, mode, epoch, members ──► that engine's handle
//!             └─ Router::admin ─► plan(view) ─► one transaction ─┐        ▲
//!                                                                ▼        │ create, remove, set members
//!   view ◄── follow ◄── applied changes ◄── the system group (strong)     │
//!    └───────────────────────────► reconcile: local replicas := view ─────┘
//! ```
//!
//! The catalog is ordinary keys of the system namespace, of which every node of the cluster holds a replica. A node
//! derives its [`View`] from what its own replica applies, so that routing reads memory only and goes on while the
//! catalog's quorum is gone. The view may be behind; three rules keep that harmless:
//!
//! - A change is planned on the view and carried out as one transaction that compares the version of every entry it
//!   rests on (`plan`). A view that was behind makes the compare fail, and it is planned anew.
//! - "There is no such namespace" is said only after a read through the catalog's quorum.
//! - A replica is deleted only if its id lies below the next one to be given out and no entry has it, or its entry
//!   says so. An old view has a low counter, and never calls a young namespace deleted.
//!
//! The reconciler is level-triggered: it compares what the view says with what the engine holds and takes the next
//! step, again whenever one of them changes and every so often while something is unfinished. A crash at any point
//! is resumed by looking again. That goes for changes of an eventual namespace's members too, and for changes of mode:
//! there is no coordinator to lose, each node moves its own replica and reports in the namespace's entry, and the last
//! report that a step needs takes the step (`plan/reform.rs`, `plan/switch.rs`).
//!
//! A request waits in `dispatch.rs` while a change of mode holds it up, and is told of the new epoch where it cannot be
//! carried out in it as it is.
//!
//! A node that nobody can reach goes on with what it knew: its view is made of its own replica of the catalog, also right
//! after a restart, so it serves its eventual namespaces as before.
//!
//! What this crate leaves out: it opens no socket, decodes no frame, stores nothing of its own (the catalog is data
//! of the strong engine) and knows no peer's liveness. The engines know nothing of it, nor of each other.

pub mod catalog;
mod counts;
mod dispatch;
mod failpoint;
mod plan;
mod planted;
mod reconcile;
mod router;
mod tell;
mod tries;
mod view;

pub use counts::Metrics;
pub use planted::Planted;
pub use router::{Config, Founder, Router};
pub use view::{Entry, View};
