//! `cargo xtask demo`: shows the main job on real block devices, here if this kernel enforces, else in a
//! guest.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;

use crate::{
    build::executable,
    command::{command, output},
    guest::{Clock, Guest, with_guard},
    kernels::Kernel,
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel of the guest: 6.1, 6.12, 6.18 or 7
    #[arg(long, default_value = "6.12")]
    kernel: String,
}

/// `cargo xtask demo`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::root("it makes block devices, and a guest reads this machine's root")?;
    setup::ready()?;
    println!("demo: building");
    let guard = executable("bin", "format-guard")?;
    let demo = executable("bin", "demo")?;
    let check = output(&mut command(&guard.to_string_lossy(), ["check"]))?;
    if check.status.success() {
        println!("demo: this host's kernel enforces (proven by the canary): running here");
        let mut run = command(&demo.to_string_lossy(), [] as [&str; 0]);
        run.env("FORMAT_GUARD_BINARY", &guard);
        let status = run.status()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let kernel = Kernel::get(&arguments.kernel)?;
    println!("demo: this host's kernel cannot enforce: running in a guest with kernel {}", kernel.release);
    let guest = Guest {
        kernel,
        command: with_guard(&guard, &demo, []),
        disks: Vec::new(),
        timeout: Duration::from_mins(15),
        clock: Clock::Host,
        parameters: String::new(),
        network: false,
    };
    Ok(ExitCode::from(guest.run(&mut std::io::stdout())?))
}
