//! The store's and the committer's figures, read when they are asked for.

use std::{fmt, sync::Arc};

use duet_store::{Committer, Store};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
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
        let buckets = super::buckets_of_ms(&commit.took_ms);
        let help = "Time to write and sync one group";
        let unit = Some(&Unit::Seconds);
        let mut metric = out.encode_descriptor("commit_duration", help, unit, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(commit.busy_us as f64 / 1e6, commit.groups, &buckets, None)
    }
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
