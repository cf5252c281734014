//! Applying entries.

use std::collections::BTreeMap;

use bytes::Bytes;
use duet_proto::{
    Change, Compare, Epoch, Error, Expect, Hlc, Mutation, NodeId, Op, Outcome, Record, Resource, Stamp, Try,
    TxnResult, limits,
};
use duet_store::{Batch, Family, StoreError, View, layout};

use super::{
    Applied, Command, Committed, Group, Machine, MachineError, Position, Seal, State, Write, put,
    read::load,
    rows::{answer_key, note_answers},
    sessions::{self, Bounds, Remembered, Sessions, Verdict},
    state_key,
};

/// Tombstones that one [`Command::Settle`] drops.
const SETTLE_ROWS: usize = if cfg!(test) { 2 } else { 1024 };

impl Machine {
    /// Applies entries, in order, and answers what came of every write among them. Writing `batch` makes it so; it
    /// need not be synced, as long as the store's log keeps it behind the entries.
    ///
    /// # Errors
    /// The machine is then of no more use, and the batch must not be written.
    pub fn apply(
        &mut self,
        view: &dyn View,
        entries: impl IntoIterator<Item = Committed>,
        batch: &mut Batch,
    ) -> Result<Vec<Applied>, MachineError> {
        let mut step = Step {
            view,
            group: &self.group,
            state: &mut self.state,
            sessions: &mut self.sessions,
            bounds: self.bounds,
            listed_from: &mut self.listed_from,
            records: BTreeMap::new(),
            listed: BTreeMap::new(),
            answers: BTreeMap::new(),
            forgotten: Vec::new(),
            ends: false,
        };
        let mut applied = Vec::new();
        for entry in entries {
            step.entry(entry, &mut applied)?;
        }
        step.finish(batch);
        Ok(applied)
    }

    #[cfg(test)]
    pub(crate) fn bounded(mut self, sessions: usize, answers: usize, positions: u64) -> Machine {
        self.bounds = Bounds { sessions, answers, positions };
        self
    }

    #[cfg(test)]
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }
}

/// One call of [`Machine::apply`]: the machine, and what its entries have changed so far.
struct Step<'a> {
    view: &'a dyn View,
    group: &'a Group,
    state: &'a mut State,
    sessions: &'a mut Sessions,
    bounds: Bounds,
    listed_from: &'a mut Stamp,
    /// The keys written, as they are now.
    records: BTreeMap<Bytes, Option<Record>>,
    /// Rows of the list of tombstones: new ones with their key, and those that go.
    listed: BTreeMap<Bytes, Option<Bytes>>,
    /// The rows of answers, but those that were forgotten again.
    answers: BTreeMap<Position, Vec<Remembered>>,
    /// The answers whose rows were there before and are to go.
    forgotten: Vec<Position>,
    /// The epoch ends in it.
    ends: bool,
}

