//! The table, the JSON and the plot.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::Result;
use duet_client::Mode;
use serde_json::json;

/// What was seen of one switch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The longest time in which a client got no answer to a write.
    pub(super) writes: Duration,
    /// The same of reads.
    pub(super) reads: Duration,
    /// The longest time without an answer to a write just before.
    pub(super) calm: Duration,
    /// From the request until the next epoch was there.
    pub(super) done: Duration,
    /// By the catalog: from the request until writes stopped.
    pub(super) gathering_ms: u64,
    /// By the catalog: for how long they did.
    pub(super) sealed_ms: u64,
    /// How often they did.
    pub(super) attempts: u64,
}

/// The switches of one setting in one direction.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) records: u64,
    pub(super) divergence: u64,
    /// Whether the nodes ran in network namespaces: the rows by divergence.
    pub(super) of_link: bool,
    pub(super) to: Mode,
    pub(super) seen: Vec<Seen>,
}

impl Row {
    /// A percentile of something, in milliseconds. Of 20 values the 99th is the largest.
    fn at(&self, percent: usize, of: impl Fn(&Seen) -> f64) -> f64 {
        let mut values: Vec<f64> = self.seen.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Writes everything.
pub(super) fn write(folder: &Path, rows: &[Row]) -> Result<()> {
    print_table(rows);
    let all: Vec<_> = rows.iter().map(document).collect();
    fs::write(folder.join("switch.json"), serde_json::to_string_pretty(&json!({ "switches": all }))? + "\n")?;
    fs::write(folder.join("switch.svg"), plot(rows))?;
    println!("\nwritten: {0}/switch.json, {0}/switch.svg", folder.display());
    Ok(())
}

fn print_table(rows: &[Row]) {
    println!();
    println!("                                        longest gap of a client, ms        by the catalog, ms");
    println!("   records  differing  to        writes p50    p99  reads p99  before   gathering  stopped   done p99");
    for row in rows {
        println!(
            "{:>10} {:>10}  {:<9} {:>10.0} {:>6.0} {:>10.0} {:>7.0} {:>11.0} {:>8.0} {:>10.0}",
            row.records,
            row.divergence,
            row.to.to_string(),
            row.at(50, |seen| ms(seen.writes)),
            row.at(99, |seen| ms(seen.writes)),
            row.at(99, |seen| ms(seen.reads)),
            row.at(50, |seen| ms(seen.calm)),
            row.at(50, |seen| seen.gathering_ms as f64),
            row.at(50, |seen| seen.sealed_ms as f64),
            row.at(99, |seen| ms(seen.done)),
        );
    }
}

fn document(row: &Row) -> serde_json::Value {
    let seen = row.seen.iter().map(|seen| {
        json!({
            "write_gap_ms": ms(seen.writes),
            "read_gap_ms": ms(seen.reads),
            "write_gap_before_ms": ms(seen.calm),
            "done_ms": ms(seen.done),
            "gathering_ms": seen.gathering_ms,
            "stopped_ms": seen.sealed_ms,
            "attempts": seen.attempts,
        })
    });
    json!({
        "records": row.records,
        "differing": row.divergence,
        "to": row.to.to_string(),
        "write_gap_p99_ms": row.at(99, |seen| ms(seen.writes)),
        "read_gap_p99_ms": row.at(99, |seen| ms(seen.reads)),
        "switches": seen.collect::<Vec<_>>(),
    })
}

/// Millimetres, so to speak: the drawing's own unit.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 220.0;
const MARGIN: f64 = 60.0;
/// The promise, in milliseconds.
const PROMISE: f64 = 250.0;

/// Two plots side by side: the stall of writes by size, and by divergence.
fn plot(rows: &[Row]) -> String {
    let mut svg = String::new();
    let (width, height) = (2.0 * (WIDTH + 2.0 * MARGIN), HEIGHT + 2.0 * MARGIN);
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"
    );
    let top = rows.iter().map(|row| row.at(99, |seen| ms(seen.writes))).fold(PROMISE, f64::max) * 1.15;
    let sizes: Vec<&Row> = rows.iter().filter(|row| !row.of_link).collect();
    panel(&mut svg, 0.0, "longest gap of writes by records, members in step", &sizes, top, |row| row.records);
    let differing: Vec<&Row> = rows.iter().filter(|row| row.of_link).collect();
    let right = WIDTH + 2.0 * MARGIN;
    panel(&mut svg, right, "by records that one member alone holds", &differing, top, |row| row.divergence);
    svg + "</svg>\n"
}

/// One plot: a place on the x axis for each setting, a line for each direction, a dot for each switch.
fn panel(svg: &mut String, left: f64, title: &str, rows: &[&Row], top: f64, of: impl Fn(&Row) -> u64) {
    let mut places: Vec<u64> = rows.iter().map(|row| of(row)).collect();
    places.sort_unstable();
    places.dedup();
    let x = |value: u64| {
        let at = places.iter().position(|place| *place == value).unwrap_or_default();
        left + MARGIN + WIDTH * (at as f64 + 0.5) / places.len().max(1) as f64
    };
    let y = |value: f64| MARGIN + HEIGHT * (1.0 - value / top);
    let (right, floor) = (left + MARGIN + WIDTH, MARGIN + HEIGHT);
    let _ =
        writeln!(svg, "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{title}</text>", left + MARGIN, MARGIN - 24.0);
    let step = [5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0].into_iter().find(|step| top / step <= 8.0);
    let step = step.unwrap_or(top / 4.0);
    for line in (0_u32..).map(|n| f64::from(n) * step).take_while(|line| *line <= top) {
        let _ = writeln!(
            svg,
            "<line x1=\"{}\" x2=\"{right}\" y1=\"{1}\" y2=\"{1}\" stroke=\"#ddd\"/>\
             <text x=\"{2}\" y=\"{3}\" text-anchor=\"end\">{line} ms</text>",
            left + MARGIN,
            y(line),
            left + MARGIN - 6.0,
            y(line) + 4.0,
        );
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{}\" x2=\"{right}\" y1=\"{1}\" y2=\"{1}\" stroke=\"#b00\" stroke-dasharray=\"4 3\"/>",
        left + MARGIN,
        y(PROMISE)
    );
    for place in &places {
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{place}</text>", x(*place), floor + 18.0);
    }
    for (mode, colour, aside, name) in
        [(Mode::Strong, "#1565c0", -6.0, "to strong"), (Mode::Eventual, "#e07b00", 6.0, "to eventual")]
    {
        let mine: Vec<&&Row> = rows.iter().filter(|row| row.to == mode).collect();
        let point = |row: &&&Row| format!("{},{}", x(of(row)) + aside, y(row.at(99, |seen| ms(seen.writes))));
        let line: Vec<String> = mine.iter().map(point).collect();
        let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", line.join(" "));
        for row in &mine {
            for seen in &row.seen {
                let (x, y) = (x(of(row)) + aside, y(ms(seen.writes)));
                let _ =
                    writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"2.5\" fill=\"{colour}\" fill-opacity=\"0.5\"/>");
            }
        }
        let row = if mode == Mode::Strong { 36.0 } else { 50.0 };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}: each switch, and the p99</text>",
            left + MARGIN,
            floor + row
        );
    }
}
