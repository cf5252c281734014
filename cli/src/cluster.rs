//! Namespaces, nodes, and the state of both.

use std::{
    collections::BTreeMap,
    io::{BufRead, IsTerminal},
    time::{Duration, SystemTime},
};

use duet_client::{Client, ClientError, NewNamespace, SwitchInfo, Topology};
use duet_proto::{NamespaceId, NamespaceInfo, NamespaceName, NodeId, NodeInfo, NodeStatus, Phase};
use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::json;

use crate::{
    args::{Node, Ns},
    failure::{Exit, Failure},
    output::{Printer, say, table},
    status::{MemberRow, Report, word},
    switch::{
        self,
        past::{self, Late},
    },
    verify,
};

/// Late writes that are listed of one member.
const LATE: u32 = 1000;
/// Namespaces whose switches are asked for side by side.
const SIDE_BY_SIDE: usize = 16;
/// How often the cluster is looked at again before what may be passing is called a problem, and the pause before.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(300);

/// `duet ns …`
pub(crate) async fn namespaces(client: &Client, verb: Ns, printer: Printer) -> Result<Exit, Failure> {
    let admin = client.admin();
    let done = match verb {
        Ns::Create { name, mode, replicas, members, copies } => {
            let new = NewNamespace { mode, replicas, members, copies };
            brief(&admin.create_namespace(name.as_str(), new).await?, printer)
        }
        Ns::List => {
            let list = admin.namespaces().await?;
            printer.answer(&json!({ "namespaces": list }), || namespace_table(&list))
        }
        Ns::Show { name, late } => return show(client, &name, late, printer).await,
        Ns::Switch(verb) => return switch::run(client, &verb, printer).await,
        Ns::Verify(verb) => return verify::run(client, &verb, printer).await,
        Ns::Forget { name, node, yes } => return switch::forget(client, &name, node, yes, printer).await,
        Ns::Members { name, members } => brief(&admin.set_members(name.as_str(), members).await?, printer),
        Ns::SetCopies { name, copies } => brief(&admin.set_copies(name.as_str(), copies).await?, printer),
        Ns::Delete { name, yes } => {
            if !yes {
                confirm(&name, &format!("This deletes everything in {name}, on every node."))?;
            }
            admin.delete_namespace(name.as_str()).await?;
            printer.answer(&json!({ "deleted": name }), String::new)
        }
    };
    done.map(|()| Exit::Done)
}

fn brief(info: &NamespaceInfo, printer: Printer) -> Result<(), Failure> {
    printer.answer(info, || namespace_table(std::slice::from_ref(info)))
}

/// A namespace as the catalog has it, and what its members say.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    info: &'a NamespaceInfo,
    agreed: bool,
    converged: Option<bool>,
    replicas: &'a [MemberRow],
    switch: past::Document,
    #[serde(skip_serializing_if = "Option::is_none")]
    late: Option<&'a LateWrites>,
}

/// Late writes of every member, and who could not be asked.
#[derive(Serialize)]
struct LateWrites {
    writes: Vec<Late>,
    unreachable: BTreeMap<NodeId, String>,
}

async fn show(client: &Client, name: &NamespaceName, late: bool, printer: Printer) -> Result<Exit, Failure> {
    let switches = client.admin().switch(name.as_str()).await?;
    let info = &switches.namespace;
    let late = if late { Some(late_writes(client, &switches).await) } else { None };
    let report = report(client).await?;
    // The node that told the topology may not know it yet.
    let row = report.namespaces.iter().find(|row| row.id == info.id.0);
    let shown = Shown {
        info,
        agreed: row.is_none_or(|row| row.agreed),
        converged: row.and_then(|row| row.converged),
        replicas: row.map_or(&[], |row| &row.members),
        switch: past::Document::of(&switches),
        late: late.as_ref(),
    };
    printer.answer(&shown, || {
        let mut text = namespace_table(std::slice::from_ref(info));
        if let Some(row) = row {
            text += &format!("\n{}", row.render());
        }
        text += match shown.converged {
            Some(true) => "\nall members hold the same\n",
            Some(false) => "\nnot all members hold the same yet\n",
            None => "",
        };
        text += &past::render(&switches);
        late.as_ref().map_or(text.clone(), |late| text + &late.render(&switches))
    })?;
    Ok(if row.is_some_and(|row| row.alarmed()) { Exit::Unhealthy } else { Exit::Done })
}

/// Asks every member, and whoever is owed though it is none any more.
async fn late_writes(client: &Client, switches: &SwitchInfo) -> LateWrites {
    let owed = switches.owed.iter().map(|(node, _)| *node);
    let nodes: std::collections::BTreeSet<NodeId> = switches.namespace.members.iter().copied().chain(owed).collect();
    let admin = client.admin().timeout(client.options().status_patience.max(Duration::from_secs(2)));
    let name = &switches.namespace.name;
    let ask = nodes.into_iter().map(|node| {
        let admin = admin.clone();
        async move { (node, admin.late(name.as_str(), node, LATE).await) }
    });
    let mut late = LateWrites { writes: Vec::new(), unreachable: BTreeMap::new() };
    for (node, answer) in futures::future::join_all(ask).await {
        match answer {
            Ok(writes) => late.writes.extend(writes.into_iter().map(|write| Late::of(node, write))),
            Err(error) => drop(late.unreachable.insert(node, error.to_string())),
        }
    }
    late
}

