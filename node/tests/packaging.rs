//! What is packaged: the script that finds build dependencies, the unit, its user and folder.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
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
    fs::create_dir(machine.0.path().join("llvm")).unwrap();
    fs::write(machine.0.path().join("llvm/libclang-cpp.so.14"), "").unwrap();
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

/// What a command says, or `None` and a word why if the tool is not here.
fn tool(command: &mut Command) -> Option<Output> {
    let output = command.output();
    if output.is_err() {
        eprintln!("SKIPPED: {} is not installed", command.get_program().to_string_lossy());
    }
    output.ok()
}

#[test]
fn the_unit_is_hardened() {
    let mut analyze = Command::new("systemd-analyze");
    let Some(output) = tool(analyze.args(["security", "--offline=true"]).arg(packaging("duetd.service"))) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((_, score)) = text.split_once("Overall exposure level for duetd.service: ") else {
        eprintln!("SKIPPED: this systemd-analyze does not score files: {}", stderr(&output));
        return;
    };
    let score: f32 = score.split_whitespace().next().unwrap().parse().unwrap();
    assert!(score <= 1.5, "exposure {score}");
}

/// A root file system with what the unit runs, and nothing else.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, mode) in [("usr/bin/duetd", 0o755), ("bin/sh", 0o755), ("etc/passwd", 0o644), ("etc/group", 0o644)] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    root
}

#[test]
fn systemd_understands_the_unit() {
    let root = root();
    let units = root.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&units).unwrap();
    for unit in ["multi-user.target", "network-online.target", "time-sync.target", "sysinit.target", "basic.target"] {
        fs::write(units.join(unit), "[Unit]\nDescription=A target\n").unwrap();
    }
    fs::copy(packaging("duetd.service"), units.join("duetd.service")).unwrap();
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["verify", "--man=no", "--recursive-errors=no", "--root"]).arg(root.path()).arg("duetd.service");
    let Some(output) = tool(&mut analyze) else { return };
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn the_user_reads_the_key_and_nobody_else_does() {
    let root = root();
    for (name, file) in [("systemd-sysusers", "duet.sysusers"), ("systemd-tmpfiles", "duet.tmpfiles")] {
        let mut command = Command::new(name);
        command.arg("--root").arg(root.path());
        if name == "systemd-tmpfiles" {
            command.arg("--create");
        }
        let Some(output) = tool(command.arg(packaging(file).canonicalize().unwrap())) else { return };
        if !output.status.success() {
            eprintln!("SKIPPED: {name} cannot run here: {}", stderr(&output));
            return;
        }
    }
    let passwd = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    let user: Vec<&str> = passwd.lines().find(|line| line.starts_with("duet:")).unwrap().split(':').collect();
    assert_eq!(user[5..], ["/var/lib/duet", "/usr/sbin/nologin"]);
    let folder = fs::metadata(root.path().join("etc/duet")).unwrap();
    assert_eq!((folder.mode() & 0o7777, folder.uid(), folder.gid().to_string().as_str()), (0o750, 0, user[3]));
}

#[test]
fn the_scripts_are_sound() {
    for script in ["deps", "install-test", "profile/train", "debian/postinst", "debian/postrm"] {
        let output = Command::new("/bin/sh").arg("-n").arg(packaging(script)).output().unwrap();
        assert!(output.status.success(), "{script}: {}", stderr(&output));
    }
}

/// An indexed profile of LLVM begins with these bytes; rustc refuses to compile by anything else.
const PROFILE: &[u8] = b"\xfflprofi\x81";

#[test]
fn the_profile_of_releases_is_one_and_says_whose() {
    let output = Command::new("gzip").arg("-dc").arg(packaging("profile/duet.profdata.gz")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stdout.starts_with(PROFILE), "{:x?}", &output.stdout[..8]);
    assert!(fs::read_to_string(packaging("profile/rustc")).unwrap().starts_with("rustc 1."));
}
