//! Snapshots: how a replica that the log no longer reaches gets the state of another one.
//!
//! ```text
//!   sender                                      receiver
//!   store snapshot ─► Capture ── chunks ──► Installer ─► staged rows ── move ─► live rows
//!                        ▲                      │        (old state serves)     (one marker, resumable)
//!                        └── wanted(): Point ◄──┘
//! ```
//!
//! A snapshot is cut into chunks of about [`CHUNK_BYTES`], each with a checksum and its number: a header (the machine's
//! [`State`], and bytes of the host's own), the records in order of key, the answers of the exactly-once table in
//! order of position, an end. The cut depends on the content alone and the content on the [`SnapshotId`] alone, so
//! the chunks of two senders with the same id are interchangeable, and either can go on at a [`Point`] where the
//! other stopped. The receiver says which point it wants; a sender keeps nothing but its store snapshot.
//!
//! Chunks are *staged*: written under another namespace id, each in one batch with the marker that counts it, while
//! the old state stays in place and serves. When the end has come and the digest and the counts agree with the
//! header, the rows are *moved*: the first step removes the old state, the last one puts the new one, and the marker
//! in between says how far it is. At every moment a crash leaves the old state with a resumable stage, or a move
//! that [`Installer::resume`] finishes from this disk alone, or the new state. None of the steps needs a sync of its
//! own, since the store's log is ordered; the last one must be synced before anyone is told.

mod capture;
mod install;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes, BytesMut};
use duet_proto::{Epoch, NamespaceId, RecordError};
use duet_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::machine::State;

pub use self::{
    capture::Capture,
    install::{Installer, Phase},
};

/// How many bytes of keys and values a chunk holds. One row always fits, so a chunk with a large record is larger.
/// In this crate's tests it is small, so that a few rows are many chunks.
pub const CHUNK_BYTES: usize = if cfg!(test) { 100 } else { 256 << 10 };

const VERSION: u8 = 1;
/// The version, and CRC-32C of what follows, little-endian.
const HEADER: usize = 5;

/// Names the content of a snapshot: replicas that have applied the same entry of the same group hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SnapshotId {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The epoch.
    pub epoch: Epoch,
    /// The last index that is in it.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
}

/// The first chunk's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Which snapshot.
    pub id: SnapshotId,
    /// The machine's state.
    pub state: State,
    /// What the host keeps with it (the members, as of that index). A function of the id, too.
    pub host: Bytes,
}

/// A place in the stream of a snapshot: what has arrived, and what comes next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The number of the next chunk; the header is number 0.
    pub number: u32,
    /// What it begins with.
    pub place: Place,
}

impl Point {
    /// Before the header.
    pub const START: Point = Point { number: 0, place: Place::Header };
}

/// What a chunk begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// The header.
    Header,
    /// Records or answers.
    Rows {
        /// Which of them.
        section: Section,
        /// After this one; from the first one otherwise.
        after: Option<Bytes>,
    },
    /// The end.
    End,
    /// Nothing: it is complete.
    Done,
}

/// The kinds of rows, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Section {
    /// User keys and encoded records.
    Records,
    /// Positions and answers.
    Answers,
}

/// One chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    id: SnapshotId,
    number: u32,
    body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Body {
    Header(Header),
    /// `more`: the section goes on in the next chunk.
    Rows {
        section: Section,
        more: bool,
        rows: Vec<(Bytes, Bytes)>,
    },
    End,
}

/// Why a snapshot cannot be captured, or a chunk or snapshot not be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed, or a row that is needed is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no state to capture.
    #[error("there is no state of that group to capture")]
    Nothing,
    /// A chunk was damaged on its way, or is not one. Ask for it again.
    #[error("a damaged chunk: {why}")]
    Damaged {
        /// What is wrong with it.
        why: String,
    },
    /// A chunk of another version of the format.
    #[error("a chunk of version {found}; this build reads {VERSION}")]
    Version {
        /// The chunk's.
        found: u8,
    },
    /// A chunk of another snapshot, or a point in one.
    #[error("a chunk of snapshot {found:?} where {expected:?} is installed")]
    Other {
        /// The one that is installed.
        expected: SnapshotId,
        /// The one that the chunk is of.
        found: SnapshotId,
    },
    /// A chunk that came twice or too early. Ask for the one that is wanted.
    #[error("chunk {found} came where {expected} is wanted")]
    OutOfOrder {
        /// The one that is wanted.
        expected: u32,
        /// The one that came.
        found: u32,
    },
    /// A damaged record, at the sender or in a chunk whose checksum was computed over the damage.
    #[error("the record of key {} is damaged: {error}", .key.escape_ascii())]
    Record {
        /// Its key.
        key: Bytes,
        /// What is wrong with it.
        error: RecordError,
    },
    /// All chunks have arrived, and what they hold is not what the header says. Start over, with another sender.
    #[error("the snapshot does not add up: {what}")]
    Mismatch {
        /// What differs.
        what: String,
    },
    /// Not in this phase of the install.
    #[error("not while the install is {phase}")]
    Phase {
        /// The phase it is in.
        phase: &'static str,
    },
}

impl Chunk {
    /// Version 1, CRC-32C of the rest 4, postcard.
    fn encode(&self) -> Bytes {
        let body = duet_proto::frame::encode(self);
        let mut bytes = BytesMut::with_capacity(HEADER + body.len());
        bytes.put_u8(VERSION);
        bytes.put_u32_le(crc32c::crc32c(&body));
        bytes.put_slice(&body);
        bytes.freeze()
    }

    fn decode(bytes: &[u8]) -> Result<Chunk, SnapshotError> {
        let damaged = |why: &str| SnapshotError::Damaged { why: why.into() };
        let Some((header, body)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(damaged("shorter than its header"));
        };
        let [version, checksum @ ..] = *header;
        if version != VERSION {
            return Err(SnapshotError::Version { found: version });
        }
        if crc32c::crc32c(body) != u32::from_le_bytes(checksum) {
            return Err(damaged("its checksum is another one"));
        }
        duet_proto::frame::decode(body).map_err(|error| damaged(&error.to_string()))
    }
}
