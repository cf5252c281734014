//! The formats of `import` and `export`, and the state that lets an interrupted import go on.
//!
//! | format | a record | binary |
//! | --- | --- | --- |
//! | JSON lines | `{"key":"k","value":"v"}` and a newline; other fields are ignored | `{"base64":"…"}` for a string |
//! | tab-separated | the key, a tab, the value and a newline, both [escaped](crate::text::escape) | `\xNN` |
//!
//! Both are read with a bound on the length of a line, tell where each record ends (what an import has done is a
//! number of bytes), and pass over empty lines.

use std::{
    fs,
    io::{self, BufRead, Read, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::ValueEnum;
use duet_proto::limits;
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, about},
    text::{Text, escape, unescape},
};

/// How records are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A JSON object per line.
    Jsonl,
    /// A key, a tab and a value per line.
    Tsv,
}

impl Format {
    /// What the name of a file says: `.tsv`, `.tab` and `.txt` are tab-separated, all else is JSON lines.
    #[must_use]
    pub fn of(path: &Path) -> Format {
        match path.extension().and_then(|e| e.to_str()) {
            Some("tsv" | "tab" | "txt") => Format::Tsv,
            _ => Format::Jsonl,
        }
    }

    /// Writes one record; returns how many bytes it took.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(self, to: &mut impl Write, key: &Bytes, value: &Bytes) -> io::Result<u64> {
        let mut line = match self {
            Format::Jsonl => serde_json::to_string(&Line { key: Text(key.clone()), value: Text(value.clone()) })?,
            Format::Tsv => format!("{}\t{}", escape(key), escape(value)),
        };
        line.push('\n');
        to.write_all(line.as_bytes())?;
        Ok(line.len() as u64)
    }

    fn parse(self, line: &[u8], delimiter: u8) -> Result<(Bytes, Bytes), String> {
        match self {
            Format::Jsonl => {
                // It counts lines, too, of which there is one here; whoever reads this knows which of the file it is.
                let why = |e: serde_json::Error| e.to_string().replace(" at line 1 column ", " at column ");
                let Line { key, value } = serde_json::from_slice(line).map_err(why)?;
                Ok((key.0, value.0))
            }
            Format::Tsv => {
                let at = line.iter().position(|b| *b == delimiter).ok_or("no delimiter between key and value")?;
                let field = |text: &[u8]| unescape(text).map(Bytes::from).map_err(|e| e.to_string());
                Ok((field(&line[..at])?, field(&line[at + 1..])?))
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: Text,
    value: Text,
}

/// One record of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Where it ends in the file, in bytes.
    pub end: u64,
}

/// A line that is not a record.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is not a record.
    #[error("line {line}: {why}")]
    Line {
        /// Which, from 1, counted from where reading began.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// The longest line that is read: the largest key and value, each byte in its longest spelling (`\u0000` in JSON).
const LINE_MAX: u64 = 6 * (limits::VALUE_MAX + limits::KEY_MAX) as u64 + 256;

/// The records of a file, in order. Ends after the first error.
#[derive(Debug)]
pub struct Records<R> {
    from: R,
    format: Format,
    delimiter: u8,
    line: u64,
    end: u64,
    failed: bool,
}

impl<R: BufRead> Records<R> {
    /// Reads from where `from` stands, which is `start` bytes into the file.
    pub fn new(from: R, format: Format, delimiter: u8, start: u64) -> Records<R> {
        Records { from, format, delimiter, line: 0, end: start, failed: false }
    }

    fn read(&mut self) -> Result<Option<Record>, ReadError> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let len = self.from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? as u64;
            self.line += 1;
            self.end += len;
            let fault = |why: String| ReadError::Line { line: self.line, why };
            if len == LINE_MAX && !line.ends_with(b"\n") {
                return Err(fault(format!("longer than {LINE_MAX} bytes")));
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            match (len, text.is_empty()) {
                (0, _) => return Ok(None),
                (_, true) => {}
                (_, false) => {
                    let (key, value) = self.format.parse(text, self.delimiter).map_err(fault)?;
                    return Ok(Some(Record { key, value, end: self.end }));
                }
            }
        }
    }
}

impl<R: BufRead> Iterator for Records<R> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let result = self.read();
        self.failed = result.is_err();
        result.transpose()
    }
}

/// How far an import has come: everything before `offset` is written to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportState {
    /// Into which namespace.
    pub namespace: String,
    /// In which format.
    pub format: Format,
    /// Bytes of the input that are done.
    pub offset: u64,
    /// Records that are done.
    pub records: u64,
    /// CRC-32C of the first `min(offset, 64 KiB)` bytes: another input is not the one that was begun.
    pub head: u32,
}

/// Bytes of an input that identify it.
pub const HEAD: usize = 64 << 10;

impl ImportState {
    /// Reads a state; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read or is not one.
    pub fn load(path: &Path) -> Result<Option<ImportState>, Failure> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| Failure::failed(format!("{}: not the state of an import: {e}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(about(path)(error)),
        }
    }

    /// Replaces the state in one step: a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec(self).map_err(|e| Failure::failed(e.to_string()))?;
        replace(path, &text)
    }

    /// This state, if it is that of the import that `fresh` begins, whose input begins with `head` (up to [`HEAD`]).
    ///
    /// # Errors
    /// If it is the state of another import.
    pub fn belongs(self, fresh: &ImportState, head: &[u8]) -> Result<ImportState, Failure> {
        let seen = usize::try_from(self.offset).unwrap_or(HEAD).min(HEAD);
        let same_input = head.get(..seen).is_some_and(|head| crc32c::crc32c(head) == self.head);
        if same_input && self.namespace == fresh.namespace && self.format == fresh.format {
            return Ok(self);
        }
        let what = if same_input { "namespace or format" } else { "input" };
        Err(Failure::failed(format!("the state belongs to another {what}: remove it to start over")))
    }
}

