//! `format-guard mode`: shows or sets whether refusals are carried out.

use std::path::Path;

use super::{
    CommandError, client,
    format::{moment, wrap},
    print_json,
};
use crate::{
    api::{Done, ModeRequest, Status, Volume},
    config::Mode,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Carry refusals out (enforce), only tell them (audit), or let the tools of its format alone write (strict, of a volume)
    /// [default: show the mode]
    #[arg(value_enum, requires = "reason")]
    mode: Option<Mode>,
    /// Why; kept with the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// On this volume alone: id, /dev path, mount point or unique prefix
    #[arg(long)]
    volume: Option<String>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let volume = arguments.volume.as_deref().map(client::selector).transpose()?;
    if let (Some(mode), Some(reason)) = (arguments.mode, &arguments.reason) {
        let request = ModeRequest { mode, reason: reason.clone(), volume };
        let done: Done = client::post(socket, "/v1/mode", &request)?;
        return super::done(&done, arguments.json);
    }
    let status: Status = client::get(socket, "/v1/status", &[])?;
    if let Some(volume) = volume {
        let volume: Volume = client::get(socket, "/v1/volume", &[("volume", volume)])?;
        if arguments.json {
            return print_json(&volume);
        }
        let mode = match (status.mode, volume.audit, volume.strict) {
            (_, true, _) => Mode::Audit,
            (Mode::Enforce, _, true) => Mode::Strict,
            (mode, ..) => mode,
        };
        println!("{}", mode.name());
        return Ok(());
    }
    if arguments.json {
        return print_json(&status);
    }
    println!("{}", status.mode.name());
    if let Some(set) = &status.set_mode {
        let text = format!("set by user {} at {}: {}", set.uid, moment(set.at), set.reason);
        println!("{}", wrap(&text, 80, 2));
    }
    Ok(())
}
