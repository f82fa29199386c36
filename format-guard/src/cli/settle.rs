//! `format-guard settle`: waits until the agent has read a device. udev calls it before it makes links, and
//! so do scripts. Without an agent it returns at once.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;

use super::{CommandError, client, format::duration, print_json};
use crate::api::Settled;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The device
    device: PathBuf,
    /// How long to wait at most
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = duration)]
    timeout: u64,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Seconds for the answer itself, on top of the time to wait.
const MARGIN: Duration = Duration::from_secs(1);

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let device = arguments.device.display();
    let selector = client::device_selector(&arguments.device)?;
    let query = [("volume", selector), ("wait", arguments.timeout.to_string())];
    let patience = Duration::from_secs(arguments.timeout).saturating_add(MARGIN);
    let settled = match client::get_within(socket, "/v1/settle", &query, patience) {
        Err(CommandError::NoAgent { socket, .. }) => {
            eprintln!("format-guard: no agent answers on {socket}: {device} is not waited for");
            return Ok(());
        }
        Err(CommandError::NoAnswer) => Settled { settled: false, state: None },
        answer => answer?,
    };
    if arguments.json {
        print_json(&settled)?;
    } else if settled.settled {
        println!("{device}: {}", settled.state.as_deref().unwrap_or("holds no volume"));
    }
    if settled.settled {
        return Ok(());
    }
    Err(anyhow!("{device} was not read within {} s", arguments.timeout).into())
}
