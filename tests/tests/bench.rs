//! `duet bench` before a real cluster: that each workload runs and says what it should, without a word on how fast.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use duet_proto::Role;
use duet_tests::process::{Cluster, Layout, binary};
use duet_transport::Validity;
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

    fn run(&self, arguments: &[&str]) -> Result<(String, String)> {
        let output = Command::new(binary("duet")?)
            .args(["--endpoints", &self.cluster.endpoints().join(","), "--timeout", "20s", "bench"])
            .args(["--keys", "500", "--clients", "16", "--duration", "1s", "--warm-up", "100ms"])
            .args(arguments)
            .env("DUET_CACERT", self.cluster.path("ca.pem"))
            .env("DUET_CERT", self.cluster.path("admin.pem"))
            .env("DUET_KEY", self.cluster.path("admin.key"))
            .output()?;
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
