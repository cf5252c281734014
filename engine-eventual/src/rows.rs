//! What a replica keeps of itself on disk, and under which keys.
//!
//! | family | key | value |
//! | --- | --- | --- |
//! | `namespace` | namespace 8, `0x20`, epoch 4 | guarded postcard of [`Meta`] |
//! | `namespace` | namespace 8, `0x21`, stamp 16 | the key of the tombstone of that stamp |
//! | `origin` | namespace 8, epoch 4, origin 4, hlc 8 | the key of the live record of that stamp, unless every member holds it |

use bytes::Bytes;
use duet_proto::{Digest, Epoch, Hlc, NamespaceId, NodeId, Stamp};
use duet_store::{Batch, Family, Scan, StoreError, View, layout};
use serde::{Deserialize, Serialize};

use crate::{Frontier, Members, message::Summary};

const META: u8 = 0x20;

/// The state of a replica, in one row that is written in the same batch as the records it speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) frontier: Frontier,
    /// The stamps of the tombstones that were forgotten here. Who has not seen these is not merged from.
    pub(crate) floor: Frontier,
    /// What every member holds, as far as the index was trimmed by it: nothing at or below it is listed.
    pub(crate) trimmed: Frontier,
    pub(crate) digest: Digest,
    pub(crate) keys: u64,
    pub(crate) tombstones: u64,
    pub(crate) standing: Standing,
    pub(crate) members: Members,
    /// What was held durably when this version of the members was adopted (rule 8).
    pub(crate) moved: Frontier,
    /// The highest stamp of earlier epochs that was held when this one began.
    pub(crate) begin: Stamp,
    /// No write of this epoch is taken any more, as long as this attempt to end it lasts.
    pub(crate) fence: Option<u64>,
    /// What the next epoch began without was put aside.
    pub(crate) stashed: bool,
}

/// Whether a member holds all that it claims to be a member of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Standing {
    /// Receives its first copy: takes no writes and answers no reads.
    Joining {
        /// What it will claim at its end, once the first chunk has said so.
        target: Option<Frontier>,
        /// The last key that it has.
        after: Option<Bytes>,
    },
    /// Takes part.
    Whole,
}

impl Meta {
    pub(crate) fn new(standing: Standing, members: Members) -> Meta {
        Meta {
            frontier: Frontier::default(),
            floor: Frontier::default(),
            trimmed: Frontier::default(),
            digest: Digest::EMPTY,
            keys: 0,
            tombstones: 0,
            standing,
            members,
            moved: Frontier::default(),
            begin: Stamp::default(),
            fence: None,
            stashed: false,
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary { digest: self.digest, keys: self.keys, tombstones: self.tombstones }
    }

    pub(crate) fn read(view: &dyn View, namespace: NamespaceId, epoch: Epoch) -> Result<Option<Meta>, StoreError> {
        let key = meta_key(namespace, epoch);
        let Some(bytes) = view.get(Family::Namespace, &key)? else { return Ok(None) };
        let payload = layout::unguard(&key, &bytes)?;
        let meta = postcard::from_bytes(&payload);
        meta.map(Some).map_err(|e| StoreError::corrupt(format!("the eventual state of namespace {namespace}: {e}")))
    }

    pub(crate) fn write(&self, batch: &mut Batch, namespace: NamespaceId, epoch: Epoch) -> Result<(), StoreError> {
        let key = meta_key(namespace, epoch);
        let payload =
            postcard::to_stdvec(self).map_err(|e| StoreError::Io { what: format!("encoding a state: {e}") })?;
        let value = layout::guard(&key, &payload);
        batch.put(Family::Namespace, key, value);
        Ok(())
    }
}

pub(crate) fn meta_key(namespace: NamespaceId, epoch: Epoch) -> Bytes {
    layout::namespace_key(namespace, META, &epoch.0.to_be_bytes())
}

/// The tombstones of a namespace, in order of stamp, as a range.
pub(crate) fn tombstones(namespace: NamespaceId) -> (Bytes, Bytes) {
    layout::prefix_range(layout::tombstone_prefix(namespace))
}

/// The rows of an epoch's index beyond a frontier, in order of origin and time.
///
/// It is read in pieces, none of which touches what the frontier covers: beyond the last covered row of an origin up to the
/// next one of the frontier. Most rows that were there are gone, superseded or forgotten, and a store passes the traces of
/// all of them, one after the other, where a scan leads it through.
pub(crate) struct Beyond<'a> {
    view: &'a dyn View,
    id: (NamespaceId, Epoch),
    frontier: &'a Frontier,
    scan: Scan<'a>,
    /// Where the next piece begins.
    next: Option<NodeId>,
}

