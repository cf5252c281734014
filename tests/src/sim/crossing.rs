//! Clients of namespaces that change their mode. They ask for everything that either mode can do, whatever the mode is,
//! and write down what they were told and in which epoch.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use duet_client::{
    Change, Class, ClientError, Expect, KeyRange, Namespace, NewNamespace, ScanLimit, SwitchInfo, Token,
    Value as Held,
};
use duet_proto::{Epoch, Error, Mode, NamespaceId, NodeId, Role, Stamp, SwitchPast};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    SwitchPlan, World,
    sessions::{Tally, parse_value},
};
use crate::checker::{
    Expected, Key, Operation, Step, Value,
    epochs::{Chronicle, Ended, Epochs, Told},
};

/// How long a request may take: long enough for most switches.
const PATIENCE: Duration = Duration::from_millis(2500);
/// The number of the client that sets up and reads at the end.
const OBSERVER: u32 = 101;

/// A namespace under test.
pub(super) struct Land {
    pub(super) name: String,
    pub(super) id: NamespaceId,
    pub(super) members: Vec<NodeId>,
    copies: u32,
    chronicle: Mutex<Chronicle>,
    epochs: Mutex<(Epoch, Epochs)>,
    /// Whom an operator has said not to wait for, and in which epoch first: what they say may take a while to arrive.
    excused: Mutex<BTreeMap<NodeId, Epoch>>,
    /// What some session has seen, for another to go on from.
    tokens: Mutex<Vec<Token>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Land {
    /// What was asked and told.
    pub(super) fn chronicle(&self) -> MutexGuard<'_, Chronicle> {
        lock(&self.chronicle)
    }

    /// The epochs that are over.
    pub(super) fn epochs(&self) -> Epochs {
        lock(&self.epochs).1.clone()
    }

    /// The latest epoch that the catalog told of, and its mode.
    pub(super) fn now(&self) -> (Epoch, Mode) {
        let epochs = lock(&self.epochs);
        (epochs.0, epochs.1.mode(epochs.0))
    }

    /// An operator is about to say that these are not to be waited for.
    pub(super) fn excuse(&self, epoch: Epoch, nodes: &[NodeId]) {
        let mut excused = lock(&self.excused);
        for node in nodes {
            excused.entry(*node).or_insert(epoch);
        }
    }

    /// Takes in what the catalog tells of its switches.
    ///
    /// # Errors
    /// If it tells of an epoch's end otherwise than before, of a mode that does not follow, or of members left out who may
    /// have acknowledged writes alone, and nobody has excused them.
    pub(super) fn learn(&self, info: &SwitchInfo) -> Result<(), String> {
        let mut epochs = lock(&self.epochs);
        // Of several switches of one epoch the last ended it. It may be called aborted: what can only go on is switched back
        // when it has ended.
        let over = info.history.iter().filter(|past| past.epoch < info.namespace.epoch);
        let over: BTreeMap<Epoch, &SwitchPast> = over.map(|past| (past.epoch, past)).collect();
        for past in over.into_values() {
            let ended = Ended {
                to: past.to,
                apart: past.apart.clone(),
                alone: past.apart.len() >= self.copies as usize,
                forgotten: past.forgotten.clone(),
            };
            let excused = |node: &NodeId| lock(&self.excused).get(node).is_some_and(|since| *since <= past.epoch);
            if ended.alone && !ended.apart.iter().all(excused) {
                return Err(format!("{}: epoch {} ended without enough: {past:?}", self.name, past.epoch));
            }
            let before = epochs.1.ended.entry(past.epoch).or_insert_with(|| ended.clone());
            if *before != ended {
                return Err(format!("{}: epoch {} ended as {before:?}, and as {ended:?}", self.name, past.epoch));
            }
        }
        epochs.0 = epochs.0.max(info.namespace.epoch);
        if info.namespace.epoch == epochs.0 && epochs.1.mode(epochs.0) != info.namespace.mode {
            return Err(format!("{}: the catalog contradicts itself: {info:?}", self.name));
        }
        Ok(())
    }
}

