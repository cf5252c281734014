//! The receiving end of sessions and copies: one at a time, so that what is missing comes once.

use bytes::Bytes;
use duet_proto::{Hlc, NodeId, Record};
use duet_store::StoreError;

use super::Step;
use crate::{
    Frontier, Planted,
    message::{Chunk, Copied, Message, Nonce, Refusal},
    rows::Standing,
};

/// What this replica is getting, and from whom.
#[derive(Debug)]
pub(super) struct Pull {
    from: NodeId,
    nonce: Nonce,
    /// The sender's walk, once the first chunk has named it.
    walk: Option<Nonce>,
    /// The chunk that comes next.
    sequence: u32,
    /// The sender's version of the members when the walk began.
    version: u64,
    /// The last sign of progress.
    moved_ms: u64,
    /// How far the walk has come: what a planted bug resumes from.
    walked: Frontier,
}

impl Pull {
    pub(super) fn from(&self) -> NodeId {
        self.from
    }
}

impl Step<'_> {
    /// Gives up what stands still, begins what is wanted.
    pub(super) fn drive_session(&mut self) -> Result<(), StoreError> {
        let now_ms = self.cx.now_ms;
        let mut resumed = None;
        if let Some(pull) = &self.r.pull {
            if now_ms < pull.moved_ms + self.patience_ms() {
                return Ok(());
            }
            self.r.counters.interrupted += 1;
            if self.r.planted(Planted::ResumeWithAnother) {
                resumed = Some(pull.walked.clone());
                let others = self.others();
                self.r.wanted.extend(others.into_iter().filter(|node| *node != pull.from));
            }
            self.r.pull = None;
        }
        if self.is_fenced() {
            if let Some(from) = self.next_to_converge_with() {
                self.begin_session(from, None);
            }
            return Ok(());
        }
        let joining = self.r.meta.standing != Standing::Whole;
        if joining {
            let others = self.others();
            self.r.wanted.extend(others);
        }
        // In turns, so that one that does not answer holds up nobody for long.
        let after = self.r.last_pulled;
        let ready = |node: &&NodeId| self.r.peers.get(node).is_none_or(|peer| peer.rest_until_ms <= now_ms);
        let speaks = |node: &&NodeId| ready(node) && !self.r.silent.contains(*node);
        let (wanted, after) = (&self.r.wanted, NodeId(after.0.saturating_add(1)));
        let next = wanted.range(after..).find(speaks).or_else(|| wanted.iter().find(speaks));
        let next = next.or_else(|| wanted.range(after..).find(ready)).or_else(|| wanted.iter().find(ready));
        let Some(from) = next.copied() else {
            // Nothing is missing that anybody has told of: what came early has no session to wait for.
            if self.r.wanted.is_empty() {
                self.r.early.clear();
            }
            return Ok(());
        };
        self.r.wanted.remove(&from);
        self.begin_session(from, resumed);
        Ok(())
    }

    fn begin_session(&mut self, from: NodeId, resumed: Option<Frontier>) {
        self.r.last_pulled = from;
        let (nonce, now_ms) = (self.r.fresh(), self.cx.now_ms);
        let mut frontier = self.r.meta.frontier.clone();
        if let Some(walked) = &resumed {
            frontier.join(walked);
        }
        let walked = resumed.unwrap_or_default();
        self.r.pull = Some(Pull { from, nonce, walk: None, sequence: 0, version: 0, moved_ms: now_ms, walked });
        let message = match &self.r.meta.standing {
            Standing::Whole => Message::Pull { nonce, frontier },
            Standing::Joining { target, after } => {
                Message::Copy { nonce, target: target.clone(), after: after.clone() }
            }
        };
        self.send([from], message);
    }

    pub(super) fn chunk(&mut self, from: NodeId, version: u64, chunk: Chunk) -> Result<(), StoreError> {
        let now_ms = self.cx.now_ms;
        let Some(pull) = &mut self.r.pull else { return Ok(()) };
        let walk = pull.walk.unwrap_or(chunk.walk);
        if (pull.from, pull.nonce, walk, pull.sequence) != (from, chunk.nonce, chunk.walk, chunk.sequence) {
            return Ok(());
        }
        if chunk.sequence == 0 {
            (pull.version, pull.walk) = (version, Some(walk));
        }
        (pull.sequence, pull.moved_ms) = (chunk.sequence + 1, now_ms);
        let (nonce, sequence, version) = (pull.nonce, pull.sequence, pull.version);
        if !self.mergeable(&chunk.frontier, &chunk.items) {
            self.give_up(from);
            return Ok(());
        }
        for (key, record) in chunk.items {
            let stamp = record.stamp;
            self.merge(&key, record)?;
            if let Some(pull) = &mut self.r.pull {
                pull.walked.raise(stamp.node, stamp.hlc);
            }
            if self.r.planted(Planted::FrontierPerChunk) && stamp.epoch == self.r.epoch {
                self.r.meta.frontier.raise(stamp.node, stamp.hlc);
            }
        }
        let Some(summary) = chunk.last else {
            self.send([from], Message::More { nonce, walk, sequence });
            return Ok(());
        };
        // The whole walk is here, so everything up to where the sender stood when it began is held or superseded.
        self.r.meta.frontier.join(&chunk.frontier);
        if self.r.planted(Planted::ResumeWithAnother)
            && let Some(pull) = &self.r.pull
        {
            self.r.meta.frontier.join(&pull.walked);
        }
        self.r.pull = None;
        self.r.counters.sessions += 1;
        self.r.peers.entry(from).or_default().pulled = Some((chunk.frontier, summary));
        self.swept(from, version, nonce);
        if let Some(converge) = &mut self.r.converge {
            converge.done_with(from);
        }
        self.replay_early()
    }

    pub(super) fn copied(&mut self, from: NodeId, copied: Copied) -> Result<(), StoreError> {
        let Standing::Joining { target, after } = self.r.meta.standing.clone() else { return Ok(()) };
        let expected = self.r.pull.as_ref().is_some_and(|p| (p.from, p.nonce) == (from, copied.nonce));
        let follows = after == copied.after && target.as_ref().is_none_or(|target| *target == copied.target);
        // Whoever goes on with a copy must hold what the copy is to claim, or its end claims what was never sent.
        let reaches = copied.frontier.covers(&copied.target);
        if !expected || !follows || !reaches {
            return Ok(());
        }
        if !self.mergeable(&copied.frontier, &copied.items) {
            self.give_up(from);
            return Ok(());
        }
        self.r.meta.floor.join(&copied.floor);
        self.r.meta.begin = self.r.meta.begin.max(copied.begin);
        let last_key = copied.items.last().map(|(key, _)| key.clone()).or(after);
        for (key, record) in copied.items {
            self.merge(&key, record)?;
        }
        if copied.last {
            self.r.meta.frontier.join(&copied.target);
            self.r.meta.standing = Standing::Whole;
            self.r.pull = None;
            self.r.counters.sessions += 1;
            // What was written since the copy began.
            self.r.wanted.insert(from);
            return Ok(());
        }
        let target = Some(copied.target);
        self.r.meta.standing = Standing::Joining { target: target.clone(), after: last_key.clone() };
        if let Some(pull) = &mut self.r.pull {
            pull.moved_ms = self.cx.now_ms;
        }
        self.send([from], Message::Copy { nonce: copied.nonce, target, after: last_key });
        Ok(())
    }

    pub(super) fn refused(&mut self, from: NodeId, nonce: Nonce, why: Refusal) {
        if self.r.pull.as_ref().is_some_and(|pull| (pull.from, pull.nonce) == (from, nonce)) {
            if why == Refusal::Unknown {
                self.r.pull = None;
                self.r.counters.interrupted += 1;
                self.r.wanted.insert(from);
            } else {
                self.give_up(from);
            }
        }
    }

    /// Ends a session that cannot go on now, and leaves its sender alone for a while: what it lacks, or this replica,
    /// or what is wrong with a clock, takes time.
    fn give_up(&mut self, from: NodeId) {
        self.r.pull = None;
        self.r.counters.interrupted += 1;
        let rest_ms = if self.is_fenced() { self.r.config.stall_ms / 10 } else { self.r.config.stall_ms };
        self.r.peers.entry(from).or_default().rest_until_ms = self.cx.now_ms + rest_ms;
    }

    fn mergeable(&mut self, frontier: &Frontier, items: &[(Bytes, Record)]) -> bool {
        let epoch = self.r.epoch;
        let last = items.iter().filter(|(_, r)| r.stamp.epoch == epoch).map(|(_, r)| r.stamp.hlc).max();
        self.above_floor(frontier) && self.in_time(last.unwrap_or(Hlc::ZERO).max(frontier.last()))
    }
}
