//! The exactly-once table: which writes have run, and where their answers lie.
//!
//! The answers of one entry are a row, keyed by its position in the log; this is the index over those rows, and a
//! function of them (with the floor, which the [`State`](super::State) keeps), so that a replica that restarted
//! or installed a snapshot decides as every other does. A write that says "answered below n" forgets what was answered
//! below n; a row goes with the last answer in it. Until then it still holds the others, which are known by their
//! session: a later row, or its own, says that they were received.
//!
//! Nothing here looks at a clock. What is forgotten, and when, follows from log positions alone:
//! an answer goes when its client has it, when it is `positions` old, when there are `answers` that are younger, or when
//! its session is the least recently used of more than `sessions`. All but the first raise the *floor*, and everything
//! below that goes: every write at or above it whose answer was not received is still known. So a write whose client had seen the position just before the floor, or a
//! later one, and that is not in the table, has never run; one first sent before that is refused.
//!
//! After Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 6.3, with the floor in the place of the
//! registration of sessions: a client needs no round trip before its first write.

use std::collections::{BTreeMap, btree_map::Entry};

use bytes::Bytes;
use duet_proto::{Error, NamespaceId, Outcome, SessionId, Try, limits};
use duet_store::{StoreError, View, layout};
use serde::{Deserialize, Serialize};

use super::rows::{self, Position};

/// How much is remembered. Equal on every replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) sessions: usize,
    pub(crate) answers: usize,
    pub(crate) positions: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        let (sessions, answers) = (limits::SESSIONS, limits::SESSION_ANSWERS);
        Bounds { sessions, answers, positions: limits::SESSION_POSITIONS }
    }
}

/// The answer of one write. A row is a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) session: SessionId,
    pub(crate) sequence: u64,
    /// The session's, after this write. In every row, so that the rows that are left always hold the highest.
    pub(crate) answered_below: u64,
    pub(crate) answer: Result<Outcome, Error>,
}

/// Invariants: a session is here if and only if it has an answer, and a position if and only if it has one;
/// `by_position` and the sessions' `answers` hold the same pairs, `count` of them; no answer lies below its session's
/// `answered_below`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    by_position: BTreeMap<Position, Vec<(SessionId, u64)>>,
    count: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Session {
    answered_below: u64,
    last: Position,
    answers: BTreeMap<u64, Position>,
}

/// What to do with a write that may be a retry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has never run: run it.
    Fresh,
    /// It has run; its answer lies at this position.
    Ran(Position),
    /// It may have run or not; it will not run now.
    Refused(Error),
}

impl Sessions {
    /// Builds the index from the rows.
    pub(crate) fn open(view: &dyn View, namespace: NamespaceId) -> Result<Sessions, StoreError> {
        let mut sessions = Sessions::default();
        for row in rows::answers(view, namespace)? {
            let (key, value) = row?;
            let (position, row) = decode(&key, &value)?;
            for remembered in &row {
                sessions.insert(position, remembered);
            }
        }
        Ok(sessions)
    }

    /// Where there are answers.
    pub(crate) fn positions(&self) -> impl Iterator<Item = &Position> {
        self.by_position.keys()
    }

