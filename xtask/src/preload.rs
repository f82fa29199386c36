//! Tests under the `LD_PRELOAD` library, on this host: it needs no kernel of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::executable,
    command::{command, output, workspace},
};

const PROFILE: &str = "preload";
pub(crate) const NAME: &str = "libformat_guard_preload.so";

/// Scenarios of what the agent does, whatever refuses.
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
/// Those of them that are about more: device mapper and a hierarchy of control groups of version 2 alone, which not every host
/// has; what kernel programs do and tell while no agent runs; a run directory of their own.
const ABOUT_MORE: [&str; 10] = [
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

/// Builds the library, and puts it where the program looks for it: beside itself.
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

/// The executables of tests that run under the library.
pub(crate) const TESTS: [&str; 2] = ["preload", "scenarios"];

/// Runs one of them; whether it ended well, and what it printed.
pub(crate) fn hold(guard: &Path, tests: &str) -> Result<(bool, String)> {
    let mut words = vec!["--test-threads=1"];
    if tests == "scenarios" {
        words.extend(SCENARIOS.into_iter().chain(ABOUT_MORE.iter().flat_map(|name| ["--skip", name])));
    }
    run(guard, &executable("test", tests)?, &words, &[])
}

/// Runs a table of `cargo xtask matrix`, on these kinds of volumes: whether all of it is as it must be, and what it printed.
pub(crate) fn table(guard: &Path, matrix: &Path, table: &str, kinds: &[String]) -> Result<(bool, String)> {
    let words: Vec<&str> = [table, "0/1"].into_iter().chain(kinds.iter().map(String::as_str)).collect();
    // Its volumes are made before there is an agent.
    run(guard, matrix, &words, &[("FORMAT_GUARD_WITHOUT_AGENT", "allow")])
}

/// Runs an executable under the library; whether it ended well, and what it printed.
fn run(
    guard: &Path,
    executable: &Path,
    words: &[&str],
    variables: &[(&str, &str)],
) -> Result<(bool, String)> {
    let library = library(guard)?;
    let run_dir = tempfile::Builder::new().prefix("fg-preload-").tempdir_in("/run")?;
    // Agents and mounts that a test leaves go with their namespaces.
    let mut run = command("unshare", ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]);
    run.arg("env")
        .arg(format!("LD_PRELOAD={}", library.display()))
        .arg(format!("FORMAT_GUARD_RUN_DIR={}", run_dir.path().display()))
        .arg(format!("FORMAT_GUARD_BINARY={}", guard.display()))
        .arg("FORMAT_GUARD_TIER=preload")
        .args(variables.iter().map(|(name, value)| format!("{name}={value}")))
        .arg(executable)
        .args(words)
        .current_dir(workspace())
        .stderr(Stdio::inherit());
    let ran = output(&mut run)?;
    Ok((ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned()))
}
