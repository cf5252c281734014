//! Eventual namespaces: what a session may see, what a replica may claim, and what must not be lost or come back.
//!
//! Nothing here knows how replicas spread writes. A [`Journal`] gathers every write that is known to have happened, from
//! what clients were told and from what was found on disks; the rest are questions put to it.

use std::collections::{BTreeMap, BTreeSet};

use duet_proto::{Hlc, NodeId, Stamp, Token};

use super::{Key, Value};

/// What a client did in an eventual namespace, and what it was told.
#[derive(Clone, Debug)]
pub struct Event {
    /// The session; `None` for what was asked without its guarantees.
    pub session: Option<u32>,
    /// When it was asked, in any unit that rises.
    pub called: i64,
    /// When it was answered.
    pub returned: i64,
    /// What the session had seen when it asked.
    pub tokens: Vec<Token>,
    /// What was asked, and what came of it.
    pub act: Act,
}

/// An operation and its outcome.
#[derive(Clone, Debug)]
pub enum Act {
    /// A write, or a delete.
    Write {
        /// Of which key.
        key: Key,
        /// What it is to hold; `None`: nothing.
        value: Option<Value>,
        /// The version written; `None` if nobody knows whether it was.
        stamp: Option<Stamp>,
    },
    /// A read.
    Read {
        /// Of which key.
        key: Key,
        /// What it held.
        found: Option<(Stamp, Value)>,
    },
}

/// What a replica durably holds, and claims to.
#[derive(Clone, Debug, Default)]
pub struct Holding {
    /// For each origin, up to when it claims to hold every write.
    pub frontier: BTreeMap<NodeId, Hlc>,
    /// What it holds under each key; a value of `None` is a tombstone.
    pub records: BTreeMap<Key, (Stamp, Option<Value>)>,
}

impl Holding {
    /// Whether it claims the write of this stamp.
    #[must_use]
    pub fn claims(&self, stamp: Stamp) -> bool {
        self.frontier.get(&stamp.node).is_some_and(|hlc| stamp.hlc <= *hlc)
    }
}

/// A write that has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) key: Key,
    pub(super) value: Option<Value>,
    pub(super) acknowledged: bool,
}

/// Every write that is known to have happened, and those that may have.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    writes: BTreeMap<Stamp, Write>,
    /// The version of each value that was ever found: one that has two was written twice.
    versions: BTreeMap<Value, Stamp>,
    /// What was ever to be written, and to which key: values are unique.
    values: BTreeMap<Value, Key>,
    /// Keys that were ever to be deleted.
    deletes: BTreeSet<Key>,
    /// Deletes that may have been done under a version that nobody knows: which key, and when that was asked for.
    open: Vec<(Key, i64)>,
    events: Vec<Event>,
}

impl Journal {
    /// The events, in the order in which they were added.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Every write that is known to have happened, in order of version.
    pub(super) fn writes(&self) -> impl DoubleEndedIterator<Item = (Stamp, &Write)> {
        self.writes.iter().map(|(stamp, write)| (*stamp, write))
    }

    /// The version of a value, if it was ever found.
    pub(super) fn version(&self, value: Value) -> Option<Stamp> {
        self.versions.get(&value).copied()
    }