    /// Sessions, and answers of all of them.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.by_id.len(), self.count)
    }

    /// Whether a write may run.
    pub(crate) fn check(&self, attempt: &Try, floor: Position) -> Verdict {
        if attempt.answered_below > attempt.sequence {
            let why = "a write cannot be answered before it was sent".into();
            return Verdict::Refused(Error::InvalidRequest { why });
        }
        if let Some(session) = self.by_id.get(&attempt.session) {
            if let Some(position) = session.answers.get(&attempt.sequence) {
                return Verdict::Ran(*position);
            }
            if attempt.sequence < session.answered_below {
                // A copy that was long on its way. Its client has the answer and does not wait for another.
                let why = "a late copy of a write whose answer was received".into();
                return Verdict::Refused(Error::OutcomeUnknown { why });
            }
        }
        // If it ran, it ran after the position that its client had seen.
        if (Position { epoch: attempt.epoch, index: attempt.seen.saturating_add(1) }) < floor {
            return Verdict::Refused(Error::SessionExpired { floor: floor.index, seen: attempt.seen });
        }
        Verdict::Fresh
    }

    /// Takes in the answer of the write at `position`, which [`Sessions::check`] found fresh. Answers what is to go
    /// into the row, and the positions whose rows are to go.
    pub(crate) fn remember(
        &mut self,
        attempt: &Try,
        position: Position,
        answer: Result<Outcome, Error>,
        bounds: Bounds,
        floor: &mut Position,
    ) -> (Remembered, Vec<Position>) {
        let mut forgotten = Vec::new();
        if self.by_id.len() >= bounds.sessions && !self.by_id.contains_key(&attempt.session) {
            // A walk over all sessions, but only for the first write of a new one when the table is full.
            let oldest = self.by_id.values().map(|session| session.last).min();
            *floor = oldest.map_or(*floor, |last| (*floor).max(last.next()));
            forgotten = self.forget_below(*floor);
        }
        let before = self.by_id.get(&attempt.session).map_or(0, |s| s.answered_below);
        let remembered = Remembered {
            session: attempt.session,
            sequence: attempt.sequence,
            answered_below: before.max(attempt.answered_below),
            answer,
        };
        forgotten.extend(self.insert(position, &remembered));
        (remembered, forgotten)
    }

    /// Forgets what is too old at `position`. Answers the positions whose rows are to go.
    pub(crate) fn expire(&mut self, position: Position, bounds: Bounds, floor: &mut Position) -> Vec<Position> {
        if position.index >= bounds.positions {
            *floor = (*floor).max(Position { index: position.index - bounds.positions + 1, ..position });
        }
        let mut over = self.count.saturating_sub(bounds.answers);
        for (position, answers) in &self.by_position {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(answers.len());
            *floor = (*floor).max(position.next());
        }
        self.forget_below(*floor)
    }

    fn forget_below(&mut self, floor: Position) -> Vec<Position> {
        let mut forgotten = Vec::new();
        while let Some(first) = self.by_position.first_entry().filter(|first| *first.key() < floor) {
            let (position, answers) = first.remove_entry();
            self.count -= answers.len();
            for (session, sequence) in answers {
                if let Entry::Occupied(mut session) = self.by_id.entry(session) {
                    session.get_mut().answers.remove(&sequence);
                    if session.get().answers.is_empty() {
                        session.remove();
                    }
                }
            }
            forgotten.push(position);
        }
        forgotten
    }

    /// Answers the positions that have no answers any more.
    fn insert(&mut self, position: Position, new: &Remembered) -> Vec<Position> {
        let fresh = || Session { answered_below: 0, last: position, answers: BTreeMap::new() };
        let session = self.by_id.entry(new.session).or_insert_with(fresh);
        session.answered_below = session.answered_below.max(new.answered_below);
        session.last = session.last.max(position);
        session.answers.insert(new.sequence, position);
        self.by_position.entry(position).or_default().push((new.session, new.sequence));
        self.count += 1;

        let mut empty = Vec::new();
        // One by one: `split_off` walks over all that stays.
        let below = session.answered_below;
        while let Some(first) = session.answers.first_entry().filter(|first| *first.key() < below) {
            let (sequence, position) = first.remove_entry();
            let Entry::Occupied(mut answers) = self.by_position.entry(position) else { continue };
            if let Some(at) = answers.get().iter().position(|answer| *answer == (new.session, sequence)) {
                answers.get_mut().remove(at);
            }
            self.count -= 1;
            if answers.get().is_empty() {
                answers.remove();
                empty.push(position);
            }
        }
        empty
    }
}

/// Reads a row of the table.
pub(crate) fn decode(key: &Bytes, value: &Bytes) -> Result<(Position, Vec<Remembered>), StoreError> {
    let position = Position::from_bytes(&rows::answer_position(key)?)
        .ok_or_else(|| StoreError::corrupt("an answer at no position"))?;
    Ok((position, rows::decode(&layout::unguard(key, value)?)?))
}

/// The answer of a write in the row of its entry.
pub(crate) fn answer_in<'a>(row: &'a [Remembered], attempt: &Try) -> Option<&'a Result<Outcome, Error>> {
    row.iter().find(|r| (r.session, r.sequence) == (attempt.session, attempt.sequence)).map(|r| &r.answer)
}

/// The answer of a write that ran at `position`, as the rows say.
pub(crate) fn recall(
    view: &dyn View,
    namespace: NamespaceId,
    position: Position,
    attempt: &Try,
) -> Result<Option<Result<Outcome, Error>>, StoreError> {
    let key = rows::answer_key(namespace, &position.to_bytes());
    let row = rows::get::<Vec<Remembered>>(view, &key)?;
    Ok(row.and_then(|row| answer_in(&row, attempt).cloned()))
}
