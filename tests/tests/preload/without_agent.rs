//! Without an agent, or without its rules, known formatters are refused on every block device, and no other
//! program is.

use std::{fs, os::unix::fs::FileExt, process::Command};

use anyhow::{Result, ensure};
use format_guard_tests::{
    device::{Device, Loop},
    guard::Guard,
    tool::{Ran, run_command},
};

use crate::{formatted, library};

/// Runs a line under the library, with a run directory in which no agent is.
fn alone(line: &str, run_dir: &str, without_agent: Option<&str>) -> Result<Ran> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("true"));
    command.args(words).env("FORMAT_GUARD_RUN_DIR", run_dir);
    if let Some(word) = without_agent {
        command.env("FORMAT_GUARD_WITHOUT_AGENT", word);
    }
    run_command(command, line, "")
}

#[test]
fn without_rules_formatters_are_refused_and_others_are_not() -> Result<()> {
    library()?;
    let directory = tempfile::tempdir()?;
    let nowhere = directory.path().to_string_lossy().into_owned();
    let device = Loop::new(16)?;
    let node = device.path().display();
    let before = device.sha256()?;
    let line = format!("mkfs.ext4 -q -F {node}");
    for content in
        [&b""[..], b"rubbish", b"fgrules\0rubbish that is longer than a header of a file of rules is"]
    {
        fs::write(directory.path().join("rules"), content)?;
        let ran = alone(&line, &nowhere, None)?;
        ensure!(ran.status != 0, "{ran:?}");
        let said: Vec<&str> = ran.text.lines().filter(|line| line.starts_with("format-guard: ")).collect();
        let wanted = format!(
            "format-guard: mkfs.ext4 may not write to {node}: no agent answers at {nowhere}/preload.sock; start it, or let \
             this pass with FORMAT_GUARD_WITHOUT_AGENT=allow"
        );
        ensure!(said == [wanted.as_str()], "{ran:?}");
    }
    ensure!(device.sha256()? == before, "bytes changed");
    let ran = alone(&format!("dd if=/dev/urandom of={node} bs=4096 count=1 conv=fsync"), &nowhere, None)?;
    ensure!(ran.status == 0 && device.sha256()? != before, "{ran:?}");
    let ran = alone(&line, &nowhere, Some("allow"))?;
    ensure!(ran.status == 0, "{ran:?}");
    Ok(())
}

#[test]
fn what_is_published_stays_in_force_when_the_agent_is_gone() -> Result<()> {
    let mut guard = Guard::start()?;
    let (device, blank) = (formatted(&guard, 64)?, Loop::new(64)?);
    guard.wait_for_state(blank.path(), "blank")?;
    guard.kill_agent()?;
    let before = (device.sha256()?, blank.sha256()?);
    let run_dir = std::env::var("FORMAT_GUARD_RUN_DIR")?;
    for line in [
        format!("mkfs.xfs -f --unsupported {}", device.path().display()),
        format!("dd if=/dev/zero of={} bs=1M count=1", device.path().display()),
        // Nobody would learn of the format.
        format!("mkfs.ext4 -q -F {}", blank.path().display()),
    ] {
        let ran = alone(&line, &run_dir, None)?;
        ensure!(ran.status != 0 && ran.text.contains("no agent answers"), "{ran:?}");
    }
    ensure!((device.sha256()?, blank.sha256()?) == before, "bytes changed");
    // Everybody may write beside the marks.
    let file = fs::OpenOptions::new().write(true).open(device.path())?;
    file.write_all_at(&[7; 4096], 40 << 20)?;
    guard.start_agent()?;
    guard.wait_for_state(device.path(), "formatted")?;
    Ok(())
}
