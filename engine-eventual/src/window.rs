//! What readers see of a replica without asking the driver: what is durable, and nothing else.
//!
//! The store shows a write as soon as it is written, before it is synced. So while a step is on its way to the disk,
//! readers get a snapshot from before it; between steps the store as it is, in a snapshot of their own that is taken
//! under the same lock which the driver takes to begin the next step.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duet_proto::NamespaceName;
use duet_store::{Snapshot, Store};
use tokio::sync::{Notify, futures::OwnedNotified};

use crate::{Frontier, Replica, SpaceId, SpaceInfo, replica::Reader};

/// What one read is served from.
pub(crate) struct Look {
    pub(crate) reader: Arc<Reader>,
    pub(crate) view: Arc<dyn Snapshot>,
}

/// One replica, as readers see it.
pub(crate) struct Window {
    id: SpaceId,
    name: NamespaceName,
    shown: Mutex<Shown>,
    news: Arc<Notify>,
}

struct Shown {
    /// The durable state, or why the replica has failed.
    state: Result<Arc<Reader>, String>,
    /// The store before the step that is on its way to the disk, or when it was frozen.
    before: Option<Arc<dyn Snapshot>>,
    /// The epoch is over: what becomes of the records from now on is none of its own.
    frozen: bool,
}

impl Window {
    /// Of a replica, or of one that cannot be opened.
    pub(crate) fn new(id: SpaceId, name: NamespaceName, state: Result<&Replica, String>) -> Window {
        let state = state.map(|replica| Arc::new(replica.reader()));
        Window { id, name, shown: Mutex::new(Shown { state, before: None, frozen: false }), news: Arc::default() }
    }

    pub(crate) fn name(&self) -> &NamespaceName {
        &self.name
    }

    /// What is to be read now, unless the replica has failed.
    pub(crate) fn look(&self, store: &dyn Store) -> Result<Look, String> {
        let shown = self.lock();
        let reader = shown.state.clone()?;
        let view = shown.before.clone().unwrap_or_else(|| store.snapshot());
        Ok(Look { reader, view })
    }

    /// Completes at the next change of what is durable.
    pub(crate) fn news(&self) -> OwnedNotified {
        self.news.clone().notified_owned()
    }

    pub(crate) fn info(&self) -> SpaceInfo {
        let state = self.lock().state.clone();
        let reader = state.as_ref().ok();
        SpaceInfo {
            id: self.id,
            name: self.name.clone(),
            version: reader.map_or(0, |r| r.version),
            moved: reader.map_or_else(Frontier::default, |r| r.moved.clone()),
            whole: reader.is_some_and(|r| r.whole),
            failed: state.err(),
        }
    }

    /// A step is about to be written.
    pub(crate) fn close(&self, before: Arc<dyn Snapshot>) {
        let mut shown = self.lock();
        if !shown.frozen {
            shown.before = Some(before);
        }
    }

    /// The next epoch is about to begin over the same records: from now on readers see them as they are now.
    pub(crate) fn freeze(&self, store: &dyn Store) {
        let mut shown = self.lock();
        shown.frozen = true;
        shown.before.get_or_insert_with(|| store.snapshot());
    }

    /// The step is durable.
    pub(crate) fn open(&self, replica: &Replica) {
        self.show(Ok(Arc::new(replica.reader())));
    }

    /// The replica serves nobody any more.
    pub(crate) fn fail(&self, why: String) {
        self.show(Err(why));
    }

    fn show(&self, state: Result<Arc<Reader>, String>) {
        let mut shown = self.lock();
        shown.state = state;
        if !shown.frozen {
            shown.before = None;
        }
        drop(shown);
        self.news.notify_waiters();
    }

    /// What it guards is whole whatever panicked: it is assigned at once.
    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
