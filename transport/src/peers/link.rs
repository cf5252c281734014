//! The connections to one peer: which of them is in use, and what goes over it.
//!
//! Either side may call. The one with the higher id waits a moment before it does, so that as a rule the lower one's
//! call comes up and there is one connection; should both come up, each side sends on the newer and listens on both. Where the
//! calls crossed, the sides would not agree which that is, and every acknowledgement would be a packet of its own: the
//! lower one's is kept.

use std::{sync::Arc, time::Duration};

use duet_proto::{
    NodeId, frame,
    limits::{NODES, PEER_FRAME},
};
use quinn::Connection;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{Inner, Lane, call::CALL};
use crate::{
    Limits, Refusal,
    service::HELLO,
    stats::add,
    wire::{FrameReader, Outbox, write_frame},
};

/// How long a connection that was replaced may still deliver what is under way: a lane's queue, over a slow network.
const LINGER: Duration = Duration::from_secs(5);

/// The part of its greatest age after which the side that called makes a new connection.
const RENEW: f64 = 2.0 / 3.0;
/// The same for the other side, should the first have missed it.
const RENEW_LATE: f64 = 5.0 / 6.0;
/// After how much silence another one is made, in times of that after which each side gives a sign of life. Where packets are
/// lost QUIC waits twice as long before each further try, and would notice a healed network as long after as it was broken.
const SILENT: f64 = 1.5;
/// The same for the other side.
const SILENT_LATE: f64 = 1.75;

/// The first frame of a lane's stream.
#[derive(Debug, Serialize, Deserialize)]
struct LaneHello {
    lane: u8,
}

/// Invariants: there is at most one link of each direction; the last link is the one that lanes are sent on, and its
/// serial is the taker of every lane's outbox.
#[derive(Default)]
pub(super) struct Peer {
    /// Where to call it; `None` if it only ever called us.
    pub(super) address: Option<String>,
    pub(super) lanes: [Arc<Outbox>; Lane::ALL.len()],
    pub(super) links: Vec<Link>,
    pub(super) changed: Arc<Notify>,
    pub(super) caller: Option<AbortHandle>,
}

pub(super) struct Link {
    serial: u64,
    pub(super) connection: Connection,
    called: bool,
    since: Instant,
    /// Datagrams that have come, and when there were more than before.
    heard: (u64, Instant),
}

impl Link {
    /// When another one is to be made, unless something comes: this one is old then, or silent.
    fn renew(&mut self, limits: &Limits) -> Instant {
        let come = self.connection.stats().udp_rx.datagrams;
        if come > self.heard.0 {
            self.heard = (come, Instant::now());
        }
        let (age, silence) = if self.called { (RENEW, SILENT) } else { (RENEW_LATE, SILENT_LATE) };
        (self.since + limits.max_age.mul_f64(age)).min(self.heard.1 + limits.keep_alive.mul_f64(silence))
    }

    /// Another one has taken its place: nothing is sent on it any more, and what is under way still arrives.
    fn linger(self) {
        tokio::spawn(async move {
            sleep(LINGER).await;
            Refusal::Replaced.close(&self.connection);
        });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(caller) = &self.caller {
            caller.abort();
        }
        self.lanes.iter().for_each(|lane| lane.close());
        self.links.iter().for_each(|link| Refusal::Done.close(&link.connection));
    }
}

/// What the one who calls finds.
pub(super) enum Standing {
    Gone,
    Down,
    Up { renew: Instant },
}

impl Inner {
    /// Takes a connection into use.
    pub(super) fn install(
        self: &Arc<Self>,
        node: NodeId,
        connection: Connection,
        called: bool,
    ) -> Result<(), Refusal> {
        let mut state = self.state();
        if state.stopped {
            return Err(Refusal::Stopping);
        }
        if state.peers.len() >= NODES && !state.peers.contains_key(&node) {
            return Err(Refusal::TooMany);
        }
        state.serial += 1;
        let serial = state.serial;
        let peer = state.peers.entry(node).or_default();
        let since = Instant::now();
        let link = Link { serial, connection: connection.clone(), called, since, heard: (0, since) };
        let crossed = |other: &Link| other.called != called && other.since.elapsed() < CALL;
        if called == (self.wiring.me > node) && peer.links.last().is_some_and(crossed) {
            link.linger();
        } else {
            peer.links.extract_if(.., |old| old.called == called || crossed(old)).for_each(Link::linger);
            peer.links.push(link);
            self.send_on(node, peer);
        }
        drop(state);
        add(&self.wiring.counters.links, 1);
        tracing::info!(peer = %node, remote = %connection.remote_address(), called, "peer connected");
        tokio::spawn(receive(self.clone(), node, connection.clone()));
        let ends = since + self.wiring.limits.max_age;
        tokio::spawn(watch(self.clone(), node, connection, serial, ends));
        Ok(())
    }

