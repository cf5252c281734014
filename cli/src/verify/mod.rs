//! `duet ns verify`: whether the members of a namespace hold the same.
//!
//! Members are asked one by one, and writes go on meanwhile, so digests can be compared only where two members say that
//! they are at the same *point*: a position of the log, or a frontier with nothing beyond it. Looking again and again,
//! sooner or later each is seen at a point at which another one was seen too.

mod deep;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use duet_client::Client;
use duet_proto::{Digest, Epoch, Hlc, Mode, NamespaceName, NamespaceStatus, NodeId, NodeStatus};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    args::Verify,
    cluster::answers,
    failure::{Exit, Failure},
    output::{Printer, count, table},
    status::word,
    switch::past::nodes,
};

pub use deep::{Deep, Difference};

/// How often members are asked.
const POLL: Duration = Duration::from_millis(50);

/// A member, as it was seen last.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct MemberRow {
    pub node: NodeId,
    pub reachable: bool,
    pub mode: Option<Mode>,
    pub epoch: Option<u32>,
    pub keys: Option<u64>,
    /// Thirty-two hexadecimal digits.
    pub digest: Option<String>,
    /// In strong mode: what it has applied.
    pub position: Option<u64>,
    /// Whether it was seen at a point at which another member was seen too; nothing else can be compared.
    pub compared: bool,
    /// Whether it then held the same.
    pub equal: Option<bool>,
}

/// What came of comparing.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The members, as they were seen last.
    pub members: Vec<MemberRow>,
    /// Whether all hold the same; `None` if that could not be told.
    pub equal: Option<bool>,
    /// Why not, or why it could not be told.
    pub why: Option<String>,
}

/// Where two replicas must hold the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    Position(u64),
    Frontier(Vec<(NodeId, Hlc)>),
}

impl Point {
    fn of(status: &NamespaceStatus) -> Option<Point> {
        match (status.mode, &status.eventual) {
            (Mode::Strong, _) => Some(Point::Position(status.applied)),
            (Mode::Eventual, Some(e)) if e.whole && e.clean => Some(Point::Frontier(e.frontier.clone())),
            _ => None,
        }
    }
}

/// Everything seen so far of one epoch.
#[derive(Debug, Default)]
struct Samples {
    at: BTreeMap<Point, BTreeMap<NodeId, (Digest, u64)>>,
    /// Two members that were not the same, where that was.
    differ: Option<(NodeId, NodeId, String)>,
}

impl Samples {
    fn add(&mut self, node: NodeId, status: &NamespaceStatus) {
        let Some(point) = Point::of(status) else { return };
        let here = self.at.entry(point.clone()).or_default();
        let mine = (status.digest, status.keys);
        if let Some((other, theirs)) = here.iter().find(|(other, theirs)| **other != node && **theirs != mine) {
            let at = match &point {
                Point::Position(at) => format!("at position {at}"),
                Point::Frontier(_) => "with the same frontier".into(),
            };
            let (mine, theirs) = (count(mine.1), count(theirs.1));
            let why = format!("node {node} does not hold what node {other} does {at} ({mine} and {theirs} keys)");
            self.differ.get_or_insert((*other, node, why));
        }
        here.insert(node, mine);
    }

    /// Whoever was seen at a point with another one, and with him with others, and so on, from `node`.
    fn linked(&self, node: NodeId) -> BTreeSet<NodeId> {
        let mut linked = BTreeSet::from([node]);
        loop {
            let before = linked.len();
            for here in self.at.values() {
                if here.keys().any(|node| linked.contains(node)) {
                    linked.extend(here.keys().copied());
                }
            }
            if linked.len() == before {
                return linked;
            }
        }
    }
}

/// Looks until all members that answer can be compared, in `epoch` or a later one, or the time is up.
pub(crate) async fn compare(
    client: &Client,
    name: &NamespaceName,
    within: Duration,
    mut epoch: Epoch,
) -> Result<Compared, Failure> {
    let deadline = Instant::now() + within;
    let mut samples = Samples::default();
    loop {
        let (topology, answers) = answers(client).await?;
        let info = topology.namespaces.iter().find(|info| info.name == *name);
        let info = info.ok_or_else(|| duet_proto::Error::NamespaceNotFound { name: name.clone() })?;
        if info.epoch > epoch {
            // What was seen of an earlier one says nothing.
            (epoch, samples) = (info.epoch, Samples::default());
        }
        let replicas: Vec<(NodeId, Option<&NamespaceStatus>, bool)> = info
            .members
            .iter()
            .map(|node| {
                let status = answers.get(node).and_then(|answer| answer.as_ref().ok());
                let of = |status: &'_ NodeStatus| status.namespaces.iter().position(|n| n.id == info.id);
                (*node, status.and_then(|s| of(s).map(|at| &s.namespaces[at])), status.is_some())
            })
            .collect();
        let current = |status: &NamespaceStatus| status.epoch == epoch;
        for (node, status, _) in &replicas {
            if let Some(status) = status.filter(|status| current(status)) {
                samples.add(*node, status);
            }
        }
        let compared = judge(&replicas, &samples, epoch);
        let followed = replicas.iter().all(|(_, status, up)| !*up || status.is_some_and(current));
        let all = compared.members.iter().all(|member| !member.reachable || member.compared);
        if compared.equal == Some(false) || (followed && all) || Instant::now() >= deadline {
            return Ok(compared);
        }
        sleep(POLL).await;
    }
}

