//! `duet bench` before a real cluster: that each workload runs and says what it should, without a word on how fast.

use std::{
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use duet_proto::Role;
use duet_tests::process::{Cluster, Layout, PATIENCE, binary};
use duet_transport::Validity;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// A shell's worth of `duet bench`.
struct Bench {
    cluster: Cluster,
}

impl Bench {
    fn start() -> Result<Bench> {
        let mut cluster = Cluster::start(Layout::local(3))?;
        let issued = cluster.issue("bench", Role::Admin, Validity::days(1))?;
        fs::write(cluster.path("admin.pem"), issued.cert)?;
        fs::write(cluster.path("admin.key"), issued.key)?;
        Ok(Bench { cluster })
    }

    fn duet(&self, verb: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("duet")?);
        command
            .args(["--endpoints", &self.cluster.endpoints().join(","), "--timeout", "20s"])
            .args(verb)
            .env("DUET_CACERT", self.cluster.path("ca.pem"))
            .env("DUET_CERT", self.cluster.path("admin.pem"))
            .env("DUET_KEY", self.cluster.path("admin.key"));
        Ok(command)
    }

    fn load(&self, arguments: &[&str]) -> Result<Command> {
        let small = ["bench", "--keys", "500", "--clients", "16", "--duration", "1s", "--warm-up", "100ms"];
        self.duet(&[&small, arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> Result<(String, String)> {
        let output = self.load(arguments)?.output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (shown, errors) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.success(), "{arguments:?}: {}\n{shown}\n{errors}", output.status);
        Ok((shown, errors))
    }

    /// What a workload has measured, and of which kinds of requests.
    fn document(&self, arguments: &[&str]) -> Result<(Value, Vec<String>)> {
        let (shown, _) = self.run(&[&["-o", "json"], arguments].concat())?;
        let document: Value = serde_json::from_str(&shown).context(shown)?;
        let kinds = document["kinds"].as_object().context("kinds")?.keys().cloned().collect();
        ensure!(document["all"]["requests"].as_u64() > Some(0), "nothing succeeded: {document:#}");
        Ok((document, kinds))
    }
}

#[test]
fn every_workload_runs() -> Result<()> {
    let bench = Bench::start()?;
    for (workload, kinds) in [
        ("put", &["put"][..]),
        ("get", &["get"]),
        ("mixed", &["get", "put"]),
        ("scan", &["scan"]),
        ("cas", &["cas"]),
        ("ycsb-a", &["get", "put"]),
        ("ycsb-b", &["get", "put"]),
        ("ycsb-c", &["get"]),
        ("ycsb-d", &["get", "insert"]),
        ("ycsb-e", &["insert", "scan"]),
        ("ycsb-f", &["get", "modify"]),
    ] {
        let (document, seen) = bench.document(&["--workload", workload])?;
        ensure!(seen == kinds, "{workload}: {document:#}");
        ensure!(document["workload"] == workload && document["namespace"] == "bench", "{document:#}");
        // Two clients may be after the same key, and then one of them has compared with what is no more.
        let expected = if workload == "cas" { &["compare_failed"][..] } else { &[] };
        let errors = document["errors"].as_object().context("errors")?;
        ensure!(errors.keys().all(|code| expected.contains(&code.as_str())), "{document:#}");
        ensure!(workload == "put" || workload == "ycsb-d" || document["all"]["absent"] == 0, "{document:#}");
    }
    Ok(())
}

#[test]
fn an_open_loop_over_several_connections_to_an_eventual_namespace() -> Result<()> {
    let bench = Bench::start()?;
    let arguments = ["--mode", "eventual", "--workload", "a", "--rate", "500", "--connections", "3"];
    let (document, kinds) = bench.document(&arguments)?;
    ensure!(kinds == ["get", "put"], "{document:#}");
    ensure!(document["rate"] == 500 && document["connections"] == 3, "{document:#}");
    // As many as were due, if any were left behind they are told of.
    let (sent, unsent) = (document["all"]["requests"].as_u64(), document["unsent"].as_u64());
    let due = sent.context("requests")? + unsent.context("unsent")?;
    ensure!((490..=510).contains(&due), "{document:#}");
    let (table, said) = bench.run(&arguments)?;
    ensure!(table.contains("ycsb-a on bench: 500 a second due, 16 clients, 500 keys zipfian"), "{table}");
    ensure!(table.contains("P99.9") && said.contains("writing 500 keys"), "{table}{said}");
    Ok(())
}

#[test]
fn what_nothing_came_of_has_failed() -> Result<()> {
    let bench = Bench::start()?;
    let output = bench.load(&["--mode", "eventual", "--workload", "cas", "-o", "json"])?.output()?;
    let document: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(document["all"]["requests"] == 0 && document["all"]["errors"].as_u64() > Some(0), "{document:#}");
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(())
}

#[test]
fn a_namespace_that_was_made_for_it_is_not_left_behind() -> Result<()> {
    let bench = Bench::start()?;
    let made = || Ok::<_, anyhow::Error>(bench.duet(&["get", "bench", "k"])?.output()?.stderr);
    let missing = |said: Vec<u8>| String::from_utf8_lossy(&said).contains("namespace bench not found");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let running = bench.duet(&["bench", "--duration", "1h"])?.stderr(Stdio::piped()).spawn()?;
        let began = Instant::now();
        while missing(made()?) {
            ensure!(began.elapsed() < PATIENCE, "it has made no namespace");
            sleep(Duration::from_millis(100));
        }
        kill(Pid::from_raw(running.id().cast_signed()), signal)?;
        let output = running.wait_with_output()?;
        ensure!(output.status.code() == Some(1), "{signal}: {output:?}");
        ensure!(missing(made()?), "{signal}: the namespace is still there");
    }
    Ok(())
}

#[test]
fn who_may_create_no_namespace_needs_one() -> Result<()> {
    let mut bench = Bench::start()?;
    let issued = bench.cluster.issue("app", Role::Client, Validity::days(1))?;
    let (cert, key) = (bench.cluster.path("app.pem"), bench.cluster.path("app.key"));
    fs::write(&cert, issued.cert)?;
    fs::write(&key, issued.key)?;
    let load = || Ok::<_, anyhow::Error>(bench.load(&[])?.env("DUET_CERT", &cert).env("DUET_KEY", &key).output()?);
    let refused = load()?;
    ensure!(refused.status.code() == Some(1) && refused.stdout.is_empty(), "{refused:?}");
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("creating bench"), "{refused:?}");
    ensure!(bench.duet(&["ns", "create", "bench"])?.output()?.status.success());
    let ran = load()?;
    ensure!(ran.status.success(), "{ran:?}");
    Ok(())
}
