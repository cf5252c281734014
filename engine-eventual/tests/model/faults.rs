//! What goes wrong, and how the members change meanwhile: drawn from the seed.

use std::collections::{BTreeMap, BTreeSet};

use duet_engine_eventual::{Change, Input, Members, Replica, Start};
use duet_proto::{Boot, HlcState, NodeId};
use duet_store::Store;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::world::{EPOCH, SPACE, World};

/// How much goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) nodes: u32,
    pub(crate) copies: u32,
    pub(crate) keys: u8,
    pub(crate) loss: f64,
    pub(crate) duplicates: f64,
    pub(crate) long_delays: f64,
    pub(crate) crashes: f64,
    pub(crate) partitions: f64,
    pub(crate) changes: f64,
    pub(crate) deletes: f64,
    /// How soon a node hears of a change of the members: the chance of each round.
    pub(crate) adopts: f64,
    /// How often a disk is lost, if that may be at all.
    pub(crate) wipes: f64,
    /// How often somebody tries to end the epoch.
    pub(crate) switches: f64,
    /// Whether the epoch begins with records of an earlier one.
    pub(crate) heirs: bool,
}

impl Plan {
    pub(crate) fn draw(rng: &mut ChaCha8Rng) -> Plan {
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
            adopts: 0.05,
            wipes: 0.004,
            switches: 0.0,
            heirs: false,
        }
    }

    /// Members that come and go while links are cut, and nodes that hear of it late.
    pub(crate) fn restless(rng: &mut ChaCha8Rng) -> Plan {
        let (loss, duplicates, long_delays, crashes) = (0.0, 0.0, 0.0, 0.0);
        let (partitions, changes, adopts) = (0.06, 0.1, 0.012);
        Plan {
            loss,
            duplicates,
            long_delays,
            crashes,
            partitions,
            changes,
            rounds: 320,
            nodes: 3,
            copies: 1,
            keys: rng.random_range(3..=6),
            deletes: 0.5,
            adopts,
            wipes: 0.0,
            switches: 0.0,
            heirs: false,
        }
    }

    /// The same, and disks are lost as soon as that may be.
    pub(crate) fn fleeting(rng: &mut ChaCha8Rng) -> Plan {
        let copies = rng.random_range(2..=3);
        Plan { copies, nodes: 4, partitions: 0.1, adopts: 0.03, wipes: 0.03, ..Plan::restless(rng) }
    }

    /// The epoch ends, at some attempt or other.
    pub(crate) fn switching(rng: &mut ChaCha8Rng) -> Plan {
        let heirs = rng.random_bool(0.5);
        Plan { changes: 0.0, switches: 0.03, rounds: 480, heirs, ..Plan::draw(rng) }
    }

    /// There was an epoch before.
    pub(crate) fn heirs(rng: &mut ChaCha8Rng) -> Plan {
        Plan { heirs: true, ..Plan::draw(rng) }
    }

    /// The same, and members come and go.
    pub(crate) fn restless_heirs(rng: &mut ChaCha8Rng) -> Plan {
        Plan { heirs: true, ..Plan::restless(rng) }
    }
}

impl World {
    pub(crate) fn mischief(&mut self) {
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
        if self.change.is_none()
            && self.wipes + 1 < self.plan.copies
            && self.plan.changes > 0.0
            && self.chance(self.plan.wipes)
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
        node.ending.crash();
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

    pub(crate) fn restart(&mut self, id: NodeId) {
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
    pub(crate) fn coordinate(&mut self) {
        let wiped = self.members.nodes.iter().any(|id| self.nodes[id].wiped);
        if self.change.is_none() && wiped && self.calm {
            self.begin_change();
        }
        let members = self.members.clone();
        let slowly = !self.calm;
        for (id, node) in &mut self.nodes {
            let late = slowly && !self.rng.random_bool(self.plan.adopts);
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
}
