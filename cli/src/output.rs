//! What goes to standard output: a table for people or one JSON document. Everything else goes to standard error.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;
use serde::Serialize;

use crate::{args::Output, failure::Failure};

/// Writes answers in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    /// The form.
    pub format: Output,
}

impl Printer {
    /// Whether JSON is asked for.
    #[must_use]
    pub fn json(self) -> bool {
        self.format == Output::Json
    }

    /// One answer: `document` as JSON, or the lines that `table` makes.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub fn answer(self, document: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), Failure> {
        let mut text = match self.format {
            Output::Json => serde_json::to_string(document).map_err(|e| Failure::failed(e.to_string()))?,
            Output::Table => table(),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.bytes(text.as_bytes())
    }

    /// Bytes as they are.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            // Whoever read it has seen enough: `duet scan … | head` is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|e| Failure::failed(format!("standard output: {e}"))),
        }
    }
}

/// A line for people, on standard error.
pub fn say(text: impl AsRef<str>) {
    // Nobody is left to tell if it cannot be written.
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// An aligned table. The columns whose headers begin with `>` are aligned to the right.
#[must_use]
pub fn table(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headers.iter().map(|h| h.trim_start_matches('>')).collect::<Vec<_>>());
    for row in rows {
        table.add_row(row);
    }
    for (column, header) in table.column_iter_mut().zip(headers) {
        column.set_padding((0, 2));
        if header.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A number of bytes for people: `1.5 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

/// A time span for people: its two largest units.
#[must_use]
pub fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// The time that is left for people: days, or hours where there are not two.
#[must_use]
pub fn left(seconds: i64) -> String {
    match seconds / 3600 {
        ..1 => "less than an hour".to_owned(),
        1 => "1 hour".to_owned(),
        hours @ ..48 => format!("{hours} hours"),
        hours => format!("{} days", hours / 24),
    }
}

/// A count for people: `34_924` reads as `34,924`.
#[must_use]
pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let text = table(&["NAME", ">N"], [vec!["a".into(), "1".into()], vec!["longer".into(), "1000".into()]]);
        assert_eq!(text, "NAME       N\na          1\nlonger  1000\n");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([count(0), count(999), count(34_924), count(1_000_000)], ["0", "999", "34,924", "1,000,000"]);
        assert_eq!([size(12), size(1536), size(5 << 30)], ["12 B", "1.5 KiB", "5.0 GiB"]);
        assert_eq!([left(3599), left(7199), left(172_799)], ["less than an hour", "1 hour", "47 hours"]);
        assert_eq!([left(172_800), left(30 * 86_400 - 1)], ["2 days", "29 days"]);
        assert_eq!([span(12), span(61_000), span(90_000_000)], ["12 ms", "1 min 1 s", "1 d 1 h"]);
    }
}
