//! From arguments to an exit code.

use std::{ffi::OsString, process::ExitCode};

use clap::{
    CommandFactory, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    args::{Cli, Command, Globals, Output, Pki},
    failure::{Exit, Failure},
    output::{Printer, say, table},
    pki, playground,
};

/// Everything that `duet` does.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refused(error, &arguments),
    };
    let printer = Printer { format: cli.globals.output };
    // Nodes on this machine, and what measures them, are to have their share of it.
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(printer, &error.into()),
    };
    // The playground starts its nodes from this thread, which lives as long as the process: that is what their leash
    // hangs on.
    let result = runtime.block_on(run(cli, printer));
    // A read of standard input that nobody waits for any more must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => failed(printer, &failure),
    }
}

fn failed(printer: Printer, failure: &Failure) -> ExitCode {
    if printer.json() {
        // Nothing can be done if this cannot be written either; the exit code tells.
        let _ = printer.bytes(format!("{}\n", failure.document()).as_bytes());
    }
    say(format!("duet: {failure}"));
    failure.exit.into()
}

/// What clap would not take: help and version are answers, all else is wrong usage.
fn refused(mut error: clap::Error, arguments: &[OsString]) -> ExitCode {
    // A list of verbs, the hidden ones among them.
    if let Some(ContextValue::Strings(verbs)) = error.get(ContextKind::ValidSubcommand) {
        let cli = Cli::command();
        let hidden = |verb: &str| cli.find_subcommand(verb).is_some_and(clap::Command::is_hide_set);
        let shown = verbs.iter().filter(|verb| !hidden(verb)).cloned().collect();
        error.insert(ContextKind::ValidSubcommand, ContextValue::Strings(shown));
    }
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let _ = error.print();
    if asked {
        return Exit::Done.into();
    }
    if json_is_asked(arguments) {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let _ =
            Printer { format: Output::Json }.bytes(format!("{}\n", Failure::usage(message).document()).as_bytes());
    }
    Exit::Usage.into()
}

fn json_is_asked(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().filter_map(|a| a.to_str()).peekable();
    while let Some(word) = words.next() {
        match word {
            "--output=json" | "-ojson" | "-o=json" => return true,
            "-o" | "--output" if words.peek() == Some(&"json") => return true,
            _ => {}
        }
    }
    std::env::var("DUET_OUTPUT").is_ok_and(|format| format == "json")
}

async fn run(cli: Cli, printer: Printer) -> Result<Exit, Failure> {
    let Cli { globals, command } = cli;
    match command {
        Command::Pki(command) => certificates(command, printer),
        Command::Playground(options) => play(&options, printer).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "duet", &mut script);
            printer.bytes(&script)?;
            Ok(Exit::Done)
        }
        Command::Leashed { parent, command } => Err(playground::leashed(parent, &command)),
        command => crate::verbs::run(command, &globals, printer).await,
    }
}

fn certificates(command: Pki, printer: Printer) -> Result<Exit, Failure> {
    let written = match command {
        Pki::Init { cluster, dir, days } => pki::init(&dir, &cluster, days)?,
        Pki::Issue(issue) => {
            let (whom, name) = match (issue.node, issue.client) {
                (Some(node), _) => (pki::Whom::Node(node, issue.hosts), format!("node-{node}")),
                (None, Some(client)) => {
                    let name = format!("client-{client}");
                    (pki::Whom::Client(client, issue.role), name)
                }
                (None, None) => return Err(Failure::usage("--node or --client is needed")),
            };
            pki::issue(&issue.dir, &whom, issue.days, &issue.out.unwrap_or_else(|| issue.dir.join(name)))?
        }
    };
    let rows =
        [("identity", written.identity.clone()), ("certificate", path(&written.cert)), ("key", path(&written.key))];
    printer.answer(&written, || rows.map(|(name, value)| format!("{name:<12} {value}\n")).concat())?;
    Ok(Exit::Done)
}

async fn play(options: &crate::args::Playground, printer: Printer) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let mut cluster = playground::Playground::prepare(options, false)?;
    let count = cluster.nodes().len();
    say(format!("starting {count} node{} in {} …", if count == 1 { "" } else { "s" }, cluster.dir().display()));
    let started = tokio::select! {
        started = cluster.start() => started,
        () = stop.asked() => {
            cluster.stop().await;
            return Ok(Exit::Done);
        }
    };
    if let Err(failure) = started {
        cluster.stop().await;
        return Err(failure);
    }
    let summary = cluster.summary();
    let env = cluster.dir().join("client.env");
    printer.answer(&summary, || {
        let rows = summary.nodes.iter().map(|n| {
            let http = format!("http://{}/metrics", n.http);
            vec![n.id.to_string(), n.address.to_string(), n.pid.to_string(), http, path(&n.log)]
        });
        let nodes = table(&[">NODE", "ADDRESS", ">PID", "METRICS", "LOG"], rows);
        let env = playground::quoted(&env);
        format!(
            "\n{nodes}\nThe cluster is ready. In another terminal:\n\n  set -a; . {env}; set +a\n  duet ns create orders\n  \
             duet put orders 1 'two apples'\n  duet get orders 1\n  duet status\n\nCtrl-C stops it; starting it again \
             goes on where it was.\n"
        )
    })?;
    loop {
        tokio::select! {
            () = stop.asked() => break,
            (node, how) = cluster.exited() => say(format!(
                "node {node}: {how}; to start it again: duetd --config {}",
                playground::quoted(&cluster.config(node)),
            )),
        }
    }
    say("stopping …");
    tokio::select! {
        () = cluster.stop() => Ok(Exit::Done),
        // Asked twice: what still runs is killed as `cluster` is dropped.
        () = stop.asked() => Ok(Exit::Failed),
    }
}

/// SIGINT, SIGTERM and SIGHUP.
pub(crate) struct Stop([tokio::signal::unix::Signal; 3]);

impl Stop {
    /// Heard from now on.
    pub(crate) fn new() -> Result<Stop, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Stop([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    pub(crate) async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

fn path(path: &std::path::Path) -> String {
    path.display().to_string()
}

impl Globals {
    /// Checks that a cluster can be reached with these, in principle.
    ///
    /// # Errors
    /// Naming everything that is missing.
    pub fn complete(&self) -> Result<(), Failure> {
        let missing: Vec<&str> = [
            (self.endpoints.is_empty(), "--endpoints (DUET_ENDPOINTS)"),
            (self.cacert.is_none(), "--cacert (DUET_CACERT)"),
            (self.cert.is_none(), "--cert (DUET_CERT)"),
            (self.private_key.is_none(), "--key (DUET_KEY)"),
        ]
        .into_iter()
        .filter_map(|(missing, name)| missing.then_some(name))
        .collect();
        if missing.is_empty() {
            let malformed = |endpoint: &&String| match endpoint.rsplit_once(':') {
                Some((host, port)) => host.is_empty() || !matches!(port.parse::<u16>(), Ok(1..)),
                None => true,
            };
            return match self.endpoints.iter().find(malformed) {
                Some(endpoint) => Err(Failure::usage(format!("--endpoints: {endpoint:?} is not HOST:PORT"))),
                None => Ok(()),
            };
        }
        Err(Failure::usage(format!("missing {}; a playground writes them into its client.env", missing.join(", "))))
    }
}
