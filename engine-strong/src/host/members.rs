//! Members: changing them, handing over the leadership, looking at the group.

use std::collections::BTreeSet;

use duet_proto::{Digest, GroupRole, MemberProgress, Mode, NamespaceStatus, NodeId, Phase, QuorumHealth};
use raft::{
    ProgressState, SnapshotStatus, StateRole,
    eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType, MessageType},
};

use super::{
    group::{Cx, Group, typed},
    wire::Item,
};
use crate::{GroupError, GroupInfo, MembersChange, machine};

/// A learner this close to the end of the log has caught up.
const CAUGHT_UP: u64 = 256;

impl Group {
    /// The next step from the members there are to those asked for.
    pub(crate) fn set_members(
        &mut self,
        target: &BTreeSet<NodeId>,
        cx: &mut Cx<'_>,
    ) -> Result<MembersChange, GroupError> {
        if target.is_empty() {
            return Err(GroupError::Invalid { why: "a group needs a voter".into() });
        }
        self.must_lead()?;
        self.wake(cx, false);
        let conf = self.conf().clone();
        if self.raw.raft.has_pending_conf() {
            return Ok(MembersChange::Underway);
        }
        if !conf.voters_outgoing.is_empty() {
            // Raft leaves a joint configuration by itself, unless the leader that entered it is gone.
            return self.change(Vec::new());
        }
        let voters: BTreeSet<NodeId> = conf.voters.iter().map(|id| NodeId(*id as u32)).collect();
        let learners: BTreeSet<NodeId> = conf.learners.iter().map(|id| NodeId(*id as u32)).collect();
        if voters == *target && learners.is_empty() {
            return Ok(MembersChange::Done);
        }
        let mut target = target.clone();
        if !target.contains(&self.me) {
            // A leader that leaves hands over first, to one that stays.
            if let Some(heir) = self.heir(|node| target.contains(&node)) {
                self.raw.transfer_leader(u64::from(heir.0));
                return Ok(MembersChange::Underway);
            }
            target.insert(self.me);
        }
        let new: Vec<NodeId> = target.difference(&voters).copied().collect();
        let unknown: Vec<NodeId> = new.iter().copied().filter(|node| !learners.contains(node)).collect();
        if !unknown.is_empty() {
            return self
                .change(unknown.into_iter().map(|node| single(node, ConfChangeType::AddLearnerNode)).collect());
        }
        if !new.iter().all(|node| self.has_caught_up(*node)) {
            return Ok(MembersChange::Underway);
        }
        let gone = voters.union(&learners).copied().filter(|node| !target.contains(node));
        let changes = new.iter().map(|node| single(*node, ConfChangeType::AddNode));
        let changes = changes.chain(gone.map(|node| single(node, ConfChangeType::RemoveNode)));
        self.change(changes.collect())
    }

