//! A switch, followed from the command to its end by somebody who keeps asking how far it is.

use std::time::Duration;

use duet_client::Client;
use duet_proto::{LateState, Mode, NodeId, Phase, SwitchInfo, SwitchStep};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    PATIENCE, detail,
    load::{Answer, Load},
    timeline::{self, Course, Look, Micros, Window},
};
use crate::failure::Failure;

/// Between two questions: less than a cell of the timeline.
const EVERY: Duration = Duration::from_millis(4);
/// How long after its end a switch is blamed for a stall.
const BLAME: Duration = Duration::from_millis(200);

/// A switch that is over, and the load that it met.
pub(super) struct Watched {
    pub(super) name: &'static str,
    pub(super) from: Mode,
    pub(super) to: Mode,
    asked: Instant,
    done: Instant,
    steps: Vec<(Instant, SwitchStep)>,
    load: Load,
}

/// What a stall was like: how long nobody got an answer, and how long the unluckiest waited.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stall {
    pub(super) longest: Duration,
    pub(super) slowest: Duration,
}

/// What an operator types for it.
pub(super) fn command(name: &str, to: Mode) -> String {
    format!("duet ns switch {name} --to {to}")
}

/// Switches a namespace, and waits until that is done.
///
/// # Errors
/// If it is refused, or is not done in time.
pub(super) async fn switch(client: &Client, name: &'static str, to: Mode, load: &Load) -> Result<Watched, Failure> {
    let admin = client.admin();
    let from = admin.namespace(name).await?.mode;
    let asked = Instant::now();
    let ask = async { Ok::<_, Failure>(admin.switch_mode(name, to, Vec::new()).await?) };
    // It may be over before whoever asked for it has his answer.
    let (_, (steps, done)) = tokio::try_join!(ask, follow(client, name, to, asked))?;
    Ok(Watched { name, from, to, asked, done, steps, load: load.clone() })
}

/// The steps of a switch as they come, and when it was over.
async fn follow(
    client: &Client,
    name: &str,
    to: Mode,
    asked: Instant,
) -> Result<(Vec<(Instant, SwitchStep)>, Instant), Failure> {
    let mut steps: Vec<(Instant, SwitchStep)> = Vec::new();
    loop {
        let info = client.admin().switch(name).await?;
        let now = Instant::now();
        match info.progress {
            Some(progress) if steps.last().is_none_or(|(_, step)| *step != progress.step) => {
                // The first of them began when it was asked for.
                steps.push((if steps.is_empty() { asked } else { now }, progress.step));
            }
            None if info.namespace.mode == to && info.namespace.phase == Phase::Stable => return Ok((steps, now)),
            _ if now > asked + PATIENCE => {
                let (line, seconds) = (command(name, to), PATIENCE.as_secs());
                return Err(Failure::failed(format!("{line} is not done after {seconds} s: {info:?}")));
            }
            _ => {}
        }
        sleep(EVERY).await;
    }
}

/// Waits until the switch of a namespace waits for one node alone.
///
/// # Errors
/// If it never does.
pub(super) async fn waits_for(client: &Client, name: &str, node: NodeId) -> Result<(), Failure> {
    let waits = |info: &SwitchInfo| info.progress.as_ref().is_some_and(|progress| progress.waits_for == [node]);
    until(client, name, waits, || format!("the switch of {name} does not wait for node {node}")).await
}

/// Waits until no change of a namespace is under way.
///
/// # Errors
/// If that does not end.
pub(super) async fn stable(client: &Client, name: &str) -> Result<(), Failure> {
    let stable = |info: &SwitchInfo| info.namespace.phase == Phase::Stable;
    until(client, name, stable, || format!("the change of {name} does not end")).await
}

