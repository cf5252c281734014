//! The table of keys: the one place that says what can be set, in which unit, with which default and bounds.
//!
//! The file's keys, the variables, the flags, `--help`, the example file, the manual, the checks and the defaults all
//! come from here.

use duet_proto::limits;

use self::Unset::{Absent, Default, Refused};

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// The name of a cluster.
    Cluster,
    /// A file or folder.
    Path,
    /// An IP address and a port to bind.
    Socket,
    /// The same, of this machine alone, or `off`.
    Loopback,
    /// A host name or address, and a port.
    Address,
    /// A number between the bounds, both included.
    Number { unit: &'static str, min: u64, max: u64 },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// What is logged.
    Directives,
    /// Node ids and addresses: `[[founders]]` tables in the file, `1=HOST:PORT,2=HOST:PORT` elsewhere.
    Founders,
    /// Namespaces and modes: a table `[expect]` with a mode for each name in the file, `orders=strong,…` elsewhere.
    Modes,
}

/// What holds where a key is not set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unset {
    /// It has to be set. The example file has this.
    Refused(&'static str),
    /// Nothing. The example file shows this.
    Absent(&'static str),
    /// This, as one would write it in a flag.
    Default(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its dotted path in the file.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) unset: Unset,
    pub(super) help: &'static str,
}

impl Key {
    /// `tls.ca` → `tls-ca`.
    pub(super) fn flag(&self) -> String {
        self.path.replace(['.', '_'], "-")
    }

    /// `tls.ca` → `DUETD_TLS_CA`.
    pub(super) fn variable(&self) -> String {
        format!("DUETD_{}", self.path.replace('.', "_").to_uppercase())
    }

    pub(super) fn default(&self) -> Option<&'static str> {
        match self.unset {
            Unset::Default(text) => Some(text),
            Unset::Refused(_) | Unset::Absent(_) => None,
        }
    }

    /// What a flag's help calls its value.
    pub(super) fn placeholder(&self) -> String {
        match self.kind {
            Kind::Number { unit: "", .. } => "N".to_owned(),
            Kind::Number { unit, .. } => unit.to_uppercase(),
            Kind::Choice(_) => "WORD".into(),
            Kind::Socket | Kind::Loopback => "IP:PORT".into(),
            Kind::Address => "HOST:PORT".into(),
            Kind::Founders => "ID=ADDRESS,…".into(),
            Kind::Modes => "NAME=MODE,…".into(),
            Kind::Path => "PATH".into(),
            Kind::Cluster => "NAME".into(),
            Kind::Directives => "LEVEL".into(),
        }
    }

    /// What is allowed: the unit and the bounds, or the words.
    pub(super) fn allowed(&self) -> String {
        match self.kind {
            Kind::Number { unit: "", min, max } => format!("{min} to {max}"),
            Kind::Number { unit, min, max } => format!("{unit}, {min} to {max}"),
            Kind::Choice(words) => words.join(" or "),
            Kind::Cluster => "1 to 64 characters of a-z, 0-9, '.', '_' and '-'".into(),
            Kind::Path => "a path; relative ones are relative to the file's folder".into(),
            Kind::Socket => "IP:PORT".into(),
            Kind::Loopback => "IP:PORT of this machine alone, or off".into(),
            Kind::Address => "HOST:PORT".into(),
            Kind::Directives => "off, error, warn, info, debug, trace, or TARGET=LEVEL,…".into(),
            Kind::Founders => format!("1 to {} nodes", limits::MEMBERS),
            Kind::Modes => "strong or eventual for each name".into(),
        }
    }

    /// The help of the flag: what, unit, bounds, default.
    pub(super) fn describe(&self) -> String {
        let mut text = self.help.to_owned();
        if let Kind::Number { .. } | Kind::Choice(_) = self.kind {
            text += &format!(" [{}]", self.allowed());
        }
        match self.default() {
            Some(default) => text + &format!(" [default: {default}]"),
            None => text,
        }
    }
}

const fn number(unit: &'static str, min: u64, max: u64) -> Kind {
    Kind::Number { unit, min, max }
}

const fn key(path: &'static str, kind: Kind, unset: Unset, help: &'static str) -> Key {
    Key { path, kind, unset, help }
}

/// What the example file and the manual say of the tables that hold keys.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("tls", "Certificates: `duet pki init` and `duet pki issue` make them"),
    ("limits", "What a client may ask for"),
    ("disk", "The disk and the store"),
    (
        "log",
        "The log, on standard error, where journald takes it from. The level changes on a reload. Of a line that comes \
         more than 20 times in 10 s the rest is left out, and another says how many",
    ),
    ("timing", "Times. Those of the engines should be the same on every node of a cluster"),
];

