//! `make bench-etcd SHORT=1` and its like: that they measure what they say, without a word on who is faster.

#![allow(clippy::print_stdout, reason = "what was left out is told")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use duet_tests::process::{PATIENCE, binary};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// Runs one briefly, if the machine has what it needs.
fn measured_with(needs: &str, program: &str, name: &str) -> Result<Option<Value>> {
    if Command::new(needs).arg("--version").output().is_err() {
        println!("SKIPPED: {needs} is not installed");
        return Ok(None);
    }
    measured(program, name).map(Some)
}

/// One that is brief.
fn brief(program: &str, folder: &TempDir) -> Result<Command> {
    let mut command = Command::new(program);
    command.arg(folder.path()).arg("--short");
    command.env("DUET_BIN_DIR", binary("duetd")?.parent().context("a binary lies in a folder")?);
    Ok(command)
}

/// Runs one briefly.
fn measured(program: &str, name: &str) -> Result<Value> {
    let folder = TempDir::with_prefix("duet-bench-")?;
    let output = brief(program, &folder)?.output().context("starting it")?;
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{shown}\n{errors}", output.status);
    ensure!(shown.contains("ratio (min to max)") && !shown.contains("not measured"), "{shown}");
    Ok(serde_json::from_slice(&fs::read(folder.path().join(format!("{name}.json")))?)?)
}

/// Every figure is of something, and was measured in every round.
fn complete(document: &Value, figures: usize, samples: usize) -> Result<()> {
    let of = |list: &str| document[list].as_array().cloned().with_context(|| format!("no {list}"));
    ensure!(of("figures")?.len() == figures && of("samples")?.len() == samples, "{document:#}");
    for figure in of("figures")? {
        let ratio = |which: &str| figure["ratio"][which].as_f64().unwrap_or(f64::NAN);
        let ordered = 0.0 < ratio("min") && ratio("min") <= ratio("median") && ratio("median") <= ratio("max");
        ensure!(ordered && figure["reached"].is_boolean(), "{figure:#}");
    }
    for sample in of("samples")? {
        let rounds = sample["rounds"].as_array().context("rounds")?;
        let worked = |round: &Value| round["all"]["per_second"].as_f64().is_some_and(|rate| rate > 0.0);
        ensure!(!rounds.is_empty() && rounds.iter().all(worked), "{sample:#}");
    }
    Ok(())
}

#[test]
fn strong_namespaces_beside_etcd() -> Result<()> {
    match measured_with("etcd", env!("CARGO_BIN_EXE_bench-etcd"), "etcd")? {
        Some(document) => complete(&document, 5, 8),
        None => Ok(()),
    }
}

#[test]
fn eventual_namespaces_beside_redis() -> Result<()> {
    match measured_with("redis-server", env!("CARGO_BIN_EXE_bench-redis"), "redis")? {
        Some(document) => complete(&document, 4, 9),
        None => Ok(()),
    }
}

#[test]
fn many_records_and_namespaces_beside_few() -> Result<()> {
    complete(&measured(env!("CARGO_BIN_EXE_bench-scale"), "scale")?, 6, 12)
}

/// The processes that a process has started and that still run.
fn started_by(process: u32) -> Result<Vec<String>> {
    let mut started = Vec::new();
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        started.extend(children.split_whitespace().map(str::to_owned));
    }
    Ok(started)
}

#[test]
fn who_stops_one_stops_its_nodes() -> Result<()> {
    let folder = TempDir::with_prefix("duet-bench-")?;
    let mut command = brief(env!("CARGO_BIN_EXE_bench-scale"), &folder)?;
    let mut bench = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let deadline = Instant::now() + PATIENCE;
    // Its clusters are two, of three nodes each.
    let nodes = loop {
        let nodes = started_by(bench.id())?;
        if nodes.len() == 6 || Instant::now() > deadline {
            break nodes;
        }
        thread::sleep(Duration::from_millis(10));
    };
    kill(Pid::from_raw(bench.id().try_into()?), Signal::SIGTERM)?;
    let ended = bench.wait()?;
    let left: Vec<_> = nodes.iter().filter(|node| Path::new("/proc").join(node).exists()).collect();
    for node in &left {
        let _ = kill(Pid::from_raw(node.parse()?), Signal::SIGKILL);
    }
    ensure!(nodes.len() == 6, "{nodes:?}");
    ensure!(!ended.success(), "it did not end before its time");
    ensure!(left.is_empty(), "{left:?} still ran");
    Ok(())
}
