//! The contract with scripts, as far as it holds without a cluster: usage, exit codes, documents, certificates.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use assert_cmd::Command;

fn duet(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("duet"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DUET")) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(mut command: Command) -> Ended {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn wrong_usage_ends_with_two() {
    let many = "x".repeat(129);
    for arguments in [
        &["nonsense"][..],
        &[],
        &["put", "ns"],
        &["put", "No Name", "k", "v"],
        &["put", &many, "k", "v"],
        &["cas", "ns", "k", "v"],
        &["cas", "ns", "k", "v", "--absent", "--present"],
        &["cas", "ns", "k", "--absent"],
        &["cas", "ns", "k", "v", "--delete", "--absent"],
        &["cas", "ns", "k", "v", "--expect", "latest"],
        &["scan", "ns", "--prefix", "a", "--from", "b"],
        &["--timeout", "soon", "status"],
        &["-o", "yaml", "status"],
        &["import", "ns", "f", "--delimiter", "ab"],
        &["ns", "create", "a", "--mode", "weak"],
        &["ns", "set-copies", "a"],
        &["ns", "set-copies", "a", "many"],
        &["ns", "switch", "a"],
        &["ns", "switch", "a", "--to", "weak"],
        &["ns", "switch", "a", "--to", "strong", "--without", "x"],
        &["ns", "switch", "a", "--to", "strong", "--abort"],
        &["ns", "switch", "a", "--abort", "--plan"],
        &["ns", "switch", "a", "--to", "strong", "--plan", "--no-wait"],
        &["ns", "switch", "a", "--to", "strong", "--wait", "--no-wait"],
        &["ns", "switch", "a", "--to", "strong", "--wait=soon"],
        &["ns", "verify", "a", "--within", "soon"],
        &["top"],
        &["top", "--once", "--interval", "soon"],
        &["ns", "verify"],
        &["ns", "forget", "a"],
        &["ns", "forget", "a", "many"],
        &["--no-session=1", "get", "ns", "k"],
        &["bench", "--workload", "ycsb-g"],
        &["bench", "--keys-chosen", "often"],
        &["bench", "--rate", "0"],
        &["bench", "--keys", "0"],
        &["bench", "--connections", "0"],
        &["bench", "--value-size", "18446744073709551615"],
        &["playground", "--nodes", "0"],
        &["pki", "issue"],
        &["pki", "issue", "--node", "1", "--client", "a"],
        &["pki", "issue", "--node", "1", "--hosts", ","],
        &["pki", "issue", "--node", "1", "--hosts", "a.example,b:7400"],
    ] {
        let ended = run(duet(arguments));
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.err);
        assert!(ended.out.is_empty() && !ended.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_a_connection_lacks_is_named() {
    let ended = run(duet(&["--endpoints", "127.0.0.1:1", "get", "ns", "k"]));
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("--cacert (DUET_CACERT), --cert (DUET_CERT), --key (DUET_KEY)"), "{}", ended.err);
    assert!(!ended.err.contains("--endpoints"), "{}", ended.err);
}

#[test]
fn errors_are_one_json_document_too() {
    for arguments in [&["-o", "json", "nonsense"][..], &["status", "--output=json", "--bad"], &["status", "-ojson"]] {
        let ended = run(duet(arguments));
        let document: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
        assert_eq!(document["error"]["code"], "usage", "{arguments:?}");
        assert_eq!(document["error"]["exit"], 2);
        assert_eq!(ended.code, Some(2));
    }
    let mut by_variable = duet(&["nonsense"]);
    by_variable.env("DUET_OUTPUT", "json");
    assert!(run(by_variable).out.starts_with("{\"error\":"));
}

#[test]
fn help_and_version_are_answers() {
    let ended = run(duet(&["--help"]));
    assert_eq!(ended.code, Some(0));
    for verb in [
        "put",
        "get",
        "del",
        "scan",
        "cas",
        "txn",
        "import",
        "export",
        "ns",
        "node",
        "status",
        "top",
        "bench",
        "pki",
        "playground",
        "demo",
        "completion",
    ] {
        assert!(ended.out.contains(&format!("\n  {verb} ")), "{verb} in {}", ended.out);
    }
    assert!(ended.out.contains("Exit codes: 0 done, 1 failed, 2 usage"));
    let version = run(duet(&["-V"]));
    assert_eq!((version.code, version.out), (Some(0), format!("duet {}\n", env!("CARGO_PKG_VERSION"))));
    // The commit stands behind it where it is known.
    let build = run(duet(&["--version"]));
    assert!(build.out.starts_with(concat!("duet ", env!("CARGO_PKG_VERSION"))) && build.out.lines().count() == 1);
}

#[test]
fn help_tells_what_is_of_a_verb_and_what_is_for_people() {
    let top = run(duet(&["top", "--help"])).out;
    let (own, cluster) = top.split_once("\nCluster:\n").unwrap();
    assert!(own.contains("--interval") && !own.contains("--endpoints") && cluster.contains("--endpoints"), "{top}");
    assert!(top.contains("by name, lag, requests, p99, writes or keys"), "{top}");
    let verbs = run(duet(&["-o", "json"])).err;
    assert!(verbs.contains("completion") && !verbs.contains("leashed"), "{verbs}");
}

#[test]
fn what_both_modes_take_is_in_the_help() {
    let ns = run(duet(&["ns", "--help"]));
    for verb in ["set-copies", "members", "set-members", "show", "switch", "verify", "forget"] {
        assert!(ns.out.contains(verb), "{verb} in {}", ns.out);
    }
    for verb in ["get", "scan", "export", "import"] {
        assert!(run(duet(&[verb, "--help"])).out.contains("--no-session"), "{verb}");
    }
}

#[test]
fn a_switch_says_how_it_is_asked_for() {
    let help = run(duet(&["ns", "switch", "--help"])).out;
    for flag in
        ["--to <MODE>", "--without <N>", "--plan", "--abort", "--wait", "--no-wait", "Ctrl-C leaves the switch going"]
    {
        assert!(help.contains(flag), "{flag} in {help}");
    }
    // Well-formed ones get as far as the missing connection.
    for arguments in [
        &["ns", "switch", "a", "--to", "eventual"][..],
        &["ns", "switch", "a", "--to", "strong", "--without", "1,2", "--plan"],
        &["ns", "switch", "a", "--to", "strong", "--wait"],
        &["ns", "switch", "a", "--to", "strong", "--wait=30s"],
        &["ns", "switch", "a", "--abort"],
        &["ns", "verify", "a", "--deep", "--within", "1m"],
        &["ns", "show", "a", "--late"],
        &["ns", "forget", "a", "3", "--yes"],
    ] {
        let ended = run(duet(arguments));
        assert!(
            ended.code == Some(2) && ended.err.contains("--endpoints (DUET_ENDPOINTS)"),
            "{arguments:?}: {}",
            ended.err
        );
    }
}

#[test]
fn completion_is_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = run(duet(&["completion", shell]));
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert!(ended.out.contains("playground"), "{shell}");
    }
}

