//! `make bench-switch SHORT=1`: that it measures what it says, without a word on how long anything takes.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use duet_tests::process::binary;

#[test]
fn the_short_form_measures_every_setting() -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("duet-bench-")?;
    let daemon = binary("duetd")?;
    let output = Command::new(env!("CARGO_BIN_EXE_bench-switch"))
        .arg(folder.path())
        .arg("short")
        .env("DUET_BIN_DIR", daemon.parent().context("a binary lies in a folder")?)
        .output()
        .context("bench-switch")?;
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{shown}\n{errors}", output.status);
    let document: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("switch.json"))?)?;
    let rows = document["switches"].as_array().context("a list of settings")?;
    // Without network namespaces members cannot be made to differ.
    let settings = if shown.contains("SKIPPED") { 2 } else { 4 };
    ensure!(rows.len() == 2 * settings, "{settings} settings, two directions each: {shown}");
    let switches = |row: &serde_json::Value| row["switches"].as_array().map_or(0, Vec::len);
    ensure!(rows.iter().all(|row| switches(row) == 2 && row["write_gap_p99_ms"].is_number()), "{document:#}");
    let plot = fs::read_to_string(folder.path().join("switch.svg"))?;
    let dots = plot.matches("<circle").count();
    ensure!(plot.starts_with("<svg") && dots == 4 * settings, "{dots} switches in the plot");
    Ok(())
}
