//! Frames onto streams and off them: the hot path.
//!
//! A sender appends its frame to an [`Outbox`] and goes on; one task per stream takes everything that has gathered and
//! hands it to QUIC in one call. So the cost of a wakeup, and of a packet, is shared by all that came meanwhile.

use std::{
    future::poll_fn,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use bytes::{Bytes, BytesMut};
use duet_proto::frame;
use quinn::{RecvStream, SendStream};
use tokio::sync::Notify;

use crate::Refusal;

/// Bodies from this size on are passed by reference; smaller ones are copied together.
const COPY_BELOW: usize = 8 << 10;
/// Chunks asked of QUIC at a time.
const CHUNKS: usize = 32;

/// A queue of frames for one stream.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
    room: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    parts: Vec<Bytes>,
    tail: BytesMut,
    bytes: usize,
    /// Whose turn it is to take; anyone else is turned away.
    taker: u64,
    closed: bool,
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame around `body` unless more than `limit` bytes would wait; into an empty queue any frame fits.
    /// Returns the bytes that wait now.
    pub(crate) fn push(&self, body: &Bytes, limit: usize) -> Result<usize, Refused> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(Refused::Closed);
        }
        let was_empty = queue.bytes == 0;
        let size = frame::HEADER + body.len();
        if !was_empty && queue.bytes + size > limit {
            return Err(Refused::Full);
        }
        if body.len() < COPY_BELOW {
            frame::put(body, &mut queue.tail);
        } else {
            let length = u32::try_from(body.len()).map_err(|_| Refused::Full)?;
            queue.tail.extend_from_slice(&length.to_le_bytes());
            let head = queue.tail.split().freeze();
            queue.parts.extend([head, body.clone()]);
        }
        queue.bytes += size;
        let bytes = queue.bytes;
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
        Ok(bytes)
    }

    /// Queues like [`Outbox::push`], waiting for room.
    pub(crate) async fn push_wait(&self, body: &Bytes, limit: usize) -> Result<(), Refused> {
        loop {
            let room = self.room.notified();
            match self.push(body, limit) {
                Err(Refused::Full) => room.await,
                done => return done.map(|_| ()),
            }
        }
    }

    /// Everything queued, once there is something. `None` when the queue is closed and empty, or another has become
    /// the taker.
    async fn take(&self, taker: u64) -> Option<Vec<Bytes>> {
        loop {
            let filled = self.filled.notified();
            {
                let mut queue = self.lock();
                if queue.taker != taker {
                    return None;
                }
                if queue.bytes > 0 {
                    let mut parts = std::mem::take(&mut queue.parts);
                    if !queue.tail.is_empty() {
                        parts.push(queue.tail.split().freeze());
                    }
                    queue.bytes = 0;
                    drop(queue);
                    self.room.notify_waiters();
                    return Some(parts);
                }
                if queue.closed {
                    return None;
                }
            }
            filled.await;
            // One write then carries what all have to add that are ready to run.
            after_the_ready().await;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Makes `taker` the one that may take.
    pub(crate) fn set_taker(&self, taker: u64) {
        self.lock().taker = taker;
        self.filled.notify_waiters();
        self.filled.notify_one();
    }

    /// Drops what is queued.
    pub(crate) fn clear(&self) {
        let mut queue = self.lock();
        queue.parts.clear();
        queue.tail.clear();
        queue.bytes = 0;
        drop(queue);
        self.room.notify_waiters();
    }

    /// Takes no more; what is queued still goes out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_waiters();
        self.filled.notify_one();
        self.room.notify_waiters();
    }

    /// Writes what is queued to `stream`, now and as it comes, until [`Outbox::take`] ends or the stream fails.
    pub(crate) async fn pump(&self, taker: u64, stream: &mut SendStream, mut sent: impl FnMut(usize)) -> bool {
        while let Some(mut parts) = self.take(taker).await {
            let bytes = parts.iter().map(Bytes::len).sum();
            if stream.write_all_chunks(&mut parts).await.is_err() {
                return false;
            }
            sent(bytes);
        }
        true
    }
}

