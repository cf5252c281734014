//! A network that can be cut: each node in a network namespace of its own, all on one bridge.
//!
//! ```text
//! this namespace ── bridge 10.x.y.254/24 ──┬── veth ── namespace 1: 10.x.y.1
//!  (the clients)                           ├── veth ── namespace 2: 10.x.y.2
//!                                          └── veth ── namespace 3: 10.x.y.3
//! ```
//!
//! Nodes are cut from each other by nftables rules that drop what *arrives*, in the namespaces concerned, so that clients
//! still reach both sides and nobody is told that a packet is lost. A node is cut from everything by taking its link down.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::{self, Command},
    sync::atomic::{AtomicU8, Ordering::Relaxed},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Host, Layout};

/// Network namespaces, gone when this is dropped. Drop what runs in them first.
pub struct Link {
    tag: String,
    subnet: (u8, u8),
    nodes: u8,
}

impl Link {
    /// Makes namespaces for so many nodes.
    ///
    /// # Errors
    /// If that is not permitted here, or `ip` or `nft` is missing. A test is skipped then: [`Link::here`].
    pub fn make(nodes: u8) -> Result<Link> {
        static MADE: AtomicU8 = AtomicU8::new(0);
        // Interface names have 15 bytes: "d", a process id of 7 digits, a letter and a number.
        let (pid, count) = (process::id(), MADE.fetch_add(1, Relaxed));
        let letter = char::from(b'a' + count % 26);
        let subnet = (200 + (pid >> 5) as u8 % 50, (pid as u8).wrapping_shl(3) | (count & 7));
        let link = Link { tag: format!("d{pid}{letter}"), subnet, nodes };
        link.build()?;
        Ok(link)
    }

    /// Namespaces for so many nodes; where none can be made, `None`, and a line that says so.
    #[must_use]
    #[allow(clippy::print_stdout, reason = "a test that is skipped says so in its output")]
    pub fn here(nodes: u8) -> Option<Link> {
        match Link::make(nodes) {
            Ok(link) => Some(link),
            Err(error) => {
                println!("SKIPPED: network namespaces cannot be made here: {error:#}");
                None
            }
        }
    }

    fn build(&self) -> Result<()> {
        let bridge = self.bridge();
        run("nft", "--version")?;
        run("ip", &format!("link add {bridge} type bridge"))?;
        run("ip", &format!("addr add {}/24 dev {bridge}", self.address(254)))?;
        run("ip", &format!("link set {bridge} up"))?;
        for node in 1..=self.nodes {
            let (namespace, outside) = (self.namespace(node), self.outside(node));
            run("ip", &format!("netns add {namespace}"))?;
            run("ip", &format!("link add {outside} type veth peer name eth0 netns {namespace}"))?;
            run("ip", &format!("link set {outside} master {bridge} up"))?;
            run("ip", &format!("-n {namespace} addr add {}/24 dev eth0", self.address(node)))?;
            run("ip", &format!("-n {namespace} link set eth0 up"))?;
            run("ip", &format!("-n {namespace} link set lo up"))?;
            self.nft(node, "add table ip duet")?;
            self.nft(node, "add chain ip duet arrivals { type filter hook input priority 0; }")?;
        }
        Ok(())
    }

    /// A node in each namespace.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let host = |node| Host {
            address: IpAddr::V4(self.address(node)),
            namespace: Some(self.namespace(node)),
            ..Host::local()
        };
        Layout { hosts: (1..=self.nodes).map(host).collect() }
    }

    /// Cuts a node from the other nodes, both ways. Clients reach it still.
    ///
    /// # Errors
    /// If `nft` fails.
    pub fn isolate(&self, node: u32) -> Result<()> {
        for other in self.others(node)? {
            self.drop_from(node, other)?;
            self.drop_from(other, u8::try_from(node)?)?;
        }
        Ok(())
    }

    /// From now on a node hears nothing of the other nodes; they hear it.
    ///
    /// # Errors
    /// If `nft` fails.
    pub fn deafen(&self, node: u32) -> Result<()> {
        self.others(node)?.into_iter().try_for_each(|other| self.drop_from(node, other))
    }

    /// Takes a node's link down: it is cut from everything.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn unplug(&self, node: u32) -> Result<()> {
        run("ip", &format!("link set {} down", self.outside(u8::try_from(node)?)))
    }

    /// Ends every cut.
    ///
    /// # Errors
    /// If `ip` or `nft` fails.
    pub fn heal(&self) -> Result<()> {
        for node in 1..=self.nodes {
            self.nft(node, "flush chain ip duet arrivals")?;
            run("ip", &format!("link set {} up", self.outside(node)))?;
        }
        Ok(())
    }

    fn others(&self, node: u32) -> Result<Vec<u8>> {
        let node = u8::try_from(node)?;
        Ok((1..=self.nodes).filter(|other| *other != node).collect())
    }

    fn drop_from(&self, node: impl TryInto<u8>, from: u8) -> Result<()> {
        let Ok(node) = node.try_into() else { bail!("no such node") };
        self.nft(node, &format!("add rule ip duet arrivals ip saddr {} drop", self.address(from)))
    }

    fn nft(&self, node: u8, command: &str) -> Result<()> {
        run("ip", &format!("netns exec {} nft {command}", self.namespace(node)))
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet.0, self.subnet.1, host)
    }

    fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }

    fn outside(&self, node: u8) -> String {
        format!("{}v{node}", self.tag)
    }

    fn namespace(&self, node: u8) -> String {
        format!("duet-{}-{node}", self.tag)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for node in 1..=self.nodes {
            // Its interfaces go with it, but not at once.
            let _ = run("ip", &format!("link del {}", self.outside(node)));
            let _ = run("ip", &format!("netns del {}", self.namespace(node)));
        }
        let _ = run("ip", &format!("link del {}", self.bridge()));
    }
}

fn run(program: &str, arguments: &str) -> Result<()> {
    let output = Command::new(program).args(arguments.split(' ')).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {}", said.trim());
    Ok(())
}
