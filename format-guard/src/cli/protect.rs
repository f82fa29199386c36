//! `format-guard protect`: shows or sets whether the guard itself is protected.

use std::path::Path;

use super::{CommandError, client, print_json};
use crate::api::{Done, ProtectRequest, Status};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Protect the guard itself, or let root take it away until the agent starts anew [default: show it]
    #[arg(value_enum, requires = "reason")]
    protect: Option<Switch>,
    /// Why; kept with the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    /// Keep others from taking the guard away
    On,
    /// Let root take the guard away
    Off,
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    if let (Some(switch), Some(reason)) = (arguments.protect, &arguments.reason) {
        let request = ProtectRequest { on: switch == Switch::On, reason: reason.clone() };
        let done: Done = client::post(socket, "/v1/protect", &request)?;
        return super::done(&done, arguments.json);
    }
    let status: Status = client::get(socket, "/v1/status", &[])?;
    if arguments.json {
        return print_json(&status);
    }
    println!("{}", if status.protected { "on" } else { "off" });
    Ok(())
}
