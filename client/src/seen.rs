//! What a session has seen of an eventual namespace, and what it therefore asks of the member that answers next.
//!
//! Every answer carries a token: what its member holds, joined with the stamps that were returned. Shown with the next
//! request, it makes that read see at least as much, and that write take a later stamp, whichever member answers:
//! read your writes, monotonic reads, writes follow reads (Terry et al., PDIS 1994).
//!
//! Frontiers of different epochs cannot be compared, so a token is of one epoch. A member of a later epoch answers a
//! request only if the base of its epoch covers the token that was shown: its answer stands for that token, and for
//! nothing else that was seen before.
//!
//! ```text
//! session                         member in epoch 1     member in epoch 2
//!   | get, shows 1:<a5>                                    | base covers 1:<a5>
//!   | put, shows 1:<a5> -----------> | a9, held there alone, not in the base
//!   |   <- 1:<a9>
//!   |   <- 2:<…>   replacing 1:<a9> by it would forget the put: the read after it could miss it
//! ```
//!
//! So a session may hold tokens of several epochs, and each of its requests shows all of them: a member that is shown the
//! earliest alone may answer without what the session has written in the latest.

use std::collections::BTreeMap;

use duet_proto::{Epoch, Token};

/// A token for each epoch of which something was seen that no answer of a later epoch stands for.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<Epoch, Token>);

impl Seen {
    /// What the next request shows, in the order of epochs.
    pub(crate) fn show(&self) -> Vec<Token> {
        self.0.values().cloned().collect()
    }

    /// Joins what another session has seen.
    pub(crate) fn join(&mut self, token: &Token) {
        join(self.0.entry(token.epoch).or_insert_with(|| Token { epoch: token.epoch, seen: Vec::new() }), token);
    }

    /// Takes in an answer of an epoch to a request that showed `shown`. A strong answer has no token, and stands for
    /// what was shown all the same.
    pub(crate) fn answered(&mut self, shown: &[Token], epoch: Epoch, token: Option<&Token>) {
        for shown in shown.iter().filter(|shown| shown.epoch < epoch) {
            if self.0.get(&shown.epoch).is_some_and(|held| covers(shown, held)) {
                self.0.remove(&shown.epoch);
            }
        }
        if let Some(token) = token {
            self.join(token);
        }
    }
}

/// Joins what two tokens of one epoch have seen.
fn join(mine: &mut Token, other: &Token) {
    for &(node, hlc) in &other.seen {
        match mine.seen.binary_search_by_key(&node, |(n, _)| *n) {
            Ok(at) => mine.seen[at].1 = mine.seen[at].1.max(hlc),
            Err(at) => mine.seen.insert(at, (node, hlc)),
        }
    }
}

/// Whether `token` has seen all that `other`, of the same epoch, has.
fn covers(token: &Token, other: &Token) -> bool {
    other.seen.iter().all(|(node, hlc)| token.seen.iter().any(|(n, h)| n == node && h >= hlc))
}

#[cfg(test)]
mod tests {
    use duet_proto::{Hlc, NodeId};
    use proptest::prelude::*;

    use super::*;

    fn token(epoch: u32, seen: &[(u32, u64)]) -> Token {
        Token { epoch: Epoch(epoch), seen: seen.iter().map(|&(node, hlc)| (NodeId(node), Hlc(hlc))).collect() }
    }

    /// An answer of an eventual epoch.
    fn eventual(seen: &mut Seen, shown: &[Token], answer: &Token) {
        seen.answered(shown, answer.epoch, Some(answer));
    }

    fn tokens() -> impl Strategy<Value = Token> {
        prop::collection::btree_map(1u32..5, 0u64..9, 0..4)
            .prop_map(|seen| token(1, &seen.into_iter().collect::<Vec<_>>()))
    }

    proptest! {
        #[test]
        fn tokens_join_as_vectors_do(a in tokens(), b in tokens(), c in tokens()) {
            let joined = |tokens: [&Token; 3]| {
                let mut seen = Seen::default();
                tokens.into_iter().for_each(|token| eventual(&mut seen, &[], token));
                seen.show().remove(0)
            };
            let abc = joined([&a, &b, &c]);
            prop_assert_eq!(&joined([&c, &a, &b]), &abc);
            prop_assert_eq!(&joined([&abc, &b, &abc]), &abc);
            prop_assert!(abc.seen.is_sorted_by_key(|(node, _)| *node));
            prop_assert!([&a, &b, &c].into_iter().all(|token| covers(&abc, token)));
        }
    }

    #[test]
    fn a_later_epoch_stands_for_what_it_was_shown() {
        let mut seen = Seen::default();
        assert_eq!(seen.show(), []);
        eventual(&mut seen, &[], &token(1, &[(1, 5)]));
        let shown = seen.show();
        assert_eq!(shown, [token(1, &[(1, 5)])]);
        eventual(&mut seen, &shown, &token(2, &[(2, 1)]));
        assert_eq!(seen.show(), [token(2, &[(2, 1)])]);
    }

    #[test]
    fn a_later_epoch_stands_for_nothing_that_it_was_not_shown() {
        let mut seen = Seen::default();
        eventual(&mut seen, &[], &token(1, &[(1, 5)]));
        let shown = seen.show();
        // Meanwhile another request of the session has written in epoch 1.
        eventual(&mut seen, &shown, &token(1, &[(1, 9)]));
        eventual(&mut seen, &shown, &token(2, &[(2, 1)]));
        let both = seen.show();
        assert_eq!(both, [token(1, &[(1, 9)]), token(2, &[(2, 1)])], "the first is still to be confirmed");
        eventual(&mut seen, &both, &token(2, &[(3, 4)]));
        assert_eq!(seen.show(), [token(2, &[(2, 1), (3, 4)])]);
        // Neither does a token of another session's, nor an answer to a request without one.
        let mut seen = Seen::default();
        seen.join(&token(1, &[(1, 5)]));
        seen.join(&token(2, &[(2, 1)]));
        eventual(&mut seen, &[], &token(2, &[(2, 2)]));
        assert_eq!(seen.show(), [token(1, &[(1, 5)]), token(2, &[(2, 2)])]);
    }

    #[test]
    fn a_strong_answer_stands_for_what_it_was_shown_and_adds_nothing() {
        let mut seen = Seen::default();
        eventual(&mut seen, &[], &token(1, &[(1, 5)]));
        let shown = seen.show();
        seen.answered(&[], Epoch(2), None);
        seen.answered(&shown, Epoch(1), None);
        assert_eq!(seen.show(), shown, "neither an answer that was not shown it nor one of the same epoch");
        // Written in epoch 1 by a member that had not heard of the switch: it comes in late.
        eventual(&mut seen, &shown, &token(1, &[(2, 9)]));
        seen.answered(&shown, Epoch(2), None);
        let all = seen.show();
        assert_eq!(all, [token(1, &[(1, 5), (2, 9)])], "the base need not have that");
        seen.answered(&all, Epoch(2), None);
        assert_eq!(seen.show(), []);
    }
}