fn judge(replicas: &[(NodeId, Option<&NamespaceStatus>, bool)], samples: &Samples, epoch: Epoch) -> Compared {
    let members: Vec<NodeId> = replicas.iter().map(|(node, ..)| *node).collect();
    // The largest set of members that can be told from each other.
    let linked = members.iter().map(|node| samples.linked(*node)).max_by_key(BTreeSet::len).unwrap_or_default();
    let at_odds = |node: NodeId| samples.differ.as_ref().is_some_and(|(a, b, _)| [*a, *b].contains(&node));
    let row = |(node, status, reachable): &(NodeId, Option<&NamespaceStatus>, bool)| {
        let compared = (linked.len() > 1 || members.len() == 1) && linked.contains(node) && status.is_some();
        MemberRow {
            node: *node,
            reachable: *reachable,
            mode: status.map(|s| s.mode),
            epoch: status.map(|s| s.epoch.0),
            keys: status.map(|s| s.keys),
            digest: status.map(|s| s.digest.to_string()),
            position: status.filter(|s| s.mode == Mode::Strong).map(|s| s.applied),
            compared,
            equal: compared.then(|| !at_odds(*node)),
        }
    };
    let rows: Vec<MemberRow> = replicas.iter().map(row).collect();
    let which = |wanted: &dyn Fn(&MemberRow) -> bool| -> Vec<NodeId> {
        rows.iter().filter(|row| wanted(row)).map(|row| row.node).collect()
    };
    let away = which(&|row| !row.reachable);
    let without = which(&|row| row.reachable && row.epoch.is_none());
    let elsewhere = which(&|row| row.epoch.is_some_and(|e| e != epoch.0));
    let alone = which(&|row| row.epoch == Some(epoch.0) && !row.compared);
    let mut missing = Vec::new();
    for (list, what) in [
        (&away, "cannot be reached"),
        (&without, "no replica there"),
        (&elsewhere, "not in this epoch yet"),
        (&alone, "never seen at the same point as another one, while writes go on"),
    ] {
        if !list.is_empty() {
            missing.push(format!("{}: {what}", nodes(list)));
        }
    }
    let (equal, why) = match &samples.differ {
        Some((_, _, why)) => (Some(false), Some(why.clone())),
        None if missing.is_empty() => (Some(true), None),
        None => (None, Some(missing.join("; "))),
    };
    Compared { members: rows, equal, why }
}

/// Members side by side, for people.
pub(crate) fn members_table(members: &[MemberRow]) -> String {
    let dash = || "–".to_owned();
    let rows = members.iter().map(|m| {
        let state = match (m.reachable, m.epoch, m.equal) {
            (false, ..) => "✗ unreachable",
            (true, None, _) => "no replica",
            (true, _, Some(true)) => "equal",
            (true, _, Some(false)) => "✗ differs",
            (true, _, None) => "not compared",
        };
        vec![
            m.node.to_string(),
            m.mode.map_or_else(dash, word),
            m.epoch.map_or_else(dash, |e| e.to_string()),
            m.keys.map_or_else(dash, count),
            m.position.map_or_else(dash, count),
            m.digest.as_ref().map_or_else(dash, |d| d[..8].to_owned()),
            state.into(),
        ]
    });
    let mut text = table(&[">NODE", "MODE", ">EPOCH", ">KEYS", ">POSITION", "DIGEST", ""], rows);
    let mut digests = members.iter().filter(|m| m.equal == Some(true)).map(|m| &m.digest);
    if let Some(first) = digests.next()
        && digests.any(|digest| digest != first)
    {
        text += "writes go on: members were compared where they met, and are shown as they were seen last\n";
    }
    text
}

/// What `duet ns verify` says.
#[derive(Debug, Serialize)]
struct Document<'a> {
    namespace: &'a str,
    mode: Mode,
    epoch: u32,
    verified: Option<bool>,
    why: Option<String>,
    members: Vec<MemberRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deep: Option<Deep>,
}

