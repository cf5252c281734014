//! Reading everything a replica holds, beside the driver: what was durable at one moment against what it claims.

use std::sync::Arc;

use bytes::Bytes;
use duet_proto::{Body, Digest, Record};
use duet_store::{Family, Snapshot, StoreError, layout};

use crate::{SpaceId, message::Summary, rows::Meta};

/// Records read before others get their turn.
const PAGE: usize = 512;

/// Whether the digest and the counts of the replica are what its records come to. `damaged` is told every key whose
/// record cannot be read; those count as nothing here and as what they were there, so they make a difference.
pub(crate) async fn scrub(
    view: Arc<dyn Snapshot>,
    id: SpaceId,
    mut damaged: impl FnMut(Bytes),
) -> Result<bool, StoreError> {
    let Some(meta) = Meta::read(&*view, id.namespace, id.epoch)? else { return Ok(true) };
    let (mut found, mut unreadable) = (Summary { digest: Digest::EMPTY, keys: 0, tombstones: 0 }, false);
    let (mut from, to) = layout::prefix_range(layout::namespace_prefix(id.namespace));
    loop {
        let mut read = 0;
        for row in view.scan(Family::Data, &from, Some(&to))?.take(PAGE) {
            let (place, value) = row?;
            let (_, key) = layout::split_data_key(&place)?;
            match Record::decode(&key, value) {
                Ok(record) => {
                    found.digest.replace(&key, None, Some(&record));
                    *(if record.body == Body::Tombstone { &mut found.tombstones } else { &mut found.keys }) += 1;
                }
                Err(_) => {
                    unreadable = true;
                    damaged(key);
                }
            }
            from = [&place[..], &[0]].concat().into();
            read += 1;
        }
        if read < PAGE {
            // What is damaged is counted anew when it is replaced.
            return Ok(unreadable || found == meta.summary());
        }
        tokio::task::yield_now().await;
    }
}
