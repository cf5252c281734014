//! The connections of a client, one to each node that it has needed, and what is known of where nodes are.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use duet_proto::{NodeId, NodeInfo};
use duet_transport::{ConnectError, Connector, Refusal, Tls, TlsError};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    line::Line,
    route::{Candidate, Health, Target},
};

/// How long a node that could not be reached, or whose connection broke, comes last.
const TROUBLE: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) struct NotReached {
    pub(crate) address: Arc<str>,
    pub(crate) why: String,
    /// It will be so again: the certificates or versions do not fit.
    pub(crate) refused: bool,
}

/// A connection, or one on its way.
pub(crate) enum Reach {
    Ready(Arc<Line>),
    Dialing(oneshot::Receiver<Result<Arc<Line>, NotReached>>),
}

/// The connections. No lock of it is held while anything is awaited.
#[derive(Debug)]
pub(crate) struct Pool {
    connector: Connector,
    book: Mutex<BTreeMap<Target, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Where it may be; rotated when one fails.
    addresses: Vec<Arc<str>>,
    state: State,
    trouble_until: Option<Instant>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Dialing(Vec<oneshot::Sender<Result<Arc<Line>, NotReached>>>),
    Ready(Arc<Line>),
}

impl Entry {
    fn at(address: &str) -> Entry {
        Entry { addresses: vec![address.into()], ..Entry::default() }
    }

    fn is_idle(&self) -> bool {
        match &self.state {
            State::Idle => true,
            State::Dialing(_) => false,
            State::Ready(line) => line.is_closed(),
        }
    }

    fn health(&self, now: Instant) -> Health {
        match &self.state {
            State::Ready(line) if !line.is_closed() && line.is_suspect() => Health::Suspect,
            State::Ready(line) if !line.is_closed() => Health::Ready,
            _ if self.trouble_until.is_some_and(|until| until > now) => Health::Suspect,
            _ => Health::Cold,
        }
    }
}

