//! A cluster of real `duetd` processes on this machine.
//!
//! ```text
//! DIR/playground.toml   the cluster's name and ports: starting again over DIR is the same cluster
//!     ca.pem ca.key  admin.pem admin.key  client.pem client.key
//!     client.env        DUET_ENDPOINTS, DUET_CACERT, DUET_CERT, DUET_KEY (the admin's)
//!     nodeN/            duetd.toml  node.pem node.key  data/  duetd.log  pid (while it runs)
//! ```
//!
//! Nodes run in process groups of their own, so that Ctrl-C reaches this process alone, which then stops them in order.
//! Should this process be killed instead, the kernel tells the nodes: they are started through `duet leashed`, which
//! asks for a signal at its parent's death and then becomes `duetd`.
//!
//! A playground with *doors* is one whose links can be cut: its nodes are reached through this process ([`Links`]).

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use duet_proto::{ClusterName, NodeId, Role};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    args,
    failure::{Failure, about},
    files::replace,
    links::Links,
    pki,
};

/// How long nodes may take to become ready, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `playground.toml` keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The port of node 1, of node 2, …: UDP for the cluster, TCP for HTTP.
    pub ports: Vec<u16>,
    /// Where each node is reached, if that is not its own port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doors: Vec<u16>,
}

/// A running playground. Dropping it kills the nodes; [`Playground::stop`] stops them.
#[derive(Debug)]
pub struct Playground {
    dir: PathBuf,
    layout: Layout,
    duetd: PathBuf,
    running: Vec<Option<Child>>,
    links: Option<Links>,
    _lock: Flock<fs::File>,
}

impl Playground {
    /// Makes what the directory lacks; starts nothing. A new one has doors if they are asked for.
    ///
    /// # Errors
    /// If the directory is in use, says something else than `options`, or cannot be written.
    pub fn prepare(options: &args::Playground, doors: bool) -> Result<Playground, Failure> {
        let duetd = find_duetd()?;
        fs::create_dir_all(&options.dir).map_err(about(&options.dir))?;
        let dir = fs::canonicalize(&options.dir).map_err(about(&options.dir))?;
        let path = dir.join("lock");
        let lock = Flock::lock(fs::File::create(&path).map_err(about(&path))?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| match e {
                nix::errno::Errno::EWOULDBLOCK => {
                    Failure::failed(format!("a playground is running in {} already", dir.display()))
                }
                other => Failure::failed(format!("{}: {other}", path.display())),
            })?;
        let layout = layout(&dir, options, doors)?;
        certificates(&dir, &layout)?;
        let running = layout.ports.iter().map(|_| None).collect();
        let playground = Playground { running, dir, layout, duetd, links: None, _lock: lock };
        playground.configure()?;
        Ok(playground)
    }

    /// Starts every node and waits until all are ready.
    ///
    /// # Errors
    /// If a port is taken, or a node does not become ready.
    pub async fn start(&mut self) -> Result<(), Failure> {
        for port in self.layout.ports.clone() {
            let deadline = Instant::now() + Duration::from_secs(10);
            // A playground that was killed here a moment ago leaves nodes that are still stopping.
            while let Err(error) = free(port) {
                if Instant::now() > deadline {
                    return Err(Failure::failed(format!(
                        "port {port} is not free: {error}; --base-port takes others"
                    )));
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        if !self.layout.doors.is_empty() {
            let ports = self.layout.doors.iter().zip(&self.layout.ports);
            let doors = self.nodes().into_iter().zip(ports).map(|(node, (door, port))| (node, *door, *port));
            let failed = |e| Failure::failed(format!("a door of the nodes cannot be opened: {e}"));
            self.links = Some(Links::open(doors).map_err(failed)?);
        }
        for node in self.nodes() {
            self.spawn(node)?;
        }
        self.ready(&self.nodes()).await
    }

    /// The ids of the nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        (1..=self.layout.ports.len() as u32).map(NodeId).collect()
    }

    /// Where everything is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where clients and peers reach a node.
    #[must_use]
    pub fn address(&self, node: NodeId) -> SocketAddr {
        match self.layout.doors.get(index(node)) {
            Some(door) => (Ipv4Addr::LOCALHOST, *door).into(),
            None => self.listen(node),
        }
    }

    /// Where a node listens, and serves HTTP.
    #[must_use]
    pub fn listen(&self, node: NodeId) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.layout.ports.get(index(node)).copied().unwrap_or_default()).into()
    }

    /// The links between the nodes, if they have doors and run.
    #[must_use]
    pub fn links(&self) -> Option<&Links> {
        self.links.as_ref()
    }

