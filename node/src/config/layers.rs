//! The layers: defaults, file, environment, flags, each above the one before; every value remembers where it came from.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use clap::{Arg, ArgMatches, Command, ValueHint, parser::ValueSource};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    fault::{Fault, Origin, Source},
    keys::{KEYS, Key, Kind, SECTIONS},
    values::{Read, Value, from_text, from_toml},
};

/// From so alike on (Jaro-Winkler: 0 nothing alike, 1 the same) one name is taken for a slip of the other.
const ALIKE: f64 = 0.8;

/// The values that were set, by path of the key, and what was wrong with others.
#[derive(Default)]
pub(super) struct Layers {
    values: BTreeMap<&'static str, (Value, Origin)>,
    /// Keys of which some value was wrong.
    pub(super) wrong: BTreeSet<&'static str>,
    pub(super) faults: Vec<Fault>,
}

impl Layers {
    /// Every layer in one: defaults, then the file's text, then variables and flags as clap found them.
    pub(super) fn gather(file: Option<(&Path, &str)>, matches: Option<&ArgMatches>) -> Layers {
        let mut layers = Layers::default();
        for key in KEYS {
            if let Some(default) = key.default() {
                layers.set(key, from_text(key, default), |_| Origin::Default);
            }
        }
        if let Some((path, text)) = file {
            layers.read_file(&Source { path: path.display().to_string(), text });
        }
        if let Some(matches) = matches {
            layers.read_matches(matches);
        }
        layers
    }

    pub(super) fn get(&self, path: &str) -> Option<&(Value, Origin)> {
        self.values.get(path)
    }

    /// `origin` is asked for the whole value, or for the part of it that is wrong.
    fn set(&mut self, key: &Key, value: Read, origin: impl Fn(Option<std::ops::Range<usize>>) -> Origin) {
        match value {
            Ok(value) => {
                self.values.insert(key.path, (value, origin(None)));
            }
            Err(all) => {
                self.wrong.insert(key.path);
                self.faults.extend(all.into_iter().map(|wrong| Fault::Value {
                    key: key.path,
                    origin: origin(wrong.span),
                    why: wrong.why,
                }));
            }
        }
    }

    fn read_matches(&mut self, matches: &ArgMatches) {
        for key in KEYS {
            let flag = key.flag();
            let Some(text) = matches.get_one::<String>(&flag) else { continue };
            let origin = match matches.value_source(&flag) {
                Some(ValueSource::EnvVariable) => Origin::Variable(key.variable()),
                _ => Origin::Flag(flag),
            };
            self.set(key, from_text(key, text), |_| origin.clone());
        }
    }

    fn read_file(&mut self, source: &Source<'_>) {
        let (table, errors) = DeTable::parse_recoverable(source.text);
        if errors.is_empty() {
            self.read_table("", source, table.into_inner());
        }
        // What can be made of the rest of a file that is not TOML may not be what was meant.
        self.faults.extend(errors.into_iter().map(|error| Fault::Syntax {
            at: source.place(&error.span().unwrap_or_default()),
            why: error.message().to_owned(),
        }));
    }

    fn read_table(&mut self, prefix: &str, source: &Source<'_>, table: DeTable<'_>) {
        for (name, value) in table {
            let full = format!("{prefix}{}", name.get_ref());
            if let Some(key) = KEYS.iter().find(|key| key.path == full) {
                let whole = position(&value, &name);
                let read = from_toml(key, &value);
                self.set(key, read, |part| Origin::File(source.place(part.as_ref().unwrap_or(&whole))));
                continue;
            }
            match value.into_inner() {
                DeValue::Table(inner) if is_section(&full) => self.read_table(&(full + "."), source, inner),
                _ => {
                    let meant = meant(&full);
                    self.faults.push(Fault::UnknownKey { at: source.place(&name.span()), key: full, meant });
                }
            }
        }
    }
}

/// Where a value stands. A list of tables is everywhere: then where its name stands first.
fn position(value: &Spanned<DeValue<'_>>, name: &Spanned<toml::de::DeString<'_>>) -> std::ops::Range<usize> {
    match value.get_ref() {
        DeValue::Array(_) | DeValue::Table(_) => name.span(),
        _ => value.span(),
    }
}

fn is_section(path: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == path)
}

/// The key or section that was probably meant.
fn meant(unknown: &str) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().replace('-', "_");
    let known = || KEYS.iter().map(|key| key.path).chain(SECTIONS.iter().map(|(section, _)| *section));
    // Right, but in the wrong table.
    if let Some(moved) = known().find(|path| last(path) == last(unknown)) {
        return Some(moved.into());
    }
    let alike = known()
        .map(|path| (strsim::jaro_winkler(path, unknown).max(strsim::jaro_winkler(&last(path), unknown)), path));
    alike.filter(|(near, _)| *near >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, path)| path.into())
}

/// A flag with its variable for every key.
pub(super) fn flags(command: Command) -> Command {
    command.args(KEYS.iter().map(|key| {
        let hint = match key.kind {
            Kind::Path if key.path == "data_dir" => ValueHint::DirPath,
            Kind::Path => ValueHint::FilePath,
            _ => ValueHint::Other,
        };
        Arg::new(key.flag())
            .long(key.flag())
            .env(key.variable())
            .value_name(key.placeholder())
            .value_hint(hint)
            .help(key.describe())
    }))
}
