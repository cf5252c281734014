//! `duet status`: what every node says of itself, put side by side.
//!
//! Nodes are asked one by one, so two answers are never of the same instant. What is compared is only what must agree
//! nevertheless: the epoch and mode of a namespace, that a term has one leader, the digests of strong replicas that have
//! applied the same position, and those of clean eventual ones whose frontiers are equal.

mod certificates;
mod eventual;

use std::collections::BTreeMap;

use duet_client::SwitchInfo;
use duet_proto::{
    Answered, EventualStatus, GroupRole, Mode, NamespaceId, NamespaceInfo, NamespaceStatus, NodeId, NodeInfo,
    NodeStatus, Phase, QuorumHealth, Topology,
};
use serde::Serialize;

pub use eventual::{Convergence, Eventual};

use crate::{
    output::{count, size, span, table},
    switch::past::{self, Owed},
};

/// The state of a cluster. `healthy` says whether `problems` is empty.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Report {
    pub cluster: String,
    pub healthy: bool,
    pub problems: Vec<String>,
    /// Worth knowing, and no problem.
    pub notes: Vec<String>,
    pub nodes: Vec<NodeRow>,
    pub namespaces: Vec<NamespaceRow>,
}

/// A node of the catalog. What is `None` is not known, because it did not answer.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct NodeRow {
    pub id: NodeId,
    pub address: String,
    pub reachable: bool,
    pub error: Option<String>,
    pub version: Option<String>,
    pub boot: Option<u64>,
    pub uptime_ms: Option<u64>,
    pub disk_free: Option<u64>,
    pub disk_full: Option<bool>,
    pub connected: Vec<NodeId>,
    /// What it has answered since its start: rates of that are the business of `duet top`.
    #[serde(skip)]
    pub answered: Vec<Answered>,
}

/// A namespace of the catalog and its replicas.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct NamespaceRow {
    pub name: String,
    pub id: u64,
    pub mode: Mode,
    pub epoch: u32,
    pub phase: Phase,
    pub copies: u32,
    pub leader: Option<NodeId>,
    pub quorum: QuorumHealth,
    pub agreed: bool,
    /// In eventual mode: whether all members hold the same, as far as they say.
    pub converged: Option<bool>,
    /// How far a switch of its mode is, if one is under way.
    pub switching: Option<String>,
    /// Who is owed late writes of which epoch.
    pub owed: Vec<Owed>,
    /// Whose configuration expects another mode than the catalog has.
    pub unexpected: Vec<NodeId>,
    pub members: Vec<MemberRow>,
}

/// One replica. `replica` is `None` if its node did not answer or holds none.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct MemberRow {
    pub node: NodeId,
    pub reachable: bool,
    pub replica: Option<Replica>,
    /// In what this member is at odds with the others, if it is.
    pub disagrees: Option<String>,
}

/// What a replica says of itself.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Replica {
    pub mode: Mode,
    pub epoch: u32,
    pub role: GroupRole,
    pub quorum: QuorumHealth,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub first: u64,
    pub last: u64,
    pub committed: u64,
    pub applied: u64,
    /// Committed positions, as far as any member knows, that it has not applied.
    pub lag: u64,
    pub keys: u64,
    pub tombstones: u64,
    /// Thirty-two hexadecimal digits.
    pub digest: String,
    /// In eventual mode: what only its members have to say.
    pub eventual: Option<Eventual>,
}

impl NamespaceRow {
    /// Whether replicas are at odds, or a clock is out of line: what no waiting mends.
    #[must_use]
    pub fn alarmed(&self) -> bool {
        let clock =
            |m: &MemberRow| m.replica.as_ref().and_then(|r| r.eventual.as_ref()).is_some_and(|e| e.clock.is_some());
        !self.agreed || self.members.iter().any(clock)
    }

    /// Its replicas, for people.
    #[must_use]
    pub fn render(&self) -> String {
        if self.mode == Mode::Eventual { eventual::render(std::iter::once(self)) } else { strong([self].into_iter()) }
    }

    fn mode_and_phase(&self) -> String {
        match self.phase {
            Phase::Stable => self.mode.to_string(),
            other => format!("{} ({})", self.mode, word(other)),
        }
    }
}

