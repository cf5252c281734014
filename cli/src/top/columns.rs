//! The columns of both tables: what each says of a line, and how that looks.

use duet_proto::{Phase, QuorumHealth};
use ratatui::style::{Color, Modifier, Style};

use super::model::{Lag, NamespaceLine, NodeLine};
use crate::{
    output::{count, size, span},
    status::word,
};

pub(super) const BAD: Style = Style::new().fg(Color::Red);
pub(super) const WARN: Style = Style::new().fg(Color::Yellow);
pub(super) const GOOD: Style = Style::new().fg(Color::Green);
pub(super) const DIM: Style = Style::new().add_modifier(Modifier::DIM);
pub(super) const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const PLAIN: Style = Style::new();

/// A cell, and how it looks.
pub(super) type Text = (String, Style);

/// A column: its header (`>` aligns to the right), how soon it is left out (the highest first, 0 never), and its cells.
pub(super) struct Column<T>(pub(super) &'static str, pub(super) u8, pub(super) fn(&T) -> Text);

pub(super) const NODES: &[Column<NodeLine>] = &[
    Column(">NODE", 0, |line| plain(line.id)),
    Column("STATE", 0, state),
    Column(">UPTIME", 4, |line| known(line.uptime_ms, span)),
    Column(">DISK FREE", 2, |line| known(line.disk_free, size)),
    Column("PEERS", 3, peers),
    Column(">LEADS", 6, |line| plain(line.leads)),
    Column("VERSION", 7, |line| known(line.version.clone(), |version| version)),
    Column("ADDRESS", 5, |line| plain(&line.address)),
];

pub(super) const NAMESPACES: &[Column<NamespaceLine>] = &[
    Column("NAMESPACE", 0, |line| plain(&line.name)),
    Column("MODE", 1, |line| plain(line.mode)),
    Column(">EPOCH", 10, |line| plain(line.epoch)),
    Column("PHASE", 8, |line| (word(line.phase), if line.phase == Phase::Stable { PLAIN } else { WARN })),
    Column(">LEADER", 11, |line| known(line.leader, |leader| leader.to_string())),
    Column("QUORUM", 0, quorum),
    Column("MEMBERS", 12, |line| part(line.present, line.members)),
    Column(">KEYS", 6, |line| known(line.keys, count)),
    Column(">LAG", 5, |line| known(line.lag, lag)),
    Column(">WRITES/S", 7, |line| known(line.requests, |requests| rate(requests.written_per_second))),
    Column(">REQ/S", 2, |line| known(line.requests, |requests| rate(requests.per_second))),
    Column(">REFUSED/S", 4, refused),
    Column(">P50", 9, |line| known(line.requests.and_then(|requests| requests.p50_us), latency)),
    Column(">P99", 3, |line| known(line.requests.and_then(|requests| requests.p99_us), latency)),
];

fn plain(value: impl ToString) -> Text {
    (value.to_string(), PLAIN)
}

fn known<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> Text {
    value.map_or_else(|| ("–".into(), DIM), |value| (text(value), PLAIN))
}

/// So many of so many.
fn part(of: usize, all: usize) -> Text {
    (format!("{of}/{all}"), if of < all { WARN } else { PLAIN })
}

fn state(line: &NodeLine) -> Text {
    match (line.reachable, line.disk_full) {
        (false, _) => ("✗ unreachable".into(), BAD),
        (true, true) => ("✗ disk full".into(), BAD),
        (true, false) => ("up".into(), GOOD),
    }
}

fn peers(line: &NodeLine) -> Text {
    if line.reachable { part(line.connected, line.others) } else { ("–".into(), DIM) }
}

fn quorum(line: &NamespaceLine) -> Text {
    match line.quorum {
        _ if line.alarmed => ("✗ at odds".into(), BAD),
        QuorumHealth::Lost => ("✗ lost".into(), BAD),
        QuorumHealth::Degraded => ("degraded".into(), WARN),
        QuorumHealth::Healthy => ("healthy".into(), GOOD),
        QuorumHealth::NotNeeded => ("not needed".into(), PLAIN),
    }
}

fn lag(lag: Lag) -> String {
    match lag {
        Lag::Entries(entries) => count(entries),
        Lag::Ms(ms) => span(ms),
    }
}

/// That nothing is refused is no news.
fn refused(line: &NamespaceLine) -> Text {
    let per_second = line.requests.map(|requests| requests.refused_per_second);
    (known(per_second, rate).0, if per_second > Some(0.0) { WARN } else { DIM })
}

/// Below ten a digit after the point.
fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 { format!("{per_second:.1}") } else { count(per_second.round() as u64) }
}

/// Two digits at least, as far as they are known.
fn latency(us: u64) -> String {
    match us {
        ..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            model::{Sample, Screen, tests::strong},
            traffic::Traffic,
        },
        *,
    };

    #[test]
    fn refusals_are_seen_and_none_are_quiet() {
        let sample = Sample { at: std::time::Duration::ZERO, report: strong([Some(1); 3]) };
        let line = &mut Screen::new(None, &sample).namespaces[0];
        assert_eq!(refused(line), ("–".into(), DIM), "one look alone");
        line.requests = Some(Traffic::default());
        assert_eq!(refused(line), ("0".into(), DIM));
        line.requests = Some(Traffic { refused_per_second: 12.0, ..Traffic::default() });
        assert_eq!(refused(line), ("12".into(), WARN));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, 0.04, 9.94, 10.0, 1234.4].map(rate), ["0", "0.0", "9.9", "10", "1,234"]);
        let shown = ["42 µs", "999 µs", "1.0 ms", "9.9 ms", "10 ms", "999 ms", "1.0 s", "10.0 s"];
        assert_eq!([42, 999, 1_000, 9_900, 10_000, 999_999, 1_000_000, 10_000_000].map(latency), shown);
    }
}
