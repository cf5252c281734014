//! Runs with namespaces that are switched back and forth while they are in use, under the same faults.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use duet_proto::{Mode, NamespaceStatus, NodeId, Phase};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep};

use super::{
    Bug, Fault, Finding, Plan, RECOVERY, World,
    crossing::{self, Land},
    fingerprint,
    sessions::Tally,
    simulate,
    switcher::{self, Switches},
};
use crate::checker::eventual::Holding;

/// How long a switch may take once everything has healed, in simulated time.
const PROMPT: Duration = Duration::from_secs(20);

/// Everything about such a run that the seed decides.
#[derive(Clone, Debug)]
pub struct SwitchPlan {
    /// The machines, the network and the faults.
    pub base: Plan,
    /// The namespaces.
    pub lands: Vec<LandPlan>,
    /// How many clients each of them has.
    pub clients: u32,
    /// How many keys they share.
    pub keys: u16,
    /// Deletes, of a hundred writes.
    pub deletes_percent: u32,
    /// The longest pause between two switches of a namespace, in milliseconds.
    pub pause_ms: u64,
    /// Switches that are to go on without a member, of a hundred that can.
    pub without_percent: u32,
    /// Switches that are aborted, of a hundred.
    pub aborts_percent: u32,
    /// How much too fast each node's clock goes, in millionths.
    pub drift_ppm: Vec<i64>,
}

/// A namespace of such a run.
#[derive(Clone, Copy, Debug)]
pub struct LandPlan {
    /// Its first mode.
    pub mode: Mode,
    /// How many copies an eventual write needs.
    pub copies: u32,
    /// How many members there are.
    pub replicas: u32,
}

impl SwitchPlan {
    /// Draws a plan.
    #[must_use]
    pub fn draw(seed: u64) -> SwitchPlan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5717_c4ed);
        let mut base = Plan { readers: 0, keys: 2, ..Plan::draw(seed) };
        base.work = Duration::from_secs(rng.random_range(8..=14));
        // Fewer faults than elsewhere: each may hold up all the switches of a run, which are what is to be seen.
        let calm = rng.random_range(1..=3);
        base.faults = base.faults.into_iter().step_by(calm).collect();
        let drifts = rng.random_ratio(1, 3);
        let drift_ppm =
            (0..base.nodes).map(|_| if drifts { rng.random_range(-20_000..=20_000) } else { 0 }).collect();
        let land = |rng: &mut ChaCha8Rng| LandPlan {
            mode: if rng.random() { Mode::Strong } else { Mode::Eventual },
            copies: rng.random_range(1..=3),
            replicas: rng.random_range(3..=base.nodes),
        };
        let lands: Vec<LandPlan> = (0..rng.random_range(2..=4)).map(|_| land(&mut rng)).collect();
        let clients = rng.random_range(2..=3);
        base.clients = clients * lands.len() as u32;
        SwitchPlan {
            lands,
            clients,
            keys: rng.random_range(2..=8),
            deletes_percent: rng.random_range(5..40),
            pause_ms: rng.random_range(50..600),
            without_percent: rng.random_range(0..40),
            aborts_percent: rng.random_range(0..15),
            drift_ppm,
            base,
        }
    }
}

impl SwitchPlan {
    /// A plan in which one member after another is cut off for about as long as it takes to switch a namespace and back:
    /// what it was asked before comes to the others when they are two epochs further.
    #[must_use]
    pub fn ambush(seed: u64) -> SwitchPlan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut plan = SwitchPlan::draw(seed);
        let base = &mut plan.base;
        (base.nodes, base.replicas, base.clients) = (3, 3, 8);
        (base.loss_permille, base.duplicate_permille, base.reorder_permille) = (0, 0, 0);
        base.work = Duration::from_secs(20);
        base.faults.clear();
        let mut at = Duration::from_millis(500);
        while at < base.work {
            let (side, heal) = (vec![rng.random_range(1..=3)], Duration::from_millis(rng.random_range(2300..3600)));
            base.faults.push((at, Fault::Partition { side, one_way: false, heal }));
            at += heal + Duration::from_millis(rng.random_range(100..700));
        }
        plan.lands = [1, 2].map(|copies| LandPlan { mode: Mode::Strong, copies, replicas: 3 }).into();
        (plan.clients, plan.pause_ms, plan.aborts_percent, plan.without_percent) = (4, 100, 0, 0);
        plan.drift_ppm.clear();
        plan
    }
}

/// What came of a run in which nothing was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchReport {
    /// The seed.
    pub seed: u64,
    /// Of the switches.
    pub switches: Switches,
    /// Of the clients.
    pub clients: Tally,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// A number that depends on every packet and every answer: equal for equal runs.
    pub fingerprint: u64,
}

/// Runs one seed.
///
/// # Errors
/// Whatever the checkers found.
pub fn run_switching(plan: &SwitchPlan, planted: Option<Bug>) -> Result<SwitchReport, Finding> {
    simulate(plan.base.seed, drive(plan, planted))
}

