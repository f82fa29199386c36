//! `format-guard canary`: tries under the `LD_PRELOAD` library, for the agent, a write that the library must
//! refuse.

use std::path::PathBuf;

use super::CommandError;
use crate::enforce::canary::Tried;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The node to try at
    node: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CommandError> {
    println!("{}", serde_json::to_string(&Tried::at(&arguments.node)).map_err(anyhow::Error::from)?);
    Ok(())
}
