//! The verbs that talk to a cluster: data here, the others in modules of their own.

use std::{
    ffi::OsString,
    io::{IsTerminal, Read},
    path::Path,
};

use bytes::Bytes;
use duet_client::{Builder, Client, Consistency, Namespace, Value};
use duet_proto::{Change, Compare, Expect, KeyRange, Mutation, NamespaceName, Resource, Stamp, limits};
use duet_transport::{Part, TlsError};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use crate::{
    args::{Cas, Command, Del, Escapes, Get, Globals, Put, Range, Scan, Txn},
    bench, cluster, demo,
    failure::{Exit, Failure, about},
    output::{Printer, say},
    text::{Text, escape},
    top, transfer,
};

/// Connects and does what was asked.
///
/// # Errors
/// Whatever the verb can end with.
pub async fn run(command: Command, globals: &Globals, printer: Printer) -> Result<Exit, Failure> {
    if let Command::Demo(options) = command {
        return demo::run(&options, globals).await;
    }
    if let Command::Top(options) = &command {
        top::fits(options, printer)?;
    }
    let client = connect(globals).await?;
    let done = match command {
        Command::Get(verb) => get(&client, &verb, printer).await,
        Command::Put(verb) => put(&client, &verb, printer).await,
        Command::Del(verb) => del(&client, &verb, printer).await,
        Command::Scan(verb) => scan(&client, &verb, printer).await,
        Command::Cas(verb) => cas(&client, &verb, printer).await,
        Command::Txn(verb) => return txn(&client, &verb, printer).await,
        Command::Import(verb) => transfer::import(&client, &verb, printer).await,
        Command::Export(verb) => transfer::export(&client, &verb, printer).await,
        Command::Ns(verb) => return cluster::namespaces(&client, verb, printer).await,
        Command::Node(verb) => cluster::nodes(&client, verb, printer).await,
        Command::Status => return cluster::status(&client, printer).await,
        Command::Top(verb) => return top::run(&client, &verb, printer).await,
        Command::Bench(verb) => return bench::run(&client, &verb, globals, printer).await,
        // The caller has done these.
        Command::Pki(_) | Command::Playground(_) | Command::Demo(_) => Ok(()),
        Command::Completion { .. } | Command::Leashed { .. } => Ok(()),
    };
    done.map(|()| Exit::Done)
}

/// A client as the globals say.
pub(crate) async fn connect(globals: &Globals) -> Result<Client, Failure> {
    Ok(builder(globals)?.connect().await?)
}

/// What makes a client as the globals say.
pub(crate) fn builder(globals: &Globals) -> Result<Builder, Failure> {
    globals.complete()?;
    let (Some(ca), Some(cert), Some(key)) = (&globals.cacert, &globals.cert, &globals.private_key) else {
        return Err(Failure::usage("certificates are missing"));
    };
    let tls = duet_transport::Tls::load(ca, cert, key).map_err(|error| {
        let file = match &error {
            TlsError::Read { .. } => return Failure::failed(error.to_string()),
            TlsError::Invalid { part: Part::Authority, .. } | TlsError::NotNow { part: Part::Authority, .. } => ca,
            TlsError::Invalid { part: Part::Key, .. } | TlsError::KeyMismatch => key,
            _ => cert,
        };
        Failure::failed(error.to_string()).context(file.display())
    })?;
    let builder = Client::builder().endpoints(globals.endpoints.clone()).tls(tls).timeout(globals.timeout);
    Ok(builder.session(!globals.no_session))
}

async fn get(client: &Client, verb: &Get, printer: Printer) -> Result<(), Failure> {
    let namespace = open(client, &verb.namespace, verb.local)?;
    let key = verb.escapes.bytes(&verb.key)?;
    let Some(Value { value, stamp }) = namespace.get(key.clone()).await? else {
        return Err(Failure::not_found(format!("{}: no such key: {}", verb.namespace, escape(&key))));
    };
    if printer.json() {
        return printer.answer(&Row::new(key, Some(value), Some(stamp)), String::new);
    }
    let mut bytes = if verb.version { format!("{stamp}\t").into_bytes() } else { Vec::new() };
    bytes.extend_from_slice(&value);
    if !verb.raw {
        bytes.push(b'\n');
    }
    printer.bytes(&bytes)
}

async fn put(client: &Client, verb: &Put, printer: Printer) -> Result<(), Failure> {
    let namespace = open(client, &verb.namespace, false)?;
    let key = verb.escapes.bytes(&verb.key)?;
    let value = value(&verb.value, verb.escapes).await?;
    let stamp = namespace.put(key.clone(), value).await?;
    printer.answer(&Row::new(key, None, Some(stamp)), String::new)
}

async fn del(client: &Client, verb: &Del, printer: Printer) -> Result<(), Failure> {
    let namespace = open(client, &verb.namespace, false)?;
    let mut deleted = Vec::new();
    for key in &verb.keys {
        let key = verb.escapes.bytes(key)?;
        let stamp = namespace.delete(key.clone()).await?;
        deleted.push(Row::new(key, None, Some(stamp)));
    }
    printer.answer(&serde_json::json!({ "deleted": deleted }), String::new)
}

