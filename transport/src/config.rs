//! What an endpoint is given, and every bound it keeps.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    ConnectionIdGenerator, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt, crypto::HmacKey,
};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Identity, Network, Tls};

/// What [`Endpoint::start`](crate::Endpoint::start) needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who we are; must be the certificate's identity, and a node.
    pub me: Identity,
    /// Where to listen. Port 0 picks one.
    pub listen: SocketAddr,
    /// Our certificate.
    pub tls: Tls,
    /// Bounds.
    pub limits: Limits,
    /// Where connection ids, jitter and quinn's choices come from; `None`: from the system. Simulations give a seed,
    /// another one for each start of each node.
    pub rng_seed: Option<u64>,
    /// The network.
    pub network: Arc<dyn Network>,
}

/// Bounds of an endpoint. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at a time. Default 4096.
    pub client_connections: usize,
    /// Handshakes at a time; beyond half of it, addresses must prove themselves first. Default 256.
    pub handshakes: usize,
    /// Requests of one client connection that wait for their answers. Default [`duet_proto::limits::IN_FLIGHT`].
    pub in_flight: usize,
    /// Answers queued and expected on one client connection beyond which no further request is read. Default 32 MiB.
    pub answers: usize,
    /// Answers queued on one client connection beyond which it is closed. Default 256 MiB.
    pub answers_hard: usize,
    /// Requests too big for the shared stream, received or being worked on, over all clients. Default 512 MiB.
    pub big_requests: usize,
    /// Queued for one peer in one lane; a single frame may be larger. Default 8 MiB.
    pub lane: usize,
    /// Silence after which a connection is given up. Default 5 s.
    pub idle: Duration,
    /// Silence after which a sign of life is sent. Default 1 s.
    pub keep_alive: Duration,
    /// How long a handshake, the greetings included, may take. Default 3 s.
    pub handshake: Duration,
    /// How old a connection may become: certificates are looked at only when one begins. Others are made in time, and
    /// nothing is lost by it. Default 50 s.
    pub max_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            client_connections: 4096,
            handshakes: 256,
            in_flight: duet_proto::limits::IN_FLIGHT,
            answers: 32 << 20,
            answers_hard: 256 << 20,
            big_requests: 512 << 20,
            lane: 8 << 20,
            idle: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            handshake: Duration::from_secs(3),
            max_age: Duration::from_secs(50),
        }
    }
}

/// One-way streams that a connection may have open, each way: lanes (each may have an old one that ends) or big frames.
pub(crate) const STREAMS: u32 = 16;
/// Window of each stream.
const STREAM_WINDOW: u32 = 4 << 20;
/// Window of a connection: more than all lanes together, so that one that is not read never stops another.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Largest datagram, where the path takes it (loopback does), found by probing. quinn hands the kernel up to ten
/// datagrams in one call, and one call takes less than 64 KiB: above 6550 every full batch is lost (seen, with 8972).
const DATAGRAM: u16 = 6500;

const _: () = {
    assert!(DATAGRAM as usize * 10 <= 65_507, "ten datagrams fit one call");
    assert!(CONNECTION_WINDOW > 4 * STREAM_WINDOW, "a stalled lane must leave room for the others");
};

/// quinn's settings; it leaves some of these unlimited.
pub(crate) fn transport(limits: &Limits) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM);
    let idle = IdleTimeout::try_from(limits.idle).unwrap_or_else(|_| VarInt::from_u32(5000).into());
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(limits.keep_alive))
        .initial_rtt(Duration::from_millis(50))
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(None);
    Arc::new(config)
}

/// `resets`: what a node signs its stateless resets with. A node that has started anew knows nothing of connections
/// from before; with the same key as then it can tell their other ends so, which would wait for nothing otherwise until
/// they are idle for too long.
pub(crate) fn endpoint(seed: Option<u64>, resets: Option<Arc<dyn HmacKey>>) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM).ok();
    if let Some(key) = resets {
        config.reset_key(key);
    }
    let Some(seed) = seed else {
        // quinn's own ids say which start they are of, and those of an earlier one would not be answered.
        config.cid_generator(|| Box::new(Ids(ChaCha8Rng::from_os_rng())));
        return config;
    };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = [0; 32];
    random.fill_bytes(&mut bytes);
    config.rng_seed(Some(bytes));
    let ids = random.next_u64();
    config.cid_generator(move || Box::new(Ids(ChaCha8Rng::seed_from_u64(ids))));
    config
}

/// Random connection ids.
struct Ids(ChaCha8Rng);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        let mut id = [0; 8];
        self.0.fill_bytes(&mut id);
        quinn::ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The random numbers of a seed, or of the system.
pub(crate) fn random(seed: Option<u64>, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed.unwrap_or_else(|| rand::rng().next_u64()));
    random.set_stream(stream);
    random
}
