//! What a switch would meet with and cost: a dry run. From what the members say of themselves at one moment; nothing is
//! changed.

use std::{collections::BTreeMap, time::Duration};

use duet_client::SwitchInfo;
use duet_proto::{EventualStatus, GroupRole, Hlc, Mode, NamespaceStatus, NodeId, NodeStatus, Phase, QuorumHealth};
use serde::Serialize;

use crate::{
    output::{count, span, table},
    status::word,
    switch::past::{Past, line, nodes},
};

/// What a transaction takes beside the way to the leader: two disks, one after the other. A guess.
const SYNC_MS: u64 = 6;

/// What would happen.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Plan {
    pub namespace: String,
    pub from: Mode,
    pub to: Mode,
    pub epoch: u32,
    pub copies: u32,
    pub without: Vec<NodeId>,
    /// How many members must take part; any quorum of the group where it is strong.
    pub needed: usize,
    pub members: Vec<MemberRow>,
    /// Writes that are not yet everywhere, as far as the members that answer know.
    pub in_flight: u64,
    /// What must change before it can come to its end. Writes go on meanwhile.
    pub blocks: Vec<String>,
    /// Worth knowing.
    pub notes: Vec<String>,
    pub estimate: Option<Estimate>,
}

/// A member, as it says of itself.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct MemberRow {
    pub node: NodeId,
    pub reachable: bool,
    pub state: String,
    pub keys: Option<u64>,
    pub digest: Option<String>,
    /// Origins of which it lacks writes that another member has; nothing in strong mode.
    pub lacks_of: Option<Vec<NodeId>>,
    /// How far it is behind the furthest that any member holds, in milliseconds; nothing in strong mode.
    pub behind_ms: Option<u64>,
    /// In strong mode: entries that it has not applied. In eventual mode: its own writes that are not everywhere.
    pub writes: Option<u64>,
}

/// What it would cost.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Estimate {
    /// Before writes stop.
    pub gathering_ms: u64,
    /// Writes stand still for about so long.
    pub stopped_ms: u64,
    /// Where these figures come from.
    pub how: String,
}

/// What is known when a plan is made.
struct Look<'a> {
    info: &'a SwitchInfo,
    replicas: BTreeMap<NodeId, Option<&'a NamespaceStatus>>,
    without: &'a [NodeId],
}

impl Plan {
    /// From the catalog's word and the members'. `round_trip` is how long the catalog took to answer.
    #[must_use]
    pub fn new(
        info: &SwitchInfo,
        answers: &BTreeMap<NodeId, Result<NodeStatus, String>>,
        to: Mode,
        without: &[NodeId],
        round_trip: Duration,
    ) -> Plan {
        let namespace = &info.namespace;
        let replica = |node: &NodeId| {
            let status = answers.get(node)?.as_ref().ok()?;
            Some(status.namespaces.iter().find(|n| n.id == namespace.id))
        };
        let reached = namespace.members.iter().filter_map(|node| Some((*node, replica(node)?)));
        let look = Look { info, replicas: reached.collect(), without };
        let members: Vec<MemberRow> = namespace.members.iter().map(|node| look.row(*node)).collect();
        let (count, copies) = (namespace.members.len(), namespace.copies.max(1) as usize);
        let majority = count / 2 + 1;
        let mut plan = Plan {
            namespace: namespace.name.to_string(),
            from: namespace.mode,
            to,
            epoch: namespace.epoch.0,
            copies: namespace.copies,
            without: without.to_vec(),
            needed: if namespace.mode == Mode::Eventual {
                majority.max((count + 1).saturating_sub(copies))
            } else {
                majority
            },
            in_flight: members.iter().filter_map(|m| m.writes).sum(),
            members,
            blocks: Vec::new(),
            notes: Vec::new(),
            estimate: None,
        };
        if namespace.mode == to && info.progress.is_none() {
            plan.notes.push(format!("it is {to} already: there is nothing to do"));
            return plan;
        }
        plan.in_the_way(&look);
        match namespace.mode {
            Mode::Eventual => plan.hindered_while_eventual(&look),
            Mode::Strong => plan.hindered_while_strong(&look),
        }
        plan.estimate = Some(look.estimate(to, round_trip));
        plan
    }

