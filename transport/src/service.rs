//! Clients, as a node sees them: requests in, answers out, over one stream each way and one more for each big frame.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use duet_proto::{
    frame::{self, Hello, VERSION},
    limits::{CLIENT_FRAME, INLINE_VALUE},
};
use quinn::{Connection, SendStream};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    Identity, Limits, Refusal, config,
    stats::{Counters, add},
    wire::{FrameReader, Outbox, write_frame},
};

/// Largest greeting, in bytes.
pub(crate) const HELLO: usize = 1024;
/// How long one big frame may take to arrive once it has begun.
const BIG_PATIENCE: Duration = Duration::from_secs(30);
/// How long the last answers may take to be taken by a client that is being left.
const FAREWELL: Duration = Duration::from_secs(2);

/// What all client connections of an endpoint share.
#[derive(Debug)]
pub(crate) struct Desk {
    limits: Limits,
    slots: Arc<Semaphore>,
    /// One permit for each KiB.
    big: Arc<Semaphore>,
    random: Mutex<ChaCha8Rng>,
    counters: Arc<Counters>,
    guests: Arc<Guests>,
}

/// The connections that are served, to find those of a certificate.
#[derive(Debug, Default)]
struct Guests(Mutex<BTreeMap<usize, Connection>>);

impl Guests {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    pub(crate) fn new(limits: Limits, seed: Option<u64>, counters: Arc<Counters>) -> Desk {
        Desk {
            limits,
            slots: Arc::new(Semaphore::new(limits.client_connections)),
            big: Arc::new(Semaphore::new((limits.big_requests / 1024).max(CLIENT_FRAME / 1024 + 1))),
            random: config::random(seed, u64::MAX).into(),
            counters,
            guests: Arc::default(),
        }
    }

    /// When the client of a connection that begins now is asked to leave it. Spread, so that those of one restart do not
    /// all leave at once.
    fn time_to_go(&self, now: Instant) -> Instant {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        now + self.limits.max_age.mul_f64(random.random_range(0.6..0.7))
    }

    /// Every connection that is served.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        self.guests.lock().values().cloned().collect()
    }
}

/// A client that is connected. Dropping it reads no more; answers under way still go out.
#[derive(Debug)]
pub struct ClientConnection {
    /// Who it is, as its certificate says.
    pub identity: Identity,
    /// Where it is.
    pub remote: SocketAddr,
    reader: FrameReader,
    big: mpsc::Receiver<(Bytes, OwnedSemaphorePermit)>,
    /// When the client is asked to leave; `None` once it was.
    goodbye: Option<Instant>,
    ends: Instant,
    /// The client sends no more on the shared stream; big frames may still be on their way.
    last_said: bool,
    line: Arc<Line>,
}

/// A request, and the way to answer it.
#[derive(Debug)]
pub struct Incoming {
    /// The body of its frame.
    pub body: Bytes,
    /// Takes the answer.
    pub reply: ReplySender,
}

/// Takes the answer to one request. Dropped without, the client gets none.
#[derive(Debug)]
pub struct ReplySender {
    line: Arc<Line>,
    _memory: Option<OwnedSemaphorePermit>,
}

/// The sending side of a connection, shared by its reader and every answer under way.
#[derive(Debug)]
struct Line {
    connection: Connection,
    limits: Limits,
    small: Arc<Outbox>,
    big: mpsc::UnboundedSender<Bytes>,
    flow: Arc<Flow>,
    counters: Arc<Counters>,
    guests: Arc<Guests>,
    _slot: OwnedSemaphorePermit,
}

/// What a connection has taken on, and whether its reader should wait.
#[derive(Debug, Default)]
struct Flow {
    in_flight: AtomicUsize,
    big_bytes: AtomicUsize,
    /// The usual size of an answer here (moving average over about eight).
    usual: AtomicUsize,
    waiting: AtomicBool,
    room: Notify,
    /// The [`Refusal`] to close with, as its code.
    end: AtomicU32,
}

impl Flow {
    fn eased(&self) {
        if self.waiting.swap(false, SeqCst) {
            self.room.notify_one();
        }
    }
}

impl ReplySender {
    /// Sends the answer: queues it and returns. What has gathered is written together.
    pub fn send(self, body: Bytes) {
        self.line.answer(body);
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        self.line.flow.in_flight.fetch_sub(1, SeqCst);
        self.line.flow.eased();
    }
}

