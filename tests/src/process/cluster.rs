//! A cluster of real daemons.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use duet_client::Client;
use duet_proto::{ClusterName, NodeId, Role};
use duet_transport::{CertificateAuthority, Identity, Issued, Principal, Tls, Udp, Validity};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{Direct, PATIENCE, port::Port};

/// Where a node runs.
#[derive(Clone, Debug)]
pub struct Host {
    /// The address it listens on.
    pub address: IpAddr,
    /// The network namespace it runs in, if not this one.
    pub namespace: Option<String>,
    /// Where its data is, if not in the cluster's folder.
    pub data: Option<PathBuf>,
    /// Lines for its configuration file, above all tables.
    pub settings: String,
}

impl Host {
    /// On loopback, with its data in the cluster's folder.
    #[must_use]
    pub fn local() -> Host {
        Host { address: IpAddr::V4(Ipv4Addr::LOCALHOST), namespace: None, data: None, settings: String::new() }
    }
}

/// The nodes to start.
#[derive(Clone, Debug)]
pub struct Layout {
    /// One for each node, counted from 1.
    pub hosts: Vec<Host>,
}

impl Layout {
    /// So many nodes on loopback.
    #[must_use]
    pub fn local(nodes: usize) -> Layout {
        Layout { hosts: vec![Host::local(); nodes] }
    }
}

/// Daemons that end when this is dropped.
pub struct Cluster {
    folder: TempDir,
    name: ClusterName,
    authority: CertificateAuthority,
    founders: BTreeMap<u32, SocketAddr>,
    nodes: BTreeMap<u32, Process>,
}

struct Process {
    host: Host,
    http: SocketAddr,
    /// Those of `listen` and `http`, this cluster's as long as it lives.
    _ports: [Port; 2],
    child: Option<Child>,
}

