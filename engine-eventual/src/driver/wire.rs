//! What travels between engines on the sync lane.
//!
//! A frame is a version byte and any number of items; one without items is a beat, which says that the node lives.
//! An item is its length, 4 bytes little-endian, and the bytes of one [`Envelope`](crate::Envelope).

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use duet_proto::{NodeId, limits};

use crate::MessageError;

const VERSION: u8 = 1;

/// A frame is closed once it is this long; one item always fits.
const FRAME_BYTES: usize = 1 << 20;

/// The longest item that a frame between nodes can carry.
const ITEM_BYTES: usize = limits::PEER_FRAME - FRAME_BYTES;

/// Messages to peers, on their way into as few frames as possible.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    open: BTreeMap<NodeId, BytesMut>,
    closed: Vec<(NodeId, Bytes)>,
}

impl Outbox {
    /// Whether the message is short enough to be sent.
    pub(crate) fn push(&mut self, to: NodeId, message: &[u8]) -> bool {
        if message.len() > ITEM_BYTES {
            return false;
        }
        self.beat(to);
        if let Some(frame) = self.open.get_mut(&to) {
            frame.put_u32_le(message.len() as u32);
            frame.put_slice(message);
            if frame.len() >= FRAME_BYTES {
                let full = std::mem::take(frame).freeze();
                self.closed.push((to, full));
                self.open.remove(&to);
            }
        }
        true
    }

    /// Says that this node lives, unless something else is about to.
    pub(crate) fn beat(&mut self, to: NodeId) {
        self.open.entry(to).or_insert_with(|| BytesMut::from(&[VERSION][..]));
    }

    /// The frames, those to one peer in order.
    pub(crate) fn take(&mut self) -> Vec<(NodeId, Bytes)> {
        let mut frames = std::mem::take(&mut self.closed);
        frames.extend(std::mem::take(&mut self.open).into_iter().map(|(to, frame)| (to, frame.freeze())));
        frames
    }
}

/// Reads a frame: the messages in it.
///
/// # Errors
/// If it is cut, or of another version. What came before the cut is not taken either.
pub(crate) fn read(mut frame: Bytes) -> Result<Vec<Bytes>, MessageError> {
    let malformed = |why: &str| MessageError::Malformed(why.to_owned());
    if !frame.has_remaining() {
        return Err(malformed("an empty frame"));
    }
    let version = frame.get_u8();
    if version != VERSION {
        return Err(MessageError::Version(version));
    }
    let mut items = Vec::new();
    while frame.has_remaining() {
        if frame.remaining() < 4 {
            return Err(malformed("a cut length"));
        }
        let length = frame.get_u32_le() as usize;
        if frame.remaining() < length {
            return Err(malformed("a cut item"));
        }
        items.push(frame.split_to(length));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_read_back_in_order_and_large_frames_are_cut() {
        let mut outbox = Outbox::default();
        let large = vec![7; FRAME_BYTES / 2];
        let messages = [&large[..], b"a", &large[..], b"b", b""];
        for message in messages {
            assert!(outbox.push(NodeId(2), message));
        }
        outbox.beat(NodeId(3));
        assert!(!outbox.push(NodeId(4), &vec![0; ITEM_BYTES + 1]));
        let frames = outbox.take();
        assert_eq!(frames.iter().map(|(to, _)| to.0).collect::<Vec<_>>(), [2, 2, 3]);
        assert!(frames.iter().all(|(_, frame)| frame.len() <= limits::PEER_FRAME));
        let found: Vec<Bytes> = frames.into_iter().flat_map(|(_, frame)| read(frame).unwrap()).collect();
        assert_eq!(found, messages);
        assert_eq!(outbox.take(), []);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..64), version in any::<bool>()) {
            if version {
                bytes.insert(0, VERSION);
            }
            let _ = read(bytes.into());
        }
    }
}
