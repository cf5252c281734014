//! Operators who switch namespaces back and forth: each asks, changes their mind, asks again, and writes down what the
//! catalog tells of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use duet_client::{Admin, ClientError, SwitchInfo};
use duet_proto::{Class, Error, Mode, NodeId, Role};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{SwitchPlan, World, crossing::Land};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often a switch is looked at.
const LOOK: Duration = Duration::from_millis(60);
/// The number of the first operator's client, and of the one at the end.
const FIRST: u32 = 200;
const LAST: u32 = 199;

/// What came of the switches of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Completed.
    pub completed: u32,
    /// Of these: without a member.
    pub apart: u32,
    /// Aborted.
    pub aborted: u32,
    /// Those that were completed took so many attempts.
    pub attempts: u64,
}

/// Operators at work.
pub(super) struct Switching {
    stop: Arc<AtomicBool>,
    lands: Vec<Arc<Land>>,
    operators: Vec<JoinHandle<Result<u32, String>>>,
}

/// Starts an operator for each namespace.
pub(super) async fn start(world: &mut World, plan: &SwitchPlan, lands: &[Arc<Land>]) -> Result<Switching, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut operators = Vec::new();
    for (number, land) in (FIRST..).zip(lands) {
        let client = world.client(number, Role::Admin).await?;
        let operator = Operator {
            admin: client.admin().timeout(PATIENCE),
            land: land.clone(),
            rng: ChaCha8Rng::seed_from_u64(plan.base.seed.wrapping_mul(1000) + u64::from(number)),
            pause_ms: plan.pause_ms,
            without_percent: plan.without_percent,
            aborts_percent: plan.aborts_percent,
            aborted: 0,
        };
        operators.push(tokio::spawn(operator.work(stop.clone())));
    }
    Ok(Switching { stop, lands: lands.to_vec(), operators })
}

impl Switching {
    /// Lets every operator finish what they are at. What they began goes on.
    pub(super) async fn finish(self) -> Result<Switches, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut switches = Switches::default();
        for (operator, land) in self.operators.into_iter().zip(&self.lands) {
            let ended = operator.await.map_err(|error| format!("an operator ended badly: {error}"))?;
            switches.aborted += ended.map_err(|what| format!("{}: {what}", land.name))?;
        }
        Ok(switches)
    }
}

struct Operator {
    admin: Admin,
    land: Arc<Land>,
    rng: ChaCha8Rng,
    pause_ms: u64,
    without_percent: u32,
    aborts_percent: u32,
    aborted: u32,
}

impl Operator {
    async fn work(mut self, stop: Arc<AtomicBool>) -> Result<u32, String> {
        while !stop.load(Ordering::Relaxed) {
            let pause = self.rng.random_range(0..self.pause_ms);
            sleep(Duration::from_millis(pause)).await;
            let Some(info) = self.look().await? else { continue };
            if info.progress.is_none() {
                self.ask(&info).await?;
            }
            self.attend(&stop).await?;
        }
        Ok(self.aborted)
    }

    /// Asks for the other mode.
    async fn ask(&mut self, info: &SwitchInfo) -> Result<(), String> {
        let to = other(info.namespace.mode);
        let without = if to == Mode::Strong { self.without() } else { Vec::new() };
        self.land.excuse(info.namespace.epoch, &without);
        let asked = self.admin.switch_mode(&self.land.name, to, without).await;
        tolerate(asked.map(drop))
    }

    fn without(&mut self) -> Vec<NodeId> {
        let due = self.rng.random_range(0..100) < self.without_percent;
        let one = self.land.members.choose(&mut self.rng).copied();
        one.into_iter().filter(|_| due).collect()
    }

    /// Looks at a switch until it is over, and meddles with it.
    async fn attend(&mut self, stop: &AtomicBool) -> Result<(), String> {
        let abort = self.rng.random_range(0..100) < self.aborts_percent;
        let mut patience = self.rng.random_range(0..40);
        while !stop.load(Ordering::Relaxed) {
            if abort && patience < 20 {
                let aborted = self.admin.abort_switch(&self.land.name).await;
                self.aborted += u32::from(aborted.is_ok());
                return tolerate(aborted.map(drop));
            }
            match self.look().await? {
                Some(info) if info.progress.is_none() => return Ok(()),
                Some(info) if patience == 0 => {
                    // It takes long: others are left out, or nobody any more.
                    patience = self.rng.random_range(10..60);
                    if info.namespace.mode == Mode::Eventual {
                        let without = self.without();
                        self.land.excuse(info.namespace.epoch, &without);
                        let asked = self.admin.switch_mode(&self.land.name, Mode::Strong, without).await;
                        tolerate(asked.map(drop))?;
                    }
                }
                _ => {}
            }
            patience -= 1;
            sleep(LOOK).await;
        }
        Ok(())
    }