#[test]
fn certificates_are_issued_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    assert_eq!(run(duet(&["pki", "issue", "--dir", at, "--node", "1"])).code, Some(1));
    let made = run(duet(&["pki", "init", "--cluster", "c1", "--dir", at, "-o", "json"]));
    let document: serde_json::Value = serde_json::from_str(&made.out).unwrap();
    assert_eq!(document["identity"], "duet://c1/authority");

    let node = run(duet(&["pki", "issue", "--dir", at, "--node", "7", "--hosts", "db7.example,10.0.0.7"]));
    assert_eq!(node.code, Some(0), "{}", node.err);
    assert!(node.out.contains("duet://c1/node/7"), "{}", node.out);
    let admin = run(duet(&["pki", "issue", "--dir", at, "--client", "ops", "--role", "admin"]));
    assert!(admin.out.contains("duet://c1/client/ops?role=admin"), "{}", admin.out);

    let files = ["ca", "node-7", "client-ops"];
    let before: Vec<Vec<u8>> =
        files.iter().map(|f| fs::read(dir.path().join(f).with_extension("key")).unwrap()).collect();
    for name in files {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join(name).with_extension("key")), 0o600, "{name}");
    }
    for again in [
        &["pki", "init", "--cluster", "c2", "--dir", at][..],
        &["pki", "issue", "--dir", at, "--node", "7"],
        &["pki", "issue", "--dir", at, "--client", "ops"],
    ] {
        let ended = run(duet(again));
        assert_eq!(ended.code, Some(1));
        assert!(ended.err.contains("exists"), "{}", ended.err);
    }
    let after: Vec<Vec<u8>> =
        files.iter().map(|f| fs::read(dir.path().join(f).with_extension("key")).unwrap()).collect();
    assert!(before == after, "a key was overwritten");
}

