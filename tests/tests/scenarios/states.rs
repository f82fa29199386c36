//! The states of a volume through the failures of a format.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Child, time::Duration};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Image, Linear, Loop, Snapshot},
    guard::Guard,
    tool::{command, must, run},
    wait_for,
};

use crate::make_ext4;

const MIB: u64 = 1 << 20;

/// Starts a format of a device whose writes take seconds, and returns while it runs.
fn slow_format(guard: &Guard, path: &Path) -> Result<Child> {
    guard.wait_for_state(path, "blank")?;
    let child = command(&format!("mkfs.ext4 -F -q -E nodiscard {}", path.display())).spawn()?;
    wait_for("the format to begin", || Ok((guard.volume(path)?["state"] == "formatting").then_some(())))?;
    Ok(child)
}

#[test]
fn a_first_format_killed_half_way_may_be_tried_again() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(64)?;
    let device = Linear::over("fg-slow", "FGTEST-slow", below.path(), 0, 64 * MIB)?;
    device.slow_writes(below.path(), 64 * MIB, Duration::from_secs(3))?;
    let path = device.path();
    let mut mkfs = slow_format(&guard, path)?;
    ensure!(guard.volume(path)?["state"] == "formatting");
    // While the formatter may still run, no other one begins; other programs are only told that the device is
    // in use.
    refused(&guard, &format!("wipefs -a -f {}", path.display()), "")?;
    mkfs.kill()?;
    ensure!(!mkfs.wait()?.success(), "it ended before it was killed: nothing is shown");
    device.slow_writes(below.path(), 64 * MIB, Duration::ZERO)?;
    make_ext4(&guard, path)?;
    refused(&guard, &format!("mkfs.ext4 -F {}", path.display()), "").map(drop)
}

/// A formatter copies a file system, mounts it, and fails after all: a mounted file system may hold data.
#[test]
fn a_first_format_that_failed_and_was_mounted_is_kept() -> Result<()> {
    let guard = Guard::shared()?;
    let image = Image::new(32)?;
    must(&format!("mkfs.ext4 -F -q {}", image.path().display()))?;
    let device = Loop::new(32)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    fs::create_dir_all("/run/fg-point")?;
    let script = "/var/tmp/mkfs.ext4";
    fs::write(
        script,
        "#!/usr/bin/perl\nmy ($image, $device) = @ARGV;\nopen my $in, '<', $image or die;\nopen my $out, '+<', $device or \
         die;\nwhile (sysread $in, my $bytes, 1 << 20) { syswrite $out, $bytes or die; }\nclose $out or die;\nsystem \
         'mount', $device, '/run/fg-point';\nsystem 'umount', '/run/fg-point';\nexit 1;\n",
    )?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
    let status =
        command(&format!("{script} {} {}", image.path().display(), path.display())).spawn()?.wait()?;
    fs::remove_file(script)?;
    ensure!(status.code() == Some(1), "the formatter ended with {status}");
    let volume = guard.wait_for_state(path, "formatted")?;
    ensure!(volume["mounted"] == true && volume["formatter"]["comm"] == "mkfs.ext4", "{volume}");
    let before = device.sha256()?;
    refused(&guard, &format!("mkfs.ext4 -F {}", path.display()), "")?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

/// A program by the name of mkfs.xfs, which opens a device for writing and writes what dd is told to.
fn formatter_that(does: &str, path: &Path) -> Result<()> {
    let directory = tempfile::tempdir_in("/var/tmp")?;
    let copy = directory.path().join("mkfs.xfs");
    fs::copy("/usr/bin/dd", &copy)?;
    must(&format!("{} of={} conv=notrunc {does}", copy.display(), path.display())).map(drop)
}

#[test]
fn a_formatter_that_writes_nothing_leaves_a_blank_volume_blank() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(32)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    formatter_that("if=/dev/zero count=0", path)?;
    let seen = guard.events("format-began")?;
    ensure!(
        seen.iter().any(|event| event["text"].as_str().is_some_and(|text| text.contains("mkfs.xfs"))),
        "{seen:?}"
    );
    guard.wait_for_state(path, "blank")?;
    make_ext4(&guard, path)
}

/// The device may read as zeros for a moment: another format would destroy what is there.
#[test]
fn a_format_that_ended_well_is_kept_though_the_device_reads_blank() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(32)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    formatter_that("if=/dev/urandom bs=4096 count=1 seek=4000", path)?;
    let volume = guard.wait_for_state(path, "formatted")?;
    ensure!(volume["discrepancy"].as_str().is_some_and(|text| text.contains("reads blank")), "{volume}");
    let before = device.sha256()?;
    refused(&guard, &format!("mkfs.ext4 -F {}", path.display()), "")?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

/// Without an agent nobody would record the format.
#[test]
fn a_stopped_agent_lets_no_format_begin() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(32)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    guard.stop_agent()?;
    let before = device.sha256()?;
    let ran = run(&format!("mkfs.ext4 -F {}", path.display()))?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{ran:?}");
    ensure!(device.sha256()? == before, "bytes changed");
    guard.start_agent()?;
    make_ext4(&guard, path)
}

