//! The local replicas of strong namespaces.

use std::time::Duration;

use duet_engine_strong::{GroupError, GroupInfo, GroupSpec, MembersChange, Proposal, machine::State};
use duet_proto::{Epoch, NamespaceName};
use tokio::time::Instant;

use super::{CAMPAIGNS, EngineError, Pace, carry_out, late, spaces, track::Track};
use crate::{
    catalog::{self, NamespaceRecord, NamespaceState, Step, Switch},
    failpoint::failpoint,
    plan::{self, Came},
    router::Inner,
    view::Entry,
};

/// How long the end of an epoch may take to pass the log before it is proposed again.
const SEAL: Duration = Duration::from_secs(2);

/// Takes the next step of the replica of a strong namespace.
pub(super) async fn settle(
    inner: &Inner,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    track: &mut Track,
) -> Result<Pace, EngineError> {
    let (record, me) = (&entry.record, inner.config.me);
    let id = record.id;
    let Some(group) = inner.strong.group(id, record.epoch) else {
        create(inner, name, record).await?;
        return Ok(Pace::Now);
    };
    if group.leader.is_none() && record.first_leader() == Some(me) && track.campaigns() < CAMPAIGNS {
        if track.may_campaign() {
            inner.strong.campaign(id, record.epoch).await?;
        }
        return Ok(Pace::AtOnce);
    }
    match &record.state {
        NamespaceState::Moving { to, .. } => {
            if group.leader == Some(me) {
                let voters = to.iter().copied().collect();
                if inner.strong.set_members(id, record.epoch, voters).await? == MembersChange::Done {
                    carry_out(inner, &plan::moved(name, entry, to)).await;
                }
            }
            Ok(Pace::Soon)
        }
        NamespaceState::Switching(Switch { step: Step::Ending { .. }, .. }) => {
            Ok(end(inner, name, entry, &group, track).await?)
        }
        _ if record.ended.is_empty() => Ok(Pace::Settled),
        _ => late::settle(inner, name, entry, &group).await,
    }
}

async fn create(inner: &Inner, name: &NamespaceName, record: &NamespaceRecord) -> Result<(), GroupError> {
    // Where the epoch has a base, whoever has it in place has started over it already.
    let founds = record.starts(inner.config.me) && record.base.is_none();
    let spec = GroupSpec {
        namespace: record.id,
        epoch: record.epoch,
        name: name.clone(),
        voters: if founds { record.initial.iter().copied().collect() } else { Default::default() },
        learners: Default::default(),
        base: None,
    };
    inner.strong.create(spec).await?;
    tracing::info!(namespace = %name, epoch = %record.epoch, founds, "replica created");
    inner.placed.notify_waiters();
    Ok(())
}

/// Ends a strong epoch: its leader proposes the seal, and whoever has applied it first says what it has come to.
async fn end(
    inner: &Inner,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    group: &GroupInfo,
    track: &Track,
) -> Result<Pace, EngineError> {
    let record = &entry.record;
    if sealed(inner, record, record.epoch)?.is_none() && group.leader == Some(inner.config.me) {
        let seal = Proposal::Seal { next: Epoch(record.epoch.0 + 1) };
        let proposed = inner.strong.propose(record.id, record.epoch, seal, Instant::now() + SEAL).await;
        if let Err(error) = proposed {
            tracing::debug!(namespace = %name, %error, "the epoch cannot be sealed yet");
            return Ok(Pace::Soon);
        }
        failpoint("switch.seal_proposed");
    }
    let Some(state) = sealed(inner, record, record.epoch)? else { return Ok(Pace::AtOnce) };
    let base = state.base();
    let base = catalog::Base {
        last: base.last,
        digest: base.digest,
        keys: base.keys,
        answers: true,
        keep_tombstones: false,
    };
    spaces::advance(inner, name, entry, &Came::Strong(Some(base)), track).await;
    Ok(Pace::AtOnce)
}

/// What a strong epoch has come to, if its seal is applied here.
pub(super) fn sealed(inner: &Inner, record: &NamespaceRecord, epoch: Epoch) -> Result<Option<State>, EngineError> {
    Ok(inner.strong.state(record.id, epoch)?.filter(|state| state.sealed.is_some()))
}
