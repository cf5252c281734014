//! The local replicas of eventual namespaces.

use duet_engine_eventual::{SpaceError, SpaceId, SpaceSpec, Start};
use duet_proto::{NamespaceId, NamespaceName};

use super::carry_out;
use crate::{
    catalog::{NamespaceRecord, NamespaceState},
    plan::{self, Stand},
    router::Inner,
    view::Entry,
};

/// Takes the next step of a replica that is to be here; whether it was the last.
///
/// A change of the members has no coordinator: each node moves its own replica to the version that it sees, and says in
/// the entry what that has come to. So a change goes on as long as the nodes that it needs are there.
pub(super) async fn settle(
    inner: &Inner,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
) -> Result<bool, SpaceError> {
    let record = &entry.record;
    let id = SpaceId { namespace: record.id, epoch: record.epoch };
    let Some(space) = inner.eventual.space(id) else {
        create(inner, name, record).await?;
        return Ok(false);
    };
    if space.failed.is_some() {
        return Ok(true);
    }
    if space.version < record.version {
        inner.eventual.set_members(id, record.engine_members()).await?;
    }
    if let NamespaceState::Stable = record.state {
        return Ok(true);
    }
    if let Some(standing) = inner.eventual.standing(id).await {
        let stand = Stand {
            version: standing.version,
            whole: standing.whole,
            moved: standing.moved,
            frontier: standing.frontier,
        };
        if let Some(plan) = plan::report(name, entry, inner.config.me, &stand) {
            carry_out(inner, &plan).await;
        }
    }
    Ok(false)
}

async fn create(inner: &Inner, name: &NamespaceName, record: &NamespaceRecord) -> Result<(), SpaceError> {
    let founds = record.starts(inner.config.me);
    let spec = SpaceSpec {
        namespace: record.id,
        epoch: record.epoch,
        name: name.clone(),
        start: if founds { Start::Founder } else { Start::Joining },
        members: record.engine_members(),
    };
    inner.eventual.create(spec).await?;
    tracing::info!(namespace = %name, founds, "eventual replica created");
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
