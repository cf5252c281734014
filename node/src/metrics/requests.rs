//! Requests of clients: how many, how they ended and how long they took; of every kind, and of every namespace.
//!
//! Every request comes by here, so all of it is atomics that nobody waits for. Two locks are on the way: that of the
//! list of namespaces, which is read alone but for the first request to one, and that of the errors' names, which
//! requests that end well do not take.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use duet_proto::{Answered, NamespaceName, Op, Request, Response};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Topology,
    Status,
    Admin,
    Get,
    Scan,
    Write,
    Cas,
    Txn,
    /// It cannot be read.
    Malformed,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Topology,
        Kind::Status,
        Kind::Admin,
        Kind::Get,
        Kind::Scan,
        Kind::Write,
        Kind::Cas,
        Kind::Txn,
        Kind::Malformed,
    ];

    pub(crate) fn of(request: &Request) -> Kind {
        match request {
            Request::Topology => Kind::Topology,
            Request::Status => Kind::Status,
            Request::Admin(_) => Kind::Admin,
            Request::Data(data) => match data.op {
                Op::Get { .. } => Kind::Get,
                Op::Scan { .. } => Kind::Scan,
                Op::Write { .. } => Kind::Write,
                Op::CompareAndSet { .. } => Kind::Cas,
                Op::Transaction { .. } => Kind::Txn,
            },
        }
    }

    fn label(self) -> &'static str {
        match self {
            Kind::Topology => "topology",
            Kind::Status => "status",
            Kind::Admin => "admin",
            Kind::Get => "get",
            Kind::Scan => "scan",
            Kind::Write => "write",
            Kind::Cas => "cas",
            Kind::Txn => "txn",
            Kind::Malformed => "malformed",
        }
    }
}

/// A request under way: where it will be counted.
pub(crate) struct Asked {
    kind: Kind,
    namespace: Option<Arc<Namespace>>,
}

/// The figures of a node.
#[derive(Clone, Default)]
pub(crate) struct Requests {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    kinds: [Figures; Kind::ALL.len()],
    namespaces: RwLock<HashMap<NamespaceName, Arc<Namespace>>>,
}

#[derive(Default)]
struct Namespace {
    reads: Figures,
    writes: Figures,
}

impl Namespace {
    fn told(&self, namespace: NamespaceName) -> Answered {
        let mut told =
            Answered { namespace, refused: 0, written: self.writes.ok.load(Relaxed), took: Default::default() };
        for figures in [&self.reads, &self.writes] {
            let errors = figures.errors.lock().unwrap_or_else(PoisonError::into_inner);
            told.refused += errors.values().sum::<u64>();
            told.took.iter_mut().zip(&figures.took).for_each(|(sum, count)| *sum += count.load(Relaxed));
        }
        told
    }
}

#[derive(Default)]
struct Figures {
    /// By the bound that they did not exceed; the last exceeded all.
    took: [AtomicU64; Answered::BOUNDS_US.len() + 1],
    took_ns: AtomicU64,
    ok: AtomicU64,
    /// Those that did not end well, by the error's code.
    errors: Mutex<BTreeMap<&'static str, u64>>,
}

impl Figures {
    fn count(&self, response: &Response, took: Duration) {
        match response {
            Response::Error(error) => {
                let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
                *errors.entry(error.code()).or_default() += 1;
            }
            _ => drop(self.ok.fetch_add(1, Relaxed)),
        }
        let us = took.as_nanos().div_ceil(1000) as u64;
        self.took[Answered::BOUNDS_US.partition_point(|bound| *bound < us)].fetch_add(1, Relaxed);
        self.took_ns.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    /// How many ended how; nothing before the first one.
    fn outcomes(&self) -> Vec<(&'static str, u64)> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let ok = self.ok.load(Relaxed);
        let ok = if ok > 0 || !errors.is_empty() { Some(("ok", ok)) } else { None };
        ok.into_iter().chain(errors.iter().map(|(code, count)| (*code, *count))).collect()
    }

    fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = Answered::BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        bounds.zip(&self.took).map(|(bound, count)| (bound, count.load(Relaxed))).collect()
    }
}

impl Requests {
    /// A request has come. One to a namespace is counted there too if that `exists`, for which is asked once.
    pub(crate) fn asked(&self, request: &Request, exists: impl FnOnce(&NamespaceName) -> bool) -> Asked {
        let namespace = match request {
            Request::Data(data) => self.namespace(&data.namespace, exists),
            _ => None,
        };
        Asked { kind: Kind::of(request), namespace }
    }

    /// A request that cannot be read.
    pub(crate) fn malformed(&self) -> Asked {
        Asked { kind: Kind::Malformed, namespace: None }
    }

    fn namespace(&self, name: &NamespaceName, exists: impl FnOnce(&NamespaceName) -> bool) -> Option<Arc<Namespace>> {
        let known = self.inner.namespaces.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        // A row for every name that somebody makes up would have no end.
        if known.is_some() || !exists(name) {
            return known;
        }
        let mut all = self.inner.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        Some(all.entry(name.clone()).or_default().clone())
    }

    /// A request has been answered.
    pub(crate) fn answered(&self, asked: &Asked, response: &Response, took: Duration) {
        self.inner.kinds[asked.kind as usize].count(response, took);
        if let Some(namespace) = &asked.namespace {
            let figures = match asked.kind {
                Kind::Get | Kind::Scan => &namespace.reads,
                _ => &namespace.writes,
            };
            figures.count(response, took);
        }
    }

