//! Why a connection is refused or ended, as a code on the wire and a name in the metrics.

use std::fmt;

use quinn::{ConnectionError, VarInt};

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $label:literal, $text:literal;)*) => {
        /// Why a connection is refused or ended. The numbers are QUIC application error codes, but for those from 256
        /// on, which come from TLS and are known here only.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Refusal { $($(#[$doc])* $name = $code,)* }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Refusal] = &[$(Refusal::$name,)*];

            /// A short name for metrics.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Refusal::$name => $label,)* }
            }
        }

        impl fmt::Display for Refusal {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Refusal::$name => $text,)* })
            }
        }
    };
}

refusals! {
    /// An ordinary end.
    Done = 0, "done", "closed";
    /// The certificate is of another cluster.
    WrongCluster = 1, "wrong_cluster", "the certificate is of another cluster";
    /// A client's certificate where a node's is needed, or the reverse.
    WrongRole = 2, "wrong_role", "the certificate's role does not fit: nodes speak to nodes as peers, clients to nodes as clients";
    /// The sender claims to be another node than its certificate says.
    ClaimedId = 3, "claimed_id", "the claimed node id is not the certificate's";
    /// The protocol version is not spoken.
    Version = 4, "version", "the protocol version is not spoken here";
    /// Bytes that are no message.
    Malformed = 5, "malformed", "malformed message";
    /// A frame above the limit.
    TooLarge = 6, "too_large", "a frame is larger than the limit";
    /// Too many connections.
    TooMany = 7, "too_many", "too many connections";
    /// The other side does not read what it asked for.
    TooSlow = 8, "too_slow", "answers were not read";
    /// The connection has reached its greatest age: connect again.
    Aged = 9, "aged", "the connection has reached its greatest age";
    /// The same peer has connected anew.
    Replaced = 10, "replaced", "a newer connection has taken its place";
    /// The node is stopping.
    Stopping = 11, "stopping", "the node is stopping";
    /// The certificate names nobody of a Duet cluster.
    NoIdentity = 12, "no_identity", "the certificate holds no Duet identity";
    /// The handshake or the greeting took too long.
    Timeout = 13, "timeout", "no answer in time";
    /// Another node answered than the one that was called.
    WrongNode = 14, "wrong_node", "another node answered than the one called";
    /// The certificate is on the list of revoked ones.
    Revoked = 15, "revoked", "the certificate was revoked";
    /// No certificate was shown.
    NoCertificate = 256, "no_certificate", "no certificate was shown";
    /// The certificate was issued by another authority.
    UnknownAuthority = 257, "unknown_authority", "the certificate was issued by another authority";
    /// The certificate is no longer, or not yet, valid.
    Expired = 258, "expired", "the certificate has expired or does not hold yet";
    /// Any other failure of the TLS or QUIC handshake.
    Handshake = 259, "handshake", "the handshake failed";
}

impl Refusal {
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    pub(crate) fn close(self, connection: &quinn::Connection) {
        connection.close(self.code(), self.to_string().as_bytes());
    }

    /// What ended a connection, if it was a decision of either side and not silence.
    #[must_use]
    pub fn of(error: &ConnectionError) -> Option<Refusal> {
        let code = match error {
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                return Refusal::ALL.iter().copied().find(|r| *r as u64 == code && code < 256);
            }
            ConnectionError::TransportError(error) => error.code,
            ConnectionError::ConnectionClosed(close) => close.error_code,
            _ => return None,
        };
        // TLS alerts travel as QUIC errors 0x100 + alert (RFC 9001, section 4.8).
        Some(match u64::from(code) {
            0x174 => Refusal::NoCertificate,
            // unknown_ca, or decrypt_error: an authority of the same name, but with another key.
            0x130 | 0x133 => Refusal::UnknownAuthority,
            0x12d => Refusal::Expired,
            _ => Refusal::Handshake,
        })
    }
}