impl Pool {
    pub(crate) fn new(connector: Connector, endpoints: &[String]) -> Pool {
        let book = endpoints.iter().enumerate().map(|(at, a)| (Target::Endpoint(at), Entry::at(a))).collect();
        Pool { connector, book: Mutex::new(book) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Target, Entry>) -> T) -> T {
        f(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connection to a node, if there is one and it answers.
    pub(crate) fn ready(&self, node: NodeId) -> Option<Arc<Line>> {
        self.with(|book| match &book.get(&Target::Node(node))?.state {
            State::Ready(line) if !line.is_suspect() && !line.is_closed() => Some(line.clone()),
            _ => None,
        })
    }

    /// Everyone who may be asked.
    pub(crate) fn candidates(
        &self,
        members: &[NodeId],
        favourite: Option<NodeId>,
        tried: &[Target],
    ) -> Vec<Candidate> {
        let now = Instant::now();
        self.with(|book| {
            let candidate = |(&target, entry): (&Target, &Entry)| {
                let is = |node: &NodeId| target == Target::Node(*node);
                Candidate {
                    target,
                    member: members.iter().any(is),
                    favourite: favourite.as_ref().is_some_and(is),
                    health: entry.health(now),
                    tried: tried.contains(&target),
                }
            };
            book.iter().map(candidate).collect()
        })
    }

    /// Begins to connect to a node that will be wanted soon, if nothing speaks against it.
    pub(crate) fn warm(self: &Arc<Self>, node: NodeId) {
        let target = Target::Node(node);
        if self
            .with(|book| book.get(&target).is_some_and(|e| e.is_idle() && e.health(Instant::now()) == Health::Cold))
        {
            self.reach(target);
        }
    }

    /// The connection to a target; begins to make one if there is none. `None` if there is no such target any more.
    pub(crate) fn reach(self: &Arc<Self>, target: Target) -> Option<Reach> {
        self.with(|book| {
            let entry = book.get_mut(&target)?;
            if let State::Ready(line) = &entry.state
                && !line.is_closed()
            {
                return Some(Reach::Ready(line.clone()));
            }
            let (waiter, wait) = oneshot::channel();
            if let State::Dialing(waiters) = &mut entry.state {
                waiters.retain(|w| !w.is_closed());
                waiters.push(waiter);
            } else {
                entry.state = State::Dialing(vec![waiter]);
                let address = entry.addresses.first()?.clone();
                tokio::spawn(self.clone().dial(target, address));
            }
            Some(Reach::Dialing(wait))
        })
    }

    /// A task of its own, so that one caller's end does not take the connection from the others.
    async fn dial(self: Arc<Self>, target: Target, address: Arc<str>) {
        let expected = if let Target::Node(node) = target { Some(node) } else { None };
        let result = match self.connector.connect(&address, expected).await {
            Ok(connection) => match connection.server().node_id() {
                Some(node) => {
                    let goodbye = connection.goodbye();
                    let line = Arc::new(Line::start(connection, node, address));
                    tokio::spawn(keep_young(Arc::downgrade(&self), Arc::downgrade(&line), goodbye));
                    Ok(line)
                }
                None => Err(NotReached { address, why: "it is no node".into(), refused: true }),
            },
            Err(error) => Err(NotReached { refused: is_refusal(&error), why: error.to_string(), address }),
        };
        for waiter in self.with(|book| settle(book, target, &result)) {
            waiter.send(result.clone()).ok();
        }
    }

    /// Uses other certificates from now on.
    pub(crate) fn renew(&self, tls: Tls) -> Result<(), TlsError> {
        self.connector.renew(tls)
    }

    /// Puts a new connection in the place of one that has grown old, if that is still in use; without a new one, the
    /// next request makes it.
    fn replace(&self, old: &Arc<Line>, new: Option<Arc<Line>>) {
        self.with(|book| {
            if let Some(entry) = book.get_mut(&Target::Node(old.node))
                && matches!(&entry.state, State::Ready(mine) if Arc::ptr_eq(mine, old))
            {
                entry.state = new.map_or(State::Idle, State::Ready);
            }
        });
    }

    /// Where a target is thought to be, for messages.
    pub(crate) fn address(&self, target: Target) -> String {
        let first =
            |book: &mut BTreeMap<Target, Entry>| book.get(&target)?.addresses.first().map(ToString::to_string);
        self.with(first).unwrap_or_default()
    }

    /// A connection broke.
    pub(crate) fn lost(&self, line: &Arc<Line>) {
        self.with(|book| {
            if let Some(entry) = book.get_mut(&Target::Node(line.node))
                && matches!(&entry.state, State::Ready(mine) if Arc::ptr_eq(mine, line))
            {
                entry.state = State::Idle;
                entry.trouble_until = Some(Instant::now() + TROUBLE);
            }
        });
    }

    /// Learns where a node is.
    pub(crate) fn locate(&self, node: NodeId, address: &str) {
        self.with(|book| locate(book, node, address));
    }

    /// Learns all nodes that there are; forgets others.
    pub(crate) fn learn(&self, nodes: &[NodeInfo]) {
        self.with(|book| {
            book.retain(|target, _| match target {
                Target::Node(id) => nodes.iter().any(|n| n.id == *id),
                Target::Endpoint(_) => true,
            });
            nodes.iter().for_each(|n| locate(book, n.id, &n.address));
        });
    }
}

/// Connects anew whenever the node says that a connection has grown old, and leaves the old one only then: no request
/// comes too late on it, and none waits for a handshake. Holds nobody: the connection ends with the client.
async fn keep_young(pool: Weak<Pool>, mut line: Weak<Line>, mut goodbye: watch::Receiver<bool>) {
    while goodbye.wait_for(|said| *said).await.is_ok() {
        let (Some(pool), Some(old)) = (pool.upgrade(), line.upgrade()) else { return };
        let fresh = pool.connector.connect(&old.address, Some(old.node)).await.ok().map(|connection| {
            goodbye = connection.goodbye();
            Arc::new(Line::start(connection, old.node, old.address.clone()))
        });
        line = fresh.as_ref().map(Arc::downgrade).unwrap_or_default();
        pool.replace(&old, fresh);
        // What is queued still goes out, and those who wait for answers hold it until they have come.
        old.leave();
        if line.strong_count() == 0 {
            return;
        }
    }
}

fn locate(book: &mut BTreeMap<Target, Entry>, node: NodeId, address: &str) {
    // An address of the caller's whose node is known now is no longer a target of its own, unless it is being dialed.
    book.retain(|target, entry| {
        let same = matches!(target, Target::Endpoint(_)) && entry.addresses.iter().any(|a| &**a == address);
        !same || matches!(entry.state, State::Dialing(_))
    });
    let entry = book.entry(Target::Node(node)).or_default();
    if !entry.addresses.iter().any(|a| &**a == address) {
        entry.addresses.push(address.into());
    }
}

/// Files the result of a dial; returns who waits for it.
fn settle(
    book: &mut BTreeMap<Target, Entry>,
    target: Target,
    result: &Result<Arc<Line>, NotReached>,
) -> Vec<oneshot::Sender<Result<Arc<Line>, NotReached>>> {
    let Some(entry) = book.get_mut(&target) else { return Vec::new() };
    let State::Dialing(waiters) = std::mem::take(&mut entry.state) else { return Vec::new() };
    match result {
        Ok(line) => {
            if let Target::Endpoint(_) = target {
                book.remove(&target);
            }
            let entry = book.entry(Target::Node(line.node)).or_default();
            // What has worked comes first: the address that the catalog knows may not be one for this client.
            entry.addresses.retain(|a| *a != line.address);
            entry.addresses.insert(0, line.address.clone());
            entry.trouble_until = None;
            // If another one is there or under way, only those who wait for this one use it.
            if entry.is_idle() {
                entry.state = State::Ready(line.clone());
            }
        }
        Err(_) => {
            entry.addresses.rotate_left(1);
            entry.trouble_until = Some(Instant::now() + TROUBLE);
        }
    }
    waiters
}

/// Whether trying again cannot help.
fn is_refusal(error: &ConnectError) -> bool {
    match error {
        ConnectError::Tls(_) | ConnectError::WrongServer { .. } => true,
        ConnectError::Refused { refusal, .. } => matches!(
            refusal,
            Refusal::WrongCluster
                | Refusal::WrongRole
                | Refusal::Version
                | Refusal::NoIdentity
                | Refusal::NoCertificate
                | Refusal::UnknownAuthority
                | Refusal::Expired
                | Refusal::Revoked
        ),
        _ => false,
    }
}
