//! A simulated network: the real quinn and rustls over sockets that are queues in memory.
//!
//! Time is tokio's, which the simulation keeps paused; every choice (loss, delay, order, copies) comes from one seed.
//! With one thread, and endpoints that are given seeds of their own ([`Config::rng_seed`](crate::Config)), the same
//! seed gives the same packets: same times, ends, sizes and fates, as [`SimNet::fingerprint`] attests. Ciphertext
//! differs (TLS takes its keys from the system), so nothing here may depend on the bytes of a packet, and
//! certificates must have keys whose signatures are of a fixed size.
//!
//! ```text
//!   quinn ── try_send ──► fate(seed) ──► due times ──► the receiver's queue ──► poll_recv ── quinn
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{BoxFuture, Network};

/// Datagrams that wait at one socket; more are lost, as in a kernel.
const QUEUE: usize = 16_384;
/// The first port that is given out.
const FIRST_PORT: u16 = 40_000;

/// How packets fare from one host to another. Chances are out of 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// How long a packet travels; drawn for each. Packets drawn far apart overtake each other.
    pub delay: Range<Duration>,
    /// The chance that it is lost.
    pub loss: f64,
    /// The chance that it arrives twice, the second time with a delay of its own.
    pub duplicate: f64,
    /// The chance that it is held back by up to [`Link::HELD_BACK`] longer, and so overtaken by others.
    pub reorder: f64,
}

impl Link {
    /// The most by which a reordered packet is late.
    pub const HELD_BACK: Duration = Duration::from_millis(50);

    /// A calm local network: a millisecond each way, nothing lost.
    pub const CALM: Link =
        Link { delay: Duration::from_millis(1)..Duration::from_millis(2), loss: 0.0, duplicate: 0.0, reorder: 0.0 };
}

impl Default for Link {
    fn default() -> Self {
        Link::CALM
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Arrives.
    Sent,
    /// Arrives twice.
    Doubled,
    /// Lost by chance.
    Lost,
    /// Lost to a partition.
    Blocked,
    /// Nobody listens there, or the queue is full.
    Dropped,
}

/// A packet as the network sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When it was sent, since the network began.
    pub at: Duration,
    /// Whence.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// How large.
    pub size: usize,
    /// What became of it.
    pub fate: Fate,
}

/// A network in memory. Cheap to clone; all clones are the same network.
#[derive(Clone)]
pub struct SimNet(Arc<Mutex<World>>);

struct World {
    random: ChaCha8Rng,
    began: Instant,
    link: Link,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    blocked: BTreeSet<(IpAddr, IpAddr)>,
    sockets: BTreeMap<SocketAddr, Inbox>,
    /// Counts up for every socket and datagram: orders what is due at the same time.
    serial: u64,
    packets: u64,
    fingerprint: u64,
    record: Option<Vec<Packet>>,
}

/// A bound socket's side of the world.
struct Inbox {
    /// Which socket: an address can be bound again.
    serial: u64,
    due: BTreeMap<(Instant, u64), Datagram>,
    waker: Option<Waker>,
}

struct Datagram {
    from: SocketAddr,
    bytes: Vec<u8>,
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNet").field("packets", &self.world().packets).finish_non_exhaustive()
    }
}

impl SimNet {
    /// An empty network whose every choice comes from `seed`. Called within a tokio runtime with paused time.
    #[must_use]
    pub fn new(seed: u64) -> SimNet {
        SimNet(Arc::new(Mutex::new(World {
            random: ChaCha8Rng::seed_from_u64(seed),
            began: Instant::now(),
            link: Link::CALM,
            links: BTreeMap::new(),
            blocked: BTreeSet::new(),
            sockets: BTreeMap::new(),
            serial: 0,
            packets: 0,
            fingerprint: 0xcbf2_9ce4_8422_2325,
            record: None,
        })))
    }

    /// The network as the host at `address` sees it: sockets it binds get that address.
    #[must_use]
    pub fn host(&self, address: IpAddr) -> SimHost {
        SimHost { net: self.clone(), address }
    }

    /// How packets fare where nothing else is said.
    pub fn set_default(&self, link: Link) {
        self.world().link = link;
    }

    /// How packets fare from one host to another; `None`: as by default.
    pub fn set_link(&self, from: IpAddr, to: IpAddr, link: Option<Link>) {
        match link {
            Some(link) => self.world().links.insert((from, to), link),
            None => self.world().links.remove(&(from, to)),
        };
    }

    /// Loses every packet from one host to another; the other way stays as it is.
    pub fn block(&self, from: IpAddr, to: IpAddr) {
        self.world().blocked.insert((from, to));
    }

    /// Undoes [`SimNet::block`].
    pub fn unblock(&self, from: IpAddr, to: IpAddr) {
        self.world().blocked.remove(&(from, to));
    }