impl LateWrites {
    fn render(&self, switches: &SwitchInfo) -> String {
        let mut text = String::from("\n");
        if self.writes.is_empty() {
            text += "no late writes\n";
        } else {
            text += &past::render_late(&self.writes);
        }
        for (node, why) in &self.unreachable {
            let owed = switches.owed.iter().any(|(owed, _)| owed == node);
            let what = if owed { "is waited for, and may hold some: it" } else { "may know of some: it" };
            text += &format!("node {node} {what} could not be asked ({why})\n");
        }
        text
    }
}

fn namespace_table(list: &[NamespaceInfo]) -> String {
    let rows = list.iter().map(|n| {
        vec![
            n.name.to_string(),
            n.mode.to_string(),
            n.epoch.to_string(),
            word(n.phase),
            n.members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            n.leader.map_or_else(|| "–".into(), |l| l.to_string()),
            n.copies.to_string(),
        ]
    });
    table(&["NAMESPACE", "MODE", ">EPOCH", "PHASE", "MEMBERS", ">LEADER", ">COPIES"], rows)
}

/// Asks for the namespace's name before what cannot be undone.
pub(crate) fn confirm(name: &NamespaceName, what: &str) -> Result<(), Failure> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        say(what);
        return Err(Failure::usage("nothing was done: --yes confirms it"));
    }
    say(format!("{what}\nType the namespace's name to go on:"));
    let mut line = String::new();
    input.lock().read_line(&mut line)?;
    if line.trim() == name.as_str() { Ok(()) } else { Err(Failure::failed("not confirmed, nothing was done")) }
}

/// `duet node …`
pub(crate) async fn nodes(client: &Client, verb: Node, printer: Printer) -> Result<(), Failure> {
    match verb {
        Node::List => {
            let topology = client.topology().await?;
            let list = &topology.nodes;
            let cells = |n: &NodeInfo| vec![n.id.to_string(), n.address.clone(), n.boot.to_string()];
            printer
                .answer(&json!({ "nodes": list }), || table(&[">NODE", "ADDRESS", ">STARTS"], list.iter().map(cells)))
        }
        Node::Add { address } => {
            let node = client.admin().add_node(address).await?;
            printer.answer(&node, || node.id.to_string())
        }
        Node::Remove { node } => {
            client.admin().remove_node(node).await?;
            printer.answer(&json!({ "removed": node }), String::new)
        }
    }
}

/// `duet status`
pub(crate) async fn status(client: &Client, printer: Printer) -> Result<Exit, Failure> {
    let mut report = report(client).await?;
    // Members follow a switch one by one: what is over in a moment is no problem.
    for _ in 1..LOOKS {
        if !report.following() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        report = self::report(client).await?;
    }
    report.tell_of(&switches(client, &report).await);
    printer.answer(&report, || report.render())?;
    Ok(if report.healthy { Exit::Done } else { Exit::Unhealthy })
}

/// What the catalog tells of namespaces that are being switched or were before. A client that may not ask does without.
pub(crate) async fn switches(client: &Client, report: &Report) -> BTreeMap<NamespaceId, SwitchInfo> {
    let admin = client.admin();
    let told = report.namespaces.iter().filter(|row| row.phase == Phase::Switching || row.epoch > 1);
    let ask = told.map(|row| {
        let admin = admin.clone();
        async move { Some((NamespaceId(row.id), admin.switch(&row.name).await.ok()?)) }
    });
    stream::iter(ask).buffer_unordered(SIDE_BY_SIDE).filter_map(std::future::ready).collect().await
}

/// What every node says, side by side.
pub(crate) async fn report(client: &Client) -> Result<Report, Failure> {
    let (topology, answers) = answers(client).await?;
    let mut report = Report::new(&topology, &answers);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    report.tell_of_certificates(&answers, i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    Ok(report)
}

/// What every node says of itself, or why it says nothing.
pub(crate) async fn answers(
    client: &Client,
) -> Result<(Topology, BTreeMap<NodeId, Result<NodeStatus, String>>), Failure> {
    let status = client.status().await?;
    let answers = status.nodes.into_iter().map(|node| (node.info.id, node.status.map_err(|e| silence(&e))));
    Ok((status.topology, answers.collect()))
}

/// Why one node says nothing. That no node could be reached would be true of this one, and read as if of all.
fn silence(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { tried } => match &tried[..] {
            [(_, why)] => why.clone(),
            several => several.iter().map(|(at, why)| format!("{at} ({why})")).collect::<Vec<_>>().join(", "),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_one_node_is_silent_is_not_told_as_if_all_were() {
        let tried = |at: &[&str]| at.iter().map(|at| ((*at).to_owned(), "no answer yet".to_owned())).collect();
        let told = |at: &[&str]| silence(&ClientError::Unreachable { tried: tried(at) });
        assert_eq!(told(&["a:1"]), "no answer yet");
        assert_eq!(told(&["a:1", "b:1"]), "a:1 (no answer yet), b:1 (no answer yet)");
    }
}
