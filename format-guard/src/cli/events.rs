//! `format-guard events`: what happened, oldest first.

use std::path::{Path, PathBuf};

use super::{
    CommandError, client,
    format::{utc, wrap},
    print_json,
};
use crate::api::Events;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only those of this volume: id, /dev path, mount point or unique prefix
    volume: Option<String>,
    /// The newest so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let mut query = vec![("limit", arguments.limit.to_string())];
    if let Some(volume) = &arguments.volume {
        query.push(("volume", client::selector(volume)?));
    }
    let events: Events = client::get(socket, "/v1/events", &query)?;
    if arguments.json {
        return print_json(&events);
    }
    for event in &events.events {
        println!("{} {}", utc(event.at), event.kind);
        if !event.volume.is_empty() {
            println!("  {}", event.volume);
        }
        println!("  {}", wrap(&event.text, 80, 2));
        if let Some(refusal) = &event.refusal {
            let exe = refusal.exe.as_ref().map(PathBuf::from);
            let program =
                exe.as_deref().map_or_else(|| refusal.comm.clone(), |exe| exe.display().to_string());
            println!("  by {program}, bytes {}+{}", refusal.offset, refusal.length);
        }
    }
    Ok(())
}