impl Line {
    fn answer(&self, body: Bytes) {
        let flow = &self.flow;
        let usual = flow.usual.load(Relaxed);
        flow.usual.store(usual - usual / 8 + body.len() / 8, Relaxed);
        let waiting = if body.len() > INLINE_VALUE {
            let before = flow.big_bytes.fetch_add(body.len(), SeqCst);
            self.big.send(body).ok();
            before
        } else {
            self.small.push(&body, usize::MAX).unwrap_or(0)
        };
        if waiting > self.limits.answers_hard {
            self.end(Refusal::TooSlow);
        }
    }

    fn has_room(&self) -> bool {
        let flow = &self.flow;
        let in_flight = flow.in_flight.load(SeqCst);
        let queued = self.small.bytes() + flow.big_bytes.load(SeqCst);
        in_flight < self.limits.in_flight
            && (in_flight == 0 || queued + in_flight * flow.usual.load(Relaxed) < self.limits.answers)
            && queued < self.limits.answers
    }

    fn end(&self, refusal: Refusal) {
        if self.connection.close_reason().is_none() {
            tracing::warn!(remote = %self.connection.remote_address(), reason = refusal.label(), "client closed: {refusal}");
            self.counters.refused(refusal);
            refusal.close(&self.connection);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.small.close();
        self.counters.clients.fetch_sub(1, Relaxed);
        self.guests.lock().remove(&self.connection.stable_id());
    }
}

impl ClientConnection {
    /// The next request; `None` when there will be none. Does not read ahead while too many requests are under way or
    /// too many answers wait for the client: QUIC's flow control then holds the client up.
    ///
    /// May be cancelled at any time.
    pub async fn next(&mut self) -> Option<Incoming> {
        match self.read().await {
            Ok(Some((body, memory))) => {
                self.line.flow.in_flight.fetch_add(1, SeqCst);
                add(&self.line.counters.requests, 1);
                Some(Incoming { body, reply: ReplySender { line: self.line.clone(), _memory: memory } })
            }
            Ok(None) => None,
            Err(refusal) => {
                self.line.end(refusal);
                None
            }
        }
    }

    async fn read(&mut self) -> Result<Option<(Bytes, Option<OwnedSemaphorePermit>)>, Refusal> {
        loop {
            if !self.line.has_room() {
                self.line.flow.waiting.store(true, SeqCst);
                if !self.line.has_room() {
                    tokio::select! {
                        biased;
                        () = self.line.flow.room.notified() => continue,
                        _ = self.line.connection.closed() => return Ok(None),
                    }
                }
            }
            if let Ok((body, memory)) = self.big.try_recv() {
                return Ok(Some((body, Some(memory))));
            }
            if let Some(body) = self.reader.ready()? {
                return Ok(Some((body, None)));
            }
            // Once for each batch of requests: a client that never pauses grows old, too.
            let Some(wake) = self.age() else { return Ok(None) };
            tokio::select! {
                biased;
                body = self.reader.next(), if !self.last_said => match body? {
                    Some(body) => return Ok(Some((body, None))),
                    None => self.last_said = true,
                },
                Some((body, memory)) = self.big.recv() => return Ok(Some((body, Some(memory)))),
                _ = self.line.connection.closed(), if self.last_said => return Ok(None),
                () = sleep_until(wake) => (),
            }
        }
    }

