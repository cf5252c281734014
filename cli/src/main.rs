//! `duet`: see the library beside this file.

use std::process::ExitCode;

/// As in `duetd`: `duet bench` takes its part of a machine that a cluster runs on.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    duet_cli::run::main(std::env::args_os())
}
