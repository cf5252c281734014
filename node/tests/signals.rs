//! Signals and systemd: what a service manager sees of a real `duetd`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
};

use common::{PATIENCE, Site};

/// Receives notifications until one has come that begins with `wanted`; returns all that came.
fn until(socket: &UnixDatagram, wanted: &str) -> BTreeSet<String> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut buffer = [0; 4096];
    while !seen.iter().any(|line| line.starts_with(wanted)) {
        let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{wanted} did not come ({e}), but {seen:?}"));
        seen.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
    }
    seen
}

#[test]
fn systemd_is_told_of_start_life_and_stop() {
    let site = Site::new("c", 1);
    let path = site.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let daemon = site.start_with(1, &[], &variables);
    let start = until(&socket, "READY=1");
    assert!(start.contains("STATUS=starting: opening the store"), "{start:?}");
    assert!(start.contains("EXTEND_TIMEOUT_USEC=30000000"), "{start:?}");
    until(&socket, "STATUS=ready; 0 strong (leads 0) and 0 eventual namespaces; 0 of 0 peers connected; the node's");
    until(&socket, "WATCHDOG=1");
    daemon.signal("HUP");
    until(&socket, "RELOADING=1");
    until(&socket, "READY=1");
    let stopped = std::thread::spawn(move || daemon.stop());
    let stop = until(&socket, "STOPPING=1");
    assert!(stop.contains("EXTEND_TIMEOUT_USEC=32000000"), "{stop:?}");
    assert_eq!(stopped.join().unwrap(), Some(0));
}

/// The journal is told how grave a line is, and writes the time itself.
#[test]
fn lines_for_the_journal_begin_with_their_priority() {
    let site = Site::new("c", 1);
    let log = fs::File::create(site.path("log1")).unwrap().metadata().unwrap();
    let journal = format!("{}:{}", log.dev(), log.ino());
    for (format, first) in [("text", "<6> INFO "), ("json", "<6>{\"level\":\"INFO\"")] {
        fs::write(site.path("log1"), "").unwrap();
        let mut daemon = site.start_with(1, &["--log-format", format], &[("JOURNAL_STREAM", &journal)]);
        daemon.wait_ready();
        fs::rename(site.path("ca.pem"), site.path("away.pem")).unwrap();
        daemon.signal("HUP");
        daemon.wait_log("<4>");
        let text = daemon.log();
        assert!(text.lines().all(|line| line.starts_with('<')), "{text}");
        assert!(text.starts_with(first), "{text}");
        assert_eq!(daemon.stop(), Some(0));
        fs::rename(site.path("away.pem"), site.path("ca.pem")).unwrap();
    }
}

#[test]
fn a_reload_changes_the_level_and_refuses_what_is_wrong() {
    let site = Site::new("c", 1);
    let mut daemon = site.start(1, &["--log-format", "json"]);
    daemon.wait_ready();
    let good = fs::read_to_string(site.config(1)).unwrap();
    fs::write(site.config(1), format!("nonsense = 1\n{good}")).unwrap();
    daemon.signal("HUP");
    daemon.wait_log("duetd1.toml:1:1: unknown key `nonsense`");
    fs::write(site.config(1), format!("{good}\n[log]\nlevel = \"info,duet_node=debug\"\n")).unwrap();
    daemon.signal("HUP");
    daemon.wait_log("\"directives\":\"info,duet_node=debug\"");
    assert_eq!(daemon.get("/readyz").0, "200");
    assert!(daemon.log().lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}