/// Creates the namespaces of a plan, before anything goes wrong.
pub(super) async fn create(world: &mut World, plan: &SwitchPlan) -> Result<Vec<Arc<Land>>, String> {
    let client = world.client(OBSERVER, Role::Admin).await?;
    let admin = client.admin().timeout(Duration::from_secs(30));
    let mut lands = Vec::new();
    for land in &plan.lands {
        let name = format!("land-{}", lands.len());
        let replicas = Some(land.replicas);
        let new = || NewNamespace { mode: land.mode, copies: land.copies, replicas, ..NewNamespace::strong() };
        let deadline = Instant::now() + Duration::from_secs(30);
        // It takes a moment until the catalog knows of enough nodes that have started.
        let info = loop {
            match admin.create_namespace(&name, new()).await {
                Ok(info) => break info,
                Err(error) if Instant::now() >= deadline => return Err(format!("create {name}: {error}")),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let epochs = (info.epoch, Epochs { first: land.mode, ended: BTreeMap::new() });
        lands.push(Arc::new(Land {
            name,
            id: info.id,
            members: info.members,
            copies: land.copies,
            chronicle: Mutex::default(),
            epochs: Mutex::new(epochs),
            excused: Mutex::default(),
            tokens: Mutex::default(),
        }));
    }
    Ok(lands)
}

/// Clients at work.
pub(super) struct Crossing {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<Tally, String>>>,
}

/// Starts the clients of a plan: as many for each namespace.
pub(super) async fn start(world: &mut World, plan: &SwitchPlan, lands: &[Arc<Land>]) -> Result<Crossing, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    let mut number = 0;
    for land in lands {
        for _ in 0..plan.clients {
            number += 1;
            let client = world.client(number, Role::Client).await?;
            let worker = Worker {
                number,
                keys: plan.keys,
                deletes_percent: plan.deletes_percent,
                rng: ChaCha8Rng::seed_from_u64(plan.base.seed.wrapping_mul(1000) + u64::from(number)),
                namespace: client.namespace(&land.name).map_err(|e| e.to_string())?.timeout(PATIENCE),
                land: land.clone(),
                clock: Box::new(world.clock()),
                known: BTreeMap::new(),
                values: 0,
                tally: Tally::default(),
            };
            workers.push(tokio::spawn(worker.work(stop.clone())));
        }
    }
    Ok(Crossing { stop, workers })
}

impl Crossing {
    /// Lets every client finish what it is at.
    pub(super) async fn finish(self) -> Result<Tally, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for worker in self.workers {
            let tally = worker.await.map_err(|error| format!("a client ended badly: {error}"))??;
            sum.answered += tally.answered;
            sum.unknown += tally.unknown;
            sum.refused += tally.refused;
        }
        Ok(sum)
    }
}

/// What was found under each key.
type Found = Vec<(Key, Option<(Stamp, Value)>)>;

