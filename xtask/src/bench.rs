//! `cargo xtask bench`: measures what the guard costs. Nothing is asserted.

use std::{fs, process::ExitCode, slice, time::Duration};

use anyhow::Result;

use crate::{
    build::{executable, released},
    cgroup,
    command::{command, read, show, workspace},
    guest::{Clock, Guest, with_guard},
    kernels::{Kernel, chosen},
    setup,
};

#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// What thousands of volumes cost: start, memory, time from attach to rule
    Attach {
        /// Kernel of the guest: 6.1, 6.12, 6.18 or 7
        #[arg(long, default_value = "6.18")]
        kernel: String,
        /// Records in the database
        #[arg(long, default_value_t = 100_000)]
        records: u32,
        /// Volumes that are attached at the start
        #[arg(long, default_value_t = 2000)]
        volumes: u32,
        /// Run on this host, by tier cgroup and over loop devices: in seconds of its own clock
        #[arg(long, conflicts_with = "kernel")]
        here: bool,
    },
    /// What sharing through etcd costs, on this host: claims, transitions, a thousand nodes
    Store,
    /// What the guard costs per system call, in guest instructions
    Hook {
        /// Kernel of the guest: 6.1, 6.12, 6.18, 7 or all
        #[arg(long, default_value = "6.18")]
        kernel: String,
    },
}

/// `cargo xtask bench`
pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    setup::root("guests read this machine's root, and control groups are made here")?;
    setup::ready()?;
    match bench {
        Bench::Attach { kernel, records, volumes, here } => {
            attach((!here).then_some(kernel), *records, *volumes)
        }
        Bench::Hook { kernel } => hook(kernel),
        Bench::Store => store(),
    }
}

fn hook(kernel: &String) -> Result<ExitCode> {
    println!("bench: building");
    let guard = executable("bin", "format-guard")?;
    let bench = executable("bin", "bench-hook")?;
    let mut result = ExitCode::SUCCESS;
    for key in chosen(slice::from_ref(kernel), &[]) {
        let guest = Guest {
            kernel: Kernel::get(key)?,
            command: with_guard(&guard, &bench, []),
            disks: Vec::new(),
            timeout: Duration::from_mins(20),
            clock: Clock::Instructions,
            parameters: String::new(),
            network: false,
        };
        let status = guest.run(&mut std::io::stdout())?;
        if status != 0 {
            result = ExitCode::from(status);
        }
    }
    Ok(result)
}

fn store() -> Result<ExitCode> {
    println!("bench: building");
    let bench = released("format-guard-tests", "bench-store")?;
    show(command(&bench.to_string_lossy(), [""; 0])).map(|()| ExitCode::SUCCESS)
}

/// Runs it in a guest with this kernel, or here.
fn attach(kernel: Option<&String>, records: u32, volumes: u32) -> Result<ExitCode> {
    println!("bench: building");
    let guard = released("format-guard", "format-guard")?;
    let bench = released("format-guard-tests", "bench-attach")?;
    let maker = released("format-guard-tests", "make-records")?;
    println!("bench: making {records} records");
    // The database is in memory: every commit is flushed to the disk.
    let made = tempfile::tempdir_in("/dev/shm")?;
    let mut maker = command(&maker.to_string_lossy(), [made.path()]);
    maker.arg(records.to_string());
    read(maker)?;
    let kept = tempfile::tempdir_in(workspace().join("target"))?;
    for file in fs::read_dir(made.path())? {
        let file = file?;
        fs::copy(file.path(), kept.path().join(file.file_name()))?;
    }
    let variables = [
        ("FORMAT_GUARD_RECORDS", kept.path().display().to_string()),
        ("FORMAT_GUARD_VOLUMES", volumes.to_string()),
        ("FORMAT_GUARD_DEVICES", if kernel.is_some() { "linear" } else { "loops" }.to_owned()),
    ];
    let Some(kernel) = kernel else {
        let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
        let held = cgroup::run(&guard, &bench, &variables)?;
        return Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    };
    let mut words = with_guard(&guard, &bench, []);
    for (name, value) in variables {
        words.insert(1, format!("{name}={value}").into());
    }
    let guest = Guest {
        kernel: Kernel::get(kernel)?,
        command: words,
        disks: Vec::new(),
        timeout: Duration::from_hours(1),
        clock: Clock::Instructions,
        parameters: String::new(),
        network: false,
    };
    Ok(ExitCode::from(guest.run(&mut std::io::stdout())?))
}
