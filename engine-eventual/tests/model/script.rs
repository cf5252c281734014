//! Worlds in which nothing happens by itself.

use std::collections::BTreeSet;

use bytes::Bytes;
use duet_engine_eventual::{Config, Input, Members, Replica, Start, Ticket};
use duet_proto::{Mutation, NodeId, Op, Record};

use crate::{
    faults::Plan,
    world::{World, held},
};

impl World {
    /// A world in which nothing happens by itself.
    pub(crate) fn scripted(nodes: u32, copies: u32, configure: fn(&mut Config)) -> World {
        let mut world = World::new(0, Plan::draw, |_: &mut Config| {});
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
}
