//! `format-guard loss`: shows whether records were lost, and lets blank volumes be armed again.

use std::path::Path;

use super::{
    CommandError, client,
    format::{moment, wrap},
    print_json,
};
use crate::api::{Done, EndLossRequest, Status};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Arm blank volumes again, once every volume that holds data was seen
    #[command(after_help = "Example: format-guard loss end --reason \"every volume is on record again\"")]
    End {
        /// Why; kept with the history
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    if let Some(Command::End { reason, json }) = &arguments.command {
        let done: Done = client::post(socket, "/v1/loss/end", &EndLossRequest { reason: reason.clone() })?;
        return super::done(&done, *json);
    }
    let status: Status = client::get(socket, "/v1/status", &[])?;
    if arguments.json {
        return print_json(&status);
    }
    match &status.records_lost {
        None => println!("no records are lost"),
        Some(loss) => println!("{}", wrap(&format!("since {}: {}", moment(loss.at), loss.cause), 80, 2)),
    }
    Ok(())
}