    /// The process id of a node, if it runs.
    #[must_use]
    pub fn pid(&self, node: NodeId) -> Option<u32> {
        self.running.get(index(node))?.as_ref()?.id()
    }

    /// What to tell whoever started it.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let nodes = self.nodes().into_iter().map(|id| NodeSummary {
            id,
            address: self.address(id),
            http: self.listen(id),
            pid: self.pid(id).unwrap_or_default(),
            log: self.log(id),
        });
        Summary {
            dir: self.dir.clone(),
            env: self.dir.join("client.env"),
            endpoints: self.nodes().into_iter().map(|n| self.address(n).to_string()).collect(),
            nodes: nodes.collect(),
        }
    }

    /// A node's configuration.
    #[must_use]
    pub fn config(&self, node: NodeId) -> PathBuf {
        self.home(node).join("duetd.toml")
    }

    /// Where a node writes what it has to say.
    #[must_use]
    pub fn log(&self, node: NodeId) -> PathBuf {
        self.home(node).join("duetd.log")
    }

    fn home(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("node{node}"))
    }

    /// Starts a node that does not run.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&mut self, node: NodeId) -> Result<(), Failure> {
        let home = self.home(node);
        let log = self.log(node);
        let log = fs::File::options().create(true).append(true).open(&log).map_err(about(&log))?;
        let mut command = match leash() {
            Some(duet) => {
                let mut command = std::process::Command::new(duet);
                command.arg("leashed").arg(std::process::id().to_string()).arg("--").arg(&self.duetd);
                command
            }
            None => std::process::Command::new(&self.duetd),
        };
        command.arg("--config").arg(self.config(node)).process_group(0);
        // What makes a node this node comes from its file; the rest of the environment may tune it.
        for own in ["NODE_ID", "CLUSTER", "LISTEN", "ADVERTISE", "DATA_DIR", "HTTP", "FOUNDERS"] {
            command.env_remove(format!("DUETD_{own}"));
        }
        for own in ["CA", "CERT", "KEY"] {
            command.env_remove(format!("DUETD_TLS_{own}"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Failure::failed(format!("{}: {e}", self.duetd.display())))?;
        let pid = child.id().unwrap_or_default();
        if let Some(slot) = self.running.get_mut(index(node)) {
            *slot = Some(child);
        }
        replace(&home.join("pid"), format!("{pid}\n").as_bytes())
    }

    /// Waits until these nodes answer `/readyz`.
    ///
    /// # Errors
    /// If one exits, or takes longer than a minute.
    pub async fn ready(&mut self, nodes: &[NodeId]) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        for &node in nodes {
            while !answers_ready(self.listen(node)).await {
                let exited = match self.running.get_mut(index(node)) {
                    Some(Some(child)) => child.try_wait()?.map(describe),
                    _ => Some("it was not started".into()),
                };
                let why = match exited {
                    Some(why) => why,
                    None if Instant::now() > deadline => format!("after {} s", PATIENCE.as_secs()),
                    None => {
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                let log = self.log(node);
                let tail = tail(&log);
                let log = log.display();
                return Err(Failure::failed(format!("node {node} is not ready: {why}; the end of {log}:\n{tail}")));
            }
        }
        Ok(())
    }

    /// Kills a node as a crash would.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill(&mut self, node: NodeId) -> Result<(), Failure> {
        let gone = || Failure::failed(format!("node {node} does not run"));
        let mut child = self.running.get_mut(index(node)).and_then(Option::take).ok_or_else(gone)?;
        child.kill().await?;
        let _ = fs::remove_file(self.home(node).join("pid"));
        Ok(())
    }

    /// Waits until some node exits by itself, and says how.
    pub async fn exited(&mut self) -> (NodeId, String) {
        loop {
            for (at, slot) in self.running.iter_mut().enumerate() {
                if let Some(Ok(Some(status))) = slot.as_mut().map(Child::try_wait) {
                    *slot = None;
                    let node = NodeId(at as u32 + 1);
                    let _ = fs::remove_file(self.home(node).join("pid"));
                    return (node, describe(status));
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Stops every node cleanly; kills what has not stopped after a while.
    pub async fn stop(&mut self) {
        for child in self.running.iter().flatten() {
            if let Some(pid) = child.id() {
                let _ = signal::kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
            }
        }
        for node in self.nodes() {
            if let Some(mut child) = self.running.get_mut(index(node)).and_then(Option::take) {
                if timeout(PATIENCE / 4, child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
                let _ = fs::remove_file(self.home(node).join("pid"));
            }
        }
    }

    fn configure(&self) -> Result<(), Failure> {
        for node in self.nodes() {
            let (home, listen) = (self.home(node), self.listen(node));
            let path = self.config(node);
            if path.exists() {
                continue;
            }
            let founders = self.nodes().into_iter().map(|id| Founder { id, address: self.address(id) }).collect();
            let config = Config {
                node_id: node,
                cluster: &self.layout.cluster,
                listen,
                advertise: self.address(node).to_string(),
                data_dir: home.join("data"),
                http: listen,
                tls: TlsFiles {
                    ca: self.dir.join("ca.pem"),
                    cert: home.join("node.pem"),
                    key: home.join("node.key"),
                },
                founders,
            };
            let text = toml::to_string(&config).map_err(|e| Failure::failed(e.to_string()))?;
            replace(&path, text.as_bytes())?;
        }
        let endpoints: Vec<String> = self.nodes().into_iter().map(|n| self.address(n).to_string()).collect();
        let file = |name: &str| quoted(&self.dir.join(name));
        let env = format!(
            "DUET_ENDPOINTS={}\nDUET_CACERT={}\nDUET_CERT={}\nDUET_KEY={}\n",
            endpoints.join(","),
            file("ca.pem"),
            file("admin.pem"),
            file("admin.key"),
        );
        replace(&self.dir.join("client.env"), env.as_bytes())
    }
}

/// A running playground, for scripts.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Summary {
    pub dir: PathBuf,
    pub env: PathBuf,
    pub endpoints: Vec<String>,
    pub nodes: Vec<NodeSummary>,
}

/// A node of a running playground.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct NodeSummary {
    pub id: NodeId,
    pub address: SocketAddr,
    pub http: SocketAddr,
    pub pid: u32,
    pub log: PathBuf,
}

/// The keys of `duetd.toml` that a playground sets.
#[derive(Serialize)]
struct Config<'a> {
    node_id: NodeId,
    cluster: &'a ClusterName,
    listen: SocketAddr,
    advertise: String,
    data_dir: PathBuf,
    http: SocketAddr,
    tls: TlsFiles,
    founders: Vec<Founder>,
}

#[derive(Serialize)]
struct TlsFiles {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Serialize)]
struct Founder {
    id: NodeId,
    address: SocketAddr,
}

/// Asks for a signal at the death of `parent`, then becomes `command`. Returns only if that fails.
pub fn leashed(parent: i32, command: &[OsString]) -> Failure {
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM) {
        return Failure::failed(format!("prctl: {error}"));
    }
    // It may have died before the kernel was asked.
    if nix::unistd::getppid().as_raw() != parent {
        return Failure::failed("the playground is gone");
    }
    let Some((program, arguments)) = command.split_first() else { return Failure::usage("nothing to become") };
    let error = std::process::Command::new(program).args(arguments).exec();
    Failure::failed(format!("{}: {error}", Path::new(program).display()))
}

