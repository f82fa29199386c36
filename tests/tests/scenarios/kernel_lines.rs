//! The kernel programs write lines of their own if the log asks for them, and none otherwise.

use std::{ffi::OsStr, os::unix::fs::FileExt};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    device::{Device, Loop},
    guard::Guard,
    road::{GARBAGE, in_child},
    wait_for,
};

use crate::make_ext4;

/// Every line of the kernel programs has it.
const TARGET: &str = "format_guard_ebpf";

fn is_refused(device: &Loop) -> Result<()> {
    let refused = in_child(|| {
        let file = std::fs::File::options().write(true).open(device.path())?;
        file.write_all_at(&GARBAGE, 0)
    })?;
    let errno = refused.wait()?.err().and_then(|error| error.raw_os_error());
    ensure!(errno == Some(libc::EPERM), "errno {errno:?}");
    Ok(())
}

#[test]
fn a_write_and_its_verdict_are_lines_of_the_log_that_asks_for_them() -> Result<()> {
    let mut guard = Guard::unstarted(None)?;
    guard.set_variable("FORMAT_GUARD_LOG", OsStr::new("info,format_guard_ebpf=trace"));
    guard.start_agent()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    is_refused(&device)?;
    let lines = ["a write of 4096 bytes at 0", "operation=write state=formatted verdict=denied"];
    wait_for("the lines of the kernel programs", || {
        let log = guard.log();
        let has = |text: &str| log.lines().any(|line| line.contains(TARGET) && line.contains(text));
        Ok(lines.iter().all(|text| has(text)).then_some(()))
    })
    .with_context(|| guard.log())?;
    // The next agent asks for none: what writes them is replaced, and goes on to refuse.
    guard.set_variable("FORMAT_GUARD_LOG", OsStr::new("info"));
    guard.stop_agent()?;
    guard.start_agent()?;
    let count = || guard.log().lines().filter(|line| line.contains(TARGET)).count();
    let so_far = count();
    is_refused(&device)?;
    wait_for("the second refusal to be told", || Ok((guard.events("denied")?.len() > 1).then_some(())))?;
    ensure!(count() == so_far, "{}", guard.log());
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}
