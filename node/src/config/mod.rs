//! Configuration: layers of raw values in, one checked [`Resolved`] out.
//!
//! Every key of the file has a flag and a `DUETD_…` variable; a flag is above a variable, a variable above the file,
//! the file above the default. An unknown key, a value of the wrong kind or out of its bounds is an error that names
//! the key and where it was set. Nothing past this module looks at raw values.

mod keys;
mod layers;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use duet_proto::{ClusterName, Mode, NamespaceName, NodeId, limits};

use layers::{Layers, Origin, Value};

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: {why}")]
    Syntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        why: String,
    },
    /// The file holds a key that means nothing.
    #[error("{path}:{line}: unknown key `{key}`")]
    UnknownKey {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The key, with its section.
        key: String,
    },
    /// A value cannot be used.
    #[error("{origin}: `{key}`: {why}")]
    Value {
        /// The key.
        key: String,
        /// Where it was set: a file and line, a variable or a flag.
        origin: String,
        /// What is wrong.
        why: String,
    },
    /// A key without a default was not set.
    #[error("`{key}` is not set: give it in the file, as --{flag} or as {variable}")]
    Missing {
        /// The key.
        key: &'static str,
        /// Its flag.
        flag: String,
        /// Its variable.
        variable: String,
    },
}

/// The configuration of one node, checked.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Where it listens for peers and clients (UDP).
    pub listen: SocketAddr,
    /// Where others reach it.
    pub advertise: String,
    /// Where its data is. The simulation does not use it.
    pub data_dir: PathBuf,
    /// Where it serves `/healthz`, `/readyz` and `/metrics`.
    pub http: Option<SocketAddr>,
    /// Its certificates. The simulation brings its own.
    pub tls: TlsFiles,
    /// The nodes that start the cluster.
    pub founders: BTreeMap<NodeId, String>,
    /// The modes that namespaces are expected to have. Others are told of, nothing else.
    pub expect: BTreeMap<NamespaceName, Mode>,
    /// What a client may ask for.
    pub limits: Limits,
    /// Its disk.
    pub disk: Disk,
    /// How often it gossips; `None`: not at all. Gossip takes time and chance from the system, so the simulation runs
    /// without.
    pub gossip: Option<Duration>,
    /// Its log.
    pub log: Log,
    /// Its times.
    pub timing: Timing,
}

/// PEM files.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The cluster's certificate authority.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The list of revoked certificates, if there is one.
    pub revoked: Option<PathBuf>,
}

/// What clients may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest value, in bytes.
    pub value_bytes: usize,
    /// Most client connections.
    pub connections: usize,
    /// Most requests of one connection that wait for answers.
    pub in_flight: usize,
}

/// The disk.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Free bytes below which writes are refused.
    pub reserve_bytes: u64,
    /// The store's block cache, in bytes.
    pub cache_bytes: usize,
}

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    /// JSON lines instead of text.
    pub json: bool,
    /// A level or directives.
    pub level: String,
}

/// Times.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The engines' unit of time.
    pub tick: Duration,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Ticks of silence before an election.
    pub election_ticks: u32,
    /// Without a quorum for so long, requests are refused.
    pub no_quorum: Duration,
    /// How far ahead another node's time may be, in milliseconds.
    pub clock_drift_ms: u64,
    /// How long a read of an eventual namespace waits for what its session has seen.
    pub token_wait: Duration,
    /// Longest time a request may ask to wait.
    pub request: Duration,
    /// Age that no connection exceeds.
    pub connection_age: Duration,
    /// How often every record of an eventual namespace is read; `None`: never.
    pub scrub: Option<Duration>,
    /// Longest time of a clean stop.
    pub stop: Duration,
}

