//! What the parts of a node are told of its configuration.

use std::sync::Arc;

use duet_engine_eventual::{EngineConfig as Eventual, GossipConfig};
use duet_engine_strong::Config as Strong;
use duet_proto::Boot;
use duet_router::{Config as Router, Founder};
use duet_transport::{Config as Endpoint, Identity, Limits, Network, Tls};

use crate::config::Resolved;

/// A bug in one of the engines or the router, for the simulation's checkers to find.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// In the strong one.
    Strong(duet_engine_strong::Planted),
    /// In the eventual one.
    Eventual(duet_engine_eventual::Planted),
    /// In the router.
    Router(duet_router::Planted),
}

#[cfg(feature = "planted")]
impl From<duet_engine_strong::Planted> for Planted {
    fn from(bug: duet_engine_strong::Planted) -> Planted {
        Planted::Strong(bug)
    }
}

#[cfg(feature = "planted")]
impl From<duet_engine_eventual::Planted> for Planted {
    fn from(bug: duet_engine_eventual::Planted) -> Planted {
        Planted::Eventual(bug)
    }
}

#[cfg(feature = "planted")]
impl From<duet_router::Planted> for Planted {
    fn from(bug: duet_router::Planted) -> Planted {
        Planted::Router(bug)
    }
}

/// The settings of the engines and the router.
pub(crate) struct Settings {
    pub(crate) strong: Strong,
    pub(crate) eventual: Eventual,
    pub(crate) router: Router,
}

impl Settings {
    pub(crate) fn new(config: &Resolved, boot: Boot, seed: Option<u64>) -> Settings {
        let seed = seed.unwrap_or_else(|| u64::from(config.node.0) << 32 ^ boot.0);
        Settings {
            strong: strong(config, boot, seed),
            eventual: eventual(config, boot),
            router: router(config, boot),
        }
    }

    #[cfg(feature = "planted")]
    pub(crate) fn plant(mut self, bug: Option<Planted>) -> Settings {
        // Their runs are short: what is done for every few thousand rows is done for every few.
        self.eventual.replica.clear_rows = 16;
        match bug {
            Some(Planted::Strong(bug)) => self.strong.planted = Some(bug),
            Some(Planted::Eventual(bug)) => self.eventual.replica.planted = Some(bug),
            Some(Planted::Router(bug)) => self.router.planted = Some(bug),
            None => {}
        }
        self
    }
}

/// The endpoint's.
pub(crate) fn endpoint(config: &Resolved, tls: Tls, seed: Option<u64>, network: Arc<dyn Network>) -> Endpoint {
    Endpoint {
        me: Identity::node(config.cluster.clone(), config.node),
        listen: config.listen,
        tls,
        limits: Limits {
            client_connections: config.limits.connections,
            in_flight: config.limits.in_flight,
            max_age: config.timing.connection_age,
            ..Limits::default()
        },
        rng_seed: seed,
        network,
    }
}

fn strong(config: &Resolved, boot: Boot, seed: u64) -> Strong {
    Strong {
        tick: config.timing.tick,
        election: config.timing.election_ticks..config.timing.election_ticks * 5 / 3,
        heartbeat: config.timing.heartbeat_ticks,
        no_quorum_after: config.timing.no_quorum,
        value_max: config.limits.value_bytes,
        seed,
        ..Strong::new(config.node, boot)
    }
}

fn eventual(config: &Resolved, boot: Boot) -> Eventual {
    Eventual {
        value_max: config.limits.value_bytes,
        token_wait: config.timing.token_wait,
        gossip: config.gossip.map(|interval| GossipConfig { interval, ..GossipConfig::new(config.cluster.as_str()) }),
        ..Eventual::new(config.node, boot)
    }
}

fn router(config: &Resolved, boot: Boot) -> Router {
    Router {
        cluster: config.cluster.clone(),
        me: config.node,
        boot,
        address: config.advertise.clone(),
        founders: config.founders.iter().map(|(id, address)| Founder { id: *id, address: address.clone() }).collect(),
        value_max: config.limits.value_bytes,
        #[cfg(feature = "planted")]
        planted: None,
    }
}