/// Takes frames off a stream. [`FrameReader::next`] may be cancelled at any time.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
    limit: usize,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream, limit: usize) -> FrameReader {
        FrameReader { stream, buffer: BytesMut::with_capacity(64 << 10), limit }
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// A frame that has arrived already.
    pub(crate) fn ready(&mut self) -> Result<Option<Bytes>, Refusal> {
        frame::take(&mut self.buffer, self.limit).map_err(|_| Refusal::TooLarge)
    }

    /// The next frame; `None` at the end of the stream or when the connection is gone.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            if let Some(body) = self.ready()? {
                return Ok(Some(body));
            }
            let mut chunks: [Bytes; CHUNKS] = Default::default();
            match self.stream.read_chunks(&mut chunks).await {
                Ok(Some(count)) => chunks[..count].iter().for_each(|chunk| self.buffer.extend_from_slice(chunk)),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Err(Refusal::Malformed),
                Err(_) => return Ok(None),
            }
        }
    }

    /// The length of the next frame, once its header has arrived.
    pub(crate) async fn length(&mut self) -> Result<Option<usize>, Refusal> {
        let mut header = [0; frame::HEADER];
        if self.stream.read_exact(&mut header).await.is_err() {
            return Ok(None);
        }
        self.buffer.extend_from_slice(&header);
        let length = u32::from_le_bytes(header) as usize;
        if length > self.limit { Err(Refusal::TooLarge) } else { Ok(Some(length)) }
    }
}

/// Lets those that are ready to run go first. Unlike [`tokio::task::yield_now`] it does not make the runtime ask the kernel
/// for news before.
async fn after_the_ready() {
    let mut first = true;
    poll_fn(|cx| {
        if std::mem::take(&mut first) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Writes a single frame.
pub(crate) async fn write_frame(stream: &mut SendStream, body: Bytes) -> Result<(), quinn::WriteError> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    stream.write_all_chunks(&mut [Bytes::copy_from_slice(&length), body]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(size: usize) -> Bytes {
        vec![7; size].into()
    }

    #[tokio::test]
    async fn what_gathers_goes_out_together_and_in_order() {
        let outbox = Outbox::default();
        let bodies: Vec<Bytes> = [3, COPY_BELOW, 5, 0, COPY_BELOW * 3].map(body).into();
        for body in &bodies {
            outbox.push(body, usize::MAX).unwrap();
        }
        let mut wire = BytesMut::new();
        outbox.take(0).await.unwrap().iter().for_each(|part| wire.extend_from_slice(part));
        for body in &bodies {
            assert_eq!(frame::take(&mut wire, usize::MAX).unwrap().as_ref(), Some(body));
        }
        assert!(wire.is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_room_wakes() {
        let outbox = std::sync::Arc::new(Outbox::default());
        outbox.push(&body(100), 50).expect("an empty queue takes any frame");
        assert_eq!(outbox.push(&body(1), 50), Err(Refused::Full));
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.push_wait(&body(1), 50).await }
        });
        tokio::task::yield_now().await;
        outbox.take(0).await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(outbox.bytes(), 5);
        outbox.close();
        assert_eq!(outbox.push(&body(1), 50), Err(Refused::Closed));
        assert!(outbox.take(0).await.is_some(), "what was queued still goes out");
        assert!(outbox.take(0).await.is_none());
    }

    #[tokio::test]
    async fn only_the_present_taker_takes() {
        let outbox = std::sync::Arc::new(Outbox::default());
        let old = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.take(0).await }
        });
        tokio::task::yield_now().await;
        outbox.set_taker(1);
        assert!(old.await.unwrap().is_none());
        outbox.push(&body(1), 50).unwrap();
        assert!(outbox.take(1).await.is_some());
    }
}
