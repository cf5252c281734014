use duet_proto::limits;

use super::*;

const FILE: &str = r#"
node_id = 2
cluster = "prod"
listen = "127.0.0.1:7400"
data_dir = "data"

[tls]
ca = "ca.pem"
cert = "/etc/duet/node.pem"
key = "node.key"

[[founders]]
id = 1
address = "a.example:7400"

[[founders]]
id = 2
address = "b.example:7400"

[limits]
value_bytes = 2_000_000
"#;

fn resolve(file: &str, args: &[&str]) -> Result<Resolved, ConfigError> {
    let matches = command("0".into()).get_matches_from(std::iter::once(&"duetd").chain(args));
    let path = Path::new("/etc/duet/duetd.toml");
    Resolved::from_layers(Layers::gather(Some((path, file)), Some(&matches)), path.parent())
}

fn message(file: &str, args: &[&str]) -> String {
    resolve(file, args).expect_err("it should be refused").to_string()
}

#[test]
fn a_flag_is_above_the_file_and_the_file_above_the_default() {
    let config = resolve(FILE, &["--tls-ca", "/other.pem", "--timing-tick-ms", "20"]).unwrap();
    assert_eq!(config.node, NodeId(2));
    assert_eq!(config.data_dir, Path::new("/etc/duet/data"), "relative to the file");
    assert_eq!(config.tls.ca, Path::new("/other.pem"));
    assert_eq!(config.tls.cert, Path::new("/etc/duet/node.pem"));
    assert_eq!(config.tls.revoked, None);
    let revoked = resolve(FILE, &["--tls-revoked", "revoked"]).unwrap().tls.revoked;
    assert_eq!(revoked.as_deref(), Some(Path::new("/etc/duet/revoked")));
    assert_eq!(config.limits.value_bytes, 2_000_000);
    assert_eq!(config.timing.tick, Duration::from_millis(20));
    assert_eq!(config.timing.election_ticks, 12);
    assert_eq!(config.advertise, "b.example:7400", "the founders' entry");
    assert_eq!(config.founders.len(), 2);
    assert_eq!(config.gossip, Some(Duration::from_millis(500)));
    assert_eq!(resolve(FILE, &["--gossip", "off"]).unwrap().gossip, None);
    let founders = resolve(FILE, &["--listen", "[::]:7", "--founders", "2=x:1,8=[::1]:2"]).unwrap().founders;
    assert_eq!(founders[&NodeId(8)], "[::1]:2");
}

#[test]
fn expected_modes_are_a_table_or_a_list() {
    let expect = |file: &str, args: &[&str]| -> Vec<String> {
        let config = resolve(file, args).unwrap();
        config.expect.iter().map(|(name, mode)| format!("{name}={mode}")).collect()
    };
    assert!(expect(FILE, &[]).is_empty());
    let file = format!("{FILE}[expect]\norders = \"strong\"\n\"a.b\" = \"eventual\"\n");
    assert_eq!(expect(&file, &[]), ["a.b=eventual", "orders=strong"]);
    assert_eq!(expect(&file, &["--expect", "carts=eventual, orders = strong"]), ["carts=eventual", "orders=strong"]);
    assert!(expect(&file, &["--expect", ""]).is_empty(), "a flag is above the file");
    assert!(message(FILE, &["--expect", "orders"]).ends_with("\"orders\" is not NAME=MODE"));
    assert!(message(FILE, &["--expect", "a=strong,a=strong"]).ends_with("namespace a is there twice"));
    assert!(message(FILE, &["--expect", "a=weak"]).starts_with("--expect: `expect`: namespace a: "));
    let dotted = format!("{FILE}[expect]\na.b = \"strong\"\n");
    assert!(
        message(&dotted, &[]).contains("/etc/duet/duetd.toml:23:1: `expect`: \"a\""),
        "{}",
        message(&dotted, &[])
    );
    assert!(message(&format!("expect = 1\n{FILE}"), &[]).ends_with("a table of names and modes is expected"));
}

