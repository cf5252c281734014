//! The sending end of sessions and copies. It holds no records: a snapshot and a place in it.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use duet_proto::{Body, Digest, Epoch, Hlc, NamespaceId, NodeId, Record};
use duet_store::{Family, Snapshot, StoreError, View, layout};

use super::Step;
use crate::{
    Frontier,
    message::{Chunk, Compare, Copied, Differs, Message, Nonce, Refusal, Summary},
    rows::{Beyond, Standing},
    table::{ReadError, read},
};

/// A walk of the index for one peer.
pub(super) struct Serving {
    nonce: Nonce,
    walk: Nonce,
    /// Frontier and index of one moment: what the receiver joins at the end is what the walk began with.
    snapshot: Arc<dyn Snapshot>,
    frontier: Frontier,
    summary: Summary,
    /// What the receiver had when it asked.
    theirs: Frontier,
    at: (NodeId, Hlc),
    sequence: u32,
    touched_ms: u64,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("nonce", &self.nonce).field("at", &self.at).finish_non_exhaustive()
    }
}

pub(super) fn body_len(body: &Body) -> usize {
    if let Body::Value(value) = body { value.len() } else { 0 }
}

/// The time of the last row of an origin in the index.
pub(super) fn last_of(
    view: &dyn View,
    (namespace, epoch): (NamespaceId, Epoch),
    origin: NodeId,
) -> Result<Hlc, StoreError> {
    let from = layout::origin_key(namespace, epoch, origin, Hlc::ZERO);
    let to = layout::after_prefix(&from[..16]);
    let Some(row) = view.scan_reverse(Family::Origin, &from, Some(&to))?.next() else { return Ok(Hlc::ZERO) };
    Ok(layout::split_origin_key(&row?.0)?.3)
}

/// Records in order of key, after one key and up to another, and whether that is all.
fn in_order(
    view: &dyn View,
    namespace: NamespaceId,
    after: Option<&Bytes>,
    to: Option<&Bytes>,
    bytes: usize,
) -> Result<(Vec<(Bytes, Record)>, bool), ReadError> {
    let mut from = layout::data_key(namespace, after.map_or(&[][..], |key| key)).to_vec();
    from.extend(after.map(|_| 0));
    let end = match to {
        Some(to) => [&layout::data_key(namespace, to)[..], &[0]].concat().into(),
        None => layout::after_prefix(&layout::namespace_prefix(namespace)),
    };
    let (mut items, mut size) = (Vec::new(), 0);
    for row in view.scan(Family::Data, &from, Some(&end))? {
        if size >= bytes {
            return Ok((items, false));
        }
        let (place, value) = row?;
        let (_, key) = layout::split_data_key(&place)?;
        size += key.len() + value.len();
        let record = Record::decode(&key, value)?;
        items.push((key, record));
    }
    Ok((items, true))
}

/// The digest of records.
pub(super) fn digest_of(items: &[(Bytes, Record)]) -> Digest {
    let mut digest = Digest::EMPTY;
    items.iter().for_each(|(key, record)| digest.replace(key, None, Some(record)));
    digest
}

