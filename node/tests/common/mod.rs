//! A place with certificates and configurations in which real `duetd` processes run.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use duet_proto::{
    Answer, Change, ClusterName, Consistency, DataRequest, Epoch, Error, KeyRange, Mutation, NamespaceName, NodeId,
    Op, Outcome, Request, Response, Role, ScanLimit,
    frame::{self, RequestFrame, ResponseFrame},
};
use duet_transport::{CertificateAuthority, Connection, Connector, Identity, Tls, Udp, Validity};

/// Nothing takes this long, on however slow a machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Certificates, configurations and data of a cluster on loopback.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub cluster: ClusterName,
    authority: CertificateAuthority,
    ports: BTreeMap<u32, (u16, u16)>,
}

impl Site {
    /// A cluster of `nodes` founders, none of which runs yet.
    pub fn new(cluster: &str, nodes: u32) -> Site {
        let cluster = ClusterName::new(cluster).unwrap();
        let authority = CertificateAuthority::generate(&cluster, Validity::days(10)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), authority.cert()).unwrap();
        let ports = (1..=nodes).map(|node| (node, (free_port(), free_port()))).collect();
        let mut site = Site { dir, cluster, authority, ports };
        for node in 1..=nodes {
            site.certify(node, &site.cluster.clone(), node, Validity::days(10));
            site.configure(node, "");
        }
        for (name, role) in [("admin", Role::Admin), ("app", Role::Client)] {
            let identity = Identity::client(site.cluster.clone(), name, role).unwrap();
            site.issue(name, &identity, Validity::days(10));
        }
        site
    }

    fn issue(&mut self, file: &str, identity: &Identity, validity: Validity) {
        let issued = self.authority.issue(identity, validity, &["127.0.0.1".into(), "localhost".into()]).unwrap();
        fs::write(self.dir.path().join(format!("{file}.pem")), issued.cert).unwrap();
        fs::write(self.dir.path().join(format!("{file}.key")), issued.key).unwrap();
    }

    /// Makes a new authority, which issues from now on; `ca.pem` stays. Returns the certificate of the one before.
    pub fn change_authority(&mut self) -> String {
        let authority = CertificateAuthority::generate(&self.cluster, Validity::days(100)).unwrap();
        std::mem::replace(&mut self.authority, authority).cert().to_owned()
    }

    /// The certificate of the authority that issues now.
    pub fn authority(&self) -> &str {
        self.authority.cert()
    }

    /// A certificate for a client, where [`Site::tls`] finds it.
    pub fn client(&mut self, name: &str) {
        let identity = Identity::client(self.cluster.clone(), name, Role::Client).unwrap();
        self.issue(name, &identity, Validity::days(10));
    }

    /// Puts a certificate for `subject` of `cluster` where `node` looks for its own.
    pub fn certify(&mut self, node: u32, cluster: &ClusterName, subject: u32, validity: Validity) {
        self.issue(&format!("node{node}"), &Identity::node(cluster.clone(), NodeId(subject)), validity);
    }

    /// Writes the configuration of a node, with `more` at its end.
    pub fn configure(&self, node: u32, more: &str) {
        let (listen, http) = self.ports[&node];
        let cluster = &self.cluster;
        let mut text = format!(
            "node_id = {node}\ncluster = \"{cluster}\"\nlisten = \"127.0.0.1:{listen}\"\nhttp = \"127.0.0.1:{http}\"\n\
             data_dir = \"data{node}\"\n\n[tls]\nca = \"ca.pem\"\ncert = \"node{node}.pem\"\nkey = \"node{node}.key\"\n"
        );
        for (id, (listen, _)) in &self.ports {
            text += &format!("\n[[founders]]\nid = {id}\naddress = \"127.0.0.1:{listen}\"\n");
        }
        fs::write(self.config(node), text + more).unwrap();
    }

    pub fn config(&self, node: u32) -> PathBuf {
        self.path(&format!("duetd{node}.toml"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The certificate of `admin`, `app` or `nodeN`.
    pub fn tls(&self, name: &str) -> Tls {
        let file = |suffix| self.path(&format!("{name}.{suffix}"));
        Tls::load(&self.path("ca.pem"), &file("pem"), &file("key")).unwrap()
    }

    /// Every node's address.
    pub fn endpoints(&self) -> Vec<String> {
        self.ports.keys().map(|node| self.address(*node).to_string()).collect()
    }

    /// Where peers and clients reach a node.
    pub fn address(&self, node: u32) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[&node].0).into()
    }

    pub fn http(&self, node: u32) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[&node].1).into()
    }

    /// Starts a node and leaves it running.
    pub fn start(&self, node: u32, flags: &[&str]) -> Daemon {
        self.start_with(node, flags, &[])
    }

    /// The same, with variables.
    pub fn start_with(&self, node: u32, flags: &[&str], variables: &[(&str, &str)]) -> Daemon {
        let log = self.path(&format!("log{node}"));
        let child = duetd(&self.config(node), flags)
            .envs(variables.iter().copied())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        Daemon { child, log, http: self.http(node) }
    }

    /// Runs a node that is expected to end by itself, and returns its exit code and what it said.
    pub fn refused(&self, node: u32, flags: &[&str]) -> (Option<i32>, String) {
        let mut child = duetd(&self.config(node), flags).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let status = wait(&mut child);
        (status.and_then(|s| s.code()), reader.join().unwrap())
    }
}

