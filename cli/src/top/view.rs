//! How somebody wants to see it: the order, the filter, how far it is scrolled; and the keys that change that.

use std::cmp::Ordering;

use ratatui::termion::event::Key;

use super::model::{Lag, NamespaceLine};

/// What namespaces are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// From a to z.
    #[default]
    Name,
    /// The furthest behind first. Entries and milliseconds are taken for the same: neither is worse.
    Lag,
    /// The busiest first.
    Requests,
    /// The slowest first.
    P99,
    /// The most written first.
    Writes,
    /// The largest first.
    Keys,
}

impl Sort {
    /// The word for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Sort::Name => "name",
            Sort::Lag => "lag",
            Sort::Requests => "requests",
            Sort::P99 => "p99",
            Sort::Writes => "writes",
            Sort::Keys => "keys",
        }
    }

    fn next(self) -> Sort {
        match self {
            Sort::Name => Sort::Lag,
            Sort::Lag => Sort::Requests,
            Sort::Requests => Sort::P99,
            Sort::P99 => Sort::Writes,
            Sort::Writes => Sort::Keys,
            Sort::Keys => Sort::Name,
        }
    }

    fn compare(self, a: &NamespaceLine, b: &NamespaceLine) -> Ordering {
        let lag = |line: &NamespaceLine| line.lag.map(Lag::number);
        let writes = |line: &NamespaceLine| line.requests.map_or(-1.0, |requests| requests.written_per_second);
        let requests = |line: &NamespaceLine| line.requests.map_or(-1.0, |requests| requests.per_second);
        let p99 = |line: &NamespaceLine| line.requests.and_then(|requests| requests.p99_us);
        match self {
            Sort::Name => Ordering::Equal,
            Sort::Lag => lag(b).cmp(&lag(a)),
            Sort::Requests => requests(b).total_cmp(&requests(a)),
            Sort::P99 => p99(b).cmp(&p99(a)),
            Sort::Writes => writes(b).total_cmp(&writes(a)),
            Sort::Keys => b.keys.cmp(&a.keys),
        }
    }
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Show it as it is now.
    Draw,
    /// End.
    Quit,
}

/// How somebody wants to see it.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// Namespaces whose names hold this.
    pub(super) filter: String,
    /// Whether keys go into the filter.
    pub(super) typing: bool,
    /// Namespaces that are scrolled away; drawing keeps some in sight.
    pub(super) scrolled: usize,
    /// How many there was room for.
    pub(super) page: usize,
}

impl View {
    /// Does what a key says.
    pub(super) fn key(&mut self, key: Key) -> Then {
        match key {
            Key::Ctrl('c') => return Then::Quit,
            Key::Char('\n') | Key::Esc if self.typing => {
                self.typing = false;
                if key == Key::Esc {
                    self.filter.clear();
                }
            }
            Key::Backspace if self.typing => drop(self.filter.pop()),
            Key::Char(c) if self.typing => {
                self.filter.push(c);
                self.scrolled = 0;
            }
            Key::Char('q') => return Then::Quit,
            Key::Char('/') => self.typing = true,
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('r') => self.reversed = !self.reversed,
            Key::Char('j') | Key::Down => self.scrolled = self.scrolled.saturating_add(1),
            Key::Char('k') | Key::Up => self.scrolled = self.scrolled.saturating_sub(1),
            Key::PageDown | Key::Char(' ') => self.scrolled = self.scrolled.saturating_add(self.page.max(1)),
            Key::PageUp => self.scrolled = self.scrolled.saturating_sub(self.page.max(1)),
            Key::Home => self.scrolled = 0,
            Key::End => self.scrolled = usize::MAX,
            Key::Esc => self.filter.clear(),
            _ => {}
        }
        Then::Draw
    }

    /// Takes note of what was drawn: who scrolls back begins from there, however often he has scrolled on.
    pub(super) fn drawn(&mut self, first: usize, rows: usize) {
        (self.scrolled, self.page) = (first, rows);
    }

