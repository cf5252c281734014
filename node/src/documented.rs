//! What is written of the metrics elsewhere, compared with what there is: the tables of `specs/metrics.md`, the alerts,
//! and the dashboard.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use duet_engine_eventual::{Metrics as EventualMetrics, NodeWord, SpaceWord};
use duet_engine_strong::Metrics as StrongMetrics;
use duet_proto::{
    Boot, ClusterName, Consistency, DataRequest, Digest, Epoch, EventualStatus, GroupRole, Hlc, MemberProgress, Mode,
    Mutation, NamespaceId, NamespaceInfo, NamespaceName, NamespaceStatus, NodeId, NodeStatus, Op, Phase,
    QuorumHealth, Request, Response,
};
use duet_router::Metrics as SwitchMetrics;
use duet_store::{
    Committer, HybridClock, SystemClock,
    rocks::{RocksOptions, RocksStore},
};
use duet_transport::{CertificateAuthority, Identity, Refusal, Stats, Tls, Validity};

use crate::{
    certificates::Certificates,
    metrics::{Durable, Metrics, Seen},
};

/// A metric: its type, its labels, and the values that labels with a closed list have.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shape {
    kind: String,
    labels: BTreeSet<String>,
    values: BTreeSet<String>,
}

/// Labels whose values the tables list.
const LISTED: &[&str] = &["event", "state", "lane", "direction", "result", "certificate", "op", "job", "engine"];

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

fn replica(name: &str, eventual: Option<EventualStatus>) -> NamespaceStatus {
    let member =
        MemberProgress { node: NodeId(2), matched: 8, lag: 3, active: true, snapshot: false, learner: false };
    NamespaceStatus {
        id: NamespaceId(1),
        name: name.parse().unwrap(),
        mode: if eventual.is_some() { Mode::Eventual } else { Mode::Strong },
        epoch: Epoch(1),
        phase: Phase::Stable,
        role: GroupRole::Leader,
        quorum: QuorumHealth::Healthy,
        term: 1,
        leader: None,
        last: 1,
        committed: 1,
        applied: 1,
        first: 1,
        keys: 1,
        tombstones: 1,
        digest: Digest::default(),
        members: vec![member],
        eventual,
    }
}

/// A request to a namespace.
pub(crate) fn asks(namespace: &str, op: Op) -> Request {
    Request::Data(DataRequest {
        namespace: namespace.parse().unwrap(),
        epoch: Epoch(1),
        op,
        attempt: None,
        tokens: Vec::new(),
        consistency: Consistency::Local,
    })
}

fn tls() -> Tls {
    let cluster: ClusterName = "c".parse().unwrap();
    let mut authority = CertificateAuthority::generate(&cluster, Validity::days(10)).unwrap();
    let node = authority.issue(&Identity::node(cluster, NodeId(7)), Validity::days(10), &[]).unwrap();
    Tls::from_pem(authority.cert().as_bytes(), node.cert.as_bytes(), node.key.as_bytes()).unwrap()
}