/// Every fault of a file whose first line is line 1.
fn faults(file: &str, args: &[&str]) -> Vec<String> {
    message(file, args).lines().map(|line| line.replace("/etc/duet/duetd.toml:", "")).collect()
}

#[test]
fn unknown_keys_are_named_with_their_place_and_what_was_meant() {
    let typo = FILE.replace("data_dir", "datadir");
    assert_eq!(message(&typo, &[]), "/etc/duet/duetd.toml:5:1: unknown key `datadir`; did you mean `data_dir`?");
    let typo = FILE.replace("value_bytes", "value_byte");
    assert_eq!(faults(&typo, &[]), ["21:1: unknown key `limits.value_byte`; did you mean `limits.value_bytes`?"]);
    let table = FILE.replace("[limits]", "  [limit]");
    assert_eq!(faults(&table, &[]), ["20:4: unknown key `limit`; did you mean `limits`?"]);
    let moved = format!("tick_ms = 5\n{FILE}");
    assert_eq!(faults(&moved, &[]), ["1:1: unknown key `tick_ms`; did you mean `timing.tick_ms`?"]);
    assert_eq!(faults(&format!("{FILE}[nosuch]\na = 1\n"), &[]), ["22:2: unknown key `nosuch`"]);
    let founder = FILE.replace("address = \"b", "adress = \"b");
    assert_eq!(
        faults(&founder, &[]),
        ["18:1: `founders`: \"adress\" in [[founders]]: only `id` and `address` are known there"]
    );
}

#[test]
fn what_is_not_toml_is_told_with_its_place() {
    let two = faults("node_id = x\ncluster = \"a\nlisten = \"é\" 1\n", &[]);
    let places: Vec<_> = two.iter().filter_map(|fault| fault.split(": ").next()).collect();
    assert_eq!(places, ["1:11", "2:13", "3:14"], "{two:#?}");
    let twice = format!("{FILE}value_bytes = 7\n");
    assert!(faults(&twice, &[])[0].starts_with("22:1: duplicate key"), "{:?}", faults(&twice, &[]));
}

#[test]
fn wrong_values_name_key_origin_and_bounds() {
    let zero = FILE.replace("node_id = 2", "node_id = 0");
    assert_eq!(faults(&zero, &[]), ["2:11: `node_id`: 0 is out of bounds: 1 to 4294967295 are allowed"]);
    let text = FILE.replace("node_id = 2", "node_id = \"2\"");
    assert!(message(&text, &[]).ends_with("`node_id`: a decimal whole number is expected"));
    assert!(message(FILE, &["--http", "0.0.0.0:80"]).starts_with("--http: `http`: 0.0.0.0:80 is not a loopback"));
    assert!(message(FILE, &["--http", "127.0.0.1:0"]).ends_with("port 0 would be another one at every start"));
    assert!(message(FILE, &["--cluster", "No"]).starts_with("--cluster: `cluster`: cluster name \"No\""));
    assert!(message(FILE, &["--log-format", "xml"]).ends_with("\"xml\" is none of text, json"));
    assert!(message(FILE, &["--log-level", "duet=loud"]).starts_with("--log-level: `log.level`: "));
    for level in ["warning", "loud", "info,duet_node", "duet_node"] {
        assert!(message(FILE, &["--log-level", level]).contains("is none of off, error, warn, info"), "{level}");
    }
    for level in ["Warn", "off", "3", "info,duet_node=debug", "duet_node=debug", "warn,quinn=off"] {
        assert!(resolve(FILE, &["--log-level", level]).is_ok(), "{level}");
    }
    assert!(message(FILE, &["--founders", "1=nowhere"]).ends_with("\"nowhere\" is not HOST:PORT"));
    assert!(message(FILE, &["--founders", "1=a:1,1=b:1"]).ends_with("founder 1 is there twice"));
    assert!(
        message(FILE, &["--founders", "1=[::1]:5,2=[0:0::1]:5"]).ends_with("founders 1 and 2 are both at [0:0::1]:5")
    );
    assert!(message(FILE, &["--founders", "1=0.0.0.0:5"]).contains("nobody can reach 0.0.0.0:5"));
    assert!(message(FILE, &["--founders", ""]).ends_with("no founders"));
    let many: Vec<String> = (1..=10).map(|node| format!("{node}=a{node}:1")).collect();
    assert!(message(FILE, &["--founders", &many.join(",")]).ends_with("10 founders: at most 9 are allowed"));
    let founder = FILE.replace("id = 2\naddress", "id = \"2\"\naddress");
    assert_eq!(faults(&founder, &[]), ["17:6: `founders`: `id`: a whole number is expected"]);
    let same = FILE.replace("b.example", "A.example");
    assert_eq!(faults(&same, &[]), ["18:11: `founders`: founders 1 and 2 are both at A.example:7400"]);
    let without = FILE.replace("address = \"b.example:7400\"", "");
    assert_eq!(faults(&without, &[]), ["16:1: `founders`: a founder without `address`"]);
    let unset = FILE.replace("cluster = \"prod\"\n", "");
    assert!(message(&unset, &[]).contains("--cluster or as DUETD_CLUSTER"));
}

