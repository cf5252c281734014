//! Every record of every member, side by side.
//!
//! Each member is read page by page, by itself, and the pages are merged by key. Writes go on meanwhile, so a key that
//! is not the same is looked at again: it counts as different only if the member that is behind does not move. Two
//! values under one version are a difference at once, for nothing mends that.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use duet_client::{Client, ClientError, Namespace, NamespaceInfo, Scan};
use duet_proto::{Entry, KeyRange, NodeId, Stamp, limits};
use futures::{StreamExt, future::join_all, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::MemberRow;
use crate::{
    failure::{Exit, Failure},
    output::count,
    text::{Text, escape},
};

/// Differing keys that are shown.
const SHOWN: usize = 20;
/// Keys that are looked at again side by side.
const AT_ONCE: usize = 64;
/// How long a member may stay behind with a key.
const BEHIND: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Deep {
    /// Records read of each member.
    pub records: BTreeMap<NodeId, u64>,
    /// Members that could not be read.
    pub left_out: Vec<NodeId>,
    /// How many keys are not the same.
    pub differing: u64,
    /// The first of them.
    pub first: Vec<Difference>,
}

/// A key that is not the same on all members.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Difference {
    pub key: Text,
    /// The version that each member holds; nothing where it holds none.
    pub versions: BTreeMap<NodeId, Option<String>>,
    /// Whether one version has two values.
    pub values_differ: bool,
}

/// What each member holds of a key.
type Held = BTreeMap<NodeId, Option<(Stamp, Bytes)>>;

impl Deep {
    pub(super) fn render(&self) -> String {
        let total: u64 = self.records.values().sum();
        let mut text = format!("\n{} records of {} members compared\n", count(total), self.records.len());
        for difference in &self.first {
            let held = difference
                .versions
                .iter()
                .map(|(node, version)| format!("node {node}: {}", version.as_deref().unwrap_or("nothing")));
            let held = held.collect::<Vec<_>>().join(", ");
            let values = if difference.values_differ { " (with different values)" } else { "" };
            text += &format!("✗ {}\t{held}{values}\n", escape(&difference.key.0));
        }
        if self.differing > self.first.len() as u64 {
            text += &format!("… and {} more\n", count(self.differing - self.first.len() as u64));
        }
        text
    }
}

/// One member's records in order, with the next one at hand.
struct Cursor {
    node: NodeId,
    scan: Scan,
    next: Option<Entry>,
    read: u64,
}

impl Cursor {
    async fn advance(&mut self) -> Result<(), Failure> {
        self.next = match self.scan.next().await.transpose() {
            Ok(entry) => entry,
            Err(error) => return Err(Failure::from(error).context(format!("reading node {}", self.node))),
        };
        if let Some(crossed) = self.scan.crossed() {
            let message = format!("it has been switched to {} while it was read; ask again", crossed.mode);
            return Err(Failure { exit: Exit::Unknown, code: "epoch_changed", message, class: None });
        }
        self.read += u64::from(self.next.is_some());
        Ok(())
    }
}

/// Reads and compares everything.
pub(super) async fn run(client: &Client, info: &NamespaceInfo, members: &[MemberRow]) -> Result<Deep, Failure> {
    let namespace = client.namespace(info.name.as_str())?;
    let readable = |m: &&MemberRow| m.reachable && m.epoch == Some(info.epoch.0);
    let (here, left_out): (Vec<_>, Vec<_>) = members.iter().partition(readable);
    let mut cursors: Vec<Cursor> = Vec::new();
    for member in &here {
        let scan = namespace.on(member.node).scan(KeyRange::all()).page(limits::SCAN_ENTRIES.min(1000));
        cursors.push(Cursor { node: member.node, scan, next: None, read: 0 });
    }
    let bar = progress(here.iter().filter_map(|m| m.keys).max().unwrap_or(0));
    for result in join_all(cursors.iter_mut().map(Cursor::advance)).await {
        result?;
    }
    let nodes: Vec<NodeId> = cursors.iter().map(|c| c.node).collect();
    let mut found = Deep {
        records: BTreeMap::new(),
        left_out: left_out.iter().map(|m| m.node).collect(),
        differing: 0,
        first: Vec::new(),
    };
    let mut doubtful = Vec::new();
    while let Some(key) = cursors.iter().filter_map(|c| c.next.as_ref()).map(|e| e.key.clone()).min() {
        let mut held = Held::new();
        for cursor in &mut cursors {
            let mine = cursor.next.as_ref().is_some_and(|entry| entry.key == key);
            let entry = if mine { cursor.next.take() } else { None };
            held.insert(cursor.node, entry.map(|entry| (entry.stamp, entry.value)));
            if mine {
                cursor.advance().await?;
            }
        }
        bar.inc(1);
        if !same(&held) {
            doubtful.push((key, held));
        }
        if doubtful.len() >= AT_ONCE {
            settle(&namespace, &nodes, std::mem::take(&mut doubtful), &mut found).await?;
        }
    }
    settle(&namespace, &nodes, doubtful, &mut found).await?;
    bar.finish_and_clear();
    found.records = cursors.iter().map(|c| (c.node, c.read)).collect();
    Ok(found)
}

