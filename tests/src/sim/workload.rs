//! Clients that work on a few keys, and write down what they asked and what they were told.
//!
//! They are the real client library, on hosts of their own. What they were told is taken at its word: an operation that
//! was refused is left out of the history, so that a refused write that was done all the same shows as a read that
//! nothing explains.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use duet_client::{Change, Class, Client, ClientError, Entry, Expect, KeyRange, Namespace, NewNamespace, ScanLimit};
use duet_proto::{Error, Role, Stamp};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{Plan, World};
use crate::checker::{Expected, History, Key, Operation, Step, Value};

const NAMESPACE: &str = "orders";
/// The number of the client that sets up and reads at the end.
const OBSERVER: u32 = 100;

/// Creates the namespace that the clients work on, before anything goes wrong.
pub(super) async fn create_namespace(world: &mut World, plan: &Plan) -> Result<(), String> {
    let client = world.client(OBSERVER, Role::Admin).await?;
    let admin = client.admin().timeout(Duration::from_secs(30));
    let deadline = Instant::now() + Duration::from_secs(30);
    // It takes a moment until the catalog knows of enough nodes that have started.
    loop {
        let new = NewNamespace { replicas: Some(plan.replicas), ..NewNamespace::strong() };
        match admin.create_namespace(NAMESPACE, new).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(format!("create: {error}")),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Clients at work.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Worker>>,
}

/// Starts the clients of a plan.
pub(super) async fn start(world: &mut World, plan: &Plan) -> Result<Clients, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    for number in 1..=plan.clients {
        let client = world.client(number, Role::Client).await?;
        let worker = Worker {
            number,
            keys: plan.keys,
            reads: number <= plan.readers,
            rng: ChaCha8Rng::seed_from_u64(plan.seed.wrapping_mul(1000) + u64::from(number)),
            namespace: client.namespace(NAMESPACE).map_err(|e| e.to_string())?,
            clock: Box::new(world.clock()),
            known: BTreeMap::new(),
            values: 0,
            history: Vec::new(),
            refused: 0,
        };
        workers.push(tokio::spawn(worker.work(stop.clone())));
    }
    Ok(Clients { stop, workers })
}

impl Clients {
    /// Lets every client finish what it is at, and gathers what they wrote down. Also how many requests were refused.
    pub(super) async fn finish(self) -> Result<(History, usize), String> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut history, mut refused) = (History::default(), 0);
        for worker in self.workers {
            let worker = worker.await.map_err(|error| format!("a client ended badly: {error}"))?;
            refused += worker.refused;
            worker.history.into_iter().for_each(|operation| history.push(operation));
        }
        Ok((history, refused))
    }
}

