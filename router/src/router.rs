//! The face of the crate: requests by name, administration, and what a node says of itself.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use duet_engine_eventual::Handle as Eventual;
use duet_engine_strong::{Call, Handle as Strong};
use duet_proto::{
    Admin, Answer, Boot, ClusterName, Consistency, DataRequest, Epoch, Error, NamespaceId, NamespaceInfo,
    NamespaceName, NamespaceStatus, NodeId, NodeInfo, Op, Outcome, Response, Stamp, Topology, Try,
};
use duet_store::HybridClock;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    catalog::{Key, NamespaceRecord},
    counts::Metrics,
    plan::{self, Goal, Plan},
    reconcile::{self, EngineError},
    tries::Tries,
    view::{Entry, View, namespace_info, phase},
};

/// How long between two tries of a write of unknown outcome.
const PAUSE: Duration = Duration::from_millis(50);

/// A node that the cluster begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// Its id.
    pub id: NodeId,
    /// Where its peers reach it: a host name or address, and a port.
    pub address: String,
}

/// What the router has to know of its node and cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster.
    pub cluster: ClusterName,
    /// This node.
    pub me: NodeId,
    /// This start of it.
    pub boot: Boot,
    /// Where peers and clients reach it, as the catalog is to say.
    pub address: String,
    /// The nodes that the cluster began with; the same list on every node. They vote on the catalog first. A node
    /// that is not among them joins: the catalog must have given out its id (`AddNode`).
    pub founders: Vec<Founder>,
    /// The largest value that is accepted, in bytes.
    pub value_max: usize,
    /// A bug for the checkers to find.
    #[cfg(feature = "planted")]
    pub planted: Option<crate::Planted>,
}

/// Routes requests and administers the catalog. A clone is the same router.
#[derive(Clone)]
pub struct Router {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) strong: Strong,
    pub(crate) eventual: Eventual,
    pub(crate) clock: Arc<HybridClock>,
    view: ArcSwap<View>,
    /// The keys and versions that the view was made of. Held while it is made anew.
    read: Mutex<BTreeMap<Bytes, Stamp>>,
    /// The view has changed.
    pub(crate) seen: Notify,
    /// A replica has come or gone.
    pub(crate) placed: Notify,
    /// There is something to reconcile.
    pub(crate) work: Notify,
    /// The namespaces to look at.
    dirty: Mutex<BTreeSet<NamespaceId>>,
    registered: AtomicBool,
    tries: Tries,
    pub(crate) figures: Mutex<Metrics>,
    /// One change at a time from this node: two would only make each other's compare fail.
    admin: tokio::sync::Mutex<()>,
}

impl Router {
    /// Starts the router over engines that run already. The future follows the catalog and keeps the local replicas
    /// in step with it until it is dropped; it ends by itself only with an error that an operator must see.
    ///
    /// What the disk holds of the catalog is read at once: a node that starts out of reach of all others knows the
    /// namespaces that it knew before.
    ///
    /// `peers` is called with the address of every other node, first when the future is polled and then whenever the
    /// catalog changes them. Until the catalog is known these are the founders.
    pub fn start(
        config: Config,
        strong: Strong,
        eventual: Eventual,
        clock: Arc<HybridClock>,
        peers: impl FnMut(&BTreeMap<NodeId, String>) + Send + 'static,
    ) -> (Router, impl Future<Output = Error> + Send + 'static) {
        let inner = Arc::new(Inner {
            tries: Tries::new(config.me, config.boot),
            strong,
            eventual,
            clock,
            config,
            figures: Mutex::default(),
            view: ArcSwap::default(),
            read: Mutex::default(),
            seen: Notify::new(),
            placed: Notify::new(),
            work: Notify::new(),
            dirty: Mutex::default(),
            registered: AtomicBool::new(false),
            admin: tokio::sync::Mutex::default(),
        });
        if let Err(error) = inner.catch_up(u64::MAX) {
            // The future comes upon it again, and ends with it.
            tracing::error!(%error, "starting without the catalog");
        }
        let task = reconcile::run(inner.clone(), peers);
        (Router { inner }, task)
    }

    /// Carries out an operation on a namespace's data. The catalog's own can be read like any other, so the caller has
    /// checked that this is an administrator's request if it names [`NamespaceName::SYSTEM`]; writes to it are refused
    /// to everyone.
    ///
    /// # Errors
    /// As the engine answers; [`Error::NamespaceNotFound`] after asking the catalog's quorum; [`Error::NotHere`] with
    /// the members if this node is none; refusals of what is too large, or of touching the catalog.
    pub async fn call(&self, request: &DataRequest, deadline: Instant) -> Result<Answer, Error> {
        request.op.validate(self.inner.config.value_max)?;
        if request.op.is_write() {
            plan::protect(&request.namespace)?;
        }
        self.inner.dispatch(request, deadline).await
    }

