//! How replicas come, fail and go.

use std::sync::Arc;

use duet_proto::NamespaceName;
use duet_store::{Batch, StoreError};
use tokio::time::Instant;

use super::{Driver, Durable, Landed, Running, Slot, Space, Window, rows, tell};
use crate::{Replica, SpaceError, SpaceId, SpaceSpec, handle::Reply};

impl Driver {
    /// Opens what the disk holds.
    pub(super) fn open_all(&mut self, now: Instant) -> Result<(), StoreError> {
        for (id, name) in rows::list(&*self.store)? {
            let config = self.config.replica.clone();
            let opened = match &name {
                Ok(_) => Replica::open(config, id.namespace, id.epoch, &*self.store),
                Err(error) => Err(error.clone()),
            };
            let replica = opened.and_then(|replica| {
                replica.ok_or_else(|| StoreError::corrupt(format!("the state of replica {id} is missing")))
            });
            let name = name.or_else(|_| NamespaceName::new(format!("unreadable-{}", id.namespace)));
            let name = name.map_err(|error| StoreError::corrupt(error.to_string()))?;
            self.serial += 1;
            let slot = match replica {
                Ok(replica) => self.started(id, &name, replica, now),
                Err(error) => {
                    tracing::error!(space = %id, %error, "a replica cannot be opened");
                    self.show(id, Window::new(id, name.clone(), Err(error.to_string())));
                    self.metrics.failed += 1;
                    Slot::Failed(error.to_string())
                }
            };
            self.spaces.insert(id, Space { name, serial: self.serial, slot });
        }
        self.peers.changed();
        Ok(())
    }

    /// A replica whose state is durable serves, and gets its first step at once.
    fn started(&mut self, id: SpaceId, name: &NamespaceName, mut replica: Replica, now: Instant) -> Slot {
        replica.set_silent(&self.peers.silent);
        let window = self.show(id, Window::new(id, name.clone(), Ok(&replica)));
        self.wakes.insert((now, id));
        Slot::Running(Box::new(Running::new(replica, window, now)))
    }

    fn show(&self, id: SpaceId, window: Window) -> Arc<Window> {
        let window = Arc::new(window);
        self.board.spaces().insert(id, window.clone());
        window
    }

    pub(super) fn create(&mut self, spec: SpaceSpec, reply: Reply<()>) {
        if !self.farewell.is_empty() {
            let _ = reply.send(Err(SpaceError::Stopped));
            return;
        }
        let id = spec.id();
        if self.removing.keys().any(|other| other.namespace == id.namespace) {
            let why = "an earlier replica is being removed".to_owned();
            let _ = reply.send(Err(SpaceError::Busy { why }));
            return;
        }
        match self.spaces.iter_mut().find(|(other, _)| other.namespace == id.namespace) {
            None => self.found(spec, reply),
            Some((found, _)) if *found != id => {
                let why = format!("there is a replica of {found}");
                let _ = reply.send(Err(SpaceError::Invalid { why }));
            }
            Some((_, Space { slot: Slot::Creating(_, replies), .. })) => replies.push(reply),
            Some((_, Space { slot: Slot::Running(_), .. })) => {
                let _ = reply.send(Ok(()));
            }
            Some((_, Space { slot: Slot::Failed(why), .. })) => {
                let _ = reply.send(Err(SpaceError::Failed { why: why.clone() }));
            }
        }
    }

    fn found(&mut self, spec: SpaceSpec, reply: Reply<()>) {
        let (id, SpaceSpec { name, start, members, base, .. }) = (spec.id(), spec);
        let config = self.config.replica.clone();
        // A courtesy to readers of stamps: those of a later epoch win whatever the clock says.
        let _ = base.map(|base| self.clock.observe(base.last.hlc));
        match Replica::create(config, id.namespace, id.epoch, start, members, base) {
            Ok((replica, state)) => {
                let mut batch = Batch::new();
                rows::put(&mut batch, id, &name);
                batch.append(state);
                self.serial += 1;
                let slot = Slot::Creating(Box::new(replica), vec![reply]);
                self.spaces.insert(id, Space { name, serial: self.serial, slot });
                self.submit(batch, Landed { id, serial: self.serial, what: Durable::Created });
            }
            Err(error) => {
                let _ = reply.send(Err(error.into()));
            }
        }
    }

    pub(super) fn created(&mut self, id: SpaceId, now: Instant) {
        let Some(Space { name, serial, slot: Slot::Creating(replica, replies) }) = self.spaces.remove(&id) else {
            return;
        };
        let slot = self.started(id, &name, *replica, now);
        self.spaces.insert(id, Space { name, serial, slot });
        self.peers.changed();
        tell(replies, &Ok(()));
    }

    pub(super) fn remove(&mut self, id: SpaceId, reply: Reply<()>) {
        self.take_away(id, reply, rows::destroy);
    }

    /// Removes a replica whose records belong to the next epoch.
    pub(super) fn retire(&mut self, id: SpaceId, reply: Reply<()>) {
        let goes_on = match self.spaces.get(&id).map(|space| &space.slot) {
            Some(Slot::Running(running)) => running.replica.status().fence.is_none(),
            Some(Slot::Creating(..)) => true,
            Some(Slot::Failed(_)) | None => false,
        };
        if goes_on {
            let why = format!("the epoch goes on: the replica {id} is not fenced");
            let _ = reply.send(Err(SpaceError::Invalid { why }));
            return;
        }
        if let Some(Space { slot: Slot::Running(running), .. }) = self.spaces.get_mut(&id) {
            for (ticket, answer) in running.replica.acknowledge_all() {
                running.answer(ticket, Ok(answer));
            }
        }
        self.take_away(id, reply, rows::retire);
    }

    fn take_away(&mut self, id: SpaceId, reply: Reply<()>, rows: fn(&mut Batch, SpaceId)) {
        if let Some(replies) = self.removing.get_mut(&id) {
            replies.push(reply);
            return;
        }
        let Some(space) = self.spaces.remove(&id) else {
            let _ = reply.send(Ok(()));
            return;
        };
        let why = "the replica is being removed";
        match space.slot {
            Slot::Running(mut running) => {
                self.wakes.remove(&(running.wake, id));
                running.stop(self.config.replica.node, why, &SpaceError::Unknown(id));
            }
            Slot::Creating(_, replies) => tell(replies, &Err(SpaceError::Unknown(id))),
            Slot::Failed(_) => self.metrics.failed -= 1,
        }
        self.board.spaces().remove(&id);
        self.ready.remove(&id);
        self.peers.changed();
        self.removing.insert(id, vec![reply]);
        // Behind a step that is on its way: the committer keeps the order.
        let mut batch = Batch::new();
        rows(&mut batch, id);
        self.submit(batch, Landed { id, serial: space.serial, what: Durable::Removed });
    }

    pub(super) fn removed(&mut self, id: SpaceId) {
        tell(self.removing.remove(&id).unwrap_or_default(), &Ok(()));
    }

    /// One replica cannot go on; the others do.
    pub(super) fn fail(&mut self, id: SpaceId, error: &StoreError) {
        tracing::error!(space = %id, %error, "a replica has failed");
        let Some(space) = self.spaces.get_mut(&id) else { return };
        let why = error.to_string();
        let slot = std::mem::replace(&mut space.slot, Slot::Failed(why.clone()));
        self.metrics.failed += 1;
        if let Slot::Running(mut running) = slot {
            self.wakes.remove(&(running.wake, id));
            running.stop(self.config.replica.node, &why, &SpaceError::Failed { why: why.clone() });
        }
    }
}
