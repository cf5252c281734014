//! The screen as cells of a terminal. Whatever the size, something useful is on it and nothing panics: columns that do
//! not fit are left out from the least important on, and rows that do not fit are counted.

use std::collections::BTreeMap;

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Rect},
    style::Style,
    text::{Line, Span},
    widgets::{Cell, Row, Table},
};

use super::{
    columns::{BAD, Column, DIM, GOOD, HEAD, NAMESPACES, NODES, Text, WARN},
    model::{NodeLine, Screen},
    view::View,
};

/// Between columns.
const GAP: u16 = 2;
/// Below this height there are no keys at the foot, and no empty lines.
const ROOMY: u16 = 12;
/// More namespaces than so many of which the same is told are told of in one line.
const FOLDED: usize = 3;

/// What is shown, and how fresh it is.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) screen: &'a Screen,
    pub(super) view: &'a View,
    /// Why the last look has failed, and for how many seconds there has been none.
    pub(super) stale: Option<(&'a str, u64)>,
    /// Whether somebody sits in front of it.
    pub(super) live: bool,
}

/// The height at which everything is on it.
pub(super) fn whole(screen: &Screen, view: &View) -> u16 {
    let rows = screen.nodes.len() + view.pick(&screen.namespaces).len() + screen.notes.len() + screen.problems.len();
    // The head, two headers, and empty lines between the parts.
    u16::try_from(rows + 6).unwrap_or(u16::MAX).max(ROOMY)
}

/// Draws it. Returns which namespaces are on it: how many are scrolled away, and how many rows there are.
pub(super) fn draw(frame: &mut Frame<'_>, shown: &Shown<'_>) -> (usize, usize) {
    let area = frame.area();
    let (screen, view) = (shown.screen, shown.view);
    let roomy = area.height >= ROOMY;
    let foot = u16::from(roomy && shown.live);
    let mut top = Pen { frame, y: 0, bottom: area.height.saturating_sub(foot), area };
    top.line(head(shown));
    let gap = usize::from(roomy);
    let namespaces = view.pick(&screen.namespaces);
    let messages = messages(screen);
    let wants = [screen.nodes.len() + 1 + gap, namespaces.len() + 1 + gap, messages.len() + gap];
    let [for_nodes, for_namespaces, for_messages] = share(top.left(), wants);
    let mut nodes: Vec<&NodeLine> = screen.nodes.iter().collect();
    if for_nodes < wants[0] {
        // Those that something is wrong with must be on it.
        nodes.sort_by_key(|node| node.reachable && !node.disk_full);
    }
    top.table(NODES, &nodes, for_nodes, gap, 0);
    let window = top.table(NAMESPACES, &namespaces, for_namespaces, gap, view.scrolled);
    top.messages(&messages, for_messages, gap);
    if foot > 0 {
        let at = Rect { y: area.height.saturating_sub(1), height: 1, ..area };
        frame.render_widget(Line::styled(keys(view), DIM), at);
    }
    window
}

/// How many lines each part gets: as many as it wants, or else messages and nodes a third each at most, and
/// namespaces what is left.
fn share(height: usize, wants: [usize; 3]) -> [usize; 3] {
    let [nodes, namespaces, messages] = wants;
    if nodes + namespaces + messages <= height {
        return wants;
    }
    let third = height.div_ceil(3);
    let messages = messages.min(third);
    let nodes = nodes.min(third.max((height - messages).saturating_sub(namespaces)));
    [nodes, namespaces.min((height - messages).saturating_sub(nodes)), messages]
}

/// The part of the area that is not drawn on yet.
struct Pen<'a, 'b> {
    frame: &'a mut Frame<'b>,
    y: u16,
    bottom: u16,
    area: Rect,
}

impl Pen<'_, '_> {
    fn left(&self) -> usize {
        self.bottom.saturating_sub(self.y).into()
    }

    /// The next `height` lines, as far as there are some.
    fn take(&mut self, height: usize) -> Rect {
        let height = u16::try_from(height.min(self.left())).unwrap_or(0);
        let at = Rect { y: self.y, height, ..self.area };
        self.y += height;
        at
    }

    fn line(&mut self, line: Line<'_>) {
        let at = self.take(1);
        if at.height > 0 {
            self.frame.render_widget(line, at);
        }
    }