impl Cluster {
    /// Starts every node and waits until all are ready.
    ///
    /// # Errors
    /// If one does not become ready; its log is in the error.
    pub fn start(layout: Layout) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(layout)?;
        for id in cluster.ids() {
            cluster.spawn(id)?;
        }
        for id in cluster.ids() {
            cluster.wait_ready(id)?;
        }
        Ok(cluster)
    }

    /// Makes certificates and configuration, and starts nothing.
    ///
    /// # Errors
    /// If files cannot be written.
    pub fn prepare(layout: Layout) -> Result<Cluster> {
        Cluster::prepare_as(&ClusterName::new("test")?, layout)
    }

    /// The same, of another name than `test`.
    ///
    /// # Errors
    /// If files cannot be written.
    pub fn prepare_as(name: &ClusterName, layout: Layout) -> Result<Cluster> {
        let folder = TempDir::with_prefix("duet-test-")?;
        let authority = CertificateAuthority::generate(name, Validity::days(30))?;
        let (founders, nodes) = (BTreeMap::new(), BTreeMap::new());
        let mut cluster = Cluster { folder, name: name.clone(), authority, founders, nodes };
        fs::write(cluster.path("ca.pem"), cluster.authority.cert())?;
        for (id, host) in (1..).zip(layout.hosts) {
            let ports = [Port::claim()?, Port::claim()?];
            let address = SocketAddr::new(host.address, ports[0].number());
            let http = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ports[1].number());
            cluster.founders.insert(id, address);
            cluster.nodes.insert(id, Process { host, http, _ports: ports, child: None });
        }
        for id in cluster.ids() {
            cluster.configure(id)?;
        }
        Ok(cluster)
    }

    /// Writes into every node's configuration that a founder is elsewhere.
    ///
    /// # Errors
    /// If the address is none, or a file cannot be written.
    pub fn move_founder(&mut self, id: u32, address: &str) -> Result<()> {
        self.founders.insert(id, address.parse()?);
        self.ids().into_iter().try_for_each(|id| self.configure(id))
    }

    fn configure(&mut self, id: u32) -> Result<()> {
        let folder = self.node_folder(id);
        fs::create_dir_all(&folder)?;
        let identity = Identity { cluster: self.name.clone(), principal: Principal::Node(NodeId(id)) };
        let issued = self.authority.issue(&identity, Validity::days(30), &[])?;
        fs::write(folder.join("cert.pem"), &issued.cert)?;
        fs::write(folder.join("key.pem"), &issued.key)?;
        let process = self.nodes.get(&id).context("no such node")?;
        let data = process.host.data.clone().unwrap_or_else(|| folder.join("data"));
        let (listen, http) = (self.founders[&id], process.http);
        let mut text = format!(
            "node_id = {id}\ncluster = \"{}\"\nlisten = \"{listen}\"\nhttp = \"{http}\"\ndata_dir = {data:?}\n{}\n\
             [tls]\nca = {:?}\ncert = \"cert.pem\"\nkey = \"key.pem\"\n",
            self.name,
            process.host.settings,
            self.path("ca.pem"),
        );
        for (id, address) in &self.founders {
            text += &format!("\n[[founders]]\nid = {id}\naddress = \"{address}\"\n");
        }
        fs::write(folder.join("duetd.toml"), text)?;
        Ok(())
    }

    /// Starts a cluster for a test, and tells what its nodes have logged if the test fails.
    ///
    /// # Errors
    /// The test's.
    pub async fn with(layout: Layout, test: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
        let mut cluster = Cluster::start(layout)?;
        let result = test(&mut cluster).await;
        result.map_err(|error| error.context(cluster.logs()))
    }

    /// The nodes' ids, in order.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.nodes.keys().copied().collect()
    }

    /// A path in the cluster's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of a node: `duetd.toml`, `cert.pem`, `key.pem`, `log` and, unless its host says otherwise, `data`.
    #[must_use]
    pub fn node_folder(&self, id: u32) -> PathBuf {
        self.path(&format!("node{id}"))
    }

    /// Starts a node that is down, without waiting for it.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn spawn(&mut self, id: u32) -> Result<()> {
        let (folder, daemon) = (self.node_folder(id), binary("duetd")?);
        let process = self.nodes.get_mut(&id).context("no such node")?;
        ensure!(process.child.is_none(), "node {id} runs already");
        let log = File::options().create(true).append(true).open(folder.join("log"))?;
        let mut command = match &process.host.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(daemon);
                command
            }
            None => Command::new(daemon),
        };
        command.arg("--config").arg(folder.join("duetd.toml"));
        command.env("DUETD_FAILPOINT", format!("@{}", folder.join("failpoint").display()));
        // A `Direct` line does not leave an old connection for a new one, as clients do.
        command.env("DUETD_TIMING_CONNECTION_AGE_S", "3600");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        process.child = Some(command.spawn().context("starting duetd")?);
        Ok(())
    }

    /// Starts a node that is down and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn revive(&mut self, id: u32) -> Result<()> {
        self.spawn(id)?;
        self.wait_ready(id)
    }

    /// Tells a node, running or not, to die when it is at a place in the code (`router/src/failpoint.rs`), once; or, with
    /// `hold` before it, to hold on there until it is told something else.
    ///
    /// # Errors
    /// If the daemon is built without the feature `failpoints`, or the word cannot be written.
    pub fn tell(&self, id: u32, word: &str) -> Result<()> {
        let daemon = fs::read(binary("duetd")?)?;
        let name = b"DUETD_FAILPOINT";
        let able = daemon.windows(name.len()).any(|bytes| bytes == name);
        ensure!(able, "duetd cannot die where it is told to: cargo build -p duet-node --features failpoints");
        let folder = self.node_folder(id);
        let _ = fs::remove_file(folder.join("failpoint.held"));
        // In one step: the node may be reading it.
        fs::write(folder.join("failpoint.new"), word)?;
        Ok(fs::rename(folder.join("failpoint.new"), folder.join("failpoint"))?)
    }

    /// Whether a node has come to the place at which it was told to hold on.
    #[must_use]
    pub fn holds(&self, id: u32) -> bool {
        self.node_folder(id).join("failpoint.held").exists()
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// If the node ends or takes too long; its log is in the error.
    pub fn wait_ready(&mut self, id: u32) -> Result<()> {
        match self.ready_or_ended(id)? {
            Some(status) => bail!("node {id} ended with {status}:\n{}", self.log(id)),
            None => Ok(()),
        }
    }

    /// Waits until a node is ready, or has ended by itself, and then how.
    ///
    /// # Errors
    /// If neither comes.
    pub fn ready_or_ended(&mut self, id: u32) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended(id)? {
                return Ok(Some(status));
            }
            match self.http(id, "/readyz") {
                Ok((200, _)) => return Ok(None),
                state if Instant::now() > deadline => bail!("node {id} is not ready: {state:?}\n{}", self.log(id)),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Kills a node at once, as a crash of its process does.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self, id: u32) -> Result<()> {
        self.signal(id, Signal::SIGKILL)?;
        self.wait_end(id).map(drop)
    }

    /// Asks a node to stop, and waits for it.
    ///
    /// # Errors
    /// If it does not run or does not end.
    pub fn stop(&mut self, id: u32) -> Result<ExitStatus> {
        self.signal(id, Signal::SIGTERM)?;
        self.wait_end(id)
    }

    /// Waits until a node's process has ended.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn wait_end(&mut self, id: u32) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended(id)? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "node {id} does not end:\n{}", self.log(id));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How a node that ran has ended, if it has.
    ///
    /// # Errors
    /// If it did not run.
    pub fn ended(&mut self, id: u32) -> Result<Option<ExitStatus>> {
        let status = self.child(id)?.try_wait()?;
        if status.is_some() {
            self.nodes.entry(id).and_modify(|process| process.child = None);
        }
        Ok(status)
    }

    /// Sends a signal to a node: `SIGSTOP` and `SIGCONT` pause it.
    ///
    /// # Errors
    /// If it does not run.
    pub fn signal(&mut self, id: u32, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child(id)?.id())?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    fn child(&mut self, id: u32) -> Result<&mut Child> {
        let process = self.nodes.get_mut(&id).context("no such node")?;
        process.child.as_mut().with_context(|| format!("node {id} does not run"))
    }

    /// What a node has logged.
    #[must_use]
    pub fn log(&self, id: u32) -> String {
        fs::read_to_string(self.node_folder(id).join("log")).unwrap_or_default()
    }

    /// The end of what every node has logged.
    fn logs(&self) -> String {
        let end = |id| {
            let log = self.log(id);
            let from = log.len().saturating_sub(4000);
            format!("--- node {id}:\n{}", String::from_utf8_lossy(&log.as_bytes()[from..]))
        };
        self.ids().into_iter().map(end).collect::<Vec<_>>().join("\n")
    }

    /// Asks a node over HTTP: status and body. Nodes in other network namespaces cannot be asked.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn http(&self, id: u32, path: &str) -> Result<(u16, String)> {
        let process = self.nodes.get(&id).context("no such node")?;
        let mut answer = String::new();
        match &process.host.namespace {
            // Loopback is another one in there.
            Some(namespace) => {
                let (host, port) = (process.http.ip(), process.http.port());
                let script = format!(
                    "exec 3<>/dev/tcp/{host}/{port}; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
                );
                let asked = Command::new("ip").args(["netns", "exec", namespace, "bash", "-c", &script]).output()?;
                answer = String::from_utf8_lossy(&asked.stdout).into_owned();
            }
            None => {
                let mut stream = TcpStream::connect_timeout(&process.http, Duration::from_secs(1))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
                stream.read_to_string(&mut answer)?;
            }
        }
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP answer")?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status, body.to_owned()))
    }

    /// The process of a node that runs.
    ///
    /// # Errors
    /// If it does not.
    pub fn pid(&mut self, id: u32) -> Result<u32> {
        Ok(self.child(id)?.id())
    }

    /// Where clients reach a node.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn address(&self, id: u32) -> Result<String> {
        Ok(self.founders.get(&id).context("no such node")?.to_string())
    }

    /// Where clients reach the nodes.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.founders.values().map(ToString::to_string).collect()
    }

    /// A certificate for a client, in PEM.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn issue(&mut self, name: &str, role: Role, validity: Validity) -> Result<Issued> {
        let identity = Identity::client(self.name.clone(), name, role)?;
        Ok(self.authority.issue(&identity, validity, &[])?)
    }

    /// What a client connects with.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn client_tls(&mut self, name: &str, role: Role) -> Result<Tls> {
        let issued = self.issue(name, role, Validity::days(30))?;
        let authority = self.authority.cert().as_bytes().to_vec();
        Ok(Tls::from_pem(&authority, issued.cert.as_bytes(), issued.key.as_bytes())?)
    }

    /// A line to one node, as an administrator.
    ///
    /// # Errors
    /// If it does not answer for too long.
    pub async fn direct(&mut self, id: u32) -> Result<Direct> {
        let (address, tls) = (self.address(id)?, self.client_tls("direct", Role::Admin)?);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Direct::connect(&address, tls.clone()).await {
                Ok(direct) => return Ok(direct),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// An administrator's client of the whole cluster.
    ///
    /// # Errors
    /// If it cannot connect.
    pub async fn client(&mut self) -> Result<Client> {
        let tls = self.client_tls("test", Role::Admin)?;
        let builder = Client::builder().endpoints(self.endpoints()).tls(tls).network(std::sync::Arc::new(Udp));
        Ok(builder.timeout(Duration::from_secs(20)).connect().await?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.values_mut() {
            if let Some(child) = &mut process.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            let _ = writeln!(io::stderr(), "{}", self.logs());
        }
    }
}

/// A binary of the build under test: in `DUET_BIN_DIR`, or beside this test's own folder.
///
/// # Errors
/// If it is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("DUET_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = std::env::current_exe()?;
            let beside = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
            beside.context("this test lies in no folder")?.to_owned()
        }
    };
    let path = folder.join(name);
    ensure!(path.exists(), "{} does not exist: run make build", path.display());
    Ok(path)
}
