//! The end of an epoch at one replica: the fence, the last sessions behind it, and what is put aside (rule 9).
//!
//! ```text
//!            fence(a)                     converge(a, base)                  the next epoch begins
//! writes ───────┤ refused ─────────────────────┤ ─────────────────────────────────┤
//! pushes ───────┤ nothing is merged ───────────┤ a session with each of the base ─┤ equal  ── stash, drop, retire
//!                 lift(≥ a): all goes on                lift(≥ a): all goes on
//! ```

use std::{borrow::Cow, collections::BTreeSet};

use duet_proto::{Body, Digest, Hlc, NodeId, Stamp};
use duet_store::{Family, StoreError, View, layout};

use super::{Replica, Step, Ticket, peers::Peer, serve};
use crate::{
    Frontier, Planted,
    rows::{Beyond, Meta, Standing, next_beyond},
    stash,
    table::{ReadError, read},
};

/// A member that was not heard for this long is not waited for.
const HEARD_MS: u64 = 2000;
/// Under a steady load a member is always a little behind: by no more than this, one that is near.
const BEHIND_MS: u64 = 500;

/// What an epoch begins with, or has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// No record has a higher stamp. Equal at members of equal frontiers.
    pub last: Stamp,
    /// The digest of the live values.
    pub digest: Digest,
    /// Live keys.
    pub keys: u64,
    /// Tombstones held: members may differ in these.
    pub tombstones: u64,
}

/// A step of the end of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Takes no more writes, and takes in nothing of others.
    Fence {
        /// In this attempt; it ends what is under way in an earlier one.
        attempt: u64,
    },
    /// Takes the fence away, if it is of this attempt or an earlier one.
    Lift {
        /// The attempt that was given up.
        attempt: u64,
    },
    /// One session with each other member of the base.
    Converge {
        /// In this attempt, for which it must be fenced.
        attempt: u64,
        /// The members of the base, this one included.
        base: BTreeSet<NodeId>,
    },
    /// Puts aside what the next epoch begins without. In pieces.
    Stash {
        /// What the next epoch begins with.
        beyond: Frontier,
        /// Where the last piece ended.
        from: Option<Stamp>,
    },
    /// Forgets every tombstone. In pieces.
    DropTombstones {
        /// Where the last piece ended.
        from: Option<Stamp>,
    },
}

/// An order that cannot be carried out as things stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// Why not.
    pub why: String,
}

fn refused<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { why: why.into() })
}

/// The sessions by which the members of a base become equal. Not durable: it is asked for again.
#[derive(Debug)]
pub(super) struct Converge {
    attempt: u64,
    base: BTreeSet<NodeId>,
    /// Those with whom no session has come to its end yet.
    lacking: BTreeSet<NodeId>,
}

impl Converge {
    pub(super) fn done_with(&mut self, node: NodeId) {
        self.lacking.remove(&node);
    }

    /// The attempt, once there was a session with everybody.
    pub(super) fn over(&self) -> Option<u64> {
        self.lacking.is_empty().then_some(self.attempt)
    }
}

