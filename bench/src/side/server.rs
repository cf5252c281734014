//! Other people's servers.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use duet_tests::process::PATIENCE;
use tokio::time::sleep;

/// A process that ends when this is dropped.
pub(super) struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts it; what it says goes into a file.
    pub(super) fn start(name: &str, package: &str, mut command: Command, log: PathBuf) -> Result<Server> {
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // Their settings come from the arguments alone.
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD")) {
            command.env_remove(variable);
        }
        let child = command.spawn().with_context(|| format!("starting {name} (Debian's package is {package})"))?;
        Ok(Server { name: name.to_owned(), child, log })
    }

    /// Waits until something of it is as it should be.
    pub(super) async fn until<T>(&mut self, ready: impl AsyncFn() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.said());
            }
            match ready().await {
                Ok(ready) => return Ok(ready),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("{} is not ready:\n{}", self.name, self.said())));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn said(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(2000);
        String::from_utf8_lossy(&log.as_bytes()[from..]).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
