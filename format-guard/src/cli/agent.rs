//! `format-guard agent`: runs the guard.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::CommandError;
use crate::{
    agent,
    config::{Config, Mode},
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
    let mut config = Config::read(arguments.config.as_deref()).map_err(anyhow::Error::from)?;
    if arguments.audit {
        config.mode = Mode::Audit;
    }
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
    let result = runtime.block_on(agent::run(config));
    // A probe that hangs in the kernel must not hold up the stop.
    runtime.shutdown_background();
    result.map_err(|error| match error.downcast_ref::<LoadError>() {
        Some(load) => CommandError::NotEnforceable(load.to_string()),
        None => CommandError::Other(error),
    })
}
