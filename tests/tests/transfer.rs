//! `duet import` and `duet export` before a real cluster: what becomes of files when something is in the way.

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use duet_proto::Role;
use duet_tests::process::{Cluster, Layout, PATIENCE, binary};
use duet_transport::Validity;

/// Whoever runs `duet` as an administrator.
struct Shell {
    cluster: Cluster,
}

impl Shell {
    fn start() -> Result<Shell> {
        let mut cluster = Cluster::start(Layout::local(1))?;
        let issued = cluster.issue("ops", Role::Admin, Validity::days(1))?;
        fs::write(cluster.path("ops.pem"), issued.cert)?;
        fs::write(cluster.path("ops.key"), issued.key)?;
        let shell = Shell { cluster };
        let created = shell.run(&["--timeout", "20s", "ns", "create", "orders"])?;
        ensure!(created.status.success(), "{created:?}");
        Ok(shell)
    }

    fn duet(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("duet")?);
        command
            .env("DUET_ENDPOINTS", self.cluster.endpoints().join(","))
            .env("DUET_CACERT", self.cluster.path("ca.pem"))
            .env("DUET_CERT", self.cluster.path("ops.pem"))
            .env("DUET_KEY", self.cluster.path("ops.key"))
            .args(arguments);
        Ok(command)
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.duet(arguments)?.output()?)
    }

    /// The path of a file with this in it.
    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.cluster.path(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

#[test]
fn an_earlier_export_outlives_one_that_cannot_begin() -> Result<()> {
    let shell = Shell::start()?;
    ensure!(shell.run(&["put", "orders", "k", "new"])?.status.success());
    let file = shell.file("orders.tsv", "k\tof yesterday\n")?;
    let mistyped = shell.run(&["export", "ordesr", &file])?;
    ensure!(mistyped.status.code() == Some(4), "{mistyped:?}");
    ensure!(fs::read_to_string(&file)? == "k\tof yesterday\n", "what was there is lost");
    let export = shell.run(&["export", "orders", &file])?;
    ensure!(export.status.success() && fs::read_to_string(&file)? == "k\tnew\n", "{export:?}");
    // Nothing to export is an answer, too.
    let none = shell.run(&["export", "orders", &file, "--prefix", "x"])?;
    ensure!(none.status.success() && fs::read(&file)?.is_empty(), "{none:?}");
    let piped = shell.run(&["export", "orders", "/dev/stdout", "--format", "tsv"])?;
    ensure!(piped.status.success() && piped.stdout.starts_with(b"k\tnew\n"), "{piped:?}");
    Ok(())
}

#[test]
fn an_import_says_first_what_it_could_only_say_last() -> Result<()> {
    let shell = Shell::start()?;
    let file = shell.file("orders.jsonl", "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\"}\n")?;
    let nowhere = shell.cluster.path("nowhere/state").display().to_string();
    let refused = shell.run(&["import", "orders", &file, "--state", &nowhere])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1) && said.contains("nowhere/state.new"), "{refused:?}");
    ensure!(shell.run(&["get", "orders", "a"])?.status.code() == Some(4), "it has written all the same");
    let state = shell.cluster.path("state").display().to_string();
    let stopped = shell.run(&["import", "orders", &file, "--state", &state])?;
    let said = String::from_utf8_lossy(&stopped.stderr);
    ensure!(said.contains("1 records are written; the same command goes on from there"), "{said}");
    ensure!(said.contains("line 2: missing field `value` at column 11"), "{said}");
    Ok(())
}

#[test]
fn an_import_does_not_wait_for_more_of_a_pipe() -> Result<()> {
    let shell = Shell::start()?;
    let mut import = shell.duet(&["import", "orders", "-", "--format", "tsv"])?.stdin(Stdio::piped()).spawn()?;
    let mut pipe = import.stdin.take().context("standard input")?;
    pipe.write_all(b"slow\tpipe\n")?;
    let began = Instant::now();
    while !shell.run(&["get", "orders", "slow"])?.status.success() {
        ensure!(began.elapsed() < PATIENCE, "the record is not there");
        sleep(Duration::from_millis(100));
    }
    drop(pipe);
    ensure!(import.wait()?.success());
    Ok(())
}
