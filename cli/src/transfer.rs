//! `import` and `export`.
//!
//! An import keeps many writes in flight and answers two questions all the time: which writes may not be in flight
//! together (two of one key: the later record must win), and up to which byte everything is acknowledged (what the
//! state file says, so that an interruption repeats little and loses nothing).

use std::{
    collections::{HashSet, VecDeque},
    fs,
    io::{self, BufReader, BufWriter, Cursor, Read, Write},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use duet_client::{Client, Namespace};
use futures::{StreamExt, TryStreamExt, stream::FuturesUnordered};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    args::{Export, Import},
    failure::{Failure, about},
    files::{Format, HEAD, ImportState, ReadError, Record, Records, resume_export},
    output::{Printer, count, say, size},
    verbs::{crossing, open},
};

/// How often an import writes its state.
const SAVE_EVERY: Duration = Duration::from_millis(500);

/// What an import did.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Imported {
    /// Records written, now.
    pub(crate) records: u64,
    /// Bytes of the input that they took.
    pub(crate) bytes: u64,
    /// Records that an earlier run had written.
    pub(crate) skipped: u64,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// `duet import`
pub(crate) async fn import(client: &Client, verb: &Import, printer: Printer) -> Result<(), Failure> {
    let done = import_file(&open(client, &verb.namespace, false)?, verb).await?;
    printer.answer(&done, || {
        let rate = done.records as f64 / done.seconds.max(1e-9);
        let skipped = if done.skipped == 0 { String::new() } else { format!(", {} before", count(done.skipped)) };
        format!(
            "{} records ({}) in {:.1} s, {} a second{skipped}",
            count(done.records),
            size(done.bytes),
            done.seconds,
            count(rate as u64),
        )
    })
}

/// Imports a file, with progress on standard error.
pub(crate) async fn import_file(namespace: &Namespace, verb: &Import) -> Result<Imported, Failure> {
    let format = verb.format.unwrap_or_else(|| Format::of(&verb.file));
    let (mut input, len) = source(&verb.file)?;
    let mut head = Vec::new();
    if verb.state.is_some() {
        // Only then: a pipe may take long to give so much.
        input.by_ref().take(HEAD as u64).read_to_end(&mut head).map_err(about(&verb.file))?;
    }
    let fresh = ImportState { namespace: verb.namespace.to_string(), format, offset: 0, records: 0, head: 0 };
    let state = match verb.state.as_deref().map(ImportState::load).transpose()?.flatten() {
        Some(state) => state.belongs(&fresh, &head)?,
        None => fresh,
    };
    let bar = bar(len);
    bar.set_position(state.offset);
    let input = Cursor::new(head.clone()).chain(input);
    let mut writer =
        Writer { namespace, verb, head, bar: bar.clone(), state, pending: VecDeque::new(), keys: HashSet::new() };
    // A state that cannot be written is to be known before the first record is.
    writer.save()?;
    let records = read_ahead(input, format, verb.delimiter, writer.state.offset);
    let started = Instant::now();
    let result = writer.run(records).await;
    bar.finish_and_clear();
    let mut done = result?;
    done.seconds = started.elapsed().as_secs_f64();
    Ok(done)
}

/// The file, and its length if that is known.
fn source(path: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = fs::File::open(path).map_err(about(path))?;
    let len = file.metadata().map_err(about(path))?;
    Ok((Box::new(file), len.is_file().then_some(len.len())))
}