#[test]
fn combinations_that_cannot_work_are_refused_where_they_stand() {
    let timing = format!("{FILE}[timing]\nheartbeat_ticks = 10\n");
    assert_eq!(
        faults(&timing, &[]),
        ["23:19: `timing.heartbeat_ticks`: an election after 12 ticks is less than 4 times a heartbeat of 10 ticks"]
    );
    let both = faults(&timing, &["--timing-election-ticks", "20"]);
    assert!(
        both[0].starts_with("--timing-election-ticks: `timing.election_ticks`: an election after 20"),
        "{both:?}"
    );
    assert!(both[0].ends_with("10 ticks, set at 23:19"), "{both:?}");
    let one = |args: &[&str], wanted: &str| {
        let found = faults(FILE, args);
        assert!(found.len() == 1 && found[0].contains(wanted), "{args:?}: {found:#?}");
    };
    one(&["--timing-tick-ms", "200"], "--timing-tick-ms: `timing.tick_ms`: requests would be refused after 1500 ms");
    one(&["--timing-no-quorum-ms", "600"], "before others stand for election, after 600 ms");
    one(
        &["--timing-request-ms", "1000"],
        "would wait 2000 ms for its session, and no request may wait longer than 1000",
    );
    one(&["--node-id", "3", "--listen", "0.0.0.0:7"], "--listen: `listen`: nobody can reach 0.0.0.0:7");
    one(&["--advertise", "[::]:7"], "nobody can reach [::]:7");
    one(&["--advertise", "A.example:7400"], "A.example:7400 is the address of founder 1, set at 12:3");
    one(&["--tls-revoked", "ca.pem"], "\"ca.pem\" is the file of `tls.ca` too");
    let founders = ["--founders", "1=10.0.0.1:7400,2=10.0.0.2:7400"];
    one(&founders, "`listen`: 127.0.0.1 is heard on this machine only, and founder 1 is at 10.0.0.1:7400");
    one(
        &["--founders", "1=[2001:db8::1]:7400"],
        "a socket on 127.0.0.1 cannot send to founder 1 at [2001:db8::1]:7400",
    );
    let listen = |address| resolve(FILE, &[&founders[..], &["--listen", address]].concat());
    assert!(listen("0.0.0.0:7400").is_ok() && listen("[::]:7400").is_ok() && listen("10.0.0.2:7400").is_ok());
    assert!(listen("[::1]:7400").is_err());
}