/// This executable, if it is `duet`: a test that uses this crate is not.
fn leash() -> Option<PathBuf> {
    std::env::current_exe().ok().filter(|exe| exe.file_name().is_some_and(|name| name == "duet"))
}

fn find_duetd() -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os("DUETD") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe()?;
    let beside = exe.ancestors().skip(1).take(2).map(|dir| dir.join("duetd")).find(|path| path.is_file());
    beside.ok_or_else(|| {
        let dir = exe.parent().unwrap_or(&exe).display();
        Failure::failed(format!("duetd is not beside this program in {dir}: set DUETD to its path"))
    })
}

fn layout(dir: &Path, options: &args::Playground, doors: bool) -> Result<Layout, Failure> {
    let path = dir.join("playground.toml");
    if let Ok(text) = fs::read_to_string(&path) {
        let layout: Layout =
            toml::from_str(&text).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        let nodes = layout.ports.len();
        if !(1..=9).contains(&nodes) || ![0, nodes].contains(&layout.doors.len()) {
            return Err(Failure::failed(format!("{}: {nodes} ports", path.display())));
        }
        if doors && layout.doors.is_empty() {
            let dir = dir.display();
            return Err(Failure::usage(format!("{dir} holds a cluster whose links cannot be cut: another --dir")));
        }
        if options.nodes.is_some_and(|n| n as usize != nodes) {
            let dir = dir.display();
            return Err(Failure::usage(format!(
                "{dir} holds a cluster of {nodes} nodes: another --dir, or no --nodes"
            )));
        }
        if options.base_port.is_some_and(|p| p != 0 && layout.ports.first() != p.checked_add(1).as_ref()) {
            let (dir, port) = (dir.display(), layout.ports[0].saturating_sub(1));
            return Err(Failure::usage(format!(
                "{dir} holds a cluster from --base-port {port}: another --dir, or that"
            )));
        }
        return Ok(layout);
    }
    let nodes = options.nodes.unwrap_or(3) as u16;
    let mut ports = choose_ports(if doors { 2 * nodes } else { nodes }, options.base_port)?;
    let doors = ports.split_off(nodes.into());
    let cluster = ClusterName::new("playground").map_err(|e| Failure::failed(e.to_string()))?;
    let layout = Layout { cluster, ports, doors };
    let text = toml::to_string(&layout).map_err(|e| Failure::failed(e.to_string()))?;
    replace(&path, text.as_bytes())?;
    Ok(layout)
}

