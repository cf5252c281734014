//! The log: lines on standard error, as text or JSON; journald takes them from there.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::Log;

/// Directs the process's `tracing` events to standard error. Once per process; a second call changes nothing.
pub fn install(config: &Log) {
    let filter = EnvFilter::new(&config.level);
    let registry = tracing_subscriber::registry().with(filter);
    // Under systemd the journal has its own timestamps; they are kept all the same, since not every reader is journalctl.
    let installed = if config.json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr)).try_init()
    };
    if installed.is_err() {
        tracing::debug!("a tracing subscriber is installed already");
    }
}
