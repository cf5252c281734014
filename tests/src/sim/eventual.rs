//! Runs with eventual namespaces beside a strong one, under the same faults and clocks that are worse.

use std::{sync::Arc, time::Duration};

use duet_engine_eventual::Planted;
use duet_proto::NamespaceStatus;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep};

use super::{
    Bug, Fault, Finding, Plan, RECOVERY, Report, World,
    audit::Auditor,
    fingerprint, judge,
    sessions::{self, Space, Tally},
    simulate, workload,
};

/// A jump that nobody can take for drift, in milliseconds.
const HOUR_MS: i64 = 3_600_000;

/// Everything about such a run that the seed decides.
#[derive(Clone, Debug)]
pub struct EventualPlan {
    /// The machines, the network, the faults, and the clients of the strong namespace.
    pub base: Plan,
    /// The eventual namespaces: how many copies a write needs, and how many members there are.
    pub spaces: Vec<(u32, u32)>,
    /// How many sessions each of them has.
    pub sessions: u32,
    /// How many keys they share.
    pub keys: u16,
    /// Deletes, of a hundred writes.
    pub deletes_percent: u32,
    /// How much too fast each node's clock goes, in millionths.
    pub drift_ppm: Vec<i64>,
    /// Whether a clock jumps by an hour.
    pub hour: bool,
}

impl EventualPlan {
    /// Draws a plan.
    #[must_use]
    pub fn draw(seed: u64) -> EventualPlan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x0e7e_47a1);
        let mut base = Plan { clients: 1, readers: 0, keys: 2, ..Plan::draw(seed) };
        base.work = base.work.min(Duration::from_secs(rng.random_range(6..=12)));
        let drifts = rng.random_ratio(1, 2);
        let drift_ppm =
            (0..base.nodes).map(|_| if drifts { rng.random_range(-20_000..=20_000) } else { 0 }).collect();
        let hour = rng.random_ratio(1, 6);
        if hour {
            let (node, by_ms) = (rng.random_range(1..=base.nodes), if rng.random() { HOUR_MS } else { -HOUR_MS });
            let at = Duration::from_millis(rng.random_range(500..5000));
            base.faults.push((at, Fault::Clock { node, by_ms }));
            if rng.random() {
                let back = at + Duration::from_millis(rng.random_range(300..4000));
                base.faults.push((back, Fault::Clock { node, by_ms: -by_ms }));
            }
        }
        let space = |rng: &mut ChaCha8Rng| (rng.random_range(1..=3), rng.random_range(3..=base.nodes));
        EventualPlan {
            spaces: (0..rng.random_range(1..=2)).map(|_| space(&mut rng)).collect(),
            sessions: rng.random_range(2..=3),
            keys: rng.random_range(2..=10),
            deletes_percent: rng.random_range(10..60),
            drift_ppm,
            hour,
            base,
        }
    }
}

/// What came of a run in which nothing was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventualReport {
    /// The seed.
    pub seed: u64,
    /// Of the strong namespace.
    pub strong: Report,
    /// Of the sessions.
    pub sessions: Tally,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Anti-entropy sessions, pushes with a gap, tombstones forgotten and stamps refused, in the last life of each node.
    pub did: [u64; 4],
    /// A number that depends on every packet and every answer: equal for equal runs.
    pub fingerprint: u64,
}

/// Runs one seed.
///
/// # Errors
/// Whatever the checkers found.
pub fn run_eventual(plan: &EventualPlan, planted: Option<Planted>) -> Result<EventualReport, Finding> {
    simulate(plan.base.seed, drive(plan, planted.map(Bug::Eventual)))
}

async fn drive(plan: &EventualPlan, planted: Option<Bug>) -> Result<EventualReport, String> {
    let mut world = World::start(&plan.base, planted).await?;
    (1..).zip(&plan.drift_ppm).for_each(|(node, ppm)| world.drift(node, *ppm));
    workload::create_namespace(&mut world, &plan.base).await?;
    let spaces = sessions::create(&mut world, plan).await?;
    let clients = workload::start(&mut world, &plan.base).await?;
    let at_work = sessions::start(&mut world, plan, &spaces).await?;
    let auditor = Auditor::start(world.disks(), spaces.clone());
    world.live_through(&plan.base).await?;
    let (mut history, refused) = clients.finish().await?;
    let sessions = at_work.finish().await?;
    world.heal().await?;
    // Writes from an hour ahead are taken by nobody until then; they are kept where they were made. So that time comes.
    world.set_clocks(if plan.hour { HOUR_MS + 60_000 } else { 0 });
    workload::read_everything(&mut world, &plan.base, &mut history, Instant::now() + RECOVERY).await?;
    world.agree(Instant::now() + RECOVERY).await?;
    let mut did = [0; 4];
    for space in &spaces {
        settle(&world, space, Instant::now() + RECOVERY, &mut did).await?;
    }
    auditor.finish().await?;
    for space in &spaces {
        at_the_end(&mut world, plan, space).await?;
    }
    let strong = judge(&plan.base, &history, refused, world.fingerprint())?;
    world.stop();
    let acknowledged = spaces.iter().map(|space| space.journal().acknowledged()).sum();
    let told: Vec<String> = spaces.iter().map(|space| format!("{:?}", space.journal().events())).collect();
    let fingerprint = fingerprint(strong.fingerprint, &told.concat());
    Ok(EventualReport { seed: plan.base.seed, strong, sessions, acknowledged, did, fingerprint })
}

