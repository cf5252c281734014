//! The third part: both namespaces change their mode while clients use them, a node dies on the way, and a ledger says
//! what has become of every write.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use duet_client::{Client, Namespace};
use duet_proto::{Mode, NodeId};
use futures::future::try_join_all;
use tokio::time::sleep;

use super::{
    detail, eventual,
    load::{Known, Load},
    step, strong,
    verdict::Verdict,
    watch::{self, Watched, command},
};
use crate::{args::Globals, cluster, failure::Failure, output::count, playground::Playground};

/// Of each client, in each namespace: tasks that write, and tasks that read.
const WRITERS: u32 = 4;
const READERS: usize = 2;
/// Tasks that write through the node that is about to die.
const LAST_WORDS: u32 = 8;
/// Acknowledged writes that make a loss hurt, if there was one.
const ENOUGH: u64 = 200;
/// How long a task waits for an answer. What was under way to a node as it died is never answered, and in an eventual
/// epoch nobody else may be asked: the write might run twice.
const PATIENT: Duration = Duration::from_secs(1);
/// How long the load runs before something is done to it, and how long a switch is let wait.
const A_WHILE: Duration = Duration::from_millis(600);

/// What earlier steps have left in the namespaces.
pub(super) struct Before {
    pub(super) records: Known,
    pub(super) carts: eventual::Ledger,
}

/// The loads, and what the switches did to them.
struct Show<'a> {
    client: &'a Client,
    /// Those whose tasks are the loads.
    clients: Vec<Client>,
    unicode: Load,
    carts: Load,
    /// What was written through a node until it died, and where.
    last_words: Vec<(&'static str, Load)>,
    switches: Vec<Watched>,
}

/// Steps 10 to 13.
pub(super) async fn show(
    client: &Client,
    nodes: &mut Playground,
    globals: &Globals,
    before: &Before,
) -> Result<(), Failure> {
    step(10, "Both change their mode, while clients write and read");
    let clients = clients(nodes, globals).await?;
    let (unicode, carts) = load(&clients, before).await?;
    let mut show = Show { client, clients, unicode, carts, last_words: Vec::new(), switches: Vec::new() };
    show.change_places().await?;
    show.change_back(nodes).await?;
    show.two_copies(nodes).await?;

    step(13, "The verdict");
    let Show { unicode, carts, last_words, switches, .. } = show;
    let loads = [(strong::NAMESPACE, unicode), (eventual::NAMESPACE, carts)].into_iter().chain(last_words);
    let verdict = Verdict::of(client, loads.collect()).await?;
    strong::verify(&client.namespace(strong::NAMESPACE)?, &before.records).await?;
    eventual::verify(&client.namespace(eventual::NAMESPACE)?, &before.carts).await?;
    let live = before.carts.values().filter(|(_, value)| value.is_some()).count() as u64;
    detail(&format!("{} records of step 9 are as they were, and nothing deleted is back", count(live)));
    detail("");
    verdict.tell(&switches)
}

/// A client beside each node.
async fn clients(nodes: &Playground, globals: &Globals) -> Result<Vec<Client>, Failure> {
    let links = nodes.links().ok_or_else(|| Failure::failed("the nodes have no doors"))?;
    let clients = nodes.nodes().into_iter().map(|node| eventual::beside(links, nodes, globals, node));
    try_join_all(clients).await
}

/// Tasks of all clients, in both namespaces.
async fn load(clients: &[Client], before: &Before) -> Result<(Load, Load), Failure> {
    let open = |name| {
        let each = clients.iter().map(|client| Ok(client.namespace(name)?.timeout(PATIENT)));
        each.collect::<Result<Vec<Namespace>, Failure>>()
    };
    let start = |namespaces: &[Namespace], known: &Known| {
        Load::start("switch", namespaces, WRITERS).read(namespaces, READERS, known)
    };
    let live = before.carts.iter().filter_map(|(key, (_, value))| Some((key.clone(), value.clone()?)));
    let loads = (
        start(&open(strong::NAMESPACE)?, &before.records),
        start(&open(eventual::NAMESPACE)?, &Arc::new(live.collect())),
    );
    let tasks = |each: usize| each * clients.len();
    detail(&format!(
        "{} clients: in each namespace {} tasks put and delete keys of their own, {} read what was there before",
        clients.len(),
        tasks(WRITERS as usize),
        tasks(READERS),
    ));
    loads.0.progress(ENOUGH).await?;
    loads.1.progress(ENOUGH).await?;
    sleep(A_WHILE).await;
    Ok(loads)
}

