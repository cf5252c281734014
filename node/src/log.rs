//! The log: lines on standard error, as text or JSON; journald takes them from there.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::Log;

/// Changes what is logged while the process runs.
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// From now on these directives hold.
    pub fn set(&self, directives: &str) {
        if let Err(error) = self.0.reload(EnvFilter::new(directives)) {
            tracing::error!(%error, "the log's level could not be changed");
        }
    }
}

/// Directs the process's `tracing` events to standard error. Once per process; a second call changes nothing.
pub fn install(config: &Log) -> Level {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&config.level));
    let registry = tracing_subscriber::registry().with(filter);
    let installed = if config.json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr)).try_init()
    };
    if installed.is_err() {
        tracing::debug!("a tracing subscriber is installed already");
    }
    Level(handle)
}