    /// What stands in the way whatever the mode.
    fn in_the_way(&mut self, look: &Look<'_>) {
        match &look.info.progress {
            Some(progress) if progress.to == self.to => {
                self.notes.push(format!("it is under way already: {}", line(progress)));
            }
            Some(progress) => {
                self.blocks.push(format!("it is being switched to {}; abort that first", progress.to));
            }
            None if look.info.namespace.phase != Phase::Stable => {
                self.blocks.push(format!(
                    "the namespace is {}: switch it when that is done",
                    word(look.info.namespace.phase)
                ));
            }
            None => {}
        }
    }

    fn hindered_while_eventual(&mut self, look: &Look<'_>) {
        let all = &look.info.namespace.members;
        if let Some(stranger) = self.without.iter().find(|node| !all.contains(node)) {
            self.blocks.push(format!("node {stranger} is no member"));
        }
        let fit: Vec<NodeId> = all.iter().copied().filter(|node| look.takes_part(*node)).collect();
        let away: Vec<NodeId> =
            all.iter().copied().filter(|node| !look.excused(*node) && !fit.contains(node)).collect();
        let majority = all.len() / 2 + 1;
        if all.len() - self.without.len().min(all.len()) < majority {
            self.blocks.push("without them there is no majority".into());
        } else if fit.len() < majority {
            let why = format!(
                "only {} of {} members can take part, {majority} must: {}",
                fit.len(),
                all.len(),
                look.reasons(&away)
            );
            self.blocks.push(format!("{why}. No --without helps; writes go on"));
        } else if fit.len() < self.needed && (self.without.is_empty() || !away.is_empty()) {
            let list = away.iter().chain(&self.without).map(ToString::to_string).collect::<Vec<_>>().join(",");
            self.blocks.push(format!(
                "it would wait: {}. With copies = {}, acknowledged writes may be there alone. --without {list} goes on, \
                 and these come in as late writes",
                look.reasons(&away),
                self.copies
            ));
        } else if !away.is_empty() {
            self.notes.push(format!(
                "it goes on without {} after a second: every acknowledged write is on another member, too; what else is there \
                 comes in late",
                nodes(&away)
            ));
        }
        if !self.without.is_empty() && self.blocks.is_empty() {
            self.notes.push(format!("what {} alone may hold comes in late, by its stamps", nodes(&self.without)));
        }
        let lost: u64 = look.eventual().map(|(_, e)| e.conflicts_lost).sum();
        if lost > 0 {
            self.notes.push(format!(
                "{} received writes have lost against later ones since the nodes started; exchanging the rest decides in the \
                 same way: the later stamp stays",
                count(lost)
            ));
        }
    }

    fn hindered_while_strong(&mut self, look: &Look<'_>) {
        if !self.without.is_empty() {
            self.blocks.push("--without is of no use here: any quorum completes a switch to eventual".into());
        }
        let (members, copies) = (look.info.namespace.members.len(), self.copies);
        if copies as usize > members {
            self.blocks.push(format!(
                "{copies} copies are asked for, {members} members cannot give them: lower them first (duet ns set-copies)"
            ));
        }
        let statuses = || look.replicas.values().flatten();
        let leader = statuses().filter(|r| r.role == GroupRole::Leader).max_by_key(|r| r.term);
        match leader.map(|leader| leader.quorum) {
            Some(QuorumHealth::Healthy | QuorumHealth::Degraded) => {}
            _ => self.blocks.push("no leader with a quorum: the end of the epoch cannot go through the log".into()),
        }
        let all = look.info.namespace.members.iter().copied();
        let away: Vec<NodeId> = all.filter(|node| !look.replicas.contains_key(node)).collect();
        if !away.is_empty() {
            self.notes.push(format!(
                "{}: the replica there follows from what the others hold, on its return",
                nodes(&away)
            ));
        }
        self.notes.push("conditional writes (cas, txn) are refused from then on".into());
    }

