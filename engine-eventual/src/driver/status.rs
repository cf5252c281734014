//! What the engine says of its replicas.

use std::collections::BTreeMap;

use duet_proto::{
    Digest, EventualStatus, GroupRole, MemberProgress, Mode, NamespaceId, NamespaceName, NamespaceStatus, Phase,
    QuorumHealth,
};
use tokio::time::Instant;

use super::{Driver, Lent, Running, Slot, peers::Peers};
use crate::{SpaceId, SpaceWord, Standing, gossip::hash};

/// How a replica stands, from what is durable; nothing if that cannot be read.
pub(super) fn standing(running: &Running, lent: &Lent<'_>) -> Option<Standing> {
    let Running { replica, window, .. } = running;
    let (status, look) = (replica.status(), window.look(&**lent.store).ok()?);
    Some(Standing {
        version: status.version,
        moved: status.moved,
        frontier: status.frontier,
        whole: status.whole,
        others: status.peers,
        fence: status.fence,
        converged: status.converged,
        near: replica.is_near(lent.now_ms()),
        clean: replica.is_clean(&*look.view).ok()?,
        base: replica.base(&*look.view).ok()?,
    })
}

impl Driver {
    pub(super) fn statuses(&self, now: Instant) -> Vec<NamespaceStatus> {
        let lent = Lent { config: &self.config, store: &self.store, clock: &*self.clock, origin: self.origin, now };
        let statuses = self.spaces.iter().map(|(id, space)| match &space.slot {
            Slot::Running(running) => status(*id, space.name.clone(), running, &self.peers, &lent),
            Slot::Creating(..) => blank(*id, space.name.clone(), GroupRole::Member),
            Slot::Failed(_) => blank(*id, space.name.clone(), GroupRole::Failed),
        });
        statuses.collect()
    }
}

impl Driver {
    /// What gossip is to say of this node's replicas.
    pub(super) fn words(&self) -> BTreeMap<NamespaceId, SpaceWord> {
        let words = self.spaces.iter().filter_map(|(id, space)| {
            let Slot::Running(running) = &space.slot else { return None };
            let (frontier, digest) = running.replica.claims();
            let lag_ms = running.lag.age_ms(self.clock.wall_ms());
            let (epoch, mode) = (id.epoch, Mode::Eventual);
            Some((id.namespace, SpaceWord { epoch, mode, frontier: hash(frontier), digest, lag_ms }))
        });
        words.collect()
    }
}

fn blank(id: SpaceId, name: NamespaceName, role: GroupRole) -> NamespaceStatus {
    NamespaceStatus {
        id: id.namespace,
        name,
        mode: Mode::Eventual,
        epoch: id.epoch,
        phase: Phase::Stable,
        role,
        quorum: QuorumHealth::NotNeeded,
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
        eventual: Some(EventualStatus::default()),
    }
}

fn status(id: SpaceId, name: NamespaceName, running: &Running, peers: &Peers, lent: &Lent<'_>) -> NamespaceStatus {
    let Running { replica, lag, .. } = running;
    let status = replica.status();
    let members = replica.members();
    let others = members.nodes.iter().filter(|node| **node != lent.config.replica.node);
    let progress = others.map(|node| MemberProgress {
        node: *node,
        matched: replica.held_by(*node).0,
        lag: lag.beyond(replica.held_by(*node)),
        active: peers.is_active(*node, lent.now),
        snapshot: replica.is_serving(*node),
        learner: false,
    });
    let counters = status.counters;
    let eventual = EventualStatus {
        whole: status.whole,
        clean: running.is_clean(lent),
        version: status.version,
        copies: members.copies,
        frontier: status.frontier.iter().collect(),
        lag_ms: lag.age_ms(lent.clock.wall_ms()),
        lag_writes: lag.count(),
        converged_ms: lag.converged_ms,
        converged_sum_ms: lag.converged_sum_ms,
        clock: replica.clock_fault(lent.now_ms(), lent.clock),
        fence: status.fence,
        conflicts_won: counters.won,
        conflicts_lost: counters.lost,
        digest_mismatches: counters.digest_mismatch,
        conflicting_markers: counters.conflicting_marker,
        damaged: counters.damaged,
        healed: counters.healed,
        clock_refused: counters.clock_refused,
        strangers: counters.not_heard,
        below_floor: counters.below_floor,
        gaps: counters.gaps,
        sessions: counters.sessions,
        interrupted: counters.interrupted,
        forgotten: counters.forgotten,
    };
    NamespaceStatus {
        keys: status.summary.keys,
        tombstones: status.summary.tombstones,
        digest: status.summary.digest,
        members: progress.collect(),
        eventual: Some(eventual),
        ..blank(id, name, GroupRole::Member)
    }
}
