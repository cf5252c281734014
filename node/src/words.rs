//! A node in one line, for a person who looks at `systemctl status`.

use duet_proto::{GroupRole, Mode, NodeStatus, Phase, QuorumHealth};

use crate::Node;

impl Node {
    /// Whether it serves, what it holds, and what is wrong.
    pub(crate) async fn in_words(&self) -> String {
        let state = self.ready().map_or_else(|why| why, |()| "ready".into());
        let others = self.router().topology().nodes.len().saturating_sub(1);
        line(state, &self.status().await, others, self.certificates().warnings())
    }
}

fn line(state: String, status: &NodeStatus, others: usize, warnings: Vec<String>) -> String {
    let held: Vec<_> = status.namespaces.iter().filter(|replica| !replica.name.is_system()).collect();
    let count = |mode| held.iter().filter(|replica| replica.mode == mode).count();
    let leads = held.iter().filter(|replica| replica.role == GroupRole::Leader).count();
    let mut parts = vec![
        state,
        format!("{} strong (leads {leads}) and {} eventual namespaces", count(Mode::Strong), count(Mode::Eventual)),
        format!("{} of {others} peers connected", status.connected.len()),
    ];
    let switching = held.iter().filter(|replica| replica.phase == Phase::Switching).count();
    let lost = held.iter().filter(|replica| replica.quorum == QuorumHealth::Lost).count();
    let failed = held.iter().filter(|replica| replica.role == GroupRole::Failed).count();
    for (count, what) in [(switching, "in a switch"), (lost, "without a quorum"), (failed, "failed")] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if status.disk_full {
        parts.push("the disk is full: writes are refused".into());
    }
    if status.certificates.fault.is_some() {
        parts.push("the certificates in the files cannot be used".into());
    }
    parts.extend(warnings);
    parts.join("; ")
}
