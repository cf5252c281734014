//! How a replica passes from an earlier epoch to the present one.
//!
//! Whoever holds what the present epoch begins with goes on in place: the records stay where they are, and only the
//! replica around them changes. Everybody else begins blank, and gets a copy from the others; what an eventual
//! replica holds that the others may not is put aside first.
//!
//! ```text
//!   eventual, e, in the base ───► the group of e+1 over the records ──► the old replica is retired
//!   eventual, earlier or apart ─► fence ─► stash ─► removed ──────────► joins
//!   eventual, failed ───────────► waits for its next start, or to be forgotten, if it is owed; else removed ─► joins
//!   strong, e, seal applied ────► the replica of e+1 over the records ─► a while later the group is retired
//!   strong, behind or earlier ──► removed, if the seal does not come ──► joins
//! ```

use std::time::Duration;

use duet_engine_eventual::{Base, SpaceError, SpaceId, SpaceInfo, SpaceSpec, Standing, Start};
use duet_engine_strong::{GroupInfo, GroupSpec, machine::Base as GroupBase};
use duet_proto::{Digest, Mode, NamespaceName};

use super::{EngineError, Pace, groups, track::Track};
use crate::{catalog::NamespaceRecord, failpoint::failpoint, planted::Planted, router::Inner};

/// So many tombstones are dropped while writes wait; more are left to the group, which forgets them as it goes.
const FEW: u64 = 4096;
/// How long a group that has ended is kept, so that members that are a little behind can apply its end.
const GRACE: Duration = Duration::from_secs(3);
/// How long a member that is behind waits for the end of its group before it begins blank.
const BEHIND: Duration = Duration::from_secs(5);

/// Takes the next step of whatever is here of an earlier epoch. At once or sooner: the present one has to wait for it.
pub(super) async fn cross(
    inner: &Inner,
    name: &NamespaceName,
    record: &NamespaceRecord,
    track: &Track,
) -> Result<Pace, EngineError> {
    if let Some(space) = earlier_space(inner, record) {
        return from_space(inner, name, record, &space).await;
    }
    let mut groups = inner.strong.groups().into_iter();
    match groups.find(|group| group.id.namespace == record.id && group.id.epoch < record.epoch) {
        Some(group) => from_group(inner, name, record, &group, track).await,
        None => Ok(Pace::Settled),
    }
}

async fn from_space(
    inner: &Inner,
    name: &NamespaceName,
    record: &NamespaceRecord,
    space: &SpaceInfo,
) -> Result<Pace, EngineError> {
    let id = space.id;
    if let Some(why) = &space.failed {
        if record.owed.contains(&(inner.config.me, id.epoch)) {
            // It may hold what nobody else has. Its next start may be able to read it, or an operator gives it up.
            tracing::debug!(namespace = %name, %id, why, "a failed replica of an earlier epoch is left as it is");
            return Ok(Pace::Soon);
        }
        return begin_anew(inner, name, record, id).await;
    }
    let follows = id.epoch.0 + 1 == record.epoch.0 && record.mode == Mode::Strong;
    if follows && record.starts(inner.config.me) {
        if inner.strong.group(record.id, record.epoch).is_none() {
            open_group(inner, name, record, id).await?;
        }
        inner.eventual.retire(id).await?;
        failpoint("switch.retired");
        return Ok(Pace::Now);
    }
    // The epoch has ended without this member.
    let standing = inner.eventual.standing(id).await;
    if standing.is_some_and(|standing| standing.fence < Some(record.attempts)) {
        inner.eventual.fence(id, record.attempts).await?;
    }
    inner.eventual.stash(id, record.end_of(id.epoch).cloned().unwrap_or_default()).await?;
    failpoint("late.stashed");
    begin_anew(inner, name, record, id).await
}

/// Takes a replica of an earlier epoch away, from which the present one does not go on; its records too, unless those of
/// the present one lie among them already.
async fn begin_anew(
    inner: &Inner,
    name: &NamespaceName,
    record: &NamespaceRecord,
    id: SpaceId,
) -> Result<Pace, EngineError> {
    if has_followed(inner, record) {
        inner.eventual.retire(id).await?;
    } else {
        inner.eventual.remove(id).await?;
    }
    tracing::info!(namespace = %name, %id, epoch = %record.epoch, "the epoch ended without this member; it begins anew");
    Ok(Pace::Now)
}

fn has_followed(inner: &Inner, record: &NamespaceRecord) -> bool {
    let space = SpaceId { namespace: record.id, epoch: record.epoch };
    inner.strong.group(record.id, record.epoch).is_some() || inner.eventual.space(space).is_some()
}

/// Whether a replica that has failed lies, with what nobody else may have, where the present one's records would.
pub(super) fn is_barred(inner: &Inner, record: &NamespaceRecord) -> bool {
    earlier_space(inner, record).is_some_and(|space| space.failed.is_some()) && !has_followed(inner, record)
}

