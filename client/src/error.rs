//! What a call can end with.

use std::time::Duration;

use duet_proto::{Class, Error, InvalidName};

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A typed error of the cluster's, or one that the client found before or instead of it (a key over the limit, an
    /// outcome that is unknown because the connection broke).
    #[error(transparent)]
    Cluster(#[from] Error),
    /// No node could be reached. Nothing was done.
    #[error("no node could be reached; tried {}", .tried.iter().map(|(at, why)| format!("{at} ({why})")).collect::<Vec<_>>().join(", "))]
    Unreachable {
        /// Each address that was tried, and what happened there.
        tried: Vec<(String, String)>,
    },
    /// Every node that was called refused this client, or this client it: the certificates, the cluster or the
    /// protocol version do not fit. Nothing was done.
    #[error("refused: {}", .tried.iter().map(|(at, why)| format!("{at} ({why})")).collect::<Vec<_>>().join(", "))]
    Refused {
        /// Each address that was tried, and what happened there.
        tried: Vec<(String, String)>,
    },
    /// No answer within the timeout. Nothing was done.
    #[error("timed out after {} ms: {why}", .after.as_millis())]
    TimedOut {
        /// The timeout.
        after: Duration,
        /// What it was waiting for.
        why: String,
    },
    /// The client was not set up right.
    #[error("client configuration: {why}")]
    Configuration {
        /// What is wrong.
        why: String,
    },
    /// The node answered with something that is no answer to the request.
    #[error("unexpected answer from {from}: {what}")]
    Unexpected {
        /// The node's address.
        from: String,
        /// What came.
        what: String,
    },
}

impl ClientError {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            ClientError::Cluster(error) => error.class(),
            ClientError::Unreachable { .. } | ClientError::TimedOut { .. } => Class::Retry,
            ClientError::Configuration { .. } | ClientError::Refused { .. } => Class::Caller,
            // Whether a write was done cannot be told from an answer that makes no sense.
            ClientError::Unexpected { .. } => Class::Unknown,
        }
    }

    /// A short name for scripts, stable across versions.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            ClientError::Cluster(error) => error.code(),
            ClientError::Unreachable { .. } => "unreachable",
            ClientError::Refused { .. } => "refused",
            ClientError::TimedOut { .. } => "timed_out",
            ClientError::Configuration { .. } => "configuration",
            ClientError::Unexpected { .. } => "unexpected",
        }
    }

    /// The cluster's error, if it is one.
    #[must_use]
    pub fn cluster(&self) -> Option<&Error> {
        if let ClientError::Cluster(error) = self { Some(error) } else { None }
    }
}

impl From<InvalidName> for ClientError {
    fn from(name: InvalidName) -> Self {
        ClientError::Cluster(name.into())
    }
}
