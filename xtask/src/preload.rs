//! Runs tests under the `LD_PRELOAD` library on this host, which needs no kernel of its own.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{
    command::{command, logged, output, workspace},
    guest::busybox,
};

const PROFILE: &str = "preload";
pub(crate) const NAME: &str = "libformat_guard_preload.so";

/// Scenarios of the agent, which hold in every tier.
const SCENARIOS: [&str; 8] = [
    "formats_once::a_loop",
    "audit::",
    "command_line::",
    "life::",
    "metrics::",
    "permit::",
    "states::",
    "roads::a_descriptor",
];
/// Scenarios among these that need more than the library. Some need device mapper, or only control groups of
/// version 2, which not every host has. Others test what kernel programs do and report while no agent runs,
/// or need a run directory of their own.
const NEEDS_MORE_HOST: [&str; 10] = [
    "command_line::a_refusal_names",
    "command_line::ensure_fs_goes_on_after",
    "command_line::ensure_fs_is_not_fooled",
    "command_line::the_configuration_is_read_again",
    "life::a_dm_volume",
    "life::a_format_that_began_while_no_agent_ran",
    "states::a_first_format_killed_half_way",
    "states::a_first_format_that_failed_and_was_mounted",
    "states::a_format_that_ended_well",
    "states::a_volume_that_reads_as_something_else",
];

/// Builds the library, and copies it to the directory of the program, where the program looks for it.
pub(crate) fn library(guard: &Path) -> Result<PathBuf> {
    let mut cargo =
        command("cargo", ["build", "--quiet", "--profile", PROFILE, "--package", "format-guard-preload"]);
    if !cargo.current_dir(workspace()).status()?.success() {
        bail!("the LD_PRELOAD library does not build");
    }
    let target = guard.parent().and_then(Path::parent).context("the program is in no target directory")?;
    let beside = guard.with_file_name(NAME);
    fs::copy(target.join(PROFILE).join(NAME), &beside)?;
    Ok(beside)
}

/// Arguments that select the scenarios that run under the library.
pub(crate) fn scenarios() -> impl Iterator<Item = &'static str> {
    SCENARIOS.into_iter().chain(NEEDS_MORE_HOST.into_iter().flat_map(|name| ["--skip", name]))
}

/// Runs tests under the library, which is beside the guard; true if all passed. Their output goes to the log.
pub(crate) fn run_tests(guard: &Path, tests: &Path, words: &[&str], log: &File) -> Result<bool> {
    let run_dir = run_directory()?;
    let words = [&["--test-threads=1"], words].concat();
    logged(&mut under_the_library(guard, tests, &words, &run_dir, &[])?, log)
}

/// Runs a table of `cargo xtask matrix` on these kinds of volumes. Returns whether every row passed, and the
/// output.
pub(crate) fn table(guard: &Path, matrix: &Path, table: &str, kinds: &[String]) -> Result<(bool, String)> {
    library(guard)?;
    let run_dir = run_directory()?;
    let words: Vec<&str> = [table, "0/1"].into_iter().chain(kinds.iter().map(String::as_str)).collect();
    // The volumes are made before an agent runs.
    let mut run =
        under_the_library(guard, matrix, &words, &run_dir, &[("FORMAT_GUARD_WITHOUT_AGENT", "allow")])?;
    let ran = output(run.stderr(Stdio::inherit()))?;
    Ok((ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned()))
}

fn run_directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("fg-preload-").tempdir_in("/run")?)
}

/// An executable that runs under the library.
fn under_the_library(
    guard: &Path,
    executable: &Path,
    words: &[&str],
    run_dir: &TempDir,
    variables: &[(&str, &str)],
) -> Result<Command> {
    let run_dir = run_dir.path();
    // Appended, so that the machine's own programs come first.
    let path = format!("{}:{}", env::var("PATH").unwrap_or_default(), busybox::folder()?.display());
    // Agents and mounts that a test leaves end with their namespaces.
    let mut run = command("unshare", ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]);
    run.arg("env")
        .arg(format!("PATH={path}"))
        .arg(format!("LD_PRELOAD={}", guard.with_file_name(NAME).display()))
        .arg(format!("FORMAT_GUARD_RUN_DIR={}", run_dir.display()))
        .arg(format!("FORMAT_GUARD_BINARY={}", guard.display()))
        .arg("FORMAT_GUARD_TIER=preload")
        .args(variables.iter().map(|(name, value)| format!("{name}={value}")))
        .arg(executable)
        .args(words)
        .current_dir(workspace());
    Ok(run)
}
