//! `format-guard probe`: looks at one device for the agent, in a process that may hang in its place.

use super::CommandError;
use crate::volume::{Dev, probe::probe};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Kernel name of the device
    name: String,
    /// Its number, MAJOR:MINOR
    #[arg(value_parser = number)]
    dev: Dev,
    /// Its size in bytes
    size: u64,
}

fn number(text: &str) -> Result<Dev, anyhow::Error> {
    Dev::parse(text).ok_or_else(|| anyhow::anyhow!("'{text}' is no device number: write MAJOR:MINOR"))
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CommandError> {
    let answer = probe(&arguments.name, arguments.dev, arguments.size);
    println!("{}", serde_json::to_string(&answer).map_err(anyhow::Error::from)?);
    Ok(())
}
