//! Local reads, from durable state only, and the tokens that go with them.

use bytes::Bytes;
use duet_proto::{
    Answer, Cursor, Entry, Error, Hlc, KeyRange, Meta as AnswerMeta, NodeId, Op, Outcome, Record, ScanLimit, Stamp,
    Token, limits,
};
use duet_store::{Family, View, layout};

use super::Replica;
use crate::{
    Frontier, Planted, SpaceId,
    rows::Standing,
    table::{ReadError, read},
};

/// Takes note in a token that something was seen.
pub(super) fn note(token: &mut Token, origin: NodeId, hlc: Hlc) {
    match token.seen.binary_search_by_key(&origin, |(node, _)| *node) {
        Ok(at) => token.seen[at].1 = token.seen[at].1.max(hlc),
        Err(at) => token.seen.insert(at, (origin, hlc)),
    }
}

/// What a replica durably held at one moment: all it takes to answer reads from a view of that moment, wherever that
/// is done.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) id: SpaceId,
    pub(crate) node: NodeId,
    pub(crate) version: u64,
    pub(crate) moved: Frontier,
    pub(crate) whole: bool,
    pub(crate) frontier: Frontier,
    pub(crate) fenced: bool,
    /// A planted bug.
    forgets_stamps: bool,
}

impl Replica {
    /// What is durable now, for reads.
    pub(crate) fn reader(&self) -> Reader {
        Reader {
            id: SpaceId { namespace: self.namespace, epoch: self.epoch },
            node: self.config.node,
            version: self.synced.members.version,
            moved: self.synced.moved.clone(),
            whole: self.synced.standing == Standing::Whole,
            frontier: self.synced.frontier.clone(),
            fenced: self.synced.fence.is_some(),
            forgets_stamps: self.planted(Planted::TokenWithoutStamps),
        }
    }

    /// Answers a read from `view`, which must show what was durable at the last step that was persisted: the store
    /// between two steps, or a snapshot taken then. It sees at least what `token` saw, or says that it cannot yet;
    /// the caller may try again after a later step.
    ///
    /// # Errors
    /// `TokenNotCovered`, `Unavailable` before the first copy is complete, `EpochChanged` is the router's to say.
    pub fn read(&self, view: &dyn View, op: &Op, token: Option<&Token>) -> Result<Answer, Error> {
        self.reader().read(view, op, token, &mut None)
    }
}

impl Reader {
    /// As [`Replica::read`]; a key whose record cannot be read is left in `damaged`.
    pub(crate) fn read(
        &self,
        view: &dyn View,
        op: &Op,
        token: Option<&Token>,
        damaged: &mut Option<Bytes>,
    ) -> Result<Answer, Error> {
        let (node, SpaceId { namespace, epoch }) = (self.node, self.id);
        if !self.whole {
            return Err(Error::Unavailable { node, why: "it is still receiving its first copy".into() });
        }
        let mut seen = Token { epoch, seen: self.frontier.iter().collect() };
        if let Some(token) = token {
            self.satisfy(token)?;
            token.seen.iter().for_each(|(origin, hlc)| note(&mut seen, *origin, *hlc));
        }
        // What lies beyond the frontier was seen too; a record of an earlier epoch is part of every frontier.
        let mut returned = |stamp: Stamp| {
            if stamp.epoch == epoch && !self.forgets_stamps {
                note(&mut seen, stamp.node, stamp.hlc);
            }
        };
        let outcome = match op {
            Op::Get { key } => {
                let record = read(view, namespace, key).map_err(|e| self.unreadable(key, &e, damaged))?;
                record.iter().try_for_each(|record| self.of_this_epoch(record))?;
                record.iter().for_each(|record| returned(record.stamp));
                Outcome::Value(record.and_then(|r| r.live().cloned().map(|value| (r.stamp, value))))
            }
            Op::Scan { range, limit, cursor } => {
                self.page(view, range, limit, cursor.as_ref(), &mut returned, damaged)?
            }
            _ => return Err(Error::InvalidRequest { why: "a write came where a read was expected".into() }),
        };
        Ok(Answer { outcome, meta: AnswerMeta { epoch, position: 0, leader: None, token: Some(seen) } })
    }

    /// The next epoch writes over the same records. A replica that has not heard of it after a restart does not show
    /// them as its own.
    fn of_this_epoch(&self, record: &Record) -> Result<(), Error> {
        if record.stamp.epoch <= self.id.epoch {
            return Ok(());
        }
        let why = format!("its epoch {} is over, and it has yet to follow", self.id.epoch);
        Err(Error::Unavailable { node: self.node, why })
    }

    fn satisfy(&self, token: &Token) -> Result<(), Error> {
        if token.seen.is_empty() {
            return Ok(());
        }
        let not_covered = |why: String| Err(Error::TokenNotCovered { why });
        if token.epoch != self.id.epoch {
            return not_covered(format!("it has seen epoch {}, this is epoch {}", token.epoch, self.id.epoch));
        }
        let lacking = token.seen.iter().find(|(origin, hlc)| *hlc > self.frontier.get(*origin));
        lacking.map_or(Ok(()), |(origin, hlc)| {
            let have = self.frontier.get(*origin);
            not_covered(format!("the writes of node {origin} up to {hlc}; here they reach {have}"))
        })
    }

    fn page(
        &self,
        view: &dyn View,
        range: &KeyRange,
        limit: &ScanLimit,
        cursor: Option<&Cursor>,
        returned: &mut dyn FnMut(Stamp),
        damaged: &mut Option<Bytes>,
    ) -> Result<Outcome, Error> {
        let SpaceId { namespace, epoch } = self.id;
        let broken = |error: duet_store::StoreError| error.at(self.node);
        let mut from = layout::data_key(namespace, &range.start).to_vec();
        if let Some(cursor) = cursor
            && cursor.last >= range.start
        {
            from = layout::data_key(namespace, &cursor.last).to_vec();
            from.push(0);
        }
        let to = match &range.end {
            Some(end) => layout::data_key(namespace, end),
            None => layout::after_prefix(&layout::namespace_prefix(namespace)),
        };
        let most = limit.entries.clamp(1, limits::SCAN_ENTRIES) as usize;
        let (mut entries, mut bytes) = (Vec::<Entry>::new(), 0);
        for row in view.scan(Family::Data, &from, Some(&to)).map_err(broken)? {
            let (place, value) = row.map_err(broken)?;
            let (_, key) = layout::split_data_key(&place).map_err(broken)?;
            let record = Record::decode(&key, value).map_err(|e| self.unreadable(&key, &e.into(), damaged))?;
            self.of_this_epoch(&record)?;
            if let Some(value) = record.live() {
                let value = if limit.keys_only { Bytes::new() } else { value.clone() };
                bytes += key.len() + value.len();
                if entries.len() == most
                    || !entries.is_empty() && bytes > limit.bytes.min(limits::SCAN_BYTES) as usize
                {
                    let next = entries.last().map(|e| Cursor { epoch, last: e.key.clone() });
                    return Ok(Outcome::Page { entries, next });
                }
                entries.push(Entry { key, stamp: record.stamp, value });
            }
            // An absence is seen as well as a value.
            returned(record.stamp);
        }
        Ok(Outcome::Page { entries, next: None })
    }

    fn unreadable(&self, key: &Bytes, error: &ReadError, damaged: &mut Option<Bytes>) -> Error {
        let node = self.node;
        match error {
            ReadError::Store(error) => error.at(node),
            ReadError::Record(error) => {
                *damaged = Some(key.clone());
                Error::Corrupt { node, what: format!("key {}: {error}", key.escape_ascii()) }
            }
        }
    }
}
