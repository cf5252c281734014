//! Places at which a build for tests can be told to die, or to hold on.
//!
//! The environment variable `DUETD_FAILPOINT` names a place, or, as `@FILE`, a file with a word that may change while the
//! process runs: `PLACE` ends it there, once; `hold PLACE` keeps it there until the word is another one.

#[cfg(feature = "failpoints")]
pub(crate) fn failpoint(place: &str) {
    let Ok(named) = std::env::var("DUETD_FAILPOINT") else { return };
    match named.strip_prefix('@') {
        Some(file) => obey(std::path::Path::new(file), place),
        None if named == place => die(place),
        None => {}
    }
}

#[cfg(feature = "failpoints")]
fn obey(file: &std::path::Path, place: &str) {
    let word = || std::fs::read_to_string(file).unwrap_or_default();
    if word() == place {
        // Who is started again goes on.
        let _ = std::fs::remove_file(file);
        die(place);
    }
    let hold = format!("hold {place}");
    if word() == hold {
        // Whoever waits for it is told that it is here.
        let _ = std::fs::write(file.with_extension("held"), place);
        // Everything else goes on.
        tokio::task::block_in_place(|| {
            while word() == hold {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
    }
}

/// Ends the process as a kill does.
#[cfg(feature = "failpoints")]
fn die(place: &str) {
    tracing::error!(place, "the process ends here, as it was told");
    std::process::abort();
}

#[cfg(not(feature = "failpoints"))]
pub(crate) fn failpoint(_: &str) {}