impl<'a> Beyond<'a> {
    /// From one place on, inclusive.
    pub(crate) fn new(
        view: &'a dyn View,
        id: (NamespaceId, Epoch),
        frontier: &'a Frontier,
        (origin, hlc): (NodeId, Hlc),
    ) -> Result<Beyond<'a>, StoreError> {
        let from = layout::origin_key(id.0, id.1, origin, hlc.max(frontier.get(origin).next()));
        let next = frontier.iter().map(|(known, _)| known).find(|known| *known > origin);
        let end = || layout::after_prefix(&layout::group_prefix(id.0, id.1));
        let to = next.map_or_else(end, |next| layout::origin_key(id.0, id.1, next, Hlc::ZERO));
        Ok(Beyond { view, id, frontier, scan: view.scan(Family::Origin, &from, Some(&to))?, next })
    }

    fn find(&mut self) -> Result<Option<(NodeId, Hlc, Bytes)>, StoreError> {
        loop {
            if let Some((row, key)) = self.scan.next().transpose()? {
                let (_, _, origin, hlc) = layout::split_origin_key(&row)?;
                return Ok(Some((origin, hlc, key)));
            }
            let Some(next) = self.next else { return Ok(None) };
            *self = Beyond::new(self.view, self.id, self.frontier, (next, Hlc::ZERO))?;
        }
    }
}

impl Iterator for Beyond<'_> {
    type Item = Result<(NodeId, Hlc, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.find().transpose()
    }
}

/// The first row of an epoch's index beyond a frontier, from one place on, inclusive.
pub(crate) fn next_beyond(
    view: &dyn View,
    id: (NamespaceId, Epoch),
    frontier: &Frontier,
    at: (NodeId, Hlc),
) -> Result<Option<(NodeId, Hlc, Bytes)>, StoreError> {
    Beyond::new(view, id, frontier, at)?.next().transpose()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use duet_store::{Batch, Store, memory::MemoryStore};
    use proptest::prelude::*;

    use super::*;

    const ID: (NamespaceId, Epoch) = (NamespaceId(7), Epoch(2));

    /// Notes what is scanned.
    struct Watched<'a>(&'a MemoryStore, Mutex<Vec<(Bytes, Bytes)>>);

    impl View for Watched<'_> {
        fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.0.get(family, key)
        }

        fn scan(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
            let range = (Bytes::copy_from_slice(from), Bytes::copy_from_slice(to.unwrap()));
            self.1.lock().unwrap().push(range);
            self.0.scan(family, from, to)
        }

        fn scan_reverse(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Result<Scan<'_>, StoreError> {
            self.0.scan_reverse(family, from, to)
        }
    }

    fn key(origin: u32, hlc: u64) -> Bytes {
        layout::origin_key(ID.0, ID.1, NodeId(origin), Hlc(hlc))
    }

    proptest! {
        #[test]
        fn nothing_that_the_frontier_covers_is_touched(
            rows in prop::collection::btree_set((1..6u32, 1..9u64), 0..30),
            covered in prop::collection::btree_map(1..6u32, 1..9u64, 0..5),
            at in (0..7u32, 0..10u64),
        ) {
            let (store, mut batch) = (MemoryStore::new(), Batch::new());
            rows.iter().for_each(|(origin, hlc)| batch.put(Family::Origin, key(*origin, *hlc), "k"));
            store.write(batch).unwrap();
            let frontier: Frontier = covered.iter().map(|(origin, hlc)| (NodeId(*origin), Hlc(*hlc))).collect();
            let view = Watched(&store, Mutex::default());
            let beyond = Beyond::new(&view, ID, &frontier, (NodeId(at.0), Hlc(at.1))).unwrap();
            let found: Vec<_> = beyond.map(|row| row.unwrap()).map(|(origin, hlc, _)| (origin.0, hlc.0)).collect();
            let lacking = rows.into_iter().filter(|row| *row >= at && row.1 > covered.get(&row.0).copied().unwrap_or(0));
            prop_assert_eq!(found, lacking.collect::<Vec<_>>());
            for (from, to) in view.1.into_inner().unwrap() {
                for (origin, hlc) in &covered {
                    let apart = to <= key(*origin, 1) || key(*origin, *hlc) < from;
                    prop_assert!(apart, "{:?} to {:?} leads through {}", from, to, origin);
                }
            }
        }
    }
}
