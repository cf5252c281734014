//! What is said: one key per namespace, `ns.ID`, and in its value the epoch, mode, hash of the frontier, digest and
//! lag, separated by spaces.

use std::collections::BTreeMap;

use chitchat::NodeState;
use duet_proto::{Digest, Epoch, Mode, NamespaceId};

use super::SpaceWord;
use crate::Frontier;

/// Namespaces that a node speaks of; what lies beyond is left out. Each takes about 100 bytes on every node.
const NAMESPACES: usize = 2048;
/// Namespaces whose words are changed in one round: chitchat carries only what has changed.
const PER_ROUND: usize = 256;

const PREFIX: &str = "ns.";

/// A hash of a frontier, equal on all nodes.
pub(crate) fn hash(frontier: &Frontier) -> u64 {
    let entries = frontier.iter().flat_map(|(node, hlc)| {
        let mut entry = [0; 12];
        entry[..4].copy_from_slice(&node.0.to_be_bytes());
        entry[4..].copy_from_slice(&hlc.0.to_be_bytes());
        entry
    });
    xxhash_rust::xxh3::xxh3_64(&entries.collect::<Vec<u8>>())
}

impl SpaceWord {
    fn say(&self) -> String {
        let mode = if self.mode == Mode::Strong { "strong" } else { "eventual" };
        format!("{} {mode} {:016x} {:032x} {}", self.epoch, self.frontier, self.digest.0, self.lag_ms)
    }

    fn hear(value: &str) -> Option<SpaceWord> {
        let mut parts = value.split(' ');
        let word = SpaceWord {
            epoch: Epoch(parts.next()?.parse().ok()?),
            mode: match parts.next()? {
                "strong" => Mode::Strong,
                "eventual" => Mode::Eventual,
                _ => return None,
            },
            frontier: u64::from_str_radix(parts.next()?, 16).ok()?,
            digest: Digest(u128::from_str_radix(parts.next()?, 16).ok()?),
            lag_ms: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(word)
    }
}

/// What this node has said so far, in one life of the gossip task.
#[derive(Default)]
pub(super) struct Said {
    words: BTreeMap<NamespaceId, SpaceWord>,
    /// Where the last round ended: all get their turn.
    after: Option<NamespaceId>,
}

impl Said {
    /// Says what has changed.
    pub(super) fn say(&mut self, state: &mut NodeState, words: &BTreeMap<NamespaceId, SpaceWord>) {
        let kept: BTreeMap<_, _> = words.iter().take(NAMESPACES).map(|(id, word)| (*id, *word)).collect();
        let gone = self.words.extract_if(.., |id, _| !kept.contains_key(id));
        gone.for_each(|(id, _)| state.delete(&key(id)));
        let changed = |(id, word): &(&NamespaceId, &SpaceWord)| self.words.get(*id) != Some(*word);
        let from = self.after.map_or(NamespaceId(0), |id| NamespaceId(id.0.saturating_add(1)));
        let turn: Vec<_> = (kept.range(from..).chain(kept.range(..from)).filter(changed).take(PER_ROUND))
            .map(|(id, word)| (*id, *word))
            .collect();
        for (id, word) in turn {
            state.set(key(id), word.say());
            self.words.insert(id, word);
            self.after = Some(id);
        }
    }
}

fn key(id: NamespaceId) -> String {
    format!("{PREFIX}{id}")
}

/// What a node has said; what cannot be understood is left out.
pub(super) fn heard(state: &NodeState) -> BTreeMap<NamespaceId, SpaceWord> {
    let words = state.iter_prefix(PREFIX).take(NAMESPACES).filter_map(|(key, value)| {
        let id = key.strip_prefix(PREFIX)?.parse().ok()?;
        Some((NamespaceId(id), SpaceWord::hear(&value.value)?))
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use duet_proto::{Hlc, NodeId};
    use proptest::prelude::*;

    use super::*;

    const WORD: SpaceWord = SpaceWord {
        epoch: Epoch(3),
        mode: Mode::Eventual,
        frontier: 0xfeed,
        digest: Digest(u128::MAX),
        lag_ms: 1200,
    };

    #[test]
    fn a_word_is_understood() {
        assert_eq!(WORD.say(), "3 eventual 000000000000feed ffffffffffffffffffffffffffffffff 1200");
        assert_eq!(SpaceWord::hear(&WORD.say()), Some(WORD));
        assert_eq!(SpaceWord::hear(&(WORD.say() + " more")), None);
    }

    #[test]
    fn equal_frontiers_have_equal_hashes() {
        let frontier = |entries: &[(u32, u64)]| entries.iter().map(|(n, h)| (NodeId(*n), Hlc(*h))).collect();
        assert_eq!(hash(&frontier(&[(1, 5), (2, 7)])), hash(&frontier(&[(2, 7), (1, 5), (3, 0)])));
        assert_ne!(hash(&frontier(&[(1, 5)])), hash(&frontier(&[(1, 6)])));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = SpaceWord::hear(&text);
        }
    }
}
