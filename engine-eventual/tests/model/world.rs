//! Nodes, disks, clocks and a network in one thread, all drawn from a seed.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use duet_engine_eventual::{
    Change, Clock, Config, Cx, Effects, Envelope, Input, Members, Persisting, Replica, Start, Ticket,
};
use duet_proto::{
    Answer, Body, Boot, ClockFault, Epoch, Error, Hlc, HlcState, Mutation, NamespaceId, NodeId, Op, Outcome, Record,
    Stamp, Token,
};
use duet_store::{Edit, Family, Snapshot, Store, StoreError, layout, memory::MemoryStore};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(crate) const SPACE: NamespaceId = NamespaceId(7);
pub(crate) const EPOCH: Epoch = Epoch(1);
const START_MS: u64 = 1_000_000;
const DRIFT_MS: u64 = 500;

/// What went wrong, in words.
pub(crate) type Violation = String;

/// The node's hybrid clock; of what it has observed, a crash leaves nothing.
pub(crate) struct SimClock {
    hlc: RefCell<HlcState>,
    given: Cell<Hlc>,
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
    clock: SimClock,
    skew_ms: u64,
    inbox: Vec<Input>,
    in_flight: Option<(u64, Persisting, Vec<Stamp>)>,
    told: bool,
    up_at: u64,
    /// The disk is lost.
    pub(crate) wiped: bool,
    /// The latest durable stamp of each key that was ever seen here.
    pub(crate) seen: BTreeMap<Bytes, Stamp>,
    /// The keys that hold something durably.
    pub(crate) present: BTreeSet<Bytes>,
}

/// A write that somebody made, and that no crash has undone.
pub(crate) struct Write {
    pub(crate) key: Bytes,
    pub(crate) body: Body,
    pub(crate) acknowledged: bool,
}

/// A client with a session.
#[derive(Default)]
struct Session {
    token: Option<Token>,
    seen: BTreeMap<Bytes, Stamp>,
    busy: Option<(Ticket, NodeId, Bytes)>,
}

/// How much goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) nodes: u32,
    pub(crate) copies: u32,
    keys: u8,
    loss: f64,
    duplicates: f64,
    long_delays: f64,
    crashes: f64,
    partitions: f64,
    changes: f64,
    deletes: f64,
}

impl Plan {
    fn draw(rng: &mut ChaCha8Rng) -> Plan {
        let nodes = rng.random_range(3..=5);
        let mut some = |most: f64| if rng.random_bool(0.3) { 0.0 } else { rng.random_range(0.0..most) };
        Plan {
            loss: some(0.2),
            duplicates: some(0.2),
            long_delays: some(0.15),
            crashes: some(0.03),
            partitions: some(0.05),
            changes: some(0.03),
            rounds: 320,
            nodes,
            copies: rng.random_range(1..=nodes.min(3)),
            keys: rng.random_range(2..=10),
            deletes: rng.random_range(0.1..0.6),
        }
    }
}

pub(crate) struct World {
    pub(crate) rng: ChaCha8Rng,
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) writes: BTreeMap<Stamp, Write>,
    pub(crate) members: Members,
    change: Option<Change>,
    next_node: u32,
    /// In order of arrival and a count.
    network: BTreeMap<(u64, u64), (NodeId, NodeId, Bytes)>,
    sent: u64,
    pub(crate) bytes: u64,
    cut: BTreeSet<(NodeId, NodeId)>,
    sessions: Vec<Session>,
    tickets: u64,
    wipes: u32,
    calm: bool,
    /// Too many records to look at all of them after each step.
    pub(crate) unchecked: bool,
    /// Answers to clients without a session.
    pub(crate) answers: Vec<Result<Answer, Error>>,
    configure: fn(&mut Config),
}

impl World {
    pub(crate) fn new(seed: u64, configure: fn(&mut Config)) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let plan = Plan::draw(&mut rng);
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

    /// A world in which nothing happens by itself.
    pub(crate) fn scripted(nodes: u32, copies: u32, configure: fn(&mut Config)) -> World {
        let mut world = World::new(0, |_: &mut Config| {});
        let ids: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        (world.calm, world.configure, world.plan.copies) = (true, configure, copies);
        world.members = Members { version: 1, nodes: ids.clone(), copies, ..Members::default() };
        world.nodes.clear();
        for id in ids {
            world.add(id, Start::Founder, world.members.clone());
        }
        world
    }

