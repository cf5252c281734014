//! Links between nodes that can be cut, without any privilege: every node is reached through a *door*, a UDP port of
//! this process, which passes datagrams on or, between the two sides of a partition, drops them.
//!
//! ```text
//! node 1 ─────▶ door of node 2 ─┬─ socket for node 1 ──▶ node 2
//! a client ───▶                 └─ socket for it ──────▶
//! ```
//!
//! A sender is told by its port: nodes send from the one that they listen on, and a client that belongs to one side of a
//! partition has been given a [`Beside`]. Everything here is on loopback. Nobody is told that a datagram is lost, as on
//! a network that is down.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use duet_proto::NodeId;
use duet_transport::{AsyncUdpSocket, BoxFuture, Network, Udp};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// A sender that has been silent for so long is forgotten; QUIC gives a connection up much sooner.
const SILENT: Duration = Duration::from_secs(60);
/// Senders that one door knows at a time; others are turned away.
const SENDERS: usize = 1024;
/// Bytes of buffer asked of the kernel for each socket; it gives what it allows.
const BUFFER: usize = 4 << 20;
/// No datagram is larger.
const DATAGRAM: usize = 65_536;

/// The doors of a cluster's nodes. Dropping it closes them.
#[derive(Debug)]
pub struct Links {
    sides: Arc<Sides>,
    _doors: JoinSet<()>,
}

/// Who sends from where, and who is cut off.
#[derive(Debug, Default)]
struct Sides {
    ports: Mutex<BTreeMap<u16, NodeId>>,
    cut: Mutex<BTreeSet<NodeId>>,
}

impl Sides {
    /// Whether what is sent from a port reaches a node, and the other way round.
    fn pass(&self, port: u16, node: NodeId) -> bool {
        let sender = self.ports.lock().unwrap_or_else(PoisonError::into_inner).get(&port).copied();
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        sender.is_none_or(|sender| cut.contains(&sender) == cut.contains(&node))
    }

    fn place(&self, port: u16, node: NodeId) {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(port, node);
    }
}

impl Links {
    /// Opens a door for each node: its port, and the port behind it that the node listens on.
    ///
    /// # Errors
    /// If a port is taken.
    pub fn open(doors: impl IntoIterator<Item = (NodeId, u16, u16)>) -> io::Result<Links> {
        let sides = Arc::new(Sides::default());
        let mut tasks = JoinSet::new();
        for (node, port, inside) in doors {
            sides.place(inside, node);
            let door = Door { node, inside, outside: socket(port)?, sides: sides.clone(), senders: Mutex::default() };
            tasks.spawn(Arc::new(door).serve());
        }
        Ok(Links { sides, _doors: tasks })
    }

    /// Drops whatever passes between these nodes and the others, and takes the place of an earlier cut.
    pub fn cut(&self, nodes: impl IntoIterator<Item = NodeId>) {
        *self.sides.cut.lock().unwrap_or_else(PoisonError::into_inner) = nodes.into_iter().collect();
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.cut([]);
    }

    /// The network as a client beside a node sees it: cut off with that node.
    #[must_use]
    pub fn beside(&self, node: NodeId) -> Beside {
        Beside { sides: self.sides.clone(), node }
    }
}

/// A client's network; see [`Links::beside`].
#[derive(Clone, Debug)]
pub struct Beside {
    sides: Arc<Sides>,
    node: NodeId,
}

impl Network for Beside {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = Udp.bind(address)?;
        self.sides.place(socket.local_addr()?.port(), self.node);
        Ok(socket)
    }

    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Udp.resolve(address)
    }
}

#[derive(Debug)]
struct Door {
    node: NodeId,
    inside: u16,
    outside: UdpSocket,
    sides: Arc<Sides>,
    senders: Mutex<BTreeMap<SocketAddr, Sender>>,
}

/// Somebody who has sent something, and the socket from which the node hears it.
#[derive(Clone, Debug)]
struct Sender {
    socket: Arc<UdpSocket>,
    heard: Instant,
}

