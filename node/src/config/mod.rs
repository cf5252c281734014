//! Configuration: layers of raw values in, one checked [`Resolved`] out.
//!
//! Every key of the file has a flag and a `DUETD_…` variable; a flag is above a variable, a variable above the file,
//! the file above the default. An unknown key, a value of the wrong kind or out of its bounds, or one that contradicts
//! another is an error that names the key and where it was set, and all such errors are told at once. Nothing past
//! this module looks at raw values.
//!
//! ```text
//! keys ─► the table    values ─► one value       layers ─► all that was set, and where
//!   └─► example: file, manual                      └─► combinations ─► Resolved, or every fault
//! ```

mod combinations;
mod example;
mod fault;
mod keys;
mod layers;
mod values;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use duet_proto::{ClusterName, Mode, NamespaceName, NodeId};

pub use self::{
    example::{Documented, documented, example},
    fault::{ConfigError, Fault, Origin, Place},
};
use self::{keys::KEYS, layers::Layers, values::Value};

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
    /// Threads that serve requests; `None`: half as many as there are cores.
    pub threads: Option<usize>,
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
    /// Where `cert` was set, for messages.
    pub origin: String,
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
    /// Memory for records and blocks of the store that were used last, in bytes; `None` for what suits the machine.
    pub cache_bytes: Option<usize>,
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
    #[must_use]
    pub fn in_memory(
        node: NodeId,
        cluster: ClusterName,
        listen: SocketAddr,
        founders: BTreeMap<NodeId, String>,
    ) -> Resolved {
        let layers = Layers::gather(None, None);
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
            threads: None,
            log: Log { json: false, level: "info".into() },
            timing: read.timing(),
        }
    }

    /// Reads the file that `--config` names, if any, and puts variables and flags above it.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn load(matches: &ArgMatches) -> Result<Resolved, ConfigError> {
        match matches.get_one::<PathBuf>("config") {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|source| Fault::Read { path: path.clone(), source })?;
                Resolved::from_layers(Layers::gather(Some((path, &text)), Some(matches)), path.parent())
            }
            None => Resolved::from_layers(Layers::gather(None, Some(matches)), None),
        }
    }

    /// `base` is what relative paths are relative to: the file's folder, so that a folder can be moved as a whole.
    fn from_layers(mut layers: Layers, base: Option<&Path>) -> Result<Resolved, ConfigError> {
        let mut faults = std::mem::take(&mut layers.faults);
        // What a file that is not TOML sets is not known.
        if !faults.iter().any(|fault| matches!(fault, Fault::Syntax { .. })) {
            faults.extend(missing(&layers));
            faults.extend(combinations::impossible(&layers));
        }
        ConfigError::unless_none(faults)?;
        Ok(Reader(&layers).resolved(base.unwrap_or(Path::new("")))?)
    }
}

/// Keys that must be set and are not. Those that were set to something wrong are told of elsewhere.
fn missing(layers: &Layers) -> impl Iterator<Item = Fault> {
    let needed = KEYS.iter().filter(|key| matches!(key.unset, keys::Unset::Refused(_)));
    needed
        .filter(|key| layers.get(key.path).is_none() && !layers.wrong.contains(key.path))
        .map(|key| Fault::Missing { key: key.path, flag: key.flag(), variable: key.variable() })
}

/// The command line of `duetd`: one flag and one variable for every key.
#[must_use]
pub fn command(version: String) -> Command {
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let command = Command::new("duetd")
        .about("One node of a Duet cluster")
        .version(version)
        .long_version(env!("DUET_BUILD"))
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
        .arg(switch("check-config", "Check the configuration and the certificates, then exit"))
        .arg(switch(
            "print-config",
            "Print a configuration file with every key, its unit, bounds and default, then exit",
        ));
    layers::flags(command)
}

/// Reads values that have been checked.
struct Reader<'a>(&'a Layers);

impl Reader<'_> {
    fn resolved(&self, base: &Path) -> Result<Resolved, Fault> {
        let path = |key| self.text(key).map(|text| base.join(text));
        let node = NodeId(u32::try_from(self.required_number("node_id")?).unwrap_or(u32::MAX));
        let listen = self.socket("listen")?.ok_or_else(|| missed("listen"))?;
        let founders = self.founders()?;
        let advertise = match self.0.get("advertise") {
            Some(_) => self.text("advertise")?.to_owned(),
            None => founders.get(&node).cloned().unwrap_or_else(|| listen.to_string()),
        };
        Ok(Resolved {
            node,
            cluster: self.cluster()?,
            listen,
            advertise,
            data_dir: path("data_dir")?,
            http: self.socket("http")?,
            tls: TlsFiles {
                ca: path("tls.ca")?,
                cert: path("tls.cert")?,
                key: path("tls.key")?,
                revoked: self.0.get("tls.revoked").map(|_| path("tls.revoked")).transpose()?,
                origin: self.0.get("tls.cert").map(|(_, origin)| origin.to_string()).unwrap_or_default(),
            },
            founders,
            expect: self.expect(),
            limits: self.limits(),
            disk: self.disk(),
            threads: self.optional("threads"),
            gossip: (self.text("gossip")? == "on").then(|| Duration::from_millis(self.number("timing.gossip_ms"))),
            log: Log { json: self.text("log.format")? == "json", level: self.text("log.level")?.to_owned() },
            timing: self.timing(),
        })
    }

    fn value(&self, key: &'static str) -> Result<&Value, Fault> {
        self.0.get(key).map(|(value, _)| value).ok_or_else(|| missed(key))
    }

    fn text(&self, key: &'static str) -> Result<&str, Fault> {
        match self.value(key)? {
            Value::Text(text) => Ok(text),
            _ => Err(missed(key)),
        }
    }

    fn cluster(&self) -> Result<ClusterName, Fault> {
        match self.value("cluster")? {
            Value::Cluster(name) => Ok(name.clone()),
            _ => Err(missed("cluster")),
        }
    }

    fn socket(&self, key: &'static str) -> Result<Option<SocketAddr>, Fault> {
        match self.value(key)? {
            Value::Socket(address) => Ok(*address),
            _ => Err(missed(key)),
        }
    }

    fn required_number(&self, key: &'static str) -> Result<u64, Fault> {
        match self.value(key)? {
            Value::Number(number) => Ok(*number),
            _ => Err(missed(key)),
        }
    }

    /// A number that has a default.
    fn number(&self, key: &'static str) -> u64 {
        self.required_number(key).unwrap_or_default()
    }

    /// A number that may be absent.
    fn optional(&self, key: &'static str) -> Option<usize> {
        self.required_number(key).ok().map(|number| number as usize)
    }

    fn founders(&self) -> Result<BTreeMap<NodeId, String>, Fault> {
        match self.value("founders")? {
            Value::Founders(founders) => Ok(founders.clone()),
            _ => Err(missed("founders")),
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
        Disk { reserve_bytes: self.number("disk.reserve_bytes"), cache_bytes: self.optional("disk.cache_bytes") }
    }

    fn timing(&self) -> Timing {
        let ms = |key| Duration::from_millis(self.number(key));
        Timing {
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
        }
    }
}

/// The kind of a value is the kind of its key, which is checked where values are read: this is not seen.
fn missed(key: &'static str) -> Fault {
    Fault::Value { key, origin: Origin::Default, why: "it has no value of its kind".into() }
}

#[cfg(test)]
mod tests;
