//! The log: lines on standard error, as text or JSON. Where that is the journal, each line begins with its priority, as
//! sd-daemon(3) has it, and leaves out the time, which the journal writes itself: `journalctl -p warning` finds it.

use std::{
    env, fs,
    io::{self, IsTerminal},
    os::unix::fs::MetadataExt,
};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{
        self, FmtContext, FormatEvent, FormatFields,
        format::{JsonFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::config::Log;

mod spate;

/// Changes what is logged while the process runs.
pub struct Level {
    filter: reload::Handle<EnvFilter, Registry>,
    spate: spate::Spate,
}

impl Level {
    /// From now on these directives hold.
    pub fn set(&self, directives: &str) {
        if let Err(error) = self.filter.reload(EnvFilter::new(directives)) {
            tracing::error!(%error, "the log's level could not be changed");
        }
    }

    /// Says in the log which lines came too often since the last time, and how many were left out.
    pub fn tell_left_out(&self) {
        self.spate.tell();
    }
}

/// Directs the process's `tracing` events to standard error. Once per process; a second call changes nothing.
pub fn install(config: &Log) -> Level {
    let spate = spate::Spate::default();
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&config.level));
    let layer = fmt::layer().with_writer(io::stderr);
    let lines = match (config.json, to_journal()) {
        (false, false) => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        (true, false) => layer.json().flatten_event(true).boxed(),
        (false, true) => layer.with_ansi(false).event_format(Ranked(fmt::format().without_time())).boxed(),
        (true, true) => {
            let format = fmt::format().json().flatten_event(true).without_time();
            layer.fmt_fields(JsonFields::new()).event_format(Ranked(format)).boxed()
        }
    };
    if tracing_subscriber::registry().with(filter).with(spate.clone()).with(lines).try_init().is_err() {
        tracing::debug!("a tracing subscriber is installed already");
    }
    Level { filter: handle, spate }
}

/// What an error's line begins with before there is a log.
#[must_use]
pub fn error_mark() -> &'static str {
    if to_journal() { rank(tracing::Level::ERROR) } else { "" }
}

/// Whether standard error leads to the journal: systemd says by which socket, and a process whose standard error was
/// redirected inherits that too.
fn to_journal() -> bool {
    let Some(journal) = env::var("JOURNAL_STREAM").ok() else { return false };
    fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| journal == format!("{}:{}", stderr.dev(), stderr.ino()))
}

fn rank(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "<3>",
        tracing::Level::WARN => "<4>",
        tracing::Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Lines that begin with their priority.
struct Ranked<F>(F);

impl<S, N, F> FormatEvent<S, N> for Ranked<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        to.write_str(rank(*event.metadata().level()))?;
        self.0.format_event(context, to, event)
    }
}
