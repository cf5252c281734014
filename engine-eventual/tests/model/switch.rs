//! The end of an epoch: attempts, fences, members that are left out, and views of the catalog that are older than what a
//! member has done. What the catalog's entry would say is one value here; every step of it is taken at once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use duet_engine_eventual::{Base, Frontier, Input, Order, Refused, Replica, Ticket};
use duet_proto::{NodeId, Record, Stamp};
use duet_store::{Family, layout};
use rand::Rng;

use crate::{
    checks::records,
    world::{EPOCH, SPACE, Violation, World},
};

/// How long an attempt may last, in milliseconds.
const BOUND_MS: u64 = 900;

/// What the catalog says of the switch.
#[derive(Default)]
pub(crate) struct Switch {
    /// The attempt that is under way, if one is; else the last that was given up.
    attempt: u64,
    begun: Option<u64>,
    sealed: BTreeMap<NodeId, Frontier>,
    /// Once it is frozen.
    base: BTreeSet<NodeId>,
    held: BTreeMap<NodeId, (Frontier, Base)>,
    /// The next epoch has begun.
    over: bool,
}

/// What a node does at the end of the epoch, as its router would know it.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// The fence that is durable, and what was held then, unless it was asked to converge since.
    sealed: Option<(u64, Option<(Frontier, duet_engine_eventual::message::Summary)>)>,
    /// The latest attempt whose fence it was told to lift.
    lifted: u64,
    /// The last piece of its stash that was asked for, and where it began.
    asked: Option<Ticket>,
    from: Option<Stamp>,
    stashed: bool,
}

impl Ending {
    /// What a crash leaves of it.
    pub(crate) fn crash(&mut self) {
        (self.asked, self.from, self.stashed) = (None, None, false);
    }
}

impl Switch {
    /// What the next epoch begins with, once that is decided.
    pub(crate) fn target(&self) -> Option<Frontier> {
        let mut target = Frontier::default();
        self.base.iter().for_each(|node| target.join(&self.sealed[node]));
        (!self.base.is_empty()).then_some(target)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }
}

impl World {
    /// How many members must have sealed (rule 1 of `specs/switch.md`).
    fn enough(&self) -> usize {
        let n = self.members.nodes.len();
        (n + 1).saturating_sub(self.members.copies as usize).max(n / 2 + 1)
    }