#[test]
fn combinations_at_their_bounds_work_and_beyond_do_not() {
    let works = |args: &[&str]| {
        let found = resolve(FILE, args);
        assert!(found.is_ok(), "{args:?}: {found:?}");
    };
    let fails = |args: &[&str], wanted: &str| {
        let found = faults(FILE, args);
        assert!(found.len() == 1 && found[0].ends_with(wanted), "{args:?}: {found:#?}");
    };
    works(&["--timing-heartbeat-ticks", "3"]);
    works(&["--timing-request-ms", "2000"]);
    fails(&["--timing-election-ticks", "7"], "than 4 times a heartbeat of 2 ticks, by default");
    // What is wrong by itself is not taken for what it is without.
    fails(&["--timing-election-ticks", "0", "--timing-heartbeat-ticks", "10"], "are allowed");
    fails(&["--tls-revoked", "/etc/duet/node.pem"], "is the file of `tls.cert` too, set at 9:8");
    fails(&["--tls-revoked", "node.key"], "is the file of `tls.key` too, set at 10:7");
    works(&["--node-id", "3", "--listen", "0.0.0.0:7400", "--advertise", "c.example:7400"]);
    works(&["--founders", "1=127.0.0.1:7401,2=127.0.0.1:7400"]);
    let six = ["--listen", "[2001:db8::2]:7400", "--founders", "1=10.0.0.1:7400,2=[2001:db8::2]:7400"];
    fails(&six, "a socket on 2001:db8::2 cannot send to founder 1 at 10.0.0.1:7400, set at --founders");
}

#[test]
fn every_fault_is_told_at_once_in_the_order_of_the_file() {
    let file = FILE
        .replace("node_id = 2", "nodeid = 2")
        .replace("127.0.0.1:7400", "nowhere")
        .replace("id = 1\n", "id = 0\n")
        .replace("b.example:7400", "b.example")
        .replace("2_000_000", "0");
    assert_eq!(
        faults(&file, &["--gossip", "perhaps", "--timing-heartbeat-ticks", "4"]),
        [
            "2:1: unknown key `nodeid`; did you mean `node_id`?",
            "4:10: `listen`: \"nowhere\" is not an IP address and port, as 0.0.0.0:7400",
            "14:11: `founders`: node ids begin at 1",
            "18:11: `founders`: \"b.example\" is not HOST:PORT",
            "21:15: `limits.value_bytes`: 0 is out of bounds: 1 to 16777216 are allowed",
            "--gossip: `gossip`: \"perhaps\" is none of on, off",
            "`node_id` is not set: give it in the file, as --node-id or as DUETD_NODE_ID",
            "--timing-heartbeat-ticks: `timing.heartbeat_ticks`: an election after 12 ticks is less than 4 times a \
             heartbeat of 4 ticks",
        ]
    );
}

#[test]
fn the_packaged_file_is_the_example() {
    let packaged = include_str!("../../../packaging/duetd.toml");
    assert!(packaged == example(), "make packaging/duetd.toml anew: duetd --print-config > packaging/duetd.toml");
    let config = resolve(packaged, &[]).unwrap();
    assert_eq!(config.founders.len(), 3);
    assert_eq!(config.tls.key, Path::new("/etc/duet/node.key"));
}

#[test]
fn what_the_example_shows_as_a_default_is_the_default() {
    let bare = resolve(&example(), &[]).unwrap();
    let set: String = example()
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned() + "\n")
        .collect();
    assert_eq!(set.matches(" = ").count(), KEYS.len() + 5, "every key is there once, founders six times");
    let whole = resolve(&set, &[]).unwrap();
    let disk = Disk { cache_bytes: None, ..whole.disk };
    let shown = Resolved { expect: BTreeMap::new(), tls: bare.tls.clone(), threads: None, disk, ..whole.clone() };
    assert_eq!(format!("{shown:?}"), format!("{bare:?}"));
    assert_eq!(whole.expect.len(), 1);
    assert_eq!(whole.tls.revoked.as_deref(), Some(Path::new("/etc/duet/revoked")));
    for key in documented() {
        assert!(set.contains(&format!("{}; {})", key.allowed, key.unset)), "{key:?}");
    }
}

#[test]
fn http_can_be_off() {
    assert!(resolve(FILE, &["--http", "off"]).unwrap().http.is_none());
}

#[test]
fn every_default_is_within_its_bounds() {
    let config = Resolved::in_memory(
        NodeId(1),
        ClusterName::new("c").unwrap(),
        ([127, 0, 0, 1], 1).into(),
        BTreeMap::from([(NodeId(1), "a:1".into())]),
    );
    assert_eq!(config.limits.in_flight, limits::IN_FLIGHT);
    command("0".into()).debug_assert();
}
