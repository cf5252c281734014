//! Watching a switch: a line for each phase on standard error, and on a terminal a moving one for the present.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    pin::pin,
    time::{Duration, Instant},
};

use duet_client::{Client, ClientError, SwitchInfo};
use duet_proto::{Class, Error, Mode, NamespaceName, NodeId, SwitchProgress, SwitchStep};
use indicatif::ProgressBar;

use crate::{
    failure::{Exit, Failure},
    output::say,
    status::word,
    switch::past::{explain, nodes},
};

/// How often the catalog is asked.
const POLL: Duration = Duration::from_millis(50);
/// For how long somebody must be waited for before it is looked whether he is there, and how often that is.
const LOOK: Duration = Duration::from_secs(1);

/// Waits for the end of a switch, whichever it is.
///
/// # Errors
/// If it was not over in time or somebody does not want to watch any longer; it goes on then. If nobody can tell.
pub(super) async fn watch(
    client: &Client,
    before: &SwitchInfo,
    to: Mode,
    limit: Option<Duration>,
) -> Result<SwitchInfo, Failure> {
    let (name, from) = (&before.namespace.name, before.namespace.epoch);
    let admin = client.admin();
    let begun = Instant::now();
    let mut screen = Screen::new(name, to);
    screen.print(&format!("switching {name} from {} (epoch {from}) to {to}", before.namespace.mode));
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    loop {
        let info = tokio::select! {
            biased;
            _ = &mut interrupted => return Err(screen.left(name, to)),
            info = admin.switch(name.as_str()) => info,
        };
        match info {
            Ok(info) if info.progress.is_none() || info.namespace.epoch > from => {
                screen.end();
                return Ok(info);
            }
            Ok(info) => {
                if let Some(progress) = &info.progress {
                    screen.show(client, &info, progress).await;
                }
            }
            Err(error) if passing(&error) => screen.trouble(&error),
            Err(error) => return Err(error.into()),
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            return Err(screen.late(name, begun.elapsed()));
        }
        tokio::select! {
            biased;
            _ = &mut interrupted => return Err(screen.left(name, to)),
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// Whether the catalog may be there again in a moment: the switch does not need this process.
fn passing(error: &ClientError) -> bool {
    error.class() == Class::Retry || matches!(error.cluster(), Some(Error::OutcomeUnknown { .. }))
}

/// What is shown, and what was.
struct Screen {
    bar: Option<ProgressBar>,
    /// The phase, and since when it is seen.
    phase: Option<(SwitchStep, u64, Instant)>,
    waits_for: Vec<NodeId>,
    waits_since: Instant,
    /// When it was last looked who is there, and who is not.
    looked: Option<Instant>,
    away: BTreeMap<NodeId, String>,
    said: Option<String>,
    to: Mode,
    name: String,
}

impl Screen {
    fn new(name: &NamespaceName, to: Mode) -> Screen {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Screen {
            bar,
            phase: None,
            waits_for: Vec::new(),
            waits_since: Instant::now(),
            looked: None,
            away: BTreeMap::new(),
            said: None,
            to,
            name: name.to_string(),
        }
    }

    fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// A line that stands until another one follows: on a terminal it moves, elsewhere it is printed once.
    fn note(&mut self, text: &str) {
        if self.said.as_deref() == Some(text) {
            return;
        }
        self.said = Some(text.to_owned());
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => say(format!("  {text}")),
        }
    }

    async fn show(&mut self, client: &Client, info: &SwitchInfo, progress: &SwitchProgress) {
        let now = Instant::now();
        if self.phase.is_none_or(|(step, attempt, _)| (step, attempt) != (progress.step, progress.attempts)) {
            let again = match self.phase {
                Some((was, ..)) if was != SwitchStep::Gathering && progress.step == SwitchStep::Gathering => {
                    "writes were stopped for too long and go on; it begins again: "
                }
                _ => "",
            };
            let attempt =
                if progress.attempts > 1 { format!(" (attempt {})", progress.attempts) } else { String::new() };
            self.print(&format!("  {again}{}{attempt}: {}", word(progress.step), explain(progress.step)));
            self.phase = Some((progress.step, progress.attempts, now));
            (self.said, self.looked) = (None, None);
        }
        if self.waits_for != progress.waits_for {
            self.waits_for.clone_from(&progress.waits_for);
            self.waits_since = now;
        }
        let long = now.duration_since(self.waits_since) >= LOOK;
        if long && !self.waits_for.is_empty() {
            if self.looked.is_none_or(|looked| looked.elapsed() >= 2 * LOOK) {
                self.away = away(client, &self.waits_for).await;
                self.looked = Some(Instant::now());
            }
            let text = self.waiting(info);
            self.note(&text);
        } else if self.bar.is_some() {
            self.note(&format!("{} …", word(progress.step)));
        }
    }

    /// Who is waited for, and what can be done about it.
    fn waiting(&self, info: &SwitchInfo) -> String {
        let away: Vec<NodeId> = self.away.keys().copied().collect();
        let mut text = format!("waits for {}", nodes(&self.waits_for));
        match self.away.values().next() {
            Some(why) if away == self.waits_for => text += &format!(": {why}"),
            Some(why) => text += &format!("; of {}: {why}", nodes(&away)),
            None => {}
        }
        let minority = away.len() * 2 < info.namespace.members.len();
        if !away.is_empty() && minority && self.to == Mode::Strong {
            let list = away.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            text += &format!(
                ". Writes go on. duet ns switch {} --to {} --without {list} goes on without",
                self.name, self.to
            );
        }
        text
    }

    fn trouble(&mut self, error: &ClientError) {
        self.note(&format!("the catalog does not answer ({error}); the switch goes on without this"));
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn left(&self, name: &NamespaceName, to: Mode) -> Failure {
        self.end();
        let message = format!(
            "the switch of {name} goes on; duet ns show {name} tells how far it is, duet ns switch {name} --to {to} watches \
             it again, duet ns switch {name} --abort ends it"
        );
        Failure { exit: Exit::Unknown, code: "interrupted", message, class: None }
    }

    fn late(&self, name: &NamespaceName, after: Duration) -> Failure {
        self.end();
        let step = self.phase.map_or_else(|| "begun".into(), |(step, ..)| word(step));
        let who = if self.waits_for.is_empty() {
            String::new()
        } else {
            format!(", waiting for {}", nodes(&self.waits_for))
        };
        let message = format!(
            "the switch of {name} is not over after {:.1} s (it is {step}{who}) and goes on; duet ns show {name} tells how far \
             it is",
            after.as_secs_f64()
        );
        Failure { exit: Exit::Unknown, code: "timed_out", message, class: None }
    }
}

/// Which of them do not answer, and why.
async fn away(client: &Client, who: &[NodeId]) -> BTreeMap<NodeId, String> {
    let Ok(status) = client.status().await else { return BTreeMap::new() };
    let nodes = status.nodes.into_iter().filter(|report| who.contains(&report.info.id));
    nodes.filter_map(|report| Some((report.info.id, report.status.err()?))).map(|(n, e)| (n, brief(&e))).collect()
}

fn brief(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { .. } | ClientError::TimedOut { .. } => "no answer".into(),
        other => other.to_string(),
    }
}