impl Step<'_> {
    pub(super) fn serve(&mut self, from: NodeId, nonce: Nonce, theirs: Frontier) -> Result<(), StoreError> {
        // A request that comes twice, or late, must not end the walk that goes on.
        if self.r.serving.get(&from).is_some_and(|serving| nonce <= serving.nonce) {
            return Ok(());
        }
        let refusal = if self.r.synced.standing != Standing::Whole {
            Some(Refusal::Behind)
        } else if !(theirs.covers(&self.r.synced.floor) && theirs.covers(&self.r.synced.trimmed)) {
            Some(Refusal::BelowFloor)
        } else {
            None
        };
        if let Some(why) = refusal {
            self.send([from], Message::Refused { nonce, why });
            return Ok(());
        }
        let serving = Serving {
            nonce,
            walk: self.r.fresh(),
            snapshot: (self.cx.snapshot)(),
            frontier: self.r.synced.frontier.clone(),
            summary: self.r.synced.summary(),
            theirs,
            at: (NodeId(0), Hlc::ZERO),
            sequence: 0,
            touched_ms: self.cx.now_ms,
        };
        self.walk(from, serving)
    }

    pub(super) fn serve_more(
        &mut self,
        from: NodeId,
        nonce: Nonce,
        walk: Nonce,
        sequence: u32,
    ) -> Result<(), StoreError> {
        match self.r.serving.remove(&from) {
            Some(serving) if (serving.walk, serving.sequence) == (walk, sequence) => self.walk(from, serving),
            // A repeated request for a chunk that was sent: the walk goes on.
            Some(serving) if serving.walk == walk => {
                self.r.serving.insert(from, serving);
                Ok(())
            }
            other => {
                self.r.serving.extend(other.map(|serving| (from, serving)));
                self.send([from], Message::Refused { nonce, why: Refusal::Unknown });
                Ok(())
            }
        }
    }

    /// Sends the next chunk: records beyond the receiver's frontier, to the end of the index, past this replica's own
    /// frontier too.
    fn walk(&mut self, to: NodeId, mut serving: Serving) -> Result<(), StoreError> {
        let (mut items, mut size) = (Vec::new(), 0);
        let mut ended = false;
        let view = &*serving.snapshot;
        let mut beyond = Beyond::new(view, self.r.id(), &serving.theirs, serving.at)?;
        while size < self.r.config.chunk_bytes {
            let Some((origin, hlc, key)) = beyond.next().transpose()? else {
                ended = true;
                break;
            };
            serving.at = (origin, hlc.next());
            match read(view, self.r.namespace, &key) {
                Ok(Some(record)) if (record.stamp.node, record.stamp.hlc) == (origin, hlc) => {
                    size += key.len() + body_len(&record.body) + 32;
                    items.push((key, record));
                }
                Err(ReadError::Store(error)) => return Err(error),
                // The row promises a record that is not there: to end the walk would be to claim it was sent.
                Ok(_) | Err(ReadError::Record(_)) => {
                    self.damaged(&key);
                    self.send([to], Message::Refused { nonce: serving.nonce, why: Refusal::Damaged });
                    return Ok(());
                }
            }
        }
        drop(beyond);
        let chunk = Chunk {
            nonce: serving.nonce,
            walk: serving.walk,
            sequence: serving.sequence,
            frontier: serving.frontier.clone(),
            items,
            last: ended.then_some(serving.summary),
        };
        self.send([to], Message::Chunk(chunk));
        serving.sequence += 1;
        serving.touched_ms = self.cx.now_ms;
        if !ended {
            self.r.serving.insert(to, serving);
        }
        Ok(())
    }

    /// Lets go of snapshots that nobody asks for any more.
    pub(super) fn drop_idle_walks(&mut self) {
        let oldest = self.cx.now_ms.saturating_sub(4 * self.r.config.stall_ms);
        self.r.serving.retain(|_, serving| serving.touched_ms >= oldest);
    }

    /// A part of a copy, read from what is durable now: whatever moment that is, every record at or below the target
    /// is there, or what superseded it.
    pub(super) fn serve_copy(
        &mut self,
        from: NodeId,
        nonce: Nonce,
        target: Option<Frontier>,
        after: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let mine = self.r.synced.frontier.clone();
        let target = target.unwrap_or_else(|| mine.clone());
        if self.r.synced.standing != Standing::Whole || !mine.covers(&target) {
            self.send([from], Message::Refused { nonce, why: Refusal::Behind });
            return Ok(());
        }
        match in_order(self.cx.view, self.r.namespace, after.as_ref(), None, self.r.config.chunk_bytes) {
            Ok((items, last)) => {
                let (floor, begin) = (self.r.synced.floor.clone(), self.r.synced.begin);
                let copied = Copied { nonce, frontier: mine, floor, target, begin, after, items, last };
                self.send([from], Message::Copied(copied));
                Ok(())
            }
            Err(ReadError::Store(error)) => Err(error),
            Err(ReadError::Record(_)) => {
                self.send([from], Message::Refused { nonce, why: Refusal::Damaged });
                Ok(())
            }
        }
    }

    pub(super) fn serve_fetch(&mut self, from: NodeId, keys: &[Bytes]) -> Result<(), StoreError> {
        let mut items = Vec::new();
        for key in keys {
            match read(self.cx.view, self.r.namespace, key) {
                Ok(record) => items.push((key.clone(), record)),
                Err(ReadError::Record(_)) => self.damaged(key),
                Err(ReadError::Store(error)) => return Err(error),
            }
        }
        let frontier = self.r.synced.frontier.clone();
        self.send([from], Message::Fetched { frontier, items });
        Ok(())
    }

    /// Answers a comparison of a range with its records, if both replicas claim the same and the records differ.
    pub(super) fn serve_compare(&mut self, from: NodeId, theirs: Compare) -> Result<(), StoreError> {
        if theirs.frontier != self.r.synced.frontier {
            return Ok(());
        }
        let Compare { after, to, .. } = &theirs;
        // Here the range may hold much more than there: what is left over is for the next comparison.
        let most = 4 * self.r.config.chunk_bytes;
        match in_order(self.cx.view, self.r.namespace, after.as_ref(), to.as_ref(), most) {
            Ok((items, whole)) => {
                let to = if whole { to.clone() } else { items.last().map(|(key, _)| key.clone()) };
                let items = (!whole || digest_of(&items) != theirs.digest).then_some(items);
                let differs = Differs { frontier: theirs.frontier, after: theirs.after, to, items };
                self.send([from], Message::Differs(differs));
                Ok(())
            }
            Err(ReadError::Store(error)) => Err(error),
            Err(ReadError::Record(_)) => Ok(()),
        }
    }

    /// A range for a comparison: as many records as fit a chunk.
    pub(super) fn range(&self, after: Option<&Bytes>) -> Result<Option<Compare>, StoreError> {
        match in_order(self.cx.view, self.r.namespace, after, None, self.r.config.chunk_bytes) {
            Ok((items, last)) => {
                let to = items.last().map(|(key, _)| key.clone()).filter(|_| !last);
                let (frontier, digest) = (self.r.synced.frontier.clone(), digest_of(&items));
                Ok(Some(Compare { frontier, after: after.cloned(), to, digest }))
            }
            Err(ReadError::Store(error)) => Err(error),
            Err(ReadError::Record(_)) => Ok(None),
        }
    }
}