impl Step<'_> {
    fn entry(&mut self, entry: Committed, applied: &mut Vec<Applied>) -> Result<(), MachineError> {
        let expected = self.state.applied.index + 1;
        if entry.index != expected {
            return Err(MachineError::Gap { expected, found: entry.index });
        }
        self.state.applied.index = entry.index;
        self.state.term = entry.term;
        // For every entry, whatever it says: what is forgotten depends on positions alone.
        let forgotten = self.sessions.expire(self.state.applied, self.bounds, &mut self.state.floor);
        self.forget(forgotten);
        for command in entry.commands {
            let (request, result) = match command {
                Command::Write(write) => (write.request, self.write(write)?),
                Command::Seal { request, next } => (request, self.seal(next)),
                Command::Late { request, records } => (request, self.late(records)?),
                Command::Settle { request } => (request, self.settle()?),
            };
            applied.push(Applied { index: entry.index, request, result });
        }
        Ok(())
    }

    /// Ends the epoch; doing it again changes nothing.
    fn seal(&mut self, next: Epoch) -> Result<Outcome, Error> {
        let Position { epoch, index } = self.state.applied;
        match self.state.sealed {
            None if next > epoch => (self.state.sealed, self.ends) = (Some(Seal { next, index }), true),
            Some(seal) if seal.next == next => {}
            other => {
                let other = other.map_or_else(String::new, |seal| format!(": it is, for epoch {}", seal.next));
                let why = format!("epoch {epoch} cannot be sealed for epoch {next}{other}");
                return Err(Error::InvalidRequest { why });
            }
        }
        Ok(Outcome::Written(self.state.last))
    }

    fn sealed(&self) -> Result<(), Error> {
        let Some(Seal { next, .. }) = self.state.sealed else { return Ok(()) };
        let why = format!("its epoch {} has ended; epoch {next} follows", self.state.applied.epoch);
        Err(Error::Changing { namespace: self.group.name.clone(), why })
    }

    /// Merges writes of earlier epochs by their stamps.
    fn late(&mut self, records: Vec<(Bytes, Record)>) -> Result<Result<Outcome, Error>, MachineError> {
        if let Err(error) = self.sealed() {
            return Ok(Err(error));
        }
        let epoch = self.state.applied.epoch;
        if !self.state.keep_tombstones || records.iter().any(|(_, record)| record.stamp.epoch >= epoch) {
            return Ok(Err(Error::InvalidRequest { why: "late writes that nobody is owed".into() }));
        }
        for (key, record) in records {
            let old = self.load(&key)?;
            if old.as_ref().is_none_or(|old| old.stamp < record.stamp) {
                self.replace(key, old, Some(record));
            }
        }
        Ok(Ok(Outcome::Written(self.state.last)))
    }

    /// Tombstones need not be kept; drops a few of the oldest.
    fn settle(&mut self) -> Result<Result<Outcome, Error>, MachineError> {
        if let Err(error) = self.sealed() {
            return Ok(Err(error));
        }
        self.state.keep_tombstones = false;
        let mut doomed = Vec::new();
        let (from, to) = layout::tombstones_from(self.group.namespace, *self.listed_from);
        for row in self.view.scan(Family::Namespace, &from, Some(&to))? {
            let (place, key) = row?;
            // Gone already, by an entry before this one.
            if self.listed.get(&place) != Some(&None) {
                doomed.push((layout::tombstone_stamp(&place)?, key));
            }
            if doomed.len() == SETTLE_ROWS {
                break;
            }
        }
        for (stamp, key) in doomed {
            let old = self.load(&key)?;
            if old.as_ref().is_some_and(|old| old.live().is_none()) {
                self.replace(key, old, None);
            }
            *self.listed_from = stamp;
        }
        Ok(Ok(Outcome::Written(self.state.last)))
    }

    /// Runs a write, unless it has run.
    fn write(&mut self, write: Write) -> Result<Result<Outcome, Error>, MachineError> {
        let Write { request, proposed, attempt, op } = write;
        let Some(attempt) = attempt else {
            return self.sealed().map_or_else(|error| Ok(Err(error)), |()| self.run(op, proposed, request.node));
        };
        match self.sessions.check(&attempt, self.state.floor) {
            Verdict::Fresh => {
                // Nothing is remembered of a refusal: the next epoch is to run it.
                if let Err(error) = self.sealed() {
                    return Ok(Err(error));
                }
                let answer = self.run(op, proposed, request.node)?;
                self.remember(&attempt, answer.clone());
                Ok(answer)
            }
            Verdict::Ran(position) => self.recall(position, &attempt),
            Verdict::Refused(error) => Ok(Err(error)),
        }
    }

    fn run(&mut self, op: Op, proposed: Hlc, node: NodeId) -> Result<Result<Outcome, Error>, MachineError> {
        // The proposer's clock may be behind: the machine's own last stamp is what makes stamps rise with the log.
        let hlc = proposed.max(self.state.last.hlc.next());
        let stamp = Stamp { epoch: self.group.epoch, hlc, node };
        match op {
            Op::Write { mutation } => {
                let old = self.load(&mutation.key)?;
                self.change(mutation, old, stamp);
            }
            Op::CompareAndSet { expect, mutation } => {
                let old = self.load(&mutation.key)?;
                if let Err(found) = holds(expect, old.as_ref()) {
                    return Ok(Err(Error::CompareFailed { found }));
                }
                self.change(mutation, old, stamp);
            }
            Op::Transaction { compares, then, otherwise, reads } => {
                return self.transaction(&compares, then, otherwise, &reads, stamp);
            }
            Op::Get { .. } | Op::Scan { .. } => {
                return Ok(Err(Error::InvalidRequest { why: "a read was proposed as a write".into() }));
            }
        }
        self.state.last = stamp;
        Ok(Ok(Outcome::Written(stamp)))
    }

    fn transaction(
        &mut self,
        compares: &[Compare],
        then: Vec<Mutation>,
        otherwise: Vec<Mutation>,
        reads: &[Bytes],
        stamp: Stamp,
    ) -> Result<Result<Outcome, Error>, MachineError> {
        let mut held = true;
        for compare in compares {
            held = held && holds(compare.expect, self.load(&compare.key)?.as_ref()).is_ok();
        }
        let mutations = if held { then } else { otherwise };
        // The answer first: if it is too large, nothing may have changed.
        let reads = match self.read_after(&mutations, reads, stamp)? {
            Ok(reads) => reads,
            Err(error) => return Ok(Err(error)),
        };
        for mutation in mutations {
            let old = self.load(&mutation.key)?;
            self.change(mutation, old, stamp);
        }
        self.state.last = stamp;
        Ok(Ok(Outcome::Transaction(TxnResult { held, stamp, reads })))
    }

    /// What `keys` will hold once `mutations` are made.
    fn read_after(&self, mutations: &[Mutation], keys: &[Bytes], stamp: Stamp) -> Result<Reads, MachineError> {
        let changes: BTreeMap<&Bytes, &Change> = mutations.iter().map(|m| (&m.key, &m.change)).collect();
        let (mut reads, mut size) = (Vec::with_capacity(keys.len()), 0);
        for key in keys {
            let read = match changes.get(key) {
                Some(Change::Put(value)) => Some((stamp, value.clone())),
                Some(Change::Delete) => None,
                None => self.load(key)?.and_then(|record| Some((record.stamp, record.live()?.clone()))),
            };
            size += read.as_ref().map_or(0, |(_, value)| value.len());
            if size > limits::TXN_BYTES {
                let (what, limit) = (Resource::TransactionBytes, limits::TXN_BYTES as u64);
                return Ok(Err(Error::TooLarge { what, size: size as u64, limit }));
            }
            reads.push(read);
        }
        Ok(Ok(reads))
    }

    fn load(&self, key: &Bytes) -> Result<Option<Record>, MachineError> {
        match self.records.get(key) {
            Some(record) => Ok(record.clone()),
            None => load(self.view, self.group.namespace, key),
        }
    }

    /// Makes a change where `old` is what the key holds.
    fn change(&mut self, mutation: Mutation, old: Option<Record>, stamp: Stamp) {
        let Mutation { key, change } = mutation;
        let new = match change {
            Change::Put(value) => Some(Record::value(stamp, value)),
            Change::Delete if self.state.keep_tombstones => Some(Record::tombstone(stamp)),
            Change::Delete => None,
        };
        self.replace(key, old, new);
    }

    /// Puts one record, or nothing, in the place of another, or of nothing.
    fn replace(&mut self, key: Bytes, old: Option<Record>, new: Option<Record>) {
        if old.is_none() && new.is_none() {
            return;
        }
        let state = &mut self.state;
        state.digest.replace(&key, old.as_ref(), new.as_ref());
        match &old {
            Some(old) if old.live().is_some() => state.keys = state.keys.saturating_sub(1),
            Some(old) => {
                state.tombstones = state.tombstones.saturating_sub(1);
                self.listed.insert(layout::tombstone_key(self.group.namespace, old.stamp), None);
            }
            None => {}
        }
        match &new {
            Some(new) if new.live().is_some() => state.keys += 1,
            Some(new) => {
                state.tombstones += 1;
                *self.listed_from = new.stamp.min(*self.listed_from);
                self.listed.insert(layout::tombstone_key(self.group.namespace, new.stamp), Some(key.clone()));
            }
            None => {}
        }
        self.records.insert(key, new);
    }

    fn remember(&mut self, attempt: &Try, answer: Result<Outcome, Error>) {
        let position = self.state.applied;
        let (remembered, forgotten) =
            self.sessions.remember(attempt, position, answer, self.bounds, &mut self.state.floor);
        self.forget(forgotten);
        self.answers.entry(position).or_default().push(remembered);
    }

    fn recall(&self, position: Position, attempt: &Try) -> Result<Result<Outcome, Error>, MachineError> {
        let answer = match self.answers.get(&position) {
            Some(row) => sessions::answer_in(row, attempt).cloned(),
            None => sessions::recall(self.view, self.group.namespace, position, attempt)?,
        };
        let missing = || StoreError::corrupt("a remembered answer is missing");
        Ok(answer.ok_or_else(missing)?)
    }

    fn forget(&mut self, positions: Vec<Position>) {
        for position in positions {
            if self.answers.remove(&position).is_none() {
                self.forgotten.push(position);
            }
        }
    }

    fn finish(self, batch: &mut Batch) {
        let namespace = self.group.namespace;
        for (key, record) in self.records {
            let row = layout::data_key(namespace, &key);
            match record {
                Some(record) => batch.put(Family::Data, row, record.encode(&key)),
                None => batch.delete(Family::Data, row),
            }
        }
        for (row, key) in self.listed {
            match key {
                Some(key) => batch.put(Family::Namespace, row, key),
                None => batch.delete(Family::Namespace, row),
            }
        }
        for (position, row) in self.answers {
            put(batch, answer_key(namespace, &position.to_bytes()), &row);
        }
        for position in self.forgotten {
            batch.delete(Family::Namespace, answer_key(namespace, &position.to_bytes()));
        }
        if self.ends {
            note_answers(batch, namespace, self.state.applied.epoch, self.sessions.positions());
        }
        put(batch, state_key(namespace), self.state);
    }
}

type Reads = Result<Vec<Option<(Stamp, Bytes)>>, Error>;

/// Whether a key holds what it must; the version that it does hold otherwise.
fn holds(expect: Expect, record: Option<&Record>) -> Result<(), Option<Stamp>> {
    let found = record.filter(|record| record.live().is_some()).map(|record| record.stamp);
    let held = match expect {
        Expect::Stamp(stamp) => found == Some(stamp),
        Expect::Absent => found.is_none(),
        Expect::Present => found.is_some(),
    };
    if held { Ok(()) } else { Err(found) }
}