    fn change(&mut self, changes: Vec<ConfChangeSingle>) -> Result<MembersChange, GroupError> {
        let mut change = ConfChangeV2 { changes, ..ConfChangeV2::default() };
        change.set_transition(ConfChangeTransition::Auto);
        let mut entry = Entry { data: prost::Message::encode_to_vec(&change), ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let mut message = typed(MessageType::MsgPropose);
        (message.from, message.entries) = (u64::from(self.me.0), vec![entry]);
        match self.raw.step(message) {
            Ok(()) => Ok(MembersChange::Underway),
            Err(error) => Err(GroupError::Busy { why: error.to_string() }),
        }
    }

    fn has_caught_up(&self, node: NodeId) -> bool {
        let last = self.raw.raft.raft_log.last_index();
        self.raw.raft.prs().get(u64::from(node.0)).is_some_and(|progress| {
            progress.recent_active && progress.matched > 0 && progress.matched + CAUGHT_UP >= last
        })
    }

    fn must_lead(&self) -> Result<(), GroupError> {
        if self.is_leader() { Ok(()) } else { Err(GroupError::NotLeader { leader: self.leader() }) }
    }

    /// The other voter that is the furthest, among those that live and are `fit`.
    fn heir(&self, fit: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let voters = &self.conf().voters;
        let progress = self.raw.raft.prs().iter();
        let fit = progress.filter(|(id, progress)| {
            **id != self.raw.raft.id && voters.contains(id) && progress.recent_active && fit(NodeId(**id as u32))
        });
        fit.max_by_key(|(id, progress)| (progress.matched, **id)).map(|(id, _)| NodeId(*id as u32))
    }

    pub(crate) fn transfer(&mut self, to: NodeId, cx: &mut Cx<'_>) -> Result<(), GroupError> {
        self.must_lead()?;
        if !self.conf().voters.contains(&u64::from(to.0)) {
            return Err(GroupError::Invalid { why: format!("node {to} is no voter of the group") });
        }
        self.wake(cx, false);
        self.raw.transfer_leader(u64::from(to.0));
        Ok(())
    }

    /// Hands the leadership to whoever is the furthest. Whether that is under way: until the heir is known to lead,
    /// this replica's vote may be needed.
    pub(crate) fn hand_over(&mut self, cx: &mut Cx<'_>) -> bool {
        if self.is_leader() && self.raw.raft.lead_transferee.is_none() {
            let Some(heir) = self.heir(|node| !cx.peers.is_silent(node)) else { return false };
            self.wake(cx, false);
            self.leaving = true;
            self.raw.transfer_leader(u64::from(heir.0));
        }
        self.leaving && self.leader().is_none_or(|leader| leader == self.me)
    }

    /// Whether Raft has something to say.
    pub(crate) fn has_ready(&self) -> bool {
        self.raw.has_ready()
    }

    pub(crate) fn campaign(&mut self, cx: &mut Cx<'_>) -> Result<(), GroupError> {
        self.wake(cx, false);
        // A quorum would have it, and is about to say so: to begin anew would only take longer.
        if self.raw.raft.state == StateRole::Candidate {
            return Ok(());
        }
        self.raw.campaign().map_err(|error| GroupError::Busy { why: error.to_string() })
    }

    pub(crate) fn snapshot_ended(&mut self, to: NodeId, done: bool) {
        let status = if done { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(u64::from(to.0), status);
    }

    pub(crate) fn unreachable(&mut self, node: NodeId) {
        if self.is_leader() {
            self.raw.report_unreachable(u64::from(node.0));
        }
    }

    /// Tells the members what all of them have, one that is away included: only for such a one it is kept.
    pub(super) fn tell_held(&mut self, cx: &mut Cx<'_>) {
        if !self.is_leader() {
            return;
        }
        let matched = self.raw.raft.prs().iter().map(|(_, progress)| progress.matched).min().unwrap_or(0);
        let Some(index) = self.raw.store().newly_held(matched) else { return };
        self.raw.mut_store().hold(index);
        self.tell_members(&Item::Held { term: self.raw.raft.term, index }, cx);
    }

    fn tell_members(&self, item: &Item, cx: &mut Cx<'_>) {
        let members: BTreeSet<NodeId> = self.members().filter(|node| *node != self.me).collect();
        for node in members {
            cx.out.push(node, self.id, item);
        }
    }

    /// The leader says what every member has.
    pub(crate) fn told_held(&mut self, from: NodeId, term: u64, index: u64) {
        if self.raw.raft.term == term && self.leader() == Some(from) {
            self.raw.mut_store().hold(index);
        }
    }

    /// The group goes to sleep when it has been quiet for long and every member that lives has everything: from then
    /// on the beats of the nodes stand for its heartbeats.
    pub(super) fn fall_asleep(&mut self, cx: &mut Cx<'_>) {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let done = self.is_leader()
            && !self.asleep
            && !self.raw.has_ready()
            && cx.now - self.active > cx.config.quiet_after
            && !self.busy()
            && self.is_settled()
            && self.applied() == last
            && raft.lead_transferee.is_none()
            && self.conf().voters_outgoing.is_empty()
            && !self.in_doubt(cx.config, cx.now)
            && raft.prs().iter().all(|(id, progress)| {
                *id == raft.id || progress.matched == last || cx.peers.is_silent(NodeId(*id as u32))
            });
        if done {
            self.asleep = true;
            self.tell_members(&Item::Sleep { term: self.raw.raft.term, last }, cx);
        }
    }

    /// The leader says that the group can sleep.
    pub(crate) fn told_to_sleep(&mut self, from: NodeId, term: u64, last: u64) {
        let raft = &self.raw.raft;
        let same = raft.term == term && self.leader() == Some(from) && raft.raft_log.last_index() == last;
        if same && self.applied() == last && !self.is_leader() && !self.busy() && self.is_settled() {
            self.asleep = true;
        }
    }

    /// Wakes up; with `tell`, the leader too, which would otherwise let this replica time out.
    pub(crate) fn wake(&mut self, cx: &mut Cx<'_>, tell: bool) {
        self.active = cx.now;
        if !std::mem::take(&mut self.asleep) {
            return;
        }
        self.see_quorum(cx.peers, cx.now);
        let Some(leader) = self.leader().filter(|leader| *leader != self.me) else { return };
        if cx.peers.is_silent(leader) {
            // The silence of its node has lasted as long as an election takes to begin.
            self.raw.raft.election_elapsed = cx.config.election.start as usize;
        } else if tell {
            cx.out.push(leader, self.id, &Item::Wake);
        }
    }

    pub(crate) fn info(&self) -> GroupInfo {
        let conf = self.conf();
        let nodes = |lists: [&Vec<u64>; 2]| lists.into_iter().flatten().map(|id| NodeId(*id as u32)).collect();
        GroupInfo {
            id: self.id,
            name: self.name.clone(),
            leader: self.leader(),
            voters: nodes([&conf.voters, &conf.voters_outgoing]),
            learners: nodes([&conf.learners, &conf.learners_next]),
            failed: None,
        }
    }

    pub(crate) fn status(&mut self, cx: &Cx<'_>) -> NamespaceStatus {
        self.see_quorum(cx.peers, cx.now);
        let raft = &self.raw.raft;
        let state = self.machine.as_ref().map(machine::Machine::state);
        let role = match raft.state {
            StateRole::Leader => GroupRole::Leader,
            StateRole::Candidate | StateRole::PreCandidate => GroupRole::Candidate,
            StateRole::Follower if raft.promotable() => GroupRole::Follower,
            StateRole::Follower => GroupRole::Learner,
        };
        NamespaceStatus {
            id: self.id.namespace,
            name: self.name.clone(),
            mode: Mode::Strong,
            epoch: self.id.epoch,
            phase: if self.conf().voters_outgoing.is_empty() { Phase::Stable } else { Phase::Moving },
            role,
            quorum: self.health(cx),
            term: raft.term,
            leader: self.leader(),
            last: raft.raft_log.last_index(),
            committed: raft.raft_log.committed,
            // While a snapshot is put in place, nothing is.
            applied: if state.is_some() { self.applied() } else { 0 },
            first: self.raw.store().first(),
            keys: state.map_or(0, |s| s.keys),
            tombstones: state.map_or(0, |s| s.tombstones),
            digest: state.map_or(Digest::EMPTY, |s| s.digest),
            members: if self.is_leader() { self.progress(cx) } else { Vec::new() },
            eventual: None,
        }
    }

    fn health(&self, cx: &Cx<'_>) -> QuorumHealth {
        if self.in_doubt(cx.config, cx.now) {
            return QuorumHealth::Lost;
        }
        let all = self.quorum_view(cx.peers, cx.config, cx.now);
        if all.reachable.len() == all.voters.len() { QuorumHealth::Healthy } else { QuorumHealth::Degraded }
    }

    fn progress(&self, cx: &Cx<'_>) -> Vec<MemberProgress> {
        let last = self.raw.raft.raft_log.last_index();
        let learners = &self.conf().learners;
        let others = self.raw.raft.prs().iter().filter(|(id, _)| **id != self.raw.raft.id);
        let mut members: Vec<MemberProgress> = others
            .map(|(id, progress)| {
                let node = NodeId(*id as u32);
                MemberProgress {
                    node,
                    matched: progress.matched,
                    lag: last.saturating_sub(progress.matched),
                    active: cx.peers.heard(node, cx.now).is_some_and(|h| cx.now - h <= cx.config.doubt_after),
                    snapshot: progress.state == ProgressState::Snapshot,
                    learner: learners.contains(id),
                }
            })
            .collect();
        members.sort_unstable_by_key(|m| m.node);
        members
    }
}

fn single(node: NodeId, kind: ConfChangeType) -> ConfChangeSingle {
    let mut change = ConfChangeSingle { node_id: u64::from(node.0), ..ConfChangeSingle::default() };
    change.set_change_type(kind);
    change
}
