//! Commands: what the entries of a group's log say.
//!
//! An entry is a version byte, then commands in postcard, one behind the other: what is proposed together shares an
//! entry, and with it a row of the log and one of answers. An entry without data (a new leader's first) says nothing.
//! What comes after `Write` serves a change of mode: the seal that ends an epoch, late writes that bring their own
//! stamps, and the end of waiting for them.

use bytes::Bytes;
use duet_proto::{Boot, Epoch, Hlc, NodeId, Op, Record, Try};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 2;

/// Names one proposal of one start of one node. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId {
    /// The node that proposed it, and whose name its stamp carries.
    pub node: NodeId,
    /// Which start of that node.
    pub boot: Boot,
    /// Counts the proposals of that start.
    pub counter: u64,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A client's write.
    Write(Write),
    /// The end of the epoch: what comes after it in the log is refused, and `next` begins with what came before.
    Seal {
        /// Who proposed it.
        request: RequestId,
        /// The epoch that is to follow.
        next: Epoch,
    },
    /// Writes of an earlier epoch that a member brings back. Each is merged by its stamp: what was written since stays.
    Late {
        /// Who proposed them.
        request: RequestId,
        /// Keys and records.
        records: Vec<(Bytes, Record)>,
    },
    /// No late writes are owed any more: tombstones are no longer kept, and the oldest of those held go. Proposed
    /// again until none is left.
    Settle {
        /// Who proposed it.
        request: RequestId,
    },
}

/// A client's write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Who proposed it, and waits for its answer.
    pub request: RequestId,
    /// The proposer's clock: the stamp is no earlier.
    pub proposed: Hlc,
    /// What makes a retry of it safe.
    pub attempt: Option<Try>,
    /// The write. The proposer has validated it; a read here is refused.
    pub op: Op,
}

/// Bytes that are not a command of a version that this build knows. An entry is checksummed by the log, so this is
/// never a damaged disk: the entry was written by a newer version, or by a bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log entry is not a command: {why}")]
pub struct CommandError {
    /// What is wrong with it.
    pub why: String,
}

impl Command {
    /// Its part of an entry.
    ///
    /// # Panics
    /// Never: a command serializes, and the buffer grows.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, Vec::with_capacity(self.size_hint())).expect("plain data serializes into memory")
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// If it is not a number of commands, and nothing else.
    pub fn decode(entry: &[u8]) -> Result<Vec<Command>, CommandError> {
        let mut rest = match entry.split_first() {
            None => return Ok(Vec::new()),
            Some((&VERSION, rest)) => rest,
            Some((version, _)) => {
                return Err(CommandError { why: format!("version {version}; this build reads {VERSION}") });
            }
        };
        let mut commands = Vec::new();
        while !rest.is_empty() {
            let (command, later) =
                postcard::take_from_bytes(rest).map_err(|error| CommandError { why: error.to_string() })?;
            commands.push(command);
            rest = later;
        }
        Ok(commands)
    }

    /// Bytes that the encoding of a write of one key fits in, so that the buffer is allocated once.
    fn size_hint(&self) -> usize {
        const FIXED: usize = 128;
        let mutation = match self {
            Command::Write(Write { op: Op::Write { mutation } | Op::CompareAndSet { mutation, .. }, .. }) => mutation,
            _ => return FIXED,
        };
        let value = if let duet_proto::Change::Put(value) = &mutation.change { value.len() } else { 0 };
        FIXED + mutation.key.len() + value
    }
}

/// Adds a command to an entry, to which there is nothing at first.
pub(crate) fn join(entry: &mut Vec<u8>, command: &[u8]) {
    if entry.is_empty() {
        entry.push(VERSION);
    }
    entry.extend_from_slice(command);
}

#[cfg(test)]
mod tests {
    use duet_proto::{Epoch, Mutation, SessionId};
    use proptest::prelude::*;

    use super::*;

    fn write(key: Vec<u8>, value: Vec<u8>) -> Command {
        let session = SessionId(u128::MAX);
        Command::Write(Write {
            request: RequestId { node: NodeId(3), boot: Boot(u64::MAX), counter: u64::MAX },
            proposed: Hlc::MAX,
            attempt: Some(Try { session, sequence: 9, answered_below: 8, seen: 7, epoch: Epoch::FIRST }),
            op: Op::Write { mutation: Mutation::put(key, value) },
        })
    }

    proptest! {
        #[test]
        fn reads_back_and_no_part_of_a_command_does(
            key in prop::collection::vec(any::<u8>(), 1..20),
            value in prop::collection::vec(any::<u8>(), 0..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let command = write(key, value);
            let bytes = command.encode();
            prop_assert!(bytes.capacity() <= command.size_hint(), "one allocation");
            let mut entry = Vec::new();
            for count in 1..4 {
                join(&mut entry, &bytes);
                prop_assert_eq!(Command::decode(&entry), Ok(vec![command.clone(); count]));
            }
            let cut = 1 + cut.index(entry.len() - 1);
            let whole = (cut - 1) % bytes.len() == 0;
            prop_assert_eq!(Command::decode(&entry[..cut]).is_ok(), whole);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Command::decode(&bytes);
        }
    }

    #[test]
    fn an_empty_entry_says_nothing() {
        assert_eq!(Command::decode(&[]), Ok(vec![]));
        assert!(Command::decode(&[VERSION + 1, 0]).is_err());
    }

    /// The bytes on disk and wire: a change here needs another version.
    #[test]
    fn the_bytes_are_these() {
        let command = Command::Write(Write {
            request: RequestId { node: NodeId(3), boot: Boot(4), counter: 5 },
            proposed: Hlc(6),
            attempt: None,
            op: Op::Write { mutation: Mutation::put("k", "v") },
        });
        let mut entry = Vec::new();
        join(&mut entry, &command.encode());
        assert_eq!(entry, [2, 0, 3, 4, 5, 6, 0, 2, 1, b'k', 0, 1, b'v']);
    }
}
