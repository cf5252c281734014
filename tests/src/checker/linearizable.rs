//! Linearizability by search (Wing and Gong, with Lowe's caching), one connected group of keys at a time.

use std::time::Duration;

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
        match check(&group) {
            CheckResult::Ok => {}
            CheckResult::Unknown => verdict = Verdict::Undecided,
            CheckResult::Illegal => return Verdict::Broken(explain(&group)),
        }
    }
    verdict
}

fn check(group: &[&Operation]) -> CheckResult {
    let operations: Vec<porcupine_rs::Operation<Registers>> = group
        .iter()
        .map(|operation| porcupine_rs::Operation {
            client_id: Some(operation.client),
            call_time: operation.called,
            return_time: operation.returned.unwrap_or(i64::MAX),
            op: operation.step.clone(),
            metadata: None,
        })
        .collect();
    porcupine_rs::check_operations_timeout(&operations, Duration::from_secs(60))
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
    let broken = |end: i64| check(&until(end).iter().collect::<Vec<_>>()) == CheckResult::Illegal;
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