/// Reads every key, so that every acknowledged write must be there or have been followed by another.
pub(super) async fn read_everything(
    world: &mut World,
    plan: &Plan,
    history: &mut History,
    deadline: Instant,
) -> Result<(), String> {
    let client: Client = loop {
        match world.client(OBSERVER, Role::Client).await {
            Ok(client) => break client,
            Err(error) if Instant::now() >= deadline => return Err(format!("after everything healed: {error}")),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let namespace = client.namespace(NAMESPACE).map_err(|e| e.to_string())?;
    let clock = world.clock();
    for key in 0..plan.keys {
        loop {
            let called = clock();
            match namespace.get(name(key)).await {
                Ok(found) => {
                    let value = found.map(|found| parse(&found.value)).transpose()?;
                    let (step, returned) = (Step::read(key, value), Some(clock()));
                    history.push(Operation { client: OBSERVER, called, returned, step, stamp: None });
                    break;
                }
                Err(error) if Instant::now() >= deadline => return Err(format!("after everything healed: {error}")),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }
    Ok(())
}

/// One client.
struct Worker {
    number: u32,
    keys: u16,
    /// Whether it only reads.
    reads: bool,
    rng: ChaCha8Rng,
    namespace: Namespace,
    clock: Box<dyn Fn() -> i64 + Send + Sync>,
    /// The last version of each key that it has seen.
    known: BTreeMap<Key, (Stamp, Value)>,
    values: u64,
    history: Vec<Operation>,
    refused: usize,
}

/// What came of a request, as far as the history is concerned.
struct Told {
    step: Step,
    stamp: Option<Stamp>,
}

impl Worker {
    async fn work(mut self, stop: Arc<AtomicBool>) -> Worker {
        while !stop.load(Ordering::Relaxed) {
            let key = self.rng.random_range(0..self.keys);
            let called = (self.clock)();
            // The step as it would be if nothing is known of its outcome, and what was told.
            let (unknown, told) = match self.rng.random_range(0..100) {
                _ if self.reads => (None, self.get(key).await),
                0..40 => (None, self.get(key).await),
                40..70 => self.put(key).await,
                70..76 => self.delete(key).await,
                76..88 => self.compare_and_set(key).await,
                88..95 => self.transaction(key).await,
                _ => (None, self.scan(key).await),
            };
            self.note(called, unknown, told);
            let pause = self.rng.random_range(0..30_000);
            sleep(Duration::from_micros(pause)).await;
        }
        self
    }

    fn note(&mut self, called: i64, unknown: Option<Step>, told: Result<Told, ClientError>) {
        let (client, returned) = (self.number, (self.clock)());
        match (told, unknown) {
            (Ok(Told { step, stamp }), _) => {
                self.history.push(Operation { client, called, returned: Some(returned), step, stamp });
            }
            (Err(error), Some(step)) if error.class() == Class::Unknown => {
                self.history.push(Operation { client, called, returned: None, step, stamp: None });
            }
            (Err(_), _) => self.refused += 1,
        }
    }

    fn value(&mut self) -> Value {
        self.values += 1;
        u64::from(self.number) << 32 | self.values
    }

    async fn get(&mut self, key: Key) -> Result<Told, ClientError> {
        let found = self.namespace.get(name(key)).await?;
        let found = found.map(|found| Ok::<_, ClientError>((found.stamp, read(&found.value)?))).transpose()?;
        self.learn(key, found);
        Ok(Told { step: Step::read(key, found.map(|(_, value)| value)), stamp: None })
    }

    async fn put(&mut self, key: Key) -> (Option<Step>, Result<Told, ClientError>) {
        let value = self.value();
        let step = Step::write(key, Some(value));
        let told = self.namespace.put(name(key), value.to_string()).await.map(|stamp| {
            self.learn(key, Some((stamp, value)));
            Told { step: step.clone(), stamp: Some(stamp) }
        });
        (Some(step), told)
    }

    async fn delete(&mut self, key: Key) -> (Option<Step>, Result<Told, ClientError>) {
        let step = Step::write(key, None);
        let told = self.namespace.delete(name(key)).await.map(|stamp| {
            self.learn(key, None);
            Told { step: step.clone(), stamp: Some(stamp) }
        });
        (Some(step), told)
    }

    async fn compare_and_set(&mut self, key: Key) -> (Option<Step>, Result<Told, ClientError>) {
        let (expect, expected) = match self.known.get(&key) {
            Some((stamp, value)) => (Expect::Stamp(*stamp), Expected::Value(*value)),
            None => (Expect::Absent, Expected::Absent),
        };
        let value = self.value();
        let step = |held| Step::compare_and_set(key, expected, Some(value), held);
        let told = match self.namespace.cas(name(key), expect, Change::Put(value.to_string().into())).await {
            Ok(stamp) => {
                self.learn(key, Some((stamp, value)));
                Ok(Told { step: step(Some(true)), stamp: Some(stamp) })
            }
            Err(ClientError::Cluster(Error::CompareFailed { .. })) => {
                Ok(Told { step: step(Some(false)), stamp: None })
            }
            Err(error) => Err(error),
        };
        (Some(step(None)), told)
    }

    /// Changes both keys of a pair if one of them is there, else one, and reads both.
    async fn transaction(&mut self, key: Key) -> (Option<Step>, Result<Told, ClientError>) {
        let (first, second) = (key & !1, (key & !1) + 1);
        let (a, b, c) = (self.value(), self.value(), self.value());
        let step = |held, reads| Step {
            compares: vec![(first, Expected::Present)],
            then: vec![(first, Some(a)), (second, Some(b))],
            otherwise: vec![(first, Some(c))],
            held,
            reads,
        };
        let asked = self.namespace.txn().when(name(first), Expect::Present);
        let asked = asked.put(name(first), a.to_string()).put(name(second), b.to_string());
        let asked = asked.otherwise_put(name(first), c.to_string()).read(name(first)).read(name(second));
        let told = match asked.commit().await {
            Ok(result) => {
                let mut reads = Vec::new();
                for (key, found) in [first, second].into_iter().zip(result.reads) {
                    match found.map(|(stamp, value)| Ok::<_, ClientError>((stamp, read(&value)?))).transpose() {
                        Ok(found) => {
                            self.learn(key, found);
                            reads.push((key, found.map(|(_, value)| value)));
                        }
                        Err(error) => return (Some(step(None, vec![])), Err(error)),
                    }
                }
                Ok(Told { step: step(Some(result.held), reads), stamp: Some(result.stamp) })
            }
            Err(error) => Err(error),
        };
        (Some(step(None, vec![])), told)
    }

    /// Reads a pair at one moment.
    async fn scan(&mut self, key: Key) -> Result<Told, ClientError> {
        let (first, second) = (key & !1, (key & !1) + 1);
        let range = KeyRange::prefix(format!("{}/", first / 2));
        let (entries, _) = self.namespace.scan_page(range, ScanLimit::default(), None).await?;
        let mut reads = Vec::new();
        for key in [first, second] {
            let found = entries.iter().find(|entry: &&Entry| entry.key == name(key));
            let found = found.map(|entry| Ok::<_, ClientError>((entry.stamp, read(&entry.value)?))).transpose()?;
            self.learn(key, found);
            reads.push((key, found.map(|(_, value)| value)));
        }
        Ok(Told { step: Step { reads, ..Step::default() }, stamp: None })
    }

    fn learn(&mut self, key: Key, found: Option<(Stamp, Value)>) {
        match found {
            Some(found) => self.known.insert(key, found),
            None => self.known.remove(&key),
        };
    }
}

/// Two keys of a pair share a prefix.
fn name(key: Key) -> Bytes {
    format!("{}/{}", key / 2, key % 2).into()
}

fn parse(value: &Bytes) -> Result<Value, String> {
    let text = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| format!("a value that nobody wrote: {value:?}"))
}

fn read(value: &Bytes) -> Result<Value, ClientError> {
    parse(value).map_err(|what| ClientError::Unexpected { from: "a read".into(), what })
}
