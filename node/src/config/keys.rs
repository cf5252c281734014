//! The table of keys: the one place that says what can be set, in which unit, with which default and bounds.
//!
//! The file's keys, the variables, the flags, `--help`, the checks and the defaults all come from here.

use duet_proto::limits;

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Any text but the empty one.
    Text,
    /// An IP address and a port to bind.
    Socket,
    /// A number between the bounds, both included.
    Number { unit: &'static str, min: u64, max: u64 },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Node ids and addresses: `[[founders]]` tables in the file, `1=HOST:PORT,2=HOST:PORT` elsewhere.
    Founders,
    /// Namespaces and modes: a table `[expect]` with a mode for each name in the file, `orders=strong,…` elsewhere.
    Modes,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its dotted path in the file.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// As one would write it; `None` if there is none.
    pub(super) default: Option<&'static str>,
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

    /// The help of the flag: what, unit, bounds, default.
    pub(super) fn describe(&self) -> String {
        let mut text = self.help.to_owned();
        match self.kind {
            Kind::Number { unit, min, max } => text += &format!(" [{unit}{min} to {max}]", unit = spaced(unit)),
            Kind::Choice(words) => text += &format!(" [{}]", words.join(", ")),
            _ => {}
        }
        match self.default {
            Some(default) if !default.is_empty() => text + &format!(" [default: {default}]"),
            _ => text,
        }
    }
}

fn spaced(unit: &str) -> String {
    if unit.is_empty() { String::new() } else { format!("{unit}, ") }
}

const fn number(unit: &'static str, min: u64, max: u64) -> Kind {
    Kind::Number { unit, min, max }
}

const fn key(path: &'static str, kind: Kind, default: Option<&'static str>, help: &'static str) -> Key {
    Key { path, kind, default, help }
}

/// Every key, in the order in which the help shows them.
pub(super) const KEYS: &[Key] = &[
    key("node_id", number("", 1, u32::MAX as u64), None, "This node's id, as the catalog gave it out"),
    key("cluster", Kind::Text, None, "The cluster's name, as in every certificate of it"),
    key("listen", Kind::Socket, Some("[::]:7400"), "UDP address for peers and clients"),
    key(
        "advertise",
        Kind::Text,
        None,
        "HOST:PORT at which others reach this node; without it, the founders' entry for this node, else `listen`",
    ),
    key("data_dir", Kind::Text, Some("/var/lib/duet"), "Where this node keeps its data"),
    key(
        "http",
        Kind::Text,
        Some("127.0.0.1:7401"),
        "Loopback TCP address of /healthz, /readyz and /metrics, or `off`",
    ),
    key("tls.ca", Kind::Text, None, "PEM file: the cluster's certificate authority"),
    key("tls.cert", Kind::Text, None, "PEM file: this node's certificate"),
    key("tls.key", Kind::Text, None, "PEM file: the private key of `tls.cert`"),
    key(
        "tls.revoked",
        Kind::Text,
        None,
        "Certificates that nobody is let in with: a file with a serial number in hexadecimal on each line, or the \
         certificates themselves in PEM; without it, none. This and the three above are read again when they change",
    ),
    key(
        "founders",
        Kind::Founders,
        None,
        "The nodes that start the cluster, the same on every node: ID=HOST:PORT,…; in the file, [[founders]] with id \
         and address",
    ),
    key(
        "expect",
        Kind::Modes,
        Some(""),
        "Modes that namespaces are expected to have: NAME=strong,NAME=eventual; in the file, [expect] with NAME = \"MODE\". \
         Changes nothing: `duet status` and a metric tell of those that have another one",
    ),
    key(
        "limits.value_bytes",
        number("bytes", 1, limits::VALUE_MAX as u64),
        Some("1048576"),
        "Largest value that is accepted",
    ),
    key("limits.connections", number("", 1, 65_536), Some("4096"), "Most client connections at a time"),
    key(
        "limits.in_flight",
        number("", 1, limits::IN_FLIGHT as u64),
        Some("8192"),
        "Requests of one connection that may wait for their answers; beyond it the node stops reading",
    ),
    key(
        "disk.reserve_bytes",
        number("bytes", 1 << 20, 1 << 40),
        Some("268435456"),
        "Free space below which writes are refused while reads go on",
    ),
    key(
        "disk.cache_bytes",
        number("bytes", 1 << 20, 1 << 40),
        Some("33554432"),
        "Memory for the store's block cache",
    ),
    key(
        "gossip",
        Kind::Choice(&["on", "off"]),
        Some("on"),
        "Whether nodes tell each other who lives and how far their eventual namespaces are; nothing depends on it",
    ),
    key("log.format", Kind::Choice(&["text", "json"]), Some("text"), "How lines are written to standard error"),
    key("log.level", Kind::Text, Some("info"), "A level, or directives such as `info,duet_node=debug`"),
    key("timing.tick_ms", number("ms", 5, 1000), Some("50"), "The engines' unit of time"),
    key("timing.heartbeat_ticks", number("ticks", 1, 100), Some("2"), "How often a leader shows that it lives"),
    key(
        "timing.election_ticks",
        number("ticks", 4, 1000),
        Some("12"),
        "Silence of a leader after which others stand for election; at least 4 times `timing.heartbeat_ticks`",
    ),
    key(
        "timing.no_quorum_ms",
        number("ms", 100, 60_000),
        Some("1500"),
        "Without a quorum for so long, requests are refused instead of held",
    ),
    key(
        "timing.clock_drift_ms",
        number("ms", 1, 60_000),
        Some("500"),
        "How far ahead of this node's clock another node's time may be",
    ),
    key(
        "timing.token_wait_ms",
        number("ms", 0, 60_000),
        Some("2000"),
        "How long a read of an eventual namespace waits for what its session has seen",
    ),
    key(
        "timing.gossip_ms",
        number("ms", 50, 10_000),
        Some("500"),
        "How often a node gossips with a few others; see `gossip`",
    ),
    key("timing.request_ms", number("ms", 100, 3_600_000), Some("60000"), "Longest time a request may ask to wait"),
    key(
        "timing.connection_age_s",
        number("s", 5, 31_536_000),
        Some("50"),
        "Age that no connection exceeds: it is made anew before, and certificates are looked at again. With the 10 s in \
         which changed files are noticed, 50 shuts out within a minute whoever is trusted no more",
    ),
    key(
        "timing.scrub_s",
        number("s", 0, 31_536_000),
        Some("86400"),
        "How often every record of an eventual namespace is read, to find damage that nobody asks for; 0: never",
    ),
    key("timing.stop_ms", number("ms", 100, 600_000), Some("10000"), "Longest time of a clean stop"),
];