    /// Points every lane at the last link.
    fn send_on(self: &Arc<Self>, node: NodeId, peer: &mut Peer) {
        peer.changed.notify_one();
        let Some(link) = peer.links.last() else {
            peer.lanes.iter().for_each(|lane| lane.clear());
            return;
        };
        for lane in Lane::ALL {
            let outbox = peer.lanes[lane as usize].clone();
            outbox.set_taker(link.serial);
            tokio::spawn(pump(self.clone(), node, lane, outbox, link.serial, link.connection.clone()));
        }
    }

    /// Takes a connection that has ended out of use.
    fn lost(self: &Arc<Self>, node: NodeId, serial: u64) {
        let mut state = self.state();
        state.serial += 1;
        let fresh = state.serial;
        let Some(peer) = state.peers.get_mut(&node) else { return };
        let was_last = peer.links.last().is_some_and(|link| link.serial == serial);
        peer.links.retain(|link| link.serial != serial);
        if !was_last {
            return;
        }
        if let Some(link) = peer.links.last_mut() {
            // Its first writers were turned away; new ones need a serial that was never used.
            link.serial = fresh;
            let ends = link.since + self.wiring.limits.max_age;
            tokio::spawn(watch(self.clone(), node, link.connection.clone(), fresh, ends));
        }
        self.send_on(node, peer);
        if peer.links.is_empty() && peer.address.is_none() {
            state.peers.remove(&node);
        }
    }

    pub(super) fn standing(&self, node: NodeId) -> Standing {
        let mut state = self.state();
        let Some(peer) = state.peers.get_mut(&node) else { return Standing::Gone };
        match peer.links.last_mut() {
            None => Standing::Down,
            Some(link) => Standing::Up { renew: link.renew(&self.wiring.limits) },
        }
    }
}

/// Sends a lane over one connection until another takes its place.
async fn pump(inner: Arc<Inner>, node: NodeId, lane: Lane, outbox: Arc<Outbox>, serial: u64, connection: Connection) {
    let Ok(mut stream) = connection.open_uni().await else { return };
    stream.set_priority(lane.priority()).ok();
    if write_frame(&mut stream, frame::encode(&LaneHello { lane: lane as u8 })).await.is_err() {
        return;
    }
    let sent = &inner.wiring.counters.lanes[lane as usize].sent_bytes;
    if outbox.pump(serial, &mut stream, |bytes| add(sent, bytes as u64)).await {
        stream.finish().ok();
    } else if connection.close_reason().is_none() {
        // The peer stopped this stream alone: nothing that we do, so begin anew.
        tracing::warn!(peer = %node, %lane, "the peer stopped reading a lane");
        Refusal::Malformed.close(&connection);
    }
}

/// Takes in the lanes of a connection.
async fn receive(inner: Arc<Inner>, node: NodeId, connection: Connection) {
    while let Ok(stream) = connection.accept_uni().await {
        let (inner, connection) = (inner.clone(), connection.clone());
        tokio::spawn(async move {
            if let Err(refusal) = receive_lane(&inner, node, FrameReader::new(stream, HELLO)).await {
                inner.wiring.counters.refused(refusal);
                tracing::warn!(peer = %node, reason = refusal.label(), "peer connection closed: {refusal}");
                refusal.close(&connection);
            }
        });
    }
}

async fn receive_lane(inner: &Inner, node: NodeId, mut reader: FrameReader) -> Result<(), Refusal> {
    let Some(hello) = reader.next().await? else { return Ok(()) };
    let hello: LaneHello = frame::decode(&hello).map_err(|_| Refusal::Malformed)?;
    let lane = usize::from(hello.lane);
    let into = inner.incoming.get(lane).ok_or(Refusal::Malformed)?;
    let counters = &inner.wiring.counters.lanes[lane];
    reader.set_limit(PEER_FRAME);
    while let Some(body) = reader.next().await? {
        add(&counters.received, 1);
        add(&counters.received_bytes, body.len() as u64);
        if into.send((node, body)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Waits for the end of a connection, which comes with its greatest age at the latest: certificates are looked at only
/// when one begins.
async fn watch(inner: Arc<Inner>, node: NodeId, connection: Connection, serial: u64, ends: Instant) {
    let error = tokio::select! {
        biased;
        error = connection.closed() => error,
        () = sleep_until(ends) => {
            if connection.close_reason().is_none() {
                inner.wiring.counters.refused(Refusal::Aged);
                Refusal::Aged.close(&connection);
            }
            connection.closed().await
        }
    };
    if let Some(refusal) = Refusal::of(&error) {
        inner.wiring.counters.refused(refusal);
    }
    tracing::info!(peer = %node, %error, "connection to peer ended");
    inner.lost(node, serial);
}
