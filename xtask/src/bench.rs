//! `cargo xtask bench`: figures, each by a command of its own. They are no tests.

use std::{process::ExitCode, slice, time::Duration};

use anyhow::Result;

use crate::{
    build::executable,
    guest::{Cpu, Guest, against},
    kernels::{Kernel, chosen},
    setup,
};

#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// What the guard costs per system call, in guest instructions
    Hook {
        /// Kernel of the guest: 6.1, 6.12, 6.18, 7 or all
        #[arg(long, default_value = "6.18")]
        kernel: String,
    },
}

/// `cargo xtask bench`
pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    setup::ready()?;
    match bench {
        Bench::Hook { kernel } => hook(kernel),
    }
}

fn hook(kernel: &String) -> Result<ExitCode> {
    println!("bench: building");
    let guard = executable("format-guard", "bin", "format-guard")?;
    let bench = executable("format-guard-tests", "bin", "bench-hook")?;
    let mut result = ExitCode::SUCCESS;
    for key in chosen(slice::from_ref(kernel), &[]) {
        let guest = Guest {
            kernel: Kernel::get(key)?,
            command: against(&guard, &bench, []),
            disks: Vec::new(),
            timeout: Duration::from_mins(20),
            cpu: Cpu::Counting,
        };
        let status = guest.run(&mut std::io::stdout())?;
        if status != 0 {
            result = ExitCode::from(status);
        }
    }
    Ok(result)
}