    /// A table in `height` lines, the first `gap` of them empty. Of rows that do not fit the number is told. Returns the
    /// first one that is there, and how many are.
    fn table<T>(
        &mut self,
        columns: &[Column<T>],
        rows: &[&T],
        height: usize,
        gap: usize,
        scrolled: usize,
    ) -> (usize, usize) {
        let at = self.take(height);
        let (skip, room) = (gap.min(at.height.into()), usize::from(at.height).saturating_sub(gap));
        // A header without rows tells nothing.
        if room < 2 {
            return (0, 0);
        }
        let at = Rect { y: at.y + skip as u16, height: room as u16, ..at };
        let fits = room - 1;
        let (first, shows) = if rows.len() <= fits {
            (0, rows.len())
        } else {
            let shows = fits - 1;
            (scrolled.min(rows.len() - shows), shows)
        };
        let rest = rows.len() - shows;
        let kept = fit(columns, rows, self.area.width);
        let header = kept.iter().map(|kept| cell(kept.right, kept.header.to_owned(), HEAD));
        let rows = (first..first + shows).map(|row| {
            let cells = kept.iter().map(|kept| (kept.right, kept.cells[row].clone()));
            Row::new(cells.map(|(right, (text, style))| cell(right, text, style)))
        });
        let widths = kept.iter().map(|kept| Constraint::Length(kept.width));
        let table = Table::new(rows, widths).header(Row::new(header)).column_spacing(GAP);
        self.frame.render_widget(table, at);
        if rest > 0 {
            let at = Rect { y: at.y + at.height - 1, height: 1, ..at };
            let text = if first > 0 {
                format!("… {rest} more, {first} of them above")
            } else {
                format!("… {rest} more")
            };
            self.frame.render_widget(Line::styled(text, DIM), at);
        }
        (first, shows)
    }

    fn messages(&mut self, messages: &[Text], height: usize, gap: usize) {
        if messages.is_empty() {
            return;
        }
        self.take(gap.min(height.saturating_sub(1)));
        let room = height.saturating_sub(gap).max(1).min(self.left());
        let shows = if messages.len() <= room { messages.len() } else { room.saturating_sub(1) };
        for (text, style) in &messages[..shows] {
            self.line(Line::styled(text.clone(), *style));
        }
        if shows < messages.len() {
            self.line(Line::styled(format!("… {} more", messages.len() - shows), BAD));
        }
    }
}

/// A column that fits.
struct Kept {
    header: &'static str,
    right: bool,
    rank: u8,
    width: u16,
    cells: Vec<Text>,
}

/// The columns that fit: those that are left out the soonest go until the others do.
fn fit<T>(columns: &[Column<T>], rows: &[&T], width: u16) -> Vec<Kept> {
    let kept = |column: &Column<T>| {
        let (header, cells) = (column.0.trim_start_matches('>'), rows.iter().map(|row| column.2(row)));
        let (right, rank, cells) = (column.0.starts_with('>'), column.1, cells.collect::<Vec<Text>>());
        let widest = cells.iter().map(|(text, _)| text.chars().count()).max().unwrap_or(0);
        let width = u16::try_from(widest.max(header.chars().count())).unwrap_or(u16::MAX);
        Kept { header, right, rank, width, cells }
    };
    let mut all: Vec<Kept> = columns.iter().map(kept).collect();
    let total = |all: &[Kept]| all.iter().fold(0u16, |sum, kept| sum.saturating_add(kept.width).saturating_add(GAP));
    while total(&all).saturating_sub(GAP) > width {
        let Some(worst) = all.iter().map(|kept| kept.rank).max().filter(|rank| *rank > 0) else { break };
        all.retain(|kept| kept.rank != worst);
    }
    all
}

fn cell(right: bool, text: String, style: Style) -> Cell<'static> {
    let alignment = if right { Alignment::Right } else { Alignment::Left };
    Cell::new(Line::styled(text, style).alignment(alignment))
}

