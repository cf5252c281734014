//! The network under QUIC: real UDP, or a simulated one with the same face ([`crate::sim`]).

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};

use crate::udp::UdpSocket;

/// Bytes of buffer asked of the kernel for each socket; it gives what it allows.
const SOCKET_BUFFER: usize = 4 << 20;

/// A future that any [`Network`] can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where sockets and timers come from.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Opens a UDP socket; port 0 picks one. Called within a tokio runtime.
    ///
    /// # Errors
    /// As the system says.
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// What runs quinn's tasks and timers.
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    /// The addresses of `host:port`.
    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// Real UDP sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Udp;

impl Network for Udp {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false).ok();
        }
        // The kernel caps these at its own limits; less is slower, not wrong.
        socket.set_recv_buffer_size(SOCKET_BUFFER).ok();
        socket.set_send_buffer_size(SOCKET_BUFFER).ok();
        socket.bind(&address.into())?;
        Ok(Arc::new(UdpSocket::new(socket.into())?))
    }

    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host(address).await?.collect()) })
    }
}
