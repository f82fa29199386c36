//! `format-guard probe`: looks at one device for the agent, in a process that may hang in its place.

use super::CommandError;
use crate::volume::{
    Dev,
    copies::{self, Wanted, hexadecimal},
    probe::probe,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Kernel name of the device
    name: String,
    /// Its number, MAJOR:MINOR
    #[arg(value_parser = number)]
    dev: Dev,
    /// Its size in bytes
    size: u64,
    /// Copy so many bytes at most of what identifies what it holds
    #[arg(long, value_name = "BYTES")]
    copy: Option<u64>,
    /// The key areas of LUKS, too
    #[arg(long)]
    key_areas: bool,
}

fn number(text: &str) -> Result<Dev, anyhow::Error> {
    Dev::parse(text).ok_or_else(|| anyhow::anyhow!("'{text}' is no device number: write MAJOR:MINOR"))
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CommandError> {
    let wanted = arguments.copy.map(|limit| Wanted { limit, key_areas: arguments.key_areas });
    let (finding, pieces) = match probe(&arguments.name, arguments.dev, arguments.size, wanted) {
        Ok((finding, pieces)) => (Ok(finding), pieces),
        Err(error) => (Err(error), Vec::new()),
    };
    println!("{}", serde_json::to_string(&finding).map_err(anyhow::Error::from)?);
    if !pieces.is_empty() {
        println!("{}", hexadecimal::of(&copies::pack(&pieces)));
    }
    Ok(())
}
