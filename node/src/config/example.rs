//! The table of keys for people: the example file, and what the manual is made of.

use std::fmt::Write;

use super::keys::{KEYS, Key, Kind, SECTIONS, Unset};

/// Lines of the example file are at most so long.
const WIDTH: usize = 118;

const HEAD: &str = "/etc/duet/duetd.toml: one node of a Duet cluster, as `duetd --print-config` writes it. What has to be set \
                    stands here with an example; a line that begins with # and a key shows a default, or what could be \
                    set.";
const LAYERS: &str = "Each key has a flag (--tls-ca) and a variable (DUETD_TLS_CA) as well: flag > variable > this file > \
                      default. An unknown key is an error. `duetd --config FILE --check-config` looks for faults and \
                      starts nothing.";

/// A key, for a manual.
#[derive(Debug)]
pub struct Documented {
    /// Its dotted path in the file.
    pub path: &'static str,
    /// Its flag, without the dashes.
    pub flag: String,
    /// Its variable.
    pub variable: String,
    /// What it is.
    pub help: &'static str,
    /// The unit and the bounds, or the words.
    pub allowed: String,
    /// What holds where it is not set, in words.
    pub unset: String,
}

/// Every key, in the order of the file.
pub fn documented() -> impl Iterator<Item = Documented> {
    KEYS.iter().map(|key| Documented {
        path: key.path,
        flag: key.flag(),
        variable: key.variable(),
        help: key.help,
        allowed: key.allowed(),
        unset: unset(key),
    })
}

fn unset(key: &Key) -> String {
    match key.unset {
        Unset::Refused(_) => "it must be set".into(),
        Unset::Absent(_) => "not set by default".into(),
        Unset::Default(text) => format!("default: {text}"),
    }
}

/// The whole configuration file, annotated.
#[must_use]
pub fn example() -> String {
    let mut text = String::new();
    comment(&mut text, HEAD);
    text += "#\n";
    comment(&mut text, LAYERS);
    let mut section = "";
    for key in KEYS {
        let (table, name) = key.path.split_once('.').unwrap_or(("", key.path));
        text.push('\n');
        if table != section {
            section = table;
            if let Some((_, about)) = SECTIONS.iter().find(|(name, _)| *name == table) {
                comment(&mut text, &format!("{about}."));
                let _ = writeln!(text, "[{table}]");
            }
        }
        comment(&mut text, &format!("{}.", key.help));
        comment(&mut text, &format!("({}; {})", key.allowed(), unset(key)));
        text += &setting(key, name);
    }
    text
}

/// The lines that set a key; as comments unless it must be set.
fn setting(key: &Key, name: &str) -> String {
    let (Unset::Refused(value) | Unset::Absent(value) | Unset::Default(value)) = key.unset;
    let pairs = || value.split(',').filter_map(|pair| pair.split_once('='));
    let lines = match key.kind {
        Kind::Number { .. } => format!("{name} = {value}\n"),
        Kind::Founders => {
            let table = |(id, address)| format!("[[{name}]]\nid = {id}\naddress = \"{address}\"\n");
            pairs().map(table).collect::<Vec<_>>().join("\n")
        }
        Kind::Modes => {
            let entries: String = pairs().map(|(space, mode)| format!("{space} = \"{mode}\"\n")).collect();
            format!("[{name}]\n{entries}")
        }
        _ => format!("{name} = \"{value}\"\n"),
    };
    match key.unset {
        Unset::Refused(_) => lines,
        Unset::Absent(_) | Unset::Default(_) => lines.lines().map(|line| format!("#{line}\n")).collect(),
    }
}

/// Appends words as comment lines.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            *text += &line;
            text.push('\n');
            line = "#".into();
        }
        line.push(' ');
        line += word;
    }
    *text += &line;
    text.push('\n');
}
