//! What replicas say to each other: postcard behind a version byte, whatever the lane.

use bytes::Bytes;
use duet_proto::{Body, Digest, Epoch, Hlc, NamespaceId, NodeId, Record, Stamp};
use serde::{Deserialize, Serialize};

use crate::Frontier;

/// The version of the protocol between replicas.
pub const VERSION: u8 = 1;

/// A message and what every message says of its sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Which namespace.
    pub namespace: NamespaceId,
    /// Which epoch of it: sessions need equal ones.
    pub epoch: Epoch,
    /// The version of the members that its sender goes by.
    pub version: u64,
    /// The sender's wall clock, in milliseconds.
    pub wall_ms: u64,
    /// The message.
    pub message: Message,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Writes of the sender's own, as soon as they are durable there.
    Push(Push),
    /// The sender durably holds your writes up to a time.
    Ack(Hlc),
    /// What the sender durably holds.
    Report(Report),
    /// Asks for every record beyond a frontier.
    Pull {
        /// Names the session. Never used twice by one receiver.
        nonce: Nonce,
        /// What the asker holds.
        frontier: Frontier,
    },
    /// Asks for the chunk after this one.
    More {
        /// The session.
        nonce: Nonce,
        /// The walk that the chunk before it was of.
        walk: Nonce,
        /// The number of the chunk asked for.
        sequence: u32,
    },
    /// A part of a session's walk.
    Chunk(Chunk),
    /// A new member asks for the records after a key.
    Copy {
        /// Names the request.
        nonce: Nonce,
        /// What the copy will claim at its end; `None` at its beginning.
        target: Option<Frontier>,
        /// The last key that the asker has.
        after: Option<Bytes>,
    },
    /// A part of a copy.
    Copied(Copied),
    /// The sender cannot serve that session.
    Refused {
        /// The session.
        nonce: Nonce,
        /// Why.
        why: Refusal,
    },
    /// Asks for the records of some keys, to replace damaged ones.
    Fetch {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// What the sender holds under those keys.
    Fetched {
        /// Its frontier as of the reading.
        frontier: Frontier,
        /// The keys and their records.
        items: Vec<(Bytes, Option<Record>)>,
    },
    /// Compares a range of keys of two replicas that claim the same and differ.
    Compare(Compare),
    /// The sender's records of such a range, where it differs.
    Differs(Differs),
}

impl Message {
    /// Whether nobody waits for it, so that it may wait for others of its kind.
    pub(crate) fn is_patient(&self) -> bool {
        matches!(self, Message::Push(push) if !push.ack)
    }
}

/// Names a session or a walk: the boot of the node that names it, and a count. Never used twice by one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Nonce(pub u64, pub u64);

/// Writes of one origin, without a gap from `previous` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// The time of the write before the first of these; zero if there is none.
    pub previous: Hlc,
    /// The origin's frontier before any of these writes.
    pub frontier: Frontier,
    /// Whether the origin waits for an [`Message::Ack`].
    pub ack: bool,
    /// The writes, in order.
    pub writes: Vec<Written>,
}

/// A write of the sender's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// When.
    pub hlc: Hlc,
    /// The key.
    pub key: Bytes,
    /// What it holds.
    pub body: Body,
}

/// A part of the walk of one index from one durable snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The session.
    pub nonce: Nonce,
    /// The walk, as its sender names it: a request that arrives twice begins two, and their chunks must not be mixed.
    pub walk: Nonce,
    /// Its place in it, from 0.
    pub sequence: u32,
    /// The sender's frontier in that snapshot.
    pub frontier: Frontier,
    /// The records, in order of origin and time.
    pub items: Vec<(Bytes, Record)>,
    /// In the last chunk: what the sender's data came to, in that snapshot.
    pub last: Option<Summary>,
}

/// A part of a copy in order of key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// The request.
    pub nonce: Nonce,
    /// The sender's frontier as of the reading.
    pub frontier: Frontier,
    /// What the sender has forgotten.
    pub floor: Frontier,
    /// What the copy will claim at its end.
    pub target: Frontier,
    /// The highest stamp of earlier epochs with which this one began.
    pub begin: Stamp,
    /// The key after which this begins.
    pub after: Option<Bytes>,
    /// The records, tombstones included.
    pub items: Vec<(Bytes, Record)>,
    /// Whether there is no more.
    pub last: bool,
}