fn bar(len: Option<u64>) -> ProgressBar {
    let (bar, template) = match len {
        Some(len) => (ProgressBar::new(len), "  {bar:40.cyan/dim} {percent:>3} %  {msg}  {elapsed} (still {eta})"),
        None => (ProgressBar::new_spinner(), "  {spinner} {bytes}  {msg}  {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

/// Reads and parses on a thread of its own, a little ahead.
fn read_ahead(
    input: impl Read + Send + 'static,
    format: Format,
    delimiter: u8,
    offset: u64,
) -> mpsc::Receiver<Result<Record, ReadError>> {
    let (to, records) = mpsc::channel(1024);
    tokio::task::spawn_blocking(move || {
        let mut input = BufReader::with_capacity(1 << 18, input);
        let skipped = io::copy(&mut input.by_ref().take(offset), &mut io::sink());
        if let Err(error) = skipped {
            let _ = to.blocking_send(Err(error.into()));
            return;
        }
        for record in Records::new(input, format, delimiter, offset) {
            if to.blocking_send(record).is_err() {
                return;
            }
        }
    });
    records
}

struct Writer<'a> {
    namespace: &'a Namespace,
    verb: &'a Import,
    head: Vec<u8>,
    bar: ProgressBar,
    state: ImportState,
    /// Records in order, from the first that is not acknowledged: where each ends, and whether it is.
    pending: VecDeque<(u64, bool)>,
    /// Keys in flight.
    keys: HashSet<Bytes>,
}

impl Writer<'_> {
    async fn run(mut self, mut records: mpsc::Receiver<Result<Record, ReadError>>) -> Result<Imported, Failure> {
        let (from, skipped) = (self.state.offset, self.state.records);
        let mut flying = FuturesUnordered::new();
        let mut next: Option<Record> = None;
        let mut end: Option<Result<(), Failure>> = None;
        let (mut first, mut saved) = (skipped, Instant::now());
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        while end.is_none() || !flying.is_empty() {
            // A record whose key is in flight waits until it is not.
            if end.is_none()
                && flying.len() < self.verb.concurrency as usize
                && let Some(record) = next.take_if(|r| !self.keys.contains(&r.key))
            {
                let number = first + self.pending.len() as u64;
                self.pending.push_back((record.end, false));
                self.keys.insert(record.key.clone());
                let namespace = self.namespace;
                flying.push(async move {
                    let result = namespace.put(record.key.clone(), record.value).await;
                    (number, record.key, result)
                });
            }
            let wants = next.is_none() && end.is_none() && flying.len() < self.verb.concurrency as usize;
            tokio::select! {
                record = records.recv(), if wants => match record {
                    Some(Ok(record)) => next = Some(record),
                    Some(Err(error)) => end = Some(Err(Failure::failed(format!("{}: {error}", self.verb.file.display())))),
                    None => end = Some(Ok(())),
                },
                Some((number, key, result)) = flying.next() => {
                    self.keys.remove(&key);
                    match result {
                        Ok(_) => first = self.acknowledged(number, first),
                        Err(error) => {
                            let what = format!("writing {}", crate::text::shorten(&key, 40));
                            end = Some(Err(Failure::from(error).context(what)));
                        }
                    }
                }
                _ = &mut interrupted, if end.is_none() => end = Some(Err(Failure::failed("interrupted"))),
            }
            if saved.elapsed() > SAVE_EVERY {
                if let Err(failure) = self.save() {
                    end.get_or_insert(Err(failure));
                }
                saved = Instant::now();
            }
        }
        self.finish(end.unwrap_or(Ok(())))?;
        Ok(Imported { records: self.state.records - skipped, bytes: self.state.offset - from, skipped, seconds: 0.0 })
    }

    /// Takes note of one answer; returns the number of the first record without one.
    fn acknowledged(&mut self, number: u64, mut first: u64) -> u64 {
        if let Some(slot) = self.pending.get_mut((number - first) as usize) {
            slot.1 = true;
        }
        while let Some((end, true)) = self.pending.front() {
            self.state.offset = *end;
            self.state.records += 1;
            self.pending.pop_front();
            first += 1;
        }
        self.bar.set_position(self.state.offset);
        self.bar.set_message(format!("{} records", count(self.state.records)));
        first
    }

    fn save(&mut self) -> Result<(), Failure> {
        let Some(path) = &self.verb.state else { return Ok(()) };
        let seen = usize::try_from(self.state.offset).unwrap_or(HEAD).min(self.head.len());
        self.state.head = crc32c::crc32c(&self.head[..seen]);
        self.state.save(path)
    }

    fn finish(&mut self, end: Result<(), Failure>) -> Result<(), Failure> {
        match (end, &self.verb.state) {
            (Ok(()), Some(path)) => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(about(path)(error)),
                _ => Ok(()),
            },
            (Ok(()), None) => Ok(()),
            (Err(failure), state) => {
                let hint = match (state, self.save()) {
                    (None, _) => "--state FILE would let it go on from there".to_owned(),
                    (Some(_), Ok(())) => "the same command goes on from there".to_owned(),
                    (Some(_), Err(unsaved)) => format!("the state does not say so: {unsaved}"),
                };
                self.bar.suspend(|| say(format!("{} records are written; {hint}", count(self.state.records))));
                Err(failure)
            }
        }
    }
}

/// What an export did.
#[derive(Debug, Default, Serialize)]
struct Exported {
    records: u64,
    bytes: u64,
    seconds: f64,
}

/// `duet export`
pub(crate) async fn export(client: &Client, verb: &Export, printer: Printer) -> Result<(), Failure> {
    let namespace = open(client, &verb.namespace, verb.local)?;
    let format = verb.format.unwrap_or_else(|| Format::of(&verb.file));
    let mut range = verb.range.resolve()?;
    let to_stdout = verb.file == Path::new("-");
    if to_stdout && verb.resume {
        return Err(Failure::usage("standard output cannot be resumed"));
    }
    let mut options = fs::File::options();
    options.read(true).write(true).create(true).truncate(!verb.resume);
    let mut file = None;
    if verb.resume {
        let mut begun = options.open(&verb.file).map_err(about(&verb.file))?;
        if let Some(last) = resume_export(&mut begun, format)? {
            // The least key above the last one.
            let after = Bytes::from([&last[..], &[0]].concat());
            range.start = range.start.max(after);
        }
        file = Some(begun);
    }
    let started = Instant::now();
    let mut done = Exported::default();
    let bar = bar(None);
    let mut entries = namespace.scan(range);
    let mut next = entries.try_next().await?;
    // Not before the cluster has answered: what an earlier export wrote would be lost to a mistyped name. And not in a
    // file beside it: what an interruption leaves is what --resume goes on from.
    if file.is_none() && !to_stdout {
        file = Some(options.open(&verb.file).map_err(about(&verb.file))?);
    }
    let out: Box<dyn Write> = match &file {
        Some(file) => Box::new(file.try_clone()?),
        None => Box::new(io::stdout()),
    };
    let mut to = BufWriter::with_capacity(1 << 18, out);
    while let Some(entry) = next {
        if let Some(crossed) = entries.crossed() {
            bar.suspend(|| say(crossing(&verb.namespace, &crossed)));
        }
        done.bytes += format.write(&mut to, &entry.key, &entry.value).map_err(about(&verb.file))?;
        done.records += 1;
        if done.records % 1000 == 0 {
            bar.set_position(done.bytes);
            bar.set_message(format!("{} records", count(done.records)));
        }
        next = entries.try_next().await?;
    }
    to.flush().map_err(about(&verb.file))?;
    // A pipe, such as /dev/stdout, cannot be synced.
    if let Some(file) = file
        && file.metadata()?.is_file()
    {
        file.sync_all().map_err(about(&verb.file))?;
    }
    bar.finish_and_clear();
    done.seconds = started.elapsed().as_secs_f64();
    let text = format!("{} records ({}) in {:.1} s", count(done.records), size(done.bytes), done.seconds);
    if to_stdout {
        say(text);
        return Ok(());
    }
    printer.answer(&done, || text)
}
