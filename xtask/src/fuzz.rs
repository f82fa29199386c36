//! `cargo xtask fuzz`: runs the fuzz targets, each for a bounded time, from a seed that is printed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};

use crate::{
    command::{command, logged, output, workspace},
    setup,
};

/// One target for each kind of input that is not trusted.
pub(crate) const TARGETS: [&str; 8] =
    ["configuration", "content", "kernel_record", "kernel_types", "library", "request", "shared", "uevent"];

/// Instruments the crates of this workspace for the fuzzer.
const WRAPPER: &str = "fuzz/instrument.sh";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Target to run (may be repeated) [default: all]
    target: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Seed [default: the clock]
    #[arg(long)]
    seed: Option<u32>,
}

/// `cargo xtask fuzz`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ready()?;
    let directory = build()?;
    let mut result = ExitCode::SUCCESS;
    for target in TARGETS {
        let wanted = arguments.target.is_empty() || arguments.target.iter().any(|name| name == target);
        if wanted && !run_target(&directory, target, arguments.seconds, arguments.seed, None)? {
            result = ExitCode::FAILURE;
        }
    }
    if let Some(unknown) = arguments.target.iter().find(|name| !TARGETS.contains(&name.as_str())) {
        bail!("there is no target {unknown}; there are {}", TARGETS.join(", "));
    }
    Ok(result)
}

/// Builds every target, and returns their directory.
pub(crate) fn build() -> Result<PathBuf> {
    // Selecting all other targets, too, lets cargo reuse what they depend on.
    let mut cargo = command("cargo", ["build", "--quiet", "--workspace"]);
    cargo.args(["--exclude", "format-guard-ebpf", "--exclude", "format-guard-preload"]);
    cargo.args(TARGETS.iter().flat_map(|target| ["--bin", target]));
    cargo.env("RUSTC_WORKSPACE_WRAPPER", workspace().join(WRAPPER)).env("FORMAT_GUARD_WITHOUT_PROGRAMS", "1");
    cargo.current_dir(workspace()).stderr(Stdio::inherit());
    if !output(&mut cargo)?.status.success() {
        bail!("the fuzz targets do not build");
    }
    Ok(workspace().join("target/debug"))
}

/// Fuzzes a target for this long; true if nothing was found.
pub(crate) fn run_target(
    directory: &Path,
    target: &str,
    seconds: u64,
    seed: Option<u32>,
    log: Option<&File>,
) -> Result<bool> {
    let seed = match seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos(),
    };
    let kept = workspace().join("target/fuzz");
    let corpus = kept.join("corpus").join(target);
    let findings = kept.join("findings");
    for path in [&corpus, &findings] {
        fs::create_dir_all(path)?;
    }
    println!("fuzz: {target} for {seconds} s, seed {seed}");
    let program = directory.join(target);
    let mut fuzzer = command(&program.to_string_lossy(), ["-timeout=10", "-max_len=65536", "-verbosity=0"]);
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-seed={seed}"));
    fuzzer.arg(format!("-artifact_prefix={}/{target}-", findings.display()));
    let dictionary = workspace().join("fuzz/dictionaries").join(target);
    if dictionary.exists() {
        fuzzer.arg(format!("-dict={}", dictionary.display()));
    }
    fuzzer.arg(&corpus);
    // Inputs that a fuzzer would take long to find: images of file systems, a BTF of five types.
    let seeds = workspace().join("fuzz/seeds").join(target);
    if seeds.exists() {
        fuzzer.arg(&seeds);
    }
    let sound = match log {
        Some(log) => logged(&mut fuzzer, log)?,
        None => output(fuzzer.stderr(Stdio::inherit()))?.status.success(),
    };
    if !sound {
        println!("fuzz: {target} found something: {}/{target}-* holds it", findings.display());
    }
    Ok(sound)
}