    /// For people.
    #[must_use]
    pub fn render(&self) -> String {
        let dash = || "–".to_owned();
        let strong = self.from == Mode::Strong;
        let rows = self.members.iter().map(|m| {
            let lacks =
                m.lacks_of.as_ref().map_or_else(dash, |of| if of.is_empty() { "nothing".into() } else { nodes(of) });
            vec![
                m.node.to_string(),
                m.state.clone(),
                m.keys.map_or_else(dash, count),
                m.digest.as_ref().map_or_else(dash, |d| d[..8].to_owned()),
                lacks,
                m.behind_ms.map_or_else(dash, span),
                m.writes.map_or_else(dash, count),
            ]
        });
        let writes = if strong { ">UNAPPLIED" } else { ">SPREADING" };
        let mut text =
            format!("plan: {} from {} (epoch {}) to {}\n\n", self.namespace, self.from, self.epoch, self.to);
        text += &table(&[">NODE", "STATE", ">KEYS", "DIGEST", "LACKS WRITES OF", ">BEHIND", writes], rows);
        let of = if strong { "any quorum" } else { "as many as make sure that every acknowledged write is there" };
        text += &format!("\nneeds {} of {} members ({of})\n", self.needed, self.members.len());
        text += &format!("writes in flight: {}\n", count(self.in_flight));
        if let Some(estimate) = &self.estimate {
            text += &format!(
                "estimate: {} to gather while writes go on, then writes wait for about {} ({})\n",
                span(estimate.gathering_ms),
                span(estimate.stopped_ms),
                estimate.how
            );
        }
        self.notes.iter().for_each(|note| text += &format!("· {note}\n"));
        self.blocks.iter().for_each(|block| text += &format!("✗ {block}\n"));
        if self.blocks.is_empty() && self.estimate.is_some() {
            text += "nothing stands in the way\n";
        }
        text + "nothing was changed\n"
    }
}

impl Look<'_> {
    fn excused(&self, node: NodeId) -> bool {
        self.without.contains(&node)
    }

    /// Whether a member could seal now: it is there, well, and has its first copy.
    fn takes_part(&self, node: NodeId) -> bool {
        !self.excused(node) && self.why_not(node).is_none()
    }

    fn why_not(&self, node: NodeId) -> Option<&'static str> {
        match self.replicas.get(&node) {
            None => Some("cannot be reached"),
            Some(None) => Some("holds no replica"),
            Some(Some(r)) if r.role == GroupRole::Failed => Some("has failed"),
            Some(Some(r)) if r.eventual.as_ref().is_some_and(|e| !e.whole) => Some("has not received its first copy"),
            Some(Some(_)) => None,
        }
    }

    fn reasons(&self, of: &[NodeId]) -> String {
        let one = |node: &NodeId| format!("node {node} {}", self.why_not(*node).unwrap_or("is left out"));
        of.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn eventual(&self) -> impl Iterator<Item = (NodeId, &EventualStatus)> {
        self.replicas.iter().filter_map(|(node, r)| Some((*node, r.as_ref()?.eventual.as_ref()?)))
    }

    /// The furthest that anybody holds of each origin.
    fn furthest(&self) -> BTreeMap<NodeId, Hlc> {
        let mut furthest = BTreeMap::new();
        for (origin, hlc) in self.eventual().flat_map(|(_, e)| e.frontier.iter().copied()) {
            let entry = furthest.entry(origin).or_insert(hlc);
            *entry = hlc.max(*entry);
        }
        furthest
    }

    fn row(&self, node: NodeId) -> MemberRow {
        let status = self.replicas.get(&node).copied().flatten();
        let eventual = status.and_then(|r| r.eventual.as_ref());
        let lag = |e: &EventualStatus| -> Vec<(NodeId, u64)> {
            let mine: BTreeMap<NodeId, Hlc> = e.frontier.iter().copied().collect();
            let behind = |(origin, hlc): (NodeId, Hlc)| {
                let have = mine.get(&origin).copied().unwrap_or_default();
                // Who has nothing of an origin yet is behind by what cannot be told in time.
                (have < hlc).then(|| (origin, if have == Hlc::ZERO { 0 } else { hlc.millis() - have.millis() }))
            };
            self.furthest().into_iter().filter_map(behind).collect()
        };
        let lacks = eventual.map(lag);
        let fenced = eventual.is_some_and(|e| e.fence.is_some());
        let state = match self.why_not(node) {
            Some(why) => format!("✗ {why}"),
            None if fenced => "fenced".into(),
            None => status.map_or_else(String::new, |r| word(r.role)),
        };
        MemberRow {
            node,
            reachable: self.replicas.contains_key(&node),
            state,
            keys: status.map(|r| r.keys),
            digest: status.map(|r| r.digest.to_string()),
            behind_ms: lacks.as_ref().map(|l| l.iter().map(|(_, ms)| *ms).max().unwrap_or(0)),
            lacks_of: lacks.map(|l| l.into_iter().map(|(origin, _)| origin).collect()),
            writes: status.map(|r| match &r.eventual {
                Some(e) => e.lag_writes,
                None => r.last.saturating_sub(r.applied),
            }),
        }
    }

    /// From what such switches have cost before, or else from how long the catalog takes.
    fn estimate(&self, to: Mode, round_trip: Duration) -> Estimate {
        let gathering_ms = match to {
            Mode::Strong => self.eventual().map(|(_, e)| e.lag_ms).max().unwrap_or(0),
            Mode::Eventual => 0,
        };
        let mut before: Vec<u64> = self
            .info
            .history
            .iter()
            .filter(|past| past.to == to && !past.aborted)
            .map(|past| Past::of(past).stopped_ms)
            .collect();
        before.sort_unstable();
        if let Some(median) = before.get(before.len() / 2) {
            let switches = if before.len() == 1 {
                "the switch".into()
            } else {
                format!("the median of {} switches", before.len())
            };
            let how = format!("{switches} of this namespace to {to} before");
            return Estimate { gathering_ms, stopped_ms: *median, how };
        }
        let ms = round_trip.as_millis() as u64 + SYNC_MS;
        let (steps, what) = match to {
            Mode::Strong => (6, "members seal and converge, the next epoch begins: 6 transactions"),
            Mode::Eventual => (2, "an entry of the log and 1 transaction"),
        };
        let how = format!(
            "{what} of the catalog, whose leader answered in {} ms, {SYNC_MS} ms for the disks each; no earlier switch to go by",
            round_trip.as_millis()
        );
        Estimate { gathering_ms, stopped_ms: steps * ms, how }
    }
}

