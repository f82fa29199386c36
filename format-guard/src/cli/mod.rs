//! The command line: one file per command. It asks the agent and prints; it decides nothing.

mod agent;
mod check;
mod client;
mod events;
mod format;
mod status;
mod volume;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    api::{Failure, FailureKind},
    config::DEFAULT_SOCKET,
};

/// Exit codes, documented in the README.
mod exit {
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const NO_AGENT: u8 = 4;
    pub(super) const NOT_ENFORCEABLE: u8 = 5;
}

/// Remembers that a volume was formatted and makes the kernel refuse to destroy it.
#[derive(Debug, Parser)]
#[command(name = "format-guard", version, max_term_width = 80)]
pub struct Arguments {
    /// Socket of the agent to ask
    #[arg(long, global = true, env = "FORMAT_GUARD_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the guard (needs root)
    Agent(agent::Arguments),
    /// Show the tier in force, what it leaves open, and counts
    Status(Json),
    /// Say whether this host can enforce; if not, what to change
    Check(Json),
    /// Show known volumes, adopt them, permit a re-format
    #[command(subcommand)]
    Volume(volume::Command),
    /// Show what happened
    Events(events::Arguments),
}

/// How to print.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Json {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// What a command failed with.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// Nobody answers on the socket.
    #[error("no agent answers on {socket} ({reason}): start it with systemctl start format-guard")]
    NoAgent { socket: String, reason: String },
    /// This host cannot enforce.
    #[error("this host cannot enforce: {0}")]
    NotEnforceable(String),
    /// The agent says no.
    #[error(transparent)]
    Agent(#[from] Failure),
    /// Everything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl CommandError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::NoAgent { .. } => exit::NO_AGENT,
            Self::NotEnforceable(_) => exit::NOT_ENFORCEABLE,
            Self::Agent(failure) => match failure.kind {
                FailureKind::Failed | FailureKind::NotFound => exit::FAILED,
                FailureKind::BadRequest => exit::USAGE,
                FailureKind::Refused => exit::REFUSED,
            },
            Self::Other(_) => exit::FAILED,
        }
    }
}

/// Runs the command; the process's exit code.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let socket = &arguments.socket;
    let result = match arguments.command {
        Command::Agent(arguments) => agent::run(&arguments),
        Command::Status(json) => status::run(socket, json.json),
        Command::Check(json) => check::run(json.json),
        Command::Volume(command) => volume::run(socket, command),
        Command::Events(arguments) => events::run(socket, &arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("format-guard: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints JSON, indented.
fn print_json<T: serde::Serialize>(value: &T) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    println!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
