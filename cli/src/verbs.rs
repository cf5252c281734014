//! x
use crate::{
    args::{Command, Globals},
    failure::{Exit, Failure},
    output::Printer,
};
/// x
pub async fn run(_command: Command, globals: &Globals, _printer: Printer) -> Result<Exit, Failure> {
    globals.complete()?;
    Ok(Exit::Done)
}
