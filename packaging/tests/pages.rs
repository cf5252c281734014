//! The manual pages and completions are whole, and a reader of manual pages has nothing to say against them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use clap::CommandFactory;

fn pages() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_duet-pages")).arg(folder.path()).status().unwrap();
    assert!(status.success());
    folder
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// `duet`, `duet-ns`, `duet-ns-create`, …: what is not hidden.
fn verbs(command: &clap::Command, name: String, found: &mut BTreeSet<String>) {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        verbs(verb, format!("{name}-{}", verb.get_name()), found);
    }
    found.insert(format!("{name}.1"));
}

#[test]
fn every_verb_and_every_key_has_its_place() {
    let folder = pages();
    let mut wanted = BTreeSet::new();
    verbs(&duet_cli::args::Cli::command(), "duet".into(), &mut wanted);
    assert_eq!(names(&folder.path().join("man1")), wanted);
    assert!(wanted.contains("duet-ns-switch.1") && !wanted.contains("duet-leashed.1"));

    // As it is read: the pages write \- for a dash, and \*(Aq for an apostrophe.
    let read =
        |path: &str| fs::read_to_string(folder.path().join(path)).unwrap().replace("\\*(Aq", "'").replace('\\', "");
    let (keys, daemon) = (read("man5/duetd.toml.5"), read("man8/duetd.8"));
    let completions = ["bash/duetd", "zsh/_duetd", "fish/duetd.fish"].map(read);
    for key in duet_node::config::documented() {
        assert!(keys.contains(key.path) && keys.contains(&key.variable) && keys.contains(&key.allowed), "{key:?}");
        assert!(daemon.contains(&format!("--{}", key.flag)), "{key:?}");
        assert!(completions.iter().all(|script| script.contains(&key.flag)), "{key:?}");
    }
    for script in ["bash/duet", "zsh/_duet", "fish/duet.fish"].map(read) {
        assert!(script.contains("switch") && script.contains("no-session"));
    }
}

#[test]
fn the_pages_are_sound() {
    let folder = pages();
    let mut all = Vec::new();
    for (section, program) in [("man1", "duet"), ("man5", "duetd"), ("man8", "duetd")] {
        let head = format!("\" \" \"{program} {}\" Duet", env!("CARGO_PKG_VERSION"));
        for name in names(&folder.path().join(section)) {
            let page = folder.path().join(section).join(&name);
            assert!(fs::read_to_string(&page).unwrap().contains(&head), "{name} does not tell its version");
            all.push(page);
        }
    }
    let mut man = Command::new("man");
    man.args(["--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l"]).args(&all).stdout(Stdio::null());
    let Ok(output) = man.output() else { return println!("SKIPPED: man is not installed") };
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_folder_is_needed() {
    let output = Command::new(env!("CARGO_BIN_EXE_duet-pages")).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "duet-pages: which folder? duet-pages FOLDER\n");
}
