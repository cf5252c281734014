//! `duet`: see the library beside this file.

use std::process::ExitCode;

fn main() -> ExitCode {
    duet_cli::run::main(std::env::args_os())
}
