//! Creating and removing replicas, and what else is asked of the host but reads and writes.

use std::collections::BTreeSet;

use duet_proto::{Digest, Error, GroupRole, Mode, NamespaceName, NamespaceStatus, NodeId, Phase, QuorumHealth};
use duet_store::Batch;
use raft::eraftpb::ConfState;
use tokio::{sync::oneshot, time::Instant};

use super::{
    Host, Slot, contain,
    group::{Cx, Fault, Group},
    requests::{Reply, Write},
    step::Tell,
};
use crate::{
    GroupError, GroupId, GroupSpec, Proposal,
    handle::Command,
    log::{FOUNDED, Log, Place, Row},
    machine::{self, Machine, State, get, state_key},
};

impl Host {
    /// Everything but calls and the end.
    pub(crate) fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Create { spec, reply } => self.create(spec, reply, now),
            Command::Remove { id, keep_data, reply } => self.remove(id, keep_data, reply),
            Command::SetMembers { id, voters, reply } => {
                let result = self.admin(id, now, |group, cx| group.set_members(&voters, cx));
                let _ = reply.send(result);
            }
            Command::Campaign { id, reply } => {
                let result = self.admin(id, now, Group::campaign);
                let _ = reply.send(result);
            }
            Command::Transfer { id, to, reply } => {
                let result = self.admin(id, now, |group, cx| group.transfer(to, cx));
                let _ = reply.send(result);
            }
            Command::Subscribe { namespace, wake } => self.subscribers.entry(namespace).or_default().push(wake),
            Command::Statuses { reply } => {
                let _ = reply.send(self.statuses(now));
            }
            Command::Call { reply, .. } | Command::Propose { reply, .. } => {
                let why = "the node is stopping".to_owned();
                let _ = reply.send(Err(Error::Unavailable { node: self.config.node, why }));
            }
            Command::Shutdown { reply } => drop(reply),
        }
    }

    fn admin<T>(
        &mut self,
        id: GroupId,
        now: Instant,
        work: impl FnOnce(&mut Group, &mut Cx<'_>) -> Result<T, GroupError>,
    ) -> Result<T, GroupError> {
        if let Some(Slot::Failed { why, .. }) = self.groups.get(&id) {
            return Err(GroupError::Failed { why: why.clone() });
        }
        self.dirty.insert(id);
        self.with(id, now, |group, cx| Ok(work(group, cx))).unwrap_or(Err(GroupError::Unknown(id)))
    }

    fn create(&mut self, spec: GroupSpec, reply: oneshot::Sender<Result<(), GroupError>>, now: Instant) {
        let id = spec.id();
        let other = self.groups.range(..).find(|(other, _)| other.namespace == id.namespace);
        match other {
            Some((_, Slot::Removing)) => {
                let why = "an earlier replica is being removed".to_owned();
                let _ = reply.send(Err(GroupError::Busy { why }));
                return;
            }
            Some((found, _)) if *found == id => {
                // Perhaps it was created a moment ago: tell when that is durable.
                self.tells.push(Tell::Created(reply));
                return;
            }
            Some((found, _)) => {
                let why = format!("there is a replica of group {found}");
                let _ = reply.send(Err(GroupError::Invalid { why }));
                return;
            }
            None => {}
        }
        let mut batch = Batch::new();
        match contain(|| self.found(&spec, &mut batch, now)) {
            Ok(group) => {
                self.batch.append(batch);
                self.groups.insert(id, Slot::Running(Box::new(group)));
                self.dirty.insert(id);
                self.tells.push(Tell::Created(reply));
                self.publish(id);
            }
            Err(fault) => {
                let _ = reply.send(Err(GroupError::Invalid { why: fault.to_string() }));
            }
        }
    }

    fn found(&self, spec: &GroupSpec, batch: &mut Batch, now: Instant) -> Result<Group, Fault> {
        let id = spec.id();
        let me = self.config.node;
        let founder = !spec.voters.is_empty();
        if founder && !spec.voters.contains(&me) && !spec.learners.contains(&me) {
            return Err(Fault("this node is no member of the group".into()));
        }
        let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|n| u64::from(n.0)).collect::<Vec<_>>();
        let conf = ConfState::from((ids(&spec.voters), ids(&spec.learners)));
        let base = if founder { FOUNDED } else { Place::default() };
        Row::put(batch, id, &spec.name);
        let log = Log::create(self.store.clone(), id, self.keep(), base, conf, batch);
        let machine = if founder {
            let mut state = match spec.base {
                Some(base) => {
                    let before = get::<State>(&*self.store, &state_key(id.namespace))?;
                    State::over(base, id.epoch, before.as_ref())
                }
                None => State::empty(id.epoch),
            };
            (state.applied.index, state.term) = (base.index, base.term);
            let blank = spec.base.is_none_or(|base| !base.keep_answers);
            Some(Machine::create(&*self.store, self.machine_group(id, spec.name.clone()), state, blank, batch)?)
        } else {
            Machine::forget(id.namespace, batch);
            None
        };
        Group::new(&self.config, id, spec.name.clone(), log, machine, now)
    }

    /// What no client may write. It can be done twice without harm, so it is proposed until it is applied.
    pub(crate) fn propose(&mut self, id: GroupId, proposal: Proposal, deadline: Instant, reply: Reply, now: Instant) {
        if let Err(error) = self.admit(id, true) {
            let _ = reply.send(Err(error));
            return;
        }
        let request = self.request();
        // Every member's part of a switch begins where the epoch ends there.
        let hurried = matches!(proposal, Proposal::Seal { .. });
        let command = match proposal {
            Proposal::Seal { next } => machine::Command::Seal { request, next },
            Proposal::Late { records } => machine::Command::Late { request, records },
            Proposal::Settle => machine::Command::Settle { request },
        };
        self.with(id, now, |group, cx| {
            group.wake(cx, true);
            if hurried {
                group.hurry(u64::MAX);
            }
            group.write(request.counter, Write::of_engine(&command, now, deadline, reply));
            Ok(())
        });
        self.dirty.insert(id);
    }

    fn remove(&mut self, id: GroupId, keep_data: bool, reply: oneshot::Sender<Result<(), GroupError>>) {
        match self.groups.remove(&id) {
            None => {
                let _ = reply.send(Ok(()));
                return;
            }
            Some(Slot::Running(group)) => group.stop("the replica is being removed"),
            Some(Slot::Failed { .. } | Slot::Removing) => {}
        }
        self.groups.insert(id, Slot::Removing);
        self.sends.forget(id);
        Row::destroy(&mut self.batch, id);
        if !keep_data {
            Machine::destroy(id.namespace, &mut self.batch);
        }
        self.tells.push(Tell::Removed(id, reply));
        self.publish(id);
        self.wake_subscribers(id.namespace);
    }

    pub(super) fn statuses(&mut self, now: Instant) -> Vec<NamespaceStatus> {
        let mut statuses = Vec::new();
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            if let Some(status) = self.with(id, now, |group, cx| Ok(group.status(cx))) {
                statuses.push(status);
            } else if let Some(Slot::Failed { name, .. }) = self.groups.get(&id) {
                statuses.push(failed_status(id, name.clone()));
            }
        }
        statuses
    }
}

fn failed_status(id: GroupId, name: NamespaceName) -> NamespaceStatus {
    NamespaceStatus {
        id: id.namespace,
        name,
        mode: Mode::Strong,
        epoch: id.epoch,
        phase: Phase::Stable,
        role: GroupRole::Failed,
        quorum: QuorumHealth::Lost,
        term: 0,
        leader: None,
        last: 0,
        committed: 0,
        applied: 0,
        first: 0,
        keys: 0,
        tombstones: 0,
        digest: Digest::EMPTY,
        members: Vec::new(),
        eventual: None,
    }
}
