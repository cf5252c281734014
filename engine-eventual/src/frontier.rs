//! Frontiers: what a replica claims to hold.

use std::{cmp::Ordering, fmt};

use crdts::{CmRDT, CvRDT, Dot, VClock};
use duet_proto::{Hlc, NodeId, Stamp};
use serde::{Deserialize, Serialize};

/// For each origin of one epoch, a time: a claim to hold every write of that origin up to it, or one that supersedes
/// it. What is absent is zero.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Frontier(VClock<NodeId>);

impl Frontier {
    /// How far it reaches for one origin.
    #[must_use]
    pub fn get(&self, origin: NodeId) -> Hlc {
        Hlc(self.0.get(&origin))
    }

    /// Reaches at least to `hlc` for one origin.
    pub fn raise(&mut self, origin: NodeId, hlc: Hlc) {
        self.0.apply(Dot::new(origin, hlc.0));
    }

    /// Claims what either claims.
    pub fn join(&mut self, other: &Frontier) {
        self.0.merge(other.0.clone());
    }

    /// Claims only what both claim.
    pub fn meet(&mut self, other: &Frontier) {
        self.0.glb(&other.0);
    }

    /// Whether it claims everything that `other` claims.
    #[must_use]
    pub fn covers(&self, other: &Frontier) -> bool {
        matches!(self.0.partial_cmp(&other.0), Some(Ordering::Equal | Ordering::Greater))
    }

    /// Whether it claims the write of this stamp; the epoch is the caller's affair.
    #[must_use]
    pub fn includes(&self, stamp: Stamp) -> bool {
        stamp.hlc <= self.get(stamp.node)
    }

    /// Its entries, in order of origin.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, Hlc)> + '_ {
        self.0.iter().map(|dot| (*dot.actor, Hlc(dot.counter))).filter(|(_, hlc)| *hlc > Hlc::ZERO)
    }

    /// The latest time in it.
    #[must_use]
    pub fn last(&self) -> Hlc {
        self.iter().map(|(_, hlc)| hlc).max().unwrap_or_default()
    }
}

impl PartialEq for Frontier {
    fn eq(&self, other: &Frontier) -> bool {
        self.covers(other) && other.covers(self)
    }
}

impl Eq for Frontier {}

impl FromIterator<(NodeId, Hlc)> for Frontier {
    fn from_iter<I: IntoIterator<Item = (NodeId, Hlc)>>(entries: I) -> Frontier {
        let mut frontier = Frontier::default();
        entries.into_iter().for_each(|(origin, hlc)| frontier.raise(origin, hlc));
        frontier
    }
}

impl fmt::Display for Frontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<_> = self.iter().map(|(origin, hlc)| format!("{origin}:{hlc}")).collect();
        write!(f, "<{}>", entries.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frontiers() -> impl Strategy<Value = Frontier> {
        prop::collection::vec((0u32..4, 0u64..6), 0..5)
            .prop_map(|entries| entries.into_iter().map(|(o, h)| (NodeId(o), Hlc(h))).collect())
    }

    proptest! {
        #[test]
        fn join_and_meet_are_a_lattice(a in frontiers(), b in frontiers(), c in frontiers()) {
            let join = |x: &Frontier, y: &Frontier| { let mut z = x.clone(); z.join(y); z };
            let meet = |x: &Frontier, y: &Frontier| { let mut z = x.clone(); z.meet(y); z };
            prop_assert_eq!(join(&a, &b), join(&b, &a));
            prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
            prop_assert_eq!(join(&a, &a), a.clone());
            prop_assert_eq!(meet(&a, &join(&a, &b)), a.clone());
            prop_assert!(join(&a, &b).covers(&a) && a.covers(&meet(&a, &b)));
            prop_assert_eq!(a.covers(&b), join(&a, &b) == a);
        }
    }
}
