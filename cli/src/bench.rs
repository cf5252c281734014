//! `duet bench`: a load of `duet-bench` on a namespace, watched while it runs.

use duet_bench::{Duet, Glimpse, Line, Load, LoadError, Report};
use duet_client::{Client, NewNamespace};
use duet_proto::Error;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    args::{Bench, Globals},
    failure::{Exit, Failure},
    output::{Printer, count, say, table},
    run::Stop,
    verbs::{connect, open},
};

/// What was measured, and where.
#[derive(Debug, Serialize)]
struct Document {
    namespace: String,
    #[serde(flatten)]
    report: Report,
}

/// `duet bench`
pub(crate) async fn run(client: &Client, verb: &Bench, globals: &Globals, printer: Printer) -> Result<Exit, Failure> {
    // From before there is something to clean up.
    let mut stop = Stop::new()?;
    let made = prepare(client, verb).await?;
    let result = tokio::select! {
        result = measure(client, verb, globals) => result,
        () = stop.asked() => Err(Failure::failed("interrupted")),
    };
    let deleted = match made {
        true => client.admin().delete_namespace(verb.namespace.as_str()).await,
        false => Ok(()),
    };
    let document = Document { namespace: verb.namespace.to_string(), report: result? };
    printer.answer(&document, || document.render())?;
    deleted?;
    Ok(document.exit())
}

/// Creates the namespace if there is none; says whether it did.
async fn prepare(client: &Client, verb: &Bench) -> Result<bool, Failure> {
    let new = NewNamespace { mode: verb.mode, ..NewNamespace::strong() };
    let created = client.admin().create_namespace(verb.namespace.as_str(), new).await;
    let Err(refused) = created else { return Ok(true) };
    match refused.cluster() {
        Some(Error::NamespaceExists { .. }) => Ok(false),
        Some(Error::Unauthorized { .. }) => {
            // Whoever may not create it may not ask for it either, but read from it.
            let read = open(client, &verb.namespace, true)?.get(duet_bench::key(0)).await;
            match read.as_ref().map_err(|error| error.cluster()) {
                Err(Some(Error::NamespaceNotFound { .. })) => {
                    Err(Failure::from(refused).context(format!("creating {}", verb.namespace)))
                }
                _ => Ok(false),
            }
        }
        _ => Err(refused.into()),
    }
}

async fn measure(client: &Client, verb: &Bench, globals: &Globals) -> Result<Report, Failure> {
    let mut targets = vec![Duet(open(client, &verb.namespace, verb.local)?)];
    for _ in 1..verb.connections {
        targets.push(Duet(open(&connect(globals).await?, &verb.namespace, verb.local)?));
    }
    let load = verb.load();
    if verb.workload.needs_keys() && !verb.filled {
        say(format!("writing {} keys …", count(verb.keys)));
        duet_bench::fill(&load, &targets).await?;
    }
    let bar = Bar::new(&load);
    let report = duet_bench::run(&load, &targets, |glimpse| bar.show(glimpse)).await;
    bar.0.finish_and_clear();
    Ok(report?)
}

/// What shows on a terminal while it runs.
struct Bar(ProgressBar);

impl Bar {
    fn new(load: &Load) -> Bar {
        let bar = ProgressBar::new((load.warm_up + load.duration).as_millis() as u64);
        // The template is a constant; without it the bar is plain.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
            bar.set_style(style);
        }
        bar.set_message("…");
        Bar(bar)
    }

    fn show(&self, glimpse: Glimpse) {
        self.0.set_position(glimpse.elapsed.as_millis() as u64);
        self.0.set_message(line(&glimpse));
    }
}

fn line(glimpse: &Glimpse) -> String {
    let left = glimpse.whole.saturating_sub(glimpse.elapsed).as_secs_f64();
    format!(
        "{} op/s  p99 {:.2} ms  {} errors  {}{left:.0} s left",
        count(glimpse.per_second as u64),
        glimpse.p99.as_secs_f64() * 1e3,
        count(glimpse.failed),
        if glimpse.warming { "warming up, " } else { "" },
    )
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Failure {
        Failure::failed(error.to_string())
    }
}

impl Document {
    /// What nothing came of has failed, though it was measured.
    fn exit(&self) -> Exit {
        let Line { requests, errors, unknown, .. } = self.report.all;
        if requests == 0 && errors + unknown > 0 { Exit::Failed } else { Exit::Done }
    }

    fn render(&self) -> String {
        let report = &self.report;
        let ms = |us: f64| format!("{:.2}", us / 1000.0);
        let row = |name: &str, line: &Line| {
            let t = &line.latency_us;
            let mut cells = vec![name.to_owned(), count(line.requests), count(line.per_second as u64), ms(t.mean)];
            cells.extend([t.p50, t.p90, t.p99, t.p999, t.max].map(|us| ms(us as f64)));
            cells.extend([line.errors, line.unknown].map(count));
            cells
        };
        let mut rows: Vec<Vec<String>> = report.kinds.iter().map(|(kind, line)| row(kind, line)).collect();
        if report.kinds.len() > 1 {
            rows.push(row("all", &report.all));
        }
        let mut text = format!(
            "{} on {}: {}{} clients, {} keys {}, values of {} bytes, {:.1} s; latencies in ms\n\n",
            report.workload,
            self.namespace,
            report.rate.map(|rate| format!("{} a second due, ", count(rate))).unwrap_or_default(),
            report.clients,
            count(report.keys),
            report.keys_chosen,
            report.value_size,
            report.seconds,
        );
        let headers = [
            "",
            ">REQUESTS",
            ">PER SECOND",
            ">MEAN",
            ">P50",
            ">P90",
            ">P99",
            ">P99.9",
            ">MAX",
            ">ERRORS",
            ">UNKNOWN",
        ];
        text += &table(&headers, rows);
        report.errors.iter().for_each(|(code, number)| text += &format!("✗ {} × {code}\n", count(*number)));
        if report.all.absent > 0 {
            text += &format!("! {} reads found nothing\n", count(report.all.absent));
        }
        if report.unsent > 0 {
            let unsent = count(report.unsent);
            text += &format!(
                "✗ {unsent} requests were due and never sent: more than this cluster, or {} clients, can do\n",
                report.clients
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_line_says_how_it_goes() {
        let glimpse = Glimpse {
            elapsed: Duration::from_secs(3),
            whole: Duration::from_secs(12),
            warming: false,
            per_second: 12_345.6,
            p99: Duration::from_micros(2340),
            failed: 7,
        };
        assert_eq!(line(&glimpse), "12,345 op/s  p99 2.34 ms  7 errors  9 s left");
        assert!(line(&Glimpse { warming: true, ..glimpse }).ends_with("warming up, 9 s left"));
    }
}
