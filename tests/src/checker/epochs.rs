//! Namespaces that change their mode: what holds within each epoch, and what at the borders between them.
//!
//! A [`Chronicle`] gathers what clients asked and were told, each answer with the epoch it was given in. What is true of
//! all epochs alike (sessions, versions, what must not be lost) is the [`Journal`]'s to judge, as stamps are ordered by
//! epoch first. What is left for here:
//!
//! - a strong epoch is linearizable, over the base that it began with;
//! - every read of a later epoch sees what was acknowledged in an earlier one, unless the member that took it was left
//!   out and may have it alone;
//! - nobody goes back: not a session, and nobody once a later epoch has answered where an earlier one is over for good.
//!
//! The base of a strong epoch is not looked up, it is inferred: for each key the latest write that it must hold, or one
//! of those after it. So a catalog that tells a wrong base hides nothing.

use std::collections::{BTreeMap, BTreeSet};

use duet_proto::{Epoch, Mode, NodeId, Stamp, Token};

use super::{
    History, Key, Operation, Step, Value, Verdict,
    eventual::{Act, Event, Holding, Journal},
    linearizable,
    stamps::{Shown, in_order},
};

/// How an epoch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The mode that followed.
    pub to: Mode,
    /// Members that did not take part.
    pub apart: Vec<NodeId>,
    /// Whether these may have acknowledged writes that nobody else has: an operator has left them out.
    pub alone: bool,
    /// Those whose writes were given up since.
    pub forgotten: Vec<NodeId>,
}

/// The epochs of a namespace, as the catalog tells them.
#[derive(Clone, Debug)]
pub struct Epochs {
    /// The mode of the first one.
    pub first: Mode,
    /// Those that are over.
    pub ended: BTreeMap<Epoch, Ended>,
}

impl Epochs {
    /// The mode of an epoch.
    #[must_use]
    pub fn mode(&self, epoch: Epoch) -> Mode {
        let before = self.ended.range(..epoch).next_back();
        before.map_or(self.first, |(_, ended)| ended.to)
    }

    /// Whether a write may be missing from a later epoch, until its member has returned.
    fn owed(&self, stamp: Stamp) -> bool {
        self.ended.get(&stamp.epoch).is_some_and(|ended| ended.alone && ended.apart.contains(&stamp.node))
    }