fn progress(keys: u64) -> ProgressBar {
    let bar = ProgressBar::new(keys);
    if let Ok(style) = ProgressStyle::with_template("  {bar:40.cyan/dim} {percent:>3} %  {pos} keys  {elapsed}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

/// Looks at keys again until whoever is behind has moved, or has had long enough.
async fn settle(
    namespace: &Namespace,
    nodes: &[NodeId],
    doubtful: Vec<(Bytes, Held)>,
    found: &mut Deep,
) -> Result<(), Failure> {
    let again = |(key, first): (Bytes, Held)| async move {
        let deadline = Instant::now() + BEHIND;
        loop {
            let held = look(namespace, nodes, &key).await?;
            if two_values(&held) || two_values(&first) {
                return Ok(Some((key, held)));
            }
            if moved(&first, &held) {
                return Ok(None);
            }
            if Instant::now() >= deadline {
                return Ok(Some((key, held)));
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let mut results = stream::iter(doubtful).map(again).buffered(AT_ONCE);
    while let Some(result) = results.next().await {
        let result: Result<Option<(Bytes, Held)>, ClientError> = result;
        let Some((key, held)) = result? else { continue };
        found.differing += 1;
        if found.first.len() < SHOWN {
            let values_differ = two_values(&held);
            let version = |held: Option<(Stamp, Bytes)>| held.map(|(stamp, _)| stamp.to_string());
            let versions = held.into_iter().map(|(node, held)| (node, version(held))).collect();
            found.first.push(Difference { key: Text(key), versions, values_differ });
        }
    }
    Ok(())
}

async fn look(namespace: &Namespace, nodes: &[NodeId], key: &Bytes) -> Result<Held, ClientError> {
    let mut held = Held::new();
    for node in nodes {
        let found = namespace.on(*node).get(key.clone()).await?;
        held.insert(*node, found.map(|found| (found.stamp, found.value)));
    }
    Ok(held)
}

fn same(held: &Held) -> bool {
    held.values().zip(held.values().skip(1)).all(|(a, b)| a == b)
}

/// Whether one version has two values.
fn two_values(held: &Held) -> bool {
    let mut values: BTreeMap<Stamp, &Bytes> = BTreeMap::new();
    held.values().flatten().any(|(stamp, value)| *values.entry(*stamp).or_insert(value) != value)
}

/// Whether members are the same by now, or every one of them has come to what the furthest held at first or has left
/// what it held itself: then nobody stays behind, and what differs is what has been written since.
fn moved(first: &Held, now: &Held) -> bool {
    let newest = first.values().flatten().map(|(stamp, _)| *stamp).max();
    let caught_up = |(node, was): (&NodeId, &Option<(Stamp, Bytes)>)| {
        let is = now.get(node).and_then(Option::as_ref).map(|(stamp, _)| *stamp);
        is >= newest || is != was.as_ref().map(|(stamp, _)| *stamp)
    };
    same(now) || first.iter().all(caught_up)
}

#[cfg(test)]
mod tests {
    use duet_proto::{Epoch, Hlc};

    use super::*;

    fn held(of: [Option<(u64, &'static str)>; 3]) -> Held {
        let stamp = |hlc| Stamp { epoch: Epoch(1), hlc: Hlc(hlc), node: NodeId(1) };
        let one = |(at, held): (u32, Option<(u64, &'static str)>)| {
            (NodeId(at), held.map(|(hlc, value)| (stamp(hlc), Bytes::from_static(value.as_bytes()))))
        };
        (1..).zip(of).map(one).collect()
    }

    #[test]
    fn equal_is_the_same_version_and_value_everywhere() {
        assert!(same(&held([Some((1, "a")); 3])) && same(&held([None; 3])));
        assert!(!same(&held([Some((1, "a")), Some((1, "a")), None])));
        assert!(!same(&held([Some((1, "a")), Some((2, "a")), Some((1, "a"))])));
        assert!(two_values(&held([Some((1, "a")), Some((2, "c")), Some((1, "b"))])));
        assert!(!two_values(&held([Some((1, "a")), Some((2, "b")), None])));
    }

    #[test]
    fn a_member_that_stays_behind_has_not_moved() {
        let first = held([Some((5, "new")), Some((3, "old")), Some((5, "new"))]);
        assert!(!moved(&first, &first));
        assert!(moved(&first, &held([Some((5, "new")); 3])), "it has it now");
        // Under load it is never equal, and moves on all the same.
        assert!(moved(&first, &held([Some((9, "x")), Some((7, "y")), Some((8, "z"))])));
        assert!(!moved(&first, &held([Some((9, "x")), Some((3, "old")), Some((9, "x"))])), "node 2 stands still");
        // One has a key that the others do not: it is deleted in the end, or they get it.
        let first = held([Some((5, "v")), None, None]);
        assert!(!moved(&first, &first));
        assert!(moved(&first, &held([None; 3])) && moved(&first, &held([Some((5, "v")); 3])));
        assert!(!moved(&first, &held([Some((5, "v")), Some((5, "v")), None])));
    }

    #[test]
    fn differences_are_shown_by_key_and_member() {
        let difference = Difference {
            key: Text("a\tb".into()),
            versions: BTreeMap::from([(NodeId(1), Some("1-5.0-1".into())), (NodeId(2), None)]),
            values_differ: false,
        };
        let records = BTreeMap::from([(NodeId(1), 1200), (NodeId(2), 1199)]);
        let text = Deep { records, left_out: vec![], differing: 3, first: vec![difference] }.render();
        assert!(text.contains("2,399 records of 2 members"), "{text}");
        assert!(text.contains("✗ a\\tb\tnode 1: 1-5.0-1, node 2: nothing") && text.contains("and 2 more"), "{text}");
    }
}
