//! What lies on the disks of an eventual namespace's members, looked at again and again while everything goes on.
//!
//! Only what is synced counts: it is what a crash would leave. So an acknowledgement that came before its sync, or a
//! frontier that was raised too early, shows at the next look, with or without a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use duet_engine_eventual::{Config, Replica};
use duet_proto::{Body, Boot, Digest, Epoch, Hlc, NamespaceId, NodeId, Record, Stamp};
use duet_store::{Family, View, layout, memory::MemoryStore};
use tokio::{task::JoinHandle, time::sleep};

use super::sessions::{Space, parse_key, parse_value};
use crate::checker::{
    Key, Value,
    eventual::{Holding, Memory},
};

/// How often the disks are looked at.
const PERIOD: Duration = Duration::from_millis(97);

/// What a disk holds under each key; a value of `None` is a tombstone.
pub(super) type Records = BTreeMap<Key, (Stamp, Option<Value>)>;

/// The disks of a run, those of nodes that are down too.
#[derive(Clone, Default)]
pub struct Disks(Arc<Mutex<BTreeMap<NodeId, Arc<MemoryStore>>>>);

impl Disks {
    /// A node has this disk from now on.
    pub(super) fn put(&self, node: NodeId, disk: Arc<MemoryStore>) {
        self.lock().insert(node, disk);
    }

    /// What lies on every disk of a namespace, whatever its mode, synced or not.
    ///
    /// # Errors
    /// If a record is none.
    pub(super) fn records(&self, id: NamespaceId) -> Result<BTreeMap<NodeId, Records>, String> {
        let disks = self.lock().clone();
        let mut all = BTreeMap::new();
        for (node, disk) in disks {
            let mut records = BTreeMap::new();
            for (key, record) in rows(&*disk, id).map_err(|what| format!("{id} on node {node}: {what}"))? {
                let value = record.live().map(|value| parse_value(value)).transpose()?;
                records.insert(parse_key(&key)?, (record.stamp, value));
            }
            all.insert(node, records);
        }
        Ok(all)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<MemoryStore>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every member durably holds of a namespace; without those that have not heard of it yet.
    ///
    /// # Errors
    /// If what one holds does not agree with itself.
    pub(super) fn holdings(&self, space: &Space) -> Result<BTreeMap<NodeId, Holding>, String> {
        let disks = self.lock().clone();
        let mut holdings = BTreeMap::new();
        for (node, disk) in disks {
            let held = holding(&*disk.durable(), node, space.id, space.epoch);
            if let Some(held) = held.map_err(|what| format!("{} on node {node}: {what}", space.name))? {
                holdings.insert(node, held);
            }
        }
        Ok(holdings)
    }
}

/// What a disk holds of a namespace, once it agrees with itself: its digest and counts, and its index.
fn holding(view: &dyn View, node: NodeId, id: NamespaceId, epoch: Epoch) -> Result<Option<Holding>, String> {
    let config = Config::new(node, Boot::default());
    let Some(replica) = Replica::open(config, id, epoch, view).map_err(|e| e.to_string())? else { return Ok(None) };
    let status = replica.status();
    let (mut digest, mut keys, mut tombstones) = (Digest::EMPTY, 0, 0);
    let (mut records, mut listed) = (BTreeMap::new(), BTreeSet::new());
    for (key, record) in rows(view, id)? {
        digest.replace(&key, None, Some(&record));
        let value = match &record.body {
            Body::Value(value) => Some(parse_value(value)?),
            Body::Tombstone => None,
        };
        *if value.is_some() { &mut keys } else { &mut tombstones } += 1;
        records.insert(parse_key(&key)?, (record.stamp, value));
        // The records of earlier epochs are in no index.
        if record.stamp.epoch == epoch {
            listed.insert((record.stamp, key));
        }
    }
    let told = (status.summary.digest, status.summary.keys, status.summary.tombstones);
    if told != (digest, keys, tombstones) {
        return Err(format!(
            "its digest and counts are {told:?}, what it holds comes to {:?}",
            (digest, keys, tombstones)
        ));
    }
    let mut index = index(view, id, epoch)?;
    // What every member holds need not be listed, and what is may be superseded.
    let lists = |(stamp, _): &(Stamp, Bytes)| !replica.trimmed().includes(*stamp);
    listed.retain(lists);
    index.retain(lists);
    if listed != index {
        return Err("its index is not of what it holds".into());
    }
    Ok(Some(Holding { frontier: status.frontier.iter().collect::<BTreeMap<NodeId, Hlc>>(), records }))
}

fn rows(view: &dyn View, id: NamespaceId) -> Result<Vec<(Bytes, Record)>, String> {
    let (from, to) = layout::prefix_range(layout::namespace_prefix(id));
    let rows = view.scan(Family::Data, &from, Some(&to)).map_err(|e| e.to_string())?;
    rows.map(|row| {
        let (place, value) = row.map_err(|e| e.to_string())?;
        let (_, key) = layout::split_data_key(&place).map_err(|e| e.to_string())?;
        let record = Record::decode(&key, value).map_err(|e| e.to_string())?;
        Ok((key, record))
    })
    .collect()
}

fn index(view: &dyn View, id: NamespaceId, epoch: Epoch) -> Result<BTreeSet<(Stamp, Bytes)>, String> {
    let (from, to) = layout::prefix_range(layout::group_prefix(id, epoch));
    let rows = view.scan(Family::Origin, &from, Some(&to)).map_err(|e| e.to_string())?;
    rows.map(|row| {
        let (row, key) = row.map_err(|e| e.to_string())?;
        let (_, epoch, node, hlc) = layout::split_origin_key(&row).map_err(|e| e.to_string())?;
        Ok((Stamp { epoch, hlc, node }, key))
    })
    .collect()
}

/// Somebody who looks at the disks until it is stopped.
pub(super) struct Auditor {
    task: JoinHandle<Result<(), String>>,
    stop: Arc<Mutex<bool>>,
}

impl Auditor {
    /// Begins to look.
    pub(super) fn start(disks: Disks, spaces: Vec<Arc<Space>>) -> Auditor {
        let stop = Arc::new(Mutex::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut memories = BTreeMap::new();
            loop {
                spaces.iter().try_for_each(|space| look(&disks, space, &mut memories))?;
                if *stopped.lock().unwrap_or_else(PoisonError::into_inner) {
                    return Ok(());
                }
                sleep(PERIOD).await;
            }
        });
        Auditor { task, stop }
    }

    /// Lets it look once more.
    ///
    /// # Errors
    /// What it has found.
    pub(super) async fn finish(self) -> Result<(), String> {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.task.await.map_err(|error| format!("the auditor ended badly: {error}"))?
    }
}

/// One look at every disk.
fn look(disks: &Disks, space: &Space, memories: &mut BTreeMap<(NamespaceId, NodeId), Memory>) -> Result<(), String> {
    let holdings = disks.holdings(space)?;
    let mut journal = space.journal();
    for (node, holding) in &holdings {
        let at = |what: String| format!("{} on node {node}: {what}", space.name);
        for (key, (stamp, value)) in &holding.records {
            journal.note(*stamp, *key, *value).map_err(at)?;
        }
        memories.entry((space.id, *node)).or_default().look(holding).map_err(at)?;
    }
    for (node, holding) in &holdings {
        let found = journal.claims_hold(holding).and_then(|()| journal.origin_keeps(*node, holding));
        found.map_err(|what| format!("{} on node {node}: {what}", space.name))?;
    }
    journal.copies_hold(space.copies, &holdings).map_err(|what| format!("{}: {what}", space.name))
}
