//! `make bench-scale`: what size costs, Duet beside itself.
//!
//! Ten million records beside a hundred thousand, in clusters of their own, as one store would hold them both; and a hundred
//! namespaces written at once beside one, in the same cluster. Each in both modes.

use anyhow::Result;
use duet_bench::{
    Duet, Load, Workload,
    side::{Bound, Case, Figure, Nodes, Of, Options, Samples, System},
};
use duet_client::{Mode, NewNamespace};
use duet_tests::process::unless_stopped;

/// Namespaces written at once.
const NAMESPACES: usize = 100;
/// Clients.
const CLIENTS: u32 = 256;
const LARGE: &str = "large";
const SMALL: &str = "small";
const MANY: &str = "many";
const ONE: &str = "one";

/// What the loads of a mode are called.
struct Names {
    put: &'static str,
    get: &'static str,
    namespaces: &'static str,
}

const STRONG: Names = Names {
    put: "strong put, by records",
    get: "linearizable get, by records",
    namespaces: "strong put, by namespaces",
};
const EVENTUAL: Names = Names {
    put: "eventual put, by records",
    get: "eventual get, by records",
    namespaces: "eventual put, by namespaces",
};

/// As in `duetd`: the load takes its part of the machine, too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> Result<()> {
    unless_stopped(bench()).await
}

async fn bench() -> Result<()> {
    let options = Options::read();
    let mut samples = Samples::default();
    let mut figures = Vec::new();
    for (mode, names) in [(Mode::Strong, STRONG), (Mode::Eventual, EVENTUAL)] {
        let new = NewNamespace { mode, ..NewNamespace::strong() };
        records(&options, &mut samples, &names, &new).await?;
        namespaces(&options, &mut samples, &names, &new).await?;
        let figure = |case, ours, theirs, bound| Figure { case, of: Of::PerSecond, ours, theirs, bound };
        figures.extend([
            figure(names.put, LARGE, SMALL, Bound::AtLeast(0.7)),
            figure(names.get, LARGE, SMALL, Bound::AtLeast(0.7)),
            figure(names.namespaces, MANY, ONE, Bound::AtLeast(0.9)),
        ]);
    }
    samples.conclude(&options, "scale", &figures)
}

/// Two clusters, one of which holds more.
async fn records(options: &Options, samples: &mut Samples, names: &Names, new: &NewNamespace) -> Result<()> {
    let (large, small) = (Nodes::start(options.connections).await?, Nodes::start(options.connections).await?);
    let mut sides = Vec::new();
    for (name, nodes, keys) in [(LARGE, &large, options.records), (SMALL, &small, options.keys)] {
        let load = |workload| Load { keys, ..options.load(workload, CLIENTS) };
        let targets = nodes.namespace("bench", new.clone()).await?;
        System::new(name, targets.clone()).fill(&load(Workload::Get)).await?;
        sides.push((name, targets, load(Workload::Put), load(Workload::Get)));
    }
    let side = |(name, targets, put, get): &(&'static str, Vec<Duet>, Load, Load), workload| {
        let load = if workload == Workload::Put { put } else { get };
        (System::new(name, targets.clone()), load.clone())
    };
    let case = |name, workload| Case { name, sides: sides.iter().map(|one| side(one, workload)).collect() };
    samples.take(options.rounds, &[case(names.put, Workload::Put), case(names.get, Workload::Get)]).await
}

/// One cluster, the same load over the same number of keys, spread over namespaces and in one.
async fn namespaces(options: &Options, samples: &mut Samples, names: &Names, new: &NewNamespace) -> Result<()> {
    let nodes = Nodes::start(options.connections).await?;
    let mut targets = Vec::new();
    for number in 0..NAMESPACES {
        let opened = nodes.namespace(&format!("bench-{number:03}"), new.clone()).await?;
        // Each by way of one client, in turns: with all of them there would be more handles than clients of the load.
        targets.extend(opened.into_iter().cycle().nth(number));
    }
    let one = nodes.namespace("bench", new.clone()).await?;
    let load = options.load(Workload::Put, CLIENTS);
    let spread = Load { keys: (load.keys / NAMESPACES as u64).max(1), ..load.clone() };
    let sides = vec![(System::new(MANY, targets), spread), (System::new(ONE, one), load)];
    samples.take(options.rounds, &[Case { name: names.namespaces, sides }]).await
}