#[test]
fn a_volume_that_reads_as_something_else_is_reported_and_kept() -> Result<()> {
    let guard = Guard::shared()?;
    let (own, other) = (Loop::new(64)?, Loop::new(64)?);
    let device = Linear::over("fg-swapped", "FGTEST-swapped", own.path(), 0, 64 * MIB)?;
    make_ext4(&guard, device.path())?;
    guard.wait_for_state(other.path(), "blank")?;
    must(&format!("mkfs.xfs -f -q --unsupported {}", other.path().display()))?;
    guard.wait_for_state(other.path(), "formatted")?;
    let table = |below: &Loop| format!("0 {} linear {} 0", 64 * MIB / 512, below.path().display());
    device.reload(&table(&other))?;
    let volume =
        guard.wait_for_volume(device.path(), "reported", |volume| volume["discrepancy"].is_string())?;
    ensure!(volume["state"] == "formatted" && volume["content"]["types"][0] == "ext4", "{volume}");
    ensure!(volume["discrepancy"].as_str().is_some_and(|text| text.contains("xfs")), "{volume}");
    let (before, node) = (other.sha256()?, device.path().display());
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    refused(&guard, &format!("wipefs -a -f {node}"), "")?;
    ensure!(other.sha256()? == before, "bytes changed");
    ensure!(guard.json("status")?["discrepancies"] == 1);
    device.reload(&table(&own))?;
    guard.wait_for_volume(device.path(), "as recorded", |volume| volume["discrepancy"].is_null())?;
    let kinds = guard.events("discrepancy-ended")?;
    ensure!(kinds.len() == 1, "{kinds:#?}");
    Ok(())
}

#[test]
fn an_exempt_volume_is_left_alone_until_it_is_adopted() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(32)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    let volume = guard.json(&format!("volume exempt {node} --reason benchmark"))?;
    ensure!(volume["state"] == "exempt", "{volume}");
    for _ in 0..2 {
        must(&format!("mkfs.ext4 -F -q {node}"))?;
        must(&format!("wipefs -a -f {node}"))?;
    }
    must(&format!("mkfs.ext4 -F -q {node}"))?;
    let volume = guard.json(&format!("volume adopt {node} --reason test"))?;
    ensure!(volume["state"] == "formatted", "{volume}");
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    let cause = guard.volume(device.path())?["cause"].as_str().context("no cause")?.to_owned();
    ensure!(cause == "adopted by user 0: test", "{cause}");
    Ok(())
}

#[test]
fn a_class_of_volumes_is_strict_by_the_configuration() -> Result<()> {
    let guard = Guard::start()?;
    let device = Loop::new(32)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    let data = format!("dd if=/dev/urandom of={node} bs=4k count=1 seek=5000 conv=notrunc,fsync");
    guard.configure("strict = ['iscsi:*', 'loop:*']")?;
    let before = Snapshot::of(&device)?;
    refused(&guard, &data, "")?;
    before.unchanged(&device)?;
    ensure!(guard.volume(device.path())?["strict"] == true, "{}", guard.volume(device.path())?);
    must(&format!("e2fsck -fy {node}"))?;
    // A blank volume takes its first format, by whatever program.
    let other = Loop::new(32)?;
    guard.wait_for_state(other.path(), "blank")?;
    must(&format!("dd if={node} of={} bs=1M conv=fsync", other.path().display())).map(drop)
}

#[test]
fn a_strict_volume_is_written_to_by_known_programs_alone() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(32)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    // Any program may write bytes without a mark, until the volume is strict.
    let data = format!("dd if=/dev/urandom of={node} bs=4k count=1 seek=5000 conv=notrunc,fsync");
    must(&data)?;
    let everywhere = guard.say("mode strict --reason test")?;
    ensure!(everywhere.status == 2 && everywhere.text.contains("--volume"), "{everywhere:?}");
    guard.json(&format!("mode strict --volume {node} --reason test"))?;
    let before = device.sha256()?;
    for _ in 0..2 {
        ensure!(guard.say(&format!("mode --volume {node}"))?.text.trim() == "strict");
        refused(&guard, &data, "")?;
        let events = guard.events("denied")?;
        ensure!(events.last().is_some_and(|event| event["refusal"]["reason"] == "strict"), "{events:#?}");
        ensure!(device.sha256()? == before, "bytes changed");
        // The mode belongs to the volume, and outlives the agent.
        guard.kill_agent()?;
        guard.start_agent()?;
        guard.wait_for_state(device.path(), "formatted")?;
    }
    let refusals = guard.events("denied")?.len();
    must(&format!("e2fsck -fy {node}"))?;
    must(&format!("tune2fs -L data {node}"))?;
    fs::create_dir_all("/run/fg-strict")?;
    must(&format!("mount {node} /run/fg-strict"))?;
    must("umount /run/fg-strict")?;
    guard.json(&format!("mode enforce --volume {node} --reason over"))?;
    must(&data)?;
    ensure!(guard.events("denied")?.len() == refusals, "{:#?}", guard.events("denied")?);
    Ok(())
}