/// `duet ns verify`
pub(crate) async fn run(client: &Client, verb: &Verify, printer: Printer) -> Result<Exit, Failure> {
    let name = &verb.name;
    let info = client.admin().namespace(name.as_str()).await?;
    let compared = compare(client, name, verb.within, info.epoch).await?;
    let deep = if verb.deep { Some(deep::run(client, &info, &compared.members).await?) } else { None };
    let Compared { members, mut equal, mut why } = compared;
    if let Some(deep) = &deep {
        // Record by record says more than any digest, of those who could be read.
        let whole = deep.left_out.is_empty();
        match (deep.differing, whole) {
            (0, true) if equal.is_none() => (equal, why) = (Some(true), None),
            (0, _) => {}
            (n, _) => {
                (equal, why) = (Some(false), Some(format!("{} keys are not the same on all members", count(n))))
            }
        }
    }
    let (mode, epoch) = (info.mode, info.epoch.0);
    let document =
        Document { namespace: name.as_str(), mode, epoch, verified: equal, why: why.clone(), members, deep };
    printer.answer(&document, || {
        let mut text = format!("{name} is {mode}, in epoch {epoch}\n\n{}", members_table(&document.members));
        if let Some(deep) = &document.deep {
            text += &deep.render();
        }
        text + &match (equal, &why) {
            (Some(true), _) => format!("\nall {} members hold the same\n", document.members.len()),
            (Some(false), why) => format!("\n✗ {}\n", why.as_deref().unwrap_or("members do not hold the same")),
            (None, why) => format!(
                "\nnot all members could be compared within {:.1} s: {}\n",
                verb.within.as_secs_f64(),
                why.as_deref().unwrap_or("no answer")
            ),
        }
    })?;
    Ok(match equal {
        Some(true) => Exit::Done,
        Some(false) => Exit::Unhealthy,
        None => Exit::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use duet_proto::EventualStatus;

    use super::*;
    use crate::status::tests::replica;

    fn judged(samples: &Samples, seen: &[(u32, Option<&NamespaceStatus>)]) -> Compared {
        let replicas: Vec<_> = seen.iter().map(|(node, status)| (NodeId(*node), *status, status.is_some())).collect();
        judge(&replicas, samples, Epoch(1))
    }

    #[test]
    fn members_are_compared_through_points_that_they_share() {
        let mut samples = Samples::default();
        let [one, two, three] = [replica(1, 9, 5), replica(2, 8, 4), replica(3, 8, 4)];
        for (node, status) in [(1, &one), (2, &two), (3, &three)] {
            samples.add(NodeId(node), status);
        }
        let seen = [(1, Some(&one)), (2, Some(&two)), (3, Some(&three))];
        let compared = judged(&samples, &seen);
        assert_eq!(compared.equal, None);
        let why = compared.why.unwrap();
        assert!(why.starts_with("node 1: never seen at the same point"), "{why}");
        assert_eq!(compared.members.iter().map(|m| m.equal).collect::<Vec<_>>(), [None, Some(true), Some(true)]);
        // Later node 3 is where node 1 was before: that links all of them, though never all at once.
        samples.add(NodeId(3), &replica(3, 9, 5));
        assert_eq!(judged(&samples, &seen).equal, Some(true));
        samples.add(NodeId(2), &replica(2, 9, 6));
        let compared = judged(&samples, &seen);
        assert_eq!(compared.equal, Some(false));
        assert!(compared.why.unwrap().contains("at position 9"));
        assert_eq!(
            compared.members.iter().map(|m| m.equal).collect::<Vec<_>>(),
            [Some(false), Some(false), Some(true)]
        );
    }

    #[test]
    fn an_eventual_member_is_compared_only_where_it_holds_nothing_beyond_its_frontier() {
        let member = |node, clean, digest| {
            let frontier = vec![(NodeId(1), Hlc(7))];
            let eventual = EventualStatus { whole: true, clean, frontier, ..EventualStatus::default() };
            NamespaceStatus { mode: Mode::Eventual, eventual: Some(eventual), ..replica(node, 0, digest) }
        };
        let (one, two) = (member(1, true, 5), member(2, false, 6));
        let mut samples = Samples::default();
        samples.add(NodeId(1), &one);
        samples.add(NodeId(2), &two);
        assert_eq!(judged(&samples, &[(1, Some(&one)), (2, Some(&two))]).equal, None);
        samples.add(NodeId(2), &member(2, true, 6));
        assert_eq!(judged(&samples, &[(1, Some(&one)), (2, Some(&two))]).equal, Some(false));
    }

    #[test]
    fn who_is_away_or_in_another_epoch_is_named() {
        let (one, two) = (replica(1, 9, 5), replica(2, 9, 5));
        let old = NamespaceStatus { epoch: Epoch(0), ..replica(3, 9, 5) };
        let mut samples = Samples::default();
        samples.add(NodeId(1), &one);
        samples.add(NodeId(2), &two);
        let compared = judged(&samples, &[(1, Some(&one)), (2, Some(&two)), (3, Some(&old)), (4, None)]);
        assert_eq!(compared.equal, None);
        assert_eq!(compared.why.as_deref(), Some("node 4: cannot be reached; node 3: not in this epoch yet"));
        assert!(!compared.members[2].compared);
        let table = members_table(&compared.members);
        assert!(table.contains("equal") && table.contains("not compared") && table.contains("✗ unreachable"));
    }
}
