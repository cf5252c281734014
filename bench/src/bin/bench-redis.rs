//! `make bench-redis`: eventual namespaces, acknowledged by one synced copy, beside redis that syncs every write and has two
//! replicas, plain and over TLS; the same load in turns.

use anyhow::Result;
use duet_bench::{
    Workload,
    side::{Bound, Case, Figure, Nodes, Of, Options, Redis, Samples, System},
};
use duet_client::NewNamespace;
use duet_tests::process::unless_stopped;

/// Connections to redis; Duet's are an option.
const CONNECTIONS: usize = 8;
const DUET: &str = "duet";
const PLAIN: &str = "redis";
const TLS: &str = "redis TLS";

const PUT_256: &str = "eventual put, 256 clients";
const GET_256: &str = "eventual get, 256 clients";
const PUT_1: &str = "eventual put, 1 client";

/// As in `duetd`: the load takes its part of the machine, too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> Result<()> {
    unless_stopped(bench()).await
}

async fn bench() -> Result<()> {
    let options = Options::read();
    let (plain, tls) = (Redis::start(false).await?, Redis::start(true).await?);
    let nodes = Nodes::start(options.connections).await?;
    let ours = nodes.namespace("bench", NewNamespace::eventual()).await?;
    let (plain, tls) = (plain.connections(CONNECTIONS).await?, tls.connections(CONNECTIONS).await?);
    let systems =
        || [System::new(DUET, ours.clone()), System::new(PLAIN, plain.clone()), System::new(TLS, tls.clone())];
    for system in systems() {
        system.fill(&options.load(Workload::Get, 1)).await?;
    }
    let cases = [(PUT_256, Workload::Put, 256), (GET_256, Workload::Get, 256), (PUT_1, Workload::Put, 1)];
    let cases = cases.map(|(name, workload, clients)| {
        let load = options.load(workload, clients);
        Case { name, sides: systems().map(|system| (system, load.clone())).into() }
    });
    let mut samples = Samples::default();
    samples.take(options.rounds, &cases).await?;
    let figure = |case, of, theirs, bound| Figure { case, of, ours: DUET, theirs, bound };
    samples.conclude(
        &options,
        "redis",
        &[
            figure(PUT_256, Of::PerSecond, PLAIN, Bound::AtLeast(0.8)),
            figure(PUT_256, Of::PerSecond, TLS, Bound::AtLeast(1.5)),
            figure(GET_256, Of::PerSecond, TLS, Bound::AtLeast(3.0)),
            figure(PUT_1, Of::P50, PLAIN, Bound::AtMost(1.3)),
        ],
    )
}
