//! The sender's side: chunks out of a store snapshot.

use std::sync::Arc;

use bytes::Bytes;
use duet_proto::{Epoch, NamespaceId, Record};
use duet_store::Snapshot;

use super::{Body, CHUNK_BYTES, Chunk, Header, Place, Point, Section, SnapshotError, SnapshotId};
use crate::machine::{State, after, get, state_key};

/// Cuts a snapshot into chunks, as they are asked for. Holds the store snapshot, and nothing else that grows.
pub struct Capture {
    snapshot: Arc<dyn Snapshot>,
    header: Header,
    next: Point,
}

impl Capture {
    /// The state of a group as `snapshot` shows it, with what the host wants to travel along; `host` is to be read
    /// from the same snapshot.
    ///
    /// # Errors
    /// If there is none of that epoch, the epoch has ended, or it cannot be read.
    pub fn new(
        snapshot: Arc<dyn Snapshot>,
        namespace: NamespaceId,
        epoch: Epoch,
        host: Bytes,
    ) -> Result<Capture, SnapshotError> {
        let state: State = get(&*snapshot, &state_key(namespace))?.ok_or(SnapshotError::Nothing)?;
        // Over the records of an epoch that has ended the next one may have begun.
        if state.applied.epoch != epoch || state.sealed.is_some() {
            return Err(SnapshotError::Nothing);
        }
        let id = SnapshotId { namespace, epoch, index: state.applied.index, term: state.term };
        Ok(Capture { snapshot, header: Header { id, state, host }, next: Point::START })
    }

    /// What it is of.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Goes on, or back, to the point that a receiver of the same snapshot wants.
    ///
    /// # Errors
    /// If that is a point of another snapshot.
    pub fn seek(&mut self, id: SnapshotId, point: Point) -> Result<(), SnapshotError> {
        if id != self.header.id {
            return Err(SnapshotError::Other { expected: self.header.id, found: id });
        }
        self.next = point;
        Ok(())
    }

    /// The next chunk and its number, or `None` after the end.
    ///
    /// # Errors
    /// If the store cannot be read, or a record is damaged: this replica is then no source of snapshots.
    pub fn next_chunk(&mut self) -> Result<Option<(u32, Bytes)>, SnapshotError> {
        let (body, place) = match self.next.place.clone() {
            Place::Header => (Body::Header(self.header.clone()), Place::first(Section::Records)),
            Place::Rows { section, after } => self.rows(section, after)?,
            Place::End => (Body::End, Place::Done),
            Place::Done => return Ok(None),
        };
        let number = self.next.number;
        self.next = Point { number: number + 1, place };
        Ok(Some((number, Chunk { id: self.header.id, number, body }.encode())))
    }

    /// As many rows as fit, and the place after them.
    fn rows(&self, section: Section, last: Option<Bytes>) -> Result<(Body, Place), SnapshotError> {
        let first = last.as_deref().map(after).unwrap_or_default();
        let (family, from, to) = section.range(self.header.id.namespace, &first);
        let mut rows: Vec<(Bytes, Bytes)> = Vec::new();
        let mut size = 0;
        for row in self.snapshot.scan(family, &from, Some(&to))? {
            let (row, value) = row?;
            let (key, value) = section.split(&row, value)?;
            size += key.len() + value.len();
            if let Some((last, _)) = rows.last().filter(|_| size > CHUNK_BYTES) {
                let after = Some(last.clone());
                return Ok((Body::Rows { section, more: true, rows }, Place::Rows { section, after }));
            }
            if section == Section::Records {
                // A record that was damaged on this disk is not spread.
                Record::decode(&key, value.clone())
                    .map_err(|error| SnapshotError::Record { key: key.clone(), error })?;
            }
            rows.push((key, value));
        }
        Ok((Body::Rows { section, more: false, rows }, section.end()))
    }
}

impl Place {
    /// The beginning of a section.
    pub(super) fn first(section: Section) -> Place {
        Place::Rows { section, after: None }
    }
}

impl Section {
    /// The place after its last row.
    pub(super) fn end(self) -> Place {
        match self {
            Section::Records => Place::first(Section::Answers),
            Section::Answers => Place::End,
        }
    }
}