impl Resolved {
    /// The defaults, for a node of a simulation or a test: no HTTP, no files, no gossip.
    ///
    /// # Panics
    /// Never: the table of keys has valid defaults, which a test checks.
    #[must_use]
    pub fn in_memory(
        node: NodeId,
        cluster: ClusterName,
        listen: SocketAddr,
        founders: BTreeMap<NodeId, String>,
    ) -> Resolved {
        let layers = Layers::gather(None, None).expect("the defaults are valid");
        let read = Reader(&layers);
        Resolved {
            node,
            cluster,
            listen,
            advertise: listen.to_string(),
            data_dir: PathBuf::new(),
            http: None,
            tls: TlsFiles::default(),
            founders,
            expect: read.expect(),
            limits: read.limits(),
            disk: read.disk(),
            gossip: None,
            log: Log { json: false, level: "info".into() },
            timing: read.timing().expect("the defaults are valid"),
        }
    }

    /// Reads the file that `--config` names, if any, and puts variables and flags above it.
    ///
    /// # Errors
    /// Whatever is wrong first.
    pub fn load(matches: &ArgMatches) -> Result<Resolved, ConfigError> {
        match matches.get_one::<PathBuf>("config") {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
                Resolved::from_layers(&Layers::gather(Some((path, &text)), Some(matches))?, path.parent())
            }
            None => Resolved::from_layers(&Layers::gather(None, Some(matches))?, None),
        }
    }

    /// `base` is what relative paths are relative to: the file's folder, so that a folder can be moved as a whole.
    fn from_layers(layers: &Layers, base: Option<&Path>) -> Result<Resolved, ConfigError> {
        let read = Reader(layers);
        let path = |key| read.text(key).map(|text| base.unwrap_or(Path::new("")).join(text));
        let node = NodeId(u32::try_from(read.required_number("node_id")?).unwrap_or(u32::MAX));
        let cluster = read.checked("cluster", |text| ClusterName::new(text).map_err(|e| e.to_string()))?;
        let listen = read.socket("listen")?;
        let founders = read.founders()?;
        let advertise = match read.0.get("advertise") {
            Some(_) => read.checked("advertise", |text| check_address(text).map(|()| text.to_owned()))?,
            None => founders.get(&node).cloned().unwrap_or_else(|| listen.to_string()),
        };
        if advertise.parse::<SocketAddr>().is_ok_and(|a| a.ip().is_unspecified() || a.port() == 0) {
            return Err(read.wrong("advertise", format!("nobody can reach {advertise}: set HOST:PORT")));
        }
        Ok(Resolved {
            node,
            cluster,
            listen,
            advertise,
            data_dir: path("data_dir")?,
            http: read.checked("http", http_address)?,
            tls: TlsFiles {
                ca: path("tls.ca")?,
                cert: path("tls.cert")?,
                key: path("tls.key")?,
                revoked: layers.get("tls.revoked").map(|_| path("tls.revoked")).transpose()?,
            },
            founders,
            expect: read.expect(),
            limits: read.limits(),
            disk: read.disk(),
            gossip: (read.text("gossip")? == "on").then(|| Duration::from_millis(read.number("timing.gossip_ms"))),
            log: Log {
                json: read.text("log.format")? == "json",
                level: read.checked("log.level", |text| match tracing_subscriber::EnvFilter::try_new(text) {
                    Ok(_) => Ok(text.to_owned()),
                    Err(error) => Err(error.to_string()),
                })?,
            },
            timing: read.timing()?,
        })
    }
}

/// The command line of `duetd`: one flag and one variable for every key.
#[must_use]
pub fn command(version: String) -> Command {
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let command = Command::new("duetd")
        .about("One node of a Duet cluster")
        .version(version)
        .after_help("A flag is above its variable, a variable above the file, the file above the default.")
        .arg(
            Arg::new("config")
                .long("config")
                .short('c')
                .env("DUETD_CONFIG")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("TOML file; relative paths in it are relative to its folder"),
        )
        .arg(switch("check-config", "Check the configuration and the certificates, then exit"));
    layers::flags(command)
}

fn http_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let address: SocketAddr =
        text.parse().map_err(|_| format!("{text:?} is neither an IP address and port nor `off`"))?;
    if address.ip().is_loopback() {
        Ok(Some(address))
    } else {
        Err(format!("{address} is not a loopback address: it is served without encryption, to this machine only"))
    }
}

