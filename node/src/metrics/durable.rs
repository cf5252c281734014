//! The store's and the committer's figures, read when they are asked for.

use std::{fmt, sync::Arc};

use duet_store::{Committer, Store, Tables};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, exemplar::Exemplar, gauge::ConstGauge},
    registry::Unit,
};

/// Reads the durable side of a node.
pub(crate) struct Durable {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) committer: Committer,
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Durable")
    }
}

impl Collector for Durable {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let commit = self.committer.stats();
        let store = self.store.stats();
        for (name, help, value) in [
            ("commit_batches", "Batches made durable", commit.batches),
            ("commit_groups", "Writes with one sync; batches per group shared it", commit.groups),
            ("commit_bytes", "Bytes made durable", commit.bytes),
            ("store_writes", "Batches written to the store", store.writes),
            ("store_written_bytes", "Bytes written to the store", store.written_bytes),
            ("store_syncs", "Syncs of the store's log", store.syncs),
        ] {
            put(&mut out, name, help, None, &ConstCounter::new(value))?;
        }
        for (name, help, us) in [
            ("commit_busy", "Time spent writing and syncing groups", commit.busy_us),
            ("store_sync", "Time spent syncing the store's log", store.sync_us),
        ] {
            put(&mut out, name, help, Some(&Unit::Seconds), &ConstCounter::new(us as f64 / 1e6))?;
        }
        for (name, help, value) in [
            ("commit_queue", "Batches that wait to be durable", commit.queued),
            ("store_memory_bytes", "Memory of the store's tables and caches", store.memory_bytes),
            ("store_disk_bytes", "Size of the store's tables on disk", store.disk_bytes),
            ("store_pending_compaction_bytes", "Bytes that wait for compaction", store.pending_compaction_bytes),
            ("store_stalled", "1 while compaction holds writes up", store.stalled.into()),
        ] {
            put(&mut out, name, help, None, &ConstGauge::new(value))?;
        }
        let help = "Time to write and sync one group";
        let (seconds, buckets) = (commit.busy_us as f64 / 1e6, super::powers(&commit.took_ms, 1e-3));
        let mut metric =
            out.encode_descriptor("commit_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(seconds, commit.groups, &buckets, None)?;
        let buckets = super::powers(&commit.held, 1.0);
        let mut metric =
            out.encode_descriptor("commit_group_batches", "Batches in a group", None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(commit.batches as f64, commit.groups, &buckets, None)?;
        self.store.tables().map_or(Ok(()), |of| tables(&mut out, &of))
    }
}

/// What the store does in the background.
fn tables(out: &mut DescriptorEncoder<'_>, tables: &Tables) -> Result<(), fmt::Error> {
    let families = || tables.families.iter().map(|of| (("family", of.family.name()), of));
    let memory = families().map(|(family, of)| (vec![family], of.memtable_bytes));
    gauges(out, "store_memtable_bytes", "Bytes in memory that are in no table file yet", memory)?;
    const NUMBERS: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];
    let levels: Vec<_> = families()
        .flat_map(|(family, of)| of.levels.iter().zip(NUMBERS).map(move |(l, n)| (vec![family, ("level", n)], l)))
        .collect();
    let files = levels.iter().map(|(labels, level)| (labels.clone(), level.files));
    gauges(out, "store_level_files", "Table files, by column family and level", files)?;
    let bytes = levels.iter().map(|(labels, level)| (labels.clone(), level.bytes));
    gauges(out, "store_level_bytes", "Bytes of table files, by column family and level", bytes)?;
    let cache = [("used", tables.cache_used), ("pinned", tables.cache_pinned), ("capacity", tables.cache_capacity)];
    let cache = cache.map(|(state, bytes)| (vec![("state", state)], bytes));
    gauges(out, "store_cache_bytes", "The cache of blocks: what it holds, must hold, and may hold", cache)?;
    let jobs = [("flush", tables.flushes), ("compaction", tables.compactions)];
    let jobs = jobs.map(|(job, running)| (vec![("job", job)], running));
    gauges(out, "store_jobs_running", "Flushes and compactions that run now", jobs)?;
    let help = "Flushes and compactions that failed";
    put(out, "store_background_errors", help, None, &ConstCounter::new(tables.background_errors))?;
    let help = "How often writes were held up for compaction to keep up";
    let mut metric = out.encode_descriptor("store_stalls", help, None, MetricType::Counter)?;
    for (event, count) in [("slowed", tables.slowdowns), ("stopped", tables.stops)] {
        let none: Option<&Exemplar<NoLabelSet, u64>> = None;
        metric.encode_family(&[("event", event)])?.encode_counter(&count, none)?;
    }
    Ok(())
}

type Labels = Vec<(&'static str, &'static str)>;

fn gauges(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels, u64)>,
) -> Result<(), fmt::Error> {
    let mut metric = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn put(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &impl EncodeMetric,
) -> Result<(), fmt::Error> {
    metric.encode(out.encode_descriptor(name, help, unit, metric.metric_type())?)
}