fn choose_ports(nodes: u16, base: Option<u16>) -> Result<Vec<u16>, Failure> {
    let from = |base: u16| base.checked_add(nodes).map(|last| (base + 1..=last).collect::<Vec<u16>>());
    match base {
        Some(0) => {
            // Held together until all are known, so that they differ.
            let mut held = Vec::new();
            while held.len() < usize::from(nodes) {
                let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                let port = tcp.local_addr()?.port();
                if let Ok(udp) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) {
                    held.push((port, tcp, udp));
                }
            }
            Ok(held.iter().map(|(port, ..)| *port).collect())
        }
        Some(base) => {
            from(base).ok_or_else(|| Failure::usage(format!("--base-port {base}: there are no such ports")))
        }
        None => (7400..17400)
            .step_by(10)
            .filter_map(from)
            .find(|ports| ports.iter().all(|p| free(*p).is_ok()))
            .ok_or_else(|| Failure::failed("no free ports from 7400 on: --base-port takes others")),
    }
}

fn free(port: u16) -> std::io::Result<()> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop)
}

fn certificates(dir: &Path, layout: &Layout) -> Result<(), Failure> {
    let hosts = || vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !dir.join("ca.key").exists() {
        pki::init(dir, &layout.cluster, 3650)?;
    }
    for (name, role) in [("admin", Role::Admin), ("client", Role::Client)] {
        if !dir.join(format!("{name}.key")).exists() {
            pki::issue(dir, &pki::Whom::Client(name.into(), role), 3650, &dir.join(name))?;
        }
    }
    for node in (1..=layout.ports.len() as u32).map(NodeId) {
        let home = dir.join(format!("node{node}"));
        fs::create_dir_all(&home).map_err(about(&home))?;
        if !home.join("node.key").exists() {
            pki::issue(dir, &pki::Whom::Node(node, hosts()), 3650, &home.join("node"))?;
        }
    }
    Ok(())
}

async fn answers_ready(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(1024).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1.1 200"))
    };
    matches!(timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("it exited with code {code}"),
        (None, Some(Ok(signal))) => format!("it was ended by {signal}"),
        _ => "it ended".into(),
    }
}

/// The last ten lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(8192)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// A path as a shell reads it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_alphanumeric() || "/._-+=:@,".contains(c)) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn index(node: NodeId) -> usize {
    (node.0 as usize).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_the_base() {
        assert_eq!(choose_ports(3, Some(9000)).unwrap(), [9001, 9002, 9003]);
        assert!(choose_ports(3, Some(65_534)).is_err());
        let ports = choose_ports(9, Some(0)).unwrap();
        assert_eq!(ports.iter().collect::<std::collections::BTreeSet<_>>().len(), 9);
    }

    #[test]
    fn a_directory_remembers_its_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let options = |nodes, base_port| args::Playground { nodes, dir: dir.path().into(), base_port };
        let open = |nodes, base_port| layout(dir.path(), &options(nodes, base_port), false);
        let first = open(Some(2), Some(9100)).unwrap();
        assert_eq!(open(None, None).unwrap(), first);
        assert_eq!(open(Some(2), Some(9100)).unwrap(), first);
        assert!(open(Some(3), None).unwrap_err().message.contains("2 nodes"));
        assert!(open(None, Some(9200)).unwrap_err().message.contains("9100"));
        assert!(layout(dir.path(), &options(None, None), true).unwrap_err().message.contains("cannot be cut"));
    }

    #[test]
    fn doors_are_remembered_and_are_what_others_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let options = args::Playground { nodes: Some(2), dir: dir.path().into(), base_port: Some(9100) };
        let first = layout(dir.path(), &options, true).unwrap();
        assert_eq!((&first.ports[..], &first.doors[..]), (&[9101, 9102][..], &[9103, 9104][..]));
        assert_eq!(layout(dir.path(), &options, false).unwrap(), first, "the nodes' files name the doors");
    }

    #[test]
    fn paths_survive_a_shell() {
        assert_eq!(quoted(Path::new("/tmp/a.b")), "/tmp/a.b");
        assert_eq!(quoted(Path::new("/tmp/it's here")), "'/tmp/it'\\''s here'");
    }
}