/// Waits until all members hold the same, claim all of it, owe each other nothing and remember no delete any more.
async fn settle(world: &World, space: &Arc<Space>, deadline: Instant, did: &mut [u64; 4]) -> Result<(), String> {
    loop {
        match unsettled(world, space, did).await? {
            None => return Ok(()),
            Some(what) if Instant::now() >= deadline => {
                return Err(format!("{} does not converge: {what}", space.name));
            }
            Some(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// What is still to be done; an error if that can never be.
async fn unsettled(world: &World, space: &Space, did: &mut [u64; 4]) -> Result<Option<String>, String> {
    let holdings = world.disks().holdings(space)?;
    if holdings.len() != space.members.len() {
        return Ok(Some(format!("nodes {:?} of {:?} hold it", holdings.keys(), space.members)));
    }
    let mut before = None;
    for (node, holding) in &holdings {
        if let Some((key, (stamp, _))) = holding.records.iter().find(|(_, (_, value))| value.is_none()) {
            return Ok(Some(format!("node {node} remembers the delete {stamp} of key {key}")));
        }
        if let Some((stamp, _)) = holding.records.values().find(|(stamp, _)| !holding.claims(*stamp)) {
            return Ok(Some(format!("node {node} holds {stamp} beyond its frontier {:?}", holding.frontier)));
        }
        match before.replace((node, holding)) {
            Some((other, it)) if (&it.frontier, &it.records) != (&holding.frontier, &holding.records) => {
                return Ok(Some(format!("node {other} holds {it:?}, node {node} holds {holding:?}")));
            }
            _ => {}
        }
    }
    let statuses = world.statuses().await;
    let of = |statuses: &Vec<NamespaceStatus>| statuses.iter().find(|status| status.id == space.id).cloned();
    let mut sum = [0; 4];
    let mut digest = None;
    for node in &space.members {
        let Some(status) = statuses.get(node).and_then(of) else {
            return Ok(Some(format!("node {node} does not speak of it")));
        };
        let Some(eventual) = &status.eventual else {
            return Err(format!("node {node} has another mode: {status:?}"));
        };
        let alarms = (eventual.digest_mismatches, eventual.conflicting_markers, eventual.damaged);
        if alarms != (0, 0, 0) {
            return Err(format!("{} on node {node} has raised an alarm: {eventual:?}", space.name));
        }
        if !eventual.whole || eventual.lag_writes > 0 || eventual.lag_ms > 0 || eventual.clock.is_some() {
            return Ok(Some(format!("node {node} says {eventual:?}")));
        }
        let now = (status.digest, status.keys, status.tombstones);
        if *digest.get_or_insert(now) != now {
            return Ok(Some(format!("node {node} says {now:?}, others {digest:?}")));
        }
        for (sum, more) in
            sum.iter_mut().zip([eventual.sessions, eventual.gaps, eventual.forgotten, eventual.clock_refused])
        {
            *sum += more;
        }
    }
    did.iter_mut().zip(sum).for_each(|(did, more)| *did += more);
    Ok(None)
}

/// Nothing acknowledged is missing, no delete was undone, every session saw what it was promised, and clients are shown
/// what lies on the disks.
async fn at_the_end(world: &mut World, plan: &EventualPlan, space: &Space) -> Result<(), String> {
    let found = sessions::read_everything(world, plan, space, Instant::now() + RECOVERY).await?;
    let holdings = world.disks().holdings(space)?;
    let told = |what: String| format!("{}: {what}", space.name);
    for (node, holding) in &holdings {
        space.journal().complete(holding).map_err(|what| told(format!("node {node}: {what}")))?;
        for (key, found) in &found {
            let held = holding.records.get(key).and_then(|(stamp, value)| Some((*stamp, (*value)?)));
            if *found != held {
                return Err(told(format!("key {key} is {found:?} for a client, and {held:?} on node {node}")));
            }
        }
    }
    space.journal().sessions_hold().map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_everything() {
        let draw = |seed| format!("{:?}", EventualPlan::draw(seed));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
