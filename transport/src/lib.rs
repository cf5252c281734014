//! transport
mod config;
mod connect;
mod endpoint;
mod identity;
mod net;
mod peers;
mod pki;
mod refusal;
mod service;
pub mod sim;
mod stats;
mod tls;
mod wire;

pub use config::{Config, Limits};
pub use connect::{ConnectError, Connection, Connector, Ended, NotSent};
pub use endpoint::{Endpoint, StartError};
pub use identity::{CLIENT_NAME, Identity, InvalidIdentity, Principal};
pub use net::{BoxFuture, Network, Udp};
pub use peers::{Lane, Peers, SendError};
pub use pki::{CertificateAuthority, Issued, PkiError, Validity};
pub use refusal::Refusal;
pub use service::{ClientConnection, Incoming, ReplySender};
pub use stats::{LaneStats, Stats};
pub use tls::{Part, Tls, TlsError};