/// What a node shows that has one of everything.
fn text() -> String {
    let mut metrics = Metrics::new("1.2.3", "abc", 7, "c");
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RocksStore::open(dir.path(), &RocksOptions::default()).unwrap());
    let committer = Committer::start_task(store.clone(), Duration::ZERO);
    metrics.collect(Durable { store: store.clone(), committer });
    let clock = HybridClock::open(store, Arc::new(SystemClock), 500).unwrap();
    metrics.collect(Certificates::new(&tls(), clock));
    for op in [Op::Get { key: Bytes::from_static(b"k") }, Op::Write { mutation: Mutation::delete("k") }] {
        let asked = metrics.requests.asked(&asks("orders", op), |_| true);
        metrics.requests.answered(&asked, &Response::Done, Duration::from_millis(1));
    }
    let eventual = EventualStatus { frontier: vec![(NodeId(2), Hlc::from_millis(1))], ..EventualStatus::default() };
    let orders: NamespaceName = "orders".parse().unwrap();
    let status = NodeStatus {
        namespaces: vec![replica("carts", Some(eventual)), replica("orders", None)],
        expected: vec![(orders.clone(), Mode::Strong)],
        ..NodeStatus::default()
    };
    let word = SpaceWord { epoch: Epoch(1), mode: Mode::Eventual, frontier: 0, digest: Digest::default(), lag_ms: 1 };
    let word = NodeWord { alive: true, boot: Boot(1), namespaces: BTreeMap::from([(NamespaceId(1), word)]) };
    let catalog = [NamespaceInfo {
        id: NamespaceId(1),
        name: orders.clone(),
        mode: Mode::Strong,
        epoch: Epoch(1),
        phase: Phase::Stable,
        members: vec![],
        copies: 1,
        leader: None,
    }];
    let seen = Seen {
        ready: true,
        hlc_drift_ms: 0,
        status: &status,
        catalog: &catalog,
        late: &[(orders, 5)],
        strong: &StrongMetrics::default(),
        eventual: &EventualMetrics::default(),
        switches: &SwitchMetrics::default(),
        gossip: &BTreeMap::from([(NodeId(3), word)]),
        transport: &Stats { refusals: BTreeMap::from([(Refusal::Aged, 1)]), ..Stats::default() },
    };
    metrics.render(&seen).unwrap()
}

/// The metrics of a text, by the names that are queried.
fn shown(text: &str) -> BTreeMap<String, Shape> {
    let mut kinds = BTreeMap::new();
    let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name.to_owned(), kind.to_owned());
        }
        if line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let labels = if line.contains('{') { rest.split_once('}').unwrap().0 } else { "" };
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let histogram = histogram.filter(|base| kinds.get(*base).is_some_and(|kind| kind == "histogram"));
        let name = histogram.unwrap_or(name);
        let base = [name, name.strip_suffix("_total").unwrap_or(name), name.strip_suffix("_info").unwrap_or(name)];
        let kind = base.iter().find_map(|base| kinds.get(*base)).unwrap_or_else(|| panic!("{line} has no type"));
        let shape = shapes.entry(name.to_owned()).or_default();
        shape.kind.clone_from(kind);
        for (label, value) in labels.split(',').filter_map(|pair| pair.split_once('=')) {
            if label != "le" {
                shape.labels.insert(label.to_owned());
            }
            if LISTED.contains(&label) {
                shape.values.insert(value.trim_matches('"').to_owned());
            }
        }
    }
    shapes
}

/// The words between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The metrics of the tables, and their units.
fn documented() -> BTreeMap<String, (Shape, String)> {
    let mut rows = BTreeMap::new();
    for line in file("specs/metrics.md").lines().filter(|line| line.starts_with("| `duet_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else { panic!("{line} has not five cells") };
        let labels = quoted(labels);
        let listed = LISTED.iter().any(|label| labels.contains(*label));
        let values = if listed { quoted(meaning) } else { BTreeSet::new() };
        let name = name.trim_matches('`').to_owned();
        let row = (Shape { kind: kind.to_owned(), labels, values }, unit.to_owned());
        assert!(rows.insert(name, row).is_none(), "{line} is there twice");
    }
    rows
}

/// The metrics that a text of queries names.
fn named(text: &str, all: &BTreeMap<String, Shape>) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !word(c)).filter(|word| word.starts_with("duet_"));
    let base = |word: &str| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
        histogram
            .filter(|base| all.get(*base).is_some_and(|shape| shape.kind == "histogram"))
            .unwrap_or(word)
            .to_owned()
    };
    words.map(base).collect()
}