/// What a replica's data comes to. Equal at two clean replicas of equal frontiers, or something is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Over the live values.
    pub digest: Digest,
    /// How many there are.
    pub keys: u64,
    /// Tombstones held: these may differ.
    pub tombstones: u64,
}

/// What a replica durably holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its frontier.
    pub frontier: Frontier,
    /// Whether it holds nothing beyond it.
    pub clean: bool,
    /// What its data comes to.
    pub summary: Summary,
    /// The peers whose clocks it finds ahead of its own by more than is allowed, in milliseconds.
    pub ahead: Vec<(NodeId, u64)>,
}

/// A range of keys, as one replica has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The sender's frontier; a receiver with another one does not answer.
    pub frontier: Frontier,
    /// The key after which the range begins.
    pub after: Option<Bytes>,
    /// Its last key; `None` for the end.
    pub to: Option<Bytes>,
    /// Over the live values in it.
    pub digest: Digest,
}

/// The records of a range of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differs {
    /// The sender's frontier as of the reading.
    pub frontier: Frontier,
    /// The key after which the range begins.
    pub after: Option<Bytes>,
    /// Its last key; `None` for the end. May lie before what was asked for.
    pub to: Option<Bytes>,
    /// The sender's records in it, unless its digest is the same.
    pub items: Option<Vec<(Bytes, Record)>>,
}

/// Why a session is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The sender has no such session (any more).
    Unknown,
    /// The sender is itself still being copied to, or does not hold what the copy is to claim.
    Behind,
    /// The asker does not claim what the sender has forgotten tombstones of; it would keep what was deleted.
    BelowFloor,
    /// The sender's data is damaged there.
    Damaged,
}

/// Bytes that are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Another version of the protocol.
    #[error("version {0} of the protocol between replicas is not spoken here ({VERSION} is)")]
    Version(u8),
    /// Cut, too long, or not what was written.
    #[error("malformed message between replicas: {0}")]
    Malformed(String),
}

impl Envelope {
    /// The bytes to send.
    ///
    /// # Errors
    /// Never, for what this crate makes; postcard has no type that says so.
    pub fn encode(&self) -> Result<Bytes, MessageError> {
        let bytes = postcard::to_extend(self, vec![VERSION]);
        bytes.map(Bytes::from).map_err(|e| MessageError::Malformed(e.to_string()))
    }

    /// Reads what [`Envelope::encode`] made.
    ///
    /// # Errors
    /// If it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, MessageError> {
        match bytes.split_first() {
            None => Err(MessageError::Malformed("no bytes".into())),
            Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
                Ok((envelope, [])) => Ok(envelope),
                Ok((_, rest)) => Err(MessageError::Malformed(format!("{} bytes too many", rest.len()))),
                Err(error) => Err(MessageError::Malformed(error.to_string())),
            },
            Some((&version, _)) => Err(MessageError::Version(version)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope() -> Envelope {
        let push = Push {
            previous: Hlc(7),
            frontier: Frontier::from_iter([(NodeId(2), Hlc(7))]),
            ack: true,
            writes: vec![Written { hlc: Hlc(9), key: "k".into(), body: Body::Value("v".into()) }],
        };
        let (namespace, epoch, version, wall_ms) = (NamespaceId(3), Epoch(1), 5, 1000);
        Envelope { namespace, epoch, version, wall_ms, message: Message::Push(push) }
    }

    #[test]
    fn bytes_on_the_wire() {
        let bytes = envelope().encode().unwrap();
        assert_eq!(bytes[..], [1, 3, 1, 5, 232, 7, 0, 7, 1, 2, 7, 1, 1, 9, 1, b'k', 0, 1, b'v']);
        assert_eq!(Envelope::decode(&bytes), Ok(envelope()));
        assert_eq!(Envelope::decode(&[9, 0]), Err(MessageError::Version(9)));
        assert!(matches!(Envelope::decode(&[&bytes[..], &[0]].concat()), Err(MessageError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..64), version in any::<bool>()) {
            if version {
                bytes.insert(0, VERSION);
            }
            let _ = Envelope::decode(&bytes);
        }

        #[test]
        fn damage_is_an_error_or_another_message(at in 0usize..19, byte in any::<u8>()) {
            let mut bytes = envelope().encode().unwrap().to_vec();
            bytes[at] = byte;
            let _ = Envelope::decode(&bytes);
        }
    }
}
