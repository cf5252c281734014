//! Linearizability by search (Wing and Gong, with Lowe's caching), one connected group of keys at a time.

use std::{collections::BTreeMap, time::Duration};

use porcupine_rs::{CheckResult, Model};

use super::{Expected, History, Key, Operation, Step, Value};

/// What the checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order of the operations that explains every answer.
    Linearizable,
    /// There is none. The operations of the smallest prefix that has none, by time of return.
    Broken(Vec<String>),
    /// The search took too long to tell.
    Undecided,
}

/// Whether one order of the operations, each between its call and its return, explains every answer.
#[must_use]
pub fn linearizable(history: &History) -> Verdict {
    let mut verdict = Verdict::Linearizable;
    for group in history.groups() {
        match decide(&group) {
            CheckResult::Ok => {}
            CheckResult::Unknown => verdict = Verdict::Undecided,
            CheckResult::Illegal => return Verdict::Broken(explain(&group)),
        }
    }
    verdict
}

/// Searches first without the operations of unknown outcome that nobody saw: each of them doubles the orders to search,
/// and an order without them is one with them, as they may take effect after everything. Only if there is none are
/// they looked at: first the deletes, as an absence tells nobody's name.
fn decide(group: &[&Operation]) -> CheckResult {
    let bounds = last_moments(group);
    let seen = |at: usize| group[at].returned.is_some() || bounds[at].is_some();
    let deletes = |at: usize| seen(at) || group[at].step.deletes();
    let everything = |_: usize| true;
    let stages: [&dyn Fn(usize) -> bool; 3] = [&seen, &deletes, &everything];
    let (mut verdict, mut before) = (CheckResult::Illegal, None);
    for keep in stages {
        let kept: Vec<usize> = (0..group.len()).filter(|at| keep(*at)).collect();
        if before.replace(kept.len()) == Some(kept.len()) {
            continue;
        }
        verdict = check(kept.into_iter().map(|at| (group[at], group[at].returned.or(bounds[at]))));
        if verdict == CheckResult::Ok {
            break;
        }
    }
    verdict
}

/// For each operation of unknown outcome whose value was seen: until when it must have taken effect, because the first
/// of those who saw it had their answer by then. Values are unique, so who saw one saw that very operation.
fn last_moments(group: &[&Operation]) -> Vec<Option<i64>> {
    let mut first: BTreeMap<Value, i64> = BTreeMap::new();
    for operation in group {
        let Some(returned) = operation.returned else { continue };
        for value in operation.step.sees() {
            first.entry(value).and_modify(|at| *at = returned.min(*at)).or_insert(returned);
        }
    }
    let moment =
        |operation: &&Operation| operation.step.values().filter_map(|value| first.get(&value).copied()).min();
    group.iter().map(|operation| if operation.returned.is_none() { moment(operation) } else { None }).collect()
}

/// Searches among operations, each with its return.
fn check<'a>(group: impl Iterator<Item = (&'a Operation, Option<i64>)>) -> CheckResult {
    let operations: Vec<porcupine_rs::Operation<Registers>> = group
        .map(|(operation, returned)| porcupine_rs::Operation {
            client_id: Some(operation.client),
            call_time: operation.called,
            // Who was seen before being called is called all the same: then nothing explains the one who saw it.
            return_time: returned.unwrap_or(i64::MAX).max(operation.called),
            op: operation.step.clone(),
            metadata: None,
        })
        .collect();
    porcupine_rs::check_operations_timeout(&operations, Duration::from_secs(40))
}

/// Cuts the history behind the first return that cannot be explained, so that a person has less to read.
fn explain(group: &[&Operation]) -> Vec<String> {
    let mut returns: Vec<i64> = group.iter().filter_map(|operation| operation.returned).collect();
    returns.sort_unstable();
    let until = |end: i64| -> Vec<Operation> {
        let called = group.iter().filter(|operation| operation.called <= end);
        called
            .map(|operation| {
                let mut operation = (*operation).clone();
                if operation.returned.is_some_and(|returned| returned > end) {
                    operation.returned = None;
                    operation.step.reads.clear();
                    operation.step.held = None;
                }
                operation
            })
            .collect()
    };
    let broken = |end: i64| decide(&until(end).iter().collect::<Vec<_>>()) == CheckResult::Illegal;
    let at = returns.partition_point(|end| !broken(*end));
    let mut told = until(returns.get(at).copied().unwrap_or(i64::MAX));
    told.sort_by_key(|operation| operation.called);
    told.iter().map(|operation| format!("{operation:?}")).collect()
}

#[derive(Clone, Debug)]
struct Registers;

impl Model for Registers {
    type State = Vec<(Key, Value)>;
    type Op = Step;
    type Metadata = ();

    fn init() -> Self::State {
        Vec::new()
    }

    fn step(state: &Self::State, step: &Step) -> (bool, Self::State) {
        let holds = step.compares.iter().all(|(key, expected)| match (get(state, *key), expected) {
            (found, Expected::Value(value)) => found == Some(*value),
            (found, Expected::Absent) => found.is_none(),
            (found, Expected::Present) => found.is_some(),
        });
        if step.held.is_some_and(|held| held != holds) {
            return (false, state.clone());
        }
        let mut state = state.clone();
        for (key, value) in if holds { &step.then } else { &step.otherwise } {
            set(&mut state, *key, *value);
        }
        let seen = step.reads.iter().all(|(key, value)| get(&state, *key) == *value);
        (seen, state)
    }
}

