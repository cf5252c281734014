//! The local replicas of eventual namespaces.

use duet_engine_eventual::{SpaceError, SpaceId, SpaceSpec, Standing, Start};
use duet_proto::{NamespaceId, NamespaceName};
use tokio::time::Instant;

use super::{AT_ONCE, EngineError, Pace, carry_out, track::Track};
use crate::{
    catalog::{Held, NamespaceRecord, NamespaceState, Step, Switch},
    failpoint::failpoint,
    plan::{self, Came, Moment, Stand},
    router::Inner,
    view::{Entry, View},
};

/// Takes the next step of a replica that is to be here.
///
/// Neither a change of the members nor one of the mode has a coordinator: each node moves its own replica to what it
/// sees in the entry, and says there what that has come to. So a change goes on as long as the nodes that it needs are
/// there.
pub(super) async fn settle(
    inner: &Inner,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    track: &Track,
) -> Result<Pace, EngineError> {
    let record = &entry.record;
    let id = SpaceId { namespace: record.id, epoch: record.epoch };
    let Some(space) = inner.eventual.space(id) else {
        create(inner, name, record).await?;
        return Ok(Pace::Soon);
    };
    if space.failed.is_some() {
        // It has no part in a switch, but sees how long that takes.
        advance(inner, name, entry, &Came::Nothing, track).await;
        let switching = matches!(record.state, NamespaceState::Switching(_));
        return Ok(Pace::settled(!switching));
    }
    if space.version < record.version {
        inner.eventual.set_members(id, record.engine_members()).await?;
    }
    if record.state == NamespaceState::Stable && record.attempts == 0 {
        return Ok(Pace::Settled);
    }
    // Before the look, so that what happens after it is not missed.
    let news = inner.eventual.news(id);
    let Some(standing) = inner.eventual.standing(id).await else { return Ok(Pace::Soon) };
    let standing = fence(inner, record, id, standing).await?;
    match &record.state {
        NamespaceState::Stable => Ok(Pace::settled(standing.fence.is_none())),
        NamespaceState::Switching(switch) => {
            let converging =
                matches!(switch.step, Step::Converging { .. }) && standing.converged != Some(record.attempts);
            let came = came(inner, record, switch, standing)?;
            advance(inner, name, entry, &came, track).await;
            if converging && let Some(news) = news {
                either(inner, name, entry, news).await;
                return Ok(Pace::Now);
            }
            Ok(if record.fence().is_some() { Pace::AtOnce } else { Pace::Soon })
        }
        _ => {
            let stand = Stand {
                version: standing.version,
                whole: standing.whole,
                moved: standing.moved,
                frontier: standing.frontier,
            };
            if let Some(plan) = plan::report(name, entry, inner.config.me, &stand) {
                carry_out(inner, &plan).await;
            }
            Ok(Pace::Soon)
        }
    }
}

/// Makes the fence as the entry has it. One of a later attempt than the entry's is left alone: the view is older than
/// what was done here (rule 5).
async fn fence(
    inner: &Inner,
    record: &NamespaceRecord,
    id: SpaceId,
    standing: Standing,
) -> Result<Standing, EngineError> {
    let mut changed = false;
    match (record.fence(), standing.fence) {
        (Some(attempt), have) if have < Some(attempt) => {
            inner.eventual.fence(id, attempt).await?;
            failpoint("switch.fenced");
            changed = true;
        }
        (None, Some(have)) if have <= record.attempts => {
            inner.eventual.lift(id, have).await?;
            inner.placed.notify_waiters();
            changed = true;
        }
        _ => {}
    }
    if let NamespaceState::Switching(Switch { step: Step::Converging { base, .. }, .. }) = &record.state
        && base.contains(&inner.config.me)
        && standing.converged != Some(record.attempts)
    {
        failpoint("switch.converging");
        inner.eventual.converge(id, record.attempts, base.iter().copied().collect()).await?;
        changed = true;
    }
    if !changed {
        return Ok(standing);
    }
    Ok(inner.eventual.standing(id).await.ok_or(SpaceError::Unknown(id))?)
}

fn came(inner: &Inner, record: &NamespaceRecord, switch: &Switch, standing: Standing) -> Result<Came, EngineError> {
    // The table is read only where it counts.
    let answers = match (&switch.step, standing.converged) {
        (Step::Converging { .. }, Some(_)) => inner.strong.answers(record.id)?,
        _ => None,
    };
    let base = standing.base;
    let held = Held { last: base.last, digest: base.digest, keys: base.keys, frontier: standing.frontier, answers };
    let Standing { near, fence, converged, .. } = standing;
    Ok(Came::Eventual { near, fence, converged, held: Box::new(held) })
}

/// Waits for news of the replica, or of the entry; not for long.
async fn either(inner: &Inner, name: &NamespaceName, entry: &Entry<NamespaceRecord>, news: impl Future<Output = ()>) {
    let other = |view: &View| view.namespace(name).is_none_or(|now| now.stamp != entry.stamp);
    tokio::select! {
        biased;
        () = news => {}
        _ = inner.until(Instant::now() + AT_ONCE, other) => {}
    }
}

/// Says what the replica has come to, and takes the step that this completes.
pub(super) async fn advance(
    inner: &Inner,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    came: &Came,
    track: &Track,
) {
    let at = Moment { waited: track.in_attempt(), wall_ms: inner.clock.wall_ms(), bug: inner.bug() };
    let Some(plan) = plan::advance(name, entry, inner.config.me, came, at) else { return };
    match &entry.record.state {
        NamespaceState::Switching(Switch { step: Step::Gathering { .. }, .. }) => failpoint("switch.gathering"),
        NamespaceState::Switching(Switch { step: Step::Sealing { .. }, .. }) => failpoint("switch.sealed"),
        NamespaceState::Switching(Switch { step: Step::Converging { .. }, .. }) => failpoint("switch.converged"),
        _ => {}
    }
    if carry_out(inner, &plan).await {
        inner.took_step(name, &entry.record);
        if inner.view().namespace(name).is_some_and(|now| now.record.epoch > entry.record.epoch) {
            failpoint("switch.activated");
        }
    }
}

async fn create(inner: &Inner, name: &NamespaceName, record: &NamespaceRecord) -> Result<(), SpaceError> {
    // Where the epoch has a base, whoever has it in place has started over it already.
    let founds = record.starts(inner.config.me) && record.base.is_none();
    let spec = SpaceSpec {
        namespace: record.id,
        epoch: record.epoch,
        name: name.clone(),
        start: if founds { Start::Founder } else { Start::Joining },
        members: record.engine_members(),
        base: None,
    };
    inner.eventual.create(spec).await?;
    tracing::info!(namespace = %name, epoch = %record.epoch, founds, "eventual replica created");
    inner.placed.notify_waiters();
    Ok(())
}

/// Removes whatever is here of a namespace.
pub(super) async fn drop_all(inner: &Inner, id: NamespaceId) -> Result<(), SpaceError> {
    for space in inner.eventual.spaces().into_iter().filter(|space| space.id.namespace == id) {
        inner.eventual.remove(space.id).await?;
        tracing::info!(namespace = %space.name, id = %space.id, "eventual replica removed");
    }
    Ok(())
}
