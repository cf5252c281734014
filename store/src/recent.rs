//! The rows that were used last, in front of a store: most reads, and the look at what a write replaces, need no more.

use std::time::Duration;

use bytes::Bytes;
use quick_cache::{
    Weighter,
    sync::{Cache, GuardResult},
};

use crate::{Batch, Edit, Family, StoreError};

/// What an entry costs beside its bytes, roughly.
const OVERHEAD: usize = 128;
/// What a row is thought to weigh, to begin with: it sizes the cache's tables.
const USUAL: usize = 512;

/// Rows of [`Family::Data`], as they are in the store. Bounded by bytes; a scan of everything does not drive out what
/// is used often.
///
/// What is here is never older than what the store shows: a write takes its rows out *before* the store has them,
/// and puts the new ones in afterwards. A reader that has looked into the store meanwhile finds its place taken, and
/// leaves nothing.
pub(crate) struct Recent {
    rows: Cache<Vec<u8>, Bytes, Weight>,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Vec<u8>, Bytes> for Weight {
    fn weight(&self, key: &Vec<u8>, value: &Bytes) -> u64 {
        (key.len() + value.len() + OVERHEAD) as u64
    }
}

impl Recent {
    pub(crate) fn new(bytes: usize) -> Recent {
        Recent { rows: Cache::with_weighter(bytes / USUAL, bytes as u64, Weight) }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.rows.weight()
    }

    /// The row, from here or else by `read`.
    pub(crate) fn get(
        &self,
        key: &[u8],
        read: impl FnOnce() -> Result<Option<Bytes>, StoreError>,
    ) -> Result<Option<Bytes>, StoreError> {
        // Who finds another reader at work on the row reads it for himself.
        match self.rows.get_value_or_guard(key, Some(Duration::ZERO)) {
            GuardResult::Value(value) => Ok(Some(value)),
            GuardResult::Guard(place) => {
                let found = read()?;
                if let Some(value) = &found {
                    let _ = place.insert(value.clone());
                }
                Ok(found)
            }
            GuardResult::Timeout => read(),
        }
    }

    /// To be called before the batch is written.
    pub(crate) fn before(&self, batch: &Batch) {
        batch.edits().iter().for_each(|edit| self.forget(edit));
    }

    /// To be called when the batch has been written, before another one is.
    pub(crate) fn after(&self, batch: &Batch) {
        for edit in batch.edits() {
            match edit {
                // A copy: the bytes may be a slice of something much larger.
                Edit::Put(Family::Data, key, value) => {
                    self.rows.insert(key.to_vec(), Bytes::copy_from_slice(value));
                }
                // A reader may have found its row just before it went.
                edit => self.forget(edit),
            }
        }
    }

    /// Takes out what an edit is about.
    fn forget(&self, edit: &Edit) {
        match edit {
            Edit::Put(Family::Data, key, _) | Edit::Delete(Family::Data, key) => {
                self.rows.remove(key.as_ref());
            }
            Edit::DeleteRange(Family::Data, ..) => self.rows.clear(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"key";

    fn put(value: &'static str) -> Batch {
        let mut batch = Batch::new();
        batch.put(Family::Data, KEY, value);
        batch
    }

    fn write(recent: &Recent, batch: &Batch) {
        recent.before(batch);
        recent.after(batch);
    }

    fn held(recent: &Recent) -> Option<Bytes> {
        recent.get(KEY, || Ok(None)).unwrap()
    }

    #[test]
    fn what_was_read_or_written_is_here() {
        let recent = Recent::new(1 << 20);
        assert_eq!(held(&recent), None);
        assert_eq!(recent.get(KEY, || Ok(Some("a".into()))).unwrap(), Some("a".into()));
        assert_eq!(held(&recent), Some("a".into()));
        write(&recent, &put("b"));
        assert_eq!(held(&recent), Some("b".into()));
        let mut elsewhere = Batch::new();
        elsewhere.delete(Family::Origin, KEY);
        write(&recent, &elsewhere);
        assert_eq!(held(&recent), Some("b".into()));
    }

    /// A reader has the old row in hand while the new one, or none, takes its place.
    #[test]
    fn a_slow_reader_leaves_nothing_old() {
        let (mut deleted, mut cleared) = (Batch::new(), Batch::new());
        deleted.delete(Family::Data, KEY);
        cleared.delete_range(Family::Data, "a", "z");
        for (batch, after) in [(put("new"), Some(Bytes::from("new"))), (deleted, None), (cleared, None)] {
            let recent = Recent::new(1 << 20);
            let read = recent.get(KEY, || {
                write(&recent, &batch);
                Ok(Some("old".into()))
            });
            assert_eq!(read.unwrap(), Some("old".into()));
            assert_eq!(held(&recent), after);
        }
    }

    /// Between the two calls the store may have either.
    #[test]
    fn while_a_row_is_written_it_is_not_here() {
        let recent = Recent::new(1 << 20);
        write(&recent, &put("old"));
        recent.before(&put("new"));
        assert_eq!(recent.get(KEY, || Ok(Some("new".into()))).unwrap(), Some("new".into()));
    }

    #[test]
    fn a_failed_read_leaves_nothing() {
        let recent = Recent::new(1 << 20);
        recent.get(KEY, || Err(StoreError::corrupt("damage"))).unwrap_err();
        assert_eq!(recent.get(KEY, || Ok(Some("a".into()))).unwrap(), Some("a".into()));
    }

    #[test]
    fn it_is_bounded() {
        let recent = Recent::new(1 << 20);
        for number in 0..10_000_u32 {
            let mut batch = Batch::new();
            batch.put(Family::Data, number.to_be_bytes().to_vec(), vec![7; 1000]);
            write(&recent, &batch);
        }
        assert!(recent.bytes() <= 1 << 20, "{}", recent.bytes());
    }
}
