//! Calling another node, and being called: the greeting, and someone who keeps calling while a peer is down.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use duet_proto::{
    NodeId,
    frame::{self, ALPN_PEER, Hello, VERSION},
};
use quinn::{Connection, ConnectionError};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Inner, Peers, link::Standing};
use crate::{
    Limits, Refusal, Revoked, Tls, TlsError, config,
    service::HELLO,
    tls,
    wire::{FrameReader, write_frame},
};

/// Wait before the second call; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
/// Longest wait between calls.
const BACKOFF_MOST: Duration = Duration::from_millis(250);
/// How long the node with the higher id waits for the other to call.
const COURTESY: Duration = Duration::from_millis(60);
/// A connection that lasted this long was a good one: the backoff starts over.
const LASTED: Duration = Duration::from_secs(2);
/// How often it is looked whether a peer has said anything, within the time after which it gives a sign of life.
const LOOKS: u32 = 4;
/// How long one call may take: short, so that a healed network is noticed soon.
pub(super) const CALL: Duration = Duration::from_secs(1);

/// The greeting of the side that calls; the other answers with [`Hello`].
#[derive(Debug, Serialize, Deserialize)]
struct PeerHello {
    version: u32,
    /// Who is calling: must be what the certificate says.
    node: NodeId,
}

/// What peers are called with, and who is not let in: replaced when certificates are.
#[derive(Debug)]
pub(crate) struct Calls(Mutex<(quinn::ClientConfig, Revoked)>);

impl Calls {
    pub(crate) fn new(tls: &Tls, limits: &Limits) -> Result<Calls, TlsError> {
        Ok(Calls(Mutex::new((Calls::config(tls, limits)?, tls.revoked().clone()))))
    }

    pub(crate) fn renew(&self, tls: &Tls, limits: &Limits) -> Result<(), TlsError> {
        *self.lock() = (Calls::config(tls, limits)?, tls.revoked().clone());
        Ok(())
    }

    pub(crate) fn revoked(&self) -> Revoked {
        self.lock().1.clone()
    }

    fn client(&self) -> quinn::ClientConfig {
        self.lock().0.clone()
    }

    fn config(tls: &Tls, limits: &Limits) -> Result<quinn::ClientConfig, TlsError> {
        let mut client = tls.client(ALPN_PEER)?;
        client.transport_config(config::transport(limits));
        Ok(client)
    }

    fn lock(&self) -> MutexGuard<'_, (quinn::ClientConfig, Revoked)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// The greeting of a node that calls and whose certificate says `node`.
    pub(crate) async fn admit(&self, connection: &Connection, node: NodeId) -> Result<(), Refusal> {
        let (mut send, receive) = connection.accept_bi().await.map_err(|_| Refusal::Handshake)?;
        let hello = FrameReader::new(receive, HELLO).next().await?.ok_or(Refusal::Malformed)?;
        let hello: PeerHello = frame::decode(&hello).map_err(|_| Refusal::Malformed)?;
        if hello.version != VERSION {
            return Err(Refusal::Version);
        }
        if hello.node != node || node == self.0.wiring.me {
            return Err(Refusal::ClaimedId);
        }
        write_frame(&mut send, frame::encode(&Hello { version: VERSION })).await.map_err(|_| Refusal::Handshake)?;
        send.finish().ok();
        self.0.install(node, connection.clone(), false)
    }
}

impl Inner {
    /// Calls a peer.
    async fn call(self: &Arc<Self>, node: NodeId, address: &str) -> Result<(), String> {
        let addresses = self.wiring.network.resolve(address).await.map_err(|e| format!("{address}: {e}"))?;
        let mut why = format!("{address} has no address");
        for to in addresses {
            let connecting = match self.wiring.endpoint.connect_with(self.wiring.calls.client(), to, "duet") {
                Ok(connecting) => connecting,
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            match timeout(CALL.min(self.wiring.limits.handshake), self.greet(node, connecting)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(refusal)) => {
                    self.wiring.counters.refused(refusal);
                    why = refusal.to_string();
                }
                Err(_) => why = "no answer".into(),
            }
        }
        Err(why)
    }

    async fn greet(self: &Arc<Self>, node: NodeId, connecting: quinn::Connecting) -> Result<(), Refusal> {
        let reason = |e: ConnectionError| Refusal::of(&e).unwrap_or(Refusal::Timeout);
        let connection = connecting.await.map_err(reason)?;
        let greeting = async {
            let identity = tls::remote_identity(&connection, &self.wiring.calls.revoked())?;
            if identity.cluster != self.wiring.cluster {
                return Err(Refusal::WrongCluster);
            }
            if identity.node_id() != Some(node) {
                return Err(Refusal::WrongNode);
            }
            let (mut send, receive) = connection.open_bi().await.map_err(reason)?;
            let hello = frame::encode(&PeerHello { version: VERSION, node: self.wiring.me });
            write_frame(&mut send, hello).await.map_err(|_| Refusal::Handshake)?;
            send.finish().ok();
            let Some(hello) = FrameReader::new(receive, HELLO).next().await? else {
                return Err(connection.close_reason().map_or(Refusal::Malformed, reason));
            };
            let hello: Hello = frame::decode(&hello).map_err(|_| Refusal::Malformed)?;
            if hello.version == VERSION { Ok(()) } else { Err(Refusal::Version) }
        };
        let result = greeting.await.and_then(|()| self.install(node, connection.clone(), true));
        if let Err(refusal) = result {
            refusal.close(&connection);
        }
        result
    }
}

/// Keeps one peer connected.
pub(super) async fn keep_calling(inner: Arc<Inner>, node: NodeId, address: String, changed: Arc<Notify>) {
    let mut random = config::random(inner.wiring.seed, u64::from(node.0));
    let mut backoff = BACKOFF_FIRST;
    let mut up_since = None;
    let mut said = String::new();
    if inner.wiring.me > node {
        sleep(COURTESY).await;
    }
    loop {
        match inner.standing(node) {
            Standing::Gone => return,
            Standing::Up { renew } if renew > Instant::now() => {
                if up_since.get_or_insert_with(Instant::now).elapsed() >= LASTED {
                    backoff = BACKOFF_FIRST;
                }
                said.clear();
                let look = renew.min(Instant::now() + inner.wiring.limits.keep_alive / LOOKS);
                tokio::select! { biased; () = changed.notified() => (), () = sleep_until(look) => () }
                continue;
            }
            Standing::Up { .. } => (),
            Standing::Down => {
                if let Some(since) = up_since.take() {
                    tracing::warn!(peer = %node, "peer disconnected");
                    if since.elapsed() >= LASTED {
                        backoff = BACKOFF_FIRST;
                    }
                    let courtesy = if inner.wiring.me > node { COURTESY } else { Duration::ZERO };
                    sleep(courtesy + backoff.mul_f64(random.random_range(0.5..1.0))).await;
                    backoff = BACKOFF_MOST.min(backoff * 2);
                    continue;
                }
            }
        }
        if let Err(why) = inner.call(node, &address).await {
            if why != said {
                tracing::info!(peer = %node, %address, %why, "peer cannot be reached; will go on trying");
                said = why;
            }
            sleep(backoff.mul_f64(random.random_range(0.5..1.0))).await;
            backoff = BACKOFF_MOST.min(backoff * 2);
        }
    }
}
