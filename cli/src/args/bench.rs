//! `duet bench`.

use std::time::Duration;

use clap::Args;
use duet_bench::{Load, Spread, Workload};
use duet_proto::{Mode, NamespaceName, limits};

use super::duration;

#[derive(Clone, Debug, Args)]
#[allow(missing_docs)]
pub struct Bench {
    /// The namespace; created, and deleted afterwards, unless it exists
    #[arg(default_value = "bench")]
    pub namespace: NamespaceName,
    /// What to do
    #[arg(long, default_value = "put")]
    pub workload: Workload,
    /// How keys are chosen; by default as the workload has it
    #[arg(long)]
    pub keys_chosen: Option<Spread>,
    /// Mode of the namespace if it is created: strong or eventual
    #[arg(long, default_value = "strong")]
    pub mode: Mode,
    /// Clients, each with one request in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub clients: u32,
    /// Connections, each a session, among which the clients are divided
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Requests a second, over all clients: an open loop, where a request counts from when it was due. By default a closed
    /// loop: a client asks again when it has its answer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
    /// Different keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub keys: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=limits::VALUE_MAX as i64))]
    pub value_size: u32,
    /// The keys are there already: an earlier run wrote them into a namespace that had been created for it
    #[arg(long)]
    pub filled: bool,
    /// For how long it measures
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub duration: Duration,
    /// For how long it runs before it measures
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    pub warm_up: Duration,
    /// Reads among the requests of the mixed workload, in percent
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub reads: u8,
    /// Entries of one scan; in YCSB E the most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub scan_entries: u32,
    /// Let reads be answered by whatever the member has applied
    #[arg(long)]
    pub local: bool,
    /// Chooses keys and values
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Bench {
    /// What the generator is to do.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            workload: self.workload,
            spread: self.keys_chosen,
            clients: self.clients,
            keys: self.keys,
            value_size: self.value_size as usize,
            duration: self.duration,
            warm_up: self.warm_up,
            rate: self.rate,
            reads: self.reads,
            scan_entries: self.scan_entries,
            seed: self.seed,
        }
    }
}
