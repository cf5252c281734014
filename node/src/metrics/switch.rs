//! Modes and switches: what an operator watches while a namespace changes, and what should not be.

use std::sync::atomic::{AtomicU64, Ordering};

use duet_proto::{Mode, Phase};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Event, Replica, Seen, add};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InMode {
    namespace: String,
    mode: String,
}

/// The gauges.
#[derive(Debug)]
pub(super) struct Switches {
    mode: Family<InMode, Gauge>,
    switching: Family<Replica, Gauge>,
    fenced: Family<Replica, Gauge>,
    unexpected: Family<Replica, Gauge>,
    late: Family<Replica, Gauge<u64, AtomicU64>>,
    events: Family<Event, Counter>,
    held_seconds: Counter<f64, AtomicU64>,
    held_longest: Gauge<f64, AtomicU64>,
}

impl Switches {
    pub(super) fn new(r: &mut Registry) -> Switches {
        let unexpected = "1 if the catalog has another mode than this node's configuration expects";
        let late = "Late writes that wait on this node until they can be brought in";
        let events = "What has happened on this node in switches of modes";
        let held = "How long writes waited here for a change of their namespace, all together";
        let longest = "How long the one did that waited the longest";
        Switches {
            mode: add(r, "namespace_mode", "1 for the mode that the replica is in", Family::default()),
            switching: add(r, "namespace_switching", "1 while the mode is being switched", Family::default()),
            fenced: add(r, "namespace_fenced", "1 while the replica takes no writes for a switch", Family::default()),
            unexpected: add(r, "namespace_mode_unexpected", unexpected, Family::default()),
            late: add(r, "late_writes_waiting", late, Family::default()),
            events: add(r, "switch_events", events, Family::default()),
            held_seconds: add(r, "switch_held_writes_seconds", held, Counter::default()),
            held_longest: add(r, "switch_held_longest_seconds", longest, Gauge::default()),
        }
    }

    pub(super) fn refresh(&self, seen: &Seen<'_>) {
        self.mode.clear();
        self.late.clear();
        [&self.switching, &self.fenced, &self.unexpected].iter().for_each(|family| family.clear());
        for state in &seen.status.namespaces {
            let namespace = state.name.to_string();
            self.mode.get_or_create(&InMode { namespace: namespace.clone(), mode: state.mode.to_string() }).set(1);
            let replica = Replica { namespace };
            self.switching.get_or_create(&replica).set((state.phase == Phase::Switching).into());
            if state.mode == Mode::Eventual {
                let fenced = state.eventual.as_ref().is_some_and(|eventual| eventual.fence.is_some());
                self.fenced.get_or_create(&replica).set(fenced.into());
            }
        }
        for (name, expected) in &seen.status.expected {
            // One that does not exist is in no other mode.
            let other = seen.catalog.iter().any(|info| info.name == *name && info.mode != *expected);
            self.unexpected.get_or_create(&Replica { namespace: name.to_string() }).set(other.into());
        }
        let switches = seen.switches;
        for (event, count) in [
            ("steps", switches.steps),
            ("completed", switches.completed),
            ("given_up", switches.given_up),
            ("writes_held", switches.held),
            ("late_brought", switches.late_brought),
            ("late_refused", switches.late_refused),
        ] {
            self.events.get_or_create(&Event { event }).inner().store(count, Ordering::Relaxed);
        }
        let seconds = |ms: u64| ms as f64 / 1e3;
        self.held_seconds.inner().store(seconds(switches.held_ms).to_bits(), Ordering::Relaxed);
        self.held_longest.set(seconds(switches.held_longest_ms));
        for (name, waiting) in seen.late {
            self.late.get_or_create(&Replica { namespace: name.to_string() }).set(*waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use duet_engine_eventual::Metrics as EventualMetrics;
    use duet_engine_strong::Metrics as StrongMetrics;
    use duet_proto::{Epoch, NamespaceId, NamespaceInfo, NodeStatus};
    use duet_router::Metrics as SwitchMetrics;
    use duet_transport::Stats;
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn a_mode_that_is_not_expected_is_marked() {
        let mut registry = Registry::with_prefix("duet");
        let switches = Switches::new(&mut registry);
        let info = |name: &str, mode| NamespaceInfo {
            id: NamespaceId(1),
            name: name.parse().unwrap(),
            mode,
            epoch: Epoch(2),
            phase: Phase::Stable,
            members: vec![],
            copies: 1,
            leader: None,
        };
        let expected = ["carts", "orders", "nowhere"].map(|name| (name.parse().unwrap(), Mode::Strong));
        let status = NodeStatus { expected: expected.to_vec(), ..NodeStatus::default() };
        switches.refresh(&Seen {
            ready: true,
            hlc_drift_ms: 0,
            catalog: &[info("carts", Mode::Eventual), info("orders", Mode::Strong)],
            late: &[],
            switches: &SwitchMetrics { held: 3, held_ms: 250, ..SwitchMetrics::default() },
            status: &status,
            strong: &StrongMetrics::default(),
            eventual: &EventualMetrics::default(),
            gossip: &BTreeMap::new(),
            transport: &Stats::default(),
        });
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        let marks = [("carts", 1), ("orders", 0), ("nowhere", 0)]
            .map(|(name, marked)| format!("duet_namespace_mode_unexpected{{namespace=\"{name}\"}} {marked}"));
        let held =
            ["duet_switch_events_total{event=\"writes_held\"} 3", "duet_switch_held_writes_seconds_total 0.25"];
        for line in marks.into_iter().chain(held.map(str::to_owned)) {
            assert!(out.lines().any(|l| l == line), "{line} is not in\n{out}");
        }
    }
}
