//! Namespaces, nodes, and the state of both.

use std::io::{BufRead, IsTerminal};

use duet_client::{Client, NewNamespace};
use duet_proto::{NamespaceInfo, NamespaceName, NodeInfo};
use serde::Serialize;
use serde_json::json;

use crate::{
    args::{Node, Ns},
    failure::{Exit, Failure},
    output::{Printer, say, table},
    status::{MemberRow, Report, word},
};

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
        Ns::Show { name } => return show(client, &admin.namespace(name.as_str()).await?, printer).await,
        Ns::Members { name, members } => brief(&admin.set_members(name.as_str(), members).await?, printer),
        Ns::SetCopies { name, copies } => brief(&admin.set_copies(name.as_str(), copies).await?, printer),
        Ns::Delete { name, yes } => {
            if !yes {
                confirm(&name)?;
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
}

async fn show(client: &Client, info: &NamespaceInfo, printer: Printer) -> Result<Exit, Failure> {
    let report = report(client).await?;
    let Some(row) = report.namespaces.iter().find(|row| row.id == info.id.0) else {
        // The node that told the topology does not know it yet.
        return brief(info, printer).map(|()| Exit::Done);
    };
    let shown = Shown { info, agreed: row.agreed, converged: row.converged, replicas: &row.members };
    printer.answer(&shown, || {
        let state = match row.converged {
            Some(true) => "\nall members hold the same\n",
            Some(false) => "\nnot all members hold the same yet\n",
            None => "",
        };
        format!("{}\n{}{state}", namespace_table(std::slice::from_ref(info)), row.render())
    })?;
    Ok(if row.alarmed() { Exit::Unhealthy } else { Exit::Done })
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

fn confirm(name: &NamespaceName) -> Result<(), Failure> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::usage("this deletes everything in the namespace: --yes confirms it"));
    }
    say(format!("This deletes everything in {name}, on every node. Type its name to go on:"));
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
    let report = report(client).await?;
    printer.answer(&report, || report.render())?;
    Ok(if report.healthy { Exit::Done } else { Exit::Unhealthy })
}

/// What every node says, side by side.
pub(crate) async fn report(client: &Client) -> Result<Report, Failure> {
    let status = client.status().await?;
    let answers = status.nodes.into_iter().map(|node| (node.info.id, node.status.map_err(|e| e.to_string())));
    Ok(Report::new(&status.topology, &answers.collect()))
}