impl Report {
    /// Puts the answers side by side; an answer is a status, or why there is none.
    #[must_use]
    pub fn new(topology: &Topology, answers: &BTreeMap<NodeId, Result<NodeStatus, String>>) -> Report {
        let mut problems = Vec::new();
        let nodes = topology.nodes.iter().map(|node| node_row(node, answers.get(&node.id), &mut problems)).collect();
        let namespaces = topology
            .namespaces
            .iter()
            .map(|info| namespace_row(info, &topology.nodes, answers, &mut problems))
            .collect();
        let (cluster, healthy) = (topology.cluster.to_string(), problems.is_empty());
        Report { cluster, healthy, problems, notes: Vec::new(), nodes, namespaces }
    }

    /// Takes in what the catalog tells of switches.
    pub fn tell_of(&mut self, switches: &BTreeMap<NamespaceId, SwitchInfo>) {
        for row in &mut self.namespaces {
            let Some(info) = switches.get(&NamespaceId(row.id)) else { continue };
            row.switching = info.progress.as_ref().map(past::line);
            row.owed = info.owed.iter().map(Owed::of).collect();
            if let (Some(progress), Some(line)) = (&info.progress, &row.switching) {
                self.notes.push(format!("namespace {} is being switched to {}: {line}", row.name, progress.to));
            }
            for owed in &row.owed {
                self.notes.push(format!("namespace {}: {}", row.name, owed.line(row.mode)));
            }
        }
    }

    /// Whether members may be following a switch that has just ended.
    #[must_use]
    pub fn following(&self) -> bool {
        let behind = |m: &MemberRow| m.reachable && m.replica.as_ref().is_none_or(|_| m.disagrees.is_some());
        self.namespaces
            .iter()
            .any(|row| row.epoch > 1 && (row.quorum == QuorumHealth::Lost || row.members.iter().any(behind)))
    }

    /// The report for people.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = table(
            &["NODE", "ADDRESS", "STATE", "VERSION", ">STARTS", ">UPTIME", ">DISK FREE", "CONNECTED"],
            self.nodes.iter().map(|n| {
                let state = match (n.reachable, n.disk_full) {
                    (false, _) => "✗ unreachable",
                    (true, Some(true)) => "✗ disk full",
                    (true, _) => "up",
                };
                vec![
                    n.id.to_string(),
                    n.address.clone(),
                    state.into(),
                    n.version.clone().unwrap_or_else(dash),
                    n.boot.map_or_else(dash, |b| b.to_string()),
                    n.uptime_ms.map_or_else(dash, span),
                    n.disk_free.map_or_else(dash, size),
                    if n.reachable { list(&n.connected) } else { dash() },
                ]
            }),
        );
        text.push('\n');
        text += &strong(self.namespaces.iter().filter(|n| n.mode == Mode::Strong));
        let mut rest = self.namespaces.iter().filter(|n| n.mode == Mode::Eventual).peekable();
        if rest.peek().is_some() {
            text.push('\n');
            text += &eventual::render(rest);
        }
        text.push('\n');
        self.notes.iter().for_each(|note| text += &format!("· {note}\n"));
        if self.healthy {
            text += &format!("cluster {} is healthy\n", self.cluster);
        } else {
            self.problems.iter().for_each(|problem| text += &format!("✗ {problem}\n"));
        }
        text
    }
}

/// The replicas of strong namespaces, for people.
fn strong<'a>(namespaces: impl Iterator<Item = &'a NamespaceRow>) -> String {
    let rows = namespaces.flat_map(|namespace| {
        namespace.members.iter().enumerate().map(|(at, member)| member_cells(namespace, member, at == 0))
    });
    let headers =
        ["NAMESPACE", "MODE", ">EPOCH", "QUORUM", "NODE", "ROLE", ">TERM", ">APPLIED", ">LAG", ">KEYS", "DIGEST", ""];
    table(&headers, rows)
}