impl Replica {
    /// What of the state is to be written.
    pub(super) fn durable_meta(&self) -> Cow<'_, Meta> {
        let mut meta = Cow::Borrowed(&self.meta);
        if self.planted(Planted::FenceForgets) {
            meta.to_mut().fence = None;
        }
        meta
    }

    /// What its records come to. `view` shows what is durable.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn base(&self, view: &dyn View) -> Result<Base, StoreError> {
        let (synced, epoch) = (&self.synced, self.epoch);
        let claimed = synced.frontier.iter().map(|(node, hlc)| Stamp { epoch, hlc, node });
        let mut last = claimed.fold(synced.begin, Stamp::max);
        let mut at = (NodeId(0), Hlc::ZERO);
        while let Some((node, _, _)) = next_beyond(view, self.id(), &synced.frontier, at)? {
            let hlc = serve::last_of(view, self.id(), node)?;
            last = last.max(Stamp { epoch, hlc, node });
            let Some(next) = node.0.checked_add(1) else { break };
            at = (NodeId(next), Hlc::ZERO);
        }
        Ok(Base { last, digest: synced.digest, keys: synced.keys, tombstones: synced.tombstones })
    }

    /// Whether it lacks nothing that others have told of but what is quite new, so that an end of the epoch would have
    /// little to do. For speed only.
    #[must_use]
    pub fn is_near(&self, now_ms: u64) -> bool {
        let healing = self.heal.is_open() || self.heal.is_comparing(now_ms);
        let within = |since: u64| now_ms.saturating_sub(since) <= HEARD_MS;
        // Who has just started does not know yet what it lacks.
        let others = |node: &NodeId| *node != self.config.node && !self.silent.contains(node);
        let told = |node: NodeId| self.peers.get(&node).is_some_and(|peer| peer.report.is_some());
        let knows = self.begun_ms.is_some_and(|begun| !within(begun))
            || self.synced.members.everyone().filter(others).all(told);
        let mut heard = self.peers.values().filter(|peer| within(peer.heard_ms));
        self.synced.standing == Standing::Whole
            && !healing
            && knows
            && !heard.any(|peer| self.is_behind(peer, now_ms))
    }

    /// Whether it lacks something that a peer has told of, and that is not quite new: by when that was told, and by the
    /// times of the writes, as who was away has only just been told.
    fn is_behind(&self, peer: &Peer, now_ms: u64) -> bool {
        let mine = &self.synced.frontier;
        let behind = |told_ms: u64, held: &Frontier| {
            let far = |(node, hlc): (NodeId, Hlc)| hlc.millis() > mine.get(node).millis().saturating_add(BEHIND_MS);
            !mine.covers(held) && (now_ms.saturating_sub(told_ms) > BEHIND_MS || held.iter().any(far))
        };
        peer.lacking.as_ref().is_some_and(|(at, held)| behind(*at, held))
            || peer.report.as_ref().is_some_and(|report| behind(peer.reported_ms, &report.frontier))
    }
}

