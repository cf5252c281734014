//! Ratios, round by round.

use comfy_table::{Table, presets};
use indicatif::HumanCount;
use serde_json::{Value, json};

use super::Samples;
use crate::Report;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Successes in a second.
    PerSecond,
    /// Median latency.
    P50,
    /// The latency that one request in a hundred exceeds.
    P99,
}

impl Of {
    pub(super) fn read(self, report: &Report) -> f64 {
        match self {
            Of::PerSecond => report.all.per_second,
            Of::P50 => report.all.latency_us.p50 as f64,
            Of::P99 => report.all.latency_us.p99 as f64,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Of::PerSecond => "op/s",
            Of::P50 => "p50",
            Of::P99 => "p99",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Of::PerSecond => format!("{}/s", thousands(value)),
            Of::P50 | Of::P99 => format!("{} µs", thousands(value)),
        }
    }
}

/// What a ratio should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => ratio >= bound,
            Bound::AtMost(bound) => ratio <= bound,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::AtLeast(bound) => write!(f, "at least {bound}"),
            Bound::AtMost(bound) => write!(f, "at most {bound}"),
        }
    }
}

/// A number of one system by that of another.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// The case.
    pub case: &'static str,
    /// Which number.
    pub of: Of,
    /// The system above the line.
    pub ours: &'static str,
    /// The system below it.
    pub theirs: &'static str,
    /// What is asked for.
    pub bound: Bound,
}

/// The ratios of all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ratio {
    ours: f64,
    theirs: f64,
    median: f64,
    least: f64,
    most: f64,
}

impl Figure {
    fn ratio(&self, samples: &Samples) -> Option<Ratio> {
        let (ours, theirs) = (samples.of(self.case, self.ours, self.of), samples.of(self.case, self.theirs, self.of));
        Ratio::new(&ours, &theirs)
    }

    pub(super) fn document(&self, samples: &Samples) -> Value {
        let ratio = self.ratio(samples);
        let (kind, bound) = match self.bound {
            Bound::AtLeast(bound) => ("at_least", bound),
            Bound::AtMost(bound) => ("at_most", bound),
        };
        json!({
            "load": self.case,
            "of": self.of.name(),
            "ours": { "system": self.ours, "median": ratio.map(|r| r.ours) },
            "theirs": { "system": self.theirs, "median": ratio.map(|r| r.theirs) },
            "ratio": ratio.map(|r| json!({ "median": r.median, "min": r.least, "max": r.most })),
            "target": { kind: bound },
            "reached": ratio.map(|r| self.bound.holds(r.median)),
        })
    }
}

impl Ratio {
    /// None if nothing was measured, or nothing succeeded.
    fn new(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        ratios.retain(|ratio| ratio.is_finite());
        ratios.sort_by(f64::total_cmp);
        Some(Ratio {
            ours: median(ours)?,
            theirs: median(theirs)?,
            median: median(&ratios)?,
            least: *ratios.first()?,
            most: *ratios.last()?,
        })
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

/// The figures for people.
pub(super) fn table(samples: &Samples, figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["load", "of", "ours", "theirs", "ratio (min to max)", "target", "reached"]);
    for figure in figures {
        let head = [figure.case.to_owned(), figure.of.name().to_owned()];
        let cells = match figure.ratio(samples) {
            None => ["-", "-", "not measured"].map(str::to_owned),
            Some(ratio) => [
                format!("{} {}", figure.ours, figure.of.show(ratio.ours)),
                format!("{} {}", figure.theirs, figure.of.show(ratio.theirs)),
                format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.least, ratio.most),
            ],
        };
        let reached = figure.ratio(samples).map_or("-", |r| if figure.bound.holds(r.median) { "yes" } else { "NO" });
        let [load, of] = head;
        let [ours, theirs, ratio] = cells;
        table.add_row([load, of, ours, theirs, ratio, figure.bound.to_string(), reached.into()]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A count for people: `34924.2` reads as `34,924`.
#[must_use]
pub fn thousands(value: f64) -> String {
    HumanCount(value.abs().round_ties_even() as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let ratio = Ratio::new(&[400.0, 100.0, 300.0], &[100.0, 50.0, 100.0]).unwrap();
        assert_eq!(ratio, Ratio { ours: 300.0, theirs: 100.0, median: 3.0, least: 2.0, most: 4.0 });
        assert_eq!(Ratio::new(&[1.0, 4.0], &[1.0, 1.0]).unwrap().median, 2.5);
    }

    #[test]
    fn nothing_measured_is_no_ratio() {
        assert_eq!(Ratio::new(&[], &[]), None);
        assert_eq!(Ratio::new(&[0.0], &[0.0]), None);
        let figure = Figure { case: "put", of: Of::P99, ours: "a", theirs: "b", bound: Bound::AtMost(0.5) };
        assert!(table(&Samples::default(), &[figure]).contains("not measured"));
        assert_eq!(figure.document(&Samples::default())["reached"], Value::Null);
    }

    #[test]
    fn bounds_hold_on_their_side() {
        assert!(Bound::AtLeast(4.0).holds(4.0) && !Bound::AtLeast(4.0).holds(3.99));
        assert!(Bound::AtMost(0.5).holds(0.5) && !Bound::AtMost(0.5).holds(0.51));
    }

    #[test]
    fn counts_are_readable() {
        assert_eq!([0.4, 999.0, 34_924.2, 1e6].map(thousands), ["0", "999", "34,924", "1,000,000"]);
    }
}
