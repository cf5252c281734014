//! How things end: exit codes, and what is said about a failure.

use std::{fmt, io, process::ExitCode};

use duet_client::ClientError;
use duet_proto::{Class, Error};
use serde::Serialize;

/// Exit codes: a contract with scripts (`specs/command-line.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line is wrong. Nothing was tried.
    Usage = 2,
    /// No node answered.
    Unreachable = 3,
    /// There is no such key, namespace or node; or a compare did not hold.
    NotFound = 4,
    /// No quorum, or something is unhealthy.
    Unhealthy = 5,
    /// It was not done in time, or nobody knows whether it was done.
    Unknown = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    /// The code for an error that a node answered with.
    #[must_use]
    pub fn of(error: &Error) -> Exit {
        match error {
            Error::CompareFailed { .. } | Error::NamespaceNotFound { .. } | Error::NodeNotFound { .. } => {
                Exit::NotFound
            }
            Error::NoQuorum { .. } | Error::DiskFull { .. } | Error::ClockSkew(_) | Error::Corrupt { .. } => {
                Exit::Unhealthy
            }
            Error::TimedOut { .. } | Error::OutcomeUnknown { .. } | Error::NotEnoughCopies { .. } => Exit::Unknown,
            Error::Unavailable { .. } => Exit::Unreachable,
            Error::InvalidName(_) => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}

/// Why a command did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// A short name for scripts, stable across versions.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// What to do about it, where a node or the client library says so.
    pub class: Option<Class>,
}

/// What JSON output says of a failure.
#[derive(Serialize)]
struct Document<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<Class>,
    exit: u8,
}

impl Failure {
    /// A failure of this process or its machine.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Failed, code: "failed", message: message.into(), class: None }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Usage, code: "usage", message: message.into(), class: None }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::NotFound, code: "not_found", message: message.into(), class: None }
    }

    /// Says what was being done.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Failure {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The JSON document for standard output.
    #[must_use]
    pub fn document(&self) -> String {
        let Failure { exit, code, message, class } = self;
        let document = Document { error: Detail { code, message, class: *class, exit: *exit as u8 } };
        serde_json::to_string(&document).unwrap_or_else(|e| format!("{{\"error\":{{\"message\":\"{e}\"}}}}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { exit: Exit::of(&error), code: error.code(), class: Some(error.class()), message: error.to_string() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let exit = match &error {
            ClientError::Cluster(error) => return error.clone().into(),
            ClientError::Unreachable { .. } => Exit::Unreachable,
            ClientError::TimedOut { .. } => Exit::Unknown,
            ClientError::Configuration { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        Failure { exit, code: error.code(), class: Some(error.class()), message: error.to_string() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::failed(error.to_string())
    }
}

impl From<crate::text::InvalidEscape> for Failure {
    fn from(error: crate::text::InvalidEscape) -> Failure {
        Failure::usage(error.to_string())
    }
}

/// Names the file that an I/O error is about.
pub(crate) fn about<'a>(path: &'a std::path::Path) -> impl Fn(io::Error) -> Failure + 'a {
    move |error| Failure::failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_contract() {
        let codes = [
            (Error::CompareFailed { found: None }, 4),
            (Error::NamespaceNotFound { name: "a".parse().unwrap() }, 4),
            (Error::NoQuorum { namespace: "a".parse().unwrap(), seen: Default::default() }, 5),
            (Error::OutcomeUnknown { why: String::new() }, 6),
            (Error::TimedOut { after_ms: 1, why: String::new() }, 6),
            (Error::InvalidRequest { why: String::new() }, 1),
        ];
        for (error, code) in codes {
            assert_eq!(Exit::of(&error) as u8, code, "{error}");
        }
    }

    #[test]
    fn a_failure_is_one_document() {
        let failure = Failure::from(Error::OutcomeUnknown { why: "\"so\"".into() });
        let document: serde_json::Value = serde_json::from_str(&failure.document()).unwrap();
        assert_eq!(document["error"]["code"], "outcome_unknown");
        assert_eq!(document["error"]["class"], "unknown");
        assert_eq!(document["error"]["exit"], 6);
    }
}
