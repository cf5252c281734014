//! What is packaged: the script that finds build dependencies, and the unit's exposure.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file)
}

/// A machine that has `tools` and nothing else.
struct Machine(tempfile::TempDir);

impl Machine {
    fn with(tools: &[&str], uid: u32) -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        symlink("/usr/bin/env", machine.0.path().join("env")).unwrap();
        machine.script("id", &format!("echo {uid}"));
        for tool in tools {
            machine.script(tool, "exit 0");
        }
        machine
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// An `apt-get` that notes what it is asked, then runs `body`.
    fn apt(&self, body: &str) {
        self.script("apt-get", &format!("echo $1 >> {}\n{body}", self.0.path().join("asked").display()));
    }

    fn deps(&self) -> Output {
        Command::new("/bin/sh")
            .arg(packaging("deps"))
            .env_clear()
            .env("PATH", self.0.path())
            .env("DUET_LLVM", self.0.path().join("llvm"))
            .output()
            .unwrap()
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.0.path().join("asked")).unwrap_or_default()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn nothing_missing_says_nothing() {
    let machine = Machine::with(&["cc", "c++", "make", "protoc"], 1000);
    fs::create_dir(machine.0.path().join("llvm")).unwrap();
    fs::write(machine.0.path().join("llvm/libclang-14.so.1"), "").unwrap();
    let output = machine.deps();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stderr.is_empty() && output.stdout.is_empty());
}

#[test]
fn without_root_what_is_missing_is_named() {
    let machine = Machine::with(&["cc", "make"], 1000);
    machine.apt("exit 9");
    let output = machine.deps();
    assert_eq!(output.status.code(), Some(1));
    let expected = "run as root: apt-get install -y g++ libclang-dev protobuf-compiler";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    assert_eq!(machine.asked(), "");
}

#[test]
fn root_installs_and_refreshes_the_lists_only_if_needed() {
    let machine = Machine::with(&["cc", "c++", "make"], 0);
    machine.apt("exit 0");
    assert!(machine.deps().status.success());
    assert_eq!(machine.asked(), "install\n");

    let machine = Machine::with(&["cc", "c++", "make"], 0);
    let fresh = machine.0.path().join("fresh");
    machine.apt(&format!("[ $1 = update ] && : > {fresh}; [ -e {fresh} ]", fresh = fresh.display()));
    assert!(machine.deps().status.success());
    assert_eq!(machine.asked(), "install\nupdate\ninstall\n");
}

#[test]
fn without_apt_the_names_are_given() {
    let output = Machine::with(&["cc", "c++", "make"], 0).deps();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("libclang-dev protobuf-compiler"), "{}", stderr(&output));
}

#[test]
fn the_unit_is_hardened() {
    let unit = packaging("duetd.service");
    let Ok(output) = Command::new("systemd-analyze").args(["security", "--offline=true"]).arg(unit).output() else {
        eprintln!("systemd-analyze is not installed: the unit is not scored");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((_, score)) = text.split_once("Overall exposure level for duetd.service: ") else {
        eprintln!("this systemd-analyze does not score files: {}", stderr(&output));
        return;
    };
    let score: f32 = score.split_whitespace().next().unwrap().parse().unwrap();
    assert!(score <= 1.5, "exposure {score}");
}
