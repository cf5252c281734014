//! What systemd is told: ready, stopping, a line of status, and that the process still makes progress.
//!
//! Without `NOTIFY_SOCKET` in the environment all of this does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The node serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The node has begun to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
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
