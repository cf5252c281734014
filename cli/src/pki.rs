//! `duet pki`: an authority's files and the certificates that it issues.
//!
//! Keys are written readable by their owner alone, and nothing is ever overwritten: a lost authority means new
//! certificates for everyone.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use duet_proto::{ClusterName, NodeId, Role};
use duet_transport::{CertificateAuthority, Identity, Tls, Validity};

use crate::{
    failure::{Failure, about},
    output::{left, say},
};

const DAY_S: i64 = 24 * 3600;

/// For whom a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// A node, and the host names and addresses to put in beside its identity.
    Node(NodeId, Vec<String>),
    /// A client of this name and role.
    Client(String, Role),
}

/// Where a certificate and its key were written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// What the certificate says its holder is.
    pub identity: String,
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Makes an authority: `dir/ca.pem` and `dir/ca.key`.
///
/// # Errors
/// If there is one already, or it cannot be written.
pub fn init(dir: &Path, cluster: &ClusterName, days: u32) -> Result<Written, Failure> {
    let authority = CertificateAuthority::generate(cluster, Validity::days(days)).map_err(failed)?;
    fs::create_dir_all(dir).map_err(about(dir))?;
    write(&dir.join("ca"), format!("duet://{cluster}/authority"), authority.cert(), &authority.key())
}

/// Issues a certificate by the authority in `dir`: `out.pem` and `out.key`.
///
/// # Errors
/// If there is no authority, a name is not one, or a file exists already.
pub fn issue(dir: &Path, whom: &Whom, days: u32, out: &Path) -> Result<Written, Failure> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(about(&path))
    };
    let mut authority = CertificateAuthority::load(&read("ca.pem")?, &read("ca.key")?).map_err(failed)?;
    let cluster = authority.cluster().clone();
    let (identity, names) = match whom {
        Whom::Node(NodeId(0), _) => return Err(Failure::usage("node ids begin at 1")),
        Whom::Node(node, names) => (Identity::node(cluster, *node), names.as_slice()),
        Whom::Client(name, role) => {
            let identity = Identity::client(cluster, name, *role).map_err(|e| Failure::usage(e.to_string()))?;
            (identity, &[][..])
        }
    };
    let validity = Validity::days(days);
    let issued = authority.issue(&identity, validity, names).map_err(failed)?;
    // Nobody takes it once its authority has ended. One that has ended already makes this fail.
    let tls = Tls::from_pem(authority.cert().as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes());
    let early = validity.until - tls.map_err(failed)?.authority_expires();
    if early >= DAY_S {
        let left = left(i64::from(days) * DAY_S - early);
        say(format!("it ends in {left}, with the authority, and not after {days} days"));
    }
    write(out, identity.to_string(), &issued.cert, &issued.key)
}

fn write(out: &Path, identity: String, cert: &str, key: &str) -> Result<Written, Failure> {
    let with = |extension: &str| {
        let mut path = out.as_os_str().to_owned();
        path.push(extension);
        PathBuf::from(path)
    };
    let written = Written { identity, cert: with(".pem"), key: with(".key") };
    // The key first: a certificate without its key would be in the way of the next attempt.
    for (path, text, mode) in [(&written.key, key, 0o600), (&written.cert, cert, 0o644)] {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(about(path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(about(path))?;
    }
    Ok(written)
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}
