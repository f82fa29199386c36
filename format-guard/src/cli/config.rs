//! `format-guard config`: prints the configuration with every key explained, and checks a file before it is
//! used.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::{CommandError, format::wrap};
use crate::{config::Config, policy};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the configuration: every key with its meaning and its default
    #[command(
        after_help = "Examples:\n  format-guard config show\n  format-guard config show --output /etc/format-guard/config.toml"
    )]
    Show {
        /// Configuration file [default: /etc/format-guard/config.toml, if there is one]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Write to this file, whole or not at all: a shell's > would empty the file before it is read
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check a file without using it, and explain its policies
    #[command(after_help = "Example: format-guard config check new.toml")]
    Check {
        /// The file to check
        file: PathBuf,
    },
}

pub(super) fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Show { config, output } => {
            let document = Config::read(config.as_deref()).map_err(anyhow::Error::from)?.document();
            match output {
                Some(path) => write(&path, &document)?,
                None => print!("{document}"),
            }
        }
        Command::Check { file } => {
            let config = Config::read(Some(&file)).map_err(anyhow::Error::from)?;
            println!("{} is sound", file.display());
            for line in policy::explain(&config.policy) {
                println!("{}", wrap(&line, 80, 2));
            }
        }
    }
    Ok(())
}

/// Puts the text in a file's place once all of it is written.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let name = path.file_name().with_context(|| format!("{} is no name of a file", path.display()))?;
    let mut fresh = name.to_owned();
    fresh.push(".new");
    let fresh = path.with_file_name(fresh);
    fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
    if let Ok(before) = fs::metadata(path) {
        fs::set_permissions(&fresh, before.permissions())
            .with_context(|| format!("cannot give {} the old file's permissions", fresh.display()))?;
    }
    fs::rename(&fresh, path).with_context(|| format!("cannot put {} in its place", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_itself_is_written_whole() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("config.toml");
        fs::write(&path, "quarantine = 7\n").expect("written");
        let show = Command::Show { config: Some(path.clone()), output: Some(path.clone()) };
        assert!(run(show).is_ok());
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.contains("quarantine = 7") && text.contains("# default: "), "{text}");
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
        assert!(write(Path::new("/"), "").is_err());
    }
}
