//! What this node remembers of a namespace while it is unfinished: since when it has seen what.

use std::time::Duration;

use duet_proto::{Epoch, NamespaceId};
use tokio::time::Instant;

use super::EngineError;
use crate::catalog::{NamespaceRecord, NamespaceState};

/// The time between two candidacies, in the end.
const CAMPAIGN: Duration = Duration::from_millis(100);
/// That after the first, which may have come before the others had set up their replicas; it doubles.
const EAGER: Duration = Duration::from_millis(10);

/// What a switch does to writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Settled,
    Gathering,
    Stopped,
}

/// What was seen of a namespace, and since when. Not durable: after a restart every wait begins again.
#[derive(Debug, Default)]
pub(super) struct Track {
    epoch: Option<(Epoch, Instant)>,
    attempt: Option<((u64, Stage), Instant)>,
    campaigned: Option<Instant>,
    campaigns: u32,
    complained: u32,
}

impl Track {
    /// The catalog has changed.
    pub(super) fn renew(&mut self) {
        self.campaigns = 0;
        self.complained = 0;
    }

    /// Takes note of an entry.
    pub(super) fn see(&mut self, record: &NamespaceRecord) {
        let now = Instant::now();
        if self.epoch.is_none_or(|(epoch, _)| epoch != record.epoch) {
            self.epoch = Some((record.epoch, now));
            (self.campaigned, self.campaigns) = (None, 0);
        }
        let stage = match &record.state {
            _ if record.fence().is_some() => Stage::Stopped,
            NamespaceState::Switching(_) => Stage::Gathering,
            _ => Stage::Settled,
        };
        let attempt = (record.attempts, stage);
        if self.attempt.is_none_or(|(seen, _)| seen != attempt) {
            self.attempt = Some((attempt, now));
        }
    }

    /// For how long the present epoch was seen.
    pub(super) fn in_epoch(&self) -> Duration {
        self.epoch.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// For how long writes were seen to be stopped by the present attempt, or to go on before the next.
    pub(super) fn in_attempt(&self) -> Duration {
        self.attempt.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// How often this node has stood for election since the catalog changed.
    pub(super) fn campaigns(&self) -> u32 {
        self.campaigns
    }

    /// Whether the last candidacy is long enough ago; the next one counts from now.
    pub(super) fn may_campaign(&mut self) -> bool {
        let pause = CAMPAIGN.min(EAGER * (1 << self.campaigns.saturating_sub(1).min(7)));
        if self.campaigned.is_some_and(|at| at.elapsed() < pause) {
            return false;
        }
        self.campaigned = Some(Instant::now());
        self.campaigns += 1;
        true
    }

    /// Says what keeps a replica from being as the catalog says; aloud when it lasts, or must be seen.
    pub(super) fn complain(&mut self, id: NamespaceId, error: &EngineError) {
        self.complained = self.complained.saturating_add(1);
        if matches!(error, EngineError::NotTheBase { .. }) && self.complained == 1 {
            tracing::error!(namespace = %id, %error, "a replica cannot follow the catalog");
        } else if self.complained == 50 {
            tracing::warn!(namespace = %id, %error, "a replica is not as the catalog says yet");
        } else {
            tracing::debug!(namespace = %id, %error, "a replica is not as the catalog says yet");
        }
    }
}
