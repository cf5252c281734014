//! The generator before targets that behave as they are told, on a clock that waits for nobody.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use duet_bench::{Failure, Load, Report, Spread, Target, Workload, fill, key, run};
use tokio::time::{Instant, sleep, sleep_until};

/// What a target has been asked: when, what and of which key.
type Asked = (Instant, &'static str, Bytes);

/// Answers after a millisecond, except while it stalls.
#[derive(Clone, Debug)]
struct Stub {
    begin: Instant,
    /// From when until when it answers nobody, in milliseconds.
    stall: Option<(u64, u64)>,
    refuse: Option<Failure>,
    asked: Arc<Mutex<Vec<Asked>>>,
    held: Arc<Mutex<BTreeSet<Bytes>>>,
}

impl Stub {
    fn new() -> Stub {
        Stub { begin: Instant::now(), stall: None, refuse: None, asked: Arc::default(), held: Arc::default() }
    }

    async fn answer(&self, what: &'static str, key: &Bytes) -> Result<(), Failure> {
        self.asked.lock().unwrap().push((Instant::now(), what, key.clone()));
        sleep(Duration::from_millis(1)).await;
        if let Some((from, to)) = self.stall {
            let at = |ms| self.begin + Duration::from_millis(ms);
            if (at(from)..at(to)).contains(&Instant::now()) {
                sleep_until(at(to)).await;
            }
        }
        self.refuse.clone().map_or(Ok(()), Err)
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Target for Stub {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        assert_eq!(value.len(), 256);
        self.answer("put", &key).await?;
        self.held.lock().unwrap().insert(key);
        Ok(())
    }

    async fn get(&self, key: Bytes) -> Result<bool, Failure> {
        self.answer("get", &key).await?;
        Ok(self.held.lock().unwrap().contains(&key))
    }

    async fn scan(&self, from: Bytes, entries: u32) -> Result<u64, Failure> {
        assert!((1..=100).contains(&entries), "{entries}");
        self.answer("scan", &from).await.map(|()| u64::from(entries))
    }

    async fn cas(&self, key: Bytes, _value: Bytes) -> Result<(), Failure> {
        self.answer("cas", &key).await
    }
}

/// One client's worth of requests at 100 a second, for ten seconds.
fn load(rate: Option<u64>) -> Load {
    Load { clients: 1, keys: 100, warm_up: Duration::from_millis(1), rate, ..Load::default() }
}

async fn stalled(rate: Option<u64>) -> Report {
    let stub = Stub { stall: Some((5000, 6000)), ..Stub::new() };
    run(&load(rate), &[stub], |_| ()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stall_counts_for_all_that_were_due_in_it() {
    let report = stalled(Some(100)).await;
    // A tenth of all requests were due while nobody was answered.
    let latency = report.all.latency_us;
    assert_eq!((report.all.requests, report.unsent), (1000, 0));
    assert!((900_000..=1_010_000).contains(&latency.p99), "{latency:?}");
    assert!((5_000..=200_000).contains(&latency.p90), "{latency:?}");
    assert!(latency.p50 <= 3_000, "{latency:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_omits_them_and_is_no_measure_of_stalls() {
    let report = stalled(None).await;
    assert!(report.all.latency_us.p999 < 10_000 && report.all.latency_us.max > 990_000, "{report:?}");
    assert_eq!(report.unsent, 0);
}

#[tokio::test(start_paused = true)]
async fn requests_are_sent_when_they_are_due_whoever_sends_them() {
    let stub = Stub::new();
    let load = Load { clients: 8, ..load(Some(200)) };
    run(&load, std::slice::from_ref(&stub), |_| ()).await.unwrap();
    let asked = stub.asked();
    // One of them is due within the warm-up.
    assert_eq!(asked.len(), 2001);
    for (number, (at, ..)) in asked.iter().enumerate() {
        let due = stub.begin + Duration::from_millis(5) * u32::try_from(number).unwrap();
        assert!(
            *at >= due && *at <= due + Duration::from_millis(2),
            "request {number}: {:?}",
            at.duration_since(due)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_sent_is_told() {
    // Each request takes the one client a millisecond or two: of 5,000 a second it can send a thousand at most.
    let report = run(&load(Some(5000)), &[Stub::new()], |_| ()).await.unwrap();
    assert!(report.unsent >= 30_000, "{}", report.unsent);
    assert!(report.unsent + report.all.requests >= 49_990, "{report:?}");
    assert!(report.all.latency_us.p99 > 5_000_000, "those that were sent were late: {:?}", report.all.latency_us);
}

#[tokio::test(start_paused = true)]
async fn warming_up_is_not_measured_and_every_second_is_told() {
    let mut told = Vec::new();
    let load = Load { warm_up: Duration::from_secs(5), ..load(None) };
    let stub = Stub { stall: Some((2000, 3000)), ..Stub::new() };
    let report = run(&load, &[stub], |glimpse| told.push(glimpse)).await.unwrap();
    assert!(report.all.latency_us.max < 10_000, "the stall was before: {report:?}");
    assert_eq!((told.len(), report.seconds), (15, 10.0));
    assert_eq!(told.iter().filter(|glimpse| glimpse.warming).count(), 5);
    assert!(told[14].per_second > 400.0 && told[14].elapsed == told[14].whole, "{:?}", told[14]);
    assert!(told[2].per_second < 20.0, "{:?}", told[2]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_by_what_is_known_of_them() {
    for (failure, errors, unknown) in
        [(Failure::refused("no_quorum"), true, false), (Failure::unknown("outcome_unknown"), false, true)]
    {
        let code = failure.code.clone();
        let stub = Stub { refuse: Some(failure), ..Stub::new() };
        let report = run(&load(None), &[stub], |_| ()).await.unwrap();
        let line = report.kinds["put"];
        assert_eq!((line.errors > 0, line.unknown > 0, line.requests), (errors, unknown, 0), "{report:?}");
        assert_eq!(report.errors[&code], line.errors + line.unknown);
        // After a failure a client takes a breath.
        assert!(report.errors[&code] < 2000, "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_key_is_filled_and_then_found() {
    let stub = Stub::new();
    let load = Load { workload: Workload::Get, clients: 4, keys: 1234, ..load(None) };
    fill(&load, std::slice::from_ref(&stub)).await.unwrap();
    let expected: BTreeSet<Bytes> = (0..1234).map(key).collect();
    assert_eq!(*stub.held.lock().unwrap(), expected);
    for spread in [Spread::Uniform, Spread::Zipfian, Spread::Latest] {
        let load = Load { spread: Some(spread), ..load.clone() };
        let report = run(&load, std::slice::from_ref(&stub), |_| ()).await.unwrap();
        assert!(report.all.requests > 1000 && report.all.absent == 0, "{report:?}");
    }
    let report = run(&Load { keys: 2468, ..load }, &[stub], |_| ()).await.unwrap();
    assert!(report.all.absent > report.all.requests / 3, "half of the keys are not there: {report:?}");
}

#[tokio::test(start_paused = true)]
async fn inserts_are_of_new_keys_and_the_latest_are_read() {
    let stub = Stub::new();
    let load = Load { workload: Workload::D, clients: 4, ..load(None) };
    fill(&load, std::slice::from_ref(&stub)).await.unwrap();
    stub.asked();
    let report = run(&load, std::slice::from_ref(&stub), |_| ()).await.unwrap();
    let inserted = stub.asked().into_iter().filter(|(_, what, _)| *what == "put").map(|(.., key)| key);
    let mut inserted: Vec<Bytes> = inserted.collect();
    let number = inserted.len();
    inserted.sort();
    inserted.dedup();
    assert_eq!(inserted.len(), number, "a key was inserted twice");
    assert_eq!(inserted.first(), Some(&key(100)));
    assert!(number > 200 && report.kinds["insert"].requests > 200, "{report:?}");
    // A read may overtake the insert before the one that was answered.
    assert!(report.kinds["get"].absent < report.kinds["get"].requests / 20, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_modification_is_a_read_and_then_a_write_of_the_same_key() {
    let stub = Stub::new();
    let load = Load { workload: Workload::F, ..load(None) };
    let report = run(&load, std::slice::from_ref(&stub), |_| ()).await.unwrap();
    let asked = stub.asked();
    let puts = (1..asked.len()).filter(|at| asked[*at].1 == "put");
    assert!(puts.clone().count() > 1000);
    puts.for_each(|at| assert_eq!(("get", &asked[at].2), (asked[at - 1].1, &asked[at - 1].2)));
    let (modify, get) = (report.kinds["modify"].latency_us.p50, report.kinds["get"].latency_us.p50);
    assert!(modify >= 2 * get, "{modify} and {get}");
}

#[tokio::test(start_paused = true)]
async fn the_document_has_its_form() {
    let report = run(&Load { workload: Workload::A, ..load(Some(100)) }, &[Stub::new()], |_| ()).await.unwrap();
    let document = serde_json::to_value(&report).unwrap();
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        names(&document),
        "all clients connections errors keys keys_chosen kinds rate seconds unsent value_size workload"
    );
    assert_eq!(names(&document["kinds"]), "get put");
    assert_eq!(names(&document["all"]), "absent errors latency_us per_second requests unknown");
    assert_eq!(names(&document["all"]["latency_us"]), "max mean p50 p90 p99 p999");
    assert_eq!((&document["workload"], &document["keys_chosen"]), (&"ycsb-a".into(), &"zipfian".into()));
    assert_eq!((&document["rate"], &document["connections"]), (&100.into(), &1.into()));
}

#[tokio::test(start_paused = true)]
async fn nothing_to_load_is_an_error() {
    assert!(run::<Stub>(&load(None), &[], |_| ()).await.is_err());
    assert!(fill::<Stub>(&load(None), &[]).await.is_err());
}