    /// Cuts every host of `left` off from every host of `right`, both ways.
    pub fn partition(&self, left: &[IpAddr], right: &[IpAddr]) {
        let mut world = self.world();
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
            world.blocked.extend([(a, b), (b, a)]);
        }
    }

    /// Undoes every block and partition.
    pub fn heal(&self) {
        self.world().blocked.clear();
    }

    /// Closes every socket of a host, as a crash of its machine does: what waits there is lost, what is sent there too.
    /// Endpoints on those sockets fail; the host can bind anew.
    pub fn crash(&self, host: IpAddr) {
        let mut world = self.world();
        let gone: Vec<_> = world.sockets.keys().filter(|address| address.ip() == host).copied().collect();
        for waker in gone.iter().filter_map(|address| world.sockets.remove(address)?.waker).collect::<Vec<_>>() {
            waker.wake();
        }
    }

    /// A number that depends on every packet so far: when, whence, where to, how large, and what became of it.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.world().fingerprint
    }

    /// Packets sent so far.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.world().packets
    }

    /// Begins to keep every packet's outline, for [`SimNet::trace`].
    pub fn record(&self) {
        self.world().record.get_or_insert_default();
    }

    /// The packets sent since [`SimNet::record`].
    #[must_use]
    pub fn trace(&self) -> Vec<Packet> {
        self.world().record.clone().unwrap_or_default()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let ends = (from.ip(), to.ip());
        let link = self.links.get(&ends).unwrap_or(&self.link).clone();
        // The same number of draws for every packet: one knob's setting does not shift another's luck.
        let [lost, doubled, held] = [(); 3].map(|()| self.random.random::<f64>());
        let delays = [(); 2].map(|()| between(&link.delay, self.random.random()));
        let late = Link::HELD_BACK.mul_f64(self.random.random());
        let now = Instant::now();
        let fate = if self.blocked.contains(&ends) {
            Fate::Blocked
        } else if lost < link.loss {
            Fate::Lost
        } else if self.sockets.get(&to).is_none_or(|inbox| inbox.due.len() + 2 > QUEUE) {
            Fate::Dropped
        } else if doubled < link.duplicate {
            Fate::Doubled
        } else {
            Fate::Sent
        };
        self.note(Packet { at: now - self.began, from, to, size: bytes.len(), fate });
        let copies = match fate {
            Fate::Sent => 1,
            Fate::Doubled => 2,
            Fate::Lost | Fate::Blocked | Fate::Dropped => 0,
        };
        let Some(inbox) = self.sockets.get_mut(&to).filter(|_| copies > 0) else { return };
        for delay in &delays[..copies] {
            let late = if held < link.reorder { late } else { Duration::ZERO };
            self.serial += 1;
            inbox.due.insert((now + *delay + late, self.serial), Datagram { from, bytes: bytes.to_vec() });
        }
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }

    fn note(&mut self, packet: Packet) {
        self.packets += 1;
        let port = |address: &SocketAddr| u64::from(address.port());
        let host = |address: &SocketAddr| match address.ip() {
            IpAddr::V4(ip) => u64::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip) as u64 ^ (u128::from(ip) >> 64) as u64,
        };
        let (from, to) = (&packet.from, &packet.to);
        let at = u64::try_from(packet.at.as_nanos()).unwrap_or(u64::MAX);
        let words = [at, host(from), port(from), host(to), port(to), packet.size as u64, packet.fate as u64];
        for byte in words.iter().flat_map(|word| word.to_le_bytes()) {
            // FNV-1a.
            self.fingerprint = (self.fingerprint ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(record) = &mut self.record {
            record.push(packet);
        }
    }

    fn bind(&mut self, address: SocketAddr) -> io::Result<(SocketAddr, u64)> {
        let mut address = address;
        if address.port() == 0 {
            let free = (FIRST_PORT..=u16::MAX).find(|port| {
                address.set_port(*port);
                !self.sockets.contains_key(&address)
            });
            free.ok_or(io::ErrorKind::AddrInUse)?;
        } else if self.sockets.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.serial += 1;
        let serial = self.serial;
        self.sockets.insert(address, Inbox { serial, due: BTreeMap::new(), waker: None });
        Ok((address, serial))
    }
}

fn between(range: &Range<Duration>, chance: f64) -> Duration {
    range.start + range.end.saturating_sub(range.start).mul_f64(chance)
}

/// A host of a [`SimNet`].
#[derive(Clone, Debug)]
pub struct SimHost {
    net: SimNet,
    address: IpAddr,
}

impl SimHost {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The network it is on.
    #[must_use]
    pub fn net(&self) -> &SimNet {
        &self.net
    }
}

impl Network for SimHost {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        if !address.ip().is_unspecified() && address.ip() != self.address {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let (address, serial) = self.net.world().bind(SocketAddr::new(self.address, address.port()))?;
        let timer = Mutex::new(Box::pin(sleep_until(Instant::now())));
        Ok(Arc::new(SimSocket { net: self.net.clone(), address, serial, timer }))
    }

    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        let found = address.parse().map(|address| vec![address]);
        Box::pin(std::future::ready(found.map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))))
    }
}

struct SimSocket {
    net: SimNet,
    address: SocketAddr,
    serial: u64,
    timer: Mutex<Pin<Box<Sleep>>>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimSocket").field(&self.address).finish()
    }
}

impl SimSocket {
    /// Whether the host still has this socket.
    fn is_open(&self, world: &World) -> bool {
        world.sockets.get(&self.address).is_some_and(|inbox| inbox.serial == self.serial)
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut world = self.net.world();
        if self.is_open(&world) {
            world.sockets.remove(&self.address);
        }
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut world = self.net.world();
        if !self.is_open(&world) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(size) {
            world.send(self.address, transmit.destination, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut world = self.net.world();
            if !self.is_open(&world) {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            let Some(inbox) = world.sockets.get_mut(&self.address) else { return Poll::Pending };
            let now = Instant::now();
            let mut count = 0;
            while count < bufs.len().min(meta.len()) {
                let Some(first) = inbox.due.first_entry().filter(|first| first.key().0 <= now) else { break };
                let Datagram { from, bytes } = first.remove();
                let size = bytes.len().min(bufs[count].len());
                bufs[count][..size].copy_from_slice(&bytes[..size]);
                meta[count] =
                    RecvMeta { addr: from, len: size, stride: size, ecn: None, dst_ip: Some(self.address.ip()) };
                count += 1;
            }
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            inbox.waker = Some(cx.waker().clone());
            let Some(((due, _), _)) = inbox.due.first_key_value() else { return Poll::Pending };
            let due = *due;
            drop(world);
            let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
            timer.as_mut().reset(due);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
