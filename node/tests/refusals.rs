//! What `duetd` refuses, each with one clear line and an exit code. Real processes.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails")]

mod common;

use std::{
    fs,
    net::{TcpListener, UdpSocket},
};

use common::{Site, run};
use duet_proto::ClusterName;
use duet_transport::Validity;

/// It ends with `code`, and one line of what it says holds `text`.
#[track_caller]
fn refuses(site: &Site, node: u32, flags: &[&str], code: i32, text: &str) {
    let (found, said) = site.refused(node, flags);
    assert!(said.lines().any(|line| line.contains(text)), "{text:?} is not in\n{said}");
    assert_eq!(found, Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn configurations_that_are_wrong() {
    let site = Site::new("c", 1);
    site.configure(1, "\n[limits]\nvalue_byte = 7\n");
    refuses(
        &site,
        1,
        &[],
        2,
        "duetd1.toml:17:1: unknown key `limits.value_byte`; did you mean `limits.value_bytes`?",
    );
    site.configure(1, "\n[limits]\nvalue_bytes = 0\n");
    refuses(&site, 1, &[], 2, "duetd1.toml:17:15: `limits.value_bytes`: 0 is out of bounds: 1 to 16777216");
    site.configure(1, "\n= 7\n");
    refuses(&site, 1, &[], 2, "duetd1.toml:16:1: ");
    site.configure(1, "\n[limits]\nvalue_bytes = 0\nconection = 1\n");
    let (code, said) = site.refused(1, &["--check-config", "--gossip", "perhaps"]);
    assert_eq!((code, said.lines().filter(|line| line.starts_with("duetd: ")).count()), (Some(2), 3), "{said}");
    fs::remove_file(site.config(1)).unwrap();
    refuses(&site, 1, &[], 2, "cannot read the configuration");
}

#[test]
fn certificates_that_are_not_this_nodes() {
    let mut site = Site::new("c", 2);
    let own = site.cluster.clone();
    refuses(&site, 1, &["--tls-cert", "node2.pem", "--tls-key", "node2.key"], 2, "node 1 (`node_id`)");
    refuses(
        &site,
        1,
        &["--tls-cert", "admin.pem", "--tls-key", "admin.key"],
        2,
        "client/admin?role=admin, this is node 1",
    );
    refuses(&site, 1, &["--tls-key", "node2.key"], 2, "the private key is not the certificate's");
    refuses(&site, 1, &["--tls-cert", "nowhere.pem"], 2, "nowhere.pem");
    refuses(&site, 1, &["--cluster", "d"], 2, "the certificate is of cluster c, expected d");

    let other = Site::new("c", 1);
    let ca = other.path("ca.pem");
    refuses(&site, 1, &["--tls-ca", ca.to_str().unwrap()], 2, "not issued by this CA");

    site.certify(1, &own, 1, Validity { from: 946_684_800, until: 1_000_000_000 });
    refuses(&site, 1, &[], 2, "the certificate holds from 946684800 to 1000000000");
    refuses(&site, 1, &["--check-config"], 2, "the certificate holds from 946684800");
}

#[test]
fn a_directory_of_another_node_or_cluster() {
    let mut site = Site::new("c", 2);
    let mut node = site.start(1, &[]);
    node.wait_for("/healthz", "200");
    assert_eq!(node.stop(), Some(0));

    let text = "the data directory belongs to node 1 of cluster c; this is node 2 of cluster c";
    refuses(&site, 2, &["--data-dir", "data1"], 1, text);

    let other = ClusterName::new("d").unwrap();
    let mut elsewhere = Site::new("d", 1);
    elsewhere.certify(1, &other, 1, Validity::days(1));
    let data = site.path("data1");
    let text = "belongs to node 1 of cluster c; this is node 1 of cluster d";
    refuses(&elsewhere, 1, &["--data-dir", data.to_str().unwrap()], 1, text);
    site.certify(1, &site.cluster.clone(), 1, Validity::days(1));

    // Nothing was harmed by the visits.
    let mut node = site.start(1, &[]);
    node.wait_for("/healthz", "200");
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_second_daemon_and_ports_in_use() {
    let site = Site::new("c", 1);
    let mut node = site.start(1, &[]);
    node.wait_ready();
    let port = common::free_port();
    let listen = format!("127.0.0.1:{port}");
    refuses(&site, 1, &["--listen", &listen, "--http", "off"], 1, "is in use by another process");
    refuses(&site, 1, &["--listen", &listen, "--data-dir", "fresh"], 1, "cannot listen on http");
    assert_eq!(node.get("/healthz").0, "200", "the first one goes on");
    assert_eq!(node.stop(), Some(0));

    let _udp = UdpSocket::bind(&listen).unwrap();
    refuses(&site, 1, &["--listen", &listen, "--data-dir", "fresh"], 1, &format!("cannot listen on {listen}"));
    let _tcp = TcpListener::bind(&listen).unwrap();
    refuses(&site, 1, &["--http", &listen, "--data-dir", "fresh"], 1, &format!("cannot listen on http {listen}"));
}

#[test]
fn a_corrupt_store() {
    let site = Site::new("c", 1);
    let mut node = site.start(1, &[]);
    node.wait_ready();
    assert_eq!(node.stop(), Some(0));
    let manifest = fs::read_dir(site.path("data1/db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("MANIFEST"))
        .unwrap();
    let mut bytes = fs::read(&manifest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().take(64).for_each(|byte| *byte ^= 0x5a);
    fs::write(&manifest, bytes).unwrap();
    refuses(&site, 1, &[], 1, "the store is corrupt");
}

#[test]
fn version_and_check() {
    let output = run(&["--version"]);
    assert!(output.status.success());
    let told = String::from_utf8_lossy(&output.stdout);
    // The commit stands behind it where it is known.
    assert!(told.starts_with(concat!("duetd ", env!("CARGO_PKG_VERSION"))), "{told}");

    let site = Site::new("c", 1);
    let config = site.config(1);
    let output = run(&["--config", config.to_str().unwrap(), "--check-config"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("ok: node 1 of cluster c, listening on 127.0.0.1:"));
    assert!(!site.path("data1").exists(), "nothing was touched");

    let output = run(&["--print-config"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), duet_node::config::example());

    assert_eq!(run(&["--no-such-flag"]).status.code(), Some(2));
}
