//! Duet's transport: QUIC between nodes and to clients, with certificates on both ends, always.
//!
//! A node has one UDP port. A handshake (TLS 1.3, a certificate of the cluster's authority on either side) tells who is
//! there: the URI in the certificate is the [`Identity`]. ALPN tells what for.
//!
//! ```text
//!                         ┌─ duet-peer/1 ──► Peers ── Lane::{Raft, Bulk, Sync, Gossip} ──► engines' drivers
//!  UDP ─ quinn ─ rustls ──┤   (nodes only)            a stream, a queue and a window each
//!                         └─ duet-client/1 ► ClientConnection ── Incoming{body, reply} ──► node/serve
//!                             (clients only)           one stream for all, one more for each big frame
//! ```
//!
//! The hot path is `wire.rs`: whoever has something to say appends a frame to a buffer and goes on; one task per stream
//! takes all that has gathered and hands it to QUIC in one call. Nothing here waits for a slow reader: queues and
//! windows are bounded, what is over is refused ([`SendError`], [`NotSent`]), not read on (requests), or ends the
//! connection ([`Refusal::TooSlow`]).
//!
//! Delivery between nodes is at most once, and in order within a lane while a connection lasts; the engines send again
//! what still matters. Between client and node, frames carry ids that this crate does not see.
//!
//! What this crate leaves out: it never decodes a payload, decides no membership (an authenticated node may speak; what
//! it says is the engines' to judge), and keeps nothing on disk. Time is tokio's and chance has a seed
//! ([`Config::rng_seed`]), so that under [`sim`] the same seed gives the same packets. The formats are in
//! `specs/wire-protocol.md`.

mod config;
mod connect;
mod endpoint;
mod identity;
mod net;
mod peers;
mod pki;
mod refusal;
mod revoked;
mod service;
pub mod sim;
mod stats;
mod tls;
mod udp;
mod wire;

pub use config::{Config, Limits};
pub use connect::{ConnectError, Connection, Connector, Ended, NotSent};
pub use endpoint::{Endpoint, StartError};
pub use identity::{CLIENT_NAME, Identity, InvalidIdentity, Principal};
pub use net::{BoxFuture, Network, Udp};
pub use peers::{Lane, Peers, SendError};
pub use pki::{CertificateAuthority, Issued, PkiError, Validity};
/// What a [`Network`] opens.
pub use quinn::AsyncUdpSocket;
pub use refusal::Refusal;
pub use revoked::Revoked;
pub use service::{ClientConnection, Incoming, ReplySender};
pub use stats::{LaneStats, Stats};
pub use tls::{Part, Tls, TlsError};
