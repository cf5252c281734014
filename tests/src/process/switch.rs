//! A switch of a namespace's mode, watched until it is over, whatever befalls the nodes meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use duet_client::{Admin, Class, Client, ClientError, Mode, NamespaceStatus, NodeId, SwitchInfo};
use duet_proto::{EventualStatus, Phase};
use tokio::time::sleep;

use super::{Cluster, PATIENCE};

/// How long one request of an operator may take.
const REQUEST: Duration = Duration::from_secs(2);
/// How often a switch is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A switch under way.
pub struct Passage {
    admin: Admin,
    namespace: String,
    /// What it was before.
    before: SwitchInfo,
    /// Nodes that have ended by themselves, each as often as it did.
    pub died: Vec<u32>,
}

impl Passage {
    /// Asks for a switch, until the catalog has it. Whoever dies meanwhile is started again.
    ///
    /// # Errors
    /// If it is refused, or that takes too long.
    pub async fn begin(
        cluster: &mut Cluster,
        client: &Client,
        namespace: &str,
        to: Mode,
        without: &[u32],
    ) -> Result<Passage> {
        let admin = client.admin().timeout(REQUEST);
        let without: Vec<NodeId> = without.iter().map(|node| NodeId(*node)).collect();
        let deadline = Instant::now() + PATIENCE;
        let mut died = Vec::new();
        let before = loop {
            match admin.switch(namespace).await {
                Ok(info) if info.progress.is_none() && info.namespace.mode != to => break info,
                Err(error) if !passing(&error) => return Err(error.into()),
                told => ensure!(Instant::now() < deadline, "{namespace} cannot be switched: {told:?}"),
            }
            // The epoch before may still be leaving: that is a place to die at, too.
            revive(cluster, &mut died)?;
            sleep(LOOK).await;
        };
        let mut passage = Passage { admin, namespace: namespace.to_owned(), before, died };
        // Who asks again when it is over already asks for nothing.
        while let Err(error) = passage.admin.switch_mode(namespace, to, without.clone()).await {
            if !passing(&error) || Instant::now() >= deadline {
                return Err(error.into());
            }
            passage.revive(cluster)?;
            sleep(LOOK).await;
        }
        Ok(passage)
    }

    /// How it is, if anybody tells.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn look(&self) -> Result<Option<SwitchInfo>> {
        match self.admin.switch(&self.namespace).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if passing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the next epoch has begun.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn is_over(&self) -> Result<bool> {
        let info = self.look().await?;
        Ok(info.is_some_and(|info| info.progress.is_none() && info.namespace.epoch > self.before.namespace.epoch))
    }

    /// Starts again whoever has died.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn revive(&mut self, cluster: &mut Cluster) -> Result<()> {
        revive(cluster, &mut self.died)
    }

    /// Waits until it is over. Whoever dies on the way is started again.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn through(&mut self, cluster: &mut Cluster) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_over().await? {
            self.revive(cluster)?;
            ensure!(
                Instant::now() < deadline,
                "a switch of {} does not end: {:?}",
                self.namespace,
                self.look().await
            );
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until nobody is owed late writes any more.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn brought(&mut self, cluster: &mut Cluster) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.look().await?.is_some_and(|info| info.owed.is_empty()) {
            self.revive(cluster)?;
            ensure!(Instant::now() < deadline, "late writes are not brought: {:?}", self.look().await);
            sleep(LOOK).await;
        }
        Ok(())
    }
}

fn revive(cluster: &mut Cluster, died: &mut Vec<u32>) -> Result<()> {
    for id in cluster.ids() {
        if cluster.pid(id).is_ok() && cluster.ended(id)?.is_some() {
            died.push(id);
            cluster.spawn(id)?;
        }
    }
    Ok(())
}

/// What goes by: nodes that are down, catalogs that have no leader.
fn passing(error: &ClientError) -> bool {
    matches!(error.class(), Class::Retry | Class::Unknown)
}

/// Waits until so many members are in the same epoch, have left all earlier ones, and hold the same. Writes must have
/// stopped.
///
/// # Errors
/// If that takes too long, or one has raised an alarm.
pub async fn agreed(client: &Client, namespace: &str, members: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let replicas = replicas(client, namespace).await;
        let alarms = |e: &EventualStatus| e.digest_mismatches + e.conflicting_markers + e.damaged;
        let alarmed = |replica: &NamespaceStatus| replica.eventual.as_ref().is_some_and(|e| alarms(e) > 0);
        if let Some((node, alarmed)) = replicas.iter().find(|(_, replica)| alarmed(replica)) {
            bail!("node {node} has raised an alarm: {alarmed:?}");
        }
        let state = |(_, r): &(NodeId, NamespaceStatus)| (r.epoch, r.phase, r.applied, r.digest, r.keys);
        let same = replicas.windows(2).all(|pair| state(&pair[0]) == state(&pair[1]));
        let quiet = |(_, r): &(NodeId, NamespaceStatus)| {
            let clean = r.eventual.as_ref().is_none_or(|e| e.clean && e.lag_writes == 0);
            r.phase == Phase::Stable && r.applied == r.last && clean
        };
        // A member that has not yet left an earlier epoch speaks of two replicas.
        if replicas.len() == members && same && replicas.iter().all(quiet) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the members of {namespace} do not agree: {replicas:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Every replica of every node that can be asked, of whatever epoch.
async fn replicas(client: &Client, namespace: &str) -> Vec<(NodeId, NamespaceStatus)> {
    let Ok(status) = client.status().await else { return Vec::new() };
    let reports = status.nodes.into_iter().filter_map(|report| report.status.ok());
    let named = reports.flat_map(|report| report.namespaces.into_iter().map(move |replica| (report.node, replica)));
    named.filter(|(_, replica)| replica.name.as_str() == namespace).collect()
}