async fn scan(client: &Client, verb: &Scan, printer: Printer) -> Result<(), Failure> {
    let namespace = open(client, &verb.namespace, verb.local)?;
    let page = u32::try_from(verb.limit.saturating_add(1)).unwrap_or(u32::MAX).min(limits::SCAN_ENTRIES);
    let mut entries = namespace.scan(verb.range.resolve()?).page(page).limit(verb.limit.saturating_add(1));
    if verb.keys_only {
        entries = entries.keys_only();
    }
    let (mut rows, mut shown, mut more) = (Vec::new(), 0, false);
    let mut lines = String::new();
    while let Some(entry) = entries.try_next().await? {
        if let Some(crossed) = entries.crossed() {
            say(crossing(&verb.namespace, &crossed));
        }
        if shown == verb.limit {
            more = true;
            break;
        }
        shown += 1;
        if printer.json() {
            rows.push(Row::new(entry.key, (!verb.keys_only).then_some(entry.value), Some(entry.stamp)));
            continue;
        }
        lines += &escape(&entry.key);
        if !verb.keys_only {
            lines.push('\t');
            lines += &escape(&entry.value);
        }
        lines.push('\n');
        if lines.len() > 1 << 16 {
            printer.bytes(lines.as_bytes())?;
            lines.clear();
        }
    }
    if printer.json() {
        return printer.answer(&serde_json::json!({ "entries": rows, "more": more }), String::new);
    }
    printer.bytes(lines.as_bytes())?;
    if more {
        say(format!("there is more: --limit {} was reached", verb.limit));
    }
    Ok(())
}

/// What to know of a listing that goes on in another epoch.
pub(crate) fn crossing(namespace: &NamespaceName, crossed: &duet_client::Crossed) -> String {
    let (key, epoch, mode) = (escape(&crossed.last), crossed.epoch, crossed.mode);
    format!("{namespace} was switched meanwhile: keys after {key} are from epoch {epoch} ({mode})")
}

async fn cas(client: &Client, verb: &Cas, printer: Printer) -> Result<(), Failure> {
    let namespace = open(client, &verb.namespace, false)?;
    let key = verb.escapes.bytes(&verb.key)?;
    let expect = match verb.expect {
        Some(stamp) => Expect::Stamp(stamp),
        None if verb.absent => Expect::Absent,
        None => Expect::Present,
    };
    let change = match &verb.value {
        Some(text) => Change::Put(value(text, verb.escapes).await?),
        None => Change::Delete,
    };
    let stamp = namespace.cas(key.clone(), expect, change).await?;
    printer.answer(&Row::new(key, None, Some(stamp)), || stamp.to_string())
}

