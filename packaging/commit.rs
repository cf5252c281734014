//! The build script of `duetd` and `duet`: which commit they are of, and how they are linked.
//!
//! `DUET_COMMIT` says it where it is set, as by packagers who build without a repository, else git does. A debug build says
//! `unknown` otherwise: each commit would build both programs and all their tests anew.
//!
//! `DUET_RELOCS` names the package whose programs keep their relocations, without which nobody can lay out their code
//! anew (`packaging/profile/layout`).

#![allow(clippy::print_stdout, reason = "this is how a build script answers")]

use std::{env, path::Path, process::Command};

const UNKNOWN: &str = "unknown";

fn main() {
    println!("cargo::rerun-if-env-changed=DUET_COMMIT");
    let given = env::var("DUET_COMMIT").ok().filter(|given| !given.is_empty());
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| if release { of_the_repository() } else { None }).unwrap_or_else(|| UNKNOWN.into());
    let version = env!("CARGO_PKG_VERSION");
    let build = if commit == UNKNOWN { version.to_owned() } else { format!("{version} ({commit})") };
    println!("cargo::rustc-env=DUET_COMMIT={commit}");
    println!("cargo::rustc-env=DUET_BUILD={build}");
    println!("cargo::rerun-if-env-changed=DUET_RELOCS");
    if env::var("DUET_RELOCS").is_ok_and(|package| package == env!("CARGO_PKG_NAME")) {
        println!("cargo::rustc-link-arg-bins=-Wl,--emit-relocs");
    }
}

/// What git says, if this is a checkout and not merely somewhere in one.
fn of_the_repository() -> Option<String> {
    if !Path::new("../.git").exists() {
        return None;
    }
    // The second changes with every commit. Cargo would run this each time for a file that is not there.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