impl Door {
    async fn serve(self: Arc<Self>) {
        let mut answers = JoinSet::new();
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let Ok((len, from)) = self.outside.recv_from(&mut buffer).await else {
                // A sender of before is gone; nothing that a door must care for, but no reason to spin either.
                sleep(Duration::from_millis(1)).await;
                continue;
            };
            while answers.try_join_next().is_some() {}
            if !self.sides.pass(from.port(), self.node) {
                continue;
            }
            let socket = match self.known(from) {
                Some(socket) => socket,
                None => match self.welcome(from).await {
                    Some(socket) => {
                        answers.spawn(self.clone().answer(from, socket.clone()));
                        socket
                    }
                    None => continue,
                },
            };
            // What cannot be sent is lost: QUIC sends it again.
            socket.send(&buffer[..len]).await.ok();
        }
    }

    fn known(&self, from: SocketAddr) -> Option<Arc<UdpSocket>> {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = senders.get_mut(&from)?;
        sender.heard = Instant::now();
        Some(sender.socket.clone())
    }

    async fn welcome(&self, from: SocketAddr) -> Option<Arc<UdpSocket>> {
        if self.senders.lock().unwrap_or_else(PoisonError::into_inner).len() >= SENDERS {
            return None;
        }
        let socket = Arc::new(socket(0).ok()?);
        socket.connect((Ipv4Addr::LOCALHOST, self.inside)).await.ok()?;
        let sender = Sender { socket: socket.clone(), heard: Instant::now() };
        self.senders.lock().unwrap_or_else(PoisonError::into_inner).insert(from, sender);
        Some(socket)
    }

    /// Carries back what the node answers, until the sender has been silent for long.
    async fn answer(self: Arc<Self>, to: SocketAddr, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            match timeout(SILENT, socket.recv(&mut buffer)).await {
                Ok(Ok(len)) if self.sides.pass(to.port(), self.node) => {
                    self.outside.send_to(&buffer[..len], to).await.ok();
                }
                Ok(Ok(_)) => {}
                // The node is down: it may come back.
                Ok(Err(_)) => sleep(Duration::from_millis(1)).await,
                Err(_) => {
                    let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
                    if senders.get(&to).is_none_or(|sender| sender.heard.elapsed() >= SILENT) {
                        senders.remove(&to);
                        return;
                    }
                }
            }
        }
    }
}

fn socket(port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(BUFFER).ok();
    socket.set_send_buffer_size(BUFFER).ok();
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hears(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
        let mut buffer = [0; 16];
        let (len, from) = timeout(Duration::from_secs(30), socket.recv_from(&mut buffer)).await.ok()?.ok()?;
        Some((buffer[..len].to_vec(), from))
    }

    /// Two nodes behind doors, and what one hears of the other and of a client is told by sequence: a datagram that was
    /// dropped is one that does not come before the next.
    #[tokio::test]
    async fn a_cut_link_drops_what_is_sent_and_a_healed_one_does_not() {
        let (one, two) = (socket(0).unwrap(), socket(0).unwrap());
        let port = |s: &UdpSocket| s.local_addr().unwrap().port();
        let door = port(&socket(0).unwrap());
        let links = Links::open([(NodeId(2), door, port(&two))]).unwrap();
        links.sides.place(port(&one), NodeId(1));
        let client = socket(0).unwrap();
        let say = async |from: &UdpSocket, text: &str| {
            from.send_to(text.as_bytes(), (Ipv4Addr::LOCALHOST, door)).await.unwrap();
        };
        say(&one, "a").await;
        let (text, via) = hears(&two).await.unwrap();
        assert_eq!(text, b"a");
        two.send_to(b"b", via).await.unwrap();
        assert_eq!(hears(&one).await.unwrap().0, b"b");
        links.cut([NodeId(2)]);
        say(&one, "lost").await;
        two.send_to(b"lost", via).await.unwrap();
        say(&client, "passes").await;
        assert_eq!(hears(&two).await.unwrap().0, b"passes", "whoever is on no side is heard on both");
        links.heal();
        say(&one, "c").await;
        assert_eq!(hears(&two).await.unwrap().0, b"c");
        two.send_to(b"d", via).await.unwrap();
        assert_eq!(hears(&one).await.unwrap().0, b"d");
    }

    #[tokio::test]
    async fn a_client_is_cut_off_with_the_node_it_is_beside() {
        let links = Links::open([(NodeId(1), 0, 1), (NodeId(2), 0, 2)]).unwrap();
        let beside = links.beside(NodeId(2));
        let socket = beside.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = socket.local_addr().unwrap().port();
        links.cut([NodeId(2)]);
        assert!(links.sides.pass(port, NodeId(2)) && !links.sides.pass(port, NodeId(1)));
        links.cut([NodeId(1)]);
        assert!(links.sides.pass(port, NodeId(2)) && !links.sides.pass(port, NodeId(1)));
        links.heal();
        assert!(links.sides.pass(port, NodeId(1)));
    }
}
