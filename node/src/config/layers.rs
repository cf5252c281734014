//! The layers: defaults, file, environment, flags, each above the one before; every value remembers where it came from.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::Path};

use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use duet_proto::{Mode, NamespaceName, NodeId};
use toml::de::{DeTable, DeValue};

use super::{
    ConfigError,
    keys::{KEYS, Key, Kind},
};

/// Where a value was set.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Default,
    File { path: String, line: usize },
    Variable(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{path}:{line}"),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// A checked value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Socket(SocketAddr),
    Number(u64),
    Founders(BTreeMap<NodeId, String>),
    Modes(BTreeMap<NamespaceName, Mode>),
}

/// The values that were set, by path of the key.
#[derive(Default)]
pub(super) struct Layers(BTreeMap<&'static str, (Value, Origin)>);

impl Layers {
    /// Every layer in one: defaults, then the file's text, then variables and flags as clap found them.
    pub(super) fn gather(file: Option<(&Path, &str)>, matches: Option<&ArgMatches>) -> Result<Layers, ConfigError> {
        let mut layers = Layers::default();
        for key in KEYS {
            if let Some(default) = key.default {
                layers.set(key, from_text(key, default), Origin::Default)?;
            }
        }
        if let Some((path, text)) = file {
            layers.read_file(path, text)?;
        }
        if let Some(matches) = matches {
            layers.read_matches(matches)?;
        }
        Ok(layers)
    }

    pub(super) fn get(&self, path: &str) -> Option<&(Value, Origin)> {
        self.0.get(path)
    }

    fn set(&mut self, key: &Key, value: Result<Value, String>, origin: Origin) -> Result<(), ConfigError> {
        match value {
            Ok(value) => {
                self.0.insert(key.path, (value, origin));
                Ok(())
            }
            Err(why) => Err(ConfigError::Value { key: key.path.into(), origin: origin.to_string(), why }),
        }
    }

    fn read_matches(&mut self, matches: &ArgMatches) -> Result<(), ConfigError> {
        for key in KEYS {
            let flag = key.flag();
            let Some(text) = matches.get_one::<String>(&flag) else { continue };
            let origin = match matches.value_source(&flag) {
                Some(ValueSource::EnvVariable) => Origin::Variable(key.variable()),
                _ => Origin::Flag(flag),
            };
            self.set(key, from_text(key, text), origin)?;
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let path = path.display().to_string();
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            path: path.clone(),
            line: error.span().map_or(1, |span| line(span.start)),
            why: error.message().to_owned(),
        })?;
        let mut tables = vec![(String::new(), table.into_inner())];
        while let Some((prefix, table)) = tables.pop() {
            for (name, value) in table {
                let full = format!("{prefix}{}", name.get_ref());
                let at = line(name.span().start);
                match (KEYS.iter().find(|key| key.path == full), value.into_inner()) {
                    (Some(key), value) => {
                        self.set(key, from_toml(key, &value), Origin::File { path: path.clone(), line: at })?;
                    }
                    (None, DeValue::Table(inner)) if is_section(&full) => tables.push((full + ".", inner)),
                    (None, _) => return Err(ConfigError::UnknownKey { path, line: at, key: full }),
                }
            }
        }
        Ok(())
    }
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// A flag with its variable for every key.
pub(super) fn flags(command: Command) -> Command {
    command.args(KEYS.iter().map(|key| {
        let value = match key.kind {
            Kind::Number { unit: "", .. } => "N".to_owned(),
            Kind::Number { unit, .. } => unit.to_uppercase(),
            Kind::Choice(_) => "WORD".into(),
            Kind::Socket => "IP:PORT".into(),
            Kind::Founders => "ID=ADDRESS,…".into(),
            Kind::Modes => "NAME=MODE,…".into(),
            Kind::Text => "TEXT".into(),
        };
        Arg::new(key.flag()).long(key.flag()).env(key.variable()).value_name(value).help(key.describe())
    }))
}

fn from_text(key: &Key, text: &str) -> Result<Value, String> {
    match key.kind {
        Kind::Text if text.is_empty() => Err("it is empty".into()),
        Kind::Text => Ok(Value::Text(text.to_owned())),
        Kind::Socket => text
            .parse()
            .map(Value::Socket)
            .map_err(|_| format!("{text:?} is not an IP address and port, as 0.0.0.0:7400")),
        Kind::Number { min, max, .. } => {
            let number = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
            if (min..=max).contains(&number) {
                Ok(Value::Number(number))
            } else {
                Err(format!("{number} is out of bounds: {min} to {max} are allowed"))
            }
        }
        Kind::Choice(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
        Kind::Choice(words) => Err(format!("{text:?} is none of {}", words.join(", "))),
        Kind::Founders => founders(text.split(',').map(|part| {
            let (id, address) = part.split_once('=').ok_or_else(|| format!("{part:?} is not ID=HOST:PORT"))?;
            Ok((id.trim().to_owned(), address.trim().to_owned()))
        })),
        Kind::Modes => modes(text.split(',').filter(|part| !part.trim().is_empty()).map(|part| {
            let (name, mode) = part.split_once('=').ok_or_else(|| format!("{part:?} is not NAME=MODE"))?;
            Ok((name.trim().to_owned(), mode.trim().to_owned()))
        })),
    }
}

fn from_toml(key: &Key, value: &DeValue<'_>) -> Result<Value, String> {
    match (key.kind, value) {
        (Kind::Text | Kind::Socket | Kind::Choice(_), DeValue::String(text)) => from_text(key, text),
        (Kind::Number { .. }, DeValue::Integer(number)) if number.radix() == 10 => {
            from_text(key, &plain(number.as_str()))
        }
        (Kind::Founders, DeValue::Array(list)) => founders(list.iter().map(|entry| founder(entry.get_ref()))),
        (Kind::Modes, DeValue::Table(table)) => modes(table.iter().map(|(name, mode)| match mode.get_ref() {
            DeValue::String(mode) => Ok((name.get_ref().to_string(), mode.to_string())),
            // `a.b = "strong"` is a table `a` to TOML.
            _ => Err(format!(
                "{:?}: \"strong\" or \"eventual\" is expected; a name with a dot needs quotes",
                name.get_ref()
            )),
        })),
        (Kind::Modes, _) => Err("a table of names and modes is expected".into()),
        (Kind::Number { .. }, _) => Err("a decimal whole number is expected".into()),
        (Kind::Founders, _) => Err("[[founders]] tables with id and address are expected".into()),
        _ => Err("a text in quotes is expected".into()),
    }
}

/// TOML writes `1_000`.
fn plain(number: &str) -> String {
    number.replace('_', "")
}

fn founder(entry: &DeValue<'_>) -> Result<(String, String), String> {
    let DeValue::Table(table) = entry else { return Err("[[founders]] tables are expected".into()) };
    let (mut id, mut address) = (None, None);
    for (name, value) in table {
        match (name.get_ref().as_ref(), value.get_ref()) {
            ("id", DeValue::Integer(number)) => id = Some(plain(number.as_str())),
            ("address", DeValue::String(text)) => address = Some(text.to_string()),
            (other, _) => {
                return Err(format!("{other:?} in [[founders]]: a number `id` and a text `address` are expected"));
            }
        }
    }
    Ok((id.ok_or("a founder without `id`")?, address.ok_or("a founder without `address`")?))
}

fn founders(list: impl Iterator<Item = Result<(String, String), String>>) -> Result<Value, String> {
    let mut found = BTreeMap::new();
    for entry in list {
        let (id, address) = entry?;
        let node: NodeId = id.parse().map_err(|_| format!("{id:?} is not a node id"))?;
        if node.0 == 0 {
            return Err("node ids begin at 1".into());
        }
        super::check_address(&address)?;
        if found.values().any(|known| *known == address) {
            return Err(format!("two founders at {address}"));
        }
        if found.insert(node, address).is_some() {
            return Err(format!("founder {node} is there twice"));
        }
    }
    if found.is_empty() { Err("no founders".into()) } else { Ok(Value::Founders(found)) }
}

fn modes(list: impl Iterator<Item = Result<(String, String), String>>) -> Result<Value, String> {
    let mut found = BTreeMap::new();
    for entry in list {
        let (name, mode) = entry?;
        let name: NamespaceName = name.parse().map_err(|error| format!("{error}"))?;
        let mode: Mode = mode.parse().map_err(|error| format!("namespace {name}: {error}"))?;
        if found.insert(name.clone(), mode).is_some() {
            return Err(format!("namespace {name} is there twice"));
        }
    }
    Ok(Value::Modes(found))
}
