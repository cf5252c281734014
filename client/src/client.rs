//! The client, and how it is made.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use duet_proto::{
    Consistency, Error, Meta, NamespaceName, NodeInfo, NodeStatus, Op, Outcome, Request, Response, SessionId,
    Topology,
};
use duet_transport::{Connector, Limits, Network, Tls, Udp};
use futures::future::join_all;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{
    Admin, CallOptions, ClientError, Namespace, Options,
    call::{Answered, Call, Trip},
    course::Course,
    pool::Pool,
    retry::{backoff, short_pause},
    session::Known,
};

/// How long learning the topology may take within a request.
const REFRESH: Duration = Duration::from_secs(1);

/// A client of one cluster. Cheap to clone; all clones share connections, session and bounds.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

/// Makes a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    tls: Option<Tls>,
    network: Arc<dyn Network>,
    transport: Limits,
    seed: Option<u64>,
    options: Options,
}

/// The state of a cluster, as its nodes tell it.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The catalog, as the node that answered first sees it.
    pub topology: Topology,
    /// Every node of the catalog, in order of id.
    pub nodes: Vec<NodeReport>,
}

/// One node of a [`ClusterStatus`].
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// The node, as the catalog knows it.
    pub info: NodeInfo,
    /// What it says of itself, or why it said nothing.
    pub status: Result<NodeStatus, ClientError>,
}

impl Builder {
    /// Addresses of any nodes of the cluster, each a host name or address and a port. One that answers is enough; the
    /// client learns the others.
    #[must_use]
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> Builder {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// The certificates. There is no way to connect without.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Builder {
        self.tls = Some(tls);
        self
    }

    /// All settings at once.
    #[must_use]
    pub fn options(mut self, options: Options) -> Builder {
        self.options = options;
        self
    }

    /// How long a request may take, retries included; see [`Options::timeout`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.options.timeout = timeout;
        self
    }

    /// Whether eventual namespaces show this client its own writes and never go back in time for it; see
    /// [`CallOptions::session`].
    #[must_use]
    pub fn session(mut self, session: bool) -> Builder {
        self.options.call.session = session;
        self
    }

    /// Another network than UDP: the simulated one.
    #[must_use]
    pub fn network(mut self, network: Arc<dyn Network>) -> Builder {
        self.network = network;
        self
    }

    /// Bounds of the transport.
    #[must_use]
    pub fn transport(mut self, limits: Limits) -> Builder {
        self.transport = limits;
        self
    }

    /// Draws everything random (session, pauses, connection ids) from this. For simulations: two clients of one seed
    /// would share a session and take each other's writes for retries.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = Some(seed);
        self
    }

    /// Connects to the first endpoint that answers and learns the topology.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] once every endpoint has failed or the timeout is over, [`ClientError::Refused`] if
    /// the certificates do not fit, [`ClientError::Configuration`] if something is missing.
    pub async fn connect(self) -> Result<Client, ClientError> {
        self.options.check()?;
        let missing = |why: &str| ClientError::Configuration { why: why.into() };
        if self.endpoints.is_empty() {
            return Err(missing("no endpoints are given"));
        }
        let tls = self.tls.ok_or_else(|| missing("no certificates are given"))?;
        let mut random = match self.seed {
            Some(seed) => ChaCha8Rng::seed_from_u64(seed),
            None => ChaCha8Rng::from_os_rng(),
        };
        let seed = self.seed.map(|_| random.next_u64());
        let connector = Connector::with(tls, self.network, self.transport, seed);
        let session = SessionId(u128::from(random.next_u64()) << 64 | u128::from(random.next_u64()));
        let shared = Arc::new(Shared {
            pool: Arc::new(Pool::new(connector, &self.endpoints)),
            session,
            turn: random.next_u32() as usize,
            permits: Semaphore::new(self.options.in_flight),
            spaces: Mutex::default(),
            topology: Mutex::default(),
            refreshes: AtomicU64::new(0),
            refreshing: Semaphore::new(1),
            random: random.into(),
            options: self.options,
        });
        let deadline = Instant::now() + shared.options.timeout;
        shared.fetch(Call { one_round: true, ..shared.call(deadline, shared.options.timeout) }).await?;
        Ok(Client { shared })
    }
}

