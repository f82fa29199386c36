//! `format-guard config`: the configuration with every key explained, and a file checked before it is used.

use std::path::PathBuf;

use super::CommandError;
use crate::config::Config;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the configuration, every key with what it means and its default
    #[command(after_help = "Example: format-guard config show > /etc/format-guard/config.toml")]
    Show {
        /// Configuration file [default: /etc/format-guard/config.toml, if there is one]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check a file without using it
    #[command(after_help = "Example: format-guard config check new.toml")]
    Check {
        /// The file
        file: PathBuf,
    },
}

pub(super) fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Show { config } => {
            print!("{}", Config::read(config.as_deref()).map_err(anyhow::Error::from)?.document());
        }
        Command::Check { file } => {
            Config::read(Some(&file)).map_err(anyhow::Error::from)?;
            println!("{} is sound", file.display());
        }
    }
    Ok(())
}
