//! The receiver's side: chunks are staged, then moved into place.

use bytes::Bytes;
use duet_proto::{Digest, NamespaceId, Record};
use duet_store::{Batch, Family, StoreError, View, layout};
use serde::{Deserialize, Serialize};

use super::{Body, CHUNK_BYTES, Chunk, Header, Place, Point, Section, SnapshotError, SnapshotId};
use crate::machine::{
    Group, Position, Remembered, after, answer_key, answer_position, clear, decode, get, install_key, put, staging,
    state_key,
};

/// Bytes of keys and values that one step of the move copies.
const MOVE_BYTES: usize = 4 * CHUNK_BYTES;

/// How far an install is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It wants the chunk at this point. The old state is in place and serves.
    Receiving(Point),
    /// Everything has arrived and adds up. The old state is in place and serves.
    Staged,
    /// The old state is gone and the new one not yet complete: nothing is served. Rows are moved from here on.
    Moving(Place),
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Phase::Receiving(_) => "receiving",
            Phase::Staged => "staged",
            Phase::Moving(_) => "moving",
        }
    }
}

/// The install of one snapshot. Every step changes it and fills a batch, which must then be written, in order.
///
/// Invariants: what is in memory is the marker row, as of the last batch; the staged rows are those of the chunks
/// before the wanted point, and `tally` is what they add up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installer {
    header: Header,
    phase: Phase,
    tally: Tally,
}

/// What the staged records add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tally {
    digest: Digest,
    keys: u64,
    tombstones: u64,
}

impl Installer {
    /// Begins with the first chunk of a snapshot of `group`. What an earlier install has staged is dropped.
    ///
    /// # Errors
    /// If it is not a header of that group.
    pub fn begin(group: &Group, chunk: &[u8], batch: &mut Batch) -> Result<Installer, SnapshotError> {
        let Chunk { id, number, body } = Chunk::decode(chunk)?;
        let Body::Header(header) = body else {
            return Err(SnapshotError::OutOfOrder { expected: 0, found: number });
        };
        let of_group = (id.namespace, id.epoch) == (group.namespace, group.epoch);
        let applied = Position { epoch: id.epoch, index: id.index };
        if number != 0 || header.id != id || !of_group || header.state.applied != applied {
            let what = format!("a header of {id:?} for namespace {} in epoch {}", group.namespace, group.epoch);
            return Err(SnapshotError::Mismatch { what });
        }
        clear(batch, staging(id.namespace));
        let phase = Phase::Receiving(Point { number: 1, place: Place::first(Section::Records) });
        let installer = Installer { header, phase, tally: Tally::default() };
        installer.mark(batch);
        Ok(installer)
    }

    /// The install that was under way when the node stopped. If it is [`Phase::Moving`], it must be
    /// [`advanced`](Installer::advance) to its end before the machine is opened.
    ///
    /// # Errors
    /// If the marker cannot be read.
    pub fn resume(view: &dyn View, namespace: NamespaceId) -> Result<Option<Installer>, StoreError> {
        get(view, &install_key(namespace))
    }

    /// Which snapshot.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.header.id
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Stages a chunk.
    ///
    /// # Errors
    /// Then nothing has changed, and `batch` is as it was. [`SnapshotError::Damaged`],
    /// [`Other`](SnapshotError::Other) and [`OutOfOrder`](SnapshotError::OutOfOrder) concern the chunk: the wanted one
    /// may still come. After [`Record`](SnapshotError::Record) or [`Mismatch`](SnapshotError::Mismatch) the install
    /// should be [abandoned](Installer::abandon).
    pub fn accept(&mut self, chunk: &[u8], batch: &mut Batch) -> Result<&Phase, SnapshotError> {
        let Chunk { id, number, body } = Chunk::decode(chunk)?;
        if id != self.header.id {
            return Err(SnapshotError::Other { expected: self.header.id, found: id });
        }
        let Phase::Receiving(wanted) = &self.phase else {
            return Err(SnapshotError::Phase { phase: self.phase.name() });
        };
        if number != wanted.number {
            return Err(SnapshotError::OutOfOrder { expected: wanted.number, found: number });
        }
        let (phase, tally, rows) = match (body, &wanted.place) {
            (Body::Rows { section, more, rows }, Place::Rows { section: expected, after })
                if section == *expected && (!more || !rows.is_empty()) =>
            {
                let tally = self.check(section, after.as_ref(), &rows)?;
                let place = match rows.last().filter(|_| more) {
                    Some((last, _)) => Place::Rows { section, after: Some(last.clone()) },
                    None => section.end(),
                };
                (Phase::Receiving(Point { number: number + 1, place }), tally, Some((section, rows)))
            }
            (Body::End, Place::End) => {
                self.adds_up()?;
                (Phase::Staged, self.tally, None)
            }
            (_, place) => return Err(SnapshotError::Mismatch { what: format!("chunk {number} is not {place:?}") }),
        };
        (self.phase, self.tally) = (phase, tally);
        if let Some((section, rows)) = rows {
            for (key, value) in rows {
                put_row(batch, staging(id.namespace), section, &key, value);
            }
        }
        self.mark(batch);
        Ok(&self.phase)
    }

