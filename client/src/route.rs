//! Whom to ask: a pure choice.

use std::cmp::Reverse;

use duet_proto::NodeId;

/// Someone who may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    /// A node of the catalog.
    Node(NodeId),
    /// An address that the caller gave, by its place in the list; which node answers there is not known yet.
    Endpoint(usize),
}

/// How a target does, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    /// Connected, and answers.
    Ready,
    /// Not connected, and nothing speaks against it.
    Cold,
    /// Let a request wait too long, or could not be reached lately.
    Suspect,
}

/// A target and what speaks for and against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) target: Target,
    /// Holds the namespace. A node that does not can say who does.
    pub(crate) member: bool,
    /// Answers it best, as far as is known: the leader, if the request is one for it, else who answered last.
    pub(crate) favourite: bool,
    pub(crate) health: Health,
    /// Was asked in this round.
    pub(crate) tried: bool,
}

/// The best of them. A member that is connected comes before a leader that is not: it passes the request on, which costs
/// less than a handshake, and much less than a leader that is dead. Of equals, the one after `turn`, so that clients
/// spread. `None` if all were tried in this round.
pub(crate) fn choose(candidates: &[Candidate], turn: usize) -> Option<Target> {
    let count = candidates.len();
    candidates
        .iter()
        .enumerate()
        .filter(|(_, c)| !c.tried)
        .min_by_key(|(at, c)| {
            (
                c.health == Health::Suspect,
                Reverse(c.member),
                c.health,
                Reverse(c.favourite),
                (at + count - turn % count) % count,
            )
        })
        .map(|(_, c)| c.target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u32, health: Health) -> Candidate {
        Candidate { target: Target::Node(NodeId(node)), member: true, favourite: false, health, tried: false }
    }

    fn node(node: u32) -> Option<Target> {
        Some(Target::Node(NodeId(node)))
    }

    #[test]
    fn who_is_connected_first_the_leader_among_them_then_the_rest() {
        let mut all = [
            member(1, Health::Cold),
            member(2, Health::Ready),
            Candidate { favourite: true, ..member(3, Health::Ready) },
            Candidate { member: false, ..member(4, Health::Ready) },
        ];
        for expected in [3, 2, 1, 4] {
            let chosen = choose(&all, 0);
            assert_eq!(chosen, node(expected));
            all.iter_mut().filter(|c| Some(c.target) == chosen).for_each(|c| c.tried = true);
        }
        assert_eq!(choose(&all, 0), None);
    }

    #[test]
    fn a_suspect_leader_comes_last() {
        let all = [
            Candidate { favourite: true, ..member(1, Health::Suspect) },
            member(2, Health::Cold),
            Candidate { member: false, ..member(3, Health::Ready) },
        ];
        assert_eq!(choose(&all, 0), node(2));
        assert_eq!(choose(&all[..1], 0), node(1), "but is asked if there is nobody else");
    }

    #[test]
    fn equals_take_turns() {
        let all = [member(1, Health::Ready), member(2, Health::Ready), member(3, Health::Ready)];
        let chosen: Vec<_> = (0..4).map(|turn| choose(&all, turn)).collect();
        assert_eq!(chosen, [node(1), node(2), node(3), node(1)]);
        assert_eq!(choose(&[], 7), None);
    }
}