    /// Asks the client to leave when it is time, and ends with `None` when it is over. Otherwise: when to look again.
    ///
    /// What the client has sent by the time at which it leaves is still read, so nothing is lost by it.
    fn age(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if now >= self.ends {
            self.line.flow.end.store(Refusal::Aged as u32, SeqCst);
            return None;
        }
        if self.goodbye.is_some_and(|at| now >= at) {
            self.goodbye = None;
            // An empty frame: no message is empty.
            self.line.small.push(&Bytes::new(), usize::MAX).ok();
        }
        Some(self.goodbye.unwrap_or(self.ends))
    }
}

/// The greeting of a client whose certificate was checked.
pub(crate) async fn admit(
    desk: &Desk,
    connection: &Connection,
    identity: Identity,
) -> Result<ClientConnection, Refusal> {
    let slot = desk.slots.clone().try_acquire_owned().map_err(|_| Refusal::TooMany)?;
    let (mut send, receive) = connection.accept_bi().await.map_err(|_| Refusal::Handshake)?;
    let mut reader = FrameReader::new(receive, HELLO);
    let hello = reader.next().await?.ok_or(Refusal::Malformed)?;
    let hello: Hello = frame::decode(&hello).map_err(|_| Refusal::Malformed)?;
    if hello.version != VERSION {
        return Err(Refusal::Version);
    }
    write_frame(&mut send, frame::encode(&Hello { version: VERSION })).await.map_err(|_| Refusal::Handshake)?;
    reader.set_limit(CLIENT_FRAME);
    let (big_out, big_answers) = mpsc::unbounded_channel();
    let (big_in, big) = mpsc::channel(1);
    desk.guests.lock().insert(connection.stable_id(), connection.clone());
    let line = Arc::new(Line {
        connection: connection.clone(),
        limits: desk.limits,
        small: Arc::default(),
        big: big_out,
        flow: Arc::default(),
        counters: desk.counters.clone(),
        guests: desk.guests.clone(),
        _slot: slot,
    });
    add(&desk.counters.clients, 1);
    let began = Instant::now();
    tokio::spawn(write(connection.clone(), send, line.small.clone(), big_answers, line.flow.clone()));
    tokio::spawn(collect_big(connection.clone(), desk.big.clone(), big_in, desk.counters.clone()));
    Ok(ClientConnection {
        identity,
        remote: connection.remote_address(),
        reader,
        big,
        goodbye: Some(desk.time_to_go(began)),
        ends: began + desk.limits.max_age,
        last_said: false,
        line,
    })
}

/// Sends answers until the last one that is owed has gone out, then says goodbye.
async fn write(
    connection: Connection,
    mut send: SendStream,
    small: Arc<Outbox>,
    mut big: mpsc::UnboundedReceiver<Bytes>,
    flow: Arc<Flow>,
) {
    send.set_priority(1).ok();
    let bigs = async {
        let mut arriving = JoinSet::new();
        while let Some(body) = big.recv().await {
            let size = body.len();
            match send_big(&connection, body).await {
                Ok(stream) => arriving.spawn(stream.stopped()),
                Err(_) => break,
            };
            flow.big_bytes.fetch_sub(size, SeqCst);
            flow.eased();
            while arriving.try_join_next().is_some() {}
        }
        arriving
    };
    let (all_sent, mut arriving) = tokio::join!(small.pump(0, &mut send, |_| flow.eased()), bigs);
    if all_sent && send.finish().is_ok() {
        let arrived = async {
            send.stopped().await.ok();
            while arriving.join_next().await.is_some() {}
        };
        timeout(FAREWELL, arrived).await.ok();
    }
    let end = flow.end.load(SeqCst);
    let refusal = Refusal::ALL.iter().copied().find(|r| *r as u32 == end).unwrap_or(Refusal::Done);
    refusal.close(&connection);
}

/// Sends one frame on a stream of its own.
pub(crate) async fn send_big(connection: &Connection, body: Bytes) -> Result<SendStream, quinn::WriteError> {
    let mut stream = connection.open_uni().await.map_err(quinn::WriteError::ConnectionLost)?;
    write_frame(&mut stream, body).await?;
    stream.finish().ok();
    Ok(stream)
}

/// Takes in frames that come on streams of their own, each within the memory that all of them share.
async fn collect_big(
    connection: Connection,
    memory: Arc<Semaphore>,
    into: mpsc::Sender<(Bytes, OwnedSemaphorePermit)>,
    counters: Arc<Counters>,
) {
    while let Ok(stream) = connection.accept_uni().await {
        add(&counters.streams, 1);
        let (connection, memory, into, counters) =
            (connection.clone(), memory.clone(), into.clone(), counters.clone());
        tokio::spawn(async move {
            let mut reader = FrameReader::new(stream, CLIENT_FRAME);
            let taken = timeout(BIG_PATIENCE, async {
                let Some(length) = reader.length().await? else { return Ok(None) };
                let permits = u32::try_from(length / 1024 + 1).unwrap_or(u32::MAX);
                let Ok(permit) = memory.acquire_many_owned(permits).await else { return Ok(None) };
                Ok(reader.next().await?.map(|body| (body, permit)))
            });
            let refusal = match taken.await {
                Ok(Ok(Some(request))) => return drop(into.send(request).await),
                Ok(Ok(None)) => return,
                Ok(Err(refusal)) => refusal,
                Err(_) => Refusal::Timeout,
            };
            counters.refused(refusal);
            refusal.close(&connection);
        });
    }
}
