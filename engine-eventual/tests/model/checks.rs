//! What must be so: after every step that is durable, and at the end.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use duet_engine_eventual::{Base, Frontier};
use duet_proto::{Digest, NodeId, Record, Stamp};
use duet_store::{Family, View, layout};

use crate::world::{EPOCH, SPACE, Violation, World, superseded_by_delete};

/// Everything on a disk.
pub(crate) fn records(view: &dyn View) -> BTreeMap<Bytes, Record> {
    let (from, to) = layout::prefix_range(layout::namespace_prefix(SPACE));
    let rows = view.scan(Family::Data, &from, Some(&to)).unwrap().map(|row| {
        let (place, value) = row.unwrap();
        let (_, key) = layout::split_data_key(&place).unwrap();
        let record = Record::decode(&key, value).unwrap();
        (key, record)
    });
    rows.collect()
}

/// The rows of the index that mean something.
fn index(view: &dyn View, trimmed: &Frontier) -> BTreeSet<(Stamp, Bytes)> {
    let rows = view.scan(Family::Origin, &[], None).unwrap().map(|row| {
        let (row, key) = row.unwrap();
        let (_, epoch, node, hlc) = layout::split_origin_key(&row).unwrap();
        (Stamp { epoch, hlc, node }, key)
    });
    rows.filter(|(stamp, _)| !trimmed.includes(*stamp)).collect()
}

impl World {
    /// What a node holds durably is consistent in itself, claims no more than it holds, and never goes back.
    pub(crate) fn check(&mut self, id: NodeId) -> Result<(), Violation> {
        let node = &self.nodes[&id];
        let replica = node.replica.as_ref().unwrap();
        let status = replica.status();
        let held = records(&*node.durable);
        let fail = |what: String| Err(format!("node {id} at {} ms: {what}", self.now));
        let (mut digest, mut keys) = (Digest::EMPTY, 0);
        for (key, record) in &held {
            digest.replace(key, None, Some(record));
            keys += u64::from(record.live().is_some());
            let Some(write) = self.writes.get(&record.stamp).filter(|write| write.key == *key) else {
                return fail(format!("holds {} of {key:?}, which nobody wrote", record.stamp));
            };
            if write.body != record.body {
                return fail(format!("holds another value of {} than was written", record.stamp));
            }
            // What is absent and was seen here is a tombstone that was forgotten.
            if !node.present.contains(key) && node.seen.get(key).is_some_and(|seen| record.stamp <= *seen) {
                return fail(format!("{} of {key:?} came back", record.stamp));
            }
        }
        let summary = (digest, keys, held.len() as u64 - keys);
        if summary != (status.summary.digest, status.summary.keys, status.summary.tombstones) {
            return fail(format!("counts {:?}, holds {summary:?}", status.summary));
        }
        let lists = |stamp: Stamp| stamp.epoch == EPOCH && !replica.trimmed().includes(stamp);
        let of_epoch = held.iter().filter(|(_, record)| lists(record.stamp));
        let listed: BTreeSet<_> = of_epoch.map(|(key, record)| (record.stamp, key.clone())).collect();
        if listed != index(&*node.durable, replica.trimmed()) {
            return fail("its index is not of what it holds".into());
        }
        let gone = |origin: &NodeId| self.nodes[origin].wiped || !self.members.hears(*origin);
        let claims = |stamp: &Stamp| stamp.epoch < EPOCH && status.whole || status.frontier.includes(*stamp);
        for (stamp, write) in self.writes.iter().filter(|(stamp, _)| claims(stamp)) {
            let now = held.get(&write.key).map(|record| record.stamp);
            let forgotten = now.is_none() && superseded_by_delete(&self.writes, &write.key, *stamp);
            // What an origin never told anybody before it was lost may be claimed: it does not exist.
            let void = !write.acknowledged && gone(&stamp.node);
            if now.is_none_or(|now| now < *stamp) && !forgotten && !void {
                let (by, acknowledged) = (&status.frontier, write.acknowledged);
                return fail(format!(
                    "claims {stamp} (acknowledged: {acknowledged}) of {:?} by {by} and holds {now:?}; {:?}",
                    write.key, self.members
                ));
            }
        }
        let node = self.nodes.get_mut(&id).unwrap();
        for (key, seen) in &mut node.seen {
            match held.get(key) {
                Some(record) if record.stamp < *seen => {
                    return Err(format!("node {id}: {key:?} went back from {seen} to {}", record.stamp));
                }
                None if !superseded_by_delete(&self.writes, key, *seen) => {
                    return Err(format!("node {id}: {key:?} of {seen} is gone without a delete"));
                }
                _ => {}
            }
        }
        node.present = held.keys().cloned().collect();
        node.seen.extend(held.iter().map(|(key, record)| (key.clone(), record.stamp)));
        Ok(())
    }

    /// Whether all members hold the same and nothing is left to do.
    pub(crate) fn converged(&self) -> Result<(), String> {
        let mut first: Option<(NodeId, Frontier, Base, BTreeMap<Bytes, Record>)> = None;
        if !self.members.leaving.is_empty() {
            return Err("a change of members is under way".into());
        }
        for id in &self.members.nodes {
            let Some(replica) = &self.nodes[id].replica else { return Err(format!("node {id} is down")) };
            let (status, held) = (replica.status(), records(&*self.nodes[id].durable));
            let base = replica.base(&*self.nodes[id].durable).unwrap();
            if !status.whole || status.version != self.members.version {
                return Err(format!("node {id} stands at {status:?}"));
            }
            let beyond = |record: &&Record| record.stamp.epoch == EPOCH && !status.frontier.includes(record.stamp);
            if let Some(beyond) = held.values().find(beyond) {
                return Err(format!("node {id} holds {}, beyond its frontier {}", beyond.stamp, status.frontier));
            }
            if status.summary.tombstones > 0 {
                return Err(format!("node {id} holds {} tombstones", status.summary.tombstones));
            }
            match &first {
                None => first = Some((*id, status.frontier, base, held)),
                Some((other, frontier, came_to, data)) => {
                    if *came_to != base {
                        return Err(format!("{other} has come to {came_to:?}, {id} to {base:?}"));
                    }
                    if *frontier != status.frontier {
                        return Err(format!("{other} claims {frontier}, {id} claims {}", status.frontier));
                    }
                    if *data != held {
                        let differs = data.iter().find(|(key, record)| held.get(*key) != Some(record));
                        return Err(format!("nodes {other} and {id} differ in {differs:?}, or {id} holds more"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Every acknowledged write is there, or something later is, and no alarm was raised.
    pub(crate) fn nothing_lost(&self) -> Result<(), Violation> {
        for id in &self.members.nodes {
            let node = &self.nodes[id];
            let held = records(&*node.durable);
            for (stamp, write) in self.writes.iter().filter(|(_, write)| write.acknowledged) {
                let there = held.get(&write.key).is_some_and(|record| record.stamp >= *stamp);
                let absent = !held.contains_key(&write.key);
                if !(there || absent && superseded_by_delete(&self.writes, &write.key, *stamp)) {
                    return Err(format!("{stamp} of {:?} was acknowledged and is not on node {id}", write.key));
                }
            }
            let counters = node.replica.as_ref().map(|replica| replica.status().counters).unwrap_or_default();
            if (counters.conflicting_marker, counters.digest_mismatch, counters.damaged) != (0, 0, 0) {
                return Err(format!("node {id} raised an alarm: {counters:?}"));
            }
        }

        Ok(())
    }
}