fn member_cells(namespace: &NamespaceRow, member: &MemberRow, first: bool) -> Vec<String> {
    let head = |text: String| if first { text } else { String::new() };
    let mut cells = vec![
        head(namespace.name.clone()),
        head(namespace.mode_and_phase()),
        head(namespace.epoch.to_string()),
        head(word(namespace.quorum)),
        member.node.to_string(),
    ];
    match &member.replica {
        Some(r) => cells.extend([
            word(r.role),
            r.term.to_string(),
            r.applied.to_string(),
            r.lag.to_string(),
            count(r.keys),
            r.digest[..8].to_owned(),
        ]),
        None => {
            cells.push(no_replica(member).into());
            cells.extend(std::iter::repeat_with(dash).take(5));
        }
    }
    cells.push(mark(member));
    cells
}

fn no_replica(member: &MemberRow) -> &'static str {
    if member.reachable { "no replica" } else { "unreachable" }
}

fn mark(member: &MemberRow) -> String {
    member.disagrees.as_ref().map_or_else(String::new, |why| format!("✗ {why}"))
}

fn node_row(node: &NodeInfo, answer: Option<&Result<NodeStatus, String>>, problems: &mut Vec<String>) -> NodeRow {
    let mut row = NodeRow {
        id: node.id,
        address: node.address.clone(),
        reachable: false,
        error: None,
        version: None,
        boot: None,
        uptime_ms: None,
        disk_free: None,
        disk_full: None,
        connected: Vec::new(),
        answered: Vec::new(),
    };
    match answer {
        Some(Ok(status)) => {
            row.reachable = true;
            row.version = Some(status.version.clone());
            row.boot = Some(status.boot.0);
            row.uptime_ms = Some(status.uptime_ms);
            row.disk_free = Some(status.disk_free);
            row.disk_full = Some(status.disk_full);
            row.connected.clone_from(&status.connected);
            row.answered.clone_from(&status.answered);
            if status.disk_full {
                problems.push(format!("node {}: the disk is full, {} are free", node.id, size(status.disk_free)));
            }
        }
        other => {
            let why = other.and_then(|o| o.as_ref().err().cloned()).unwrap_or_else(|| "it was not asked".into());
            problems.push(format!("node {} at {} is unreachable: {why}", node.id, node.address));
            row.error = Some(why);
        }
    }
    row
}

fn namespace_row(
    info: &NamespaceInfo,
    nodes: &[NodeInfo],
    answers: &BTreeMap<NodeId, Result<NodeStatus, String>>,
    problems: &mut Vec<String>,
) -> NamespaceRow {
    let status = |node: &NodeId| answers.get(node).and_then(|answer| answer.as_ref().ok());
    let replica_of = |node: &NodeId| status(node).and_then(|s| s.namespaces.iter().find(|n| n.id == info.id));
    let replicas: Vec<(NodeId, &NamespaceStatus)> =
        info.members.iter().filter_map(|node| Some((*node, replica_of(node)?))).collect();
    let committed = replicas.iter().map(|(_, r)| r.committed.max(r.applied)).max().unwrap_or(0);
    // The leader of the highest term that anyone knows of; an older one may not know yet that it is none.
    let leader = replicas.iter().filter(|(_, r)| r.role == GroupRole::Leader).max_by_key(|(_, r)| r.term);
    let quorum = match leader {
        _ if info.mode == Mode::Eventual => QuorumHealth::NotNeeded,
        Some((_, leader)) => leader.quorum,
        None => QuorumHealth::Lost,
    };
    let members: Vec<MemberRow> = info
        .members
        .iter()
        .map(|node| {
            let replica = replica_of(node);
            let row = MemberRow {
                node: *node,
                reachable: status(node).is_some(),
                replica: replica.map(|r| replica_row(r, committed)),
                disagrees: replica.and_then(|r| odds(info, *node, r, &replicas)),
            };
            let name = &info.name;
            match (&row.disagrees, replica) {
                (Some(why), _) => problems.push(format!("namespace {name}, node {node}: {why}")),
                (None, Some(r)) if r.role == GroupRole::Failed => {
                    problems.push(format!("namespace {name}, node {node}: the replica has failed"));
                }
                (None, Some(NamespaceStatus { eventual: Some(EventualStatus { clock: Some(fault), .. }), .. })) => {
                    problems.push(format!("namespace {name}, node {node}: refuses writes: clock skew: {fault}"));
                }
                (None, None) if row.reachable && info.phase == Phase::Stable => {
                    problems.push(format!("namespace {name}, node {node}: holds no replica"));
                }
                _ => {}
            }
            row
        })
        .collect();
    match quorum {
        QuorumHealth::Lost => problems.push(format!("namespace {}: no quorum", info.name)),
        QuorumHealth::Degraded => problems.push(format!("namespace {}: not every voter answers", info.name)),
        QuorumHealth::NotNeeded if !members.iter().any(|member| member.reachable) => {
            problems.push(format!("namespace {}: no member answers", info.name));
        }
        QuorumHealth::Healthy | QuorumHealth::NotNeeded => {}
    }
    NamespaceRow {
        name: info.name.to_string(),
        id: info.id.0,
        mode: info.mode,
        epoch: info.epoch.0,
        phase: info.phase,
        copies: info.copies,
        leader: leader.map(|(node, _)| *node),
        quorum,
        agreed: members.iter().all(|m| m.disagrees.is_none()),
        converged: eventual::converged(info.mode, info.members.len(), &replicas),
        switching: None,
        owed: Vec::new(),
        unexpected: unexpected(info, nodes, answers, problems),
        members,
    }
}