    /// How many writes were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.writes.values().filter(|write| write.acknowledged).count()
    }

    /// A write is about to be asked for: it may be seen from now on.
    pub fn begin(&mut self, key: Key, value: Option<Value>, called: i64) {
        match value {
            Some(value) => drop(self.values.insert(value, key)),
            None => {
                self.deletes.insert(key);
                self.open.push((key, called));
            }
        }
    }

    /// A write that was begun was refused: it is not done, and never will be.
    ///
    /// # Errors
    /// If it was seen.
    pub fn refused(&mut self, key: Key, value: Option<Value>, called: i64) -> Result<(), String> {
        match value {
            None => self.settled(key, called),
            Some(value) => {
                self.values.remove(&value);
                if let Some((stamp, _)) = self.writes.iter().find(|(_, write)| write.value == Some(value)) {
                    return Err(format!("{value} of key {key} was written as {stamp}"));
                }
            }
        }
        Ok(())
    }

    /// The version of a delete is known, or that there is none.
    fn settled(&mut self, key: Key, called: i64) {
        if let Some(at) = self.open.iter().position(|open| *open == (key, called)) {
            self.open.swap_remove(at);
        }
    }

    /// A client was told something.
    ///
    /// # Errors
    /// If that alone contradicts what was told before.
    pub fn told(&mut self, event: Event) -> Result<(), String> {
        match event.act {
            Act::Write { key, value, stamp: Some(stamp) } => {
                // Times of different epochs cannot be compared: a later epoch is after all of an earlier one.
                let seen =
                    event.tokens.iter().flat_map(|token| token.seen.iter().map(|(_, hlc)| (token.epoch, *hlc)));
                let above = seen.max();
                if event.session.is_some() && above.is_some_and(|above| (stamp.epoch, stamp.hlc) <= above) {
                    return Err(format!(
                        "the write {stamp} of key {key} is not above what its session has seen: {event:?}"
                    ));
                }
                self.note(stamp, key, value)?;
                if value.is_none() {
                    self.settled(key, event.called);
                }
                let write = Write { key, value, acknowledged: true };
                self.writes.insert(stamp, write);
            }
            Act::Write { .. } | Act::Read { found: None, .. } => {}
            Act::Read { key, found: Some((stamp, value)) } => self.note(stamp, key, Some(value))?,
        }
        self.events.push(event);
        Ok(())
    }

    /// A record was found: it is one of a write that somebody made.
    ///
    /// # Errors
    /// If nobody made it, or its stamp is another write's.
    pub fn note(&mut self, stamp: Stamp, key: Key, value: Option<Value>) -> Result<(), String> {
        let write = Write { key, value, acknowledged: false };
        if let Some(before) = self.writes.get(&stamp) {
            return match (before.key, before.value) == (key, value) {
                true => Ok(()),
                false => Err(format!("the stamp {stamp} was given to two writes: {before:?} and {write:?}")),
            };
        }
        let known = match value {
            Some(value) => self.values.get(&value) == Some(&key),
            None => self.deletes.contains(&key),
        };
        if !known {
            return Err(format!("{stamp}: nobody wrote {value:?} to key {key}"));
        }
        if let Some(value) = value {
            let first = *self.versions.entry(value).or_insert(stamp);
            if first != stamp {
                return Err(format!("{value} of key {key} was written twice, as {first} and as {stamp}"));
            }
        }
        self.writes.insert(stamp, write);
        Ok(())
    }

    /// Whether every read showed its session at least what that had seen: by its token, its own writes, and its earlier
    /// reads of the key.
    ///
    /// # Errors
    /// The first read that did not.
    pub fn sessions_hold(&self) -> Result<(), String> {
        let mut seen: BTreeMap<(u32, Key), Stamp> = BTreeMap::new();
        for event in &self.events {
            let Some(session) = event.session else { continue };
            match event.act {
                Act::Write { key, stamp: Some(stamp), .. } => {
                    let before = seen.entry((session, key)).or_insert(stamp);
                    *before = stamp.max(*before);
                }
                Act::Write { .. } => {}
                Act::Read { key, found } => {
                    let own = seen.get(&(session, key)).copied();
                    let least = own.max(event.tokens.iter().filter_map(|token| self.covered(key, token)).max());
                    let Some(now) = self.at_least(event, key, least, found)? else { continue };
                    seen.insert((session, key), now);
                }
            }
        }
        Ok(())
    }

    /// The latest write of a key that a token covers.
    fn covered(&self, key: Key, token: &Token) -> Option<Stamp> {
        let seen = |stamp: &Stamp| {
            let seen = token.seen.iter().find(|(node, _)| *node == stamp.node);
            stamp.epoch == token.epoch && seen.is_some_and(|(_, hlc)| stamp.hlc <= *hlc)
        };
        self.writes.iter().rev().find(|(stamp, write)| write.key == key && seen(stamp)).map(|(stamp, _)| *stamp)
    }

    /// What a read has shown at least, if it was to show `least`.
    pub(super) fn at_least(
        &self,
        event: &Event,
        key: Key,
        least: Option<Stamp>,
        found: Option<(Stamp, Value)>,
    ) -> Result<Option<Stamp>, String> {
        match (found, least) {
            (Some((stamp, _)), Some(least)) if stamp < least => {
                Err(format!("a session that had seen {least} of key {key} was shown {stamp}: {event:?}"))
            }
            (Some((stamp, _)), _) => Ok(Some(stamp)),
            (None, None) => Ok(None),
            (None, Some(least)) => {
                // An absence is a delete, of which at least the first after `least` was seen; or one whose version
                // nobody was told.
                let deleted = self.deleted_from(key, least);
                if deleted.is_none() && !self.maybe_deleted(key, event.returned) {
                    return Err(format!("a session that had seen {least} of key {key} was shown nothing: {event:?}"));
                }
                Ok(Some(deleted.filter(|_| !self.maybe_deleted(key, event.returned)).unwrap_or(least)))
            }
        }
    }

    /// The first known delete of a key that is not before `stamp`.
    fn deleted_from(&self, key: Key, stamp: Stamp) -> Option<Stamp> {
        let mut later = self.writes.range(stamp..);
        later.find(|(_, write)| write.key == key && write.value.is_none()).map(|(stamp, _)| *stamp)
    }

    /// Whether a delete under a version that nobody knows may have been done by then.
    fn maybe_deleted(&self, key: Key, by: i64) -> bool {
        self.open.iter().any(|(of, called)| *of == key && *called <= by)
    }

    /// Whether a replica holds what it claims: each write that its frontier covers, or a later one of the key.
    ///
    /// # Errors
    /// The first write that it claims and lacks.
    pub fn claims_hold(&self, holding: &Holding) -> Result<(), String> {
        match self.writes.iter().find(|(stamp, write)| holding.claims(**stamp) && !self.held(holding, **stamp, write))
        {
            None => Ok(()),
            Some((stamp, write)) => Err(format!(
                "it claims {stamp} ({write:?}) by {:?} and holds {:?}",
                holding.frontier,
                holding.records.get(&write.key)
            )),
        }
    }

    /// Whether the origin of each acknowledged write claims it: it said so only when it was durable there.
    ///
    /// # Errors
    /// The first write that is lost.
    pub fn origin_keeps(&self, origin: NodeId, holding: &Holding) -> Result<(), String> {
        let mut own = self.writes.iter().filter(|(stamp, write)| stamp.node == origin && write.acknowledged);
        match own.find(|(stamp, _)| !holding.claims(**stamp)) {
            None => Ok(()),
            Some((stamp, write)) => Err(format!("{stamp} ({write:?}) was acknowledged and is lost")),
        }
    }

    /// Whether each acknowledged write is on at least so many disks.
    ///
    /// # Errors
    /// The first write that is not.
    pub fn copies_hold(&self, copies: u32, disks: &BTreeMap<NodeId, Holding>) -> Result<(), String> {
        for (stamp, write) in self.writes.iter().filter(|(_, write)| write.acknowledged) {
            let there = |holding: &&Holding| {
                holding.claims(*stamp) || holding.records.get(&write.key).is_some_and(|(held, _)| held >= stamp)
            };
            let count = disks.values().filter(there).count();
            if count < copies as usize {
                return Err(format!(
                    "{stamp} ({write:?}) was acknowledged, {copies} copies were asked for, {count} exist"
                ));
            }
        }
        Ok(())
    }

    /// Whether nothing acknowledged is missing from a replica to which everything has come, and no delete was undone: each
    /// key holds the latest write that is known, or one of unknown outcome after it.
    ///
    /// # Errors
    /// The first key that does not.
    pub fn complete(&self, holding: &Holding) -> Result<(), String> {
        for (stamp, write) in self.writes.iter().filter(|(_, write)| write.acknowledged) {
            if !self.held(holding, *stamp, write) {
                let found = holding.records.get(&write.key);
                let what =
                    if write.value.is_none() { "a delete was undone" } else { "an acknowledged write is lost" };
                return Err(format!("{what}: {stamp} ({write:?}), found {found:?}"));
            }
        }
        Ok(())
    }

    /// Whether a replica holds a write, or what came after it.
    pub(super) fn held(&self, holding: &Holding, stamp: Stamp, write: &Write) -> bool {
        match holding.records.get(&write.key) {
            Some((held, _)) => *held >= stamp,
            // A tombstone that was forgotten.
            None => self.deleted_from(write.key, stamp).is_some() || self.maybe_deleted(write.key, i64::MAX),
        }
    }
}