    fn order(&mut self, id: NodeId, order: Order) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.nodes.get_mut(&id).unwrap().inbox.push(Input::Order(ticket, order));
        ticket
    }

    /// The switch goes on, or begins, or is given up.
    pub(crate) fn switch(&mut self) -> Result<(), Violation> {
        if let Some(begun) = self.switch.begun {
            if !self.switch.over && (self.calm || self.now > begun + BOUND_MS) {
                self.give_up();
            }
        } else if !self.calm && self.chance(self.plan.switches) {
            let attempt = self.switch.attempt + 1;
            self.switch = Switch { attempt, begun: Some(self.now), ..Switch::default() };
        }
        let up: Vec<NodeId> = self.nodes.iter().filter(|(_, n)| n.replica.is_some()).map(|(id, _)| *id).collect();
        for id in up {
            if !self.chance(0.25) {
                continue;
            }
            if !self.calm && self.chance(0.1) {
                self.stale_view(id);
            } else if self.switch.begun.is_some() {
                self.take_part(id)?;
            } else if self.fence_of(id).is_some() {
                self.lift(id, self.switch.attempt);
            }
        }
        Ok(())
    }

    fn give_up(&mut self) {
        self.switch = Switch { attempt: self.switch.attempt, ..Switch::default() };
    }

    fn fence_of(&self, id: NodeId) -> Option<u64> {
        self.nodes[&id].replica.as_ref()?.status().fence
    }

    fn lift(&mut self, id: NodeId, attempt: u64) {
        let ending = &mut self.nodes.get_mut(&id).unwrap().ending;
        ending.lifted = ending.lifted.max(attempt);
        self.order(id, Order::Lift { attempt });
    }

    /// A node acts on what the catalog said some time ago.
    fn stale_view(&mut self, id: NodeId) {
        let under_way = u64::from(self.switch.begun.is_some());
        let given_up = self.switch.attempt - under_way.min(self.switch.attempt);
        if given_up == 0 {
            return;
        }
        let attempt = self.rng.random_range(1..=given_up);
        if self.chance(0.5) {
            self.lift(id, attempt);
        } else {
            self.order(id, Order::Fence { attempt });
        }
    }

    /// A node does what the switch asks of it, and says how far it is.
    fn take_part(&mut self, id: NodeId) -> Result<(), Violation> {
        let (attempt, base) = (self.switch.attempt, self.switch.base.clone());
        let node = &self.nodes[&id];
        let Some(status) = node.replica.as_ref().map(Replica::status) else { return Ok(()) };
        if status.fence != Some(attempt) {
            self.order(id, Order::Fence { attempt });
        } else if base.is_empty() {
            self.switch.sealed.entry(id).or_insert(status.frontier);
            self.sealed_enough()?;
        } else if !base.contains(&id) {
            if self.switch.over {
                self.put_aside(id);
            }
        } else if status.converged == Some(attempt) {
            let came_to = node.replica.as_ref().unwrap().base(&*node.durable).unwrap();
            self.switch.held.insert(id, (status.frontier, came_to));
            self.all_equal()?;
        } else {
            let ending = &mut self.nodes.get_mut(&id).unwrap().ending;
            ending.sealed = Some((attempt, None));
            self.order(id, Order::Converge { attempt, base });
        }
        Ok(())
    }

    /// Whichever members make up the base, each acknowledged write is one of theirs.
    fn sealed_enough(&mut self) -> Result<(), Violation> {
        let (sealed, enough) = (&self.switch.sealed, self.enough());
        for (stamp, _) in self.writes.iter().filter(|(stamp, write)| stamp.epoch == EPOCH && write.acknowledged) {
            let without = sealed.values().filter(|frontier| !frontier.includes(*stamp)).count();
            if without >= enough {
                return Err(format!("{stamp} was acknowledged and is in none of {without} sealed frontiers"));
            }
        }
        if sealed.len() >= enough && self.chance(0.3) {
            self.switch.base = self.switch.sealed.keys().copied().collect();
        }
        Ok(())
    }

    /// Those who have converged hold the same: what was sealed, and nothing else.
    fn all_equal(&mut self) -> Result<(), Violation> {
        let Some(target) = self.switch.target() else { return Ok(()) };
        let mut held = self.switch.held.iter();
        let Some((first, (_, base))) = held.next() else { return Ok(()) };
        let equal = |a: &Base, b: &Base| (a.last, a.digest, a.keys) == (b.last, b.digest, b.keys);
        for (node, (frontier, theirs)) in &self.switch.held {
            if *frontier != target {
                return Err(format!("{node} has converged on {frontier}, the base is {target}"));
            }
            if !equal(base, theirs) {
                return Err(format!("{first} has converged on {base:?}, {node} on {theirs:?}"));
            }
        }
        if self.switch.held.len() == self.switch.base.len() && !self.switch.over {
            match self.chance(0.5) {
                true => self.switch.over = true,
                false => self.give_up(),
            }
        }
        Ok(())
    }

    /// A member outside the base puts aside what the base lacks.
    fn put_aside(&mut self, id: NodeId) {
        let Some(beyond) = self.switch.target() else { return };
        let ending = &self.nodes[&id].ending;
        if ending.asked.is_some() || ending.stashed {
            return;
        }
        let from = ending.from;
        let asked = self.order(id, Order::Stash { beyond, from });
        self.nodes.get_mut(&id).unwrap().ending.asked = Some(asked);
    }

    /// A replica has carried out an order, or refused it.
    pub(crate) fn ordered(&mut self, id: NodeId, ticket: Ticket, result: Result<Option<Stamp>, Refused>) {
        let ending = &mut self.nodes.get_mut(&id).unwrap().ending;
        if ending.asked == Some(ticket) {
            ending.asked = None;
            ending.from = result.unwrap();
            ending.stashed = ending.from.is_none();
        }
    }

    /// A fence that is durable stays until it is lifted or replaced, and nothing moves behind it.
    pub(crate) fn check_fence(&mut self, id: NodeId) -> Result<(), Violation> {
        let node = self.nodes.get_mut(&id).unwrap();
        let status = node.replica.as_ref().unwrap().status();
        let now = (status.frontier, status.summary);
        match &node.ending.sealed {
            // It may have been lifted and set again, by an old view, within one step.
            Some((attempt, then)) if status.fence == Some(*attempt) && node.ending.lifted < *attempt => {
                if then.as_ref().is_some_and(|then| *then != now) {
                    return Err(format!("node {id} is fenced for {attempt}, and went from {then:?} to {now:?}"));
                }
                return Ok(());
            }
            Some((attempt, _))
                if status.fence.is_none_or(|fence| fence < *attempt) && node.ending.lifted < *attempt =>
            {
                return Err(format!("node {id}: the fence of {attempt} is gone, now it is {:?}", status.fence));
            }
            _ => {}
        }
        node.ending.sealed = status.fence.map(|fence| (fence, Some(now)));
        Ok(())
    }

    /// The next epoch has begun: members outside the base put aside all that it began without, whatever happens, and
    /// nobody keeps a tombstone.
    pub(crate) fn finish_epoch(&mut self) -> Result<(), Violation> {
        let (target, base) = (self.switch.target().unwrap(), self.switch.base.clone());
        let (until, later) = (self.now + 60_000, self.now + 2000);
        let left_out =
            |world: &World| -> Vec<NodeId> { world.nodes.keys().copied().filter(|id| !base.contains(id)).collect() };
        while !left_out(self).iter().all(|id| self.nodes[id].ending.stashed && self.nodes[id].replica.is_some()) {
            if self.now < later {
                self.mischief();
            }
            self.switch()?;
            self.round()?;
            if self.now > until {
                let endings: Vec<_> = left_out(self).into_iter().map(|id| (id, &self.nodes[&id].ending)).collect();
                return Err(format!("what is late was not put aside: {endings:?}"));
            }
        }
        for id in left_out(self) {
            let node = &self.nodes[&id];
            let beyond = |stamp: Stamp| stamp.epoch == EPOCH && !target.includes(stamp);
            let late = records(&*node.durable).into_iter().filter(|(_, record)| beyond(record.stamp));
            let (late, stash) = (late.collect::<BTreeMap<Bytes, Record>>(), stash(&*node.durable));
            if late != stash {
                return Err(format!("node {id} holds {late:?} beyond {target}, and has put aside {stash:?}"));
            }
        }
        self.calm = true;
        for id in base {
            self.drop_tombstones(id)?;
        }
        Ok(())
    }

    fn drop_tombstones(&mut self, id: NodeId) -> Result<(), Violation> {
        for _ in 0..2000 {
            let Some(replica) = &self.nodes[&id].replica else {
                self.round()?;
                continue;
            };
            if replica.status().summary.tombstones == 0 {
                return Ok(());
            }
            self.order(id, Order::DropTombstones { from: None });
            self.round()?;
        }
        Err(format!("node {id} keeps its tombstones"))
    }
}

/// What a disk holds of late writes.
fn stash(view: &dyn duet_store::View) -> BTreeMap<Bytes, Record> {
    let (from, to) = layout::prefix_range(layout::namespace_key(SPACE, 0x30, &[]));
    let rows = view.scan(Family::Namespace, &from, Some(&to)).unwrap().map(|row| {
        let (row, value) = row.unwrap();
        postcard::from_bytes(&layout::unguard(&row, &value).unwrap()).unwrap()
    });
    rows.collect()
}