/// Whose configuration expects another mode than the catalog has.
fn unexpected(
    info: &NamespaceInfo,
    nodes: &[NodeInfo],
    answers: &BTreeMap<NodeId, Result<NodeStatus, String>>,
    problems: &mut Vec<String>,
) -> Vec<NodeId> {
    let expects = |node: &NodeInfo| {
        let expected = &answers.get(&node.id)?.as_ref().ok()?.expected;
        let (_, mode) = expected.iter().find(|(name, mode)| *name == info.name && *mode != info.mode)?;
        Some((node.id, *mode))
    };
    let (who, modes): (Vec<NodeId>, Vec<Mode>) = nodes.iter().filter_map(expects).unzip();
    if let Some(mode) = modes.first() {
        let whose = past::nodes(&who);
        problems
            .push(format!("namespace {} is {}, the configuration of {whose} expects {mode}", info.name, info.mode));
    }
    who
}

fn replica_row(r: &NamespaceStatus, committed: u64) -> Replica {
    Replica {
        mode: r.mode,
        epoch: r.epoch.0,
        role: r.role,
        quorum: r.quorum,
        term: r.term,
        leader: r.leader,
        first: r.first,
        last: r.last,
        committed: r.committed,
        applied: r.applied,
        lag: committed.saturating_sub(r.applied),
        keys: r.keys,
        tombstones: r.tombstones,
        digest: r.digest.to_string(),
        eventual: r.eventual.as_ref().map(Eventual::from),
    }
}

/// In what a replica is at odds with the catalog or with another replica.
fn odds(
    info: &NamespaceInfo,
    node: NodeId,
    mine: &NamespaceStatus,
    all: &[(NodeId, &NamespaceStatus)],
) -> Option<String> {
    if mine.epoch != info.epoch {
        return Some(format!("is in epoch {}, the catalog in {}", mine.epoch, info.epoch));
    }
    if mine.mode != info.mode {
        return Some(format!("is {}, the catalog says {}", mine.mode, info.mode));
    }
    let strong = mine.mode == Mode::Strong;
    all.iter().filter(|(other, r)| *other != node && r.epoch == mine.epoch).find_map(|(other, theirs)| {
        if strong && mine.applied == theirs.applied && mine.digest != theirs.digest {
            return Some(format!("has other data than node {other} at position {}", mine.applied));
        }
        if let Some(why) = eventual::odds(mine, *other, theirs) {
            return Some(why);
        }
        let lead = |r: &NamespaceStatus| r.role == GroupRole::Leader;
        (lead(mine) && lead(theirs) && mine.term == theirs.term)
            .then(|| format!("leads term {}, as node {other} does", mine.term))
    })
}

fn dash() -> String {
    "–".into()
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The word that JSON has for it.
pub(crate) fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