/// The group of the present epoch, over the records that the eventual one has left in place.
async fn open_group(
    inner: &Inner,
    name: &NamespaceName,
    record: &NamespaceRecord,
    old: SpaceId,
) -> Result<(), EngineError> {
    let standing = inner.eventual.standing(old).await.filter(|standing| standing.fence.is_some());
    let standing = standing.ok_or_else(|| not_the_base(record, "the replica is not fenced".into()))?;
    let Standing { base: mut held, .. } = standing;
    let base = expected(record, held.digest, held.keys)?;
    let keep_tombstones = base.keep_tombstones && !inner.planted(Planted::TombstonesForgotten);
    if !keep_tombstones && (1..=FEW).contains(&held.tombstones) {
        match inner.eventual.drop_tombstones(old).await {
            Ok(()) => held.tombstones = 0,
            Err(SpaceError::Invalid { why }) => {
                tracing::warn!(namespace = %name, why, "some tombstones stay for now");
                held = inner.eventual.standing(old).await.map_or(held, |standing| standing.base);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let base = GroupBase {
        last: base.last,
        digest: base.digest,
        keys: base.keys,
        tombstones: held.tombstones,
        keep_tombstones,
        keep_answers: base.answers,
    };
    // One that has ended may linger still.
    for group in inner.strong.groups().into_iter().filter(|group| group.id.namespace == record.id) {
        inner.strong.retire(record.id, group.id.epoch).await?;
    }
    inner.eventual.freeze(old);
    let spec = GroupSpec {
        namespace: record.id,
        epoch: record.epoch,
        name: name.clone(),
        voters: record.initial.iter().copied().collect(),
        learners: Default::default(),
        base: Some(base),
    };
    inner.strong.create(spec).await?;
    tracing::info!(namespace = %name, epoch = %record.epoch, keys = base.keys, "strong, over what was in place");
    failpoint("switch.created");
    inner.placed.notify_waiters();
    Ok(())
}

async fn from_group(
    inner: &Inner,
    name: &NamespaceName,
    record: &NamespaceRecord,
    group: &GroupInfo,
    track: &Track,
) -> Result<Pace, EngineError> {
    let id = group.id;
    let follows = id.epoch.0 + 1 == record.epoch.0 && record.mode == Mode::Eventual;
    let here = inner.eventual.space(SpaceId { namespace: record.id, epoch: record.epoch }).is_some();
    if follows && here {
        if track.in_epoch() < GRACE {
            return Ok(Pace::Soon);
        }
        inner.strong.retire(id.namespace, id.epoch).await?;
        failpoint("switch.retired");
        return Ok(Pace::Settled);
    }
    let early = inner.planted(Planted::OpenBeforeSeal);
    let state =
        if early { inner.strong.state(record.id, id.epoch)? } else { groups::sealed(inner, record, id.epoch)? };
    if follows && let Some(state) = state {
        if !early {
            expected(record, state.digest, state.keys)?;
        }
        let base = Base { last: state.last, digest: state.digest, keys: state.keys, tombstones: state.tombstones };
        let spec = SpaceSpec {
            namespace: record.id,
            epoch: record.epoch,
            name: name.clone(),
            start: Start::Founder,
            members: record.engine_members(),
            base: Some(base),
        };
        inner.eventual.create(spec).await?;
        tracing::info!(namespace = %name, epoch = %record.epoch, keys = state.keys, "eventual, over what was in place");
        failpoint("switch.opened");
        inner.placed.notify_waiters();
        return Ok(Pace::Now);
    }
    if follows && track.in_epoch() < BEHIND {
        return Ok(Pace::AtOnce);
    }
    inner.strong.remove(id.namespace, id.epoch).await?;
    tracing::info!(namespace = %name, %id, epoch = %record.epoch, "behind by too much; it begins anew");
    Ok(Pace::Now)
}

/// The base of the present epoch, if that is what is in place.
fn expected(record: &NamespaceRecord, digest: Digest, keys: u64) -> Result<&crate::catalog::Base, EngineError> {
    let base = record.base.as_ref().ok_or_else(|| not_the_base(record, "the catalog has none".into()))?;
    if (base.digest, base.keys) == (digest, keys) {
        return Ok(base);
    }
    let why = format!("{keys} keys of digest {digest:?}, the catalog has {} of {:?}", base.keys, base.digest);
    Err(not_the_base(record, why))
}

fn not_the_base(record: &NamespaceRecord, why: String) -> EngineError {
    EngineError::NotTheBase { epoch: record.epoch, why }
}

/// The eventual replica of an earlier epoch that is still here.
pub(super) fn earlier_space(inner: &Inner, record: &NamespaceRecord) -> Option<SpaceInfo> {
    let mut spaces = inner.eventual.spaces().into_iter();
    spaces.find(|space| space.id.namespace == record.id && space.id.epoch < record.epoch)
}
