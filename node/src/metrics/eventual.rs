//! How the eventual namespaces converge: the last status's figures, as metrics.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use duet_proto::{EventualStatus, NamespaceStatus};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};

type Labels = Vec<(&'static str, String)>;
type Gauge = (&'static str, Option<Unit>, &'static str, fn(&EventualStatus) -> f64);
/// A counter with a value for each of a label's values; without a label, the one has no name.
type Counter = (&'static str, &'static str, &'static str, &'static [(&'static str, fn(&EventualStatus) -> u64)]);

const GAUGES: &[Gauge] = &[
    ("eventual_whole", None, "1 if the replica has received its first copy and serves", |s| flag(s.whole)),
    ("eventual_clean", None, "1 if the replica holds nothing beyond its frontier", |s| flag(s.clean)),
    ("eventual_members_version", None, "The version of the members that the replica goes by", |s| s.version as f64),
    ("eventual_copies", None, "Members that must have synced a write before it is acknowledged", |s| {
        f64::from(s.copies)
    }),
    (
        "eventual_lag",
        Some(Unit::Seconds),
        "Age of the oldest write of this node that is not known to be held by every member",
        |s| seconds(s.lag_ms),
    ),
    ("eventual_lag_writes", None, "Writes of this node that are not known to be held by every member", |s| {
        s.lag_writes as f64
    }),
    (
        "eventual_clock_fault",
        Some(Unit::Seconds),
        "How far this node's clock is out of line with its peers; above 0, writes are refused",
        |s| s.clock.map_or(0.0, |fault| seconds(fault.ahead_ms)),
    ),
];

const COUNTERS: &[Counter] = &[
    (
        "eventual_conflicts",
        "Records of others that superseded what was held or were new (won), or came too late (lost)",
        "result",
        &[("won", |s| s.conflicts_won), ("lost", |s| s.conflicts_lost)],
    ),
    (
        "eventual_digest_mismatches",
        "Alarm: replicas that claim the same and whose digests differ",
        "",
        &[("", |s| s.digest_mismatches)],
    ),
    ("eventual_conflicting_markers", "Alarm: one stamp with two values", "", &[("", |s| s.conflicting_markers)]),
    ("eventual_damaged_records", "Alarm: records that could not be read", "", &[("", |s| s.damaged)]),
    ("eventual_healed_records", "Damaged or missing records replaced by a peer's", "", &[("", |s| s.healed)]),
    (
        "eventual_stamps_refused",
        "Stamps of others refused because they were too far ahead of this node's clock",
        "",
        &[("", |s| s.clock_refused)],
    ),
    (
        "eventual_messages_refused",
        "Messages of others refused: of strangers or another epoch, or of senders below what was forgotten here",
        "reason",
        &[("stranger", |s| s.strangers), ("below_floor", |s| s.below_floor)],
    ),
    ("eventual_push_gaps", "Pushes that came before their predecessors", "", &[("", |s| s.gaps)]),
    (
        "eventual_sessions",
        "Anti-entropy sessions that ended, by how",
        "outcome",
        &[("complete", |s| s.sessions), ("interrupted", |s| s.interrupted)],
    ),
    ("eventual_tombstones_forgotten", "Tombstones forgotten", "", &[("", |s| s.forgotten)]),
];

/// What is shown when the metrics are asked for.
#[derive(Clone, Default)]
pub(super) struct Convergence {
    latest: Arc<Mutex<Vec<NamespaceStatus>>>,
}

impl fmt::Debug for Convergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Convergence")
    }
}

impl Convergence {
    /// Replaces what is shown.
    pub(super) fn show(&self, namespaces: &[NamespaceStatus]) {
        let eventual = namespaces.iter().filter(|status| status.eventual.is_some()).cloned().collect();
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = eventual;
    }
}

impl Collector for Convergence {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let replicas: Vec<(String, &NamespaceStatus, &EventualStatus)> =
            latest.iter().filter_map(|s| s.eventual.as_ref().map(|e| (s.name.to_string(), s, e))).collect();
        let replicas = &replicas[..];
        if replicas.is_empty() {
            return Ok(());
        }
        for (name, unit, help, value) in GAUGES {
            let samples = replicas.iter().map(|(of, _, e)| (vec![("namespace", of.clone())], value(e)));
            gauges(&mut out, name, unit.as_ref(), help, samples)?;
        }
        let help = "Writes of this node that the member is not known to hold";
        let samples = replicas.iter().flat_map(|(of, status, _)| {
            let label = move |m: u32| vec![("namespace", of.clone()), ("member", m.to_string())];
            status.members.iter().map(move |m| (label(m.node.0), m.lag as f64))
        });
        gauges(&mut out, "eventual_member_lag_writes", None, help, samples)?;
        let help = "Up to when the replica durably holds every write of the origin, in Unix time";
        let samples = replicas.iter().flat_map(|(of, _, e)| {
            let label = move |o: u32| vec![("namespace", of.clone()), ("origin", o.to_string())];
            e.frontier.iter().map(move |(origin, upto)| (label(origin.0), seconds(upto.millis())))
        });
        gauges(&mut out, "eventual_frontier_timestamp", Some(&Unit::Seconds), help, samples)?;
        for counter in COUNTERS {
            counters(&mut out, counter, replicas)?;
        }
        converged(&mut out, replicas)
    }
}

fn gauges(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    unit: Option<&Unit>,
    help: &str,
    samples: impl Iterator<Item = (Labels, f64)>,
) -> Result<(), fmt::Error> {
    let mut metric = out.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for (labels, value) in samples {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn counters(
    out: &mut DescriptorEncoder<'_>,
    (name, help, label, values): &Counter,
    replicas: &[(String, &NamespaceStatus, &EventualStatus)],
) -> Result<(), fmt::Error> {
    let mut metric = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (of, _, eventual) in replicas {
        for (which, value) in *values {
            let mut labels = vec![("namespace", of.clone())];
            if !label.is_empty() {
                labels.push((label, (*which).to_owned()));
            }
            let none: Option<&Exemplar<NoLabelSet, f64>> = None;
            metric.encode_family(&labels)?.encode_counter(&value(eventual), none)?;
        }
    }
    Ok(())
}

/// How long this node's writes took to be held by every member.
fn converged(
    out: &mut DescriptorEncoder<'_>,
    replicas: &[(String, &NamespaceStatus, &EventualStatus)],
) -> Result<(), fmt::Error> {
    let help = "Time from a write of this node until every member was known to hold it";
    let unit = Some(&Unit::Seconds);
    let mut metric = out.encode_descriptor("eventual_convergence", help, unit, MetricType::Histogram)?;
    for (of, _, eventual) in replicas {
        let buckets = super::powers(&eventual.converged_ms, 1e-3);
        let (sum, count) = (seconds(eventual.converged_sum_ms), eventual.converged_ms.iter().sum());
        let labels: Labels = vec![("namespace", of.clone())];
        metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}