/// `HOST:PORT`, where the host may be a name.
fn check_address(text: &str) -> Result<(), String> {
    let valid = match text.rsplit_once(':') {
        Some((host, port)) => {
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            !host.is_empty() && text.len() <= 260 && port.parse::<u16>().is_ok_and(|port| port != 0)
        }
        None => false,
    };
    if valid { Ok(()) } else { Err(format!("{text:?} is not HOST:PORT")) }
}

/// Reads checked values; kinds were checked when the layers were gathered.
struct Reader<'a>(&'a Layers);

impl Reader<'_> {
    fn wrong(&self, key: &'static str, why: String) -> ConfigError {
        let origin = self.0.get(key).map_or(Origin::Default, |(_, origin)| origin.clone());
        ConfigError::Value { key: key.into(), origin: origin.to_string(), why }
    }

    fn required(&self, key: &'static str) -> Result<&Value, ConfigError> {
        self.0.get(key).map(|(value, _)| value).ok_or_else(|| {
            let flag = key.replace(['.', '_'], "-");
            let variable = format!("DUETD_{}", flag.replace('-', "_").to_uppercase());
            ConfigError::Missing { key, flag, variable }
        })
    }

    fn text(&self, key: &'static str) -> Result<&str, ConfigError> {
        match self.required(key)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(key, "a text is expected".into())),
        }
    }

    fn checked<T>(&self, key: &'static str, check: impl Fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        check(self.text(key)?).map_err(|why| self.wrong(key, why))
    }

    fn socket(&self, key: &'static str) -> Result<SocketAddr, ConfigError> {
        match self.required(key)? {
            Value::Socket(address) => Ok(*address),
            _ => Err(self.wrong(key, "an address is expected".into())),
        }
    }

    fn required_number(&self, key: &'static str) -> Result<u64, ConfigError> {
        match self.required(key)? {
            Value::Number(number) => Ok(*number),
            _ => Err(self.wrong(key, "a number is expected".into())),
        }
    }

    /// A number that has a default.
    fn number(&self, key: &'static str) -> u64 {
        self.required_number(key).unwrap_or_default()
    }

    fn founders(&self) -> Result<BTreeMap<NodeId, String>, ConfigError> {
        match self.required("founders")? {
            Value::Founders(founders) if founders.len() > limits::MEMBERS => {
                Err(self.wrong("founders", format!("more than {} founders", limits::MEMBERS)))
            }
            Value::Founders(founders) => Ok(founders.clone()),
            _ => Err(self.wrong("founders", "founders are expected".into())),
        }
    }

    fn expect(&self) -> BTreeMap<NamespaceName, Mode> {
        match self.0.get("expect") {
            Some((Value::Modes(modes), _)) => modes.clone(),
            _ => BTreeMap::new(),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            value_bytes: self.number("limits.value_bytes") as usize,
            connections: self.number("limits.connections") as usize,
            in_flight: self.number("limits.in_flight") as usize,
        }
    }

    fn disk(&self) -> Disk {
        Disk {
            reserve_bytes: self.number("disk.reserve_bytes"),
            cache_bytes: self.number("disk.cache_bytes") as usize,
        }
    }

    fn timing(&self) -> Result<Timing, ConfigError> {
        let ms = |key| Duration::from_millis(self.number(key));
        let timing = Timing {
            tick: ms("timing.tick_ms"),
            heartbeat_ticks: self.number("timing.heartbeat_ticks") as u32,
            election_ticks: self.number("timing.election_ticks") as u32,
            no_quorum: ms("timing.no_quorum_ms"),
            clock_drift_ms: self.number("timing.clock_drift_ms"),
            token_wait: ms("timing.token_wait_ms"),
            request: ms("timing.request_ms"),
            connection_age: Duration::from_secs(self.number("timing.connection_age_s")),
            scrub: Some(self.number("timing.scrub_s")).filter(|s| *s > 0).map(Duration::from_secs),
            stop: ms("timing.stop_ms"),
        };
        if timing.election_ticks < 4 * timing.heartbeat_ticks {
            let why = format!("{} is less than 4 times timing.heartbeat_ticks", timing.election_ticks);
            return Err(self.wrong("timing.election_ticks", why));
        }
        Ok(timing)
    }
}

