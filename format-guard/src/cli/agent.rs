//! `format-guard agent`: runs the guard.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::CommandError;
use crate::{
    agent::{self, Start},
    api,
    config::Config,
    enforce::error::LoadError,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/format-guard/config.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Refuse nothing, and report what would have been refused
    #[arg(long)]
    audit: bool,
    /// End the enforcement that a stopped agent has left, and exit
    #[arg(long, requires = "reason", conflicts_with = "audit")]
    detach: bool,
    /// Why enforcement ends; kept in the history
    #[arg(long, requires = "detach", value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
}

fn reason(text: &str) -> Result<String, String> {
    api::reason(text).map(str::to_owned).ok_or_else(|| format!("a reason has 1 to {} bytes", api::MAX_REASON))
}

fn detach(config: &Config, reason: &str) -> Result<(), CommandError> {
    let was_there = agent::detach::run(config, reason, rustix::process::getuid().as_raw())?;
    if was_there {
        println!("enforcement has ended on this host: systemctl start format-guard begins it again");
    } else {
        println!("nothing is enforced on this host: there are no pins at {}", config.pin_dir.display());
    }
    Ok(())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CommandError> {
    if let Some(reason) = &arguments.reason {
        let (config, error) = Config::salvaged(arguments.config.as_deref());
        if let Some(error) = error {
            eprintln!("format-guard: {error}; the agent looks for pins at {}", config.pin_dir.display());
        }
        return detach(&config, reason);
    }
    let config = Config::read(arguments.config.as_deref()).map_err(anyhow::Error::from)?;
    let start = Start { config, file: arguments.config.clone(), audit: arguments.audit };
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("FORMAT_GUARD_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(agent::run(start));
    // A blocking call under way must not hold up the stop.
    runtime.shutdown_background();
    result.map_err(|error| match error.downcast_ref::<LoadError>() {
        Some(load) => CommandError::NotEnforceable(load.to_string()),
        None => CommandError::Other(error),
    })
}
