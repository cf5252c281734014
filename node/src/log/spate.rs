//! A line that comes too often is left out of the log.
//!
//! Whoever can open connections can have a line written for each, and a log that is full of one thing hides the others,
//! or fills a disk. What is counted is counted in the metrics all the same; here, each place in the code that writes
//! lines has [`MOST`] of them in [`WHILE`], and what was left out is told of in one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier};
use tracing_subscriber::{Layer, layer::Context};

/// Lines of one place in the code, in a [`WHILE`].
const MOST: u64 = 20;
/// How long a place is counted.
const WHILE: Duration = Duration::from_secs(10);

/// Counts lines by the place in the code that they come from. Lines for debugging are asked for by somebody who wants
/// all of them.
#[derive(Clone, Default)]
pub(super) struct Spate(Arc<Mutex<HashMap<Identifier, Place>>>);

/// One place in the code.
struct Place {
    at: &'static Metadata<'static>,
    since: Instant,
    lines: u64,
    left_out: u64,
}

impl Spate {
    fn admits(&self, at: &'static Metadata<'static>, now: Instant) -> bool {
        if *at.level() > Level::INFO {
            return true;
        }
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(at.callsite()).or_insert(Place { at, since: now, lines: 0, left_out: 0 });
        if now.saturating_duration_since(place.since) >= WHILE {
            (place.since, place.lines) = (now, 0);
        }
        let admitted = place.lines < MOST;
        if admitted {
            place.lines += 1;
        } else {
            place.left_out += 1;
        }
        admitted
    }

    /// Writes what was left out since the last time.
    pub(super) fn tell(&self) {
        // Not while the lock is held: the lines below come through here too.
        for (at, left_out) in self.take() {
            let (file, line) = (at.file(), at.line());
            tracing::warn!(left_out, level = %at.level(), file, line, "this line came too often, and was left out");
        }
    }

    fn take(&self) -> Vec<(&'static Metadata<'static>, u64)> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = places.values_mut().filter(|place| place.left_out > 0);
        left_out.map(|place| (place.at, std::mem::take(&mut place.left_out))).collect()
    }
}

impl<S: Subscriber> Layer<S> for Spate {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use tracing_subscriber::{fmt, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Page {
        fn lines_with(&self, what: &str) -> usize {
            String::from_utf8(self.0.lock().unwrap().clone())
                .unwrap()
                .lines()
                .filter(|line| line.contains(what))
                .count()
        }
    }

    fn written(during: impl FnOnce(&Spate)) -> Page {
        let (page, spate) = (Page::default(), Spate::default());
        let writer = page.clone();
        let lines = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let log = tracing_subscriber::registry().with(spate.clone()).with(lines);
        tracing::subscriber::with_default(log, || during(&spate));
        page
    }

    #[test]
    fn one_place_cannot_fill_the_log_and_the_others_are_still_heard() {
        let page = written(|spate| {
            for attempt in 0..1000 {
                tracing::warn!(attempt, "connection refused");
            }
            tracing::warn!("the disk is full");
            spate.tell();
            spate.tell();
        });
        assert_eq!(page.lines_with("connection refused"), 20);
        assert_eq!(page.lines_with("the disk is full"), 1);
        assert_eq!(page.lines_with("left_out=980 level=WARN file=\"node/src/log/spate.rs\""), 1, "told once");
    }

    #[test]
    fn what_is_asked_for_in_detail_comes_whole() {
        let page = written(|spate| {
            (0..1000).for_each(|attempt| tracing::debug!(attempt, "a frame"));
            spate.tell();
        });
        assert_eq!((page.lines_with("a frame"), page.lines_with("left_out")), (1000, 0));
    }

    #[test]
    fn after_a_while_a_place_is_heard_again() {
        let spate = Spate::default();
        let begun = Instant::now();
        let metadata = written_metadata();
        let admitted = |at: Duration| (0..100).filter(|_| spate.admits(metadata, begun + at)).count();
        assert_eq!(admitted(Duration::ZERO), 20);
        assert_eq!(admitted(WHILE - Duration::from_millis(1)), 0);
        assert_eq!(admitted(WHILE), 20);
        let left_out: Vec<u64> = spate.take().into_iter().map(|(_, left_out)| left_out).collect();
        assert_eq!(left_out, [260]);
    }

    fn written_metadata() -> &'static Metadata<'static> {
        let spate = Spate::default();
        let log = tracing_subscriber::registry().with(spate.clone());
        tracing::subscriber::with_default(log, || tracing::info!("a line"));
        spate.0.lock().unwrap().values().next().unwrap().at
    }
}