impl Show<'_> {
    /// Both at the same time, in opposite directions.
    async fn change_places(&mut self) -> Result<(), Failure> {
        let one = command(strong::NAMESPACE, Mode::Eventual);
        typed(&format!("{one} & {}", command(eventual::NAMESPACE, Mode::Strong)));
        let (unicode, carts) = tokio::try_join!(
            watch::switch(self.client, strong::NAMESPACE, Mode::Eventual, &self.unicode),
            watch::switch(self.client, eventual::NAMESPACE, Mode::Strong, &self.carts),
        )?;
        self.draw(unicode).await;
        self.draw(carts).await;
        detail("");
        detail("Each cell is 10 ms of the load, higher where more was answered. Below, what the switch was doing:");
        detail("  e  the end of the epoch goes through the Raft log");
        detail("  g  members gather: they get in step, and writes go on");
        detail("  s  each seals what it holds: from here on writes wait");
        detail("  c  they converge: what one of them lacks it gets from the others");
        Ok(())
    }

    /// Back again, with a node killed in between.
    async fn change_back(&mut self, nodes: &mut Playground) -> Result<(), Failure> {
        step(11, "A node dies, and both change back");
        let dead = self.bystander().await?;
        self.kill(nodes, dead, strong::NAMESPACE).await?;

        typed(&command(eventual::NAMESPACE, Mode::Eventual));
        let carts = watch::switch(self.client, eventual::NAMESPACE, Mode::Eventual, &self.carts).await?;
        self.draw(carts).await;
        detail(&format!("Node {dead} was not needed: any quorum can end a strong epoch."));

        typed(&command(strong::NAMESPACE, Mode::Strong));
        let unicode = watch::switch(self.client, strong::NAMESPACE, Mode::Strong, &self.unicode);
        let (unicode, ()) = tokio::try_join!(unicode, self.waiting(nodes, dead))?;
        self.draw(unicode).await;
        Ok(())
    }

    /// Where one copy is enough for a client to be answered, it may be the dead node's.
    async fn waiting(&self, nodes: &mut Playground, dead: NodeId) -> Result<(), Failure> {
        watch::waits_for(self.client, strong::NAMESPACE, dead).await?;
        let before = self.unicode.acknowledged();
        detail(&format!("waits for node {dead}: with copies = 1 it alone may hold writes that were acknowledged"));
        sleep(A_WHILE).await;
        detail(&format!("writes go on meanwhile: {} more", count(self.unicode.acknowledged() - before)));
        revive(nodes, dead).await
    }

    /// With two copies, whatever was acknowledged is on one of the others, too.
    async fn two_copies(&mut self, nodes: &mut Playground) -> Result<(), Failure> {
        step(12, "With two copies of every write, no node is needed");
        typed(&format!("duet ns set-copies {} 2", eventual::NAMESPACE));
        self.client.admin().set_copies(eventual::NAMESPACE, 2).await?;
        watch::stable(self.client, eventual::NAMESPACE).await?;
        let dead = self.bystander().await?;
        self.kill(nodes, dead, eventual::NAMESPACE).await?;

        typed(&command(eventual::NAMESPACE, Mode::Strong));
        let carts = watch::switch(self.client, eventual::NAMESPACE, Mode::Strong, &self.carts).await?;
        self.draw(carts).await;
        detail(&format!("Node {dead} was waited for during a second, and then left out."));
        revive(nodes, dead).await?;
        let late = watch::late(self.client, eventual::NAMESPACE, dead).await?;
        match late {
            0 => detail("back again, it held nothing that the others lacked"),
            _ => detail(&format!("back again, it brought {} late writes, which it alone held", count(late))),
        }
        Ok(())
    }

    async fn draw(&mut self, switch: Watched) {
        switch.draw().await;
        self.switches.push(switch);
    }

    /// A node that leads nothing: what a dead leader costs was step 3.
    async fn bystander(&self) -> Result<NodeId, Failure> {
        let report = cluster::report(self.client).await?;
        let leaders: BTreeSet<NodeId> = report.namespaces.iter().filter_map(|row| row.leader).collect();
        let rest = report.nodes.iter().map(|row| row.id).filter(|node| !leaders.contains(node));
        rest.max().ok_or_else(|| Failure::failed("every node leads something"))
    }

    /// Kills a node in the middle of writes to an eventual namespace that it takes by itself.
    async fn kill(&mut self, nodes: &mut Playground, node: NodeId, name: &'static str) -> Result<(), Failure> {
        let namespace = self.client.namespace(name)?.on(node).timeout(PATIENT);
        let who = format!("last words {}", self.last_words.len());
        let load = Load::start(&who, std::slice::from_ref(&namespace), LAST_WORDS);
        load.progress(ENOUGH).await?;
        typed(&format!("kill -9 {}  # node {node}", nodes.pid(node).unwrap_or_default()));
        nodes.kill(node).await?;
        load.halt();
        detail(&format!(
            "{LAST_WORDS} more tasks wrote to {name} until then, through node {node} alone: {} writes acknowledged",
            count(load.acknowledged())
        ));
        self.last_words.push((name, load));
        // What a dead node costs was shown before. By the time of the switch every client has noticed, and goes on elsewhere.
        try_join_all(self.clients.iter().chain([self.client]).map(Client::status)).await?;
        self.unicode.progress(ENOUGH).await?;
        self.carts.progress(ENOUGH).await
    }
}

fn typed(line: &str) {
    detail("");
    detail(&format!("$ {line}"));
}

async fn revive(nodes: &mut Playground, node: NodeId) -> Result<(), Failure> {
    typed(&format!("duetd --config node{node}/duetd.toml"));
    nodes.spawn(node)?;
    nodes.ready(&[node]).await
}
