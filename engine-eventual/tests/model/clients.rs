//! Clients with sessions: what they do, and what they must see.

use std::collections::BTreeMap;

use bytes::Bytes;
use duet_engine_eventual::{Input, Replica, Ticket};
use duet_proto::{Answer, Error, Mutation, NodeId, Op, Outcome, Stamp, Token};
use rand::Rng;

use crate::world::{EPOCH, SPACE, Violation, World, held, superseded_by_delete};

/// A client with a session.
#[derive(Default)]
pub(crate) struct Session {
    pub(crate) token: Option<Token>,
    pub(crate) seen: BTreeMap<Bytes, Stamp>,
    pub(crate) busy: Option<(Ticket, NodeId, Bytes)>,
}

impl World {
    pub(crate) fn clients(&mut self) -> Result<(), Violation> {
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

    /// A replica has answered a write.
    pub(crate) fn answered(&mut self, ticket: Ticket, answer: Result<Answer, Error>) -> Result<(), Violation> {
        let Some(session) = self.sessions.iter_mut().find(|s| s.busy.as_ref().is_some_and(|b| b.0 == ticket)) else {
            self.answers.push(answer);
            return Ok(());
        };
        let (_, _, key) = session.busy.take().unwrap();
        let Ok(answer) = answer else { return Ok(()) };
        let Outcome::Written(stamp) = answer.outcome else { return Err(format!("{answer:?} to a write")) };
        let before = session.token.as_ref().and_then(|t| t.seen.iter().map(|(_, hlc)| *hlc).max());
        if before.is_some_and(|before| stamp.hlc <= before) {
            return Err(format!("the write {stamp} is not above its token"));
        }
        session.token = answer.meta.token;
        session.seen.insert(key, stamp);
        let copies = self.plan.copies.min(self.members.copies).min(self.members.nodes.len() as u32);
        let holders = self.nodes.values().filter(|n| {
            let held = Replica::open(n.config.clone(), SPACE, EPOCH, &*n.durable).unwrap().unwrap();
            !n.wiped && held.status().frontier.get(stamp.node) >= stamp.hlc
        });
        let holders = holders.count() as u32;
        let Some(write) = self.writes.get_mut(&stamp) else {
            return Err(format!("{stamp} was acknowledged and is lost"));
        };
        write.acknowledged = true;
        if self.switch.target().is_some_and(|target| !target.includes(stamp)) {
            return Err(format!("{stamp} was acknowledged and is not in the base"));
        }
        if holders < copies.saturating_sub(self.wipes) {
            return Err(format!("{stamp} was acknowledged with {holders} of {copies} copies"));
        }
        Ok(())
    }
}
