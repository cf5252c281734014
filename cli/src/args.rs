//! What can be written on the command line, and nothing of what it does.

mod bench;
mod ns;

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use duet_proto::{ClusterName, NamespaceName, NodeId, Role, Stamp};
use rustls_pki_types::ServerName;

pub use self::{
    bench::Bench,
    ns::{Node, Ns, Switch, Verify},
};
use crate::{files::Format, text::unescape};

/// Reads and writes a Duet cluster, and looks after it.
#[derive(Debug, Parser)]
#[command(name = "duet", version, long_version = env!("DUET_BUILD"), max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    /// What holds for every verb.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 not found or compare failed, \
                          5 unhealthy or no quorum, 6 timed out or outcome unknown.\n\
                          `duet playground` starts a cluster on this machine to try things on.";

const TOP_KEYS: &str = "Keys: q quits, s sorts namespaces by name, lag, requests, p99, writes or keys, r reverses that, \
                        / filters them, arrows, page up and page down scroll.";

/// How to reach a cluster, and how to answer.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Globals {
    /// Nodes to ask first: HOST:PORT, separated by commas
    #[arg(long, global = true, env = "DUET_ENDPOINTS", value_delimiter = ',', value_name = "HOST:PORT")]
    pub endpoints: Vec<String>,
    /// The cluster's certificate authority, a PEM file
    #[arg(long, global = true, env = "DUET_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// The client's certificate, a PEM file
    #[arg(long, global = true, env = "DUET_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// The private key of the certificate, a PEM file
    #[arg(long = "key", global = true, env = "DUET_KEY", value_name = "FILE")]
    pub private_key: Option<PathBuf>,
    /// How long a request may take: 500ms, 5s, 2m, or a number of seconds
    #[arg(long, global = true, env = "DUET_TIMEOUT", default_value = "5s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
    /// In eventual namespaces, take whatever the member at hand holds: no reading of one's own writes, no waiting
    #[arg(long, global = true, env = "DUET_NO_SESSION", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_session: bool,
    /// What standard output shows: a table for people, or one JSON document
    #[arg(short, long, global = true, env = "DUET_OUTPUT", default_value = "table", value_name = "FORMAT")]
    pub output: Output,
}

/// What standard output shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON document, for errors too.
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a value
    Put(Put),
    /// Read a value
    Get(Get),
    /// Delete keys; deleting what is absent succeeds
    Del(Del),
    /// List keys in order
    Scan(Scan),
    /// Write a value if the key is as expected (compare and set; strong namespaces)
    Cas(Cas),
    /// Run a transaction: compares, then one of two lists of changes (strong namespaces)
    Txn(Txn),
    /// Write many keys from a file
    Import(Import),
    /// Write a namespace into a file
    Export(Export),
    /// Namespaces: create, list, show, switch, verify, change, delete
    #[command(subcommand)]
    Ns(Ns),
    /// Nodes of the cluster: list, add, remove
    #[command(subcommand)]
    Node(Node),
    /// The state of every node and every replica; exit code 5 if something is unhealthy
    Status,
    /// The same as a live screen: nodes, namespaces, rates, switches, problems
    Top(Top),
    /// Measure a cluster: YCSB's workloads and plain ones, latency percentiles
    Bench(Bench),
    /// Certificates: make an authority, issue certificates
    #[command(subcommand)]
    Pki(Pki),
    /// Start a cluster of real nodes on this machine, until Ctrl-C
    Playground(Playground),
    /// Show it all: a cluster takes real data, loses its leader, is torn apart and heals, and loses nothing
    Demo(Demo),
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Become duetd, and stop when the playground that started it is gone
    #[command(hide = true)]
    Leashed {
        /// Who must be the parent
        parent: i32,
        /// What to become, and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

/// How keys and values on the command line are read.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Escapes {
    /// Keys and values given as arguments have escapes: \\ \t \n \r \xNN
    #[arg(short, long)]
    pub escaped: bool,
}

