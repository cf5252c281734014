//! `duet top`: what `duet status` tells, again and again, on one screen, with what happens between two looks.
//!
//! ```text
//! cluster ─ poll ─▶ Sample ─ model ─▶ Screen ─┐
//!                                             ├─ draw ─▶ cells of a terminal, or lines of text (--once)
//! keys ─────────────────── view ─▶ View ──────┘
//! ```
//!
//! The model knows no terminal and the drawing no cluster. A look that fails leaves the last screen where it is and
//! says so in the first line; nodes that are down are asked again each time, and are rows like the others.

mod columns;
mod draw;
mod model;
mod traffic;
mod view;

use std::{
    io::{self, IsTerminal, Write},
    pin::pin,
    thread,
    time::{Duration, Instant},
};

use duet_client::Client;
use ratatui::{
    Terminal,
    backend::{TermionBackend, TestBackend},
    termion::{event::Key, input::TermRead, raw::IntoRawMode, screen::IntoAlternateScreen, terminal_size},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{sleep, timeout},
};

use self::{
    draw::{Shown, draw},
    model::{Sample, Screen},
    view::{Then, View},
};
use crate::{
    args::Top,
    cluster,
    failure::{Exit, Failure},
    output::Printer,
};

/// For how long the catalog is asked about switches: without a quorum it cannot tell, and the rest is worth showing.
const ASIDE: Duration = Duration::from_secs(1);
/// How wide a frame is that goes to no terminal.
const WIDTH: u16 = 160;
/// Keys that wait; more than anybody types between two frames.
const KEYS: usize = 64;

/// `duet top`
pub(crate) async fn run(client: &Client, options: &Top, printer: Printer) -> Result<Exit, Failure> {
    if options.once {
        return once(client, options, printer).await;
    }
    live(client, options).await
}

/// Whether there is a terminal for it.
///
/// # Errors
/// If there is none and a screen is asked for.
pub(crate) fn fits(options: &Top, printer: Printer) -> Result<(), Failure> {
    if options.once || !printer.json() && io::stdout().is_terminal() && io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Failure::usage("top is a screen for a terminal; elsewhere, and with -o json, --once prints one frame"))
}

/// Looks twice, so that there are rates, and prints what it has seen.
async fn once(client: &Client, options: &Top, printer: Printer) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let before = look(client, begun).await?;
    let now = later(client, options, begun).await?;
    let (screen, view) = (Screen::new(Some(&before), &now), View::default());
    let width = terminal_size().ok().filter(|_| io::stdout().is_terminal()).map_or(WIDTH, |(width, _)| width);
    printer.answer(&screen, || {
        let shown = Shown { screen: &screen, view: &view, stale: None, live: false };
        text(width, draw::whole(&screen, &view), &shown)
    })?;
    Ok(if screen.problems.is_empty() { Exit::Done } else { Exit::Unhealthy })
}

/// A frame as lines of text.
fn text(width: u16, height: u16, shown: &Shown<'_>) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| {
        draw(frame, shown);
    });
    let buffer = terminal.backend().buffer();
    let cells = |y: u16| (0..width).map(move |x| buffer.cell((x, y)).map_or(" ", |cell| cell.symbol()));
    let lines: Vec<String> = (0..height).map(|y| cells(y).collect::<String>().trim_end().to_owned()).collect();
    lines.join("\n").trim_end().to_owned() + "\n"
}

/// What every node says now.
async fn look(client: &Client, begun: Instant) -> Result<Sample, Failure> {
    let mut report = cluster::report(client).await?;
    let at = begun.elapsed();
    if let Ok(switches) = timeout(ASIDE, cluster::switches(client, &report)).await {
        report.tell_of(&switches);
    }
    Ok(Sample { at, report })
}

/// The look after a pause.
async fn later(client: &Client, options: &Top, begun: Instant) -> Result<Sample, Failure> {
    sleep(options.interval).await;
    look(client, begun).await
}