#[cfg(test)]
mod tests {
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
        Resolved::from_layers(&Layers::gather(Some((path, file)), Some(&matches))?, path.parent())
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
        let founders = resolve(FILE, &["--founders", "7=x:1,8=[::1]:2"]).unwrap().founders;
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
        assert_eq!(
            expect(&file, &["--expect", "carts=eventual, orders = strong"]),
            ["carts=eventual", "orders=strong"]
        );
        assert!(expect(&file, &["--expect", ""]).is_empty(), "a flag is above the file");
        assert!(message(FILE, &["--expect", "orders"]).ends_with("\"orders\" is not NAME=MODE"));
        assert!(message(FILE, &["--expect", "a=strong,a=strong"]).ends_with("namespace a is there twice"));
        assert!(message(FILE, &["--expect", "a=weak"]).starts_with("--expect: `expect`: namespace a: "));
        let dotted = format!("{FILE}[expect]\na.b = \"strong\"\n");
        assert!(
            message(&dotted, &[]).contains("/etc/duet/duetd.toml:22: `expect`: \"a\""),
            "{}",
            message(&dotted, &[])
        );
        assert!(message(&format!("expect = 1\n{FILE}"), &[]).ends_with("a table of names and modes is expected"));
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let typo = FILE.replace("data_dir", "datadir");
        assert_eq!(message(&typo, &[]), "/etc/duet/duetd.toml:5: unknown key `datadir`");
        let typo = FILE.replace("value_bytes", "value_byte");
        assert_eq!(message(&typo, &[]), "/etc/duet/duetd.toml:21: unknown key `limits.value_byte`");
        assert_eq!(
            message(&format!("{FILE}[nosuch]\na = 1\n"), &[]),
            "/etc/duet/duetd.toml:22: unknown key `nosuch`"
        );
        assert!(message("node_id = \n", &[]).starts_with("/etc/duet/duetd.toml:1: "));
    }

    #[test]
    fn wrong_values_name_key_origin_and_bounds() {
        let zero = FILE.replace("node_id = 2", "node_id = 0");
        assert_eq!(
            message(&zero, &[]),
            "/etc/duet/duetd.toml:2: `node_id`: 0 is out of bounds: 1 to 4294967295 are allowed"
        );
        let text = FILE.replace("node_id = 2", "node_id = \"2\"");
        assert!(message(&text, &[]).ends_with("`node_id`: a decimal whole number is expected"));
        assert!(message(FILE, &["--http", "0.0.0.0:80"]).starts_with("--http: `http`: 0.0.0.0:80 is not a loopback"));
        assert!(message(FILE, &["--cluster", "No"]).starts_with("--cluster: `cluster`: cluster name \"No\""));
        assert!(message(FILE, &["--log-format", "xml"]).ends_with("\"xml\" is none of text, json"));
        assert!(message(FILE, &["--founders", "1=nowhere"]).ends_with("\"nowhere\" is not HOST:PORT"));
        assert!(message(FILE, &["--founders", "1=a:1,1=b:1"]).ends_with("founder 1 is there twice"));
        assert!(message(FILE, &["--timing-heartbeat-ticks", "10"]).contains("less than 4 times"));
        assert!(message(FILE, &["--node-id", "3", "--listen", "0.0.0.0:7"]).contains("nobody can reach 0.0.0.0:7"));
        let without = FILE.replace("cluster = \"prod\"\n", "");
        assert!(message(&without, &[]).contains("--cluster or as DUETD_CLUSTER"));
    }

    #[test]
    fn the_packaged_file_is_valid() {
        let config = resolve(include_str!("../../../packaging/duetd.toml"), &[]).unwrap();
        assert_eq!(config.founders.len(), 3);
        assert_eq!(config.tls.key, Path::new("/etc/duet/node.key"));
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
}