fn head(shown: &Shown<'_>) -> Line<'static> {
    let screen = shown.screen;
    let up = screen.nodes.iter().filter(|node| node.reachable).count();
    let mut line = Line::from(Span::styled(screen.cluster.clone(), HEAD));
    match screen.problems.len() {
        0 => line.push_span(Span::styled("  healthy", GOOD)),
        1 => line.push_span(Span::styled("  1 problem", BAD)),
        n => line.push_span(Span::styled(format!("  {n} problems"), BAD)),
    }
    line.push_span(format!("  {up}/{} nodes up", screen.nodes.len()));
    if let Some((why, seconds)) = shown.stale {
        line.push_span(Span::styled(format!("  as of {seconds} s ago: {why}"), WARN));
    }
    line
}

fn keys(view: &View) -> String {
    if view.typing {
        return format!("names that hold: {}_   Enter: done   Esc: all", view.filter);
    }
    let order = if view.reversed { ", reversed" } else { "" };
    let filter = if view.filter.is_empty() { String::new() } else { format!("   only: {}", view.filter) };
    format!("q quit   s sort: {}{order}   r reverse   / filter{filter}   ↑↓ PgUp PgDn scroll", view.sort.word())
}

fn messages(screen: &Screen) -> Vec<Text> {
    let problems = fold(&screen.problems).into_iter().map(|text| (format!("✗ {text}"), BAD));
    problems.chain(screen.notes.iter().map(|text| (format!("· {text}"), WARN))).collect()
}

/// What is wrong with many namespaces alike is one line: a node that is down would fill the screen otherwise.
fn fold(texts: &[String]) -> Vec<String> {
    let parts = |text: &'_ str| -> Option<(String, String)> {
        let (name, what) = text.strip_prefix("namespace ")?.split_once(": ")?;
        Some((name.to_owned(), what.to_owned()))
    };
    let mut alike: BTreeMap<String, usize> = BTreeMap::new();
    texts.iter().filter_map(|text| parts(text)).for_each(|(_, what)| *alike.entry(what).or_default() += 1);
    let line = |text: &String| {
        let Some((name, what)) = parts(text) else { return Some(text.clone()) };
        match alike.get_mut(&what) {
            Some(count) if *count > FOLDED => {
                let many = std::mem::take(count);
                Some(format!("{many} namespaces, {name} among them: {what}"))
            }
            // Told by the first of them.
            Some(0) => None,
            _ => Some(text.clone()),
        }
    };
    texts.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::termion::event::Key;

    use super::{
        super::{
            model::{NamespaceLine, Sample, tests::strong},
            text,
            traffic::Traffic,
        },
        *,
    };

    fn screen(applied: [Option<u64>; 3]) -> Screen {
        Screen::new(None, &Sample { at: Duration::ZERO, report: strong(applied) })
    }

    fn shown<'a>(screen: &'a Screen, view: &'a View) -> Shown<'a> {
        Shown { screen, view, stale: None, live: true }
    }

    #[test]
    fn everything_is_on_a_screen_that_is_large_enough() {
        let (mut screen, view) = (screen([Some(9), Some(9), Some(7)]), View::default());
        screen.namespaces[0].requests = Some(Traffic {
            per_second: 2500.0,
            written_per_second: 1234.4,
            refused_per_second: 0.5,
            p50_us: Some(240),
            p99_us: Some(1840),
        });
        screen.notes.push("namespace orders is being switched".into());
        let drawn = text(140, 14, &shown(&screen, &view));
        assert_eq!(drawn.lines().next(), Some("test  healthy  3/3 nodes up"));
        assert_eq!(
            drawn.lines().nth(2).map(|l| l.split_whitespace().collect::<Vec<_>>()).unwrap(),
            ["NODE", "STATE", "UPTIME", "DISK", "FREE", "PEERS", "LEADS", "VERSION", "ADDRESS"]
        );
        let table: Vec<&str> = drawn.lines().skip_while(|line| !line.starts_with("NAMESPACE")).take(2).collect();
        let expected = [
            "NAMESPACE  MODE    EPOCH  PHASE   LEADER  QUORUM   MEMBERS  KEYS  LAG  WRITES/S  REQ/S  REFUSED/S     P50     P99",
            "orders     strong      1  stable       1  healthy  3/3         2    2     1,234  2,500        0.5  240 µs  1.8 ms",
        ];
        assert_eq!(table, expected, "{drawn}");
        assert!(drawn.contains("· namespace orders is being switched"), "{drawn}");
        assert!(drawn.trim_end().ends_with("PgDn scroll"), "{drawn}");
    }

    #[test]
    fn what_is_wrong_is_seen_at_any_size() {
        let (screen, view) = (screen([None, Some(9), None]), View::default());
        for (width, height) in [(80, 24), (40, 10), (30, 6)] {
            let drawn = text(width, height, &shown(&screen, &view));
            assert!(drawn.contains("problems") && drawn.contains('✗'), "{width} x {height}:\n{drawn}");
        }
        let narrow = text(36, 24, &shown(&screen, &view));
        assert!(
            !narrow.contains("VERSION") && narrow.contains("✗ unreachable") && narrow.contains("✗ lost"),
            "{narrow}"
        );
    }

    #[test]
    fn a_node_that_is_down_is_on_a_small_screen_and_does_not_fill_it() {
        let mut screen = screen([Some(9), Some(9), None]);
        screen.problems = vec!["node 3 is unreachable".into(), "namespace odd: its digests differ".into()];
        screen.problems.extend((0..40).map(|n| format!("namespace n{n}: not every voter answers")));
        screen.notes = vec!["namespace orders is being switched".into()];
        screen.namespaces =
            (0..50).map(|n| NamespaceLine { name: format!("n{n}"), ..screen.namespaces[0].clone() }).collect();
        let view = View::default();
        let drawn = text(60, 14, &shown(&screen, &view));
        assert!(drawn.contains("✗ unreachable"), "{drawn}");
        let told: Vec<String> = messages(&screen).into_iter().map(|(text, _)| text).collect();
        let expected = [
            "✗ node 3 is unreachable",
            "✗ namespace odd: its digests differ",
            "✗ 40 namespaces, n0 among them: not every voter answers",
            "· namespace orders is being switched",
        ];
        assert_eq!(told, expected);
        screen.problems.truncate(5);
        assert_eq!(messages(&screen).len(), 6, "three alike are told one by one");
    }

    #[test]
    fn no_size_is_too_small() {
        let mut many = screen([None, Some(9), None]);
        many.namespaces =
            (0..50).map(|n| NamespaceLine { name: format!("n{n}"), ..many.namespaces[0].clone() }).collect();
        for scrolled in [0, 7, usize::MAX] {
            let view = View { scrolled, ..View::default() };
            for width in 0..12 {
                for height in 0..30 {
                    text(width * 10, height, &shown(&many, &view));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_can_be_scrolled_to() {
        let mut screen = screen([Some(9), Some(9), Some(9)]);
        screen.namespaces =
            (10..40).map(|n| NamespaceLine { name: format!("n{n}"), ..screen.namespaces[0].clone() }).collect();
        let mut view = View::default();
        let drawn = text(80, 20, &shown(&screen, &view));
        assert!(drawn.contains("\nn10 ") && !drawn.contains("n39") && drawn.contains("more"), "{drawn}");
        view.scrolled = usize::MAX;
        let drawn = text(80, 20, &shown(&screen, &view));
        assert!(drawn.contains("\nn39 ") && !drawn.contains("\nn10 ") && drawn.contains("of them above"), "{drawn}");
        view.key(Key::Char('/'));
        view.key(Key::Char('3'));
        let drawn = text(80, 20, &shown(&screen, &view));
        assert!(drawn.contains("\nn13 ") && !drawn.contains("\nn10 "), "{drawn}");
        assert!(drawn.contains("names that hold: 3_"), "{drawn}");
    }

    #[test]
    fn a_cluster_that_has_fallen_silent_is_told() {
        let (screen, view) = (screen([Some(9), Some(9), Some(9)]), View::default());
        let drawn = text(100, 24, &Shown { stale: Some(("no node answers", 12)), ..shown(&screen, &view) });
        assert!(drawn.starts_with("test  healthy  3/3 nodes up  as of 12 s ago: no node answers"), "{drawn}");
    }

    #[test]
    fn parts_are_shared_out() {
        assert_eq!(share(20, [5, 5, 2]), [5, 5, 2]);
        assert_eq!(share(9, [5, 50, 20]), [3, 3, 3]);
        assert_eq!(share(9, [50, 2, 0]), [7, 2, 0], "what one leaves the other takes");
        assert_eq!(share(0, [1, 1, 1]), [0, 0, 0]);
    }
}
