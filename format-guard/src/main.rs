//! The `format-guard` command: a thin main over the library.

use std::process::ExitCode;

use clap::Parser;
use format_guard::cli::{self, Arguments};

fn main() -> ExitCode {
    #[cfg(feature = "kubernetes")]
    if cli::kubectl::is_called() {
        return cli::kubectl::run(cli::kubectl::Arguments::parse());
    }
    cli::run(Arguments::parse())
}
