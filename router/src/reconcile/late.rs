//! Late writes: what a member held of an eventual epoch that ended without it.
//!
//! It has put them aside on its disk, and once it is a member of the group that followed it proposes them there, under
//! their own stamps. When it has brought all, or when an operator gives them up, nobody waits for them any more, and
//! the group forgets the tombstones that it has kept for them.

use std::time::Duration;

use duet_engine_strong::{GroupInfo, Proposal};
use duet_proto::{Epoch, Error, NamespaceName, Stamp};
use tokio::time::Instant;

use super::{EngineError, Pace, carry_out, passage};
use crate::{catalog::NamespaceRecord, failpoint::failpoint, plan, router::Inner, view::Entry};

/// Late writes in one proposal.
const TOGETHER: usize = 256;
/// Bytes of keys and values in one proposal, give or take one write.
const BYTES: usize = 1 << 20;
/// How long one proposal may take before it is made anew.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes the next step of a strong namespace that has followed on an eventual one.
pub(super) async fn settle(
    inner: &Inner,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    group: &GroupInfo,
) -> Result<Pace, EngineError> {
    let record = &entry.record;
    if passage::earlier_space(inner, record).is_some() {
        return Ok(Pace::Soon);
    }
    let (me, stashed) = (inner.config.me, inner.eventual.stashed(record.id, TOGETHER)?);
    let mut epochs = stashed.iter().map(|(_, late)| late.stamp.epoch);
    if let Some(epoch) = epochs.find(|epoch| !record.owed.contains(&(me, *epoch))) {
        return drop_unawaited(inner, name, record, epoch, &stashed).await;
    }
    let owed = record.owed.iter().any(|(node, _)| *node == me);
    if !stashed.is_empty() || owed {
        return bring(inner, name, entry, stashed).await;
    }
    if record.owed.is_empty() && group.leader == Some(inner.config.me) {
        return forget(inner, name, record).await;
    }
    Ok(Pace::settled(record.owed.is_empty()))
}

/// Lets go of those of an epoch for which nobody waits any more, brought or not: since then the group may have forgotten what
/// was deleted meanwhile, though it keeps tombstones again, for somebody else or for another epoch.
async fn drop_unawaited(
    inner: &Inner,
    name: &NamespaceName,
    record: &NamespaceRecord,
    epoch: Epoch,
    stashed: &[(bytes::Bytes, duet_proto::Record)],
) -> Result<Pace, EngineError> {
    let stamps = stashed.iter().map(|(_, late)| late.stamp).filter(|stamp| stamp.epoch == epoch);
    let stamps: Vec<Stamp> = stamps.collect();
    // Who was not forgotten was taken off the list with the last of them. Of a switch long ago that is not known any more.
    let past = record.history.iter().find(|past| past.epoch == epoch && !past.aborted);
    let brought = past.is_some_and(|past| !past.forgotten.contains(&inner.config.me));
    tracing::info!(namespace = %name, %epoch, writes = stamps.len(), brought, "late writes for which nobody waits");
    inner.eventual.unstash(record.id, stamps, brought).await?;
    Ok(Pace::Now)
}

/// Proposes the oldest of them; with the last ones says that all are there.
async fn bring(
    inner: &Inner,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    mut stashed: Vec<(bytes::Bytes, duet_proto::Record)>,
) -> Result<Pace, EngineError> {
    let record = &entry.record;
    // It is caught up enough to know that it belongs to the group.
    if inner.strong.state(record.id, record.epoch)?.is_none() {
        return Ok(Pace::Soon);
    }
    let last = stashed.len() < TOGETHER;
    let mut bytes = 0;
    let fit = stashed.iter().take_while(|(key, late)| {
        let fits = bytes < BYTES;
        bytes += key.len() + late.live().map_or(0, bytes::Bytes::len);
        fits
    });
    let fit = fit.count();
    let last = last && fit == stashed.len();
    stashed.truncate(fit);
    let stamps: Vec<Stamp> = stashed.iter().map(|(_, late)| late.stamp).collect();
    let mut brought = true;
    if !stashed.is_empty() {
        let late = Proposal::Late { records: stashed };
        match inner.strong.propose(record.id, record.epoch, late, Instant::now() + PATIENCE).await {
            Ok(()) => {}
            // Nobody waits for them any more.
            Err(Error::InvalidRequest { .. }) => brought = false,
            Err(error) => {
                tracing::debug!(namespace = %name, %error, "late writes cannot be brought yet");
                return Ok(Pace::Soon);
            }
        }
        failpoint("late.proposed");
    }
    if last
        && let Some(plan) = plan::brought(name, entry, inner.config.me, &inner.eventual.stash_frontiers(record.id)?)
    {
        if !carry_out(inner, &plan).await {
            return Ok(Pace::Soon);
        }
        failpoint("late.brought");
    }
    tracing::info!(namespace = %name, writes = stamps.len(), brought, "late writes");
    inner.count(|figures| figures.late(stamps.len() as u64, brought));
    inner.eventual.unstash(record.id, stamps, brought).await?;
    Ok(Pace::Soon)
}

/// Nothing is owed any more: the group need not keep tombstones.
async fn forget(inner: &Inner, name: &NamespaceName, record: &NamespaceRecord) -> Result<Pace, EngineError> {
    let state = inner.strong.state(record.id, record.epoch)?;
    if state.is_none_or(|state| !state.keep_tombstones && state.tombstones == 0 || state.sealed.is_some()) {
        return Ok(Pace::Settled);
    }
    let settle = Proposal::Settle;
    if let Err(error) = inner.strong.propose(record.id, record.epoch, settle, Instant::now() + PATIENCE).await {
        tracing::debug!(namespace = %name, %error, "tombstones are kept for now");
    }
    Ok(Pace::Soon)
}
