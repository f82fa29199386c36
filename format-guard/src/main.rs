//! The `format-guard` command: a thin main over the library.

use std::process::ExitCode;

use clap::Parser;
use format_guard::cli::{self, Arguments};

fn main() -> ExitCode {
    cli::run(Arguments::parse())
}
