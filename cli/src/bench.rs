//! `duet bench`: a closed loop, so that what is measured is what a caller who waits would see.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use duet_client::{Client, ClientError, Namespace, NewNamespace};
use duet_proto::{Change, Error, Expect, KeyRange, ScanLimit};
use futures::TryStreamExt;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    args::{Bench, Workload},
    choice::Choice,
    failure::Failure,
    output::{Printer, count, say, table},
    verbs::open,
};

/// What was measured, and how.
#[derive(Debug, Serialize)]
struct Report {
    namespace: String,
    workload: String,
    keys_chosen: String,
    clients: u32,
    keys: u64,
    value_size: usize,
    seconds: f64,
    all: Line,
    kinds: BTreeMap<&'static str, Line>,
    errors: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct Line {
    requests: u64,
    errors: u64,
    per_second: f64,
    latency_us: Latency,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// What one client, and in the end all of them, has seen.
#[derive(Default)]
struct Seen {
    kinds: BTreeMap<&'static str, (Times, u64)>,
    errors: BTreeMap<&'static str, u64>,
}

/// Microseconds up to a day, to three digits.
struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Times {
        let day = 24 * 3600 * 1_000_000;
        Times(Histogram::new_with_bounds(1, day, 3).expect("bounds and digits are within what the library takes"))
    }
}

impl Seen {
    fn request(&mut self, kind: &'static str, took: Duration, result: Result<(), ClientError>) {
        let (times, errors) = self.kinds.entry(kind).or_default();
        match result {
            Ok(()) => times.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1)),
            Err(error) => {
                *errors += 1;
                *self.errors.entry(error.code()).or_default() += 1;
            }
        }
    }

    fn merge(&mut self, other: Seen) {
        for (kind, (times, errors)) in other.kinds {
            let mine = self.kinds.entry(kind).or_default();
            // All have the same bounds, so one always takes the other.
            let _ = mine.0.0.add(times.0);
            mine.1 += errors;
        }
        for (code, number) in other.errors {
            *self.errors.entry(code).or_default() += number;
        }
    }

    fn lines(&self, seconds: f64) -> (Line, BTreeMap<&'static str, Line>) {
        let mut all = Times::default();
        let mut failed = 0;
        for (times, errors) in self.kinds.values() {
            let _ = all.0.add(&times.0);
            failed += errors;
        }
        let kinds = self.kinds.iter().map(|(kind, (times, errors))| (*kind, line(&times.0, *errors, seconds)));
        (line(&all.0, failed, seconds), kinds.collect())
    }
}