/// A process that is killed when it is dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    http: SocketAddr,
}

impl Daemon {
    /// Waits until `/readyz` says so.
    pub fn wait_ready(&mut self) {
        self.wait_for("/readyz", "200");
    }

    /// Waits until `path` answers with `status`.
    pub fn wait_for(&mut self, path: &str, status: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = get(self.http, path);
            match &answer {
                Ok((found, _)) if found == status => return,
                _ => {}
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "{path} did not answer {status}: {answer:?}, ended: {ended:?}\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn get(&self, path: &str) -> (String, String) {
        get(self.http, path).unwrap()
    }

    /// The value of one line of `/metrics`, if it is there.
    pub fn metric(&self, line: &str) -> Option<f64> {
        let text = self.get("/metrics").1;
        text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until a metric is as `wanted` says.
    pub fn wait_metric(&self, line: &str, wanted: impl Fn(f64) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let value = self.metric(line);
            if value.is_some_and(&wanted) {
                return;
            }
            assert!(Instant::now() < until, "{line} stays at {value:?}\n{}", self.get("/metrics").1);
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// SIGTERM, and the exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        let status = wait(&mut self.child);
        status.unwrap_or_else(|| panic!("it did not stop\n{}", self.log())).code()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until the log holds `text`.
    pub fn wait_log(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "{text:?} is not in\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn duetd(config: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_duetd"));
    command.arg("--config").arg(config).args(flags).stdin(Stdio::null()).stdout(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DUETD_") {
            command.env_remove(name);
        }
    }
    // What speaks to a node directly, without the client library, does not leave an old connection for a new one.
    command.env("DUETD_TIMING_CONNECTION_AGE_S", "3600");
    command
}

/// Output of `duetd` with these arguments alone.
pub fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_duetd")).args(args).output().unwrap()
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The status code and the body.
fn get(address: SocketAddr, path: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: duetd\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok((head.split(' ').nth(1).unwrap_or("").into(), body.into()))
}

/// A port that was free a moment ago, for UDP and for TCP.
pub fn free_port() -> u16 {
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = udp.local_addr().unwrap().port();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A client of one node alone: no routing, no retries.
pub struct Direct {
    line: Connection,
    answers: tokio::sync::mpsc::Receiver<Bytes>,
    next: u64,
}

impl Direct {
    /// Connects; the node may be on its way up.
    pub async fn to(site: &Site, node: u32) -> Direct {
        let connector = Connector::new(site.tls("app"), Arc::new(Udp));
        let until = Instant::now() + PATIENCE;
        loop {
            match connector.connect(&site.address(node).to_string(), Some(NodeId(node))).await {
                Ok(line) => {
                    let answers = line.incoming().unwrap();
                    return Direct { line, answers, next: 0 };
                }
                Err(error) => assert!(Instant::now() < until, "node {node}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// One operation, tried once.
    pub async fn call(&mut self, namespace: &str, op: Op) -> Result<Outcome, Error> {
        self.next += 1;
        let data = DataRequest {
            namespace: NamespaceName::new(namespace).unwrap(),
            epoch: Epoch::default(),
            op,
            attempt: None,
            tokens: Vec::new(),
            consistency: Consistency::Linearizable,
        };
        let request = RequestFrame { id: self.next, timeout_ms: 10_000, request: Request::Data(data) };
        self.line.send(frame::encode(&request)).unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.answers.recv()).await.unwrap().unwrap();
        let answer: ResponseFrame = frame::decode(&answer).unwrap();
        assert_eq!(answer.id, self.next);
        match answer.response {
            Response::Data(Answer { outcome, .. }) => Ok(outcome),
            Response::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    pub async fn put(&mut self, namespace: &str, key: &str, value: &str) -> Result<(), Error> {
        let mutation = Mutation { key: key.to_owned().into(), change: Change::Put(value.to_owned().into()) };
        self.call(namespace, Op::Write { mutation }).await.map(drop)
    }

    /// Puts until it is taken; for the time in which the node learns of the namespace.
    pub async fn put_soon(&mut self, namespace: &str, key: &str, value: &str) {
        let until = Instant::now() + PATIENCE;
        while let Err(error) = self.put(namespace, key, value).await {
            assert!(Instant::now() < until, "{error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn get(&mut self, namespace: &str, key: &str) -> Result<Option<Bytes>, Error> {
        match self.call(namespace, Op::Get { key: key.to_owned().into() }).await? {
            Outcome::Value(held) => Ok(held.map(|(_, value)| value)),
            other => panic!("{other:?}"),
        }
    }

    /// Everything in a namespace.
    pub async fn all(&mut self, namespace: &str) -> Result<BTreeMap<String, String>, Error> {
        let (mut all, mut cursor) = (BTreeMap::new(), None);
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        loop {
            let op = Op::Scan { range: KeyRange::all(), limit: ScanLimit::default(), cursor };
            let Outcome::Page { entries, next } = self.call(namespace, op).await? else { panic!("no page") };
            all.extend(entries.iter().map(|entry| (text(&entry.key), text(&entry.value))));
            match next {
                Some(more) => cursor = Some(more),
                None => return Ok(all),
            }
        }
    }
}
