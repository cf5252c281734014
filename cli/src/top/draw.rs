//! The screen as cells of a terminal. Whatever the size, something useful is on it and nothing panics: columns that do
//! not fit are left out from the least important on, and rows that do not fit are counted.

use std::collections::BTreeMap;

use duet_proto::{Phase, QuorumHealth};
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Row, Table},
};

use super::{
    model::{Lag, NamespaceLine, NodeLine, Screen},
    view::View,
};
use crate::{
    output::{count, size, span},
    status::word,
};

const BAD: Style = Style::new().fg(Color::Red);
const WARN: Style = Style::new().fg(Color::Yellow);
const GOOD: Style = Style::new().fg(Color::Green);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const PLAIN: Style = Style::new();
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

/// A cell, and how it looks.
type Text = (String, Style);

/// A column of a table: its header (`>` aligns to the right) and how soon it is left out; 0 never.
type Column = (&'static str, u8);

const NODES: &[Column] = &[
    (">NODE", 0),
    ("STATE", 0),
    (">UPTIME", 4),
    (">DISK FREE", 2),
    ("PEERS", 3),
    (">LEADS", 6),
    ("VERSION", 7),
    ("ADDRESS", 5),
];

const NAMESPACES: &[Column] = &[
    ("NAMESPACE", 0),
    ("MODE", 1),
    (">EPOCH", 6),
    ("PHASE", 5),
    (">LEADER", 7),
    ("QUORUM", 0),
    ("MEMBERS", 8),
    (">KEYS", 4),
    (">LAG", 3),
    (">WRITES/S", 2),
];

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
    let namespaces: Vec<Vec<Text>> = view.pick(&screen.namespaces).into_iter().map(namespace).collect();
    let messages = messages(screen);
    let wants = [screen.nodes.len() + 1 + gap, namespaces.len() + 1 + gap, messages.len() + gap];
    let [for_nodes, for_namespaces, for_messages] = share(top.left(), wants);
    let mut nodes: Vec<&NodeLine> = screen.nodes.iter().collect();
    if for_nodes < wants[0] {
        // Those that something is wrong with must be on it.
        nodes.sort_by_key(|node| node.reachable && !node.disk_full);
    }
    let nodes: Vec<Vec<Text>> = nodes.into_iter().map(node).collect();
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
    fn table(
        &mut self,
        columns: &[Column],
        rows: &[Vec<Text>],
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
        let (widths, kept) = fit(columns, rows, self.area.width);
        let header = Row::new(kept.iter().map(|column| {
            let name = columns[*column].0;
            cell(name, name.trim_start_matches('>'), HEAD)
        }));
        let rows = rows[first..first + shows].iter().map(|row| {
            let cells = kept.iter().map(|column| cell(columns[*column].0, &row[*column].0, row[*column].1));
            Row::new(cells.collect::<Vec<_>>())
        });
        let table = Table::new(rows, widths).header(header).column_spacing(GAP);
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

/// The widths of the columns that fit, and which those are.
fn fit(columns: &[Column], rows: &[Vec<Text>], width: u16) -> (Vec<Constraint>, Vec<usize>) {
    let needs = |at: usize| {
        let cells = rows.iter().map(|row| row[at].0.chars().count());
        let header = columns[at].0.trim_start_matches('>').chars().count();
        u16::try_from(cells.max().unwrap_or(0).max(header)).unwrap_or(u16::MAX)
    };
    let mut kept: Vec<usize> = (0..columns.len()).collect();
    let total = |kept: &[usize]| kept.iter().fold(0u16, |sum, at| sum.saturating_add(needs(*at)).saturating_add(GAP));
    while total(&kept).saturating_sub(GAP) > width {
        let Some(worst) = kept.iter().copied().filter(|at| columns[*at].1 > 0).max_by_key(|at| columns[*at].1) else {
            break;
        };
        kept.retain(|at| *at != worst);
    }
    (kept.iter().map(|at| Constraint::Length(needs(*at))).collect(), kept)
}

fn cell(header: &str, text: &str, style: Style) -> Cell<'static> {
    let alignment = if header.starts_with('>') { Alignment::Right } else { Alignment::Left };
    Cell::new(Line::styled(text.to_owned(), style).alignment(alignment))
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

fn known<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> Text {
    value.map_or_else(|| ("–".into(), DIM), |value| (text(value), PLAIN))
}

fn node(line: &NodeLine) -> Vec<Text> {
    let state = match (line.reachable, line.disk_full) {
        (false, _) => ("✗ unreachable", BAD),
        (true, true) => ("✗ disk full", BAD),
        (true, false) => ("up", GOOD),
    };
    let peers =
        (format!("{}/{}", line.connected, line.others), if line.connected < line.others { WARN } else { PLAIN });
    vec![
        (line.id.to_string(), PLAIN),
        (state.0.into(), state.1),
        known(line.uptime_ms, span),
        known(line.disk_free, size),
        if line.reachable { peers } else { ("–".into(), DIM) },
        (line.leads.to_string(), PLAIN),
        known(line.version.clone(), |version| version),
        (line.address.clone(), PLAIN),
    ]
}

fn namespace(line: &NamespaceLine) -> Vec<Text> {
    let quorum = match line.quorum {
        _ if line.alarmed => ("✗ at odds".into(), BAD),
        QuorumHealth::Lost => ("✗ lost".into(), BAD),
        QuorumHealth::Degraded => ("degraded".into(), WARN),
        QuorumHealth::Healthy => ("healthy".into(), GOOD),
        QuorumHealth::NotNeeded => ("not needed".into(), PLAIN),
    };
    let members = format!("{}/{}", line.present, line.members);
    vec![
        (line.name.clone(), PLAIN),
        (line.mode.to_string(), PLAIN),
        (line.epoch.to_string(), PLAIN),
        (word(line.phase), if line.phase == Phase::Stable { PLAIN } else { WARN }),
        known(line.leader, |leader| leader.to_string()),
        quorum,
        (members, if line.present < line.members { WARN } else { PLAIN }),
        known(line.keys, count),
        known(line.lag, |lag| match lag {
            Lag::Entries(entries) => count(entries),
            Lag::Ms(ms) => span(ms),
        }),
        known(line.writes_per_second, rate),
    ]
}

/// Below ten a digit after the point.
fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 { format!("{per_second:.1}") } else { count(per_second.round() as u64) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::termion::event::Key;

    use super::{
        super::{
            model::{Sample, tests::strong},
            text,
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
        screen.namespaces[0].writes_per_second = Some(1234.4);
        screen.notes.push("namespace orders is being switched".into());
        let drawn = text(100, 14, &shown(&screen, &view));
        assert_eq!(drawn.lines().next(), Some("test  healthy  3/3 nodes up"));
        assert_eq!(
            drawn.lines().nth(2).map(|l| l.split_whitespace().collect::<Vec<_>>()).unwrap(),
            ["NODE", "STATE", "UPTIME", "DISK", "FREE", "PEERS", "LEADS", "VERSION", "ADDRESS"]
        );
        let row = drawn.lines().find(|line| line.starts_with("orders")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells, ["orders", "strong", "1", "stable", "1", "healthy", "3/3", "2", "2", "1,234"], "{drawn}");
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