impl Client {
    /// Begins to make a client.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            endpoints: Vec::new(),
            tls: None,
            network: Arc::new(Udp),
            transport: Limits::default(),
            seed: None,
            options: Options::default(),
        }
    }

    /// A namespace to read and write. Nothing is sent: whether it exists shows with the first request.
    ///
    /// # Errors
    /// If `name` is not a name.
    pub fn namespace(&self, name: impl AsRef<str>) -> Result<Namespace, ClientError> {
        let space = self.shared.space(&NamespaceName::new(name)?);
        Ok(Namespace { shared: self.shared.clone(), space, options: self.shared.options.call })
    }

    /// Administration; needs a certificate of the role admin.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin { shared: self.shared.clone(), timeout: self.shared.options.timeout }
    }

    /// The topology, fresh from a node.
    ///
    /// # Errors
    /// If no node answers in time.
    pub async fn topology(&self) -> Result<Arc<Topology>, ClientError> {
        let timeout = self.shared.options.timeout;
        self.shared.fetch(self.shared.call(Instant::now() + timeout, timeout)).await
    }

    /// The topology that was learned last; nothing is sent.
    #[must_use]
    pub fn last_topology(&self) -> Option<Arc<Topology>> {
        self.shared.topology()
    }

    /// Asks every node how it is, all at once. A node that does not answer within [`Options::status_patience`] is
    /// reported with the reason.
    ///
    /// # Errors
    /// If no node tells the topology in time.
    pub async fn status(&self) -> Result<ClusterStatus, ClientError> {
        let topology = self.topology().await?;
        let patience = self.shared.options.status_patience;
        let deadline = Instant::now() + patience;
        let ask = |info: &NodeInfo| {
            let (info, shared) = (info.clone(), &self.shared);
            let call = Call { pinned: Some(info.id), ..shared.call(deadline, patience) };
            async move {
                let status = match shared.run(call, Request::Status).await {
                    Ok(Answered { response: Response::Status(status), .. }) => Ok(*status),
                    Ok(other) => Err(unexpected(&other)),
                    Err(error) => Err(error),
                };
                NodeReport { info, status }
            }
        };
        let mut nodes = join_all(topology.nodes.iter().map(ask)).await;
        nodes.sort_by_key(|report| report.info.id);
        Ok(ClusterStatus { topology: Topology::clone(&topology), nodes })
    }

    /// Uses other certificates of the same client from now on. Connections that are there are made anew as they grow old;
    /// nothing is lost or waits.
    ///
    /// # Errors
    /// [`ClientError::Configuration`] if they are another client's; everything stays as it was then.
    pub fn renew(&self, tls: Tls) -> Result<(), ClientError> {
        self.shared.pool.renew(tls).map_err(|error| ClientError::Configuration { why: error.to_string() })
    }

    /// The settings.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.shared.options
    }
}

/// What all clones of a client share. No lock of it is held while anything is awaited.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) pool: Arc<Pool>,
    /// Where this client begins among equals, so that clients spread over members and each stays with one.
    pub(crate) turn: usize,
    session: SessionId,
    permits: Semaphore,
    spaces: Mutex<BTreeMap<NamespaceName, Arc<Space>>>,
    topology: Mutex<Option<Arc<Topology>>>,
    /// Counts the topologies learned, so that of many who want a new one only one asks.
    refreshes: AtomicU64,
    refreshing: Semaphore,
    random: Mutex<ChaCha8Rng>,
}

/// A namespace, as all handles of it share it.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) name: NamespaceName,
    known: Mutex<Known>,
}

