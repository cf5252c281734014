//! `duetd`: reads its configuration, then runs one node until a signal or a failure ends it.
//!
//! Exit codes: 0 stopped cleanly; 1 failed, while starting or later; 2 the command line, the configuration or a
//! certificate is wrong, so that starting again would not help.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use duet_node::{
    config::{self, Resolved},
    daemon, log,
};

/// RocksDB allocates from it too. Under a load of puts a quarter more of them fit than with the one of glibc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let matches = config::command(daemon::VERSION.into()).get_matches();
    if matches.get_flag("print-config") {
        return say(io::stdout(), config::example().trim_end(), ExitCode::SUCCESS);
    }
    let config = match Resolved::load(&matches) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    if matches.get_flag("check-config") {
        return match daemon::check(&config) {
            Ok(summary) => say(io::stdout(), &summary, ExitCode::SUCCESS),
            Err(error) => refuse(&error),
        };
    }
    let level = log::install(&config.log);
    let reload = daemon::Reload { read: Box::new(move || Resolved::load(&matches)), level };
    match daemon::run(config, &reload) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = ExitCode::from(failure.exit_code());
            if !tracing::enabled!(tracing::Level::ERROR) {
                return say(io::stderr(), &format!("{}duetd: {failure}", log::error_mark()), code);
            }
            tracing::error!("{failure}");
            code
        }
    }
}

/// Before there is a log. An error of several lines is several errors.
fn refuse(error: &dyn std::error::Error) -> ExitCode {
    let lines: Vec<String> =
        error.to_string().lines().map(|line| format!("{}duetd: {line}", log::error_mark())).collect();
    say(io::stderr(), &lines.join("\n"), ExitCode::from(2))
}

fn say(mut to: impl Write, line: &str, code: ExitCode) -> ExitCode {
    // Nobody is left to tell if this fails.
    let _ = writeln!(to, "{line}");
    code
}
