//! Own writes: stamped, merged, pushed, and acknowledged when enough members have synced them.

use duet_proto::{Answer, Body, Change, Error, Hlc, Meta as AnswerMeta, Mode, Mutation, Op, Outcome, Stamp, Token};
use duet_store::StoreError;

use super::{Replica, Step, Ticket, read::note};
use crate::{
    Planted,
    message::{Message, Push, Written},
    rows::Standing,
    table::{Merge, ReadError},
};

/// A write that waits for copies.
#[derive(Debug)]
pub(super) struct Waiting {
    ticket: Ticket,
    stamp: Stamp,
    token: Token,
    deadline_ms: u64,
}

impl Waiting {
    fn answer(self) -> (Ticket, Answer) {
        let meta = AnswerMeta { epoch: self.stamp.epoch, position: 0, leader: None, token: Some(self.token) };
        (self.ticket, Answer { outcome: Outcome::Written(self.stamp), meta })
    }
}

impl Replica {
    /// Answers every write that waits for copies, if the next epoch begins with them: this is a member of the base, and
    /// all of that was stamped before the fence.
    pub(crate) fn acknowledge_all(&mut self) -> Vec<(Ticket, Answer)> {
        if self.converged.is_none() {
            return Vec::new();
        }
        std::mem::take(&mut self.waiting).into_values().map(Waiting::answer).collect()
    }
}

