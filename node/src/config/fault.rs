//! What is wrong with a configuration, and where it stands.

use std::{cmp::Ordering, fmt, io, ops::Range, path::PathBuf};

/// Everything that is wrong with the configuration, in the order of the file.
#[derive(Debug)]
pub struct ConfigError(Vec<Fault>);

impl ConfigError {
    /// `Ok` if nothing is wrong.
    pub(super) fn unless_none(mut faults: Vec<Fault>) -> Result<(), ConfigError> {
        if faults.is_empty() {
            return Ok(());
        }
        faults.sort_by(Fault::order);
        Err(ConfigError(faults))
    }

    /// One line for each.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.0
    }
}

impl From<Fault> for ConfigError {
    fn from(fault: Fault) -> ConfigError {
        ConfigError(vec![fault])
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if n == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{at}: {why}")]
    Syntax {
        /// Where.
        at: Place,
        /// What the parser says.
        why: String,
    },
    /// The file holds a key that means nothing.
    #[error("{at}: unknown key `{key}`{}", question(.meant.as_deref()))]
    UnknownKey {
        /// Where.
        at: Place,
        /// The key, with its section.
        key: String,
        /// A key that looks like it.
        meant: Option<String>,
    },
    /// A value cannot be used, by itself or beside another.
    #[error("{origin}: `{key}`: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// Where it was set.
        origin: Origin,
        /// What is wrong.
        why: String,
    },
    /// A key without a default was not set.
    #[error("`{key}` is not set: give it in the file, as --{flag} or as {variable}")]
    Missing {
        /// The key.
        key: &'static str,
        /// Its flag.
        flag: String,
        /// Its variable.
        variable: String,
    },
}

fn question(meant: Option<&str>) -> String {
    meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default()
}

impl Fault {
    fn place(&self) -> Option<(usize, usize)> {
        match self {
            Fault::Syntax { at, .. }
            | Fault::UnknownKey { at, .. }
            | Fault::Value { origin: Origin::File(at), .. } => Some((at.line, at.column)),
            Fault::Read { .. } | Fault::Value { .. } | Fault::Missing { .. } => None,
        }
    }

    /// Down the file, then the rest.
    fn order(&self, other: &Fault) -> Ordering {
        match (self.place(), other.place()) {
            (Some(mine), Some(theirs)) => mine.cmp(&theirs),
            (mine, theirs) => theirs.is_some().cmp(&mine.is_some()),
        }
    }
}

/// Where something stands in the file.
#[derive(Clone, Debug)]
pub struct Place {
    path: String,
    line: usize,
    column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path, self.line, self.column)
    }
}

/// Where a value was set.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the file.
    File(Place),
    /// In the environment, by this variable.
    Variable(String),
    /// By this flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(place) => place.fmt(f),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// The file's text, to find places in.
pub(super) struct Source<'a> {
    pub(super) path: String,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// Where a span begins: its line, and its column in characters, both from 1.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Place { path: self.path.clone(), line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
    }
}