    /// Carries out what an administrator asks for. The caller has checked the role.
    ///
    /// A change is answered when the catalog has it (a delete: when the namespace can take no write any more); the
    /// replicas follow. It is carried out at most once, also when its first try had an unknown outcome.
    ///
    /// # Errors
    /// Typed refusals; [`Error::NoQuorum`] of the system namespace; [`Error::Changing`] while another change of the
    /// namespace goes on; [`Error::OutcomeUnknown`] if the deadline came first.
    pub async fn admin(&self, admin: Admin, deadline: Instant) -> Result<Response, Error> {
        match &admin {
            Admin::ListNamespaces => {
                self.inner.refresh(deadline).await?;
                return Ok(Response::Namespaces(self.namespaces()));
            }
            Admin::ShowSwitch { name } => {
                self.inner.refresh(deadline).await?;
                return self.inner.show_switch(name);
            }
            Admin::ListLate { name, limit } => return self.inner.list_late(name, *limit),
            _ => {}
        }
        let goal = self.inner.change(&admin, deadline).await?;
        self.inner.reach(goal, deadline).await
    }

    /// Who there is, as far as this node knows. Until it has seen the catalog: the founders.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let (config, view) = (&self.inner.config, self.view());
        let mut nodes = view.node_infos();
        if nodes.is_empty() {
            let info = |f: &Founder| NodeInfo { id: f.id, address: f.address.clone(), boot: Boot::default() };
            nodes = config.founders.iter().map(info).collect();
        }
        Topology {
            cluster: config.cluster.clone(),
            me: config.me,
            nodes,
            namespaces: self.namespaces(),
            version: view.version,
        }
    }

    /// Every replica that this node holds, with the catalog's word on its phase; one of each namespace, though a group
    /// that has ended may linger beside the replica that followed.
    pub async fn status(&self) -> Vec<NamespaceStatus> {
        let mut statuses = self.inner.strong.statuses().await;
        statuses.extend(self.inner.eventual.statuses().await);
        statuses.sort_by_key(|status| (status.id, Reverse(status.epoch)));
        statuses.dedup_by_key(|status| status.id);
        let view = self.view();
        for status in &mut statuses {
            if let Some((name, record)) = view.by_id(status.id) {
                status.name = name.clone();
                status.phase = phase(record);
            }
        }
        statuses
    }

    /// Figures of switches since the start.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        *self.inner.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node knows of the catalog now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.inner.view.load_full()
    }

    /// Whether this start of the node is in the catalog: a quorum of the system group was there and knows of it.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.inner.registered.load(Ordering::Relaxed)
    }

    fn namespaces(&self) -> Vec<NamespaceInfo> {
        let groups = self.inner.strong.groups();
        let leaders: BTreeMap<_, _> =
            groups.into_iter().filter_map(|group| Some((group.id.namespace, group.leader?))).collect();
        let view = self.view();
        let info = |(name, entry): (&NamespaceName, &Entry<NamespaceRecord>)| {
            namespace_info(name, &entry.record, leaders.get(&entry.record.id).copied())
        };
        view.namespaces.iter().map(info).collect()
    }
}

impl Inner {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Makes the view as new as the catalog was when this was called.
    pub(crate) async fn refresh(&self, deadline: Instant) -> Result<(), Error> {
        let answer = self.catalog(Op::Get { key: Key::Next.encode() }, None, deadline).await?;
        self.catch_up(answer.meta.position)
    }

