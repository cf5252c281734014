//! Damage that nobody asks for: every record of every eventual namespace is read now and then. Damaged ones are replaced by
//! a peer's, and counted. (Strong replicas check a record when it is read or sent; nothing may replace one quietly.)

use std::{future::pending, time::Duration};

use duet_engine_eventual::{Handle, SpaceError};
use tokio::time::sleep;

/// Runs until the engine stops; says why.
pub(crate) async fn run(eventual: Handle, every: Option<Duration>) -> String {
    let Some(every) = every else { return pending().await };
    loop {
        sleep(every).await;
        for space in eventual.spaces() {
            match eventual.scrub(space.id).await {
                Ok(()) => tracing::debug!(namespace = %space.name, "every record was read"),
                Err(error @ SpaceError::Stopped) => return error.to_string(),
                Err(error) => tracing::warn!(namespace = %space.name, %error, "not every record could be read"),
            }
        }
    }
}