/// Shows it until somebody has seen enough. The terminal is as it was afterwards, whatever the end.
async fn live(client: &Client, options: &Top) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let mut state = State { before: None, now: look(client, begun).await?, failed: None, view: View::default() };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut keys = keys()?;
    let mut terminal = Terminal::new(TermionBackend::new(io::stdout().into_raw_mode()?.into_alternate_screen()?))?;
    terminal.hide_cursor()?;
    let mut next = pin!(later(client, options, begun));
    loop {
        terminal.draw(|frame| state.draw(frame, begun.elapsed()))?;
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
            key = keys.recv() => match key.map(|key| state.view.key(key)) {
                Some(Then::Draw) => {}
                // Nobody can end it any more if standard input has.
                Some(Then::Quit) | None => break,
            },
            // Drawing finds the new size by itself.
            _ = resized.recv() => {}
            sample = &mut next => {
                state.heard(sample);
                next.set(later(client, options, begun));
            }
        }
    }
    terminal.show_cursor()?;
    terminal.backend_mut().flush()?;
    Ok(Exit::Done)
}

/// Keys as they are typed, read by a thread that ends with the process: nothing else can read a terminal and stop.
fn keys() -> io::Result<mpsc::Receiver<Key>> {
    let (typed, keys) = mpsc::channel(KEYS);
    thread::Builder::new().name("keys".into()).spawn(move || {
        for key in io::stdin().lock().keys() {
            let Ok(key) = key else { return };
            if typed.blocking_send(key).is_err() {
                return;
            }
        }
    })?;
    Ok(keys)
}

/// What is shown, and what was said before it.
struct State {
    before: Option<Sample>,
    now: Sample,
    /// Why the last look has failed.
    failed: Option<String>,
    view: View,
}

impl State {
    fn heard(&mut self, sample: Result<Sample, Failure>) {
        match sample {
            Ok(sample) => {
                self.before = Some(std::mem::replace(&mut self.now, sample));
                self.failed = None;
            }
            Err(failure) => self.failed = Some(failure.to_string()),
        }
    }

    fn draw(&mut self, frame: &mut ratatui::Frame<'_>, elapsed: Duration) {
        let screen = Screen::new(self.before.as_ref(), &self.now);
        let age = elapsed.saturating_sub(self.now.at).as_secs();
        let stale = self.failed.as_deref().map(|why| (why, age));
        let (first, rows) = draw(frame, &Shown { screen: &screen, view: &self.view, stale, live: true });
        self.view.drawn(first, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::{model::tests::strong, traffic::Traffic, *};

    #[test]
    fn a_failed_look_leaves_what_was_seen() {
        let sample =
            |seconds, applied| Sample { at: Duration::from_secs(seconds), report: strong([Some(applied); 3]) };
        let mut state = State { before: None, now: sample(1, 10), failed: None, view: View::default() };
        state.heard(Err(Failure::failed("nobody answers")));
        assert!(state.failed.is_some() && state.before.is_none() && state.now.at == Duration::from_secs(1));
        state.heard(Ok(sample(6, 60)));
        let screen = Screen::new(state.before.as_ref(), &state.now);
        assert_eq!((state.failed, screen.namespaces[0].requests), (None, Some(Traffic::default())));
    }

    #[test]
    fn a_frame_that_is_printed_holds_everything() {
        let screen = Screen::new(None, &Sample { at: Duration::ZERO, report: strong([Some(1), None, None]) });
        let view = View::default();
        let shown = Shown { screen: &screen, view: &view, stale: None, live: false };
        let frame = text(WIDTH, draw::whole(&screen, &view), &shown);
        assert!(!frame.contains("more") && !frame.contains("quit") && !frame.contains(" \n"), "{frame}");
        for problem in &screen.problems {
            assert!(frame.contains(&format!("✗ {problem}")), "{problem} is not in\n{frame}");
        }
    }
}