/// A transaction as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TxnDocument {
    compare: Vec<CompareDocument>,
    then: Vec<ChangeDocument>,
    #[serde(rename = "else")]
    otherwise: Vec<ChangeDocument>,
    read: Vec<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompareDocument {
    key: Text,
    version: Option<String>,
    #[serde(default)]
    absent: bool,
    #[serde(default)]
    present: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeDocument {
    put: Option<Text>,
    value: Option<Text>,
    delete: Option<Text>,
}

impl CompareDocument {
    fn resolve(self) -> Result<Compare, String> {
        let expect = match (self.version, self.absent, self.present) {
            (Some(version), false, false) => Expect::Stamp(version.parse::<Stamp>().map_err(|e| e.to_string())?),
            (None, true, false) => Expect::Absent,
            (None, false, true) => Expect::Present,
            _ => return Err("a compare needs one of \"version\", \"absent\" and \"present\"".into()),
        };
        Ok(Compare { key: self.key.0, expect })
    }
}

impl ChangeDocument {
    fn resolve(self) -> Result<Mutation, String> {
        match (self.put, self.value, self.delete) {
            (Some(key), Some(value), None) => Ok(Mutation::put(key.0, value.0)),
            (None, None, Some(key)) => Ok(Mutation::delete(key.0)),
            _ => Err("a change is {\"put\":KEY,\"value\":VALUE} or {\"delete\":KEY}".into()),
        }
    }
}

/// What a transaction compares, does, does otherwise, and reads.
type TxnParts = (Vec<Compare>, Vec<Mutation>, Vec<Mutation>, Vec<Bytes>);

fn parse_txn(text: &[u8]) -> Result<TxnParts, String> {
    let object: serde_json::Map<_, _> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let document: TxnDocument = serde_json::from_value(object.into()).map_err(|e| e.to_string())?;
    let changes =
        |list: Vec<ChangeDocument>| list.into_iter().map(ChangeDocument::resolve).collect::<Result<Vec<_>, _>>();
    let compares = document.compare.into_iter().map(CompareDocument::resolve).collect::<Result<_, _>>()?;
    let reads = document.read.into_iter().map(|key| key.0).collect();
    Ok((compares, changes(document.then)?, changes(document.otherwise)?, reads))
}

async fn txn(client: &Client, verb: &Txn, printer: Printer) -> Result<Exit, Failure> {
    let text = if verb.file == Path::new("-") {
        standard_input().await?
    } else {
        std::fs::read(&verb.file).map_err(about(&verb.file))?
    };
    let (compares, then, otherwise, reads) =
        parse_txn(&text).map_err(|why| Failure::usage(format!("not a transaction: {why}")))?;
    let namespace = open(client, &verb.namespace, false)?;
    let mut txn = namespace.txn();
    txn = compares.into_iter().fold(txn, |txn, c| txn.when(c.key, c.expect));
    txn = then.into_iter().fold(txn, |txn, m| txn.then(m.key, m.change));
    txn = otherwise.into_iter().fold(txn, |txn, m| txn.otherwise(m.key, m.change));
    let result = reads.iter().cloned().fold(txn, duet_client::Txn::read).commit().await?;
    let rows: Vec<Row> = reads
        .into_iter()
        .zip(result.reads)
        .map(|(key, found)| {
            let (stamp, value) = found.unzip();
            Row::new(key, value, stamp)
        })
        .collect();
    let document = serde_json::json!({ "held": result.held, "version": result.stamp.to_string(), "reads": rows });
    printer.answer(&document, || {
        let mut text = format!("{} {}\n", if result.held { "then" } else { "else" }, result.stamp);
        for row in &rows {
            let value = row.value.as_ref().map_or_else(|| "(no value)".into(), |v| escape(&v.0));
            text += &format!("{}\t{value}\n", escape(&row.key.0));
        }
        text
    })?;
    Ok(if result.held { Exit::Done } else { Exit::NotFound })
}

/// A key, and what there is to say about it.
#[derive(Debug, Serialize)]
struct Row {
    key: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

impl Row {
    fn new(key: Bytes, value: Option<Bytes>, stamp: Option<Stamp>) -> Row {
        Row { key: Text(key), value: value.map(Text), version: stamp.map(|s| s.to_string()) }
    }
}

impl Range {
    /// The range in bytes.
    pub(crate) fn resolve(&self) -> Result<KeyRange, Failure> {
        if let Some(prefix) = &self.prefix {
            return Ok(KeyRange::prefix(self.escapes.bytes(prefix)?));
        }
        let bytes = |text: &Option<OsString>| text.as_ref().map(|t| self.escapes.bytes(t)).transpose();
        Ok(KeyRange { start: bytes(&self.from)?.unwrap_or_default(), end: bytes(&self.to)? })
    }
}

pub(crate) fn open(client: &Client, name: &NamespaceName, local: bool) -> Result<Namespace, Failure> {
    let namespace = client.namespace(name.as_str())?;
    Ok(if local { namespace.consistency(Consistency::Local) } else { namespace })
}

async fn value(argument: &OsString, escapes: Escapes) -> Result<Bytes, Failure> {
    if argument == "-" { Ok(standard_input().await?.into()) } else { Ok(escapes.bytes(argument)?) }
}

/// All of standard input, up to what the largest value or transaction can need.
async fn standard_input() -> Result<Vec<u8>, Failure> {
    let most = (4 * limits::VALUE_MAX) as u64;
    let read = move || {
        let input = std::io::stdin();
        if input.is_terminal() {
            say("reading standard input; Ctrl-D ends it");
        }
        let mut bytes = Vec::new();
        input.lock().take(most + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = tokio::task::spawn_blocking(read).await.map_err(|e| Failure::failed(e.to_string()))??;
    let size = bytes.len() as u64;
    if size > most {
        return Err(
            duet_proto::Error::TooLarge { what: Resource::Value, size, limit: limits::VALUE_MAX as u64 }.into()
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_read() {
        let text = br#"{"compare":[{"key":"a","version":"1-5.0-1"},{"key":"b","absent":true}],
            "then":[{"put":"a","value":{"base64":"/w=="}},{"delete":"b"}],"read":["a"]}"#;
        let (compares, then, otherwise, reads) = parse_txn(text).unwrap();
        assert_eq!(compares.len(), 2);
        assert_eq!(then, [Mutation::put("a", &b"\xff"[..]), Mutation::delete("b")]);
        assert!(otherwise.is_empty());
        assert_eq!(reads, ["a"]);
    }

    #[test]
    fn what_is_not_a_transaction_is_refused() {
        for bad in [
            "",
            "[]",
            r#"{"when":[]}"#,
            r#"{"compare":[{"key":"a"}]}"#,
            r#"{"compare":[{"key":"a","absent":true,"present":true}]}"#,
            r#"{"compare":[{"key":"a","version":"new"}]}"#,
            r#"{"then":[{"put":"a"}]}"#,
            r#"{"then":[{"put":"a","value":"1","delete":"b"}]}"#,
        ] {
            assert!(parse_txn(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
