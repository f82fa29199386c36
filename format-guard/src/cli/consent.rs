//! Shows what a command may destroy, and asks for a typed yes: a person at a terminal is always asked, and a
//! program never is.

use std::{
    io::{self, IsTerminal},
    path::Path,
};

use anyhow::{Context, anyhow};

use super::{CommandError, client, format::moment};
use crate::api::Volume;

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Consent {
    /// Do not ask for a typed yes; without a terminal nobody is asked
    #[arg(long)]
    yes: bool,
}

impl Consent {
    /// Asks for consent to what is about to be done to a volume, by its selector: `Ok` if 'yes' was typed, or
    /// if no terminal is there.
    pub(super) fn to(self, socket: &Path, selector: &str, what: &str) -> Result<(), CommandError> {
        if self.yes || !io::stdin().is_terminal() {
            return Ok(());
        }
        let volume: Volume = client::get(socket, "/v1/volume", &[("volume", selector.to_owned())])?;
        eprintln!("{}", described(&volume));
        eprint!("{what} Type yes to go on: ");
        if typed_yes()? {
            return Ok(());
        }
        Err(anyhow!("nothing is done: yes was not typed").into())
    }
}

/// Whether the next line is 'yes'.
pub(super) fn typed_yes() -> anyhow::Result<bool> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("cannot read the answer")?;
    Ok(line.trim() == "yes")
}

/// What is known of a volume, in a few lines.
fn described(volume: &Volume) -> String {
    let devices =
        if volume.devices.is_empty() { "not attached".to_owned() } else { volume.devices.join(", ") };
    let holds = volume.content.as_ref().map_or_else(
        || "nothing that is known".to_owned(),
        |content| {
            let label = content.label.as_deref().map_or_else(String::new, |label| format!(", label {label}"));
            let uuid = content.uuid.as_deref().map_or_else(String::new, |uuid| format!(", UUID {uuid}"));
            format!("{}{label}{uuid}", content.name())
        },
    );
    let mounted = if volume.mounted { ", mounted since it was formatted" } else { "" };
    let first = moment(volume.first_seen);
    format!("{} ({devices}), known since {first}, {}: holds {holds}{mounted}", volume.id, volume.state)
}
