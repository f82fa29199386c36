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
    config::Config,
    enforce::lsm::LoadError,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/format-guard/config.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Refuse nothing, tell every refusal that would have been
    #[arg(long)]
    audit: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CommandError> {
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
