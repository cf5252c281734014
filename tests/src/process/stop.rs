//! Programs that start processes, and are stopped.

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Does some work, unless somebody stops this process (SIGINT, SIGTERM) before it is done: then it is dropped, and with it end
/// the processes that it started.
///
/// # Errors
/// The work's, or that it was stopped.
pub async fn unless_stopped(work: impl Future<Output = Result<()>>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}
