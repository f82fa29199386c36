//! `format-guard man` and `format-guard completions`: made of the definition of the command line itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::CommandError;

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct Manual {
    /// Directory for the pages, made if it is not there
    directory: PathBuf,
}

pub(super) fn completions(arguments: &Completions) {
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "format-guard", &mut io::stdout());
}

pub(super) fn pages(arguments: &Manual) -> Result<(), CommandError> {
    write(&arguments.directory)
        .with_context(|| format!("cannot write the manual to {}", arguments.directory.display()))?;
    Ok(())
}

fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(super::Arguments::command(), directory)
}
