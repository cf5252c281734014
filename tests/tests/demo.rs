//! `duet demo`, as `make demo` runs it: what it shows is also a test.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use duet_tests::process::binary;

#[test]
fn the_demo_keeps_its_promises() -> Result<()> {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/UnicodeData.txt");
    let output = Command::new(binary("duet")?)
        .args(["demo", "--data", data])
        .env("DUETD", binary("duetd")?)
        .env("NO_COLOR", "1")
        .output()
        .context("duet demo")?;
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{shown}\n{errors}", output.status);
    // The verdict is there, at the end, and of something.
    let figure = |name: &str| {
        let line = shown
            .lines()
            .rev()
            .find_map(|line| line.trim().strip_prefix(name))
            .with_context(|| format!("no {name}"))?;
        let digits = line.split_whitespace().next().unwrap_or_default().replace(',', "");
        digits.parse::<u64>().with_context(|| format!("{name}: {line}"))
    };
    ensure!(figure("lost")? == 0, "{shown}");
    ensure!(figure("acknowledged writes")? > 1000 && figure("found")? == figure("acknowledged writes")?, "{shown}");
    ensure!(figure("reads")? > 1000, "{shown}");
    ensure!(shown.contains("$ duet ns switch unicode --to strong") && shown.contains("writes |"), "{shown}");
    Ok(())
}