impl Space {
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Known) -> T) -> T {
        f(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    /// Terms of a read that any node answers.
    pub(crate) fn call(&self, deadline: Instant, timeout: Duration) -> Call<'static> {
        Call {
            space: None,
            leader: false,
            write: false,
            safe: true,
            patient: true,
            pinned: None,
            one_round: false,
            deadline,
            timeout,
        }
    }

    pub(crate) async fn run(&self, call: Call<'_>, request: Request) -> Result<Answered, ClientError> {
        Trip::new(self, call, request).run().await
    }

    /// An operation on a namespace, within the bound of requests in flight.
    pub(crate) async fn data(
        &self,
        space: &Space,
        op: Op,
        options: CallOptions,
    ) -> Result<(Outcome, Meta), ClientError> {
        op.validate(self.options.value_bytes)?;
        let timeout = options.timeout.unwrap_or(self.options.timeout);
        let deadline = Instant::now() + timeout;
        let _permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => match timeout_at(deadline, self.permits.acquire()).await {
                Ok(Ok(permit)) => permit,
                _ => {
                    let why = format!("{} requests are in flight already", self.options.in_flight);
                    return Err(ClientError::TimedOut { after: timeout, why });
                }
            },
        };
        if space.with(|known| known.mode.is_none()) {
            // What is rare has no room in every call's future.
            Box::pin(self.refresh(deadline)).await;
        }
        let write = op.is_write();
        let session = options.exactly_once.then_some(self.session);
        let course = Course { space, session, guarded: options.session };
        let (planned, request) = course.begin(op, options.consistency);
        let call = Call { space: Some(space), write, pinned: options.node, ..self.call(deadline, timeout) };
        let mut trip = Trip::data(self, call, planned, request);
        let mut round = 0;
        loop {
            let (answered, shown) = match trip.run().await {
                Err(ClientError::Cluster(Error::SessionExpired { floor, .. })) if Instant::now() < deadline => {
                    Box::pin(self.reposition(&trip, floor)).await;
                    if round > 0 {
                        tokio::time::sleep_until((Instant::now() + self.backoff(round)).min(deadline)).await;
                    }
                    round += 1;
                    trip.again();
                    continue;
                }
                other => (other?, trip.shown()),
            };
            let Response::Data(answer) = answered.response else { return Err(unexpected(&answered)) };
            space.with(|known| {
                known.learn(answered.from.node, &answer.meta);
                if options.session {
                    known.seen.answered(shown, answer.meta.epoch, answer.meta.token.as_ref());
                }
            });
            return Ok((answer.outcome, answer.meta));
        }
    }

    /// Learns how far a namespace's log has come, after a write that was certainly not done was refused because this
    /// client knew too old a position.
    async fn reposition(&self, trip: &Trip<'_>, floor: u64) {
        let (Some(space), Some(request)) = (trip.call.space, trip.data_request()) else { return };
        let key = match &request.op {
            Op::Write { mutation } | Op::CompareAndSet { mutation, .. } => mutation.key.clone(),
            _ => "-".into(),
        };
        let epoch = request.epoch;
        let course = Course { space, session: None, guarded: false };
        let (planned, probe) = course.begin(Op::Get { key }, Consistency::Local);
        let call = Call { write: false, ..trip.call };
        if let Ok(Answered { response: Response::Data(answer), from }) =
            Trip::data(self, call, planned, probe).run().await
        {
            space.with(|known| known.learn(from.node, &answer.meta));
        }
        // The floor is one of the epoch that was asked about.
        space.with(|known| known.reach(epoch, floor));
    }

    /// A pause.
    pub(crate) fn backoff(&self, round: u32) -> Duration {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        backoff(round, self.options.backoff_min, self.options.backoff_max, &mut *random)
    }

    /// A pause while a change holds a request up.
    pub(crate) fn short_pause(&self, n: u32) -> Duration {
        short_pause(n, &mut *self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is known of a namespace.
    fn space(&self, name: &NamespaceName) -> Arc<Space> {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(space) = spaces.get(name) {
            return space.clone();
        }
        let space = Arc::new(Space { name: name.clone(), known: Mutex::default() });
        if let Some(topology) = self.topology() {
            topology.namespaces.iter().filter(|i| i.name == *name).for_each(|i| space.with(|k| k.catalog(i)));
        }
        spaces.insert(name.clone(), space.clone());
        space
    }

    /// The catalog's own namespace: who leads it answers administration fastest.
    pub(crate) fn system(&self) -> Option<Arc<Space>> {
        NamespaceName::new(NamespaceName::SYSTEM).ok().map(|name| self.space(&name))
    }

    fn topology(&self) -> Option<Arc<Topology>> {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Learns the topology, unless someone else does meanwhile. A failure shows with the request that needs it.
    pub(crate) async fn refresh(&self, deadline: Instant) {
        let deadline = deadline.min(Instant::now() + REFRESH);
        let before = self.refreshes.load(SeqCst);
        let Ok(Ok(_turn)) = timeout_at(deadline, self.refreshing.acquire()).await else { return };
        if self.refreshes.load(SeqCst) == before
            && let Err(error) = self.fetch(self.call(deadline, REFRESH)).await
        {
            tracing::debug!(%error, "the topology was not learned");
        }
    }

    async fn fetch(&self, call: Call<'_>) -> Result<Arc<Topology>, ClientError> {
        let topology = match self.run(call, Request::Topology).await? {
            Answered { response: Response::Topology(topology), .. } => Arc::new(topology),
            other => return Err(unexpected(&other)),
        };
        self.refreshes.fetch_add(1, SeqCst);
        let mut last = self.topology.lock().unwrap_or_else(PoisonError::into_inner);
        // One node's view may be older than another's; what it says of nodes and members is then no news.
        if last.as_ref().is_none_or(|old| old.version <= topology.version) {
            *last = Some(topology.clone());
            drop(last);
            self.pool.learn(&topology.nodes);
            let spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for info in &topology.namespaces {
                if let Some(space) = spaces.get(&info.name) {
                    space.with(|known| known.catalog(info));
                }
            }
        }
        Ok(topology)
    }
}

/// An answer to something that was not asked.
pub(crate) fn unexpected(answered: &Answered) -> ClientError {
    let what = format!("{:?}", answered.response).chars().take(80).collect();
    ClientError::Unexpected { from: answered.from.address.to_string(), what }
}