/// Waits until a node that a switch went on without has brought what it alone held; how much that was.
///
/// # Errors
/// If it does not.
pub(super) async fn late(client: &Client, name: &str, node: NodeId) -> Result<u64, Failure> {
    let all = |info: &SwitchInfo| info.owed.is_empty();
    until(client, name, all, || format!("node {node} does not bring its late writes to {name}")).await?;
    let late = client.admin().late(name, node, 10_000).await?;
    Ok(late.iter().filter(|write| write.state == LateState::Brought).count() as u64)
}

async fn until(
    client: &Client,
    name: &str,
    holds: impl Fn(&SwitchInfo) -> bool,
    otherwise: impl Fn() -> String,
) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !holds(&client.admin().switch(name).await?) {
        if Instant::now() > deadline {
            return Err(Failure::failed(otherwise()));
        }
        sleep(4 * EVERY).await;
    }
    Ok(())
}

impl Watched {
    /// From the command to the next epoch.
    pub(super) fn took(&self) -> Duration {
        self.done - self.asked
    }

    /// How writes went.
    pub(super) fn writes(&self) -> Stall {
        self.stall(&self.load.writes())
    }

    /// How reads went.
    pub(super) fn reads(&self) -> Stall {
        self.stall(&self.load.reads_answered())
    }

    /// Draws it, once there is something to the right of it.
    pub(super) async fn draw(&self) {
        let end = self.micros(self.done);
        let whole = Window::whole(end);
        sleep_until(self.asked + Duration::from_micros(whole.end().max(0) as u64)).await;
        let (writes, reads) = (self.writes(), self.reads());
        detail("");
        detail(&format!(
            "{} is {} after {} ms; writes stood still for {} ms, the slowest read took {} ms",
            self.name,
            self.to,
            ms(self.took()),
            ms(writes.longest),
            ms(reads.slowest),
        ));
        self.rows(whole);
        if !whole.fine() {
            detail("");
            detail("the same, around the moment when writes stopped");
            self.rows(Window::near((self.micros(self.stopped()) + end) / 2));
        }
    }

    /// When the last attempt began to stop writes, as far as it was seen.
    fn stopped(&self) -> Instant {
        let stops = |step: &SwitchStep| matches!(step, SwitchStep::Sealing | SwitchStep::Ending);
        self.steps.iter().rev().find(|(_, step)| stops(step)).map_or(self.done, |(at, _)| *at)
    }

    fn rows(&self, window: Window) {
        let look = Look::of(|name| std::env::var(name).ok());
        let times = |answers: &[Answer]| answers.iter().map(|answer| self.micros(answer.at)).collect::<Vec<_>>();
        detail(&timeline::bars(look, window, "writes", &times(&self.load.writes())));
        detail(&timeline::bars(look, window, "reads", &times(&self.load.reads_answered())));
        detail(&timeline::phases(window, &self.course()));
    }

    fn course(&self) -> Course {
        let letter = |step| match step {
            SwitchStep::Gathering => 'g',
            SwitchStep::Sealing => 's',
            SwitchStep::Converging => 'c',
            SwitchStep::Ending => 'e',
        };
        Course {
            before: self.from.to_string(),
            after: self.to.to_string(),
            phases: self.steps.iter().map(|(at, step)| (self.micros(*at), letter(*step))).collect(),
            end: self.micros(self.done),
        }
    }

    fn stall(&self, answers: &[Answer]) -> Stall {
        let times: Vec<Micros> = answers.iter().map(|answer| self.micros(answer.at)).collect();
        let until = self.done + BLAME;
        let longest = timeline::longest_gap(&times, 0, self.micros(until.min(Instant::now())));
        let met = answers.iter().filter(|answer| answer.at >= self.asked && answer.at - answer.took <= until);
        let slowest = met.map(|answer| answer.took).max().unwrap_or_default();
        Stall { longest: Duration::from_micros(longest.max(0) as u64), slowest }
    }

    fn micros(&self, at: Instant) -> Micros {
        micros(at.saturating_duration_since(self.asked)) - micros(self.asked.saturating_duration_since(at))
    }
}

fn micros(time: Duration) -> Micros {
    Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX)
}

fn ms(time: Duration) -> u128 {
    time.as_millis()
}