fn get(state: &[(Key, Value)], key: Key) -> Option<Value> {
    state.binary_search_by_key(&key, |(key, _)| *key).ok().map(|at| state[at].1)
}

fn set(state: &mut Vec<(Key, Value)>, key: Key, value: Option<Value>) {
    match (state.binary_search_by_key(&key, |(key, _)| *key), value) {
        (Ok(at), Some(value)) => state[at].1 = value,
        (Ok(at), None) => drop(state.remove(at)),
        (Err(at), Some(value)) => state.insert(at, (key, value)),
        (Err(_), None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(steps: Vec<(i64, Option<i64>, Step)>) -> History {
        let mut history = History::default();
        for (called, returned, step) in steps {
            history.push(Operation { client: 0, called, returned, step, stamp: None });
        }
        history
    }

    #[test]
    fn a_stale_read_is_found() {
        let found = linearizable(&history(vec![
            (0, Some(1), Step::write(1, Some(10))),
            (2, Some(3), Step::write(1, Some(11))),
            (4, Some(5), Step::read(1, Some(10))),
            (6, Some(7), Step::read(1, Some(11))),
        ]));
        let Verdict::Broken(told) = found else { panic!("{found:?}") };
        assert_eq!(told.len(), 3, "the read after it is no part of the story: {told:?}");
    }

    #[test]
    fn reads_that_overlap_a_write_may_see_either() {
        for value in [None, Some(10)] {
            let steps = vec![(0, Some(9), Step::write(1, Some(10))), (1, Some(2), Step::read(1, value))];
            assert_eq!(linearizable(&history(steps)), Verdict::Linearizable);
        }
    }

    #[test]
    fn an_unknown_write_may_show_later_but_not_go_back() {
        let unknown = (0, None, Step::write(1, Some(10)));
        let late = vec![unknown.clone(), (1, Some(2), Step::read(1, None)), (50, Some(51), Step::read(1, Some(10)))];
        assert_eq!(linearizable(&history(late)), Verdict::Linearizable);
        let back = vec![unknown, (1, Some(2), Step::read(1, Some(10))), (50, Some(51), Step::read(1, None))];
        assert!(matches!(linearizable(&history(back)), Verdict::Broken(_)));
    }

    #[test]
    fn what_was_seen_had_happened_by_then() {
        // The write of 10 must have been done when it was read; so it cannot come back after 11.
        let back = vec![
            (0, None, Step::write(1, Some(10))),
            (1, Some(2), Step::read(1, Some(10))),
            (3, Some(4), Step::write(1, Some(11))),
            (5, Some(6), Step::read(1, Some(10))),
        ];
        assert!(matches!(linearizable(&history(back)), Verdict::Broken(_)));
        let future = vec![(0, Some(1), Step::read(1, Some(10))), (5, None, Step::write(1, Some(10)))];
        assert!(matches!(linearizable(&history(future)), Verdict::Broken(_)));
    }

    #[test]
    fn an_absence_may_be_the_work_of_an_unknown_delete() {
        let gone = |returned| {
            history(vec![
                (0, Some(1), Step::write(1, Some(10))),
                (2, returned, Step::write(1, None)),
                (3, Some(4), Step::read(1, None)),
            ])
        };
        assert_eq!(linearizable(&gone(None)), Verdict::Linearizable);
        let shown = Step::compare_and_set(1, Expected::Absent, Some(12), Some(false));
        let unseen = vec![(0, None, Step::write(1, Some(10))), (1, Some(2), shown)];
        assert_eq!(
            linearizable(&history(unseen)),
            Verdict::Linearizable,
            "only the write that nobody saw explains it"
        );
    }

    #[test]
    fn many_unknown_outcomes_are_decided_at_once() {
        let mut steps = Vec::new();
        for n in 0..60_i64 {
            let value = n as Value;
            steps.push((10 * n, None, Step::write(1, Some(1000 + value))));
            steps.push((10 * n + 1, None, Step::write(1, if n % 2 == 0 { None } else { Some(2000 + value) })));
            steps.push((10 * n + 2, Some(10 * n + 4), Step::write(1, Some(value))));
            let seen = if n % 3 == 0 { 1000 + value } else { value };
            steps.push((10 * n + 5, Some(10 * n + 6), Step::read(1, Some(seen))));
        }
        assert_eq!(linearizable(&history(steps)), Verdict::Linearizable);
    }

    #[test]
    fn two_compare_and_sets_on_one_value_cannot_both_hold() {
        let cas = |value| Step::compare_and_set(1, Expected::Absent, Some(value), Some(true));
        assert!(matches!(
            linearizable(&history(vec![(0, Some(5), cas(1)), (1, Some(6), cas(2))])),
            Verdict::Broken(_)
        ));
    }

    #[test]
    fn a_transaction_is_one_step_over_its_keys() {
        let both = Step { then: vec![(1, Some(10)), (2, Some(20))], ..Step::default() };
        let torn = vec![(0, Some(9), both), (1, Some(2), Step::read(1, Some(10))), (3, Some(4), Step::read(2, None))];
        assert!(matches!(linearizable(&history(torn)), Verdict::Broken(_)));
    }
}
