//! What follows the catalog and makes this node's replicas as it says.

mod spaces;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use duet_engine_eventual::SpaceError;
use duet_engine_strong::{GroupError, GroupSpec, MembersChange};
use duet_proto::{Epoch, Error, Mode, NamespaceId, NamespaceName, NodeId};
use tokio::time::{Instant, sleep};

use crate::{
    catalog::{NamespaceRecord, NamespaceState},
    plan::{self, Registration},
    router::Inner,
    view::Entry,
};

/// How long until what is unfinished is looked at again.
const SOON: Duration = Duration::from_millis(100);
/// How long until the system group's members are looked at again, if nothing happens.
const LATER: Duration = Duration::from_secs(1);
/// How long a step on the catalog may take before it is planned anew.
const STEP: Duration = Duration::from_secs(5);
/// How often a node stands for election in a namespace that is its to lead first.
const CAMPAIGNS: u32 = 20;

/// Why a replica could not be made as the catalog says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// A strong one.
    #[error("the strong engine: {0}")]
    Strong(#[from] GroupError),
    /// An eventual one.
    #[error("the eventual engine: {0}")]
    Eventual(#[from] SpaceError),
}

impl EngineError {
    /// Whether the engine is at its end, rather than one replica not there yet.
    fn is_fatal(&self) -> bool {
        use EngineError as E;
        matches!(self, E::Strong(GroupError::Store(_) | GroupError::Stopped))
            || matches!(self, E::Eventual(SpaceError::Store(_) | SpaceError::Stopped))
    }
}

/// Runs until it is dropped, or until something that an operator must see.
pub(crate) async fn run(inner: Arc<Inner>, peers: impl FnMut(&BTreeMap<NodeId, String>) + Send) -> Error {
    if let Err(error) = bootstrap(&inner).await {
        return inner.fatal(&error.into());
    }
    tokio::select! {
        biased;
        error = follow(&inner) => error,
        error = level(&inner, peers) => error,
        error = register(&inner) => error,
    }
}

/// The replica of the catalog: a founder founds it, anyone else waits for the leader to take it in.
async fn bootstrap(inner: &Inner) -> Result<(), GroupError> {
    let founders = inner.founders();
    let founder = founders.contains(&inner.config.me);
    let spec = GroupSpec {
        namespace: NamespaceId::SYSTEM,
        epoch: Epoch::FIRST,
        name: plan::system_name(),
        voters: if founder { founders.into_iter().collect() } else { Default::default() },
        learners: Default::default(),
        base: None,
    };
    inner.strong.create(spec).await
}

/// Keeps the view up with what is applied here.
async fn follow(inner: &Inner) -> Error {
    let mut changes = inner.strong.subscribe(NamespaceId::SYSTEM);
    loop {
        if let Err(error) = inner.catch_up(u64::MAX) {
            return error;
        }
        if changes.changed().await.is_none() {
            return Error::Unavailable { node: inner.config.me, why: "the engine has stopped".into() };
        }
    }
}

/// Makes this start of the node known, and stays. Each look is at a new view: on an old copy of a disk, what this
/// node has applied may well agree with it.
async fn register(inner: &Inner) -> Error {
    let (config, founders) = (&inner.config, inner.founders());
    let mut told = false;
    loop {
        let done = match inner.refresh(Instant::now() + STEP).await {
            Ok(()) => match plan::register(&inner.view(), config.me, &config.address, config.boot, &founders) {
                Registration::Done => break,
                Registration::Due(plan) => inner.carry_out(&plan, Instant::now() + STEP).await,
                Registration::Refused(why) => return Error::Unavailable { node: config.me, why },
                Registration::Unknown => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(node = %config.me, "waiting for the catalog to know this node (`duet node add`)");
                    }
                    Ok(false)
                }
            },
            Err(error) => Err(error),
        };
        match done {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "this start is not in the catalog yet"),
        }
        sleep(SOON).await;
    }
    inner.set_registered();
    tracing::info!(node = %config.me, boot = %config.boot, "this start is in the catalog");
    std::future::pending().await
}

/// Looks at what was marked and at what is unfinished, for ever.
async fn level(inner: &Inner, mut peers: impl FnMut(&BTreeMap<NodeId, String>) + Send) -> Error {
    let mut known = None;
    let groups = inner.strong.groups().into_iter().map(|group| group.id.namespace);
    let spaces = inner.eventual.spaces().into_iter().map(|space| space.id.namespace);
    let mut open: BTreeMap<NamespaceId, u32> = groups.chain(spaces).map(|id| (id, 0)).collect();
    loop {
        open.extend(inner.marked().into_iter().map(|id| (id, 0)));
        let view = inner.view();
        let now = inner.peers(&view);
        if known.as_ref() != Some(&now) {
            peers(&now);
            known = Some(now);
        }
        let mut unfinished = BTreeMap::new();
        for (id, round) in std::mem::take(&mut open) {
            match settle(inner, id, round).await {
                Ok(true) => {}
                Ok(false) => {
                    unfinished.insert(id, round.saturating_add(1));
                }
                Err(error) if error.is_fatal() => return inner.fatal(&error),
                Err(error) => {
                    tracing::debug!(namespace = %id, %error, "a replica is not as the catalog says yet");
                    unfinished.insert(id, round.saturating_add(1));
                }
            }
        }
        let settled = lead_catalog(inner).await && unfinished.is_empty();
        open = unfinished;
        tokio::select! {
            biased;
            () = inner.work.notified() => {}
            () = sleep(if settled { LATER } else { SOON }) => {}
        }
    }
}