/// Writes a file beside its place, syncs it, and puts it there in one step.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = fs::File::create(&beside).map_err(about(&beside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(about(&beside))?;
    fs::rename(&beside, path).map_err(about(path))
}

/// Cuts off what follows the last whole record of an unfinished export and returns that record's key, if there is one.
///
/// # Errors
/// If the file cannot be read or cut, or a whole line in it is not a record.
pub fn resume_export(file: &mut fs::File, format: Format) -> Result<Option<Bytes>, Failure> {
    use io::Seek;
    file.rewind()?;
    let (mut last, mut end) = (None, 0);
    let mut lines = io::BufReader::new(&mut *file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let len = lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        let Some(text) = line.strip_suffix(b"\n") else { break };
        end += len as u64;
        if !text.is_empty() {
            let parsed = format.parse(text, b'\t');
            last = Some(parsed.map_err(|why| Failure::failed(format!("not an export, at byte {end}: {why}")))?.0);
        }
    }
    drop(lines);
    file.set_len(end)?;
    file.seek(io::SeekFrom::Start(end))?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(format: Format, text: &[u8]) -> Vec<Result<Record, ReadError>> {
        Records::new(text, format, b'\t', 0).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            records in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..16), prop::collection::vec(any::<u8>(), 0..48)), 0..16),
            format in prop_oneof![Just(Format::Jsonl), Just(Format::Tsv)],
        ) {
            let records: Vec<(Bytes, Bytes)> = records.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
            let mut file = Vec::new();
            let mut ends = Vec::new();
            for (key, value) in &records {
                format.write(&mut file, key, value).unwrap();
                ends.push(file.len() as u64);
            }
            let back: Vec<Record> = read(format, &file).into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(back.iter().map(|r| r.end).collect::<Vec<_>>(), ends);
            prop_assert_eq!(back.into_iter().map(|r| (r.key, r.value)).collect::<Vec<_>>(), records);
        }

        #[test]
        fn a_cut_export_goes_on_after_its_last_whole_record(
            keys in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..6), 1..8),
            cut in any::<prop::sample::Index>(),
            format in prop_oneof![Just(Format::Jsonl), Just(Format::Tsv)],
        ) {
            let mut text = Vec::new();
            for key in &keys {
                format.write(&mut text, &key.clone().into(), &Bytes::from_static(b"v")).unwrap();
            }
            let cut = cut.index(text.len() + 1);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&text[..cut]).unwrap();
            let last = resume_export(&mut file, format).unwrap();
            let done = keys.iter().filter(|k| last.as_ref().is_some_and(|l| k[..] <= l[..])).count();
            for key in keys.iter().skip(done) {
                format.write(&mut file, &key.clone().into(), &Bytes::from_static(b"v")).unwrap();
            }
            let mut whole = Vec::new();
            io::Seek::rewind(&mut file).unwrap();
            file.read_to_end(&mut whole).unwrap();
            prop_assert_eq!(whole, text);
        }

        #[test]
        fn no_file_panics(text in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\t'), Just(b'\\'), any::<u8>()], 0..64)) {
            let _ = read(Format::Jsonl, &text);
            let _ = read(Format::Tsv, &text);
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let records = read(
            Format::Jsonl,
            b"{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\"}\n{\"key\":\"c\",\"value\":\"3\"}\n",
        );
        assert_eq!(records.len(), 2);
        assert_eq!(records[1].as_ref().unwrap_err().to_string(), "line 3: missing field `value` at column 11");
        assert_eq!(
            read(Format::Tsv, b"key only\n")[0].as_ref().unwrap_err().to_string(),
            "line 1: no delimiter between key and value"
        );
    }

    #[test]
    fn lines_of_other_systems_are_read() {
        let records = read(Format::Tsv, b"a\t1\r\n\r\nb\t2");
        let values: Vec<_> = records.into_iter().map(|r| r.unwrap().value).collect();
        assert_eq!(values, ["1", "2"]);
    }

    #[test]
    fn a_state_goes_on_where_it_was_and_knows_its_input() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(ImportState::load(&path).unwrap(), None);
        let text: Vec<u8> = (0..9000).flat_map(|i| format!("key{i}\tvalue\n").into_bytes()).collect();
        let end = read(Format::Tsv, &text)[7999].as_ref().unwrap().end;
        let head = &text[..HEAD];
        let fresh = ImportState { namespace: "n".into(), format: Format::Tsv, offset: 0, records: 0, head: 0 };
        let state = ImportState { offset: end, records: 8000, head: crc32c::crc32c(head), ..fresh.clone() };
        state.save(&path).unwrap();
        let state = ImportState::load(&path).unwrap().unwrap().belongs(&fresh, head).unwrap();
        let rest = &text[state.offset as usize..];
        let next = Records::new(rest, Format::Tsv, b'\t', state.offset).next().unwrap().unwrap();
        assert_eq!(next.key, "key8000");
        let other = text.iter().map(|b| b ^ 1).collect::<Vec<_>>();
        assert!(state.clone().belongs(&fresh, &other[..HEAD]).is_err());
        assert!(state.clone().belongs(&fresh, &text[..100]).is_err());
        assert!(state.clone().belongs(&ImportState { namespace: "m".into(), ..fresh.clone() }, head).is_err());
        assert!(state.belongs(&ImportState { format: Format::Jsonl, ..fresh }, head).is_err());
        fs::write(&path, "{}").unwrap();
        assert!(ImportState::load(&path).unwrap_err().message.contains("not the state of an import"));
    }
}
