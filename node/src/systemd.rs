//! What systemd is told: ready, stopping, a line of status, and that the process still makes progress.
//!
//! Without `NOTIFY_SOCKET` in the environment all of this does nothing.

use std::{sync::mpsc, time::Duration};

use sd_notify::NotifyState;

/// How often a long start asks for more time.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How much more time is asked for than should be needed.
const MARGIN: Duration = Duration::from_secs(20);

/// The node serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The node reads its configuration again; [`ready`] ends that. `systemctl reload` waits for it.
pub fn reloading() {
    // The time tells systemd which of two reloads is meant. Where it cannot be had, a reload is not waited for.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The node has begun to stop, which may take so long.
pub fn stopping(most: Duration) {
    tell(&[NotifyState::Stopping, extend(most + MARGIN)]);
}

/// A start under way. As long as this lives, systemd is asked for more time: the store of a node that died may have a
/// long log to read, and to end the start would only begin it anew.
#[derive(Debug)]
pub struct Starting {
    /// Closed with this.
    _alive: Option<mpsc::Sender<()>>,
}

impl Starting {
    /// Begins to ask.
    #[must_use]
    pub fn begin() -> Starting {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Starting { _alive: None };
        }
        let (alive, ended) = mpsc::channel::<()>();
        let ask = move || loop {
            tell(&[extend(ASK_EVERY + MARGIN), NotifyState::Status("starting: opening the store")]);
            if ended.recv_timeout(ASK_EVERY) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
        };
        // A thread: what holds the start up may hold up the runtime. Without it, systemd's own patience has to do.
        let asked = std::thread::Builder::new().name("starting".into()).spawn(ask);
        Starting { _alive: asked.is_ok().then_some(alive) }
    }
}

fn extend(by: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))
}

/// A line for `systemctl status`.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// A sign of life; to be given only if there is life.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often systemd wants a sign of life: half of what it waits for.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2)
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be notified");
    }
}
