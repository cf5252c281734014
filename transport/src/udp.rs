//! A UDP socket under quinn that asks the kernel no more than it has to.
//!
//! The one that quinn brings along is told of every datagram that has left, though nobody waits for room, and after each
//! batch of datagrams asks once more to hear that there are none. A request that has a node to itself pays for both at
//! every hop.

use std::{
    fmt,
    future::Future,
    io::{self, ErrorKind, IoSliceMut},
    net::{self, SocketAddr},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Datagrams asked for at a time while few come: each costs preparation, come or not. More than one, so that a batch
/// that is not full says that there are no more.
const FEW: usize = 4;

#[derive(Debug)]
pub(crate) struct UdpSocket {
    state: UdpSocketState,
    socket: AsyncFd<net::UdpSocket>,
    /// The same socket, to wait for room: only from the first time on that there was none.
    blocked: OnceLock<Arc<AsyncFd<net::UdpSocket>>>,
    /// Datagrams to ask for next.
    batch: AtomicUsize,
}

#[expect(
    deprecated,
    reason = "what took its place is unsafe, for types that may change their descriptor: this one cannot"
)]
fn watched(socket: net::UdpSocket, interest: Interest) -> io::Result<AsyncFd<net::UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl UdpSocket {
    /// Called within a tokio runtime.
    pub(crate) fn new(socket: net::UdpSocket) -> io::Result<UdpSocket> {
        // This makes it non-blocking, too.
        let state = UdpSocketState::new((&socket).into())?;
        let socket = watched(socket, Interest::READABLE)?;
        Ok(UdpSocket { state, socket, blocked: OnceLock::new(), batch: FEW.into() })
    }

    /// From now on the kernel tells when there is room; what was not before is told at once.
    fn notice_room(&self) -> io::Result<()> {
        let again = watched(self.socket.get_ref().try_clone()?, Interest::WRITABLE)?;
        // Another connection on this socket may have been quicker.
        let _ = self.blocked.set(Arc::new(again));
        Ok(())
    }
}

impl AsyncUdpSocket for UdpSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Some(socket) = self.blocked.get() {
            return socket.try_io(Interest::WRITABLE, |socket| self.state.send(socket.into(), transmit));
        }
        let sent = self.state.send(self.socket.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
            self.notice_room()?;
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let asked = self.batch.load(Relaxed).min(bufs.len());
            match self.state.recv(ready.get_inner().into(), &mut bufs[..asked], meta) {
                Ok(count) => {
                    // What comes after a batch that is not full is news, and told as such.
                    if count < asked {
                        ready.clear_ready();
                    }
                    self.batch.store(if count < FEW { FEW } else { BATCH_SIZE }, Relaxed);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Tells one connection when there is room to send.
struct Room {
    socket: Arc<UdpSocket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Room { socket, waiting } = &mut *self;
        let Some(blocked) = socket.blocked.get() else { return Poll::Ready(Ok(())) };
        let room = waiting.get_or_insert_with(|| {
            let blocked = blocked.clone();
            Box::pin(async move { blocked.writable().await.map(drop) })
        });
        let done = ready!(room.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(done)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr, time::Duration};

    use tokio::time::timeout;

    use super::*;

    fn bound() -> Arc<UdpSocket> {
        Arc::new(UdpSocket::new(net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap())
    }

    fn send(from: &UdpSocket, to: &UdpSocket, byte: u8) {
        let destination = to.local_addr().unwrap();
        let contents = &[byte];
        from.try_send(&Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None }).unwrap();
    }

    /// All that has come, a batch each.
    async fn receive(socket: &UdpSocket) -> Vec<u8> {
        let mut space = vec![[0; 2048]; BATCH_SIZE];
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let count = poll_fn(|cx| {
            let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            socket.poll_recv(cx, &mut bufs, &mut meta)
        });
        let count = timeout(Duration::from_secs(10), count).await.expect("something has come").unwrap();
        assert!(meta[..count].iter().all(|meta| meta.len == 1));
        space[..count].iter().map(|buf| buf[0]).collect()
    }

    #[tokio::test]
    async fn whatever_comes_between_batches_is_received() {
        let (from, to) = (bound(), bound());
        let mut got = Vec::new();
        for burst in [1, FEW - 1, FEW, FEW + 1, 2 * FEW, BATCH_SIZE, BATCH_SIZE + FEW, 1, 100] {
            let before = got.len();
            (before..before + burst).for_each(|i| send(&from, &to, i as u8));
            while got.len() < before + burst {
                got.extend(receive(&to).await);
            }
        }
        assert!(got.iter().enumerate().all(|(i, byte)| *byte == i as u8), "{got:?}");
        let nothing = timeout(Duration::from_millis(20), receive(&to)).await;
        assert!(nothing.is_err());
    }

    #[tokio::test]
    async fn after_there_was_no_room_it_is_waited_for() {
        let (from, to) = (bound(), bound());
        let (mut one, mut other) = (from.clone().create_io_poller(), from.clone().create_io_poller());
        poll_fn(|cx| one.as_mut().poll_writable(cx)).await.unwrap();
        // A socket on this machine always has room, so this is said for it.
        from.notice_room().unwrap();
        from.notice_room().unwrap();
        let mut waiting = std::pin::pin!(poll_fn(|cx| one.as_mut().poll_writable(cx)));
        let not_yet = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await;
        assert!(not_yet, "room is not known before the kernel has told");
        let (one, other) = tokio::join!(waiting, poll_fn(|cx| other.as_mut().poll_writable(cx)));
        one.and(other).unwrap();
        send(&from, &to, 7);
        assert_eq!(receive(&to).await, [7]);
    }
}
