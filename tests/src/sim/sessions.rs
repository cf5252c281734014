//! Clients of eventual namespaces, each with a session that moves from member to member.
//!
//! A session is two real clients that hand each other their token, so that what it has seen on one member it asks for on
//! another.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use duet_client::{Class, ClientError, KeyRange, Namespace, NewNamespace, ScanLimit, Token};
use duet_proto::{Epoch, NamespaceId, NodeId, Role, Stamp};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{EventualPlan, World};
use crate::checker::{
    Key, Value,
    eventual::{Act, Event, Journal},
};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The number of the client that sets up and reads at the end.
const OBSERVER: u32 = 101;
/// The number of the first session's first client; each has two.
const FIRST: u32 = 110;

/// A namespace under test.
pub(super) struct Space {
    pub(super) name: String,
    pub(super) id: NamespaceId,
    pub(super) epoch: Epoch,
    pub(super) copies: u32,
    pub(super) members: Vec<NodeId>,
    journal: Mutex<Journal>,
}

impl Space {
    /// What is known of its writes.
    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates the namespaces of a plan, before anything goes wrong.
pub(super) async fn create(world: &mut World, plan: &EventualPlan) -> Result<Vec<Arc<Space>>, String> {
    let client = world.client(OBSERVER, Role::Admin).await?;
    let admin = client.admin().timeout(Duration::from_secs(30));
    let mut spaces = Vec::new();
    for (copies, replicas) in &plan.spaces {
        let name = format!("events-{}", spaces.len());
        let new = NewNamespace { copies: *copies, replicas: Some(*replicas), ..NewNamespace::eventual() };
        let info = admin.create_namespace(&name, new).await.map_err(|e| format!("create {name}: {e}"))?;
        let (id, epoch, members) = (info.id, info.epoch, info.members);
        spaces.push(Arc::new(Space { name, id, epoch, copies: *copies, members, journal: Mutex::default() }));
    }
    Ok(spaces)
}

/// Sessions at work.
pub(super) struct Sessions {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<Tally, String>>>,
}

/// How many requests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answered.
    pub answered: usize,
    /// Writes of which nobody knows whether they were done.
    pub unknown: usize,
    /// Refused: nothing was done.
    pub refused: usize,
}

/// Starts the sessions of a plan: as many for each namespace.
pub(super) async fn start(world: &mut World, plan: &EventualPlan, spaces: &[Arc<Space>]) -> Result<Sessions, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    let mut number = 0;
    for space in spaces {
        for _ in 0..plan.sessions {
            let mut ways = Vec::new();
            for way in 0..2 {
                let client = world.client(FIRST + 2 * number + way, Role::Client).await?;
                ways.push(client.namespace(&space.name).map_err(|e| e.to_string())?.timeout(PATIENCE));
            }
            let worker = Worker {
                number,
                keys: plan.keys,
                deletes_percent: plan.deletes_percent,
                rng: ChaCha8Rng::seed_from_u64(plan.base.seed.wrapping_mul(1000) + u64::from(FIRST + number)),
                space: space.clone(),
                ways,
                tokens: Vec::new(),
                clock: Box::new(world.clock()),
                values: 0,
                tally: Tally::default(),
            };
            workers.push(tokio::spawn(worker.work(stop.clone())));
            number += 1;
        }
    }
    Ok(Sessions { stop, workers })
}

impl Sessions {
    /// Lets every session finish what it is at.
    pub(super) async fn finish(self) -> Result<Tally, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for worker in self.workers {
            let tally = worker.await.map_err(|error| format!("a session ended badly: {error}"))??;
            sum.answered += tally.answered;
            sum.unknown += tally.unknown;
            sum.refused += tally.refused;
        }
        Ok(sum)
    }
}

