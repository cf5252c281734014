//! Applying entries.

use std::collections::BTreeMap;

use bytes::Bytes;
use duet_proto::{
    Change, Compare, Error, Expect, Hlc, Mutation, NodeId, Op, Outcome, Record, Resource, Stamp, Try, TxnResult,
    limits,
};
use duet_store::{Batch, Family, View, layout};

use super::{
    Applied, Command, Committed, Group, Machine, MachineError, Position, State, Write, put,
    read::load,
    rows::answer_key,
    sessions::{self, Bounds, Remembered, Sessions, Verdict},
    state_key,
};

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
            records: BTreeMap::new(),
            answers: BTreeMap::new(),
            forgotten: Vec::new(),
        };
        let mut applied = Vec::new();
        for entry in entries {
            applied.extend(step.entry(entry)?);
        }
        step.finish(batch);
        Ok(applied)
    }

    #[cfg(test)]
    pub(crate) fn bounded(mut self, sessions: usize, positions: u64) -> Machine {
        self.bounds = Bounds { sessions, positions };
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
    /// The keys written, as they are now.
    records: BTreeMap<Bytes, Option<Record>>,
    /// The answers remembered and not forgotten again.
    answers: BTreeMap<Position, Remembered>,
    /// The answers whose rows were there before and are to go.
    forgotten: Vec<Position>,
}

impl Step<'_> {
    fn entry(&mut self, entry: Committed) -> Result<Option<Applied>, MachineError> {
        let expected = self.state.applied.index + 1;
        if entry.index != expected {
            return Err(MachineError::Gap { expected, found: entry.index });
        }
        self.state.applied.index = entry.index;
        self.state.term = entry.term;
        // For every entry, whatever it says: what is forgotten depends on positions alone.
        let forgotten = self.sessions.expire(self.state.applied, self.bounds, &mut self.state.floor);
        self.forget(forgotten);
        match entry.command {
            Command::Noop => Ok(None),
            Command::Write(write) => {
                let request = write.request;
                let result = self.write(write)?;
                Ok(Some(Applied { index: entry.index, request, result }))
            }
        }
    }

    /// Runs a write, unless it has run.
    fn write(&mut self, write: Write) -> Result<Result<Outcome, Error>, MachineError> {
        let Write { request, proposed, attempt, op } = write;
        let Some(attempt) = attempt else { return self.run(op, proposed, request.node) };
        match self.sessions.check(&attempt, self.state.floor) {
            Verdict::Fresh => {
                let answer = self.run(op, proposed, request.node)?;
                self.remember(&attempt, answer.clone());
                Ok(answer)
            }
            Verdict::Ran(position) => self.recall(position),
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
            Change::Delete => None,
        };
        if old.is_none() && new.is_none() {
            return;
        }
        let state = &mut self.state;
        state.digest.replace(&key, old.as_ref(), new.as_ref());
        match old.as_ref().map(|old| old.live().is_some()) {
            Some(true) => state.keys = state.keys.saturating_sub(1),
            Some(false) => state.tombstones = state.tombstones.saturating_sub(1),
            None => {}
        }
        state.keys += u64::from(new.is_some());
        self.records.insert(key, new);
    }

    fn remember(&mut self, attempt: &Try, answer: Result<Outcome, Error>) {
        let position = self.state.applied;
        let (remembered, forgotten) =
            self.sessions.remember(attempt, position, answer, self.bounds, &mut self.state.floor);
        self.answers.insert(position, remembered);
        self.forget(forgotten);
    }

    fn recall(&self, position: Position) -> Result<Result<Outcome, Error>, MachineError> {
        if let Some(remembered) = self.answers.get(&position) {
            return Ok(remembered.answer.clone());
        }
        let key = answer_key(self.group.namespace, &position.to_bytes());
        match self.view.get(Family::Namespace, &key)? {
            Some(value) => Ok(sessions::decode(&key, &value)?.1.answer),
            None => Err(duet_store::StoreError::corrupt("a remembered answer is missing").into()),
        }
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
        for (position, remembered) in self.answers {
            put(batch, answer_key(namespace, &position.to_bytes()), &remembered);
        }
        for position in self.forgotten {
            batch.delete(Family::Namespace, answer_key(namespace, &position.to_bytes()));
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
