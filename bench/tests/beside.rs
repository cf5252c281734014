//! `make bench-etcd SHORT=1` and its like: that they measure what they say, without a word on who is faster.

#![allow(clippy::print_stdout, reason = "what was left out is told")]

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use duet_tests::process::binary;
use serde_json::Value;

/// Runs one briefly, if the machine has what it needs.
fn measured_with(needs: &str, program: &str, name: &str) -> Result<Option<Value>> {
    if Command::new(needs).arg("--version").output().is_err() {
        println!("SKIPPED: {needs} is not installed");
        return Ok(None);
    }
    measured(program, name).map(Some)
}

/// Runs one briefly.
fn measured(program: &str, name: &str) -> Result<Value> {
    let folder = tempfile::TempDir::with_prefix("duet-bench-")?;
    let output = Command::new(program)
        .arg(folder.path())
        .arg("--short")
        .env("DUET_BIN_DIR", binary("duetd")?.parent().context("a binary lies in a folder")?)
        .output()
        .context("starting it")?;
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
