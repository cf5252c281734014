//! `make bench-etcd`: strong namespaces beside etcd, three nodes each, the same load in turns.

use anyhow::Result;
use duet_bench::{
    Workload,
    side::{Bound, Case, Etcd, Figure, Nodes, Of, Options, Samples, System},
};
use duet_client::NewNamespace;
use duet_tests::process::unless_stopped;

/// Connections to etcd; Duet's are an option.
const CONNECTIONS: usize = 8;
const DUET: &str = "duet";
const ETCD: &str = "etcd";

const PUT_256: &str = "strong put, 256 clients";
const GET_256: &str = "linearizable get, 256 clients";
const PUT_1: &str = "strong put, 1 client";
const GET_1: &str = "linearizable get, 1 client";

/// As in `duetd`: the load takes its part of the machine, too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> Result<()> {
    unless_stopped(bench()).await
}

async fn bench() -> Result<()> {
    let options = Options::read();
    let etcd = Etcd::start().await?;
    let nodes = Nodes::start(options.connections).await?;
    let (ours, theirs) =
        (nodes.namespace("bench", NewNamespace::strong()).await?, etcd.connections(CONNECTIONS).await?);
    let systems = || [System::new(DUET, ours.clone()), System::new(ETCD, theirs.clone())];
    for system in systems() {
        system.fill(&options.load(Workload::Get, 1)).await?;
    }
    let cases = [
        (PUT_256, Workload::Put, 256),
        (GET_256, Workload::Get, 256),
        (PUT_1, Workload::Put, 1),
        (GET_1, Workload::Get, 1),
    ];
    let cases = cases.map(|(name, workload, clients)| {
        let load = options.load(workload, clients);
        Case { name, sides: systems().map(|system| (system, load.clone())).into() }
    });
    let mut samples = Samples::default();
    samples.take(options.rounds, &cases).await?;
    let figure = |case, of, bound| Figure { case, of, ours: DUET, theirs: ETCD, bound };
    samples.conclude(
        &options,
        "etcd",
        &[
            figure(PUT_256, Of::PerSecond, Bound::AtLeast(4.0)),
            figure(GET_256, Of::PerSecond, Bound::AtLeast(12.0)),
            figure(PUT_1, Of::P50, Bound::AtMost(0.5)),
            figure(GET_1, Of::P50, Bound::AtMost(0.4)),
            figure(PUT_256, Of::P99, Bound::AtMost(0.4)),
        ],
    )
}