fn line(times: &Histogram<u64>, errors: u64, seconds: f64) -> Line {
    let at = |quantile| times.value_at_quantile(quantile);
    Line {
        requests: times.len(),
        errors,
        per_second: times.len() as f64 / seconds.max(1e-9),
        latency_us: Latency {
            mean: times.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: times.max(),
        },
    }
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// `duet bench`
pub(crate) async fn run(client: &Client, verb: &Bench, printer: Printer) -> Result<(), Failure> {
    let made = prepare(client, verb).await?;
    let result = measure(client, verb).await;
    if made {
        client.admin().delete_namespace(verb.namespace.as_str()).await?;
    }
    let report = result?;
    printer.answer(&report, || report.render())
}

/// Creates the namespace if there is none; says whether it did.
async fn prepare(client: &Client, verb: &Bench) -> Result<bool, Failure> {
    let new = NewNamespace { mode: verb.mode, ..NewNamespace::strong() };
    let created = client.admin().create_namespace(verb.namespace.as_str(), new).await;
    match created {
        Ok(_) => Ok(true),
        Err(error) => match error.cluster() {
            Some(Error::NamespaceExists { .. } | Error::Unauthorized { .. }) => Ok(false),
            _ => Err(error.into()),
        },
    }
}

async fn measure(client: &Client, verb: &Bench) -> Result<Report, Failure> {
    let namespace = open(client, &verb.namespace, verb.local)?;
    if verb.workload != Workload::Put {
        fill(&namespace, verb).await?;
    }
    let phase = Arc::new(AtomicU8::new(WARMING));
    let choice = Choice::new(verb.keys_chosen, verb.keys);
    let mut clients = JoinSet::new();
    for number in 0..verb.clients {
        let worker = Worker {
            namespace: namespace.clone(),
            verb: verb.clone(),
            choice: choice.clone(),
            rng: ChaCha8Rng::seed_from_u64(verb.seed.wrapping_mul(1 << 20).wrapping_add(u64::from(number))),
            phase: Arc::clone(&phase),
        };
        clients.spawn(worker.run());
    }
    sleep(verb.warm_up).await;
    phase.store(MEASURING, Ordering::Relaxed);
    let started = Instant::now();
    tick(verb.duration).await;
    phase.store(OVER, Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    let mut seen = Seen::default();
    while let Some(one) = clients.join_next().await {
        seen.merge(one.map_err(|e| Failure::failed(e.to_string()))?);
    }
    let (all, kinds) = seen.lines(seconds);
    Ok(Report {
        namespace: verb.namespace.to_string(),
        workload: value_name(verb.workload),
        keys_chosen: value_name(verb.keys_chosen),
        clients: verb.clients,
        keys: verb.keys,
        value_size: verb.value_size,
        seconds,
        all,
        kinds,
        errors: seen.errors,
    })
}

fn value_name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

/// Writes every key once.
async fn fill(namespace: &Namespace, verb: &Bench) -> Result<(), Failure> {
    say(format!("writing {} keys …", count(verb.keys)));
    let mut rng = ChaCha8Rng::seed_from_u64(verb.seed);
    let keys = futures::stream::iter((0..verb.keys).map(|number| Ok((number, value(&mut rng, verb.value_size)))));
    keys.try_for_each_concurrent(verb.clients.max(256) as usize, |(number, value)| async move {
        namespace.put(key(number), value).await.map(drop)
    })
    .await
    .map_err(Failure::from)
}

/// Waits, with a bar.
async fn tick(duration: Duration) {
    let bar = ProgressBar::new(duration.as_millis() as u64);
    let until = Instant::now() + duration;
    while Instant::now() < until {
        bar.set_position((duration - (until - Instant::now())).as_millis() as u64);
        sleep(Duration::from_millis(200).min(until - Instant::now())).await;
    }
    bar.finish_and_clear();
}

struct Worker {
    namespace: Namespace,
    verb: Bench,
    choice: Choice,
    rng: ChaCha8Rng,
    phase: Arc<AtomicU8>,
}

impl Worker {
    async fn run(mut self) -> Seen {
        let mut seen = Seen::default();
        loop {
            let measured = match self.phase.load(Ordering::Relaxed) {
                OVER => return seen,
                phase => phase == MEASURING,
            };
            let kind = self.kind();
            let key = key(self.choice.next(&mut self.rng));
            let started = Instant::now();
            let result = self.request(kind, key).await;
            let failed = result.is_err();
            // A request that was begun while warming up, or answered after the end, is not of the time measured.
            if measured && self.phase.load(Ordering::Relaxed) == MEASURING {
                seen.request(kind, started.elapsed(), result);
            }
            if failed {
                // Not a pause of the measured system's, so that a refusal at once does not spin here.
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    fn kind(&mut self) -> &'static str {
        match self.verb.workload {
            Workload::Put => "put",
            Workload::Get => "get",
            Workload::Scan => "scan",
            Workload::Cas => "cas",
            Workload::Mixed if self.rng.random_range(0..100) < self.verb.reads => "get",
            Workload::Mixed => "put",
        }
    }

    async fn request(&mut self, kind: &str, key: Bytes) -> Result<(), ClientError> {
        let value = value(&mut self.rng, self.verb.value_size);
        match kind {
            "put" => self.namespace.put(key, value).await.map(drop),
            "get" => self.namespace.get(key).await.map(drop),
            "scan" => {
                let limit = ScanLimit { entries: self.verb.scan_entries, ..ScanLimit::default() };
                let range = KeyRange { start: key, end: None };
                self.namespace.scan_page(range, limit, None).await.map(drop)
            }
            _ => {
                let expect = match self.namespace.get(key.clone()).await? {
                    Some(held) => Expect::Stamp(held.stamp),
                    None => Expect::Absent,
                };
                self.namespace.cas(key, expect, Change::Put(value)).await.map(drop)
            }
        }
    }
}

fn key(number: u64) -> Bytes {
    format!("key{number:012}").into()
}

fn value(rng: &mut ChaCha8Rng, size: usize) -> Bytes {
    let mut value = vec![0; size];
    rng.fill_bytes(&mut value);
    value.into()
}

impl Report {
    fn render(&self) -> String {
        let ms = |us: f64| format!("{:.2}", us / 1000.0);
        let row = |name: &str, line: &Line| {
            let t = &line.latency_us;
            let mut cells = vec![name.to_owned(), count(line.requests), count(line.per_second as u64), ms(t.mean)];
            cells.extend([t.p50, t.p90, t.p99, t.p999, t.max].map(|us| ms(us as f64)));
            cells.push(count(line.errors));
            cells
        };
        let mut rows: Vec<Vec<String>> = self.kinds.iter().map(|(kind, line)| row(kind, line)).collect();
        if self.kinds.len() > 1 {
            rows.push(row("all", &self.all));
        }
        let mut text = format!(
            "{} on {}: {} clients, {} keys {}, values of {} bytes, {:.1} s; latencies in ms\n\n",
            self.workload,
            self.namespace,
            self.clients,
            count(self.keys),
            self.keys_chosen,
            self.value_size,
            self.seconds,
        );
        let headers = ["", ">REQUESTS", ">PER SECOND", ">MEAN", ">P50", ">P90", ">P99", ">P99.9", ">MAX", ">ERRORS"];
        text += &table(&headers, rows);
        self.errors.iter().for_each(|(code, number)| text += &format!("✗ {} × {code}\n", count(*number)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_saw_adds_up() {
        let mut all = Seen::default();
        for client in 0..4 {
            let mut seen = Seen::default();
            for us in 1..=1000u64 {
                seen.request("put", Duration::from_micros(us), Ok(()));
            }
            let error = duet_proto::Error::OutcomeUnknown { why: String::new() };
            seen.request("get", Duration::from_micros(client), Err(error.into()));
            seen.request("scan", Duration::from_secs(3), Ok(()));
            all.merge(seen);
        }
        let (line, kinds) = all.lines(2.0);
        assert_eq!((line.requests, line.errors), (4004, 4));
        assert_eq!(kinds["put"].per_second, 2000.0);
        assert!(line.latency_us.max.abs_diff(3_000_000) < 3000, "{}", line.latency_us.max);
        assert_eq!((kinds["put"].latency_us.p50, kinds["put"].latency_us.max), (500, 1000));
        assert_eq!(kinds["get"].requests, 0);
        assert_eq!(all.errors["outcome_unknown"], 4);
    }
}
