//! The simulation: whole nodes on one thread, with everything that can go wrong drawn from a seed.
//!
//! The nodes are the daemon's own code, with the real quinn, rustls and raft. What is replaced is what touches a machine:
//! time is tokio's, paused; the network is [`duet_transport::sim`]; the disk is the store's memory twin, which loses what
//! was not synced; the wall clock jumps. One seed decides everything, so a failing seed is the whole bug report.
//!
//! [`Plan`] says what happens; [`World`] makes it happen; the workload's clients record a [`History`] of what they asked and
//! were told; [`run`] puts it all before the checkers.

mod audit;
mod crossing;
mod eventual;
mod nemesis;
mod plan;
mod sessions;
mod switcher;
mod switching;
mod watch;
mod workload;
mod world;

use std::{fmt, future::Future, time::Duration};

use tokio::time::Instant;

pub use eventual::{EventualPlan, EventualReport, run_eventual};
pub use plan::{Fault, Plan};
pub use switcher::Switches;
pub use switching::{LandPlan, SwitchPlan, SwitchReport, run_switching};
pub use world::{Bug, Planted, World};

use crate::checker::{History, Verdict, linearizable, stamps_rise};

/// The seeds to run: `DUET_SIM_SEEDS` of them (`usual` where that is not set), from `DUET_SIM_FROM` on.
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let from = number("DUET_SIM_FROM").unwrap_or(0);
    from..from + number("DUET_SIM_SEEDS").unwrap_or(usual)
}

/// After everything has healed, the cluster must answer and agree within this time.
const RECOVERY: Duration = Duration::from_secs(60);

/// What came of a run in which nothing was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Operations in the history.
    pub operations: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Operations of unknown outcome.
    pub unknown: usize,
    /// Requests that were refused, so that nothing was done.
    pub refused: usize,
    /// A number that depends on every packet and every answer: equal for equal runs.
    pub fingerprint: u64,
}

/// A run in which something was wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The seed.
    pub seed: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}\nrun it again: make sim FROM={} SEEDS=1", self.seed, self.what, self.seed)
    }
}

/// Runs one seed.
///
/// # Errors
/// Whatever the checkers found.
pub fn run(plan: &Plan, planted: Option<Planted>) -> Result<Report, Finding> {
    simulate(plan.seed, drive(plan, planted.map(Bug::Strong)))
}

/// Lets a run happen on one thread, in simulated time.
fn simulate<T>(seed: u64, run: impl Future<Output = Result<T, String>>) -> Result<T, Finding> {
    let finding = |what| Finding { seed, what };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| finding(format!("no runtime: {error}")))?;
    let result = runtime.block_on(run);
    drop(runtime);
    result.map_err(finding)
}

async fn drive(plan: &Plan, planted: Option<Bug>) -> Result<Report, String> {
    let mut world = World::start(plan, planted).await?;
    workload::create_namespace(&mut world, plan).await?;
    let clients = workload::start(&mut world, plan).await?;
    world.live_through(plan).await?;
    let (mut history, refused) = clients.finish().await?;
    world.heal().await?;
    workload::read_everything(&mut world, plan, &mut history, Instant::now() + RECOVERY).await?;
    world.agree(Instant::now() + RECOVERY).await?;
    let report = judge(plan, &history, refused, world.fingerprint())?;
    world.stop();
    Ok(report)
}

fn judge(plan: &Plan, history: &History, refused: usize, packets: u64) -> Result<Report, String> {
    match linearizable(history) {
        Verdict::Linearizable => {}
        Verdict::Undecided => return Err("the checker could not decide in time".into()),
        Verdict::Broken(told) => return Err(format!("not linearizable:\n  {}", told.join("\n  "))),
    }
    stamps_rise(history)?;
    let fingerprint = fingerprint(packets, &format!("{:?}", history.operations()));
    let operations = history.operations();
    Ok(Report {
        seed: plan.seed,
        operations: operations.len(),
        acknowledged: operations.iter().filter(|o| o.stamp.is_some()).count(),
        unknown: operations.iter().filter(|o| o.returned.is_none()).count(),
        refused,
        fingerprint,
    })
}

/// A number that depends on every byte that was told.
fn fingerprint(packets: u64, told: &str) -> u64 {
    told.bytes().fold(packets, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
