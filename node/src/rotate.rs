//! Certificates whose files change while the node runs.
//!
//! The files are looked at every few seconds, and read at once on SIGHUP. What fits takes the place of what is in use;
//! what does not is told of, and changes nothing. Files are replaced one after the other, so that for a moment a
//! certificate stands beside another one's key: what does not fit is told of only if it is still so at the next look.

use std::{path::PathBuf, time::Duration};

use tokio::time::Instant;

use crate::{
    Node,
    config::{Resolved, TlsFiles},
    daemon::{CertificateError, certificates},
};

/// How often the files are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(10);
/// How often an end that is near is told of.
const REMIND: Duration = Duration::from_secs(24 * 3600);

/// What the files held. `None`: it could not be read.
type Contents = Vec<Option<Vec<u8>>>;

/// Looks after the files.
pub(crate) struct Rotation {
    config: Resolved,
    /// What was in the files when they were taken, or told of.
    known: Contents,
    /// What did not fit at the last look.
    odd: Option<Contents>,
    reminded: Option<Instant>,
}

impl Rotation {
    /// Begins with what the node was started with.
    pub(crate) fn new(config: Resolved) -> Rotation {
        let known = contents(&config.tls);
        Rotation { config, known, odd: None, reminded: None }
    }

    /// Takes what is new in the files, if it fits.
    pub(crate) fn look(&mut self, node: &Node) {
        let now = contents(&self.config.tls);
        if now == self.known {
            self.odd = None;
        } else {
            match load(&self.config, node) {
                Ok(()) => self.known = now,
                Err(why) if self.odd.as_ref() == Some(&now) => {
                    self.known = now;
                    refuse(node, &why);
                }
                Err(_) => self.odd = Some(now),
            }
        }
        self.remind(node);
    }

    /// Takes what is in the files that the configuration names now, whether they have changed or not.
    pub(crate) fn reload(&mut self, config: Resolved, node: &Node) {
        self.config = config;
        self.known = contents(&self.config.tls);
        self.odd = None;
        if let Err(why) = load(&self.config, node) {
            refuse(node, &why);
        }
        self.reminded = None;
        self.remind(node);
    }

    fn remind(&mut self, node: &Node) {
        if self.reminded.is_some_and(|at| at.elapsed() < REMIND) {
            return;
        }
        for warning in node.certificates().warnings() {
            self.reminded = Some(Instant::now());
            tracing::warn!("{warning}; put another one in the place of its file, no restart is needed");
        }
    }
}

fn load(config: &Resolved, node: &Node) -> Result<(), String> {
    let tls = certificates(config).map_err(|error: CertificateError| error.to_string())?;
    node.renew(&tls).map_err(|error| error.to_string())?;
    let (revoked, expires_unix_s) = (tls.revoked().len(), tls.expires());
    tracing::info!(identity = %tls.identity(), expires_unix_s, revoked, "the certificates were read again and are in use");
    Ok(())
}

fn refuse(node: &Node, why: &str) {
    node.certificates().refused(why.to_owned());
    tracing::error!(why, "the certificates in the files cannot be used; those from before stay in use");
}

fn contents(files: &TlsFiles) -> Contents {
    let TlsFiles { ca, cert, key, revoked, origin: _ } = files;
    let paths: [Option<&PathBuf>; 4] = [Some(ca), Some(cert), Some(key), revoked.as_ref()];
    paths.into_iter().flatten().map(|path| std::fs::read(path).ok()).collect()
}