    async fn look(&self) -> Result<Option<SwitchInfo>, String> {
        match self.admin.switch(&self.land.name).await {
            Ok(info) => {
                self.land.learn(&info)?;
                Ok(Some(info))
            }
            Err(error) => tolerate(Err(error)).map(|()| None),
        }
    }
}

/// Faults explain what asks to try again and what nobody knows; and what was true when an operator looked need not be when
/// they ask.
fn tolerate(asked: Result<(), ClientError>) -> Result<(), String> {
    match asked {
        Err(ClientError::Cluster(Error::InvalidRequest { why })) if why.contains("is not being switched") => Ok(()),
        Err(error) if !matches!(error.class(), Class::Retry | Class::Unknown) => Err(format!("{error:?}")),
        _ => Ok(()),
    }
}

fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Eventual => Mode::Strong,
        Mode::Strong => Mode::Eventual,
    }
}

/// Waits until no switch is under way.
pub(super) async fn rest(
    world: &mut World,
    land: &Land,
    within: Duration,
    switches: &mut Switches,
) -> Result<(), String> {
    let deadline = Instant::now() + within;
    let admin = admin(world, deadline).await?;
    let info = until(&admin, land, deadline, |info| info.progress.is_none()).await?;
    let past: Vec<_> = info.history.iter().filter(|past| !past.aborted).collect();
    switches.attempts += past.iter().map(|past| past.attempts).sum::<u64>();
    Ok(())
}

/// Switches a namespace to the other mode and back; with nothing in the way, each is done in time. Late writes come in
/// while it is strong.
pub(super) async fn there_and_back(
    world: &mut World,
    land: &Land,
    within: Duration,
    switches: &mut Switches,
) -> Result<(), String> {
    let admin = admin(world, Instant::now() + within).await?;
    for _ in 0..2 {
        let (epoch, mode) = land.now();
        if mode == Mode::Strong {
            until(&admin, land, Instant::now() + within, |info| info.owed.is_empty()).await?;
        }
        let deadline = Instant::now() + within;
        while let Err(error) = admin.switch_mode(&land.name, other(mode), Vec::new()).await {
            if Instant::now() >= deadline {
                return Err(format!("{}: nothing is in the way of a switch, and yet: {error}", land.name));
            }
            sleep(LOOK).await;
        }
        let over = |info: &SwitchInfo| info.namespace.epoch > epoch && info.progress.is_none();
        until(&admin, land, deadline, over).await?;
    }
    if land.now().1 == Mode::Strong {
        until(&admin, land, Instant::now() + within, |info| info.owed.is_empty()).await?;
    }
    let epochs = land.epochs();
    switches.completed += epochs.ended.len() as u32;
    switches.apart += epochs.ended.values().filter(|ended| !ended.apart.is_empty()).count() as u32;
    Ok(())
}

async fn admin(world: &mut World, deadline: Instant) -> Result<Admin, String> {
    loop {
        match world.client(LAST, Role::Admin).await {
            Ok(client) => return Ok(client.admin().timeout(PATIENCE)),
            Err(error) if Instant::now() >= deadline => return Err(format!("after everything healed: {error}")),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn until(
    admin: &Admin,
    land: &Land,
    deadline: Instant,
    holds: impl Fn(&SwitchInfo) -> bool,
) -> Result<SwitchInfo, String> {
    loop {
        let told = admin.switch(&land.name).await;
        if let Ok(info) = &told {
            land.learn(info)?;
            if holds(info) {
                return Ok(info.clone());
            }
        }
        if Instant::now() >= deadline {
            return Err(format!("{} is not there in time: {told:?}", land.name));
        }
        sleep(LOOK).await;
    }
}