impl Step<'_> {
    pub(super) fn is_fenced(&self) -> bool {
        self.r.meta.fence.is_some()
    }

    /// Whether what others send unasked is ignored, without a word: an acknowledgement would make a copy of it.
    pub(super) fn takes_nothing(&self) -> bool {
        self.is_fenced() && !self.r.planted(Planted::MergeWhileFenced)
    }

    /// How long a session may stand still. Behind a fence writes wait, and there is less to wait for.
    pub(super) fn patience_ms(&self) -> u64 {
        if self.is_fenced() { self.r.config.stall_ms / 2 } else { self.r.config.stall_ms }
    }

    pub(super) fn order(&mut self, ticket: Ticket, order: Order) -> Result<(), StoreError> {
        let result = match order {
            Order::Fence { attempt } => self.fence(attempt).map(|()| None),
            Order::Lift { attempt } => {
                self.lift(attempt);
                Ok(None)
            }
            Order::Converge { attempt, base } => self.converge(attempt, base).map(|()| None),
            Order::Stash { .. } | Order::DropTombstones { .. } if !self.is_fenced() => {
                refused("the epoch goes on: the replica is not fenced")
            }
            // What this very step has merged is not in the view yet.
            Order::Stash { from, .. } if !self.table.batch.is_empty() => Ok(Some(from.unwrap_or_default())),
            Order::Stash { beyond, from } => Ok(self.stash(&beyond, from.unwrap_or_default())?),
            Order::DropTombstones { from } => self.drop_tombstones(from.unwrap_or_default())?,
        };
        self.effects.orders.push((ticket, result));
        Ok(())
    }

    fn fence(&mut self, attempt: u64) -> Result<(), Refused> {
        match self.r.meta.fence {
            Some(later) if later > attempt => {
                return refused(format!("it is fenced for attempt {later}, which is later than {attempt}"));
            }
            Some(same) if same == attempt => return Ok(()),
            _ => self.r.meta.fence = Some(attempt),
        }
        if !self.r.planted(Planted::SessionOutlivesFence) {
            self.end_sessions();
        }
        Ok(())
    }

    /// What is under way was asked for before, and must not be merged after.
    fn end_sessions(&mut self) {
        self.r.counters.interrupted += u64::from(self.r.pull.is_some());
        (self.r.pull, self.r.converge, self.r.sweep) = (None, None, None);
        self.r.wanted.clear();
        self.r.early.clear();
        self.r.heal.stop_comparing();
    }

    fn lift(&mut self, attempt: u64) {
        let any = self.r.planted(Planted::LiftByOlder);
        if !self.r.meta.fence.is_some_and(|fence| fence <= attempt || any) {
            return;
        }
        (self.r.meta.fence, self.r.meta.stashed) = (None, false);
        self.end_sessions();
        // What was pushed meanwhile was not taken, and nobody pushes it again. And others may wait for copies.
        let (others, silent) = (self.others(), &self.r.silent);
        // After a start nobody was heard yet.
        let all = others.iter().all(|node| silent.contains(node));
        self.r.wanted = others.into_iter().filter(|node| all || !silent.contains(node)).collect();
        self.r.reported = None;
    }

    fn converge(&mut self, attempt: u64, base: BTreeSet<NodeId>) -> Result<(), Refused> {
        let me = self.r.config.node;
        if self.r.meta.fence != Some(attempt) {
            return refused(format!("it is not fenced for attempt {attempt}, but {:?}", self.r.meta.fence));
        }
        if self.r.meta.standing != Standing::Whole || !base.contains(&me) {
            return refused("it cannot be of the base: it is not whole, or not among those that were named");
        }
        match &self.r.converge {
            Some(converge) if converge.base == base => return Ok(()),
            Some(_) => return refused(format!("it converges with another base in attempt {attempt}")),
            None => {}
        }
        let mut lacking: BTreeSet<_> = base.iter().copied().filter(|node| *node != me).collect();
        if self.r.planted(Planted::ConvergeFromOutside) {
            lacking.extend(self.others());
        }
        self.r.peers.values_mut().for_each(|peer| peer.rest_until_ms = 0);
        self.r.converge = Some(Converge { attempt, base, lacking });
        Ok(())
    }

    /// The next member of the base for a session: in turns, those that were refused after a moment.
    pub(super) fn next_to_converge_with(&self) -> Option<NodeId> {
        let lacking = &self.r.converge.as_ref()?.lacking;
        let ready = |node: &&NodeId| self.r.peers.get(node).is_none_or(|peer| peer.rest_until_ms <= self.cx.now_ms);
        let after = NodeId(self.r.last_pulled.0.saturating_add(1));
        lacking.range(after..).find(ready).or_else(|| lacking.iter().find(ready)).copied()
    }

    /// Puts aside the live records beyond a frontier, a piece at a time: where the next one begins, unless that was all.
    fn stash(&mut self, beyond: &Frontier, from: Stamp) -> Result<Option<Stamp>, StoreError> {
        // Once is enough: some of it may have been handed in since.
        if self.r.meta.stashed {
            return Ok(None);
        }
        let (id, epoch) = (self.r.id(), self.r.epoch);
        let mut bytes = 0;
        for row in Beyond::new(self.cx.view, id, beyond, (from.node, from.hlc))? {
            let (node, hlc, key) = row?;
            let stamp = Stamp { epoch, hlc, node };
            if bytes >= self.r.config.chunk_bytes {
                return Ok(Some(stamp));
            }
            match read(self.cx.view, id.0, &key) {
                Ok(Some(record)) if record.stamp == stamp => {
                    bytes += key.len() + serve::body_len(&record.body) + 64;
                    stash::put(&mut self.table.batch, id.0, &key, &record)?;
                }
                Err(ReadError::Store(error)) => return Err(error),
                // There is nothing left to put aside.
                Ok(_) | Err(ReadError::Record(_)) => self.r.counters.damaged += 1,
            }
        }
        stash::put_frontier(&mut self.table.batch, id, &self.r.meta.frontier)?;
        self.r.meta.stashed = true;
        Ok(None)
    }

    /// Forgets tombstones, whoever has not seen them, a piece at a time. They go into the floor: should the epoch go on
    /// against all promises, somebody who has not seen them is refused rather than misled.
    fn drop_tombstones(&mut self, from: Stamp) -> Result<Result<Option<Stamp>, Refused>, StoreError> {
        let (from, to) = layout::tombstones_from(self.r.namespace, from);
        for (at, row) in self.cx.view.scan(Family::Namespace, &from, Some(&to))?.enumerate() {
            let (row, key) = row?;
            let stamp = layout::tombstone_stamp(&row)?;
            if at == self.r.config.forget_rows {
                return Ok(Ok(Some(stamp)));
            }
            match self.table.get(&key) {
                Ok(Some(record)) if record.stamp == stamp && record.body == Body::Tombstone => {
                    self.table.replace(&mut self.r.meta, &key, Some(&record), None);
                    self.r.counters.forgotten += 1;
                    if stamp.epoch == self.r.epoch {
                        self.r.meta.floor.raise(stamp.node, stamp.hlc);
                    }
                }
                Ok(_) => self.table.unlist_tombstone(stamp),
                Err(ReadError::Record(_)) => self.r.counters.damaged += 1,
                Err(ReadError::Store(error)) => return Err(error),
            }
        }
        Ok(match self.r.meta.tombstones {
            0 => Ok(None),
            left => refused(format!("{left} tombstones are damaged, or not listed")),
        })
    }
}
