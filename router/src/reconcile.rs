//! What follows the catalog and makes this node's replicas as it says.

mod groups;
mod late;
mod passage;
mod queue;
mod spaces;
mod track;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use duet_engine_eventual::SpaceError;
use duet_engine_strong::{GroupError, GroupSpec, MembersChange};
use duet_proto::{Epoch, Error, Mode, NamespaceId, NamespaceName, NodeId};
use duet_store::StoreError;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};

use self::{queue::Queue, track::Track};
use crate::{
    catalog::NamespaceRecord,
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
/// How long until what holds writes up is looked at again.
const AT_ONCE: Duration = Duration::from_millis(5);
/// Namespaces that are looked at together.
const AT_A_TIME: usize = 64;
/// How often a node stands for election in a namespace that is its to lead first.
const CAMPAIGNS: u32 = 20;

/// When a namespace is to be looked at again, though nothing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pace {
    /// A step was taken: the next one follows.
    Now,
    /// Writes wait for it.
    AtOnce,
    /// It is unfinished.
    Soon,
    /// It is as the catalog says.
    Settled,
}

impl Pace {
    fn settled(settled: bool) -> Pace {
        if settled { Pace::Settled } else { Pace::Soon }
    }

    fn pause(self) -> Option<Duration> {
        match self {
            Pace::Now => Some(Duration::ZERO),
            Pace::AtOnce => Some(AT_ONCE),
            Pace::Soon => Some(SOON),
            Pace::Settled => None,
        }
    }
}

/// Why a replica could not be made as the catalog says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// A strong one.
    #[error("the strong engine: {0}")]
    Strong(#[from] GroupError),
    /// An eventual one.
    #[error("the eventual engine: {0}")]
    Eventual(#[from] SpaceError),
    /// The store, outside of both.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in place is not what the catalog says that the epoch begins with. It is left as it is: an operator must
    /// see it.
    #[error("the data in place is not the base of epoch {epoch}: {why}")]
    NotTheBase {
        /// The epoch.
        epoch: Epoch,
        /// The difference.
        why: String,
    },
}

impl EngineError {
    /// Whether the engine is at its end, rather than one replica not there yet.
    fn is_fatal(&self) -> bool {
        use EngineError as E;
        matches!(self, E::Strong(GroupError::Store(_) | GroupError::Stopped))
            || matches!(self, E::Eventual(SpaceError::Store(_) | SpaceError::Stopped) | E::Store(_))
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

/// Looks at what was marked and at what is unfinished, for ever. Each namespace for itself: one whose group has no quorum
/// must not hold up another, whose writes wait.
async fn level(inner: &Inner, mut peers: impl FnMut(&BTreeMap<NodeId, String>) + Send) -> Error {
    let mut known = None;
    let groups = inner.strong.groups().into_iter().map(|group| group.id.namespace);
    let spaces = inner.eventual.spaces().into_iter().map(|space| space.id.namespace);
    let mut queue = Queue::default();
    groups.chain(spaces).for_each(|id| queue.mark(id, Instant::now()));
    let mut steps = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        inner.marked().into_iter().for_each(|id| queue.mark(id, now));
        let view = inner.view();
        let there = inner.peers(&view);
        if known.as_ref() != Some(&there) {
            peers(&there);
            known = Some(there);
        }
        while steps.len() < AT_A_TIME
            && let Some((id, mut track)) = queue.due(now)
        {
            steps.push(async move {
                let result = settle(inner, id, &mut track).await;
                (id, track, result)
            });
        }
        let settled = lead_catalog(inner).await;
        let pause = if settled { LATER } else { SOON };
        let room = steps.len() < AT_A_TIME;
        let wake = queue.next().filter(|_| room).map_or(now + pause, |at| at.min(now + pause));
        tokio::select! {
            biased;
            () = inner.work.notified() => {}
            Some((id, mut track, result)) = steps.next() => {
                let pace = match result {
                    Ok(pace) => pace,
                    Err(error) if error.is_fatal() => return inner.fatal(&error),
                    Err(error) => {
                        track.complain(id, &error);
                        Pace::Soon
                    }
                };
                queue.done(id, track, pace, Instant::now());
            }
            () = sleep_until(wake) => {}
        }
    }
}

/// Takes the next step of one namespace, and says when to look at it again.
async fn settle(inner: &Inner, id: NamespaceId, track: &mut Track) -> Result<Pace, EngineError> {
    if id == NamespaceId::SYSTEM {
        return Ok(Pace::settled(found(inner, track).await?));
    }
    let (view, me) = (inner.view(), inner.config.me);
    let Some((name, entry)) = view.by_id.get(&id).and_then(|name| Some((name, view.namespace(name)?))) else {
        if view.is_deleted(id) {
            drop_replicas(inner, id).await?;
            inner.eventual.purge(id).await?;
        }
        return Ok(Pace::Settled);
    };
    let record = &entry.record;
    if !record.holds(me) {
        // An entry that cannot be read cannot say that this is wrong, so it is waited for.
        if view.unreadable.is_empty() {
            drop_replicas(inner, id).await?;
        }
        return Ok(Pace::settled(said_gone(inner, name, entry).await));
    }
    track.see(record);
    let before = passage::cross(inner, name, record, track).await?;
    let pace = match record.mode {
        _ if before <= Pace::AtOnce || passage::is_barred(inner, record) => before,
        Mode::Strong => groups::settle(inner, name, entry, track).await?,
        Mode::Eventual => spaces::settle(inner, name, entry, track).await?,
    };
    Ok(pace.min(before))
}

/// The first founder stands for election when there is no leader, so that a new cluster, or one that starts again,
/// does not wait for a timeout. Whoever has a leader refuses its vote, so that it never disturbs one.
async fn found(inner: &Inner, track: &mut Track) -> Result<bool, GroupError> {
    let group = inner.strong.group(NamespaceId::SYSTEM, Epoch::FIRST);
    let vacant = group.is_none_or(|group| group.leader.is_none());
    if !vacant || inner.founders().first() != Some(&inner.config.me) || track.campaigns() >= CAMPAIGNS {
        return Ok(true);
    }
    if !track.may_campaign() {
        return Ok(false);
    }
    inner.strong.campaign(NamespaceId::SYSTEM, Epoch::FIRST).await?;
    Ok(false)
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

/// Whether the step was taken.
async fn carry_out(inner: &Inner, plan: &plan::Plan) -> bool {
    // Whatever comes of it, the next look at the catalog tells.
    match inner.carry_out(plan, Instant::now() + STEP).await {
        Ok(held) => held,
        Err(error) => {
            tracing::debug!(%error, "a step on the catalog did not succeed");
            false
        }
    }
}