/// Reads every key of a namespace, as any new client would.
pub(super) async fn read_everything(
    world: &mut World,
    plan: &EventualPlan,
    space: &Space,
    deadline: Instant,
) -> Result<Vec<(Key, Option<(Stamp, Value)>)>, String> {
    let client = loop {
        match world.client(OBSERVER, Role::Client).await {
            Ok(client) => break client,
            Err(error) if Instant::now() >= deadline => return Err(format!("after everything healed: {error}")),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let namespace = client.namespace(&space.name).map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    for key in 0..plan.keys {
        let held = loop {
            match namespace.get(name(key)).await {
                Ok(held) => break held,
                Err(error) if Instant::now() >= deadline => return Err(format!("after everything healed: {error}")),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let held = held.map(|held| Ok::<_, String>((held.stamp, parse_value(&held.value)?))).transpose()?;
        found.push((key, held));
    }
    Ok(found)
}

/// One session.
struct Worker {
    number: u32,
    keys: u16,
    deletes_percent: u32,
    rng: ChaCha8Rng,
    space: Arc<Space>,
    ways: Vec<Namespace>,
    tokens: Vec<Token>,
    clock: Box<dyn Fn() -> i64 + Send + Sync>,
    values: u64,
    tally: Tally,
}

impl Worker {
    async fn work(mut self, stop: Arc<AtomicBool>) -> Result<Tally, String> {
        while !stop.load(Ordering::Relaxed) {
            let key = self.rng.random_range(0..self.keys);
            let way = self.ways[self.rng.random_range(0..self.ways.len())].clone();
            way.resume(&self.tokens);
            match self.rng.random_range(0..100) {
                0..40 => self.get(&way, key).await?,
                40..45 => self.get_at_once(&way, key).await?,
                45..50 => self.scan(&way).await?,
                _ => self.write(&way, key).await?,
            }
            self.tokens = way.tokens();
            let pause = self.rng.random_range(0..40_000);
            sleep(Duration::from_micros(pause)).await;
        }
        Ok(self.tally)
    }

    async fn write(&mut self, way: &Namespace, key: Key) -> Result<(), String> {
        self.values += 1;
        let delete = self.rng.random_range(0..100) < self.deletes_percent;
        let value = if delete { None } else { Some(u64::from(self.number) << 32 | self.values) };
        let called = (self.clock)();
        self.space.journal().begin(key, value, called);
        let told = match value {
            Some(value) => way.put(name(key), value.to_string()).await,
            None => way.delete(name(key)).await,
        };
        let stamp = match told {
            Ok(stamp) => Some(stamp),
            Err(error) if error.class() == Class::Unknown => None,
            Err(error) => {
                self.tally.refused += 1;
                let refused = self.space.journal().refused(key, value, called);
                return refused.map_err(|what| format!("{what}; it was refused: {error}"));
            }
        };
        *if stamp.is_some() { &mut self.tally.answered } else { &mut self.tally.unknown } += 1;
        self.tell(Some(self.number), called, Act::Write { key, value, stamp })
    }

    async fn get(&mut self, way: &Namespace, key: Key) -> Result<(), String> {
        let (called, told) = ((self.clock)(), way.get(name(key)).await);
        let Some(found) = self.answer(told)? else { return Ok(()) };
        let found = found.map(|held| Ok::<_, String>((held.stamp, parse_value(&held.value)?))).transpose()?;
        self.tell(Some(self.number), called, Act::Read { key, found })
    }

    /// Without the session's guarantees, and without adding to what it has seen.
    async fn get_at_once(&mut self, way: &Namespace, key: Key) -> Result<(), String> {
        let (called, told) = ((self.clock)(), way.session(false).get(name(key)).await);
        let Some(found) = self.answer(told)? else { return Ok(()) };
        let found = found.map(|held| Ok::<_, String>((held.stamp, parse_value(&held.value)?))).transpose()?;
        self.tell(None, called, Act::Read { key, found })
    }

    async fn scan(&mut self, way: &Namespace) -> Result<(), String> {
        let called = (self.clock)();
        let told = way.scan_page(KeyRange::all(), ScanLimit::default(), None).await;
        let Some((entries, _)) = self.answer(told)? else { return Ok(()) };
        for key in 0..self.keys {
            let entry = entries.iter().find(|entry| entry.key == name(key));
            let found = entry.map(|entry| Ok::<_, String>((entry.stamp, parse_value(&entry.value)?))).transpose()?;
            self.tell(Some(self.number), called, Act::Read { key, found })?;
        }
        Ok(())
    }

    /// What a read was answered, unless it was refused.
    fn answer<T>(&mut self, told: Result<T, ClientError>) -> Result<Option<T>, String> {
        match told {
            Ok(answer) => {
                self.tally.answered += 1;
                Ok(Some(answer))
            }
            Err(error) if error.class() == Class::Retry => {
                self.tally.refused += 1;
                Ok(None)
            }
            Err(error) => Err(format!("{}: a read ended with {error:?}", self.space.name)),
        }
    }

    fn tell(&self, session: Option<u32>, called: i64, act: Act) -> Result<(), String> {
        let (returned, tokens) = ((self.clock)(), self.tokens.clone());
        let told = self.space.journal().told(Event { session, called, returned, tokens, act });
        told.map_err(|what| format!("{}: {what}", self.space.name))
    }
}

fn name(key: Key) -> Bytes {
    format!("key-{key}").into()
}

/// The inverse of [`name`].
pub(super) fn parse_key(key: &[u8]) -> Result<Key, String> {
    let text = std::str::from_utf8(key).ok().and_then(|text| text.strip_prefix("key-")?.parse().ok());
    text.ok_or_else(|| format!("a key that nobody wrote: {}", key.escape_ascii()))
}

/// The value that these bytes stand for.
pub(super) fn parse_value(value: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| format!("a value that nobody wrote: {}", value.escape_ascii()))
}
