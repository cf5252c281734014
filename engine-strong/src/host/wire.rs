//! What travels between engines.
//!
//! A raft frame is a version byte and any number of items; one without items is a beat, which says that the node
//! lives. An item, integers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | namespace |
//! | 4 | epoch |
//! | 1 | kind: 1 a message of raft-rs (protobuf); 2 fall asleep; 3 wake up; 4 held by every member |
//! | 4 | length of the rest |
//!
//! On the bulk lane every message is one [`Bulk`], a version byte and postcard.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use duet_proto::{Epoch, Error, NamespaceId, NodeId};
use prost::Message as _;
use raft::eraftpb::Message;
use serde::{Deserialize, Serialize};

use crate::{
    GroupId,
    snapshot::{Point, SnapshotId},
};

const VERSION: u8 = 1;
const HEADER: usize = 17;
const RAFT: u8 = 1;
const SLEEP: u8 = 2;
const WAKE: u8 = 3;
const HELD: u8 = 4;

/// A frame is closed once it is this long; one item always fits.
const FRAME_BYTES: usize = 4 << 20;

/// What one item says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    /// A message of Raft.
    Raft(Box<Message>),
    /// The leader's: everyone has everything up to `last`, the group can sleep.
    Sleep { term: u64, last: u64 },
    /// A follower's, to a leader that may sleep.
    Wake,
    /// The leader's: every member has the log durably up to `index`, so it can be cut there.
    Held { term: u64, index: u64 },
}

/// Messages to peers, on their way into as few frames as possible.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    open: BTreeMap<NodeId, BytesMut>,
    closed: Vec<(NodeId, Bytes)>,
}

impl Outbox {
    pub(crate) fn push(&mut self, to: NodeId, group: GroupId, item: &Item) {
        let frame = self.open.entry(to).or_default();
        if frame.is_empty() {
            frame.put_u8(VERSION);
        }
        frame.put_u64_le(group.namespace.0);
        frame.put_u32_le(group.epoch.0);
        match item {
            Item::Raft(message) => {
                frame.put_u8(RAFT);
                let length = message.encoded_len();
                frame.put_u32_le(length as u32);
                frame.reserve(length);
                // Only a full buffer could fail, and this one grows.
                let _ = message.encode(frame);
            }
            Item::Sleep { term, last: index } | Item::Held { term, index } => {
                frame.put_u8(if matches!(item, Item::Sleep { .. }) { SLEEP } else { HELD });
                frame.put_u32_le(16);
                frame.put_u64_le(*term);
                frame.put_u64_le(*index);
            }
            Item::Wake => {
                frame.put_u8(WAKE);
                frame.put_u32_le(0);
            }
        }
        if frame.len() >= FRAME_BYTES {
            let full = std::mem::take(frame).freeze();
            self.closed.push((to, full));
        }
    }

    /// Says that this node lives, unless something else is about to.
    pub(crate) fn beat(&mut self, to: NodeId) {
        let frame = self.open.entry(to).or_default();
        if frame.is_empty() {
            frame.put_u8(VERSION);
        }
    }

    pub(crate) fn append(&mut self, other: Outbox) {
        for (to, frame) in other.into_frames() {
            let open = self.open.entry(to).or_default();
            if !open.is_empty() {
                let before = std::mem::take(open).freeze();
                self.closed.push((to, before));
            }
            self.closed.push((to, frame));
        }
    }

    pub(crate) fn into_frames(self) -> Vec<(NodeId, Bytes)> {
        let Outbox { open, mut closed } = self;
        closed.extend(open.into_iter().filter(|(_, f)| !f.is_empty()).map(|(to, f)| (to, f.freeze())));
        closed
    }
}