    /// What has been answered of each namespace. Those that do not exist any more are forgotten.
    pub(crate) fn told(&self, exists: impl Fn(&NamespaceName) -> bool) -> Vec<Answered> {
        let mut all = self.inner.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|name, _| exists(name));
        let mut told: Vec<Answered> = all.iter().map(|(name, of)| of.told(name.clone())).collect();
        told.sort_by(|a, b| a.namespace.cmp(&b.namespace));
        told
    }
}

/// Figures, and their labels.
type Row<'a> = (Vec<(&'static str, &'a str)>, &'a Figures);

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Requests")
    }
}

impl Collector for Requests {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kinds = Kind::ALL.iter().zip(&self.inner.kinds);
        let rows: Vec<Row<'_>> = kinds.map(|(kind, figures)| (vec![("kind", kind.label())], figures)).collect();
        outcomes(&mut out, "requests", "Requests answered, by kind and outcome", &rows)?;
        times(&mut out, "request_duration", "Time from a request's arrival to its answer", &rows)?;
        let all = self.inner.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        let ordered: BTreeMap<&str, &Namespace> = all.iter().map(|(name, of)| (name.as_str(), &**of)).collect();
        let rows: Vec<Row<'_>> = ordered
            .into_iter()
            .flat_map(|(name, of)| [(name, "read", &of.reads), (name, "write", &of.writes)])
            .map(|(name, op, figures)| (vec![("namespace", name), ("op", op)], figures))
            .collect();
        outcomes(&mut out, "namespace_requests", "Reads and writes answered, by namespace and outcome", &rows)?;
        let help = "Time from the arrival of a read or write to its answer, by namespace";
        times(&mut out, "namespace_request_duration", help, &rows)
    }
}

fn outcomes(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[Row<'_>]) -> Result<(), fmt::Error> {
    let rows: Vec<_> = rows.iter().map(|(labels, figures)| (labels, figures.outcomes())).collect();
    if rows.iter().all(|(_, outcomes)| outcomes.is_empty()) {
        return Ok(());
    }
    let mut metric = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, outcomes) in rows {
        for (outcome, count) in outcomes {
            let labels: Vec<_> = labels.iter().copied().chain([("outcome", outcome)]).collect();
            let none: Option<&Exemplar<NoLabelSet, u64>> = None;
            metric.encode_family(&labels)?.encode_counter(&count, none)?;
        }
    }
    Ok(())
}

fn times(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[Row<'_>]) -> Result<(), fmt::Error> {
    let rows: Vec<_> = rows.iter().map(|(labels, figures)| (labels, figures, figures.buckets())).collect();
    let count = |buckets: &[(f64, u64)]| buckets.iter().map(|(_, count)| count).sum::<u64>();
    if rows.iter().all(|(_, _, buckets)| count(buckets) == 0) {
        return Ok(());
    }
    let mut metric = out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, figures, buckets) in rows {
        let sum = figures.took_ns.load(Relaxed) as f64 / 1e9;
        if count(&buckets) > 0 {
            metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count(&buckets), &buckets, None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use duet_proto::Error;
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;
    use crate::documented::asks;

    fn get(namespace: &str) -> Request {
        asks(namespace, Op::Get { key: "k".into() })
    }

    fn shown(requests: &Requests) -> String {
        let mut registry = Registry::with_prefix("duet");
        registry.register_collector(Box::new(requests.clone()));
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        out
    }

    #[test]
    fn a_namespace_has_rows_from_its_first_request_to_its_end() {
        let requests = Requests::default();
        assert_eq!(shown(&requests), "# EOF\n");
        let asked = requests.asked(&get("orders"), |_| true);
        requests.answered(&asked, &Response::Done, Duration::from_micros(50));
        let again = requests.asked(&get("orders"), |_| unreachable!("it is known"));
        let late = Error::TimedOut { after_ms: 1, why: String::new() };
        requests.answered(&again, &Response::Error(late), Duration::from_secs(11));
        let made_up = requests.asked(&get("made-up"), |_| false);
        requests.answered(&made_up, &Response::Done, Duration::from_micros(51));
        let text = shown(&requests);
        for line in [
            "duet_requests_total{kind=\"get\",outcome=\"ok\"} 2",
            "duet_requests_total{kind=\"get\",outcome=\"timed_out\"} 1",
            "duet_request_duration_seconds_bucket{le=\"0.00005\",kind=\"get\"} 1",
            "duet_request_duration_seconds_bucket{le=\"0.0001\",kind=\"get\"} 2",
            "duet_request_duration_seconds_bucket{le=\"+Inf\",kind=\"get\"} 3",
            "duet_request_duration_seconds_sum{kind=\"get\"} 11.000101",
            "duet_namespace_requests_total{namespace=\"orders\",op=\"read\",outcome=\"ok\"} 1",
            "duet_namespace_requests_total{namespace=\"orders\",op=\"read\",outcome=\"timed_out\"} 1",
            "duet_namespace_request_duration_seconds_count{namespace=\"orders\",op=\"read\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("made-up") && !text.contains("\"write\"") && !text.contains("malformed"), "{text}");
        let told = requests.told(|_| true);
        assert_eq!(
            told.iter().map(|of| (of.namespace.as_str(), of.refused, of.written)).collect::<Vec<_>>(),
            [("orders", 1, 0)]
        );
        let took = |bound: usize| u64::from(bound == 0 || bound == Answered::BOUNDS_US.len());
        assert_eq!(told[0].took, std::array::from_fn(took), "one of 50 µs, and one that took longer than all bounds");
        assert!(requests.told(|name| name.as_str() != "orders").is_empty());
        assert!(!shown(&requests).contains("orders"), "what is gone is forgotten");
    }
}