/// What a replica held at earlier looks: nothing may go back, and what was forgotten may not return.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    seen: BTreeMap<Key, Stamp>,
    frontier: BTreeMap<NodeId, Hlc>,
    present: Vec<Key>,
}

impl Memory {
    /// Looks again.
    ///
    /// # Errors
    /// What went back, or came back.
    pub fn look(&mut self, holding: &Holding) -> Result<(), String> {
        for (origin, hlc) in &self.frontier {
            if holding.frontier.get(origin).is_none_or(|now| now < hlc) {
                return Err(format!("its frontier went back: {:?}, before {:?}", holding.frontier, self.frontier));
            }
        }
        for (key, (stamp, _)) in &holding.records {
            let Some(seen) = self.seen.get(key) else { continue };
            if !self.present.contains(key) && stamp <= seen {
                return Err(format!("{stamp} of key {key} came back: {seen} had been forgotten"));
            }
            if stamp < seen {
                return Err(format!("key {key} went back from {seen} to {stamp}"));
            }
        }
        self.frontier.clone_from(&holding.frontier);
        self.present = holding.records.keys().copied().collect();
        self.seen.extend(holding.records.iter().map(|(key, (stamp, _))| (*key, *stamp)));
        Ok(())
    }
}

#[cfg(test)]
#[path = "eventual_tests.rs"]
mod tests;
