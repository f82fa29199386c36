//! The `format-guard` command with the points at which tests kill it. Nobody installs it.

use std::process::ExitCode;

use clap::Parser;
use format_guard::cli::{self, Arguments};

fn main() -> ExitCode {
    cli::run(Arguments::parse())
}
