//! Local reads, from durable state only, and the tokens that go with them.

use bytes::Bytes;
use duet_proto::{
    Answer, Cursor, Entry, Error, Hlc, KeyRange, Meta as AnswerMeta, NodeId, Op, Outcome, ScanLimit, Stamp, Token,
    limits,
};
use duet_store::{Family, View, layout};

use super::Replica;
use crate::{
    Planted,
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

impl Replica {
    /// Answers a read from `view`, which must show what was durable at the last step that was persisted: the store
    /// between two steps, or a snapshot taken then. It sees at least what `token` saw, or says that it cannot yet;
    /// the caller may try again after a later step.
    ///
    /// # Errors
    /// `TokenNotCovered`, `Unavailable` before the first copy is complete, `EpochChanged` is the router's to say.
    pub fn read(&self, view: &dyn View, op: &Op, token: Option<&Token>) -> Result<Answer, Error> {
        let node = self.config.node;
        if self.synced.standing != Standing::Whole {
            return Err(Error::Unavailable { node, why: "it is still receiving its first copy".into() });
        }
        let mut seen = Token { epoch: self.epoch, seen: self.synced.frontier.iter().collect() };
        if let Some(token) = token {
            self.satisfy(token)?;
            token.seen.iter().for_each(|(origin, hlc)| note(&mut seen, *origin, *hlc));
        }
        // What lies beyond the frontier was seen too; a record of an earlier epoch is part of every frontier.
        let mut returned = |stamp: Stamp| {
            if stamp.epoch == self.epoch && !self.planted(Planted::TokenWithoutStamps) {
                note(&mut seen, stamp.node, stamp.hlc);
            }
        };
        let outcome = match op {
            Op::Get { key } => {
                let record = read(view, self.namespace, key).map_err(|e| self.unreadable(key, &e))?;
                record.iter().for_each(|record| returned(record.stamp));
                Outcome::Value(record.and_then(|r| r.live().cloned().map(|value| (r.stamp, value))))
            }
            Op::Scan { range, limit, cursor } => self.page(view, range, limit, cursor.as_ref(), &mut returned)?,
            _ => return Err(Error::InvalidRequest { why: "a write came where a read was expected".into() }),
        };
        Ok(Answer { outcome, meta: AnswerMeta { epoch: self.epoch, position: 0, leader: None, token: Some(seen) } })
    }

    fn satisfy(&self, token: &Token) -> Result<(), Error> {
        if token.seen.is_empty() {
            return Ok(());
        }
        let not_covered = |why: String| Err(Error::TokenNotCovered { why });
        if token.epoch != self.epoch {
            return not_covered(format!("it has seen epoch {}, this is epoch {}", token.epoch, self.epoch));
        }
        let lacking = token.seen.iter().find(|(origin, hlc)| *hlc > self.synced.frontier.get(*origin));
        lacking.map_or(Ok(()), |(origin, hlc)| {
            let have = self.synced.frontier.get(*origin);
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
    ) -> Result<Outcome, Error> {
        let broken = |error: duet_store::StoreError| error.at(self.config.node);
        let mut from = layout::data_key(self.namespace, &range.start).to_vec();
        if let Some(cursor) = cursor
            && cursor.last >= range.start
        {
            from = layout::data_key(self.namespace, &cursor.last).to_vec();
            from.push(0);
        }
        let to = match &range.end {
            Some(end) => layout::data_key(self.namespace, end),
            None => layout::after_prefix(&layout::namespace_prefix(self.namespace)),
        };
        let most = limit.entries.clamp(1, limits::SCAN_ENTRIES) as usize;
        let (mut entries, mut bytes) = (Vec::<Entry>::new(), 0);
        for row in view.scan(Family::Data, &from, Some(&to)).map_err(broken)? {
            let (place, value) = row.map_err(broken)?;
            let (_, key) = layout::split_data_key(&place).map_err(broken)?;
            let record = duet_proto::Record::decode(&key, value).map_err(|e| self.unreadable(&key, &e.into()))?;
            if let Some(value) = record.live() {
                let value = if limit.keys_only { Bytes::new() } else { value.clone() };
                bytes += key.len() + value.len();
                if entries.len() == most
                    || !entries.is_empty() && bytes > limit.bytes.min(limits::SCAN_BYTES) as usize
                {
                    let next = entries.last().map(|e| Cursor { epoch: self.epoch, last: e.key.clone() });
                    return Ok(Outcome::Page { entries, next });
                }
                entries.push(Entry { key, stamp: record.stamp, value });
            }
            // An absence is seen as well as a value.
            returned(record.stamp);
        }
        Ok(Outcome::Page { entries, next: None })
    }

    fn unreadable(&self, key: &[u8], error: &ReadError) -> Error {
        let node = self.config.node;
        match error {
            ReadError::Store(error) => error.at(node),
            ReadError::Record(error) => Error::Corrupt { node, what: format!("key {}: {error}", key.escape_ascii()) },
        }
    }
}
