//! What a replica keeps of itself on disk, and under which keys.
//!
//! | family | key | value |
//! | --- | --- | --- |
//! | `namespace` | namespace 8, `0x20`, epoch 4 | guarded postcard of [`Meta`] |
//! | `namespace` | namespace 8, `0x21`, stamp 16 | the key of the tombstone of that stamp |
//! | `origin` | namespace 8, epoch 4, origin 4, hlc 8 | the key of the live record of that stamp |

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
        let (frontier, floor) = (Frontier::default(), Frontier::default());
        Meta {
            frontier,
            floor,
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

/// The stamp in a key made by [`layout::tombstone_key`].
pub(crate) fn tombstone_stamp(key: &[u8]) -> Result<Stamp, StoreError> {
    let bytes = key.get(9..).and_then(|stamp| stamp.try_into().ok());
    let malformed = || StoreError::corrupt(format!("a tombstone's row under {}", key.escape_ascii()));
    bytes.map(Stamp::from_bytes).ok_or_else(malformed)
}

/// The rows of an epoch's index beyond a frontier, in order of origin and time.
///
/// The index is ordered so that one seek per origin skips what the frontier covers.
pub(crate) struct Beyond<'a> {
    view: &'a dyn View,
    id: (NamespaceId, Epoch),
    frontier: &'a Frontier,
    end: Bytes,
    scan: Scan<'a>,
}

impl<'a> Beyond<'a> {
    /// From one place on, inclusive.
    pub(crate) fn new(
        view: &'a dyn View,
        id: (NamespaceId, Epoch),
        frontier: &'a Frontier,
        (origin, hlc): (NodeId, Hlc),
    ) -> Result<Beyond<'a>, StoreError> {
        let end = layout::after_prefix(&layout::group_prefix(id.0, id.1));
        let scan = view.scan(Family::Origin, &layout::origin_key(id.0, id.1, origin, hlc), Some(&end))?;
        Ok(Beyond { view, id, frontier, end, scan })
    }

    fn find(&mut self) -> Result<Option<(NodeId, Hlc, Bytes)>, StoreError> {
        loop {
            let Some((row, key)) = self.scan.next().transpose()? else { return Ok(None) };
            let (_, _, origin, hlc) = layout::split_origin_key(&row)?;
            let covered = self.frontier.get(origin);
            if hlc > covered {
                return Ok(Some((origin, hlc, key)));
            }
            let from = layout::origin_key(self.id.0, self.id.1, origin, covered.next());
            self.scan = self.view.scan(Family::Origin, &from, Some(&self.end))?;
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
