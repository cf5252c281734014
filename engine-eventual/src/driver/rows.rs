//! The list of the replicas that a disk holds.
//!
//! | family | key | value |
//! | --- | --- | --- |
//! | `namespace` | namespace 8, `0x22`, epoch 4 | guarded: the namespace's name |

use bytes::Bytes;
use duet_proto::{Epoch, NamespaceId, NamespaceName};
use duet_store::{Batch, Family, StoreError, View, layout};

use crate::{
    SpaceId,
    rows::{meta_key, tombstones},
};

const SPACE: u8 = 0x22;

fn space_key(id: SpaceId) -> Bytes {
    layout::namespace_key(id.namespace, SPACE, &id.epoch.0.to_be_bytes())
}

/// Lists a replica.
pub(crate) fn put(batch: &mut Batch, id: SpaceId, name: &NamespaceName) {
    let key = space_key(id);
    let value = layout::guard(&key, name.as_str().as_bytes());
    batch.put(Family::Namespace, key, value);
}

/// A replica that is listed, and its name or why that cannot be read.
type Listed = (SpaceId, Result<NamespaceName, StoreError>);

/// Every replica that is listed. Costs a few seeks per namespace,
/// however many rows of other kinds there are.
pub(crate) fn list(view: &dyn View) -> Result<Vec<Listed>, StoreError> {
    let (mut spaces, mut at) = (Vec::new(), Bytes::new());
    while let Some(row) = view.scan(Family::Namespace, &at, None)?.next() {
        let (key, _) = row?;
        let (namespace, _) = layout::split_data_key(&key)?;
        let (from, to) = layout::prefix_range(layout::namespace_key(namespace, SPACE, &[]));
        for row in view.scan(Family::Namespace, &from, Some(&to))? {
            let (key, value) = row?;
            let epoch = key.get(9..).and_then(|epoch| Some(Epoch(u32::from_be_bytes(epoch.try_into().ok()?))));
            let epoch = epoch.ok_or_else(|| StoreError::corrupt(format!("the row {}", key.escape_ascii())))?;
            spaces.push((SpaceId { namespace, epoch }, name(&key, &value)));
        }
        let Some(next) = namespace.0.checked_add(1) else { break };
        at = layout::namespace_prefix(NamespaceId(next));
    }
    Ok(spaces)
}

fn name(key: &[u8], value: &Bytes) -> Result<NamespaceName, StoreError> {
    let name = layout::unguard(key, value)?;
    let name = std::str::from_utf8(&name).ok().and_then(|name| NamespaceName::new(name).ok());
    name.ok_or_else(|| StoreError::corrupt("a replica without a valid name"))
}

/// Removes a replica with everything it holds. A few ranges, whatever their size, so all or nothing of it is done.
pub(crate) fn destroy(batch: &mut Batch, id: SpaceId) {
    let (from, to) = layout::prefix_range(layout::namespace_prefix(id.namespace));
    batch.delete_range(Family::Data, from, to);
    let (from, to) = tombstones(id.namespace);
    batch.delete_range(Family::Namespace, from, to);
    retire(batch, id);
}

/// Removes a replica, and leaves its records and its list of tombstones to the next epoch.
pub(crate) fn retire(batch: &mut Batch, id: SpaceId) {
    let (from, to) = layout::prefix_range(layout::group_prefix(id.namespace, id.epoch));
    batch.delete_range(Family::Origin, from, to);
    batch.delete(Family::Namespace, meta_key(id.namespace, id.epoch));
    batch.delete(Family::Namespace, space_key(id));
}

#[cfg(test)]
mod tests {
    use duet_store::{Store, memory::MemoryStore};

    use super::*;

    #[test]
    fn what_was_listed_is_found_among_other_rows() {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        let id = |namespace, epoch| SpaceId { namespace: NamespaceId(namespace), epoch: Epoch(epoch) };
        let name = NamespaceName::new("orders").unwrap();
        let spaces = [id(1, 1), id(7, 3), id(u64::MAX, 1)];
        spaces.iter().for_each(|id| put(&mut batch, *id, &name));
        for namespace in [1, 2, 7] {
            for what in [0x10, 0x20, 0x21, 0x23, 0xff] {
                batch.put(Family::Namespace, layout::namespace_key(NamespaceId(namespace), what, b"more"), "x");
            }
        }
        store.write(batch).unwrap();
        let expected: Vec<_> = spaces.into_iter().map(|id| (id, Ok(name.clone()))).collect();
        assert_eq!(list(&*store), Ok(expected));
        let mut batch = Batch::new();
        destroy(&mut batch, id(7, 3));
        store.write(batch).unwrap();
        assert_eq!(list(&*store).unwrap().len(), 2);
        assert!(store.damage(Family::Namespace, &space_key(id(1, 1))));
        assert!(list(&*store).unwrap()[0].1.is_err());
    }
}
