//! What followers have not been told yet: how far their groups are committed.
//!
//! The next entries tell them, so that a stream of writes needs no frames of its own for it (two less, and two answers, for
//! each step). Where none follow, somebody has to say it.

use std::{collections::BTreeMap, time::Duration};

use raft::{Progress, ProgressState};
use tokio::time::Instant;

use super::{
    Host,
    group::{Cx, Group},
};
use crate::GroupId;

/// The groups that are led here, and whose followers do not know all that is committed.
///
/// One alarm serves all of them, and goes off at a steady pace while there is traffic: to set it anew for every write costs
/// more than to look in vain. So a group waits for up to twice the patience.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    due: BTreeMap<GroupId, Instant>,
    alarm: Option<Instant>,
    /// Something was owed since the alarm last went off.
    stirred: bool,
}

impl Owed {
    /// The followers of a group have something to be told, by `now + patience` if nothing else tells them.
    pub(crate) fn owe(&mut self, id: GroupId, now: Instant, patience: Duration) {
        self.due.entry(id).or_insert(now + patience);
        self.alarm.get_or_insert(now + patience);
        self.stirred = true;
    }

    /// They know.
    pub(crate) fn told(&mut self, id: GroupId) {
        self.due.remove(&id);
    }

    /// When to ask what is due.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.alarm
    }

    /// The groups whose followers are to be told now; they are owed nothing any more.
    pub(crate) fn due(&mut self, now: Instant, patience: Duration) -> Vec<GroupId> {
        if self.alarm.is_none_or(|alarm| now < alarm) {
            return Vec::new();
        }
        let due = self.due.extract_if(.., |_, due| *due <= now).map(|(id, _)| id).collect();
        let on = std::mem::take(&mut self.stirred) || !self.due.is_empty();
        self.alarm = on.then_some(now + patience);
        due
    }
}

impl Host {
    /// When [`Host::announce`] is to be called, if not before the next tick.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.owed.alarm()
    }

    /// Tells followers what is committed, where that is due.
    pub(crate) fn announce(&mut self, now: Instant) {
        for id in self.owed.due(now, self.config.announce_after) {
            self.with(id, now, |group, cx| {
                group.announce();
                group.ask_all(cx);
                Ok(())
            });
            self.dirty.insert(id);
        }
    }
}

impl Group {
    /// Notes whether followers are still to be told what is committed.
    pub(super) fn owe(&mut self, cx: &mut Cx<'_>) {
        let committed = self.raw.raft.raft_log.committed;
        if self.hurried <= committed {
            self.raw.skip_bcast_commit(true);
        }
        if self.raw.raft.pending_read_count() == 0 {
            self.thrift.clear();
        }
        if self.is_owing() || !self.thrift.is_empty() {
            cx.owed.owe(self.id, cx.now, cx.config.announce_after);
        } else {
            cx.owed.told(self.id);
        }
    }

    /// Whether a follower is to be told what is committed. One that is probed is told when it answers.
    fn is_owing(&self) -> bool {
        let committed = self.raw.raft.raft_log.committed;
        let listens = |progress: &Progress| progress.state == ProgressState::Replicate;
        let told = |id: &u64| *id == u64::from(self.me.0) || self.told.get(id).is_some_and(|told| *told >= committed);
        self.is_leader() && self.raw.raft.prs().iter().any(|(id, progress)| listens(progress) && !told(id))
    }

    /// Tells the followers what is committed, with frames of its own.
    pub(crate) fn announce(&mut self) {
        if self.is_owing() {
            self.raw.raft.bcast_append();
        }
    }

    /// Somebody waits elsewhere for entries up to this one: followers are told of these at once.
    pub(super) fn hurry(&mut self, index: u64) {
        self.hurried = self.hurried.max(index);
        self.raw.skip_bcast_commit(false);
    }
}

#[cfg(test)]
mod tests {
    use duet_proto::{Epoch, NamespaceId};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(2);

    fn group(namespace: u64) -> GroupId {
        GroupId { namespace: NamespaceId(namespace), epoch: Epoch(1) }
    }

    #[test]
    fn what_nothing_tells_is_due_within_twice_the_patience() {
        let (mut owed, start) = (Owed::default(), Instant::now());
        let at = |micros| start + Duration::from_micros(micros);
        owed.owe(group(1), at(0), PATIENCE);
        owed.owe(group(2), at(500), PATIENCE);
        owed.owe(group(1), at(1_500), PATIENCE);
        assert_eq!(owed.due(at(1_999), PATIENCE), []);
        assert_eq!((owed.alarm(), owed.due(at(2_000), PATIENCE)), (Some(at(2_000)), vec![group(1)]));
        assert_eq!((owed.alarm(), owed.due(at(4_000), PATIENCE)), (Some(at(4_000)), vec![group(2)]));
        assert_eq!(owed.alarm(), None, "there was no traffic, and nothing is owed");
    }

    #[test]
    fn a_stream_of_writes_neither_tells_by_itself_nor_moves_the_alarm() {
        let (mut owed, start) = (Owed::default(), Instant::now());
        let mut alarms = std::collections::BTreeSet::new();
        for write in 0..100 {
            let now = start + Duration::from_micros(write * 600);
            owed.told(group(1));
            owed.owe(group(1), now, PATIENCE);
            assert_eq!(owed.due(now, PATIENCE), []);
            alarms.extend(owed.alarm());
        }
        assert!(alarms.len() <= 30, "{} alarms in 60 ms", alarms.len());
    }
}