/// Reads a frame; what follows a malformed item is lost.
pub(crate) fn read(mut frame: Bytes) -> Result<Vec<(GroupId, Item)>, Error> {
    let malformed = |why: &str| Error::Malformed { why: why.to_owned() };
    if !frame.has_remaining() {
        return Err(malformed("an empty frame"));
    }
    let version = frame.get_u8();
    if version != VERSION {
        return Err(Error::Version { theirs: u32::from(version), ours: u32::from(VERSION) });
    }
    let mut items = Vec::new();
    while frame.has_remaining() {
        if frame.remaining() < HEADER {
            return Err(malformed("a cut item"));
        }
        let group = GroupId { namespace: NamespaceId(frame.get_u64_le()), epoch: Epoch(frame.get_u32_le()) };
        let kind = frame.get_u8();
        let length = frame.get_u32_le() as usize;
        if frame.remaining() < length {
            return Err(malformed("a cut item"));
        }
        let mut body = frame.split_to(length);
        let item = match (kind, length) {
            (RAFT, _) => Item::Raft(Box::new(Message::decode(body).map_err(|e| malformed(&e.to_string()))?)),
            (SLEEP, 16) => Item::Sleep { term: body.get_u64_le(), last: body.get_u64_le() },
            (WAKE, 0) => Item::Wake,
            (HELD, 16) => Item::Held { term: body.get_u64_le(), index: body.get_u64_le() },
            _ => return Err(malformed("an unknown item")),
        };
        items.push((group, item));
    }
    Ok(items)
}

/// A message about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Bulk {
    /// Sender: there is a snapshot for you.
    Offer { id: SnapshotId },
    /// Receiver: send chunks from this point on, this many.
    Want { id: SnapshotId, point: Point, chunks: u32 },
    /// Sender: one chunk.
    Chunk { id: SnapshotId, chunk: Bytes },
    /// Receiver: it is in place, or was not needed.
    Done { id: SnapshotId },
    /// Either: it cannot go on.
    Stop { id: SnapshotId },
}

impl Bulk {
    pub(crate) fn id(&self) -> SnapshotId {
        match self {
            Bulk::Offer { id }
            | Bulk::Want { id, .. }
            | Bulk::Chunk { id, .. }
            | Bulk::Done { id }
            | Bulk::Stop { id } => *id,
        }
    }

    pub(crate) fn group(&self) -> GroupId {
        let id = self.id();
        GroupId { namespace: id.namespace, epoch: id.epoch }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let body = duet_proto::frame::encode(self);
        let mut bytes = BytesMut::with_capacity(1 + body.len());
        bytes.put_u8(VERSION);
        bytes.put_slice(&body);
        bytes.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Bulk, Error> {
        match bytes.split_first() {
            Some((&VERSION, body)) => duet_proto::frame::decode(body),
            Some((version, _)) => Err(Error::Version { theirs: u32::from(*version), ours: u32::from(VERSION) }),
            None => Err(Error::Malformed { why: "an empty message".into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: GroupId = GroupId { namespace: NamespaceId(3), epoch: Epoch(2) };

    #[test]
    fn items_read_back_in_order_and_large_frames_are_cut() {
        let mut outbox = Outbox::default();
        let append = Message { to: 2, from: 1, index: 9, context: vec![7; FRAME_BYTES / 2], ..Message::default() };
        let items = [
            Item::Raft(Box::new(append.clone())),
            Item::Wake,
            Item::Raft(Box::new(append)),
            Item::Sleep { term: 4, last: 5 },
            Item::Held { term: 4, index: 3 },
        ];
        for item in &items {
            outbox.push(NodeId(2), ID, item);
        }
        outbox.beat(NodeId(2));
        outbox.beat(NodeId(3));
        let frames = outbox.into_frames();
        assert_eq!(frames.iter().map(|(to, _)| to.0).collect::<Vec<_>>(), [2, 2, 3]);
        let mut found = Vec::new();
        for (_, frame) in frames {
            found.extend(read(frame).unwrap().into_iter().map(|(id, item)| {
                assert_eq!(id, ID);
                item
            }));
        }
        assert_eq!(found, items);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Bulk::decode(&bytes);
            let mut frame = vec![VERSION];
            frame.extend_from_slice(&bytes);
            let _ = (read(bytes.into()), read(frame.into()));
        }
    }
}
