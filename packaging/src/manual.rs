//! The manual pages.

use std::{io, path::Path};

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use duet_node::config;

const MANUAL: &str = "Duet";

/// An empty date would not count as one: the version is what tells how old a page is.
const DATE: &str = " ";

/// `duet(1)`, and a page for every verb that is not hidden.
pub(crate) fn client(command: Command, folder: &Path) -> io::Result<()> {
    let source = format!("duet {}", command.get_version().unwrap_or_default());
    let mut command = command.disable_help_subcommand(true);
    command.build();
    verb(&command, &source, folder)
}

fn verb(command: &Command, source: &str, folder: &Path) -> io::Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        verb(inner, source, folder)?;
    }
    let page = Man::new(command.clone()).date(DATE).source(source).manual(MANUAL);
    page.generate_to(folder).map(|_| ())
}

/// `duetd(8)`.
pub(crate) fn daemon(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).section("8").date(DATE).manual(MANUAL).render(&mut page)?;
    let mut more = Roff::new();
    section(&mut more, "EXIT STATUS");
    for (code, what) in [
        ("0", "Stopped cleanly."),
        ("1", "Failed, while starting or later."),
        ("2", "The command line, the configuration or a certificate is wrong: starting again would not help."),
    ] {
        entry(&mut more, code, &[what]);
    }
    section(&mut more, "SIGNALS");
    for (signal, what) in [
        ("SIGTERM, SIGINT", "Stop: hand leadership over, sync the store, end. A second one ends at once."),
        (
            "SIGHUP",
            "Read the configuration again. The log's level and the certificates take effect; other keys need a restart.",
        ),
    ] {
        entry(&mut more, signal, &[what]);
    }
    section(&mut more, "FILES");
    for (path, what) in [
        ("/etc/duet/duetd.toml", "The configuration of the node that the systemd unit runs."),
        ("/var/lib/duet", "Its data."),
        (
            "/usr/share/duet",
            "The configuration as it was installed, alerts for Prometheus, a dashboard for Grafana, data for `duet demo`.",
        ),
    ] {
        entry(&mut more, path, &[what]);
    }
    see_also(&mut more, "duet(1), duetd.toml(5), systemctl(1)");
    more.to_writer(&mut page)?;
    Ok(page)
}

/// `duetd.toml(5)`, from the table of keys.
pub(crate) fn configuration() -> io::Result<Vec<u8>> {
    let mut page = Roff::new();
    let source = format!("duetd {}", duet_node::daemon::VERSION);
    page.control("TH", ["duetd.toml", "5", DATE, &source, MANUAL]);
    section(&mut page, "NAME");
    page.text([roman("duetd.toml - configuration of one node of a Duet cluster")]);
    section(&mut page, "DESCRIPTION");
    page.text([roman(
        "A TOML file that duetd reads where --config or DUETD_CONFIG names it. Each key has a flag and a variable as well: a \
         flag is above its variable, a variable above the file, the file above the default. An unknown key, a value out of \
         its bounds and a combination that cannot work are errors, all told at once with the line they stand on.",
    )]);
    page.control("PP", []);
    page.text([
        bold("duetd --print-config"),
        roman(" writes the whole file with examples; "),
        bold("duetd --config FILE --check-config"),
        roman(" looks for faults, in the certificates too, and starts nothing."),
    ]);
    section(&mut page, "KEYS");
    for key in config::documented() {
        let bounds = format!("({}; {})", key.allowed, key.unset);
        let elsewhere = format!("--{}, {}", key.flag, key.variable);
        entry(&mut page, key.path, &[&format!("{}.", key.help), &bounds, &elsewhere]);
    }
    section(&mut page, "FILES");
    entry(&mut page, "/etc/duet/duetd.toml", &["What the systemd unit reads. The user duet must be able to."]);
    see_also(&mut page, "duetd(8), duet(1)");
    let mut bytes = Vec::new();
    page.to_writer(&mut bytes)?;
    Ok(bytes)
}

fn section(page: &mut Roff, name: &str) {
    page.control("SH", [name]);
}

/// A term, and lines about it.
fn entry(page: &mut Roff, term: &str, about: &[&str]) {
    page.control("TP", []);
    page.text([bold(term)]);
    for (n, line) in about.iter().enumerate() {
        if n > 0 {
            page.control("br", []);
        }
        page.text([roman(*line)]);
    }
}

fn see_also(page: &mut Roff, pages: &str) {
    section(page, "SEE ALSO");
    page.text([roman(pages)]);
}
