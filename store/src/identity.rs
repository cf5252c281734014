//! Whose directory it is, and how often its node has started.

use std::fmt;

use bytes::Bytes;
use duet_proto::{Boot, ClusterName, NodeId};
use serde::{Deserialize, Serialize};

use crate::{Batch, Family, Store, StoreError, View, layout};

/// A node of a cluster: what its data directory is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node in it.
    pub node: NodeId,
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {}", self.node, self.cluster)
    }
}

/// Binds an empty store to a node, or checks that it is that node's, and counts this start. What is returned is
/// durable: nothing of this start can be mistaken for one before.
///
/// # Errors
/// [`StoreError::Foreign`] if it is another node's, [`StoreError::Layout`] if another version's,
/// [`StoreError::Corrupt`] if it holds data but no identity; or what reading and writing say.
pub fn open_node(store: &dyn Store, expected: &NodeIdentity) -> Result<Boot, StoreError> {
    let mut batch = Batch::new();
    match read_identity(store)? {
        Some(found) if found == *expected => {}
        Some(found) => return Err(StoreError::Foreign { found, expected: expected.clone() }),
        None => {
            for family in Family::ALL {
                if store.scan(family, &[], None)?.next().transpose()?.is_some() {
                    let what = format!("there is data in {} but no identity", family.name());
                    return Err(StoreError::Corrupt { what });
                }
            }
            batch.put(Family::Node, layout::IDENTITY, encode_identity(expected)?);
        }
    }
    let boot = Boot(read_u64(store, layout::BOOT)?.unwrap_or(0) + 1);
    put_u64(&mut batch, layout::BOOT, boot.0);
    store.write(batch)?;
    store.sync()?;
    Ok(boot)
}

/// Whose store it is; `None` if it has not been opened by a node yet.
///
/// # Errors
/// As [`open_node`].
pub fn read_identity(view: &dyn View) -> Result<Option<NodeIdentity>, StoreError> {
    let Some(row) = view.get(Family::Node, layout::IDENTITY)? else { return Ok(None) };
    let payload = layout::unguard(layout::IDENTITY, &row)?;
    match payload.split_first() {
        Some((&layout::VERSION, rest)) => {
            postcard::from_bytes(rest).map(Some).map_err(|e| StoreError::corrupt(format!("the identity record: {e}")))
        }
        Some((&found, _)) => Err(StoreError::Layout { found, ours: layout::VERSION }),
        None => Err(StoreError::corrupt("the identity record is empty")),
    }
}

fn encode_identity(identity: &NodeIdentity) -> Result<Bytes, StoreError> {
    let payload = postcard::to_extend(identity, vec![layout::VERSION])
        .map_err(|e| StoreError::Io { what: format!("encoding the identity record: {e}") })?;
    Ok(layout::guard(layout::IDENTITY, &payload))
}

/// Reads a number of the `node` family.
pub(crate) fn read_u64(view: &dyn View, key: &'static [u8]) -> Result<Option<u64>, StoreError> {
    let Some(row) = view.get(Family::Node, key)? else { return Ok(None) };
    let payload = layout::unguard(key, &row)?;
    let bytes = payload.as_ref().try_into().map_err(|_| {
        StoreError::corrupt(format!("the row {} has {} bytes, not 8", key.escape_ascii(), payload.len()))
    })?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

/// Writes a number of the `node` family.
pub(crate) fn put_u64(batch: &mut Batch, key: &'static [u8], value: u64) {
    batch.put(Family::Node, key, layout::guard(key, &value.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;

    fn who(cluster: &str, node: u32) -> NodeIdentity {
        NodeIdentity { cluster: ClusterName::new(cluster).unwrap(), node: NodeId(node) }
    }

    #[test]
    fn starts_are_counted_and_durable() {
        let mut store = MemoryStore::new();
        for boot in 1..4 {
            assert_eq!(open_node(&*store, &who("c", 1)), Ok(Boot(boot)));
            store = store.crash(boot);
        }
        assert_eq!(read_identity(&*store), Ok(Some(who("c", 1))));
    }

    #[test]
    fn another_nodes_directory_is_refused() {
        let store = MemoryStore::new();
        open_node(&*store, &who("c", 1)).unwrap();
        for other in [who("c", 2), who("d", 1)] {
            let refused = open_node(&*store, &other).unwrap_err();
            assert_eq!(refused, StoreError::Foreign { found: who("c", 1), expected: other });
        }
    }

    #[test]
    fn data_without_an_identity_and_damage_are_refused() {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        batch.put(Family::Data, "k", "v");
        store.write(batch).unwrap();
        assert!(matches!(open_node(&*store, &who("c", 1)), Err(StoreError::Corrupt { .. })));

        for key in [layout::IDENTITY, layout::BOOT] {
            let store = MemoryStore::new();
            open_node(&*store, &who("c", 1)).unwrap();
            assert!(store.damage(Family::Node, key));
            assert!(matches!(open_node(&*store, &who("c", 1)), Err(StoreError::Corrupt { .. })));
        }
    }

    #[test]
    fn another_layout_is_refused() {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        batch.put(Family::Node, layout::IDENTITY, layout::guard(layout::IDENTITY, &[9, 1, 2]));
        store.write(batch).unwrap();
        assert_eq!(open_node(&*store, &who("c", 1)), Err(StoreError::Layout { found: 9, ours: layout::VERSION }));
    }
}
