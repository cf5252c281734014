//! Values: from a text or from TOML to what is checked by itself.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use duet_proto::{ClusterName, Mode, NamespaceName, NodeId, limits};
use toml::{
    Spanned,
    de::{DeString, DeValue},
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::keys::{Key, Kind};

/// A checked value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A path, an address, a word or directives.
    Text(String),
    Cluster(ClusterName),
    /// `None`: off.
    Socket(Option<SocketAddr>),
    Number(u64),
    Founders(BTreeMap<NodeId, String>),
    Modes(BTreeMap<NamespaceName, Mode>),
}

/// What is wrong with a value; in the file, which part of it.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) span: Option<Range<usize>>,
    pub(super) why: String,
}

impl From<String> for Wrong {
    fn from(why: String) -> Wrong {
        Wrong { span: None, why }
    }
}

/// The value, or everything that is wrong with it.
pub(super) type Read = Result<Value, Vec<Wrong>>;

/// A value as a flag or a variable gives it.
pub(super) fn from_text(key: &Key, text: &str) -> Read {
    let pairs = |shape: &str| -> Vec<Result<Pair, Wrong>> {
        let part = |part: &str| match part.split_once('=') {
            Some((name, value)) => Ok(Pair { span: None, name: name.trim().into(), value: value.trim().into() }),
            None => Err(format!("{part:?} is not {shape}").into()),
        };
        text.split(',').filter(|text| !text.trim().is_empty()).map(part).collect()
    };
    match key.kind {
        Kind::Founders => founders(pairs("ID=HOST:PORT")),
        Kind::Modes => modes(pairs("NAME=MODE")),
        _ => one(key.kind, text).map_err(|why| vec![why.into()]),
    }
}

/// Values that are not lists.
fn one(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        _ if text.is_empty() => Err("it is empty".into()),
        Kind::Cluster => ClusterName::new(text).map(Value::Cluster).map_err(|error| error.to_string()),
        Kind::Path => Ok(Value::Text(text.to_owned())),
        Kind::Address => address(text).map(|()| Value::Text(text.to_owned())),
        Kind::Directives => directives(text).map(|()| Value::Text(text.to_owned())),
        Kind::Socket => match text.parse::<SocketAddr>() {
            Ok(found) => socket(found),
            Err(_) => Err(format!("{text:?} is not an IP address and port, as 0.0.0.0:7400")),
        },
        Kind::Loopback if text == "off" => Ok(Value::Socket(None)),
        Kind::Loopback => match text.parse::<SocketAddr>() {
            Ok(found) if found.ip().is_loopback() => socket(found),
            Ok(found) => Err(format!(
                "{found} is not a loopback address: it is served without encryption, to this machine only"
            )),
            Err(_) => Err(format!("{text:?} is neither an IP address and port nor `off`")),
        },
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
        Kind::Founders | Kind::Modes => Err("a list is expected".into()),
    }
}

/// What is filtered by: a word that is no level would be a target, and nothing else would be told any more.
fn directives(text: &str) -> Result<(), String> {
    let strange = |part: &&str| !part.is_empty() && !part.contains('=') && part.parse::<LevelFilter>().is_err();
    if let Some(word) = text.split(',').find(strange) {
        return Err(format!("{word:?} is none of off, error, warn, info, debug, trace, and no TARGET=LEVEL"));
    }
    EnvFilter::try_new(text).map(drop).map_err(|error| error.to_string())
}

fn socket(found: SocketAddr) -> Result<Value, String> {
    if found.port() == 0 {
        return Err(format!("{found}: port 0 would be another one at every start"));
    }
    Ok(Value::Socket(Some(found)))
}

/// `HOST:PORT`, where the host may be a name, that others can reach.
pub(super) fn address(text: &str) -> Result<(), String> {
    let valid = match text.rsplit_once(':') {
        Some((host, port)) => {
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            !host.is_empty() && text.len() <= 260 && port.parse::<u16>().is_ok_and(|port| port != 0)
        }
        None => false,
    };
    match text.parse::<SocketAddr>() {
        Ok(found) if found.ip().is_unspecified() => Err(format!("nobody can reach {text}: set HOST:PORT")),
        _ if valid => Ok(()),
        _ => Err(format!("{text:?} is not HOST:PORT")),
    }
}

/// The address, if it is not a host's name.
pub(super) fn literal(address: &str) -> Option<IpAddr> {
    address.parse::<SocketAddr>().ok().map(|address| address.ip())
}

/// A value as the file gives it.
pub(super) fn from_toml(key: &Key, value: &Spanned<DeValue<'_>>) -> Read {
    let expected = |what: &str| Err(vec![Wrong::from(format!("{what} is expected"))]);
    match (key.kind, value.get_ref()) {
        (Kind::Founders, DeValue::Array(list)) => founders(list.iter().flat_map(founder).collect()),
        (Kind::Founders, _) => expected("a list of [[founders]] tables with id and address"),
        (Kind::Modes, DeValue::Table(table)) => modes(table.iter().map(mode).collect()),
        (Kind::Modes, _) => expected("a table of names and modes"),
        (Kind::Number { .. }, DeValue::Integer(number)) if number.radix() == 10 => {
            from_text(key, &plain(number.as_str()))
        }
        (Kind::Number { .. }, _) => expected("a decimal whole number"),
        (_, DeValue::String(text)) => from_text(key, text),
        _ => expected("a text in quotes"),
    }
}