    /// Takes a step of the move into place. `Ok(true)`: with this batch the new state is there, and the marker and
    /// the stage are gone; the host adds its own rows to it, and syncs it before it tells anyone.
    ///
    /// # Errors
    /// If not everything has arrived, or the stage cannot be read.
    pub fn advance(&mut self, view: &dyn View, batch: &mut Batch) -> Result<bool, SnapshotError> {
        let live = self.header.id.namespace;
        let place = match &self.phase {
            Phase::Receiving(_) => return Err(SnapshotError::Phase { phase: self.phase.name() }),
            Phase::Staged => {
                batch.delete(Family::Namespace, state_key(live));
                clear(batch, live);
                Place::first(Section::Records)
            }
            Phase::Moving(place) => place.clone(),
        };
        let place = match place {
            Place::Rows { section, after } => self.move_rows(view, section, after, batch)?,
            other => other,
        };
        let done = place == Place::End;
        self.phase = Phase::Moving(place);
        if done {
            put(batch, state_key(live), &self.header.state);
            self.clean(batch);
        } else {
            self.mark(batch);
        }
        Ok(done)
    }

    /// Drops what has arrived. The old state stays.
    ///
    /// # Errors
    /// If the move has begun: there is no old state any more.
    pub fn abandon(self, batch: &mut Batch) -> Result<(), SnapshotError> {
        if let Phase::Moving(_) = self.phase {
            return Err(SnapshotError::Phase { phase: self.phase.name() });
        }
        self.clean(batch);
        Ok(())
    }

    fn move_rows(
        &self,
        view: &dyn View,
        section: Section,
        last: Option<Bytes>,
        batch: &mut Batch,
    ) -> Result<Place, SnapshotError> {
        let (live, staged) = (self.header.id.namespace, staging(self.header.id.namespace));
        let first = last.as_deref().map(after).unwrap_or_default();
        let (family, from, to) = section.range(staged, &first);
        let mut size = 0;
        for row in view.scan(family, &from, Some(&to))? {
            let (row, value) = row?;
            let (key, value) = section.split(&row, value)?;
            size += key.len() + value.len();
            if section == Section::Records {
                let record = Record::decode(&key, value.clone())
                    .map_err(|error| SnapshotError::Record { key: key.clone(), error })?;
                if record.live().is_none() {
                    batch.put(Family::Namespace, layout::tombstone_key(live, record.stamp), key.clone());
                }
            }
            put_row(batch, live, section, &key, value);
            if size >= MOVE_BYTES {
                return Ok(Place::Rows { section, after: Some(key) });
            }
        }
        Ok(section.end())
    }

    /// Checks rows that are to follow the one at `before`, and adds them to the tally.
    fn check(
        &self,
        section: Section,
        before: Option<&Bytes>,
        rows: &[(Bytes, Bytes)],
    ) -> Result<Tally, SnapshotError> {
        let mut tally = self.tally;
        let mut before = before;
        for (key, value) in rows {
            if key.is_empty() || before.is_some_and(|before| before >= key) {
                return Err(SnapshotError::Mismatch { what: format!("key {} is out of order", key.escape_ascii()) });
            }
            before = Some(key);
            match section {
                Section::Records => {
                    let record = Record::decode(key, value.clone())
                        .map_err(|error| SnapshotError::Record { key: key.clone(), error })?;
                    tally.digest.replace(key, None, Some(&record));
                    let count = if record.live().is_some() { &mut tally.keys } else { &mut tally.tombstones };
                    *count += 1;
                }
                Section::Answers => {
                    let in_place = Position::from_bytes(key).is_some_and(|at| at <= self.header.state.applied);
                    if !in_place || decode::<Vec<Remembered>>(value).is_err() {
                        return Err(SnapshotError::Mismatch { what: "answers that are none".into() });
                    }
                }
            }
        }
        Ok(tally)
    }

    fn adds_up(&self) -> Result<(), SnapshotError> {
        let state = &self.header.state;
        let expected = Tally { digest: state.digest, keys: state.keys, tombstones: state.tombstones };
        if self.tally == expected {
            return Ok(());
        }
        Err(SnapshotError::Mismatch { what: format!("{:?} arrived where {expected:?} was announced", self.tally) })
    }

    fn mark(&self, batch: &mut Batch) {
        put(batch, install_key(self.header.id.namespace), self);
    }

    fn clean(&self, batch: &mut Batch) {
        let namespace = self.header.id.namespace;
        batch.delete(Family::Namespace, install_key(namespace));
        clear(batch, staging(namespace));
    }
}

fn put_row(batch: &mut Batch, namespace: NamespaceId, section: Section, key: &[u8], value: Bytes) {
    match section {
        Section::Records => batch.put(Family::Data, layout::data_key(namespace, key), value),
        Section::Answers => {
            let row = answer_key(namespace, key);
            let value = layout::guard(&row, &value);
            batch.put(Family::Namespace, row, value);
        }
    }
}

impl Section {
    /// Where its rows from `first` on lie in `namespace`.
    pub(super) fn range(self, namespace: NamespaceId, first: &[u8]) -> (Family, Bytes, Bytes) {
        match self {
            Section::Records => {
                let to = layout::after_prefix(&layout::namespace_prefix(namespace));
                (Family::Data, layout::data_key(namespace, first), to)
            }
            Section::Answers => {
                let to = layout::after_prefix(&answer_key(namespace, &[]));
                (Family::Namespace, answer_key(namespace, first), to)
            }
        }
    }

    /// The key and the value of a row as they travel: without the namespace, and without the guard that is bound to it.
    pub(super) fn split(self, row: &Bytes, value: Bytes) -> Result<(Bytes, Bytes), StoreError> {
        match self {
            Section::Records => Ok((layout::split_data_key(row)?.1, value)),
            Section::Answers => Ok((answer_position(row)?, layout::unguard(row, &value)?)),
        }
    }
}
