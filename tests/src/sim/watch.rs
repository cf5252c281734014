//! What the replicas say of themselves while they run, held against everything they have said before.

use std::{collections::BTreeMap, fmt};

use duet_proto::{Digest, Epoch, GroupRole, Mode, NamespaceId, NamespaceStatus};

/// A strong namespace's log: it and its epoch.
type Log = (NamespaceId, Epoch);

/// Two invariants of Raft that no client sees broken until much later, if ever (Ongaro and Ousterhout, 2014, figure 3).
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Election safety: who led which term.
    leaders: BTreeMap<(Log, u64), u32>,
    /// State machine safety: the data at each applied position, and who was seen with it first.
    data: BTreeMap<(Log, u64), (Digest, u32)>,
}

impl Watch {
    /// Takes in what `node` says of one of its replicas.
    pub(super) fn note(&mut self, node: u32, status: &NamespaceStatus) -> Result<(), String> {
        let NamespaceStatus { name, term, applied, digest, .. } = status;
        let log = (status.id, status.epoch);
        if status.mode != Mode::Strong {
            return Ok(());
        }
        if status.role == GroupRole::Failed {
            return Err(format!("the replica of {name} on node {node} has failed"));
        }
        if status.role == GroupRole::Leader {
            let first = *self.leaders.entry((log, *term)).or_insert(node);
            contradiction(first == node, format_args!("nodes {first} and {node} both led {name} in term {term}"))?;
        }
        let (held, first) = *self.data.entry((log, *applied)).or_insert((*digest, node));
        let what = format_args!("{name} at position {applied} is {held} on node {first} and {digest} on node {node}");
        contradiction(held == *digest, what)
    }
}

fn contradiction(holds: bool, what: fmt::Arguments<'_>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("diverged: {what}")) }
}

#[cfg(test)]
mod tests {
    use duet_proto::{NamespaceName, Phase, QuorumHealth};

    use super::*;

    fn status(role: GroupRole, term: u64, applied: u64, digest: u128) -> NamespaceStatus {
        NamespaceStatus {
            id: NamespaceId(2),
            name: NamespaceName::new("orders").unwrap(),
            mode: Mode::Strong,
            epoch: Epoch(1),
            phase: Phase::Stable,
            role,
            quorum: QuorumHealth::Healthy,
            term,
            leader: None,
            last: applied,
            committed: applied,
            applied,
            first: 1,
            keys: 0,
            tombstones: 0,
            digest: Digest(digest),
            members: Vec::new(),
            eventual: None,
        }
    }

    #[test]
    fn what_is_said_again_is_no_news() {
        let mut watch = Watch::default();
        for (node, role, term, applied, digest) in
            [(1, GroupRole::Leader, 3, 7, 70), (2, GroupRole::Follower, 3, 7, 70), (2, GroupRole::Leader, 4, 8, 80)]
        {
            assert_eq!(watch.note(node, &status(role, term, applied, digest)), Ok(()));
            assert_eq!(watch.note(node, &status(role, term, applied, digest)), Ok(()));
        }
    }

    #[test]
    fn contradictions_are_found() {
        let mut watch = Watch::default();
        watch.note(1, &status(GroupRole::Leader, 3, 7, 70)).unwrap();
        let twice = watch.note(2, &status(GroupRole::Leader, 3, 6, 60)).unwrap_err();
        assert!(twice.contains("nodes 1 and 2 both led orders in term 3"), "{twice}");
        let other = watch.note(3, &status(GroupRole::Follower, 3, 7, 71)).unwrap_err();
        assert!(other.contains("position 7"), "{other}");
        assert!(watch.note(3, &status(GroupRole::Failed, 0, 0, 0)).unwrap_err().contains("has failed"));
    }
}
