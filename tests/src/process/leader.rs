//! What the nodes say of a namespace: who leads it, and whether all hold the same.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use duet_client::{Client, NamespaceStatus};
use duet_proto::GroupRole;
use tokio::time::sleep;

use super::PATIENCE;

/// The node that leads a namespace, waited for: of those that say so, the one of the highest term. One that is cut off
/// may say so for a while longer, in an older term.
///
/// # Errors
/// If nobody leads for too long.
pub async fn leader(client: &Client, namespace: &str) -> Result<u32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let replicas = replicas(client, namespace).await;
        let led = replicas.iter().filter(|(_, replica)| replica.role == GroupRole::Leader);
        if let Some((node, _)) = led.max_by_key(|(_, replica)| replica.term) {
            return Ok(*node);
        }
        ensure!(Instant::now() < deadline, "nobody leads {namespace}: {replicas:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until so many nodes have applied the same position of a namespace's log and hold the same data, by digest.
/// Returns the position.
///
/// # Errors
/// If they differ for too long.
pub async fn converged(client: &Client, namespace: &str, nodes: usize) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let replicas = replicas(client, namespace).await;
        let mut states: Vec<_> = replicas.iter().map(|(_, r)| (r.applied, r.digest, r.keys, r.last)).collect();
        states.dedup();
        if let ([(applied, _, _, last)], true) = (&states[..], replicas.len() == nodes)
            && applied == last
        {
            return Ok(*applied);
        }
        ensure!(Instant::now() < deadline, "the replicas of {namespace} do not agree: {replicas:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Every replica that can be asked.
pub(super) async fn replicas(client: &Client, namespace: &str) -> Vec<(u32, NamespaceStatus)> {
    let Ok(status) = client.status().await else { return Vec::new() };
    let reports = status.nodes.into_iter().filter_map(|report| report.status.ok());
    let named = |node: u32, list: Vec<NamespaceStatus>| {
        list.into_iter().find(|replica| replica.name.as_str() == namespace).map(|replica| (node, replica))
    };
    reports.filter_map(|report| named(report.node.0, report.namespaces)).collect()
}
