//! Reads: of what is applied, as the view shows it. Whether that is fresh enough is the host's affair.

use bytes::{BufMut, Bytes, BytesMut};
use duet_proto::{Cursor, Entry, Error, KeyRange, Mode, NamespaceId, Op, Outcome, Record, ScanLimit, limits};
use duet_store::{Family, View, layout};

use super::{Machine, MachineError};

impl Machine {
    /// Answers a get or a page of a scan.
    ///
    /// # Errors
    /// [`Error::EpochChanged`] for a cursor of another epoch, [`Error::Corrupt`] for a damaged record (which is never
    /// served), [`Error::InvalidRequest`] for a write.
    pub fn read(&self, view: &dyn View, op: &Op) -> Result<Outcome, Error> {
        let outcome = match op {
            Op::Get { key } => load(view, self.group.namespace, key)
                .map(|record| Outcome::Value(record.and_then(|record| Some((record.stamp, record.live()?.clone()))))),
            Op::Scan { range, limit, cursor } => {
                let epoch = self.group.epoch;
                if cursor.as_ref().is_some_and(|cursor| cursor.epoch != epoch) {
                    let namespace = self.group.name.clone();
                    return Err(Error::EpochChanged { namespace, epoch, mode: Mode::Strong });
                }
                self.page(view, range, *limit, cursor.as_ref())
            }
            _ => return Err(Error::InvalidRequest { why: "a write was asked as a read".into() }),
        };
        outcome.map_err(|error| error.at(self.group.node))
    }

    fn page(
        &self,
        view: &dyn View,
        range: &KeyRange,
        limit: ScanLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Outcome, MachineError> {
        let namespace = self.group.namespace;
        let after = cursor.filter(|cursor| cursor.last >= range.start).map(|cursor| after(&cursor.last));
        let from = layout::data_key(namespace, after.as_ref().unwrap_or(&range.start));
        let to = match &range.end {
            Some(end) => layout::data_key(namespace, end),
            None => layout::after_prefix(&layout::namespace_prefix(namespace)),
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = None;
        let room = limit.bytes.min(limits::SCAN_BYTES) as usize;
        let most = limit.entries.min(limits::SCAN_ENTRIES) as usize;
        let mut size = 0;
        if from < to {
            for row in view.scan(Family::Data, &from, Some(&to))? {
                let (row, bytes) = row?;
                let (_, key) = layout::split_data_key(&row)?;
                let record = decode(&key, bytes)?;
                let Some(value) = record.live() else { continue };
                let value = if limit.keys_only { Bytes::new() } else { value.clone() };
                size += key.len() + value.len();
                // One entry always fits, so that a scan gets on.
                if let Some(last) = entries.last().filter(|_| entries.len() >= most || size > room) {
                    next = Some(Cursor { epoch: self.group.epoch, last: last.key.clone() });
                    break;
                }
                entries.push(Entry { key, stamp: record.stamp, value });
            }
        }
        Ok(Outcome::Page { entries, next })
    }
}

/// The record of a key.
pub(super) fn load(view: &dyn View, namespace: NamespaceId, key: &Bytes) -> Result<Option<Record>, MachineError> {
    match view.get(Family::Data, &layout::data_key(namespace, key))? {
        Some(bytes) => decode(key, bytes).map(Some),
        None => Ok(None),
    }
}

fn decode(key: &Bytes, bytes: Bytes) -> Result<Record, MachineError> {
    Record::decode(key, bytes).map_err(|error| MachineError::Record { key: key.clone(), error })
}

/// The first key after `key`.
pub(crate) fn after(key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(key.len() + 1);
    bytes.put_slice(key);
    bytes.put_u8(0);
    bytes.freeze()
}
