//! Numbers for the router's own writes, so that one of unknown outcome can be tried again without harm.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use duet_proto::{Boot, Epoch, NodeId, SessionId, Try};

/// The session of one start of one node.
#[derive(Debug)]
pub(crate) struct Tries {
    session: SessionId,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    sequences: BTreeSet<u64>,
}

impl Tries {
    /// A node and its boot counter never come together twice, so the session needs no chance: the high bits spell
    /// `duet`, which a client's random number does with a probability of 2^-32 before it even meets node and boot.
    pub(crate) fn new(node: NodeId, boot: Boot) -> Tries {
        let tag = u128::from(u32::from_be_bytes(*b"duet"));
        let session = SessionId(tag << 96 | u128::from(node.0) << 64 | u128::from(boot.0));
        Tries { session, open: Mutex::default() }
    }

    /// The next number; `seen` is a position of the log that was applied before. It stays open until it is dropped.
    pub(crate) fn begin(&self, seen: u64) -> OpenTry<'_> {
        let mut open = self.open();
        open.last += 1;
        let sequence = open.last;
        open.sequences.insert(sequence);
        let answered_below = open.sequences.first().copied().unwrap_or(sequence);
        let attempt = Try { session: self.session, sequence, answered_below, seen, epoch: Epoch::FIRST };
        OpenTry { tries: self, attempt }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number in use.
#[derive(Debug)]
pub(crate) struct OpenTry<'a> {
    tries: &'a Tries,
    pub(crate) attempt: Try,
}

impl Drop for OpenTry<'_> {
    fn drop(&mut self) {
        self.tries.open().sequences.remove(&self.attempt.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_number_is_not_forgotten() {
        let tries = Tries::new(NodeId(1), Boot(2));
        let first = tries.begin(0);
        let second = tries.begin(0);
        assert_eq!((first.attempt.sequence, second.attempt.sequence), (1, 2));
        assert_eq!(second.attempt.answered_below, 1);
        drop(first);
        assert_eq!(tries.begin(0).attempt.answered_below, 2);
        drop(second);
        assert_eq!(tries.begin(0).attempt.answered_below, 4, "nothing else is open");
    }
}
