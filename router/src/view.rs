//! What a node knows of the catalog: the entries as of one position of the system group's log.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use duet_proto::{NamespaceId, NamespaceInfo, NamespaceName, NodeId, NodeInfo, Phase, Stamp};
use imbl::OrdMap;
use serde::de::DeserializeOwned;

use crate::catalog::{self, Counters, EntryError, Key, NamespaceRecord, NamespaceState, NodeRecord, NodeState};

/// An entry and the version of its key, by which a change of it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    /// The version.
    pub stamp: Stamp,
    /// The entry.
    pub record: Arc<T>,
}

/// The catalog as of `version`. A clone shares everything.
///
/// Invariants: what is here is exactly what the system group had applied at `version`, but for entries that this
/// build cannot read, which are named in `unreadable`; `by_id` and `namespaces` agree.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The applied position of the system group.
    pub version: u64,
    /// The ids given out next; `None` until the first founder has written the catalog.
    pub next: Option<Entry<Counters>>,
    /// Every node that ever was.
    pub nodes: OrdMap<NodeId, Entry<NodeRecord>>,
    /// Every namespace, the system namespace included.
    pub namespaces: OrdMap<NamespaceName, Entry<NamespaceRecord>>,
    /// The names, by id.
    pub by_id: OrdMap<NamespaceId, NamespaceName>,
    /// Keys that this build cannot read. While there are any, no replica is removed.
    pub unreadable: OrdMap<Bytes, EntryError>,
}

impl View {
    /// Takes in one changed key: its version and value, or its absence.
    pub fn apply(&mut self, key: &Bytes, value: Option<(Stamp, &[u8])>) {
        let Some(place) = Key::decode(key) else { return };
        self.forget(&place);
        self.unreadable.remove(key);
        let Some((stamp, bytes)) = value else { return };
        let result = match place {
            Key::Next => read(stamp, bytes).map(|entry| self.next = Some(entry)),
            Key::Node(node) => read(stamp, bytes).map(|entry| {
                self.nodes.insert(node, entry);
            }),
            Key::Namespace(name) => read::<NamespaceRecord>(stamp, bytes).map(|entry| {
                self.by_id.insert(entry.record.id, name.clone());
                self.namespaces.insert(name, entry);
            }),
        };
        if let Err(error) = result {
            tracing::error!(key = %key.escape_ascii(), %error, "an entry of the catalog cannot be read");
            self.unreadable.insert(key.clone(), error);
        }
    }

    fn forget(&mut self, place: &Key) {
        match place {
            Key::Next => self.next = None,
            Key::Node(node) => {
                self.nodes.remove(node);
            }
            Key::Namespace(name) => {
                if let Some(old) = self.namespaces.remove(name) {
                    self.by_id.remove(&old.record.id);
                }
            }
        }
    }

    /// The entry of a namespace.
    #[must_use]
    pub fn namespace(&self, name: &NamespaceName) -> Option<&Entry<NamespaceRecord>> {
        self.namespaces.get(name)
    }

    /// The name and entry of a namespace by its id.
    #[must_use]
    pub fn by_id(&self, id: NamespaceId) -> Option<(&NamespaceName, &NamespaceRecord)> {
        let name = self.by_id.get(&id)?;
        Some((name, &*self.namespaces.get(name)?.record))
    }

    /// Whether `id` was given out and has been deleted. A view that is behind never says so of a younger namespace.
    #[must_use]
    pub fn is_deleted(&self, id: NamespaceId) -> bool {
        let given = self.next.as_ref().is_some_and(|next| id < next.record.namespace);
        given && !self.by_id.contains_key(&id) && self.unreadable.is_empty()
    }

    /// The nodes that belong to the cluster.
    pub fn active(&self) -> impl Iterator<Item = (NodeId, &Entry<NodeRecord>)> + '_ {
        self.nodes
            .iter()
            .filter(|(_, entry)| entry.record.state == NodeState::Active)
            .map(|(node, entry)| (*node, entry))
    }

    /// Whether `node` belongs to the cluster.
    #[must_use]
    pub fn is_active(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|entry| entry.record.state == NodeState::Active)
    }

    /// How many replicas each node of the cluster holds or is to hold, the catalog's own not counted.
    #[must_use]
    pub fn replicas(&self) -> BTreeMap<NodeId, usize> {
        let mut count: BTreeMap<_, _> = self.active().map(|(node, _)| (node, 0)).collect();
        let users = self.namespaces.values().filter(|entry| entry.record.id != NamespaceId::SYSTEM);
        for node in users.flat_map(|entry| entry.record.involved()) {
            *count.entry(node).or_default() += 1;
        }
        count
    }

    /// The members of a namespace and where they are, the one most likely to lead first.
    #[must_use]
    pub fn members(&self, record: &NamespaceRecord) -> Vec<(NodeId, String)> {
        let first = record.first_leader();
        let rest = record.members.iter().copied().filter(|node| Some(*node) != first);
        let known = |node| self.nodes.get(&node).map(|entry| (node, entry.record.address.clone()));
        first.into_iter().chain(rest).filter_map(known).collect()
    }

    /// What clients see of the nodes.
    #[must_use]
    pub fn node_infos(&self) -> Vec<NodeInfo> {
        let info = |(id, entry): (NodeId, &Entry<NodeRecord>)| NodeInfo {
            id,
            address: entry.record.address.clone(),
            boot: entry.record.boot,
        };
        self.active().map(info).collect()
    }
}

/// What clients see of a namespace; `leader` is what the answering node knows.
#[must_use]
pub(crate) fn namespace_info(
    name: &NamespaceName,
    record: &NamespaceRecord,
    leader: Option<NodeId>,
) -> NamespaceInfo {
    NamespaceInfo {
        id: record.id,
        name: name.clone(),
        mode: record.mode,
        epoch: record.epoch,
        phase: phase(record),
        members: record.members.clone(),
        copies: record.copies,
        leader,
    }
}

/// The state of a namespace in the clients' words.
#[must_use]
pub(crate) fn phase(record: &NamespaceRecord) -> Phase {
    match record.state {
        NamespaceState::Stable => Phase::Stable,
        NamespaceState::Moving { .. } | NamespaceState::Filling { .. } | NamespaceState::Settling { .. } => {
            Phase::Moving
        }
        NamespaceState::Deleting { .. } => Phase::Deleting,
        NamespaceState::Switching(_) => Phase::Switching,
    }
}

fn read<T: DeserializeOwned>(stamp: Stamp, bytes: &[u8]) -> Result<Entry<T>, EntryError> {
    Ok(Entry { stamp, record: Arc::new(catalog::decode(bytes)?) })
}
