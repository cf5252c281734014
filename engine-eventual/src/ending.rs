//! The end of an epoch, as the router asks for it (rule 9), and the late writes that outlive it.
//!
//! Everything here is durable when it returns, may be asked for again, and survives a crash in between: what was done
//! of it by then is not done twice.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use duet_proto::{Epoch, LateState, LateWrite, NamespaceId, NodeId, Record, Stamp};
use duet_store::{Batch, StoreError};

use crate::{
    Frontier, Handle, Order, SpaceError, SpaceId,
    handle::Command,
    stash::{self, frontiers, late, waiting},
};

impl Handle {
    /// Fences a replica for an attempt to end its epoch. From then on it refuses writes with `Changing`, takes in and
    /// acknowledges nothing of others, and its frontier stays what it is, across restarts, until [`Handle::converge`] or
    /// [`Handle::lift`]. Writes that wait for copies go on waiting. Reads go on, and others are served and told. A
    /// later attempt replaces an earlier one, and ends what that had under way.
    ///
    /// # Errors
    /// `Invalid` if it is fenced for a later attempt; otherwise if there is no such replica, or it has failed.
    pub async fn fence(&self, id: SpaceId, attempt: u64) -> Result<(), SpaceError> {
        self.order(id, Order::Fence { attempt }).await.map(drop)
    }

    /// Lifts the fence of an attempt that was given up, or of one before it; a later one stays. What was missed
    /// meanwhile is asked for at once.
    ///
    /// # Errors
    /// If there is no such replica, or it has failed.
    pub async fn lift(&self, id: SpaceId, attempt: u64) -> Result<(), SpaceError> {
        self.order(id, Order::Lift { attempt }).await.map(drop)
    }

    /// Begins one session with each other member of `base`, and with nobody else. When all have come to their end, and
    /// what they brought is durable, [`Standing::converged`](crate::Standing::converged) is `attempt`. If every member
    /// of the base was fenced for the attempt before any began, all then have equal frontiers and equal records.
    ///
    /// Only its beginning is waited for, and a restart forgets it: it is to be asked for again.
    ///
    /// # Errors
    /// `Invalid` unless it is whole, fenced for just this attempt, one of `base`, and asked for no other base in this
    /// attempt; otherwise if there is no such replica, or it has failed.
    pub async fn converge(&self, id: SpaceId, attempt: u64, base: BTreeSet<NodeId>) -> Result<(), SpaceError> {
        self.order(id, Order::Converge { attempt, base }).await.map(drop)
    }

    /// Puts aside what a fenced replica holds of its epoch beyond a frontier, with which the next epoch has begun, and
    /// what it claimed. Once for each replica: what was handed in since does not come back.
    ///
    /// # Errors
    /// `Invalid` if it is not fenced; otherwise if there is no such replica, or it has failed.
    pub async fn stash(&self, id: SpaceId, beyond: Frontier) -> Result<(), SpaceError> {
        let mut from = None;
        loop {
            let beyond = beyond.clone();
            from = self.order(id, Order::Stash { beyond, from }).await?;
            if from.is_none() {
                return Ok(());
            }
        }
    }

    /// Forgets every tombstone of a fenced replica. Only when the members of the base are known to be equal: one that
    /// still converges is refused from then on.
    ///
    /// # Errors
    /// `Invalid` if it is not fenced, or some tombstones are damaged; otherwise if there is no such replica, or it has
    /// failed.
    pub async fn drop_tombstones(&self, id: SpaceId) -> Result<(), SpaceError> {
        let mut from = None;
        loop {
            from = self.order(id, Order::DropTombstones { from }).await?;
            if from.is_none() {
                return Ok(());
            }
        }
    }

    async fn order(&self, id: SpaceId, order: Order) -> Result<Option<Stamp>, SpaceError> {
        self.ask(|reply| Command::Order { id, order, reply }).await
    }

    /// From now on reads of a fenced replica see its records as they are now: the next epoch is about to begin over
    /// them. Until a restart; does nothing if there is no such replica.
    pub fn freeze(&self, id: SpaceId) {
        if let Some(window) = self.board.spaces().get(&id) {
            window.freeze(&*self.store);
        }
    }

    /// Removes a fenced replica whose epoch is over, or one that has failed: its index and its state. The records, the
    /// list of tombstones and what was put aside stay, for the next epoch. It costs the same whatever it holds, and is
    /// done entirely or not at all. Does nothing if there is no such replica. Writes that wait for copies are acknowledged
    /// if this has converged, as every member of the base holds them, and the next epoch begins with them; else their
    /// outcome is unknown.
    ///
    /// # Errors
    /// `Invalid` if it is not fenced; otherwise if that cannot be written.
    pub async fn retire(&self, id: SpaceId) -> Result<(), SpaceError> {
        self.ask(|reply| Command::Retire { id, reply }).await
    }

    /// The late writes of a namespace that wait on this node, the oldest first, at most `limit`. Their stamps say of
    /// which epoch they are.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn stashed(&self, namespace: NamespaceId, limit: usize) -> Result<Vec<(Bytes, Record)>, StoreError> {
        waiting(&*self.store, namespace, limit)
    }

    /// What the replica of each epoch claimed when its late writes were put aside; without the epochs of which
    /// [`Handle::unstash`] found that nothing waits any more. There is one also where nothing had to be put aside.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn stash_frontiers(&self, namespace: NamespaceId) -> Result<BTreeMap<Epoch, Frontier>, StoreError> {
        frontiers(&*self.store, namespace)
    }

    /// Notes what has become of late writes: `brought`, or refused. They wait no longer, and are remembered, the latest
    /// 1,000 of a namespace. Stamps of which nothing waits are ignored, so it may be called with none: that only lets
    /// go of the frontiers of epochs of which nothing waits.
    ///
    /// # Errors
    /// If that cannot be read or written.
    pub async fn unstash(&self, namespace: NamespaceId, stamps: Vec<Stamp>, brought: bool) -> Result<(), SpaceError> {
        let _turn = self.tidy.lock().await;
        let state = if brought { LateState::Brought } else { LateState::Refused };
        let batch = stash::settle(&*self.store, namespace, &stamps.into_iter().collect(), state)?;
        // Even if there is nothing to change: what an earlier call has changed may not be durable yet.
        Ok(self.committer.submit(batch).await?)
    }

    /// The late writes of a namespace on this node, at most `limit`: those that wait, the oldest first, then what has
    /// become of the others, the latest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn late(&self, namespace: NamespaceId, limit: usize) -> Result<Vec<LateWrite>, StoreError> {
        late(&*self.store, namespace, limit)
    }

    /// Removes everything of a namespace that was deleted: its replicas, its records, late writes, and what a strong
    /// group has left beside its log. Nothing else may use these rows any more.
    ///
    /// # Errors
    /// If that cannot be written.
    pub async fn purge(&self, namespace: NamespaceId) -> Result<(), SpaceError> {
        for space in self.spaces().into_iter().filter(|space| space.id.namespace == namespace) {
            self.remove(space.id).await?;
        }
        let _turn = self.tidy.lock().await;
        let mut batch = Batch::new();
        stash::purge(&mut batch, namespace);
        Ok(self.committer.submit(batch).await?)
    }
}
