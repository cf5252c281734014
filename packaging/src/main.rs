//! `duet-pages FOLDER`: writes the manual pages and the completions of `duet` and `duetd`, from the definitions of their
//! command lines and from the table of `duetd`'s keys.
//!
//! ```text
//! FOLDER/man1/duet.1, duet-put.1, …    a page for each verb      bash/   duet, duetd
//!        man5/duetd.toml.5             the keys                  zsh/    _duet, _duetd
//!        man8/duetd.8                  the daemon                fish/   duet.fish, duetd.fish
//! ```
//!
//! A program apart from those two, so that what they are shipped with is not in them.

mod manual;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

fn main() -> ExitCode {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let result = match &folder {
        Some(folder) => write(folder),
        None => Err(io::Error::other("which folder? duet-pages FOLDER")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "duet-pages: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
    let man = |section: &str| fs::create_dir_all(folder.join(section)).map(|()| folder.join(section));
    manual::client(duet(), &man("man1")?)?;
    fs::write(man("man8")?.join("duetd.8"), manual::daemon(duetd())?)?;
    fs::write(man("man5")?.join("duetd.toml.5"), manual::configuration()?)?;
    for (shell, name) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        complete(&folder.join(name), shell, "duet", duet())?;
        complete(&folder.join(name), shell, "duetd", duetd())?;
    }
    Ok(())
}

fn duet() -> Command {
    duet_cli::args::Cli::command()
}

fn duetd() -> Command {
    duet_node::config::command(duet_node::daemon::VERSION.into())
}

/// Under the name under which the shell looks for it.
fn complete(folder: &Path, shell: Shell, program: &str, mut command: Command) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, program, &mut script);
    let name = match shell {
        Shell::Zsh => format!("_{program}"),
        Shell::Fish => format!("{program}.fish"),
        _ => program.to_owned(),
    };
    fs::write(folder.join(name), script)
}