    /// Whether an operator has given up a write.
    fn given_up(&self, stamp: Stamp) -> bool {
        self.owed(stamp) && self.ended.get(&stamp.epoch).is_some_and(|ended| ended.forgotten.contains(&stamp.node))
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Told {
    /// What was asked, and what came of it. One key.
    pub operation: Operation,
    /// The session; `None` for what was asked without its guarantees.
    pub session: Option<u32>,
    /// What the session had seen when it asked.
    pub tokens: Vec<Token>,
    /// The epoch that answered.
    pub epoch: Epoch,
    /// What was read.
    pub reads: Vec<(Key, Option<(Stamp, Value)>)>,
}

/// What clients of one namespace asked, and were told.
#[derive(Clone, Debug, Default)]
pub struct Chronicle {
    journal: Journal,
    told: Vec<Told>,
    /// Operations of which nobody knows whether they were done.
    unknown: Vec<Operation>,
    /// The latest epoch that each client was answered in.
    reached: BTreeMap<u32, Epoch>,
}

impl Chronicle {
    /// Every write that is known to have happened.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Operations of which nobody knows whether they were done.
    #[must_use]
    pub fn unknown(&self) -> &[Operation] {
        &self.unknown
    }

    /// The answers, in the order in which they came.
    #[must_use]
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    /// Something is about to be asked for: what it writes may be seen from now on.
    pub fn begin(&mut self, step: &Step, called: i64) {
        for (key, value) in step.then.iter().chain(&step.otherwise) {
            self.journal.begin(*key, *value, called);
        }
    }

    /// It was refused: it is not done, and never will be.
    ///
    /// # Errors
    /// If it was seen.
    pub fn refused(&mut self, step: &Step, called: i64) -> Result<(), String> {
        let mut changes = step.then.iter().chain(&step.otherwise);
        changes.try_for_each(|(key, value)| self.journal.refused(*key, *value, called))
    }

    /// Nobody knows whether it was done.
    pub fn lost(&mut self, operation: Operation) {
        self.unknown.push(Operation { returned: None, stamp: None, ..operation });
    }

    /// A client was told something.
    ///
    /// # Errors
    /// If that alone contradicts what was told before.
    pub fn answer(&mut self, mut told: Told) -> Result<(), String> {
        let Told { operation, session, tokens, epoch, reads } = &mut told;
        let reached = self.reached.entry(operation.client).or_insert(*epoch);
        if *epoch < *reached {
            let client = operation.client;
            return Err(format!("client {client} was answered in epoch {epoch}, after {reached}: {operation:?}"));
        }
        *reached = *epoch;
        operation.step.reads = reads.iter().map(|(key, found)| (*key, found.map(|(_, value)| value))).collect();
        let (called, returned) = (operation.called, operation.returned.unwrap_or(operation.called));
        let event = |act| Event { session: *session, called, returned, tokens: tokens.clone(), act };
        let (done, undone) = match operation.step.held {
            Some(false) => (&operation.step.otherwise, &operation.step.then),
            _ => (&operation.step.then, &operation.step.otherwise),
        };
        undone.iter().try_for_each(|(key, value)| self.journal.refused(*key, *value, called))?;
        for (key, value) in done {
            let Some(stamp) = operation.stamp else {
                return Err(format!("an answer without a version: {operation:?}"));
            };
            if stamp.epoch != *epoch {
                return Err(format!("a write of epoch {epoch} got the version {stamp}: {operation:?}"));
            }
            self.journal.told(event(Act::Write { key: *key, value: *value, stamp: Some(stamp) }))?;
        }
        for (key, found) in reads {
            if let Some((stamp, _)) = found
                && stamp.epoch > *epoch
            {
                return Err(format!("{stamp} of key {key} was read in epoch {epoch}: {operation:?}"));
            }
            self.journal.told(event(Act::Read { key: *key, found: *found }))?;
        }
        self.told.push(told);
        Ok(())
    }

    /// A record was found on a disk.
    ///
    /// # Errors
    /// If nobody made it, or its version is another write's.
    pub fn found(&mut self, key: Key, stamp: Stamp, value: Option<Value>) -> Result<(), String> {
        self.journal.note(stamp, key, value)
    }

    /// Whether everything that was told fits together.
    ///
    /// # Errors
    /// What does not.
    pub fn judge(&self, epochs: &Epochs) -> Result<(), String> {
        self.journal.sessions_hold()?;
        self.borders_hold(epochs)?;
        self.nobody_goes_back(epochs)?;
        self.strong_epochs_hold(epochs)
    }

    /// Whether every read of a later epoch shows what was acknowledged in an earlier one.
    fn borders_hold(&self, epochs: &Epochs) -> Result<(), String> {
        let mut required = BTreeMap::new();
        for told in &self.told {
            for (key, found) in &told.reads {
                let least =
                    *required.entry((*key, told.epoch)).or_insert_with(|| self.required(epochs, *key, told.epoch));
                let Operation { called, returned, .. } = told.operation;
                let event = Event {
                    session: None,
                    called,
                    returned: returned.unwrap_or(called),
                    tokens: told.tokens.clone(),
                    act: Act::Read { key: *key, found: *found },
                };
                let shown = self.journal.at_least(&event, *key, least, *found);
                shown.map_err(|what| format!("at the border of epoch {}: {what}", told.epoch))?;
            }
        }
        Ok(())
    }

    /// The latest write of a key that an epoch must begin with.
    fn required(&self, epochs: &Epochs, key: Key, epoch: Epoch) -> Option<Stamp> {
        let before = |stamp: Stamp| stamp.epoch < epoch && !epochs.owed(stamp);
        let mut writes = self.journal.writes().rev();
        writes.find(|(stamp, write)| write.key == key && write.acknowledged && before(*stamp)).map(|(stamp, _)| stamp)
    }

    /// Whether nobody was answered in an epoch after it had ended there: nobody at all, in a strong one, once a later
    /// strong one has answered; no writer, in an eventual one, once any later one has, unless its member was left out.
    fn nobody_goes_back(&self, epochs: &Epochs) -> Result<(), String> {
        // The earliest answer of each epoch: whoever asks after it comes too late for those before.
        let mut answered: BTreeMap<Epoch, i64> = BTreeMap::new();
        for told in &self.told {
            let Some(returned) = told.operation.returned else { continue };
            answered.entry(told.epoch).and_modify(|first| *first = returned.min(*first)).or_insert(returned);
        }
        for told in &self.told {
            let strong = epochs.mode(told.epoch) == Mode::Strong;
            let apart = |stamp: Stamp| epochs.ended.get(&stamp.epoch).is_some_and(|e| e.apart.contains(&stamp.node));
            let bound = strong || told.operation.stamp.is_some_and(|stamp| !apart(stamp));
            let reads_only = told.operation.stamp.is_none();
            let over = |later: Epoch| !(strong && reads_only) || epochs.mode(later) == Mode::Strong;
            let mut later = answered.iter().filter(|(epoch, _)| **epoch > told.epoch && over(**epoch));
            if bound && let Some((epoch, _)) = later.find(|(_, first)| **first < told.operation.called) {
                return Err(format!(
                    "epoch {epoch} had answered already, and epoch {} still did: {told:?}",
                    told.epoch
                ));
            }
        }
        Ok(())
    }

    /// Whether each strong epoch is linearizable, and its versions rise.
    fn strong_epochs_hold(&self, epochs: &Epochs) -> Result<(), String> {
        let all: BTreeSet<Epoch> = self.told.iter().map(|told| told.epoch).collect();
        for epoch in all.into_iter().filter(|epoch| epochs.mode(*epoch) == Mode::Strong) {
            let here: Vec<&Told> = self.told.iter().filter(|told| told.epoch == epoch).collect();
            let keys: BTreeSet<Key> = here.iter().flat_map(|told| told.operation.step.keys()).collect();
            for key in keys {
                let of = |told: &&&Told| told.operation.step.keys().contains(&key);
                let mine: Vec<&Told> = here.iter().filter(of).copied().collect();
                in_order(key, shown(&mine, key)).map_err(|what| format!("in epoch {epoch}: {what}"))?;
                match linearizable(&self.history(epochs, epoch, key, &mine)) {
                    Verdict::Linearizable => {}
                    Verdict::Undecided => return Err(format!("the checker could not decide epoch {epoch} in time")),
                    Verdict::Broken(told) => {
                        return Err(format!("epoch {epoch} is not linearizable:\n  {}", told.join("\n  ")));
                    }
                }
            }
        }
        Ok(())
    }

    /// What happened to a key in an epoch: the base and what may have come in late, the answers, and what may have been
    /// done.
    fn history(&self, epochs: &Epochs, epoch: Epoch, key: Key, told: &[&Told]) -> History {
        const BEFORE: i64 = -3;
        let mut history = History::default();
        let required = self.required(epochs, key, epoch);
        for (stamp, write) in self.journal.writes().filter(|(stamp, write)| write.key == key && stamp.epoch < epoch) {
            let step = Step::write(key, write.value);
            let operation = |called, returned| Operation { client: 0, called, returned, step, stamp: None };
            match required {
                Some(required) if stamp == required => history.push(operation(BEFORE, Some(BEFORE + 1))),
                Some(required) if stamp < required => {}
                _ => history.push(operation(BEFORE + 2, None)),
            }
        }
        let end = told.iter().filter_map(|told| told.operation.returned).max().unwrap_or(i64::MAX);
        for operation in self.unknown.iter().filter(|o| o.called <= end && o.step.keys().contains(&key)) {
            // A value that was found tells by its version in which epoch it was written.
            let elsewhere = |value| self.journal.version(value).is_some_and(|stamp| stamp.epoch != epoch);
            if !operation.step.values().any(elsewhere) {
                history.push(operation.clone());
            }
        }
        told.iter().for_each(|told| history.push(told.operation.clone()));
        history
    }

    /// Whether nothing acknowledged is missing from a member to which everything has come, and no delete was undone.
    ///
    /// # Errors
    /// The first write that is.
    pub fn complete(&self, epochs: &Epochs, holding: &Holding) -> Result<(), String> {
        for (stamp, write) in self.journal.writes().filter(|(_, write)| write.acknowledged) {
            if !epochs.given_up(stamp) && !self.journal.held(holding, stamp, write) {
                let found = holding.records.get(&write.key);
                let what =
                    if write.value.is_none() { "a delete was undone" } else { "an acknowledged write is lost" };
                return Err(format!("{what}: {stamp} ({write:?}), found {found:?}"));
            }
        }
        Ok(())
    }
}

/// The versions of a key that answers told.
fn shown(told: &[&Told], key: Key) -> Vec<Shown> {
    let mut list = Vec::new();
    for Told { operation: Operation { called, returned, stamp, .. }, reads, .. } in told {
        let (called, Some(returned)) = (*called, *returned) else { continue };
        if let Some(stamp) = *stamp {
            list.push(Shown { called, returned, stamp, wrote: true });
            continue;
        }
        let found = reads.iter().filter(|(of, _)| *of == key).filter_map(|(_, found)| *found);
        list.extend(found.map(|(stamp, _)| Shown { called, returned, stamp, wrote: false }));
    }
    list
}

#[cfg(test)]
#[path = "epochs_tests.rs"]
mod tests;
