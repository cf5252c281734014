//! Nodes, disks, clocks and a network in one thread, all drawn from a seed.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use duet_engine_eventual::{
    Base, Change, Clock, Config, Cx, Effects, Envelope, Input, Members, Persisting, Replica, Start,
};
use duet_proto::{Answer, Body, Boot, ClockFault, Epoch, Error, Hlc, HlcState, NamespaceId, NodeId, Record, Stamp};
use duet_store::{Batch, Edit, Family, Snapshot, Store, StoreError, layout, memory::MemoryStore};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    clients::Session,
    faults::Plan,
    switch::{Ending, Switch},
};

pub(crate) const SPACE: NamespaceId = NamespaceId(7);
pub(crate) const EPOCH: Epoch = Epoch(1);
const START_MS: u64 = 1_000_000;
const DRIFT_MS: u64 = 500;

/// What went wrong, in words.
pub(crate) type Violation = String;

/// The node's hybrid clock; of what it has observed, a crash leaves nothing.
pub(crate) struct SimClock {
    pub(crate) hlc: RefCell<HlcState>,
    pub(crate) given: Cell<Hlc>,
    wall: Cell<u64>,
}

impl Clock for SimClock {
    fn tick(&self) -> Result<Hlc, StoreError> {
        let time = self.hlc.borrow_mut().tick(self.wall.get());
        self.given.set(time);
        Ok(time)
    }

    fn observe(&self, remote: Hlc) -> Result<(), ClockFault> {
        self.hlc.borrow_mut().observe(remote, self.wall.get(), DRIFT_MS)
    }

    fn last(&self) -> Hlc {
        self.hlc.borrow().last()
    }

    fn wall_ms(&self) -> u64 {
        self.wall.get()
    }

    fn drift_ms(&self) -> u64 {
        DRIFT_MS
    }
}

/// One node: its disk outlives its replica.
pub(crate) struct Node {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) durable: Arc<dyn Snapshot>,
    pub(crate) replica: Option<Replica>,
    pub(crate) config: Config,
    pub(crate) clock: SimClock,
    pub(crate) skew_ms: u64,
    pub(crate) inbox: Vec<Input>,
    pub(crate) in_flight: Option<(u64, Persisting, Vec<Stamp>)>,
    pub(crate) up_at: u64,
    /// The disk is lost.
    pub(crate) wiped: bool,
    /// The latest durable stamp of each key that was ever seen here.
    pub(crate) seen: BTreeMap<Bytes, Stamp>,
    /// The keys that hold something durably.
    pub(crate) present: BTreeSet<Bytes>,
    pub(crate) ending: Ending,
}

/// A write that somebody made, and that no crash has undone.
pub(crate) struct Write {
    pub(crate) key: Bytes,
    pub(crate) body: Body,
    pub(crate) acknowledged: bool,
}

pub(crate) struct World {
    pub(crate) rng: ChaCha8Rng,
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) writes: BTreeMap<Stamp, Write>,
    pub(crate) members: Members,
    pub(crate) change: Option<Change>,
    pub(crate) switch: Switch,
    pub(crate) next_node: u32,
    /// In order of arrival and a count.
    network: BTreeMap<(u64, u64), (NodeId, NodeId, Bytes)>,
    sent: u64,
    pub(crate) bytes: u64,
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) tickets: u64,
    pub(crate) wipes: u32,
    pub(crate) calm: bool,
    /// Too many records to look at all of them after each step.
    pub(crate) unchecked: bool,
    /// Answers to clients without a session.
    pub(crate) answers: Vec<Result<Answer, Error>>,
    pub(crate) configure: fn(&mut Config),
}

