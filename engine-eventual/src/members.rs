//! Who holds a namespace, as one version of the catalog has it, and when a change of that is complete (rule 8).

use std::collections::{BTreeMap, BTreeSet};

use duet_proto::NodeId;
use serde::{Deserialize, Serialize};

use crate::Frontier;

/// The members of a namespace at one version of its catalog entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Rises with each change. A copy counts only between members of equal version.
    pub version: u64,
    /// The nodes that hold the namespace, joining ones included.
    pub nodes: BTreeSet<NodeId>,
    /// How many members must have synced a write before it is acknowledged.
    pub copies: u32,
    /// While a change is under way: the members before it. They are still heard, but take no writes unless they stay.
    pub leaving: BTreeSet<NodeId>,
    /// Late writes are owed to this namespace: no tombstone may be forgotten.
    pub keep_tombstones: bool,
}

impl Members {
    /// Whether a message of `node` may be heard.
    #[must_use]
    pub fn hears(&self, node: NodeId) -> bool {
        self.nodes.contains(&node) || self.leaving.contains(&node)
    }

    /// Everybody whose report is needed before a tombstone is forgotten.
    pub fn everyone(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.union(&self.leaving).copied()
    }
}

/// What the coordinator of a change knows of the members before it.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The members before it.
    pub before: BTreeSet<NodeId>,
    /// How many copies were asked for before it.
    pub copies_before: u32,
    /// Those that have moved to the new version, each with the frontier it held durably at that moment.
    pub moved: BTreeMap<NodeId, Frontier>,
}

impl Change {
    /// What every new member must hold before the change is complete; `None` while too few have moved to know it.
    ///
    /// An acknowledged write of the old version was held by `copies` members that had not moved yet. Of more than
    /// `members − copies` members at least one is among those, so the join of what they recorded covers it.
    #[must_use]
    pub fn owed(&self) -> Option<Frontier> {
        let moved = self.before.iter().filter_map(|node| self.moved.get(node));
        let enough = self.before.len().saturating_sub(self.copies_before.max(1) as usize);
        let mut owed = Frontier::default();
        (moved.inspect(|frontier| owed.join(frontier)).count() > enough).then_some(owed)
    }

    /// Whether those that leave may go: enough have moved, and every new member holds what they recorded. `held` are
    /// durable frontiers reported at the new version.
    #[must_use]
    pub fn complete(&self, after: &BTreeSet<NodeId>, held: &BTreeMap<NodeId, Frontier>) -> bool {
        self.owed().is_some_and(|owed| after.iter().all(|node| held.get(node).is_some_and(|f| f.covers(&owed))))
    }
}

#[cfg(test)]
mod tests {
    use duet_proto::Hlc;

    use super::*;

    fn nodes(ids: &[u32]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_change_waits_for_enough_of_the_old_and_all_of_the_new() {
        let at = |hlc| Frontier::from_iter([(NodeId(1), Hlc(hlc))]);
        let mut change = Change { before: nodes(&[1, 2, 3]), copies_before: 2, moved: BTreeMap::new() };
        change.moved.insert(NodeId(2), at(5));
        change.moved.insert(NodeId(9), at(50));
        assert_eq!(change.owed(), None, "one of three could have missed a write that the two others hold");
        change.moved.insert(NodeId(3), at(7));
        assert_eq!(change.owed(), Some(at(7)));
        let mut held = BTreeMap::from([(NodeId(2), at(7)), (NodeId(3), at(8))]);
        assert!(!change.complete(&nodes(&[2, 3, 4]), &held));
        held.insert(NodeId(4), at(6));
        assert!(!change.complete(&nodes(&[2, 3, 4]), &held));
        held.insert(NodeId(4), at(7));
        assert!(change.complete(&nodes(&[2, 3, 4]), &held));
    }
}
