//! Histories of operations, and what must be true of them.
//!
//! Every value that a workload writes is unique, so that a read tells which write it saw. An operation whose outcome is
//! unknown is taken as returning never: it may take effect at any time after its call, or at the very end, where nobody
//! sees it.

pub mod epochs;
pub mod eventual;
mod linearizable;
mod stamps;

use std::collections::BTreeMap;

use duet_proto::Stamp;

pub use linearizable::{Verdict, linearizable};
pub use stamps::stamps_rise;

/// A key of a workload.
pub type Key = u16;
/// A unique value of a workload.
pub type Value = u64;

/// What a key must hold for a compare to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// Exactly this value.
    Value(Value),
    /// Nothing.
    Absent,
    /// Something.
    Present,
}

/// One atomic step on the data: compares, then one of two lists of changes, then reads.
///
/// A get has only reads, a put only `then`, a compare-and-set one compare and one change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// All must hold for `then` to happen.
    pub compares: Vec<(Key, Expected)>,
    /// Happens if the compares hold.
    pub then: Vec<(Key, Option<Value>)>,
    /// Happens otherwise.
    pub otherwise: Vec<(Key, Option<Value>)>,
    /// Whether the compares held, if that is known.
    pub held: Option<bool>,
    /// What was read after the changes.
    pub reads: Vec<(Key, Option<Value>)>,
}

/// An operation of a history.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asked.
    pub client: u32,
    /// When it was asked, in any unit that rises.
    pub called: i64,
    /// When it was answered; `None` if its outcome is unknown.
    pub returned: Option<i64>,
    /// What was asked, and what came of it.
    pub step: Step,
    /// The version that was written, if the answer told.
    pub stamp: Option<Stamp>,
}

/// The operations of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
}

impl History {
    /// Adds an operation. The order of adding does not matter.
    pub fn push(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// The operations, in the order they were added.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The operations that concern one key or another of a connected group of keys: groups that no operation joins
    /// can be checked apart (Herlihy and Wing, "Linearizability", TOPLAS 1990, section 3: locality).
    #[must_use]
    pub fn groups(&self) -> Vec<Vec<&Operation>> {
        let mut parent: BTreeMap<Key, Key> = BTreeMap::new();
        for operation in &self.operations {
            let keys = operation.step.keys();
            for pair in keys.windows(2) {
                let (a, b) = (root(&mut parent, pair[0]), root(&mut parent, pair[1]));
                parent.insert(a.max(b), a.min(b));
            }
        }
        let mut groups: BTreeMap<Key, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            if let Some(key) = operation.step.keys().first() {
                groups.entry(root(&mut parent, *key)).or_default().push(operation);
            }
        }
        groups.into_values().collect()
    }
}

fn root(parent: &mut BTreeMap<Key, Key>, key: Key) -> Key {
    let mut at = key;
    while let Some(up) = parent.get(&at).copied().filter(|up| *up != at) {
        at = up;
    }
    parent.insert(key, at);
    at
}

impl Step {
    /// A read.
    #[must_use]
    pub fn read(key: Key, value: Option<Value>) -> Step {
        Step { reads: vec![(key, value)], ..Step::default() }
    }

    /// A write, or a delete.
    #[must_use]
    pub fn write(key: Key, value: Option<Value>) -> Step {
        Step { then: vec![(key, value)], ..Step::default() }
    }

    /// A compare-and-set.
    #[must_use]
    pub fn compare_and_set(key: Key, expected: Expected, value: Option<Value>, held: Option<bool>) -> Step {
        Step { compares: vec![(key, expected)], then: vec![(key, value)], held, ..Step::default() }
    }

    /// The values that it writes, if it writes.
    fn values(&self) -> impl Iterator<Item = Value> + '_ {
        self.then.iter().chain(&self.otherwise).filter_map(|(_, value)| *value)
    }

    /// The values that it is known to have found: what it read, and what it compared with and found equal.
    fn sees(&self) -> impl Iterator<Item = Value> + '_ {
        let compared =
            self.compares.iter().filter(|_| self.held == Some(true)).filter_map(|(_, expected)| match expected {
                Expected::Value(value) => Some(*value),
                Expected::Absent | Expected::Present => None,
            });
        self.reads.iter().filter_map(|(_, value)| *value).chain(compared)
    }

    /// Whether it may take a value away.
    fn deletes(&self) -> bool {
        self.then.iter().chain(&self.otherwise).any(|(_, value)| value.is_none())
    }

    fn keys(&self) -> Vec<Key> {
        let changes = self.then.iter().chain(&self.otherwise).chain(&self.reads).map(|(key, _)| *key);
        self.compares.iter().map(|(key, _)| *key).chain(changes).collect()
    }
}
