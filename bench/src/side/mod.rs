//! The same load before several systems, in turns, on one machine.
//!
//! ```text
//! for each round: for each case: for each system of it: load it for some seconds, while the others idle
//!                                      └─▶ Samples ─▶ Figure: a ratio for each round, their median and spread
//! ```
//!
//! Absolute figures drift with the machine, so a ratio is taken within a round, between measurements that followed each other.

mod clusters;
#[cfg(feature = "peers")]
mod etcd;
mod figures;
#[cfg(feature = "peers")]
mod redis;
#[cfg(feature = "peers")]
mod server;

use std::{collections::BTreeMap, fs, path::PathBuf, pin::Pin, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::time::sleep;

pub use clusters::Nodes;
#[cfg(feature = "peers")]
pub use etcd::Etcd;
pub use figures::{Bound, Figure, Of, thousands};
#[cfg(feature = "peers")]
pub use redis::Redis;

use crate::{Load, LoadError, Report, Target};

/// Between two measurements, so that what one left to do does not weigh on the next.
const SETTLE: Duration = Duration::from_millis(500);
/// After a system was filled: a second for so many keys, at most a minute, for compaction to catch up.
const SETTLED_KEYS: u64 = 250_000;

/// How much is measured.
#[derive(Clone, Debug, clap::Parser)]
#[command(about = None)]
pub struct Options {
    /// Where the figures go, as JSON
    pub folder: PathBuf,
    /// Rounds: each measures every system once with every load
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of a measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Keys, and records where their number is not what is compared
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Records of the large namespace of bench-scale
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub records: u64,
    /// Clients of Duet, each with a connection and a session of its own, among which the load is divided
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// A quick look: one round of a second each, few keys
    #[arg(long)]
    pub short: bool,
}

impl Options {
    /// The command line's.
    #[must_use]
    pub fn read() -> Options {
        let mut options = <Options as clap::Parser>::parse();
        if options.short {
            options = Options { rounds: 1, seconds: 1, keys: 5_000, records: options.records.min(50_000), ..options };
        }
        options
    }

    /// A load of so many clients, of 256-byte values.
    #[must_use]
    pub fn load(&self, workload: crate::Workload, clients: u32) -> Load {
        Load {
            workload,
            clients,
            keys: self.keys,
            duration: Duration::from_secs(self.seconds),
            warm_up: Duration::from_millis(if self.short { 300 } else { 1000 }),
            ..Load::default()
        }
    }
}

type Running = Pin<Box<dyn Future<Output = Result<Report, LoadError>> + Send>>;
type Filling = Pin<Box<dyn Future<Output = Result<(), LoadError>> + Send>>;

/// A system under load.
pub struct System {
    name: &'static str,
    run: Box<dyn Fn(Load) -> Running>,
    fill: Box<dyn Fn(Load) -> Filling>,
}

impl System {
    /// One that is reached through these.
    pub fn new<T: Target>(name: &'static str, targets: Vec<T>) -> System {
        let all = targets.clone();
        let run = move |load: Load| -> Running {
            let targets = targets.clone();
            Box::pin(async move { crate::run(&load, &targets, |_| ()).await })
        };
        let fill = move |load: Load| -> Filling {
            let targets = all.clone();
            Box::pin(async move { crate::fill(&load, &targets).await })
        };
        System { name, run: Box::new(run), fill: Box::new(fill) }
    }

    /// Writes the keys of a load.
    ///
    /// # Errors
    /// If that fails.
    pub async fn fill(&self, load: &Load) -> Result<()> {
        tell(&format!("{}: writing {} keys …", self.name, thousands(load.keys as f64)));
        (self.fill)(load.clone()).await.with_context(|| format!("filling {}", self.name))?;
        sleep(Duration::from_secs((load.keys / SETTLED_KEYS).min(60))).await;
        Ok(())
    }
}

/// A load that some systems are compared under.
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// What each system is asked.
    pub sides: Vec<(System, Load)>,
}

/// What was measured, by case and system, a report for each round.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<(&'static str, &'static str), Vec<Report>>);

impl Samples {
    /// Measures every case so many times.
    ///
    /// # Errors
    /// If a load does not run. Requests that fail are part of what is measured.
    pub async fn take(&mut self, rounds: u32, cases: &[Case]) -> Result<()> {
        for round in 1..=rounds {
            for case in cases {
                for (system, load) in &case.sides {
                    sleep(SETTLE).await;
                    let report = (system.run)(load.clone()).await.with_context(|| system.name)?;
                    let latency = report.all.latency_us;
                    tell(&format!(
                        "round {round} of {rounds}  {:<34} {:<10} {:>9}/s  p50 {:>7} µs  p99 {:>8} µs{}",
                        case.name,
                        system.name,
                        thousands(report.all.per_second),
                        thousands(latency.p50 as f64),
                        thousands(latency.p99 as f64),
                        failures(&report).map(|text| format!("  ✗ {text}")).unwrap_or_default(),
                    ));
                    self.0.entry((case.name, system.name)).or_default().push(report);
                }
            }
        }
        Ok(())
    }

    /// One number of each round.
    fn of(&self, case: &str, system: &str, of: Of) -> Vec<f64> {
        let reports = self.0.iter().find(|((c, s), _)| *c == case && *s == system).map(|(_, reports)| reports);
        reports.into_iter().flatten().map(|report| of.read(report)).collect()
    }

    /// Prints the figures as a table and writes them, with everything that was measured, as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn conclude(&self, options: &Options, name: &str, figures: &[Figure]) -> Result<()> {
        tell("");
        tell(&figures::table(self, figures));
        for ((case, system), reports) in &self.0 {
            for (round, report) in (1..).zip(reports) {
                if let Some(text) = failures(report) {
                    tell(&format!("✗ {case}, {system}, round {round}: {text}"));
                }
            }
        }
        let sample = |((case, system), reports): (&(&str, &str), &Vec<Report>)| json!({ "load": case, "system": system, "rounds": reports });
        let samples: Vec<_> = self.0.iter().map(sample).collect();
        let figures: Vec<_> = figures.iter().map(|figure| figure.document(self)).collect();
        let cores = std::thread::available_parallelism().map(usize::from).unwrap_or_default();
        let document = json!({
            "bench": name,
            "cores": cores,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "keys": options.keys,
            "connections": options.connections,
            "figures": figures,
            "samples": samples,
        });
        fs::create_dir_all(&options.folder)?;
        let path = options.folder.join(format!("{name}.json"));
        fs::write(&path, serde_json::to_string_pretty(&document)? + "\n")?;
        tell(&format!("written: {}", path.display()));
        Ok(())
    }
}

fn failures(report: &Report) -> Option<String> {
    let codes: Vec<String> = report.errors.iter().map(|(code, times)| format!("{times} × {code}")).collect();
    (!codes.is_empty()).then(|| codes.join(", "))
}

/// A line of what these programs are for.
#[allow(clippy::print_stdout, reason = "their output is their purpose")]
pub fn tell(text: &str) {
    println!("{text}");
}
