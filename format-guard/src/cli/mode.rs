//! `format-guard mode`: shows or sets whether refusals are carried out.

use std::path::Path;

use super::{
    CommandError, client,
    format::{duration, moment, wrap},
    print_json,
};
use crate::{
    api::{Done, ModeRequest, Status, Volume},
    mode::Mode,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Carry refusals out (enforce), only report them (audit), or let only the tools of a volume's format
    /// write to it (strict) [default: show the mode]
    #[arg(value_enum, requires = "reason")]
    mode: Option<Mode>,
    /// End the mode that a command has set: the configuration's mode holds again
    #[arg(long, requires = "reason", conflicts_with_all = ["mode", "volume"])]
    clear: bool,
    /// Why; kept with the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// How long, such as 2h; then the configuration's mode holds again [default: until it is changed]
    #[arg(long = "for", value_name = "TIME", value_parser = duration, requires = "mode", conflicts_with = "volume")]
    lasts: Option<u64>,
    /// Only on this volume: id, /dev path, mount point or unique prefix
    #[arg(long)]
    volume: Option<String>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let volume = arguments.volume.as_deref().map(client::selector).transpose()?;
    if let Some(reason) = arguments.reason.as_ref().filter(|_| arguments.clear || arguments.mode.is_some()) {
        let (mode, lasts) = (arguments.mode, arguments.lasts);
        let request = ModeRequest { mode, reason: reason.clone(), volume, lasts };
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
    println!("{}", wrap(&origin(&status), 80, 2));
    Ok(())
}

/// Whether a command or the configuration has set the mode.
pub(super) fn origin(status: &Status) -> String {
    let configured = status.configured_mode.name();
    let Some(set) = &status.set_mode else { return format!("mode {configured} by the configuration") };
    let until = set.ends.map_or_else(String::new, |ends| format!(" until {}", moment(ends)));
    format!(
        "mode {}{until}, set by user {} at {}: {}; it outranks the configuration's {configured} (format-guard mode --clear)",
        set.mode.name(),
        set.uid,
        moment(set.at),
        set.reason,
    )
}