/// Takes the next step of one namespace; whether it was the last.
async fn settle(inner: &Inner, id: NamespaceId, round: u32) -> Result<bool, EngineError> {
    if id == NamespaceId::SYSTEM {
        return Ok(found(inner, round).await?);
    }
    let (view, me) = (inner.view(), inner.config.me);
    let Some((name, entry)) = view.by_id.get(&id).and_then(|name| Some((name, view.namespace(name)?))) else {
        if view.is_deleted(id) {
            drop_replicas(inner, id).await?;
        }
        return Ok(true);
    };
    let record = &entry.record;
    if !record.holds(me) {
        // An entry that cannot be read cannot say that this is wrong, so it is waited for.
        if view.unreadable.is_empty() {
            drop_replicas(inner, id).await?;
        }
        return Ok(said_gone(inner, name, entry).await);
    }
    match record.mode {
        Mode::Strong => Ok(settle_group(inner, name, entry, round).await?),
        Mode::Eventual => Ok(spaces::settle(inner, name, entry).await?),
    }
}

/// Takes the next step of the replica of a strong namespace.
async fn settle_group(
    inner: &Inner,
    name: &NamespaceName,
    entry: &Entry<NamespaceRecord>,
    round: u32,
) -> Result<bool, GroupError> {
    let (record, me) = (&entry.record, inner.config.me);
    let id = record.id;
    let Some(group) = inner.strong.group(id, record.epoch) else {
        create(inner, name, record).await?;
        return Ok(false);
    };
    if group.leader.is_none() && record.first_leader() == Some(me) && round < CAMPAIGNS {
        inner.strong.campaign(id, record.epoch).await?;
        return Ok(false);
    }
    match &record.state {
        NamespaceState::Moving { to, .. } => {
            if group.leader == Some(me) {
                let voters = to.iter().copied().collect();
                if inner.strong.set_members(id, record.epoch, voters).await? == MembersChange::Done {
                    carry_out(inner, &plan::moved(name, entry, to)).await;
                }
            }
            Ok(false)
        }
        _ => Ok(true),
    }
}

/// The first founder stands for election when there is no leader, so that a new cluster, or one that starts again,
/// does not wait for a timeout. Whoever has a leader refuses its vote, so that it never disturbs one.
async fn found(inner: &Inner, round: u32) -> Result<bool, GroupError> {
    let group = inner.strong.group(NamespaceId::SYSTEM, Epoch::FIRST);
    let vacant = group.is_none_or(|group| group.leader.is_none());
    if !vacant || inner.founders().first() != Some(&inner.config.me) || round >= CAMPAIGNS {
        return Ok(true);
    }
    inner.strong.campaign(NamespaceId::SYSTEM, Epoch::FIRST).await?;
    Ok(false)
}

async fn create(inner: &Inner, name: &NamespaceName, record: &NamespaceRecord) -> Result<(), GroupError> {
    let founds = record.starts(inner.config.me);
    let spec = GroupSpec {
        namespace: record.id,
        epoch: record.epoch,
        name: name.clone(),
        voters: if founds { record.initial.iter().copied().collect() } else { Default::default() },
        learners: Default::default(),
        base: None,
    };
    inner.strong.create(spec).await?;
    tracing::info!(namespace = %name, founds, "replica created");
    inner.placed.notify_waiters();
    Ok(())
}

async fn drop_replicas(inner: &Inner, id: NamespaceId) -> Result<(), EngineError> {
    for group in inner.strong.groups().into_iter().filter(|group| group.id.namespace == id) {
        inner.strong.remove(group.id.namespace, group.id.epoch).await?;
        tracing::info!(namespace = %group.name, id = %group.id, "replica removed");
    }
    spaces::drop_all(inner, id).await?;
    Ok(())
}

/// Says, if the namespace is being deleted, that this member has dropped its replica; whether there is nothing
/// left to say.
async fn said_gone(inner: &Inner, name: &NamespaceName, entry: &Entry<NamespaceRecord>) -> bool {
    match plan::gone(name, entry, inner.config.me) {
        Some(plan) => {
            carry_out(inner, &plan).await;
            false
        }
        None => true,
    }
}

/// The voters of the system group are the nodes of the cluster: a new one learns first, so that it can catch up with
/// the catalog and register. Only the leader can see to it; whether there is nothing to do.
async fn lead_catalog(inner: &Inner) -> bool {
    let view = inner.view();
    let (Some(group), Some(entry)) =
        (inner.strong.group(NamespaceId::SYSTEM, Epoch::FIRST), view.namespace(&plan::system_name()))
    else {
        return true;
    };
    let voters: BTreeSet<_> = entry.record.members.iter().copied().collect();
    let settled = group.voters == voters && group.learners.is_empty();
    if settled || group.leader != Some(inner.config.me) {
        return true;
    }
    let step = inner.strong.set_members(NamespaceId::SYSTEM, Epoch::FIRST, voters).await;
    if let Err(error) = &step {
        tracing::debug!(%error, "the system group is not as the catalog says yet");
    }
    matches!(step, Ok(MembersChange::Done))
}

async fn carry_out(inner: &Inner, plan: &plan::Plan) {
    // Whatever comes of it, the next look at the catalog tells.
    if let Err(error) = inner.carry_out(plan, Instant::now() + STEP).await {
        tracing::debug!(%error, "a step on the catalog did not succeed");
    }
}
