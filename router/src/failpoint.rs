//! Places at which a build for tests can be told to die.

/// Ends the process, as a kill does, if the environment variable `DUETD_FAILPOINT` names this place.
#[cfg(feature = "failpoints")]
pub(crate) fn failpoint(place: &str) {
    if std::env::var("DUETD_FAILPOINT").is_ok_and(|named| named == place) {
        tracing::error!(place, "the process ends here, as it was told");
        std::process::abort();
    }
}

#[cfg(not(feature = "failpoints"))]
pub(crate) fn failpoint(_: &str) {}
