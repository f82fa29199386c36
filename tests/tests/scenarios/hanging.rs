//! A device that hangs, fails or lags delays only itself.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Iscsi, Linear, Loop, Mapped},
    guard::Guard,
    tool::{command, module, must, run},
};

use crate::make_ext4;

const MIB: u64 = 1 << 20;
/// The deadline of probes here: whoever waits for a hanging probe is delayed for longer. It is far more than
/// anything takes under emulation.
const PROBE_DEADLINE: Duration = Duration::from_secs(50);

/// A guard with this deadline for probes.
fn patient() -> Result<Guard> {
    let guard = Guard::start()?;
    guard.configure(&format!("probe_deadline = {}", PROBE_DEADLINE.as_secs()))?;
    Ok(guard)
}

/// Another device is armed, formatted and guarded, and the agent stops and starts: all of it takes less time
/// than one hanging probe.
fn nobody_else_waits(guard: &mut Guard) -> Result<()> {
    let start = Instant::now();
    let other = Loop::new(32)?;
    make_ext4(guard, other.path())?;
    refused(guard, &format!("mkfs.ext4 -F {}", other.path().display()), "")?;
    ensure!(start.elapsed() < PROBE_DEADLINE, "another device waited for {:?}", start.elapsed());
    let took = guard.stop_agent()?;
    ensure!(took < PROBE_DEADLINE / 2, "the stop took {took:?}");
    guard.start_agent()?;
    guard.wait_for_state(other.path(), "formatted").map(drop)
}

/// The volume is known to be present, and is not verified.
fn unverified(guard: &Guard, device: &impl Device) -> Result<()> {
    guard.wait_for_state(device.path(), "unverified").map(drop)
}

#[test]
fn a_suspended_device_holds_up_nobody() -> Result<()> {
    let mut guard = patient()?;
    let below = Loop::new(32)?;
    let device = Linear::over("fg-suspended", "FGTEST-suspended", below.path(), 0, 32 * MIB)?;
    guard.wait_for_state(device.path(), "blank")?;
    device.suspend()?;
    // The next agent does not trust what this one armed.
    let result = nobody_else_waits(&mut guard).and_then(|()| unverified(&guard, &device));
    device.resume()?;
    result?;
    guard.wait_for_state(device.path(), "blank").map(drop)
}

#[test]
fn a_device_that_lags_holds_up_nobody() -> Result<()> {
    module("dm_delay")?;
    let mut guard = patient()?;
    let below = Loop::new(32)?;
    let device = Linear::over("fg-lagging", "FGTEST-lagging", below.path(), 0, 32 * MIB)?;
    device.reload(&format!("0 {} delay {} 0 120000", 32 * MIB / 512, below.path().display()))?;
    guard.stop_agent()?;
    guard.start_agent()?;
    unverified(&guard, &device)?;
    nobody_else_waits(&mut guard)?;
    device.reload(&format!("0 {} linear {} 0", 32 * MIB / 512, below.path().display()))
}

#[test]
fn a_device_that_fails_holds_up_nobody() -> Result<()> {
    let mut guard = patient()?;
    let device = Mapped::failing(32)?;
    unverified(&guard, &device)?;
    nobody_else_waits(&mut guard)?;
    let volume = guard.wait_for_volume(device.path(), "unverified by a read that failed", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("read failed"))
    })?;
    ensure!(volume["state"] == "unverified", "{volume}");
    refused(&guard, &format!("mkfs.ext4 -F {}", device.path().display()), "").map(drop)
}

#[test]
fn a_dead_iscsi_session_holds_up_nobody() -> Result<()> {
    let mut guard = patient()?;
    let volume = Iscsi::new(32)?;
    make_ext4(&guard, volume.path())?;
    let id = guard.volume(volume.path())?["id"].as_str().context("no id")?.to_owned();
    // Longer than a caller of a probe may wait, and no longer than this needs.
    volume.fail_after(PROBE_DEADLINE + Duration::from_secs(10))?;
    volume.stop_serving()?;
    // The tool reads before it writes, and waits for the read.
    let mut formatter = command(&format!("mkfs.ext4 -F {}", volume.path().display()));
    let formatter = formatter.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    nobody_else_waits(&mut guard)?;
    // A recorded volume is guarded although it cannot be read.
    let known = guard.wait_for_state(volume.path(), "formatted")?;
    ensure!(known["id"] == id.as_str(), "{known}");
    let ended = formatter.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(!ended.status.success() && said.contains("Operation not permitted"), "{said}");
    Ok(())
}

/// A program that has made a file system and removes the device again, as LVM and cryptsetup do, meets no
/// probe that outlasts its retries.
#[test]
fn a_device_that_was_just_formatted_is_taken_away_at_once() -> Result<()> {
    let guard = Guard::shared()?;
    for cycle in 0..20 {
        let below = Loop::new(16)?;
        let name = format!("fg-taken-{cycle}");
        let device = Linear::over(&name, &format!("FGTEST-taken-{cycle}"), below.path(), 0, 16 * MIB)?;
        guard.wait_for_state(device.path(), "blank")?;
        must(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
        let ran = run(&format!("dmsetup remove --retry {name}"))?;
        ensure!(ran.status == 0, "cycle {cycle}: {}", ran.text);
    }
    Ok(())
}