/// TOML writes `1_000`.
fn plain(number: &str) -> String {
    number.replace('_', "")
}

/// An entry of a list.
struct Pair {
    span: Option<Range<usize>>,
    name: String,
    value: String,
}

impl Pair {
    fn wrong(&self, why: String) -> Wrong {
        Wrong { span: self.span.clone(), why }
    }
}

fn mode((name, mode): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)) -> Result<Pair, Wrong> {
    let span = Some(name.span());
    match mode.get_ref() {
        DeValue::String(mode) => Ok(Pair { span, name: name.get_ref().to_string(), value: mode.to_string() }),
        // `a.b = "strong"` is a table `a` to TOML.
        _ => {
            let why = format!(
                "{:?}: \"strong\" or \"eventual\" is expected; a name with a dot needs quotes",
                name.get_ref()
            );
            Err(Wrong { span, why })
        }
    }
}

/// One `[[founders]]` table, or everything that is wrong with it.
fn founder(entry: &Spanned<DeValue<'_>>) -> Vec<Result<Pair, Wrong>> {
    let wrong = |span: Range<usize>, why: &str| Err(Wrong { span: Some(span), why: why.into() });
    let DeValue::Table(table) = entry.get_ref() else {
        return vec![wrong(entry.span(), "a [[founders]] table is expected")];
    };
    let misfits: Vec<Result<Pair, Wrong>> = table.iter().filter_map(misfit).map(Err).collect();
    if !misfits.is_empty() {
        return misfits;
    }
    let field = |field: &str| table.iter().find(|(name, _)| name.get_ref() == field).map(|(_, value)| value);
    vec![match (field("id").map(Spanned::get_ref), field("address")) {
        (Some(DeValue::Integer(id)), Some(address)) => {
            let value = address.get_ref().as_str().unwrap_or_default().to_owned();
            Ok(Pair { span: Some(address.span()), name: plain(id.as_str()), value })
        }
        (None, _) => wrong(entry.span(), "a founder without `id`"),
        _ => wrong(entry.span(), "a founder without `address`"),
    }]
}

/// What is wrong with the name or the type of a field of a `[[founders]]` table.
fn misfit((name, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)) -> Option<Wrong> {
    let wrong = |span, why: String| Some(Wrong { span: Some(span), why });
    match (name.get_ref().as_ref(), value.get_ref()) {
        ("id", DeValue::Integer(_)) | ("address", DeValue::String(_)) => None,
        ("id", _) => wrong(value.span(), "`id`: a whole number is expected".into()),
        ("address", _) => wrong(value.span(), "`address`: a text in quotes is expected".into()),
        (other, _) => {
            wrong(name.span(), format!("{other:?} in [[founders]]: only `id` and `address` are known there"))
        }
    }
}

/// Every pair that was read and passes `add`, or everything that is wrong.
fn collect(
    list: Vec<Result<Pair, Wrong>>,
    mut add: impl FnMut(&Pair) -> Result<(), String>,
) -> Result<(), Vec<Wrong>> {
    let faults: Vec<Wrong> = list
        .into_iter()
        .filter_map(|pair| pair.and_then(|pair| add(&pair).map_err(|why| pair.wrong(why))).err())
        .collect();
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn founders(list: Vec<Result<Pair, Wrong>>) -> Read {
    let mut found: BTreeMap<NodeId, String> = BTreeMap::new();
    // The same address in other letters or digits is the same.
    let normal = |text: &str| text.parse::<SocketAddr>().map_or_else(|_| text.to_lowercase(), |a| a.to_string());
    collect(list, |Pair { name, value, .. }| {
        let node: NodeId = name.parse().map_err(|_| format!("{name:?} is not a node id"))?;
        if node.0 == 0 {
            return Err("node ids begin at 1".into());
        }
        address(value)?;
        if let Some((other, _)) = found.iter().find(|(_, known)| normal(known) == normal(value)) {
            return Err(format!("founders {other} and {node} are both at {value}"));
        }
        match found.insert(node, value.clone()) {
            Some(_) => Err(format!("founder {node} is there twice")),
            None => Ok(()),
        }
    })?;
    match found.len() {
        0 => Err(vec![Wrong::from("no founders".to_owned())]),
        count if count > limits::MEMBERS => {
            Err(vec![format!("{count} founders: at most {} are allowed", limits::MEMBERS).into()])
        }
        _ => Ok(Value::Founders(found)),
    }
}

fn modes(list: Vec<Result<Pair, Wrong>>) -> Read {
    let mut found = BTreeMap::new();
    collect(list, |pair| {
        let name: NamespaceName = pair.name.parse().map_err(|error| format!("{error}"))?;
        let mode: Mode = pair.value.parse().map_err(|error| format!("namespace {name}: {error}"))?;
        match found.insert(name.clone(), mode) {
            Some(_) => Err(format!("namespace {name} is there twice")),
            None => Ok(()),
        }
    })?;
    Ok(Value::Modes(found))
}