async fn drive(plan: &SwitchPlan, planted: Option<Bug>) -> Result<SwitchReport, String> {
    let mut world = World::start(&plan.base, planted).await?;
    (1..).zip(&plan.drift_ppm).for_each(|(node, ppm)| world.drift(node, *ppm));
    let lands = crossing::create(&mut world, plan).await?;
    let at_work = crossing::start(&mut world, plan, &lands).await?;
    let switching = switcher::start(&mut world, plan, &lands).await?;
    world.live_through(&plan.base).await?;
    let mut switches = switching.finish().await?;
    let clients = at_work.finish().await?;
    world.heal().await?;
    world.set_clocks(0);
    for land in &lands {
        // What is under way ends; then it goes both ways once more, in time.
        switcher::rest(&mut world, land, RECOVERY, &mut switches).await?;
        switcher::there_and_back(&mut world, land, PROMPT, &mut switches).await?;
    }
    for land in &lands {
        settle(&world, land, Instant::now() + RECOVERY).await?;
    }
    world.agree(Instant::now() + RECOVERY).await?;
    for land in &lands {
        at_the_end(&mut world, plan, land).await?;
    }
    let acknowledged = lands.iter().map(|land| land.chronicle().journal().acknowledged()).sum();
    let told: Vec<String> = lands.iter().map(|land| format!("{:?}", land.chronicle().told())).collect();
    let fingerprint = fingerprint(world.fingerprint(), &told.concat());
    world.stop();
    Ok(SwitchReport { seed: plan.base.seed, switches, clients, acknowledged, fingerprint })
}

/// Waits until every member is in the last epoch and in nothing else, and all hold the same.
async fn settle(world: &World, land: &Arc<Land>, deadline: Instant) -> Result<(), String> {
    loop {
        match unsettled(world, land).await? {
            None => return Ok(()),
            Some(what) if Instant::now() >= deadline => {
                return Err(format!("{} does not settle: {what}", land.name));
            }
            Some(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// What is still to be done; an error if that can never be.
async fn unsettled(world: &World, land: &Land) -> Result<Option<String>, String> {
    let (epoch, mode) = land.now();
    let statuses = world.statuses().await;
    let mut first = None;
    for node in &land.members {
        let all: Vec<&NamespaceStatus> =
            statuses.get(node).into_iter().flatten().filter(|status| status.id == land.id).collect();
        let [status] = all[..] else {
            let epochs: Vec<_> = all.iter().map(|status| (status.epoch, status.mode)).collect();
            return Ok(Some(format!("node {node} has replicas of {epochs:?}")));
        };
        if (status.epoch, status.mode, status.phase) != (epoch, mode, Phase::Stable) {
            return Ok(Some(format!("node {node} is elsewhere than in epoch {epoch}, {mode}: {status:?}")));
        }
        if let Some(eventual) = &status.eventual {
            let alarms = (eventual.digest_mismatches, eventual.conflicting_markers, eventual.damaged);
            if alarms != (0, 0, 0) {
                return Err(format!("{} on node {node} has raised an alarm: {eventual:?}", land.name));
            }
            if !eventual.whole || eventual.lag_writes > 0 || eventual.lag_ms > 0 || eventual.fence.is_some() {
                return Ok(Some(format!("node {node} says {eventual:?}")));
            }
        }
        let now = (status.digest, status.keys, status.tombstones);
        if now.2 > 0 {
            return Ok(Some(format!("node {node} remembers {} deletes", now.2)));
        }
        if *first.get_or_insert(now) != now {
            return Ok(Some(format!("node {node} says {now:?}, others {first:?}")));
        }
    }
    let records = world.disks().records(land.id)?;
    let held: BTreeSet<_> = land.members.iter().map(|node| records.get(node)).collect();
    Ok((held.len() != 1).then(|| format!("the disks differ: {records:?}")))
}

/// Nothing acknowledged is missing, no delete was undone, everything that clients were told fits together, and they are
/// shown what lies on the disks.
async fn at_the_end(world: &mut World, plan: &SwitchPlan, land: &Land) -> Result<(), String> {
    let found = crossing::read_everything(world, plan, land, Instant::now() + RECOVERY).await?;
    let records = world.disks().records(land.id)?;
    let told = |what: String| format!("{}: {what}\nepochs: {:?}", land.name, land.epochs());
    for node in &land.members {
        let records = records.get(node).cloned().unwrap_or_default();
        for (key, (stamp, value)) in &records {
            land.chronicle().found(*key, *stamp, *value).map_err(told)?;
        }
        for (key, found) in &found {
            let held = records.get(key).and_then(|(stamp, value)| Some((*stamp, (*value)?)));
            if *found != held {
                let what = format!("key {key} is {found:?} for a client, and {held:?} on node {node}");
                return Err(told(what));
            }
        }
        let holding = Holding { frontier: BTreeMap::<NodeId, _>::new(), records };
        let complete = land.chronicle().complete(&land.epochs(), &holding);
        complete.map_err(|what| told(format!("node {node}: {what}")))?;
    }
    land.chronicle().judge(&land.epochs()).map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_everything() {
        let draw = |seed| format!("{:?}", SwitchPlan::draw(seed));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