impl World {
    pub(crate) fn new(seed: u64, draw: fn(&mut ChaCha8Rng) -> Plan, configure: fn(&mut Config)) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let plan = draw(&mut rng);
        let nodes: BTreeSet<NodeId> = (1..=plan.nodes).map(NodeId).collect();
        let members = Members { version: 1, nodes: nodes.clone(), copies: plan.copies, ..Members::default() };
        let mut world = World {
            rng,
            plan,
            now: 0,
            nodes: BTreeMap::new(),
            writes: BTreeMap::new(),
            members: members.clone(),
            change: None,
            switch: Switch::default(),
            next_node: plan.nodes + 1,
            network: BTreeMap::new(),
            sent: 0,
            bytes: 0,
            cut: BTreeSet::new(),
            sessions: (0..3).map(|_| Session::default()).collect(),
            tickets: 0,
            wipes: 0,
            calm: false,
            unchecked: false,
            answers: Vec::new(),
            configure,
        };
        for id in nodes {
            world.add(id, Start::Founder, members.clone());
        }
        world
    }

    pub(crate) fn add(&mut self, id: NodeId, start: Start, members: Members) {
        let mut config = Config::new(id, Boot(1));
        (config.report_ms, config.apart_report_ms, config.idle_report_ms, config.stall_ms) = (40, 300, 400, 150);
        (config.chunk_bytes, config.forget_rows, config.clear_rows) = (120, 4, 5);
        (self.configure)(&mut config);
        let store = MemoryStore::new();
        let base = (self.plan.heirs && start == Start::Founder).then(|| self.inherit(&store));
        let (replica, batch) = Replica::create(config.clone(), SPACE, EPOCH, start, members, base).unwrap();
        store.write(batch).unwrap();
        store.sync().unwrap();
        let skew_ms = self.rng.random_range(0..200);
        let clock = SimClock {
            hlc: RefCell::default(),
            given: Cell::default(),
            wall: Cell::new(START_MS + self.now + skew_ms),
        };
        let node = Node {
            durable: store.snapshot(),
            store,
            replica: Some(replica),
            config,
            clock,
            skew_ms,
            inbox: Vec::new(),
            in_flight: None,
            up_at: 0,
            wiped: false,
            seen: BTreeMap::new(),
            present: BTreeSet::new(),
            ending: Ending::default(),
        };
        self.nodes.insert(id, node);
    }

    /// Puts the records of an earlier epoch on a disk. Their times are anything.
    fn inherit(&mut self, store: &MemoryStore) -> Base {
        let (mut base, mut batch) = (Base::default(), Batch::new());
        for at in 0..self.plan.keys {
            let (key, node) = (Bytes::from(vec![b'k', at]), NodeId(u32::from(at) % 3 + 1));
            let millis = if at % 2 == 0 { 1 } else { 100 * START_MS };
            let hlc = Hlc::from_millis(millis + u64::from(at));
            let stamp = Stamp { epoch: Epoch(EPOCH.0 - 1), hlc, node };
            let deleted = at % 3 == 2;
            let record = if deleted { Record::tombstone(stamp) } else { Record::value(stamp, "old".into()) };
            base.digest.replace(&key, None, Some(&record));
            *(if deleted { &mut base.tombstones } else { &mut base.keys }) += 1;
            base.last = base.last.max(stamp);
            batch.put(Family::Data, layout::data_key(SPACE, &key), record.encode(&key));
            if deleted {
                batch.put(Family::Namespace, layout::tombstone_key(SPACE, stamp), key.clone());
            }
            self.writes.insert(stamp, Write { key, body: record.body, acknowledged: true });
        }
        store.write(batch).unwrap();
        base
    }

    /// The faults, then quiet, until everything that must be so is so.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..self.plan.rounds {
            self.mischief();
            self.clients()?;
            if self.plan.switches > 0.0 {
                self.switch()?;
            }
            self.round()?;
        }
        if self.switch.is_over() { self.finish_epoch() } else { self.settle(60_000) }
    }

    /// No more faults and no more writes: all must come to hold the same, and forget every tombstone.
    pub(crate) fn settle(&mut self, within_ms: u64) -> Result<(), Violation> {
        self.calm = true;
        self.cut.clear();
        let until = self.now + within_ms;
        let mut why = String::new();
        while self.now < until {
            for _ in 0..10 {
                self.coordinate();
                if self.plan.switches > 0.0 {
                    self.switch()?;
                }
                self.round()?;
            }
            match self.converged() {
                Ok(()) => return self.nothing_lost(),
                Err(lacking) => why = lacking,
            }
        }
        Err(format!("not converged: {why}"))
    }

    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.rng.random_bool(p)
    }

    pub(crate) fn pick(&mut self) -> NodeId {
        let alive: Vec<NodeId> = self.nodes.iter().filter(|(_, n)| !n.wiped).map(|(id, _)| *id).collect();
        alive[self.rng.random_range(0..alive.len())]
    }

    /// A moment: messages arrive, steps begin and end.
    pub(crate) fn round(&mut self) -> Result<(), Violation> {
        self.now += self.rng.random_range(1..20);
        let later = self.network.split_off(&(self.now + 1, 0));
        for (_, (from, to, bytes)) in std::mem::replace(&mut self.network, later) {
            let envelope = Envelope::decode(&bytes).map_err(|e| e.to_string())?;
            if let Some(node) = self.nodes.get_mut(&to).filter(|node| node.replica.is_some()) {
                node.inbox.push(Input::Peer(from, envelope));
            }
        }
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let node = self.nodes.get_mut(&id).unwrap();
            node.clock.wall.set(START_MS + self.now + node.skew_ms);
            if node.wiped {
                continue;
            }
            if node.replica.is_none() {
                if self.now >= node.up_at {
                    self.restart(id);
                    self.check_fence(id)?;
                }
                continue;
            }
            if node.in_flight.as_ref().is_some_and(|(due, _, _)| self.now >= *due) {
                self.persist(id)?;
            }
            self.step(id)?;
        }
        Ok(())
    }

    fn step(&mut self, id: NodeId) -> Result<(), Violation> {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = node.replica.as_mut().filter(|_| node.in_flight.is_none()) else { return Ok(()) };
        let mut inputs = std::mem::take(&mut node.inbox);
        inputs.push(Input::Tick);
        let snapshot = || node.store.snapshot();
        let cx = Cx { view: &*node.store, snapshot: &snapshot, clock: &node.clock, now_ms: self.now };
        let unpersisted = replica.step(inputs, &cx).map_err(|e| format!("node {id}: {e}"))?;
        #[cfg(feature = "planted")]
        let early = unpersisted.told_early(&node.config);
        #[cfg(not(feature = "planted"))]
        let early: Option<Effects> = None;
        let (batch, persisting) = unpersisted.take_batch();
        let mut stamps = Vec::new();
        for edit in batch.edits() {
            let Edit::Put(Family::Data, place, value) = edit else { continue };
            let (_, key) = layout::split_data_key(place).unwrap();
            let record = Record::decode(&key, value.clone()).unwrap();
            if record.stamp.node != id {
                continue;
            }
            let write = Write { key: key.clone(), body: record.body, acknowledged: false };
            match self.writes.get(&record.stamp) {
                None => {
                    self.writes.insert(record.stamp, write);
                    stamps.push(record.stamp);
                }
                Some(old) if (&old.key, &old.body) == (&write.key, &write.body) => {}
                Some(_) => return Err(format!("the stamp {} was given to two writes", record.stamp)),
            }
        }
        node.store.write(batch).unwrap();
        node.in_flight = Some((self.now + self.rng.random_range(0..30), persisting, stamps));
        if let Some(effects) = early {
            self.carry_out(id, effects)?;
        }
        Ok(())
    }

    fn persist(&mut self, id: NodeId) -> Result<(), Violation> {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some((_, persisting, _)) = node.in_flight.take() else { return Ok(()) };
        let changed = node.store.unsynced() > 0;
        node.store.sync().unwrap();
        node.durable = node.store.snapshot();
        let effects = persisting.persisted(node.replica.as_mut().unwrap());
        if changed && !self.unchecked {
            self.check(id)?;
        }
        self.check_fence(id)?;
        self.carry_out(id, effects)
    }

    fn carry_out(&mut self, id: NodeId, effects: Effects) -> Result<(), Violation> {
        for (to, envelope) in effects.messages {
            let bytes = envelope.encode().map_err(|e| e.to_string())?;
            to.into_iter().for_each(|to| self.transmit(id, to, &bytes));
        }
        for ticket in effects.fenced {
            self.sessions.iter_mut().for_each(|s| drop(s.busy.take_if(|(busy, _, _)| *busy == ticket)));
        }
        effects.orders.into_iter().for_each(|(ticket, result)| self.ordered(id, ticket, result));
        effects.answers.into_iter().try_for_each(|(ticket, answer)| self.answered(ticket, answer))
    }

    fn transmit(&mut self, from: NodeId, to: NodeId, bytes: &Bytes) {
        self.bytes += bytes.len() as u64;
        let faults = if self.calm { 0.0 } else { 1.0 };
        if self.cut.contains(&(from, to)) || self.chance(self.plan.loss * faults) {
            return;
        }
        let times = 1 + usize::from(self.chance(self.plan.duplicates * faults));
        for _ in 0..times {
            let most = if self.chance(self.plan.long_delays * faults) { 3000 } else { 25 };
            let delay = self.rng.random_range(1..most);
            self.sent += 1;
            self.network.insert((self.now + delay, self.sent), (from, to, bytes.clone()));
        }
    }
}

/// What a key holds in a view of a disk.
pub(crate) fn held(view: &dyn duet_store::View, key: &Bytes) -> Option<Record> {
    let bytes = view.get(Family::Data, &layout::data_key(SPACE, key)).unwrap()?;
    Some(Record::decode(key, bytes).unwrap())
}

/// Whether some delete of a key is at or after `stamp`.
pub(crate) fn superseded_by_delete(writes: &BTreeMap<Stamp, Write>, key: &Bytes, stamp: Stamp) -> bool {
    writes.range(stamp..).any(|(_, write)| write.key == *key && write.body == Body::Tombstone)
}