#[cfg(test)]
mod tests {
    use duet_proto::{Epoch, NamespaceInfo, SwitchPast, SwitchProgress, SwitchStep};

    use super::*;
    use crate::status::tests::replica;

    fn info(mode: Mode, copies: u32) -> SwitchInfo {
        SwitchInfo {
            namespace: NamespaceInfo {
                id: duet_proto::NamespaceId(1),
                name: "orders".parse().unwrap(),
                mode,
                epoch: Epoch(1),
                phase: Phase::Stable,
                members: (1..=3).map(NodeId).collect(),
                copies,
                leader: None,
            },
            progress: None,
            base: None,
            owed: vec![],
            history: vec![],
        }
    }

    fn member(node: u32, seen: u64) -> NamespaceStatus {
        let frontier = vec![(NodeId(1), Hlc::from_millis(seen)), (NodeId(2), Hlc::from_millis(50))];
        let eventual =
            EventualStatus { whole: true, clean: true, frontier, lag_ms: 40, lag_writes: 2, ..Default::default() };
        NamespaceStatus {
            mode: Mode::Eventual,
            role: GroupRole::Member,
            eventual: Some(eventual),
            ..replica(node, 0, 5)
        }
    }

    fn answers(replicas: Vec<Option<NamespaceStatus>>) -> BTreeMap<NodeId, Result<NodeStatus, String>> {
        let status = |(node, replica): (u32, Option<NamespaceStatus>)| {
            let status = replica.map(|replica| NodeStatus {
                node: NodeId(node),
                namespaces: vec![replica],
                ..NodeStatus::default()
            });
            (NodeId(node), status.ok_or_else(|| "timed out".to_owned()))
        };
        (1..).zip(replicas).map(status).collect()
    }

    fn eventual(copies: u32, away: &[u32], without: &[u32]) -> Plan {
        let seen = |node: u32| (!away.contains(&node)).then(|| member(node, 100 + u64::from(node == 1) * 20));
        let without: Vec<NodeId> = without.iter().map(|node| NodeId(*node)).collect();
        let answers = answers((1..=3).map(seen).collect());
        Plan::new(&info(Mode::Eventual, copies), &answers, Mode::Strong, &without, Duration::from_millis(5))
    }

    #[test]
    fn divergence_is_told_by_member() {
        let plan = eventual(1, &[], &[]);
        assert!(plan.blocks.is_empty(), "{:?}", plan.blocks);
        assert_eq!(plan.members[1].lacks_of, Some(vec![NodeId(1)]));
        assert_eq!((plan.members[0].behind_ms, plan.members[1].behind_ms), (Some(0), Some(20)));
        assert_eq!((plan.in_flight, plan.needed), (6, 3));
        let text = plan.render();
        assert!(text.contains("nothing stands in the way") && text.ends_with("nothing was changed\n"), "{text}");
        assert_eq!(plan.estimate.unwrap().gathering_ms, 40);
    }