#[tokio::test]
async fn the_tables_are_what_is_shown() {
    let (shown, documented) = (shown(&text()), documented());
    let names = |of: BTreeSet<&String>, but: BTreeSet<&String>| of.difference(&but).map(|n| n.to_string()).collect();
    let missing: Vec<String> = names(shown.keys().collect(), documented.keys().collect());
    let gone: Vec<String> = names(documented.keys().collect(), shown.keys().collect());
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not in specs/metrics.md: {missing:?}; there and not shown: {gone:?}"
    );
    for (name, (row, unit)) in &documented {
        assert_eq!(row, &shown[name], "{name}: the table, and what is shown");
        let expected = ["seconds", "bytes"].into_iter().find(|unit| name.contains(&format!("_{unit}"))).unwrap_or("");
        assert_eq!(unit, expected, "the unit of {name}");
    }
}

#[tokio::test]
async fn alerts_and_dashboard_name_what_is_there() {
    let shown = shown(&text());
    for path in [
        "packaging/prometheus/duet.rules.yml",
        "packaging/prometheus/duet.rules.test.yml",
        "packaging/grafana/duet.json",
    ] {
        let named = named(&file(path), &shown);
        assert!(named.len() > 10, "{path} names {named:?}");
        let unknown: Vec<&String> = named.iter().filter(|name| !shown.contains_key(*name)).collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}, which no node shows");
    }
}

/// The values of a key in a file whose lines are `key: value`.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key)).map(str::trim).collect()
}

#[test]
fn each_alert_says_what_to_do_and_is_tested_to_fire_and_not_to() {
    let (rules, tests) =
        (file("packaging/prometheus/duet.rules.yml"), file("packaging/prometheus/duet.rules.test.yml"));
    let alerts = values(&rules, "alert:");
    assert!(alerts.len() > 15, "{alerts:?}");
    assert_eq!(alerts.iter().collect::<BTreeSet<_>>().len(), alerts.len(), "one name, one alert");
    for (at, block) in rules.split("- alert:").skip(1).enumerate() {
        for key in ["expr:", "severity:", "summary:", "description:"] {
            assert_eq!(values(block, key).len(), 1, "{key} of {}", alerts[at]);
        }
        let severity = values(block, "severity:")[0];
        assert!(["warning", "critical"].contains(&severity), "{}: {severity}", alerts[at]);
    }
    let mut tested: BTreeMap<&str, [bool; 2]> = BTreeMap::new();
    for case in tests.split("- expr: 'ALERTS{alertname=\"").skip(1) {
        let (name, rest) = case.split_once('"').unwrap();
        let nobody = rest.lines().nth(2).is_some_and(|line| line.trim() == "exp_samples: []");
        tested.entry(name).or_default()[usize::from(nobody)] = true;
    }
    for alert in &alerts {
        assert_eq!(tested.get(alert), Some(&[true; 2]), "{alert}: tested to fire, and not to");
    }
    assert_eq!(tested.len(), alerts.len(), "a test of an alert that is none");
}

/// A label that an alert does not have would be shown as nothing.
#[tokio::test]
async fn alerts_speak_of_labels_that_they_have() {
    let (shown, rules) = (shown(&text()), file("packaging/prometheus/duet.rules.yml"));
    for block in rules.split("- alert:").skip(1) {
        let (expr, scraped) = (values(block, "expr:")[0], ["job".to_owned(), "instance".to_owned()]);
        let has: BTreeSet<String> = match expr.split_once("by (").and_then(|(_, rest)| rest.split_once(')')) {
            Some((labels, _)) => labels.split(", ").map(str::to_owned).collect(),
            None => named(expr, &shown).iter().flat_map(|name| shown[name].labels.clone()).chain(scraped).collect(),
        };
        for label in block.split("$labels.").skip(1).filter_map(|rest| rest.split(' ').next()) {
            assert!(has.contains(label), "{label} in {block}");
        }
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that cannot run says so")]
fn promtool_takes_the_alerts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/prometheus");
    for arguments in [["check", "rules", "duet.rules.yml"], ["test", "rules", "duet.rules.test.yml"]] {
        let Ok(output) = Command::new("promtool").args(arguments).current_dir(&dir).output() else {
            eprintln!("promtool is not installed: the alerts are not tested");
            return;
        };
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "promtool {arguments:?}: {text}");
    }
}
