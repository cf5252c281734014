//! Versions must rise: a write that begins after another on the same key has ended has the higher stamp.

use std::collections::BTreeMap;

use duet_proto::Stamp;

use super::{History, Key};

/// The first pair of writes whose stamps contradict the order in which they happened, told for a person.
///
/// # Errors
/// If there is such a pair, or a stamp was given to two writes of a key.
pub fn stamps_rise(history: &History) -> Result<(), String> {
    let mut writes: BTreeMap<Key, Vec<(i64, i64, Stamp)>> = BTreeMap::new();
    for operation in history.operations() {
        if let (Some(stamp), Some(returned)) = (operation.stamp, operation.returned) {
            let changes =
                if operation.step.held == Some(false) { &operation.step.otherwise } else { &operation.step.then };
            for (key, _) in changes {
                writes.entry(*key).or_default().push((operation.called, returned, stamp));
            }
        }
    }
    for (key, list) in writes {
        let writes = list.into_iter().map(|(called, returned, stamp)| Shown { called, returned, stamp, wrote: true });
        in_order(key, writes.collect())?;
    }
    Ok(())
}

/// An operation that told a version of a key: it wrote it, or read it.
pub(super) struct Shown {
    pub(super) called: i64,
    pub(super) returned: i64,
    pub(super) stamp: Stamp,
    pub(super) wrote: bool,
}

/// Whether what was told of a key rises: a write after what others had been told, a read not before it.
pub(super) fn in_order(key: Key, mut list: Vec<Shown>) -> Result<(), String> {
    list.sort_by_key(|shown| shown.called);
    let mut ended: Vec<(i64, Stamp)> = list.iter().map(|shown| (shown.returned, shown.stamp)).collect();
    ended.sort_by_key(|(returned, _)| *returned);
    let (mut highest, mut next) = (None, 0);
    for Shown { called, stamp, wrote, .. } in list {
        while next < ended.len() && ended[next].0 < called {
            highest = highest.max(Some(ended[next].1));
            next += 1;
        }
        if highest > Some(stamp) || (wrote && highest == Some(stamp)) {
            let (before, what) = (highest.unwrap_or_default(), if wrote { "write" } else { "read" });
            return Err(format!(
                "key {key}: a {what} called at {called} got {stamp}, after {before} was acknowledged"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use duet_proto::{Epoch, Hlc, NodeId};

    use super::*;
    use crate::checker::{Operation, Step};

    fn write(called: i64, returned: i64, hlc: u64) -> Operation {
        let stamp = Stamp { epoch: Epoch(1), hlc: Hlc(hlc), node: NodeId(1) };
        Operation { client: 1, called, returned: Some(returned), step: Step::write(1, Some(hlc)), stamp: Some(stamp) }
    }

    #[test]
    fn order_in_time_is_order_of_stamps() {
        let run = |writes: Vec<Operation>| {
            let mut history = History::default();
            writes.into_iter().for_each(|operation| history.push(operation));
            stamps_rise(&history)
        };
        assert!(
            run(vec![write(0, 5, 2), write(1, 6, 1), write(7, 8, 3)]).is_ok(),
            "overlapping writes may go either way"
        );
        assert!(run(vec![write(0, 5, 2), write(6, 7, 1)]).is_err());
        assert!(run(vec![write(0, 5, 2), write(6, 7, 2)]).is_err());
    }
}