    /// Time passes.
    pub(crate) fn rounds(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.round().unwrap();
        }
    }

    /// Time passes until two nodes hold the same.
    pub(crate) fn until_equal(&mut self, a: u32, b: u32) {
        self.rounds(20);
        let until = self.now + 600_000;
        while self.replica(a).status().summary != self.replica(b).status().summary {
            assert!(self.now < until, "{:?} and {:?}", self.replica(a).status(), self.replica(b).status());
            self.rounds(1);
        }
    }

    /// A write of a client without a session.
    pub(crate) fn write(&mut self, id: u32, mutation: Mutation) {
        self.tickets += 1;
        let (ticket, deadline_ms) = (Ticket(self.tickets), self.now + 400);
        self.give(id, Input::Write { ticket, op: Op::Write { mutation }, token: None, deadline_ms });
    }

    pub(crate) fn give(&mut self, id: u32, input: Input) {
        self.nodes.get_mut(&NodeId(id)).unwrap().inbox.push(input);
    }

    pub(crate) fn replica(&self, id: u32) -> &Replica {
        self.nodes[&NodeId(id)].replica.as_ref().unwrap()
    }

    /// What a node durably holds under a key.
    pub(crate) fn holds(&self, id: u32, key: &str) -> Option<Record> {
        held(&*self.nodes[&NodeId(id)].durable, &Bytes::copy_from_slice(key.as_bytes()))
    }

    /// Cuts, or heals, a link, both ways.
    pub(crate) fn link(&mut self, a: u32, b: u32, up: bool) {
        for link in [(NodeId(a), NodeId(b)), (NodeId(b), NodeId(a))] {
            if up {
                self.cut.remove(&link)
            } else {
                self.cut.insert(link)
            };
        }
    }

    /// Sets a node's clock that far from the others'.
    pub(crate) fn skew(&mut self, id: u32, skew_ms: u64) {
        self.nodes.get_mut(&NodeId(id)).unwrap().skew_ms = skew_ms;
    }

    pub(crate) fn add(&mut self, id: NodeId, start: Start, members: Members) {
        let mut config = Config::new(id, Boot(1));
        (config.report_ms, config.idle_report_ms, config.stall_ms) = (40, 400, 150);
        (config.chunk_bytes, config.forget_rows) = (120, 4);
        (self.configure)(&mut config);
        let (replica, batch) = Replica::create(config.clone(), SPACE, EPOCH, start, members).unwrap();
        let store = MemoryStore::new();
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
            told: false,
            up_at: 0,
            wiped: false,
            seen: BTreeMap::new(),
            present: BTreeSet::new(),
        };
        self.nodes.insert(id, node);
    }

    /// The faults, then quiet, until everything that must be so is so.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..self.plan.rounds {
            self.mischief();
            self.clients()?;
            self.round()?;
        }
        self.settle(60_000)
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
                self.round()?;
            }
            match self.converged() {
                Ok(()) => return self.nothing_lost(),
                Err(lacking) => why = lacking,
            }
        }
        Err(format!("not converged: {why}"))
    }

    fn chance(&mut self, p: f64) -> bool {
        self.rng.random_bool(p)
    }

    fn pick(&mut self) -> NodeId {
        let alive: Vec<NodeId> = self.nodes.iter().filter(|(_, n)| !n.wiped).map(|(id, _)| *id).collect();
        alive[self.rng.random_range(0..alive.len())]
    }

    fn mischief(&mut self) {
        if self.chance(self.plan.crashes) {
            let victim = self.pick();
            self.crash(victim);
        }
        if self.chance(self.plan.partitions) {
            let (a, b) = (self.pick(), self.pick());
            self.cut.insert((a, b));
            if self.chance(0.5) {
                self.cut.insert((b, a));
            }
        }
        if self.chance(0.02) {
            let heal: Vec<_> = self.cut.iter().copied().filter(|_| self.rng.random_bool(0.6)).collect();
            heal.iter().for_each(|link| {
                self.cut.remove(link);
            });
        }
        // A disk is lost for ever, but fewer than every acknowledged write lies on.
        if self.change.is_none() && self.wipes + 1 < self.plan.copies && self.plan.changes > 0.0 && self.chance(0.004)
        {
            let victim = self.pick();
            self.crash(victim);
            self.nodes.get_mut(&victim).unwrap().wiped = true;
            self.wipes += 1;
        }
        if self.change.is_none() && self.chance(self.plan.changes) {
            self.begin_change();
        }
        self.coordinate();
    }

    pub(crate) fn crash(&mut self, id: NodeId) {
        let (seed, pause) = (self.rng.random(), self.rng.random_range(10..800));
        let node = self.nodes.get_mut(&id).unwrap();
        if node.replica.take().is_none() {
            return;
        }
        node.store = node.store.crash(seed);
        node.inbox.clear();
        node.up_at = self.now + pause;
        let unsure = node.in_flight.take().map_or(Vec::new(), |(_, _, stamps)| stamps);
        let opened = Replica::open(node.config.clone(), SPACE, EPOCH, &*node.store).unwrap().unwrap();
        let held = opened.status().frontier.get(id);
        for stamp in unsure {
            if stamp.hlc > held {
                self.writes.remove(&stamp);
            }
        }
        for session in &mut self.sessions {
            session.busy.take_if(|(_, at, _)| *at == id);
        }
    }

    fn restart(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.config.boot = Boot(node.config.boot.0 + 1);
        // A restart finds what is in the store; it may be more than was synced, and becomes durable now.
        node.store.sync().unwrap();
        node.durable = node.store.snapshot();
        node.clock.hlc.replace(HlcState::above(node.clock.given.get()));
        node.replica = Replica::open(node.config.clone(), SPACE, EPOCH, &*node.store).unwrap();
    }

    fn begin_change(&mut self) {
        let before = self.members.nodes.clone();
        let mut after: BTreeSet<NodeId> = before.iter().copied().filter(|id| !self.nodes[id].wiped).collect();
        if after.len() == before.len() && after.len() > 2 && self.chance(0.5) {
            let out = *after.iter().nth(self.rng.random_range(0..after.len())).unwrap();
            after.remove(&out);
        }
        let mut joining = None;
        if after.len() < 6 && (after.len() < 3 || self.chance(0.6)) {
            let id = NodeId(self.next_node);
            self.next_node += 1;
            after.insert(id);
            joining = Some(id);
        }
        let copies = self.plan.copies.min(after.len() as u32);
        let leaving = before.difference(&after).copied().collect();
        self.change = Some(Change { before, copies_before: self.members.copies, moved: BTreeMap::new() });
        let version = self.members.version + 1;
        self.members = Members { version, nodes: after, copies, leaving, keep_tombstones: false };
        if let Some(id) = joining {
            self.add(id, Start::Joining, self.members.clone());
        }
    }

    /// Brings the members to the nodes, and a change to its end.
    fn coordinate(&mut self) {
        let wiped = self.members.nodes.iter().any(|id| self.nodes[id].wiped);
        if self.change.is_none() && wiped && self.calm {
            self.begin_change();
        }
        let members = self.members.clone();
        let slowly = !self.calm;
        for (id, node) in &mut self.nodes {
            let late = slowly && !self.rng.random_bool(0.05);
            if let Some(replica) = node.replica.as_ref().filter(|_| members.hears(*id) && !late)
                && replica.status().version < members.version
            {
                node.inbox.push(Input::Members(members.clone()));
            }
        }
        let Some(change) = &mut self.change else { return };
        let mut held = BTreeMap::new();
        for (id, node) in &self.nodes {
            let Some(status) = node.replica.as_ref().map(Replica::status) else { continue };
            if status.version == members.version {
                change.moved.insert(*id, status.moved);
                if status.whole {
                    held.insert(*id, status.frontier);
                }
            }
        }
        if change.complete(&members.nodes, &held) {
            self.change = None;
            self.members.version += 1;
            self.members.leaving.clear();
        }
    }

    fn clients(&mut self) -> Result<(), Violation> {
        for at in 0..self.sessions.len() {
            if self.sessions[at].busy.is_some() || !self.chance(0.25) {
                continue;
            }
            let key = Bytes::from(vec![b'k', self.rng.random_range(0..self.plan.keys)]);
            let id = self.pick();
            let token = self.sessions[at].token.clone();
            if self.chance(0.4) {
                self.read(at, id, &key)?;
                continue;
            }
            self.tickets += 1;
            let (ticket, deadline_ms) = (Ticket(self.tickets), self.now + 400);
            let mutation = if self.chance(self.plan.deletes) {
                Mutation::delete(key.clone())
            } else {
                Mutation::put(key.clone(), format!("v{}", self.tickets))
            };
            let node = self.nodes.get_mut(&id).unwrap();
            if node.replica.is_some() {
                node.inbox.push(Input::Write { ticket, op: Op::Write { mutation }, token, deadline_ms });
                self.sessions[at].busy = Some((ticket, id, key));
            }
        }
        Ok(())
    }

    fn read(&mut self, at: usize, id: NodeId, key: &Bytes) -> Result<(), Violation> {
        let node = &self.nodes[&id];
        let Some(replica) = &node.replica else { return Ok(()) };
        let session = &mut self.sessions[at];
        let op = Op::Get { key: key.clone() };
        let Ok(answer) = replica.read(&*node.durable, &op, session.token.as_ref()) else { return Ok(()) };
        session.token = answer.meta.token;
        let held = held(&*node.durable, key);
        if let Some(seen) = session.seen.get(key) {
            let deleted = held.is_none() && superseded_by_delete(&self.writes, key, *seen);
            if !deleted && held.as_ref().is_none_or(|record| record.stamp < *seen) {
                return Err(format!("a session has seen {seen} and reads {held:?} of {key:?} on {id}"));
            }
        }
        if let Some(record) = held {
            session.seen.insert(key.clone(), record.stamp);
        }
        Ok(())
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
        node.told = early.is_some();
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
        let told = std::mem::take(&mut node.told);
        if changed && !self.unchecked {
            self.check(id)?;
        }
        if told { Ok(()) } else { self.carry_out(id, effects) }
    }

    fn carry_out(&mut self, id: NodeId, effects: Effects) -> Result<(), Violation> {
        for (to, envelope) in effects.messages {
            let bytes = envelope.encode().map_err(|e| e.to_string())?;
            to.into_iter().for_each(|to| self.transmit(id, to, &bytes));
        }
        for (ticket, answer) in effects.answers {
            let Some(session) = self.sessions.iter_mut().find(|s| s.busy.as_ref().is_some_and(|b| b.0 == ticket))
            else {
                self.answers.push(answer);
                continue;
            };
            let (_, _, key) = session.busy.take().unwrap();
            let Ok(answer) = answer else { continue };
            let Outcome::Written(stamp) = answer.outcome else { return Err(format!("{answer:?} to a write")) };
            let before = session.token.as_ref().and_then(|t| t.seen.iter().map(|(_, hlc)| *hlc).max());
            if before.is_some_and(|before| stamp.hlc <= before) {
                return Err(format!("the write {stamp} is not above its token"));
            }
            session.token = answer.meta.token;
            session.seen.insert(key, stamp);
            let copies = self.nodes[&id].replica.as_ref().map_or(1, |_| self.copies_of(id));
            let holders = self.nodes.values().filter(|n| {
                let held = Replica::open(n.config.clone(), SPACE, EPOCH, &*n.durable).unwrap().unwrap();
                !n.wiped && held.status().frontier.get(stamp.node) >= stamp.hlc
            });
            let holders = holders.count() as u32;
            let Some(write) = self.writes.get_mut(&stamp) else {
                return Err(format!("{stamp} was acknowledged and is lost"));
            };
            write.acknowledged = true;
            if holders < copies.saturating_sub(self.wipes) {
                return Err(format!("{stamp} was acknowledged with {holders} of {copies} copies"));
            }
        }
        Ok(())
    }

    fn copies_of(&self, _: NodeId) -> u32 {
        self.plan.copies.min(self.members.copies).min(self.members.nodes.len() as u32)
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