    /// Makes the view of what is applied here, unless it is as new as `position`.
    pub(crate) fn catch_up(&self, position: u64) -> Result<(), Error> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.view.load_full();
        if before.version >= position {
            return Ok(());
        }
        let (version, records) = self.strong.records(NamespaceId::SYSTEM).map_err(|error| {
            let why = format!("the catalog cannot be read: {error}");
            Error::Internal { node: self.config.me, why }
        })?;
        if version <= before.version {
            return Ok(());
        }
        let mut view = View { version, ..View::clone(&before) };
        let mut touched = Vec::new();
        for (key, record) in &records {
            if read.get(key) != Some(&record.stamp) {
                read.insert(key.clone(), record.stamp);
                touched.push(key.clone());
                view.apply(key, record.live().map(|value| (record.stamp, &value[..])));
            }
        }
        if read.len() > records.len() {
            let kept: BTreeSet<_> = records.iter().map(|(key, _)| key).collect();
            let gone: Vec<_> = read.keys().filter(|key| !kept.contains(key)).cloned().collect();
            for key in gone {
                read.remove(&key);
                view.apply(&key, None);
                touched.push(key);
            }
        }
        let names = touched.iter().filter_map(|key| match Key::decode(key) {
            Some(Key::Namespace(name)) => Some(name),
            _ => None,
        });
        let entries = names.flat_map(|name| [before.namespace(&name).cloned(), view.namespace(&name).cloned()]);
        let ids: Vec<_> = entries.flatten().map(|entry| entry.record.id).collect();
        self.view.store(Arc::new(view));
        drop(read);
        self.seen.notify_waiters();
        self.mark(ids);
        Ok(())
    }

    /// Waits until the view is as asked; `None` at the deadline.
    pub(crate) async fn until(&self, deadline: Instant, holds: impl Fn(&View) -> bool) -> Option<()> {
        loop {
            let seen = self.seen.notified();
            tokio::pin!(seen);
            seen.as_mut().enable();
            if holds(&self.view.load()) {
                return Some(());
            }
            timeout_at(deadline, seen).await.ok()?;
        }
    }

    /// Plans a change and carries it out, anew as long as the plan rested on what has changed.
    async fn change(&self, admin: &Admin, deadline: Instant) -> Result<Goal, Error> {
        let _turn = timeout_at(deadline, self.admin.lock())
            .await
            .map_err(|_| Error::Overloaded { why: "changes of the catalog wait for each other".into() })?;
        // A refusal, or "nothing to do", counts only if the view was as new as the request.
        let mut fresh = false;
        loop {
            match plan::plan(&self.view(), admin, self.clock.wall_ms()) {
                Ok(plan) => {
                    let done = match plan.transaction() {
                        Some(op) => self.commit(op, deadline).await?,
                        None => fresh,
                    };
                    if done {
                        return Ok(plan.goal);
                    }
                }
                Err(error) if fresh => return Err(error),
                Err(_) => {}
            }
            self.refresh(deadline).await?;
            fresh = true;
        }
    }

    /// Carries out a plan of the reconciler's; whether it held.
    pub(crate) async fn carry_out(&self, plan: &Plan, deadline: Instant) -> Result<bool, Error> {
        match plan.transaction() {
            Some(op) => self.commit(op, deadline).await,
            None => Ok(true),
        }
    }

    /// Commits a transaction of the catalog, once, and waits for the view to show it. `false`: a compare failed.
    async fn commit(&self, op: Op, deadline: Instant) -> Result<bool, Error> {
        let open = self.tries.begin(self.view.load().version);
        loop {
            match self.catalog(op.clone(), Some(open.attempt), deadline).await {
                Ok(Answer { outcome: Outcome::Transaction(result), meta }) => {
                    self.catch_up(meta.position)?;
                    return Ok(result.held);
                }
                Ok(answer) => {
                    let why = format!("the catalog answered a transaction with {:?}", answer.outcome);
                    return Err(Error::Internal { node: self.config.me, why });
                }
                Err(Error::OutcomeUnknown { .. }) if Instant::now() + PAUSE < deadline => sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn catalog(&self, op: Op, attempt: Option<Try>, deadline: Instant) -> Result<Answer, Error> {
        let call = Call { op, attempt, consistency: Consistency::Linearizable };
        match self.strong.call(NamespaceId::SYSTEM, Epoch::FIRST, call, deadline).await {
            Err(Error::NotHere { .. }) => {
                let why = "its replica of the catalog is being set up".into();
                Err(Error::Unavailable { node: self.config.me, why })
            }
            answer => answer,
        }
    }

    /// Waits for what a change was for, and answers with it.
    async fn reach(&self, goal: Goal, deadline: Instant) -> Result<Response, Error> {
        let view = self.view.load_full();
        match goal {
            Goal::Done => Ok(Response::Done),
            Goal::Node(node) => {
                let found = view.node_infos().into_iter().find(|info| info.id == node);
                found.map(Response::Node).ok_or(Error::NodeNotFound { node })
            }
            Goal::Namespace(name) => match view.namespace(&name) {
                Some(entry) => {
                    let group = self.strong.group(entry.record.id, entry.record.epoch);
                    let leader = group.and_then(|group| group.leader);
                    Ok(Response::Namespace(namespace_info(&name, &entry.record, leader)))
                }
                None => Err(Error::NamespaceNotFound { name }),
            },
            Goal::Gone(name, id) => {
                let gone = self.until(deadline, |view| !view.by_id.contains_key(&id)).await;
                gone.map(|()| Response::Done).ok_or_else(|| Error::Changing {
                    namespace: name,
                    why: "it is being deleted; a majority of its members has not yet said so".into(),
                })
            }
        }
    }

    /// The founders' ids.
    pub(crate) fn founders(&self) -> Vec<NodeId> {
        self.config.founders.iter().map(|founder| founder.id).collect()
    }

    /// Where the other nodes are: as the catalog says, or, of those it does not know yet, the configuration.
    pub(crate) fn peers(&self, view: &View) -> BTreeMap<NodeId, String> {
        let unknown = self.config.founders.iter().filter(|founder| !view.nodes.contains_key(&founder.id));
        let known = view.active().map(|(node, entry)| (node, entry.record.address.clone()));
        let all = unknown.map(|founder| (founder.id, founder.address.clone())).chain(known);
        all.filter(|(node, _)| *node != self.config.me).collect()
    }

    /// This start of the node is in the catalog.
    pub(crate) fn set_registered(&self) {
        self.registered.store(true, Ordering::Relaxed);
    }

    /// What ends the router when an engine cannot go on.
    pub(crate) fn fatal(&self, error: &EngineError) -> Error {
        Error::Internal { node: self.config.me, why: error.to_string() }
    }

    /// Takes the namespaces to look at.
    pub(crate) fn marked(&self) -> BTreeSet<NamespaceId> {
        std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Marks namespaces to be looked at.
    pub(crate) fn mark(&self, ids: impl IntoIterator<Item = NamespaceId>) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
        self.work.notify_one();
    }
}