/// Every key, in the order in which the help shows them.
pub(super) const KEYS: &[Key] = &[
    key("node_id", number("", 1, u32::MAX as u64), Refused("1"), "This node's id, as the catalog gave it out"),
    key("cluster", Kind::Cluster, Refused("prod"), "The cluster's name, as in every certificate of it"),
    key("listen", Kind::Socket, Default("[::]:7400"), "UDP address for peers and clients"),
    key(
        "advertise",
        Kind::Address,
        Absent("a.example:7400"),
        "HOST:PORT at which others reach this node; without it, the founders' entry for this node, else `listen`",
    ),
    key("data_dir", Kind::Path, Default("/var/lib/duet"), "Where this node keeps its data"),
    key(
        "http",
        Kind::Loopback,
        Default("127.0.0.1:7401"),
        "Loopback TCP address of /healthz, /readyz and /metrics, or `off`",
    ),
    key(
        "gossip",
        Kind::Choice(&["on", "off"]),
        Default("on"),
        "Whether nodes tell each other who lives and how far their eventual namespaces are; nothing depends on it",
    ),
    key(
        "threads",
        number("", 1, 1024),
        Absent("4"),
        "Threads that serve requests; without it, half as many as there are cores, and at least one: what writes to the \
         disk, sorts tables and carries packets has threads of its own",
    ),
    key("tls.ca", Kind::Path, Refused("ca.pem"), "PEM file: the cluster's certificate authority"),
    key("tls.cert", Kind::Path, Refused("node.pem"), "PEM file: this node's certificate"),
    key("tls.key", Kind::Path, Refused("node.key"), "PEM file: the private key of `tls.cert`"),
    key(
        "tls.revoked",
        Kind::Path,
        Absent("revoked"),
        "Certificates that nobody is let in with: a file with a serial number in hexadecimal on each line, or the \
         certificates themselves in PEM; without it, none. This and the three above are read again when they change",
    ),
    key(
        "founders",
        Kind::Founders,
        Refused("1=a.example:7400,2=b.example:7400,3=c.example:7400"),
        "The nodes that start the cluster: the same list on every node, also on nodes that joined later",
    ),
    key(
        "expect",
        Kind::Modes,
        Absent("orders=strong"),
        "Modes that namespaces are expected to have, strong or eventual. \
         Changes nothing: `duet status` and a metric tell of those that have another one",
    ),
    key(
        "limits.value_bytes",
        number("bytes", 1, limits::VALUE_MAX as u64),
        Default("1048576"),
        "Largest value that is accepted",
    ),
    key("limits.connections", number("", 1, 65_536), Default("4096"), "Most client connections at a time"),
    key(
        "limits.in_flight",
        number("", 1, limits::IN_FLIGHT as u64),
        Default("8192"),
        "Requests of one connection that may wait for their answers; beyond it the node stops reading",
    ),
    key(
        "disk.reserve_bytes",
        number("bytes", 1 << 20, 1 << 40),
        Default("268435456"),
        "Free space below which writes are refused while reads go on",
    ),
    key(
        "disk.cache_bytes",
        number("bytes", 1 << 20, 1 << 40),
        Absent("1073741824"),
        "Memory for what was read and written last, three quarters of it for records and the rest for blocks of the \
         store's tables, taken as it is needed; without it, a quarter of the machine's or of the control group's",
    ),
    key("log.format", Kind::Choice(&["text", "json"]), Default("text"), "How lines are written to standard error"),
    key("log.level", Kind::Directives, Default("info"), "A level, or directives such as `info,duet_node=debug`"),
    key("timing.tick_ms", number("ms", 5, 1000), Default("50"), "The engines' unit of time"),
    key("timing.heartbeat_ticks", number("ticks", 1, 100), Default("2"), "How often a leader shows that it lives"),
    key(
        "timing.election_ticks",
        number("ticks", 4, 1000),
        Default("12"),
        "Silence of a leader after which others stand for election; at least 4 times `timing.heartbeat_ticks`",
    ),
    key(
        "timing.no_quorum_ms",
        number("ms", 100, 60_000),
        Default("1500"),
        "Without a quorum for so long, requests are refused instead of held",
    ),
    key(
        "timing.clock_drift_ms",
        number("ms", 1, 60_000),
        Default("500"),
        "How far ahead of this node's clock another node's time may be",
    ),
    key(
        "timing.token_wait_ms",
        number("ms", 0, 60_000),
        Default("2000"),
        "How long a read of an eventual namespace waits for what its session has seen",
    ),
    key(
        "timing.gossip_ms",
        number("ms", 50, 10_000),
        Default("500"),
        "How often a node gossips with a few others; see `gossip`",
    ),
    key(
        "timing.request_ms",
        number("ms", 100, 3_600_000),
        Default("60000"),
        "Longest time a request may ask to wait",
    ),
    key(
        "timing.connection_age_s",
        number("s", 5, 31_536_000),
        Default("50"),
        "Age that no connection exceeds: it is made anew before, and certificates are looked at again. With the 10 s in \
         which changed files are noticed, 50 shuts out within a minute whoever is trusted no more",
    ),
    key(
        "timing.scrub_s",
        number("s", 0, 31_536_000),
        Default("86400"),
        "How often every record of an eventual namespace is read, to find damage that nobody asks for; 0: never",
    ),
    key("timing.stop_ms", number("ms", 100, 600_000), Default("10000"), "Longest time of a clean stop"),
];
