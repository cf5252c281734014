//! What travels between engines on the sync lane.
//!
//! A frame is a version byte and any number of items; one without items is a beat, which says that the node lives.
//! An item is its length, 4 bytes little-endian, and the bytes of one [`Envelope`](crate::Envelope).

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use duet_proto::{NodeId, limits};
use tokio::time::Instant;

use crate::MessageError;

const VERSION: u8 = 1;

/// A frame is closed once it is this long; one item always fits.
const FRAME_BYTES: usize = 1 << 20;

/// The longest item that a frame between nodes can carry.
const ITEM_BYTES: usize = limits::PEER_FRAME - FRAME_BYTES;

/// Messages to peers, on their way into as few frames as possible.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    open: BTreeMap<NodeId, Open>,
    closed: Vec<(NodeId, Bytes)>,
}

/// A frame that still takes messages.
#[derive(Debug)]
struct Open {
    frame: BytesMut,
    /// When the message of it is to leave that is in the greatest hurry.
    by: Instant,
}

impl Outbox {
    /// Takes a message that is to leave by then. Whether it is short enough to be sent.
    pub(crate) fn push(&mut self, to: NodeId, message: &[u8], by: Instant) -> bool {
        if message.len() > ITEM_BYTES {
            return false;
        }
        let frame = self.open(to, by);
        frame.put_u32_le(message.len() as u32);
        frame.put_slice(message);
        if frame.len() >= FRAME_BYTES {
            let full = std::mem::take(frame).freeze();
            self.closed.push((to, full));
            self.open.remove(&to);
        }
        true
    }

    /// Says that this node lives, with whatever else is about to leave.
    pub(crate) fn beat(&mut self, to: NodeId, by: Instant) {
        self.open(to, by);
    }

    fn open(&mut self, to: NodeId, by: Instant) -> &mut BytesMut {
        let open = self.open.entry(to).or_insert_with(|| Open { frame: BytesMut::from(&[VERSION][..]), by });
        open.by = open.by.min(by);
        &mut open.frame
    }

    /// When the next frame is to leave.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.open.values().map(|open| open.by).min()
    }

    /// The frames that are full, or to leave by now; those to one peer in order.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<(NodeId, Bytes)> {
        let mut frames = std::mem::take(&mut self.closed);
        let due = self.open.extract_if(.., |_, open| open.by <= now);
        frames.extend(due.map(|(to, open)| (to, open.frame.freeze())));
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
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_read_back_in_order_and_large_frames_are_cut() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        let large = vec![7; FRAME_BYTES / 2];
        let messages = [&large[..], b"a", &large[..], b"b", b""];
        for message in messages {
            assert!(outbox.push(NodeId(2), message, now));
        }
        outbox.beat(NodeId(3), now);
        assert!(!outbox.push(NodeId(4), &vec![0; ITEM_BYTES + 1], now));
        let frames = outbox.take(now);
        assert_eq!(frames.iter().map(|(to, _)| to.0).collect::<Vec<_>>(), [2, 2, 3]);
        assert!(frames.iter().all(|(_, frame)| frame.len() <= limits::PEER_FRAME));
        let found: Vec<Bytes> = frames.into_iter().flat_map(|(_, frame)| read(frame).unwrap()).collect();
        assert_eq!(found, messages);
        assert_eq!((outbox.take(now), outbox.due()), (vec![], None));
    }

    #[test]
    fn what_is_in_no_hurry_leaves_with_what_is() {
        let (mut outbox, start) = (Outbox::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let leave = |outbox: &mut Outbox, now| {
            let frames = outbox.take(now).into_iter();
            frames.map(|(to, frame)| (to.0, read(frame).unwrap().concat())).collect::<Vec<_>>()
        };
        outbox.push(NodeId(2), b"a", at(2));
        outbox.push(NodeId(3), b"b", at(2));
        outbox.push(NodeId(2), b"c", at(3));
        assert_eq!((outbox.due(), leave(&mut outbox, at(1))), (Some(at(2)), vec![]));
        outbox.push(NodeId(3), b"d", at(1));
        assert_eq!((outbox.due(), leave(&mut outbox, at(1))), (Some(at(1)), vec![(3, b"bd".to_vec())]));
        assert_eq!(leave(&mut outbox, at(2)), [(2, b"ac".to_vec())], "by when the first of them is due");
        outbox.push(NodeId(2), &vec![7; FRAME_BYTES], at(9));
        outbox.push(NodeId(2), b"e", at(9));
        assert_eq!(leave(&mut outbox, at(3)).len(), 1, "a full frame waits for nothing");
        assert_eq!(leave(&mut outbox, at(9)), [(2, b"e".to_vec())]);
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
