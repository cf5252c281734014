//! The exactly-once table: which writes have run, and where their answers lie.
//!
//! An answer is a row, keyed by the log position at which its write ran; this is the index over those rows, and a
//! function of them (with the floor, which the [`State`](super::State) keeps), so that a replica that restarted
//! or installed a snapshot decides as every other does. Memory is bounded by what clients have not yet said to
//! have received: a write that says "answered below n" removes the rows below n.
//!
//! Nothing here looks at a clock. What is forgotten, and when, follows from log positions alone:
//! an answer goes when its client has it, when it is `positions` old, or when its session is the least
//! recently used of more than `sessions`. The last two raise the *floor*: every write at or above it whose
//! answer was not received is still known. So a write whose client had seen the position just before the floor, or a
//! later one, and that is not in the table, has never run; one first sent before that is refused.
//!
//! After Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 6.3, with the floor in the place of the
//! registration of sessions: a client needs no round trip before its first write.

use std::collections::{BTreeMap, btree_map::Entry};

use bytes::Bytes;
use duet_proto::{Error, NamespaceId, Outcome, SessionId, Try, limits};
use duet_store::{Family, StoreError, View, layout};
use serde::{Deserialize, Serialize};

use super::rows::{self, Position};

/// How much is remembered. Equal on every replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) sessions: usize,
    pub(crate) positions: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { sessions: limits::SESSIONS, positions: limits::SESSION_POSITIONS }
    }
}

/// A row: the answer of one write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) session: SessionId,
    pub(crate) sequence: u64,
    /// The session's, after this write. In every row, so that the rows that are left always hold the highest.
    pub(crate) answered_below: u64,
    pub(crate) answer: Result<Outcome, Error>,
}

/// Invariants: a session is here if and only if it has a row; `by_position` and the sessions' `answers` hold the
/// same pairs; no answer lies below its session's `answered_below`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    by_position: BTreeMap<Position, (SessionId, u64)>,
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
        let (from, to) = layout::prefix_range(rows::answer_key(namespace, &[]));
        for row in view.scan(Family::Namespace, &from, Some(&to))? {
            let (key, value) = row?;
            let (position, remembered) = decode(&key, &value)?;
            sessions.insert(position, &remembered);
        }
        Ok(sessions)
    }

    /// Sessions, and answers of all of them.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.by_id.len(), self.by_position.len())
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

    /// Takes in the answer of the write at `position`, which [`Sessions::check`] found fresh. Answers its row and
    /// the positions whose rows are to go.
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
            self.evict_oldest(floor, &mut forgotten);
        }
        let before = self.by_id.get(&attempt.session).map_or(0, |s| s.answered_below);
        let remembered = Remembered {
            session: attempt.session,
            sequence: attempt.sequence,
            answered_below: before.max(attempt.answered_below),
            answer,
        };
        self.insert(position, &remembered);
        if let Some(session) = self.by_id.get_mut(&attempt.session) {
            let kept = session.answers.split_off(&session.answered_below);
            let gone = std::mem::replace(&mut session.answers, kept).into_values();
            forgotten.extend(gone.inspect(|position| {
                self.by_position.remove(position);
            }));
        }
        (remembered, forgotten)
    }

    /// Forgets what is too old at `position`. Answers the positions whose rows are to go.
    pub(crate) fn expire(&mut self, position: Position, bounds: Bounds, floor: &mut Position) -> Vec<Position> {
        if position.index >= bounds.positions {
            *floor = (*floor).max(Position { index: position.index - bounds.positions + 1, ..position });
        }
        let mut forgotten = Vec::new();
        while let Some(first) = self.by_position.first_entry().filter(|first| *first.key() < *floor) {
            let (position, (session, sequence)) = first.remove_entry();
            forgotten.push(position);
            if let Entry::Occupied(mut session) = self.by_id.entry(session) {
                session.get_mut().answers.remove(&sequence);
                if session.get().answers.is_empty() {
                    session.remove();
                }
            }
        }
        forgotten
    }

    /// Drops the least recently used session. What it wrote is known no more, so the floor rises past it.
    fn evict_oldest(&mut self, floor: &mut Position, forgotten: &mut Vec<Position>) {
        // A walk over all sessions, but only for the first write of a new one when the table is full.
        let Some((id, last)) = self.by_id.iter().map(|(id, s)| (*id, s.last)).min_by_key(|(_, last)| *last) else {
            return;
        };
        *floor = (*floor).max(last.next());
        for position in self.by_id.remove(&id).into_iter().flat_map(|s| s.answers.into_values()) {
            self.by_position.remove(&position);
            forgotten.push(position);
        }
    }

    fn insert(&mut self, position: Position, row: &Remembered) {
        self.by_position.insert(position, (row.session, row.sequence));
        let new = || Session { answered_below: 0, last: position, answers: BTreeMap::new() };
        let session = self.by_id.entry(row.session).or_insert_with(new);
        session.answered_below = session.answered_below.max(row.answered_below);
        session.last = session.last.max(position);
        session.answers.insert(row.sequence, position);
    }
}

/// Reads a row of the table.
pub(crate) fn decode(key: &Bytes, value: &Bytes) -> Result<(Position, Remembered), StoreError> {
    let position = Position::from_bytes(&rows::answer_position(key)?)
        .ok_or_else(|| StoreError::corrupt("an answer at no position"))?;
    Ok((position, rows::decode(&layout::unguard(key, value)?)?))
}
