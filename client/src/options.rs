//! What can be set, and to what.

use std::time::Duration;

use duet_proto::{Consistency, NodeId, limits};

use crate::ClientError;

/// Settings of a client, shared by everything made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How long a request may take, retries included. Default 5 s, at least 1 ms. [`Namespace::timeout`] sets it for
    /// some requests.
    ///
    /// [`Namespace::timeout`]: crate::Namespace::timeout
    pub timeout: Duration,
    /// How long one endpoint may take to accept a connection before the next one is tried beside it. Default 250 ms.
    pub dial_patience: Duration,
    /// How long one member may take to answer before another one is asked as well, where that is safe. Default 400 ms.
    pub patience: Duration,
    /// How long other members are asked after one has answered `NoQuorum`. Default 250 ms.
    pub no_quorum_grace: Duration,
    /// How long [`Client::status`](crate::Client::status) waits for a node. Default 1 s.
    pub status_patience: Duration,
    /// The first pause between rounds of tries; each further one is twice as long, half of it random. Default 10 ms.
    pub backoff_min: Duration,
    /// The longest pause between rounds of tries. Default 500 ms.
    pub backoff_max: Duration,
    /// How many requests may wait for their answers; more of them queue in the client. Default and most
    /// [`limits::IN_FLIGHT`].
    pub in_flight: usize,
    /// The largest value that this client sends, in bytes. The cluster may be configured to take less. Default and
    /// most [`limits::VALUE_MAX`].
    pub value_bytes: usize,
    /// The defaults of every request.
    pub call: CallOptions,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            timeout: Duration::from_secs(5),
            dial_patience: Duration::from_millis(250),
            patience: Duration::from_millis(400),
            no_quorum_grace: Duration::from_millis(250),
            status_patience: Duration::from_secs(1),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(500),
            in_flight: limits::IN_FLIGHT,
            value_bytes: limits::VALUE_MAX,
            call: CallOptions::default(),
        }
    }
}

impl Options {
    /// Checks every bound.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let bad = |why: &str| Err(ClientError::Configuration { why: why.into() });
        if self.timeout < Duration::from_millis(1) {
            return bad("the timeout is below 1 ms");
        }
        if self.in_flight == 0 || self.in_flight > limits::IN_FLIGHT {
            return bad("in_flight is not within 1 and the limit of a connection");
        }
        if self.value_bytes > limits::VALUE_MAX {
            return bad("value_bytes is above the limit");
        }
        if self.backoff_min.is_zero() || self.backoff_min > self.backoff_max {
            return bad("backoff_min is zero or above backoff_max");
        }
        Ok(())
    }
}

/// Settings that may differ from request to request; [`Namespace`](crate::Namespace) carries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallOptions {
    /// How long a request may take; `None`: [`Options::timeout`].
    pub timeout: Option<Duration>,
    /// How reads of a strong namespace are served. Default linearizable.
    pub consistency: Consistency,
    /// Whether an eventual namespace shows this client its own writes and never goes back in time for it, whichever
    /// member answers. Default true. A read that cannot be satisfied in time ends as `TokenNotCovered`; without the
    /// session's guarantees any member answers at once with what it holds. Such a request takes no part in the
    /// session: what it sees or writes is not remembered either.
    pub session: bool,
    /// Whether a write to a strong namespace carries what makes its retries exactly once. Default true. Without it a
    /// write is sent once, and a broken connection ends it as `OutcomeUnknown`.
    pub exactly_once: bool,
    /// Only this node is asked, and what it holds itself is what it answers with where that is asked for
    /// ([`Consistency::Local`]). Default none: any member, the leader first where that helps.
    pub node: Option<NodeId>,
}

impl Default for CallOptions {
    fn default() -> Self {
        CallOptions {
            timeout: None,
            consistency: Consistency::Linearizable,
            session: true,
            exactly_once: true,
            node: None,
        }
    }
}
