//! Three nodes of Duet.

use anyhow::{Context, Result};
use duet_client::{Client, NewNamespace};
use duet_proto::ClusterName;
use duet_tests::process::{Cluster, Layout, PATIENCE, binary};

use super::tell;
use crate::Duet;

/// Three nodes of Duet on loopback, and clients of them. They end when this is dropped.
pub struct Nodes {
    _cluster: Cluster,
    clients: Vec<Client>,
}

impl Nodes {
    /// Starts them.
    ///
    /// # Errors
    /// If they do not become ready.
    pub async fn start(connections: u32) -> Result<Nodes> {
        tell(&format!("starting three nodes of {} …", binary("duetd")?.display()));
        let mut cluster = Cluster::prepare_as(&ClusterName::new("bench")?, Layout::local(3))?;
        for id in cluster.ids() {
            cluster.spawn(id)?;
        }
        for id in cluster.ids() {
            cluster.wait_ready(id)?;
        }
        let mut clients = Vec::new();
        for _ in 0..connections.max(1) {
            clients.push(cluster.client().await?);
        }
        Ok(Nodes { _cluster: cluster, clients })
    }

    /// Creates a namespace, and opens it by way of every client.
    ///
    /// # Errors
    /// If it cannot be created.
    pub async fn namespace(&self, name: &str, new: NewNamespace) -> Result<Vec<Duet>> {
        let first = self.clients.first().context("there is a client")?;
        first.admin().timeout(PATIENCE).create_namespace(name, new).await?;
        let open = |client: &Client| Ok(Duet(client.namespace(name)?));
        self.clients.iter().map(open).collect()
    }
}