impl Escapes {
    /// The bytes that an argument stands for.
    ///
    /// # Errors
    /// If it is to be unescaped and cannot be.
    pub fn bytes(self, argument: &OsString) -> Result<Bytes, crate::text::InvalidEscape> {
        let bytes = argument.clone().into_vec();
        if self.escaped { unescape(&bytes).map(Bytes::from) } else { Ok(bytes.into()) }
    }
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Put {
    /// The namespace
    pub namespace: NamespaceName,
    /// The key
    pub key: OsString,
    /// The value; `-` reads it from standard input
    pub value: OsString,
    #[command(flatten)]
    pub escapes: Escapes,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Get {
    /// The namespace
    pub namespace: NamespaceName,
    /// The key
    pub key: OsString,
    /// Write the value as it is, without a newline after it
    #[arg(long)]
    pub raw: bool,
    /// Show the version before the value, for `duet cas --expect`
    #[arg(long)]
    pub version: bool,
    /// Strong namespaces: accept what the answering member has applied, possibly old
    #[arg(long)]
    pub local: bool,
    #[command(flatten)]
    pub escapes: Escapes,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Del {
    /// The namespace
    pub namespace: NamespaceName,
    /// The keys
    #[arg(required = true)]
    pub keys: Vec<OsString>,
    #[command(flatten)]
    pub escapes: Escapes,
}

/// Which keys of a namespace.
#[derive(Clone, Debug, Default, Args)]
pub struct Range {
    /// Keys that begin with this
    #[arg(long, conflicts_with_all = ["from", "to"])]
    pub prefix: Option<OsString>,
    /// The first key
    #[arg(long)]
    pub from: Option<OsString>,
    /// The first key that is not in the range
    #[arg(long)]
    pub to: Option<OsString>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub escapes: Escapes,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Scan {
    /// The namespace
    pub namespace: NamespaceName,
    #[command(flatten)]
    pub range: Range,
    /// Show at most so many keys
    #[arg(long, default_value_t = 1000)]
    pub limit: u64,
    /// Leave the values out
    #[arg(long)]
    pub keys_only: bool,
    /// Strong namespaces: accept what the answering member has applied, possibly old
    #[arg(long)]
    pub local: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
#[command(group = clap::ArgGroup::new("expected").required(true), group = clap::ArgGroup::new("change").required(true))]
pub struct Cas {
    /// The namespace
    pub namespace: NamespaceName,
    /// The key
    pub key: OsString,
    /// The new value; `-` reads it from standard input
    #[arg(group = "change")]
    pub value: Option<OsString>,
    /// Delete the key instead
    #[arg(long, group = "change")]
    pub delete: bool,
    /// The key must hold a value of this version, as `duet get --version` shows it
    #[arg(long, group = "expected", value_name = "VERSION")]
    pub expect: Option<Stamp>,
    /// The key must hold no value
    #[arg(long, group = "expected")]
    pub absent: bool,
    /// The key must hold some value
    #[arg(long, group = "expected")]
    pub present: bool,
    #[command(flatten)]
    pub escapes: Escapes,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Txn {
    /// The namespace
    pub namespace: NamespaceName,
    /// A JSON document {"compare":[…],"then":[…],"else":[…],"read":[…]}; `-` reads standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Import {
    /// The namespace
    pub namespace: NamespaceName,
    /// The file; `-` reads standard input
    pub file: PathBuf,
    /// How records are written; by default what the file's name ends with says so
    #[arg(long)]
    pub format: Option<Format>,
    /// What ends the key in tab-separated records, instead of a tab
    #[arg(long, default_value = "\\t", value_parser = delimiter, value_name = "CHAR")]
    pub delimiter: u8,
    /// Keep progress in this file; running the same import again goes on from there
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Writes in flight at a time
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub concurrency: u32,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Export {
    /// The namespace
    pub namespace: NamespaceName,
    /// The file; `-` writes to standard output
    pub file: PathBuf,
    /// How records are written; by default what the file's name ends with says so
    #[arg(long)]
    pub format: Option<Format>,
    #[command(flatten)]
    pub range: Range,
    /// Go on after the last whole record that the file holds already
    #[arg(long)]
    pub resume: bool,
    /// Strong namespaces: accept what the answering member has applied, possibly old
    #[arg(long)]
    pub local: bool,
}

#[derive(Clone, Copy, Debug, Args)]
#[allow(missing_docs)]
#[command(after_help = TOP_KEYS)]
pub struct Top {
    /// Print one frame and end; exit code 5 if something is unhealthy
    #[arg(long)]
    pub once: bool,
    /// How long to wait before the cluster is looked at again
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    pub interval: Duration,
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Pki {
    /// Make a certificate authority for a cluster: DIR/ca.pem and DIR/ca.key
    Init {
        /// The cluster's name, in every certificate
        #[arg(long)]
        cluster: ClusterName,
        /// Where
        #[arg(long, default_value = "pki", value_name = "DIR")]
        dir: PathBuf,
        /// Days until the authority expires
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Issue a certificate for a node or a client, signed by the authority in DIR
    Issue(Issue),
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
#[command(group = clap::ArgGroup::new("whom").required(true))]
pub struct Issue {
    /// Where the authority is
    #[arg(long, default_value = "pki", value_name = "DIR")]
    pub dir: PathBuf,
    /// For the node of this id
    #[arg(long, group = "whom", value_name = "ID")]
    pub node: Option<NodeId>,
    /// For a client of this name
    #[arg(long, group = "whom", value_name = "NAME")]
    pub client: Option<String>,
    /// What a client may do: client or admin
    #[arg(long, default_value = "client", value_parser = role, conflicts_with = "node")]
    pub role: Role,
    /// Host names and addresses at which others reach the node, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = host, value_name = "HOST", conflicts_with = "client")]
    pub hosts: Vec<String>,
    /// Days until it expires
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Writes OUT.pem and OUT.key; by default DIR/node-ID or DIR/client-NAME
    #[arg(long, value_name = "OUT")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[allow(missing_docs)]
pub struct Playground {
    /// How many nodes; three unless the directory says otherwise
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub nodes: Option<u32>,
    /// Where it keeps everything
    #[arg(long, default_value = ".playground", value_name = "DIR")]
    pub dir: PathBuf,
    /// Node N listens on this plus N, UDP for the cluster and TCP for metrics; 0 takes free ones. By default the
    /// directory's, else the first free ones from 7400
    #[arg(long, value_name = "PORT")]
    pub base_port: Option<u16>,
}

#[derive(Clone, Debug, Args)]
#[allow(missing_docs)]
pub struct Demo {
    /// UnicodeData.txt, or a file like it: a key, a semicolon, a value; by default data/UnicodeData.txt, else the one in
    /// /usr/share/duet
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Where the cluster keeps its data; by default a temporary directory, removed afterwards
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit {unit:?}: expected ms, s, m or h")),
    };
    let seconds = number.parse::<f64>().map_err(|_| "expected a number, then ms, s, m or h".to_owned())? * scale;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() && seconds <= 86_400.0 => Ok(time),
        _ => Err("expected more than nothing and at most a day".to_owned()),
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match unescape(text.as_bytes()).map_err(|e| e.to_string())?[..] {
        [b'\n' | b'\\'] => Err("a newline or a backslash cannot end a key".into()),
        [byte] => Ok(byte),
        _ => Err("expected one byte, such as ';' or '\\t'".into()),
    }
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "client" => Ok(Role::Client),
        "admin" => Ok(Role::Admin),
        other => Err(format!("unknown role {other:?}: expected client or admin")),
    }
}

fn host(text: &str) -> Result<String, String> {
    let host = ServerName::try_from(text).map(|_| text.to_owned());
    host.map_err(|_| "expected a host name or an address, without a port".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read() {
        for (text, ms) in [("500ms", 500), ("5s", 5000), ("2", 2000), ("1.5s", 1500), ("2m", 120_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "0", "-1s", "5d", "1e400", "25h", "..", "1.2.3"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_delimiter_is_one_byte() {
        assert_eq!(delimiter("\\t"), Ok(b'\t'));
        assert_eq!(delimiter(";"), Ok(b';'));
        assert!(delimiter("").is_err() && delimiter("ab").is_err() && delimiter("\\n").is_err());
    }
    #[test]
    fn a_host_is_a_name_or_an_address() {
        for good in ["localhost", "db-7.example", "10.0.0.7", "::1"] {
            assert_eq!(host(good).as_deref(), Ok(good));
        }
        for bad in ["", " ", "a b", "-a", "a..b", "https://a", "a:7400", "[::1]"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
