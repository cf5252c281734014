//! `duet demo`: everything at once, for a person to watch. Any promise that is not kept makes it fail.
//!
//! ```text
//! strong     real data, a leader that is killed
//! eventual   a partition, both sides of which write
//! switch     both namespaces change their mode under load, there and back, with nodes killed
//!            load      clients, and a ledger of what they were told: the strong part has one, too
//!            watch     one switch, from the command to its end
//!            timeline  the load around it, drawn
//!            verdict   the ledger against what is there
//! ```

mod eventual;
mod load;
mod strong;
mod switch;
mod timeline;
mod verdict;
mod watch;

use std::{
    fs::File,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use duet_client::{Client, NewNamespace};
use duet_proto::Mode;
use tokio::time::Instant;

use crate::{
    args::{self, Demo, Globals},
    failure::{Exit, Failure, about},
    output::table,
    playground::Playground,
    verbs::connect,
};

/// How long the cluster may take for anything before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Real data: in the source tree, and where the package puts it.
const DATA: [&str; 2] = ["data/UnicodeData.txt", "/usr/share/duet/UnicodeData.txt"];

/// Runs the demo, and cleans up whatever its end.
///
/// # Errors
/// If something does not work, or a promise was not kept.
pub(crate) async fn run(options: &Demo, globals: &Globals) -> Result<Exit, Failure> {
    // Before there is a cluster to take down again.
    let data = data(options.data.as_deref())?;
    let temporary = std::env::temp_dir().join(format!("duet-demo-{}", std::process::id()));
    let dir = options.dir.clone().unwrap_or_else(|| temporary.clone());
    let playground = args::Playground { nodes: Some(3), dir, base_port: Some(0).filter(|_| options.dir.is_none()) };
    let mut nodes = Playground::prepare(&playground, true)?;
    let result = tokio::select! {
        result = show(&data, globals, &mut nodes) => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
    };
    nodes.stop().await;
    if options.dir.is_none() {
        if result.is_ok() {
            let _ = std::fs::remove_dir_all(&temporary);
        } else {
            detail(&format!("everything is left in {}", temporary.display()));
        }
    }
    result.map(|()| Exit::Done)
}

/// The file that was asked for, or the first that is there of [`DATA`].
fn data(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = asked {
        return File::open(path).map(|_| path.to_owned()).map_err(about(path));
    }
    let found = DATA.iter().find(|path| File::open(path).is_ok()).map(PathBuf::from);
    found.ok_or_else(|| {
        Failure::failed(format!("neither {} nor {} can be read; --data names another", DATA[0], DATA[1]))
    })
}

async fn show(data: &Path, globals: &Globals, nodes: &mut Playground) -> Result<(), Failure> {
    let began = Instant::now();
    step(1, "Three nodes");
    nodes.start().await?;
    let summary = nodes.summary();
    let rows = summary.nodes.iter().map(|n| vec![format!("  {}", n.id), n.address.to_string(), n.pid.to_string()]);
    print(&table(&["  NODE", "ADDRESS", ">PID"], rows));
    detail("three duetd processes on this machine, mutual TLS between them, each with a disk store of its own");

    let globals = admin(globals, nodes);
    let client = connect(&globals).await?;
    let records = strong::show(data, &client, nodes).await?;
    let carts = eventual::show(&client, nodes, &globals).await?;
    switch::show(&client, nodes, &globals, &switch::Before { records, carts }).await?;
    print(&format!("\n{}", verdict::in_step(&client).await?.render()));
    print(&format!(
        "\nAll of it in {:.0} s. `make playground` starts a cluster to try by hand.\n",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn admin(globals: &Globals, nodes: &Playground) -> Globals {
    let file = |name: &str| Some(nodes.dir().join(name));
    Globals {
        endpoints: nodes.summary().endpoints,
        cacert: file("ca.pem"),
        cert: file("admin.pem"),
        private_key: file("admin.key"),
        timeout: globals.timeout.max(Duration::from_secs(20)),
        no_session: false,
        output: globals.output,
    }
}

/// Creates a namespace, or makes the one that an earlier run over this directory has left what it is to be.
async fn create(client: &Client, name: &str, new: NewNamespace) -> Result<(), Failure> {
    let (admin, mode, copies) = (client.admin(), new.mode, new.copies);
    match admin.create_namespace(name, new).await {
        Err(error) if matches!(error.cluster(), Some(duet_proto::Error::NamespaceExists { .. })) => {}
        other => return Ok(other.map(|_| ())?),
    }
    watch::stable(client, name).await?;
    if admin.namespace(name).await?.mode != mode {
        admin.switch_mode(name, mode, Vec::new()).await?;
        watch::stable(client, name).await?;
    }
    if mode == Mode::Eventual {
        admin.set_copies(name, copies).await?;
        watch::stable(client, name).await?;
    }
    Ok(())
}

fn step(number: u32, title: &str) {
    let (bold, plain) = if std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    print(&format!("\n{bold}{number}  {title}{plain}\n"));
}

fn detail(text: &str) {
    print(if text.is_empty() { "\n".to_owned() } else { format!("   {text}\n") }.as_str());
}

/// To standard output, whoever reads it or not.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