    /// The namespaces to show, in order. Those that are alike stay in the order of their names.
    pub(super) fn pick<'a>(&self, all: &'a [NamespaceLine]) -> Vec<&'a NamespaceLine> {
        let mut picked: Vec<&NamespaceLine> = all.iter().filter(|line| line.name.contains(&self.filter)).collect();
        picked.sort_by(|a, b| {
            let order = self.sort.compare(a, b).then_with(|| a.name.cmp(&b.name));
            if self.reversed { order.reverse() } else { order }
        });
        picked
    }
}

#[cfg(test)]
mod tests {
    use duet_proto::{Mode, Phase, QuorumHealth};

    use super::{super::traffic::Traffic, *};

    fn line(name: &str, keys: u64, lag: u64, requests: Option<(f64, f64, u64)>) -> NamespaceLine {
        let traffic = |(written_per_second, per_second, p99)| Traffic {
            written_per_second,
            per_second,
            p99_us: Some(p99),
            ..Traffic::default()
        };
        NamespaceLine {
            name: name.into(),
            mode: Mode::Strong,
            epoch: 1,
            phase: Phase::Stable,
            leader: None,
            quorum: QuorumHealth::Healthy,
            alarmed: false,
            present: 3,
            members: 3,
            keys: Some(keys),
            lag: Some(Lag::Entries(lag)),
            requests: requests.map(traffic),
        }
    }

    fn press(view: &mut View, keys: &str) {
        for key in keys.chars() {
            assert_eq!(view.key(Key::Char(key)), Then::Draw, "{key}");
        }
    }

    #[test]
    fn namespaces_are_sorted_and_filtered() {
        let all = [
            line("carts", 5, 0, Some((1.0, 9.0, 50))),
            line("orders", 9, 2, None),
            line("archive", 5, 1, Some((7.5, 3.0, 800))),
        ];
        let mut view = View::default();
        let names = |view: &View| view.pick(&all).iter().map(|line| line.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&view), ["archive", "carts", "orders"]);
        for (sort, expected) in [
            ("lag", ["orders", "archive", "carts"]),
            ("requests", ["carts", "archive", "orders"]),
            ("p99", ["archive", "carts", "orders"]),
            ("writes", ["archive", "carts", "orders"]),
            ("keys", ["orders", "archive", "carts"]),
            ("name", ["archive", "carts", "orders"]),
        ] {
            press(&mut view, "s");
            assert_eq!((view.sort.word(), &names(&view)[..]), (sort, &expected.map(String::from)[..]));
        }
        press(&mut view, "sr");
        assert_eq!(names(&view), ["carts", "archive", "orders"], "by lag, the other way round");
        press(&mut view, "r/ar");
        assert_eq!(names(&view), ["archive", "carts"], "by lag, those that match");
    }

    #[test]
    fn scrolling_stays_within_what_there_is() {
        let mut view = View::default();
        // Thirty namespaces and room for ten.
        let mut pressed = |key: Key| {
            view.key(key);
            let first = view.scrolled.min(20);
            view.drawn(first, 10);
            first
        };
        let keys = [Key::Down, Key::PageDown, Key::PageDown, Key::Down, Key::Up, Key::PageUp, Key::End, Key::Up];
        assert_eq!(keys.map(&mut pressed), [1, 11, 20, 20, 19, 9, 20, 19]);
        assert_eq!([Key::Home, Key::PageUp, Key::Char(' ')].map(pressed), [0, 0, 10]);
    }

    #[test]
    fn keys_go_into_the_filter_while_it_is_typed() {
        let mut view = View::default();
        press(&mut view, "j/sq");
        assert_eq!((view.filter.as_str(), view.sort, view.scrolled), ("sq", Sort::Name, 0));
        view.key(Key::Backspace);
        press(&mut view, "\n");
        assert_eq!((view.filter.as_str(), view.typing), ("s", false));
        view.key(Key::Esc);
        assert_eq!(view.filter, "");
        press(&mut view, "/x");
        view.key(Key::Esc);
        assert_eq!((view.filter.as_str(), view.typing), ("", false));
        assert_eq!(view.key(Key::Char('q')), Then::Quit);
        view.typing = true;
        assert_eq!(view.key(Key::Ctrl('c')), Then::Quit);
    }
}
