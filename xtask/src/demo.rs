//! `cargo xtask demo`: shows the guard's main job on real block devices, on this host if its kernel can
//! enforce, otherwise in a guest.

use std::{
    fs, io,
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    build::executable,
    command::{command, output, workspace},
    guest::{Clock, Guest, with_guard},
    kernels::Kernel,
    recording::{self, Recorder},
    setup,
};

/// The file of the recording.
const RECORDING: &str = "docs/pictures/demo.svg";
/// The sections of the demo that the recording shows, by the beginnings of their titles.
const RECORDED: [&str; 4] = [
    "A blank volume is formatted once",
    "The storage engine is degraded",
    "The data path is back",
    "The same without the guard",
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel of the guest: 6.1, 6.12, 6.18 or 7
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Keep what is printed as a picture, docs/pictures/demo.svg
    #[arg(long)]
    record: bool,
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
        run.env("FORMAT_GUARD_BINARY", &guard).stdout(Stdio::piped());
        let mut run = run.spawn()?;
        let mut recorder = Recorder::new(io::stdout());
        io::copy(run.stdout.as_mut().context("the demo has no output")?, &mut recorder)?;
        let well = run.wait()?.success();
        keep(arguments, well, recorder)?;
        return Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
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
    let mut recorder = Recorder::new(io::stdout());
    let status = guest.run(&mut recorder)?;
    keep(arguments, status == 0, recorder)?;
    Ok(ExitCode::from(status))
}

/// Records the output of a demo that succeeded, if a recording was asked for.
fn keep(arguments: &Arguments, well: bool, recorder: Recorder<io::Stdout>) -> Result<()> {
    if !arguments.record || !well {
        return Ok(());
    }
    let lines = recording::sections(&recorder.lines(), &RECORDED);
    let titles = lines.iter().filter(|line| line.text.starts_with("== ")).count();
    ensure!(titles == RECORDED.len(), "the demo has {titles} of the {} sections to record", RECORDED.len());
    let picture = recording::svg("format-guard refuses a format over a volume that reads as zeros", &lines);
    fs::write(workspace().join(RECORDING), picture).context(RECORDING)?;
    println!("demo: recorded in {RECORDING}");
    Ok(())
}