/// Reads every key of a namespace, as any new client would.
pub(super) async fn read_everything(
    world: &mut World,
    plan: &SwitchPlan,
    land: &Land,
    deadline: Instant,
) -> Result<Found, String> {
    let client = loop {
        match world.client(OBSERVER, Role::Client).await {
            Ok(client) => break client,
            Err(error) if Instant::now() >= deadline => return Err(format!("after everything healed: {error}")),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let (namespace, clock) = (client.namespace(&land.name).map_err(|e| e.to_string())?, world.clock());
    let mut all = Vec::new();
    for key in 0..plan.keys {
        let (called, (held, epoch)) = loop {
            let called = clock();
            match namespace.get_with_epoch(name(key)).await {
                Ok(held) => break (called, held),
                Err(error) if Instant::now() >= deadline => return Err(format!("after everything healed: {error}")),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let found = known(held)?;
        let (tokens, step, returned) = (Vec::new(), Step::default(), Some(clock()));
        let operation = Operation { client: OBSERVER, called, returned, step, stamp: None };
        land.chronicle().answer(Told { operation, session: None, tokens, epoch, reads: vec![(key, found)] })?;
        all.push((key, found));
    }
    Ok(all)
}

fn known(held: Option<Held>) -> Result<Option<(Stamp, Value)>, String> {
    held.map(|held| Ok((held.stamp, parse_value(&held.value)?))).transpose()
}

/// One client.
struct Worker {
    number: u32,
    keys: u16,
    deletes_percent: u32,
    rng: ChaCha8Rng,
    land: Arc<Land>,
    namespace: Namespace,
    clock: Box<dyn Fn() -> i64 + Send + Sync>,
    /// The last version of each key that it has seen, of whatever epoch.
    known: BTreeMap<Key, (Stamp, Value)>,
    values: u64,
    tally: Tally,
}

/// A request that is about to be sent.
struct Asked {
    called: i64,
    epoch: Epoch,
    session: Option<u32>,
    tokens: Vec<Token>,
    step: Step,
}

impl Worker {
    async fn work(mut self, stop: Arc<AtomicBool>) -> Result<Tally, String> {
        while !stop.load(Ordering::Relaxed) {
            let key = self.rng.random_range(0..self.keys);
            let done = match self.rng.random_range(0..100) {
                0..30 => self.get(key, true).await,
                30..35 => self.get(key, false).await,
                35..40 => self.scan().await,
                40..75 => self.write(key).await,
                75..88 => self.compare_and_set(key).await,
                88..96 => self.transaction(key).await,
                _ => {
                    self.hand_over();
                    Ok(())
                }
            };
            done.map_err(|what| format!("{}: {what}\nepochs: {:?}", self.land.name, self.land.epochs()))?;
            let pause = self.rng.random_range(0..30_000);
            sleep(Duration::from_micros(pause)).await;
        }
        Ok(self.tally)
    }

    /// Leaves what it has seen to another session, and takes what one left.
    fn hand_over(&self) {
        let mine = self.namespace.tokens();
        let left = std::mem::replace(&mut *lock(&self.land.tokens), mine);
        self.namespace.resume(&left);
    }

    fn value(&mut self) -> Value {
        self.values += 1;
        u64::from(self.number) << 32 | self.values
    }

    fn ask(&self, step: Step, session: bool) -> Asked {
        let called = (self.clock)();
        self.land.chronicle().begin(&step, called);
        Asked {
            called,
            epoch: self.namespace.epoch(),
            session: session.then_some(self.number),
            tokens: if session { self.namespace.tokens() } else { Vec::new() },
            step,
        }
    }

    async fn get(&mut self, key: Key, session: bool) -> Result<(), String> {
        let asked = self.ask(Step::default(), session);
        match self.namespace.session(session).get_with_epoch(name(key)).await {
            Ok((held, epoch)) => {
                let found = known(held)?;
                self.learn(key, found);
                self.answered(asked, epoch, None, vec![(key, found)])
            }
            Err(error) => self.failed(asked, &error),
        }
    }

    /// Keys of a page are told as if each had been read by itself.
    async fn scan(&mut self) -> Result<(), String> {
        let asked = self.ask(Step::default(), true);
        let told = self.namespace.scan_page(KeyRange::all(), ScanLimit::default(), None).await;
        let (entries, _) = match told {
            Ok(page) => page,
            Err(error) => return self.failed(asked, &error),
        };
        let Some(epoch) = self.within(&asked) else { return Ok(()) };
        for key in 0..self.keys {
            let entry = entries.iter().find(|entry| entry.key == name(key));
            let found = entry.map(|entry| Ok::<_, String>((entry.stamp, parse_value(&entry.value)?))).transpose()?;
            let (tokens, step) = (asked.tokens.clone(), Step::default());
            self.answered(Asked { tokens, step, ..asked }, epoch, None, vec![(key, found)])?;
        }
        Ok(())
    }

    async fn write(&mut self, key: Key) -> Result<(), String> {
        let delete = self.rng.random_range(0..100) < self.deletes_percent;
        let value = if delete { None } else { Some(self.value()) };
        let asked = self.ask(Step::write(key, value), true);
        let told = match value {
            Some(value) => self.namespace.put(name(key), value.to_string()).await,
            None => self.namespace.delete(name(key)).await,
        };
        match told {
            Ok(stamp) => {
                self.learn(key, value.map(|value| (stamp, value)));
                self.answered(asked, stamp.epoch, Some(stamp), Vec::new())
            }
            Err(error) => self.failed(asked, &error),
        }
    }

    /// Also of a version that was read in an earlier epoch, of another mode.
    async fn compare_and_set(&mut self, key: Key) -> Result<(), String> {
        let (expect, expected) = match self.known.get(&key) {
            Some((stamp, value)) => (Expect::Stamp(*stamp), Expected::Value(*value)),
            None => (Expect::Absent, Expected::Absent),
        };
        let value = self.value();
        let mut asked = self.ask(Step::compare_and_set(key, expected, Some(value), None), true);
        match self.namespace.cas(name(key), expect, Change::Put(value.to_string().into())).await {
            Ok(stamp) => {
                self.learn(key, Some((stamp, value)));
                asked.step.held = Some(true);
                self.answered(asked, stamp.epoch, Some(stamp), Vec::new())
            }
            Err(ClientError::Cluster(Error::CompareFailed { .. })) => match self.within(&asked) {
                Some(epoch) => {
                    self.known.remove(&key);
                    asked.step.held = Some(false);
                    self.answered(asked, epoch, None, Vec::new())
                }
                None => self.land.chronicle().refused(&asked.step, asked.called),
            },
            Err(error) => self.failed(asked, &error),
        }
    }

    /// Changes a key one way if it is there and another if it is not, and reads it.
    async fn transaction(&mut self, key: Key) -> Result<(), String> {
        let (a, b) = (self.value(), self.value());
        let step = Step {
            compares: vec![(key, Expected::Present)],
            then: vec![(key, Some(a))],
            otherwise: vec![(key, Some(b))],
            ..Step::default()
        };
        let mut asked = self.ask(step, true);
        let told = self.namespace.txn().when(name(key), Expect::Present).put(name(key), a.to_string());
        match told.otherwise_put(name(key), b.to_string()).read(name(key)).commit().await {
            Ok(result) => {
                let read = result.reads.into_iter().next().flatten();
                let found = read.map(|(stamp, value)| Ok::<_, String>((stamp, parse_value(&value)?))).transpose()?;
                self.learn(key, found);
                asked.step.held = Some(result.held);
                self.answered(asked, result.stamp.epoch, Some(result.stamp), vec![(key, found)])
            }
            Err(error) => self.failed(asked, &error),
        }
    }

    /// The epoch of an answer that does not tell it: known if it was the same before and after.
    fn within(&self, asked: &Asked) -> Option<Epoch> {
        Some(asked.epoch).filter(|epoch| *epoch == self.namespace.epoch() && *epoch > Epoch::default())
    }

    fn answered(&mut self, asked: Asked, epoch: Epoch, stamp: Option<Stamp>, reads: Found) -> Result<(), String> {
        self.tally.answered += 1;
        let Asked { called, session, tokens, step, .. } = asked;
        let operation = Operation { client: self.number, called, returned: Some((self.clock)()), step, stamp };
        self.land.chronicle().answer(Told { operation, session, tokens, epoch, reads })
    }

    fn failed(&mut self, asked: Asked, error: &ClientError) -> Result<(), String> {
        let Asked { called, step, .. } = asked;
        if error.class() == Class::Unknown {
            self.tally.unknown += 1;
            let operation = Operation { client: self.number, called, returned: None, step, stamp: None };
            self.land.chronicle().lost(operation);
            return Ok(());
        }
        self.tally.refused += 1;
        let unsupported =
            matches!(error, ClientError::Cluster(Error::Unsupported { .. })) && !step.compares.is_empty();
        if error.class() != Class::Retry && !unsupported {
            return Err(format!("a request ended with {error:?}"));
        }
        let refused = self.land.chronicle().refused(&step, called);
        refused.map_err(|what| format!("{what}; it was refused: {error}"))
    }

    fn learn(&mut self, key: Key, found: Option<(Stamp, Value)>) {
        match found {
            Some(found) => self.known.insert(key, found),
            None => self.known.remove(&key),
        };
    }
}

fn name(key: Key) -> Bytes {
    format!("key-{key}").into()
}