#[test]
fn a_certificate_that_outlives_its_authority_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    run(duet(&["pki", "init", "--cluster", "c1", "--dir", at, "--days", "10"]));
    let within = run(duet(&["pki", "issue", "--dir", at, "--node", "1", "--days", "10"]));
    assert_eq!((within.code, within.err.as_str()), (Some(0), ""));
    let beyond = run(duet(&["pki", "issue", "--dir", at, "--node", "2", "--days", "365"]));
    assert!(beyond.err.contains(" days, with the authority, and not after 365"), "{}", beyond.err);
    assert_eq!(beyond.code, Some(0));
}

#[test]
fn bad_identities_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    run(duet(&["pki", "init", "--cluster", "c1", "--dir", at]));
    for arguments in [
        &["pki", "issue", "--dir", at, "--client", "no name"][..],
        &["pki", "issue", "--dir", at, "--node", "0"],
        &["pki", "init", "--cluster", "No", "--dir", at],
    ] {
        assert_eq!(run(duet(arguments)).code, Some(2), "{arguments:?}");
    }
}

#[test]
fn nobody_at_the_endpoint_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    run(duet(&["pki", "init", "--cluster", "c1", "--dir", at]));
    run(duet(&["pki", "issue", "--dir", at, "--client", "me"]));
    // Bound and silent: nobody else can take the port meanwhile.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("client-me.pem"), file("client-me.key"));
    let reach = ["--endpoints", &endpoint, "--cacert", &ca, "--cert", &cert, "--key", &key, "--timeout", "1s"];
    let ended = run(duet(&[&reach[..], &["-o", "json", "get", "ns", "k"]].concat()));
    assert_eq!(ended.code, Some(3), "{} {}", ended.out, ended.err);
    let document: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(document["error"]["code"], "unreachable");

    let wrong = run(duet(&["--endpoints", &endpoint, "--cacert", &ca, "--cert", &key, "--key", &key, "status"]));
    assert_eq!(wrong.code, Some(1), "{}", wrong.err);
    assert!(wrong.err.contains("client-me.key"), "{}", wrong.err);
}

#[test]
fn a_playground_says_where_it_looked_for_duetd() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("play");
    let mut command = duet(&["playground", "--dir", at.to_str().unwrap(), "--base-port", "0", "--nodes", "1"]);
    command.env("DUETD", "/nonexistent/duetd");
    let ended = run(command);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("/nonexistent/duetd"), "{}", ended.err);
    for file in ["client.env", "node1/duetd.toml", "node1/node.pem", "ca.pem", "admin.pem", "client.pem"] {
        assert!(at.join(file).exists(), "{file}");
    }
    assert!(!at.join("node1/pid").exists());
}

#[test]
fn a_demo_without_data_starts_no_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("demo");
    let ended = run(duet(&["demo", "--dir", at.to_str().unwrap(), "--data", "/nonexistent/data.txt"]));
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    assert!(ended.err.contains("/nonexistent/data.txt"), "{}", ended.err);
    assert!(ended.out.is_empty() && !at.exists(), "{}", ended.out);
}

#[test]
fn a_node_that_does_not_start_is_told_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("duetd");
    fs::write(&fake, "#!/bin/sh\necho 'the disk is on fire' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let at = dir.path().join("play");
    let mut command = duet(&["playground", "--dir", at.to_str().unwrap(), "--base-port", "0", "--nodes", "1"]);
    command.env("DUETD", &fake);
    let ended = run(command);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("exited with code 1") && ended.err.contains("the disk is on fire"), "{}", ended.err);
    assert!(!at.join("node1/pid").exists());
}

#[test]
fn a_leash_ends_with_its_holder() {
    let duet = assert_cmd::cargo::cargo_bin!("duet");
    let mut holder = std::process::Command::new("sh")
        .args(["-c", "\"$0\" leashed $$ -- sleep 300 & echo $!; wait"])
        .arg(duet)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut pid).unwrap();
    // What it is, and whether it still is anything: a zombie waits for whoever adopted it.
    let name = || fs::read_to_string(format!("/proc/{}/comm", pid.trim())).unwrap_or_default();
    let gone = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    let wait = |holds: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < deadline, "process {pid} is {:?}", name());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait(&|| name().trim() == "sleep");
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait(&gone);
}