    #[test]
    fn who_blocks_is_named_and_what_would_help() {
        // Copies, members away, members left out; what is in its way, and what is said besides.
        for (copies, away, without, block, note) in [
            (1, &[3][..], &[][..], Some("--without 3 goes on"), None),
            (2, &[3], &[], None, Some("goes on without node 3 after a second")),
            (1, &[3], &[3], None, Some("what node 3 alone may hold")),
            (1, &[2], &[3], Some("no --without"), None),
            (1, &[], &[2, 3], Some("no majority"), None),
            (1, &[], &[9], Some("node 9 is no member"), None),
            (3, &[2, 3], &[], Some("only 1 of 3 members can take part"), None),
        ] {
            let plan = eventual(copies, away, without);
            let blocks = plan.blocks.join("; ");
            match block {
                Some(block) => {
                    assert!(blocks.to_lowercase().contains(&block.to_lowercase()), "{copies} {away:?}: {blocks}")
                }
                None => assert_eq!(blocks, "", "{copies} {away:?} {without:?}"),
            }
            if let Some(note) = note {
                assert!(plan.notes.iter().any(|n| n.contains(note)), "{copies} {away:?}: {:?}", plan.notes);
            }
        }
    }

    #[test]
    fn a_strong_one_needs_a_quorum_and_nobody_in_particular() {
        let plan = |replicas, without: &[NodeId]| {
            Plan::new(&info(Mode::Strong, 1), &answers(replicas), Mode::Eventual, without, Duration::from_millis(5))
        };
        let ahead = NamespaceStatus { last: 12, ..replica(1, 9, 5) };
        let well = plan(vec![Some(ahead), Some(replica(2, 9, 5)), None], &[]);
        assert!(well.blocks.is_empty() && well.in_flight == 3, "{:?}", well.blocks);
        assert!(
            well.notes.iter().any(|note| note.starts_with("node 3: the replica there follows")),
            "{:?}",
            well.notes
        );
        assert_eq!(plan(vec![None, Some(replica(2, 9, 5)), None], &[]).blocks.len(), 1);
        assert_eq!(plan(vec![Some(replica(1, 9, 5)); 3], &[NodeId(3)]).blocks.len(), 1);
    }

    #[test]
    fn earlier_switches_are_the_better_guess() {
        let past = |ended_ms, to, aborted| SwitchPast {
            epoch: Epoch(1),
            to,
            asked_ms: 900,
            sealed_ms: 1000,
            ended_ms,
            attempts: 1,
            apart: vec![],
            aborted,
            forgotten: vec![],
        };
        let mut info = info(Mode::Eventual, 1);
        let answers = answers((1..=3).map(|node| Some(member(node, 100))).collect());
        let plan = |info: &SwitchInfo| {
            let plan = Plan::new(info, &answers, Mode::Strong, &[], Duration::from_millis(5));
            plan.estimate.map(|e| (e.stopped_ms, e.how))
        };
        let (ms, how) = plan(&info).unwrap();
        assert!(ms == 66 && how.contains("no earlier switch"), "{how}");
        info.history = vec![
            past(1080, Mode::Strong, false),
            past(5000, Mode::Eventual, false),
            past(9000, Mode::Strong, true),
            past(1020, Mode::Strong, false),
            past(1050, Mode::Strong, false),
        ];
        let (ms, how) = plan(&info).unwrap();
        assert!(ms == 50 && how.contains("the median of 3"), "{how}");
    }

    #[test]
    fn a_switch_under_way_is_told_of() {
        let mut info = info(Mode::Eventual, 1);
        info.namespace.phase = Phase::Switching;
        info.progress = Some(SwitchProgress {
            to: Mode::Strong,
            step: SwitchStep::Gathering,
            attempts: 0,
            asked_ms: 1,
            without: vec![],
            done: vec![NodeId(1)],
            waits_for: vec![NodeId(2), NodeId(3)],
        });
        let answers = answers((1..=3).map(|node| Some(member(node, 100))).collect());
        let plan = |to| Plan::new(&info, &answers, to, &[], Duration::from_millis(5));
        assert!(plan(Mode::Strong).blocks.is_empty());
        assert!(plan(Mode::Strong).notes[0].contains("waits for nodes 2 and 3"), "{:?}", plan(Mode::Strong).notes);
        assert!(plan(Mode::Eventual).blocks[0].contains("abort that first"));
        info.namespace.phase = Phase::Moving;
        info.progress = None;
        let moving = Plan::new(&info, &answers, Mode::Strong, &[], Duration::from_millis(5));
        assert!(moving.blocks[0].contains("moving"), "{:?}", moving.blocks);
    }
}
