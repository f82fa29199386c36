//! `format-guard simulate`: what a program might try on a device, and what would come of it. Nothing is tried.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{CommandError, Json, client, format::wrap, print_json};
use crate::api::Simulation;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The program; only its name counts
    program: PathBuf,
    /// The device, or the id or mount point of a volume that is attached
    device: String,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let Arguments { program, device, json } = arguments;
    let name = program.file_name().with_context(|| format!("{} is no program", program.display()))?;
    let query = [("volume", client::selector(device)?), ("program", name.to_string_lossy().into_owned())];
    let simulation: Simulation = client::get(socket, "/v1/simulate", &query)?;
    if json.json {
        return print_json(&simulation);
    }
    let Simulation { volume, state, program, by_name_alone, policy, outcomes } = simulation;
    println!("{program} on {volume} ({state}): nothing was tried");
    if let Some(policy) = policy {
        println!("{policy} holds: {}", policy.action.meaning());
    }
    if by_name_alone {
        println!("its arguments would say what it does: it was judged by its name");
    }
    for each in outcomes {
        println!("{:<34} {}", each.what, each.outcome.name());
        if let (Some(reason), Some(way_out)) = (each.reason, each.way_out) {
            println!("  {}", wrap(&format!("{reason}: {way_out}"), 80, 2));
        }
    }
    Ok(())
}