impl Step<'_> {
    pub(super) fn write(
        &mut self,
        ticket: Ticket,
        op: Op,
        token: Option<Token>,
        deadline_ms: u64,
    ) -> Result<(), StoreError> {
        // Here, where writes are stamped, so that no write comes between the frontier that was sealed and the fence.
        if self.r.meta.fence.is_some() {
            self.effects.fenced.push(ticket);
            return Ok(());
        }
        let outcome = match self.admit(op, token.as_ref()) {
            Ok(mutation) => self.stamp_and_merge(mutation)?,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(stamp) => {
                let mut token = token.filter(|t| t.epoch == self.r.epoch).unwrap_or_default();
                token.epoch = self.r.epoch;
                if !self.r.planted(Planted::TokenWithoutStamps) {
                    note(&mut token, stamp.node, stamp.hlc);
                }
                self.r.waiting.insert(stamp.hlc, Waiting { ticket, stamp, token, deadline_ms });
            }
            Err(error) => self.effects.answers.push((ticket, Err(error))),
        }
        Ok(())
    }

    /// What may be written here and now.
    fn admit(&self, op: Op, token: Option<&Token>) -> Result<Mutation, Error> {
        let node = self.r.config.node;
        let unavailable = |why: &str| Err(Error::Unavailable { node, why: why.into() });
        let mutation = match op {
            Op::Write { mutation } => mutation,
            Op::CompareAndSet { .. } | Op::Transaction { .. } => {
                let why = "members take writes without asking each other, so none can know that a compare holds; \
                           conditional writes need a strong namespace";
                return Err(Error::Unsupported { mode: Mode::Eventual, why: why.into() });
            }
            Op::Get { .. } | Op::Scan { .. } => {
                return Err(Error::InvalidRequest { why: "a read came where a write was expected".into() });
            }
        };
        if !self.r.meta.members.nodes.contains(&node) {
            return unavailable("it is no member of this namespace (any more)");
        }
        if self.r.meta.standing != Standing::Whole {
            return unavailable("it is still receiving its first copy of this namespace");
        }
        if self.r.heal.is_damaged(&mutation.key) {
            return Err(Error::Corrupt { node, what: "the key's record is being replaced by a peer's".into() });
        }
        self.r.clocks.check(self.cx.now_ms, self.r.config.clock_word_ms, self.cx.clock).map_err(Error::ClockSkew)?;
        let seen = token.iter().flat_map(|t| t.seen.iter()).map(|(_, hlc)| *hlc).max().unwrap_or(Hlc::ZERO);
        self.cx.clock.observe(seen.max(self.r.meta.frontier.last())).map_err(Error::ClockSkew)?;
        Ok(mutation)
    }

    fn stamp_and_merge(&mut self, mutation: Mutation) -> Result<Result<Stamp, Error>, StoreError> {
        let node = self.r.config.node;
        let held = self.r.meta.frontier.get(node);
        // After a restart the clock may not know of what peers wrote here.
        let old = match self.table.get(&mutation.key) {
            // A record of an earlier epoch is below every stamp of this one.
            Ok(old) => old.filter(|r| r.stamp.epoch == self.r.epoch).map_or(Hlc::ZERO, |record| record.stamp.hlc),
            Err(ReadError::Record(_)) => Hlc::ZERO,
            Err(ReadError::Store(error)) => return Err(error),
        };
        if let Err(fault) = self.cx.clock.observe(old) {
            return Ok(Err(Error::ClockSkew(fault)));
        }
        let twice = self.r.planted(Planted::MarkerTwice) && held > Hlc::ZERO && held.0.is_multiple_of(3);
        let hlc = if twice { held } else { self.cx.clock.tick()? };
        let stamp = Stamp { epoch: self.r.epoch, hlc, node };
        let body = match mutation.change {
            Change::Put(value) => Body::Value(value),
            Change::Delete => Body::Tombstone,
        };
        let record = duet_proto::Record { stamp, body: body.clone() };
        match self.table.merge(&mut self.r.meta, &mutation.key, record)? {
            Merge::Won | Merge::Same => {}
            Merge::Conflict => self.r.counters.conflicting_marker += 1,
            Merge::Damaged => {
                self.damaged(&mutation.key);
                return Ok(Err(Error::Corrupt { node, what: "the key's record fails its checksum".into() }));
            }
            // The clock has observed every stamp that was merged here, so this cannot be unless it went back.
            Merge::Lost => {
                return Ok(Err(Error::Internal { node, why: "the clock gave a time that had passed".into() }));
            }
        }
        self.r.meta.frontier.raise(node, hlc);
        self.effects.changed.push(mutation.key.clone());
        self.writes.push(Written { hlc, key: mutation.key, body });
        Ok(Ok(stamp))
    }

    /// Pushes the step's writes, in messages of bounded size, each naming the write before it.
    ///
    /// The frontier that goes with them is the one from before the step. A later one could claim a tombstone that
    /// was merged in this step after a write that it supersedes, and a receiver that has forgotten it would let the
    /// write in.
    pub(super) fn push_writes(&mut self) {
        let to = self.others();
        let ack = self.r.meta.members.copies > 1;
        let mut previous = self.previous;
        let mut writes = std::mem::take(&mut self.writes).into_iter().peekable();
        while writes.peek().is_some() && !to.is_empty() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while bytes < self.r.config.chunk_bytes
                && let Some(write) = writes.next()
            {
                bytes += write.key.len() + if let Body::Value(value) = &write.body { value.len() } else { 0 };
                batch.push(write);
            }
            let last = batch.last().map_or(previous, |write| write.hlc);
            let push = Push { previous, frontier: self.r.synced.frontier.clone(), ack, writes: batch };
            previous = last;
            self.send(to.clone(), Message::Push(push));
        }
    }

    /// Answers the writes that enough members have synced, and those that have waited long enough.
    pub(super) fn settle_writes(&mut self) {
        let me = self.r.config.node;
        let members = &self.r.meta.members;
        let any_version = self.r.planted(Planted::CopiesOfAnyVersion);
        // How far each other member of equal version holds this node's writes, the furthest first.
        let mut held: Vec<Hlc> = (self.r.peers.iter())
            .filter(|(node, peer)| {
                any_version || **node != me && members.nodes.contains(node) && peer.version == members.version
            })
            .map(|(_, peer)| peer.frontier.get(me))
            .collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        let counts = members.nodes.contains(&me);
        let copies = |hlc: Hlc| u32::from(counts) + held.iter().filter(|held| **held >= hlc).count() as u32;
        let (need, now_ms) = (members.copies.max(1), self.cx.now_ms);
        let mut settled = Vec::new();
        for (hlc, waiting) in &self.r.waiting {
            let have = copies(*hlc);
            if have >= need {
                settled.push((*hlc, None));
            } else if now_ms >= waiting.deadline_ms {
                settled.push((*hlc, Some(Error::NotEnoughCopies { have, need })));
            }
        }
        for (hlc, error) in settled {
            if let Some(waiting) = self.r.waiting.remove(&hlc) {
                let (ticket, answer) = waiting.answer();
                self.effects.answers.push((ticket, error.map_or(Ok(answer), Err)));
            }
        }
    }
}
