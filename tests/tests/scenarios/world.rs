//! Devices go, come back as others, and change their size and their tables, and events of this are lost: the
//! guard judges by what is there.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Image, Iscsi, Linear, Loop, ScsiDisk, sha256},
    guard::Guard,
    tool::{must, must_with, open_as_formatter, run},
    wait_for,
};

use crate::make_ext4;

const MIB: u64 = 1 << 20;
/// How often a number passes to another volume, unless `FORMAT_GUARD_REUSES` names a number.
const REUSES: u32 = 8;

fn count(guard: &Guard, name: &str) -> Result<u64> {
    guard.json("status")?[name].as_u64().with_context(|| format!("no {name}"))
}

/// Checks that neither a formatter nor a write to a mark succeeds now, whatever the agent has heard so far.
fn refused_at_once(path: &Path) -> Result<()> {
    let opened = open_as_formatter(path).map(drop).map_err(|error| error.kind());
    ensure!(opened == Err(ErrorKind::PermissionDenied), "{} opened: {opened:?}", path.display());
    Ok(())
}

#[test]
fn a_device_that_goes_in_the_middle_of_its_probe_is_gone() -> Result<()> {
    let guard = Guard::shared()?;
    let before = count(&guard, "devices")?;
    // Every command takes a minute.
    let disk = ScsiDisk::new("delay=0")?;
    guard.wait_for_state(disk.path(), "blank")?;
    let delay = Path::new("/sys/bus/pseudo/drivers/scsi_debug/delay");
    wait_for("the disk to be idle", || Ok(fs::write(delay, "15000").ok()))?;
    must(&format!("blockdev --flushbufs {}", disk.path().display()))?;
    let name = disk.path().file_name().context("no name")?;
    let uevent = Path::new("/sys/class/block").join(name).join("uevent");
    fs::write(&uevent, "change")?;
    wait_for("the probe", || Ok((count(&guard, "probing")? > 0).then_some(())))?;
    disk.pull()?;
    wait_for("the device to be forgotten", || Ok((count(&guard, "devices")? == before).then_some(())))?;
    let other = Loop::new(16)?;
    make_ext4(&guard, other.path())?;
    refused(&guard, &format!("mkfs.ext4 -F {}", other.path().display()), "").map(drop)
}

/// A device number that alternates between a blank, armed volume and a formatted one.
fn reuse(
    guard: &Guard,
    times: u32,
    blank: impl Fn() -> Result<Box<dyn Device>>,
    formatted: impl Fn() -> Result<Box<dyn Device>>,
) -> Result<()> {
    let device = formatted()?;
    make_ext4(guard, device.path())?;
    let known = (device.path().to_owned(), device.sha256()?);
    drop(device);
    for time in 0..times {
        let device = blank()?;
        ensure!(device.path() == known.0, "another node: the scenario shows nothing");
        guard.wait_for_state(device.path(), "blank")?;
        drop(device);
        let device = formatted()?;
        ensure!(device.path() == known.0, "another node: the scenario shows nothing");
        refused_at_once(device.path()).with_context(|| format!("time {time}"))?;
        ensure!(device.sha256()? == known.1, "bytes changed at time {time}");
        drop(device);
    }
    println!("{} came to another volume {times} times", known.0.display());
    // The formatter was cut off from the old volume; it may write to the present one.
    let device = blank()?;
    make_ext4(guard, device.path())
}

fn times() -> Result<u32> {
    Ok(env::var("FORMAT_GUARD_REUSES").ok().map_or(Ok(REUSES), |number| number.parse())?)
}

#[test]
fn a_loop_number_that_comes_to_another_volume_carries_nothing_over() -> Result<()> {
    let guard = Guard::shared()?;
    let (blank, formatted) = (Image::new(16)?, Image::new(16)?);
    let node = PathBuf::from("/dev/loop30");
    let attach =
        |image: &Image| Loop::at(&node, image.path()).map(|device| Box::new(device) as Box<dyn Device>);
    reuse(&guard, times()?, || attach(&blank), || attach(&formatted))
}

#[test]
fn a_dm_number_and_name_that_come_to_another_volume_carry_nothing_over() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(32)?;
    let attach = |uuid: &str, start: u64| {
        let device = Linear::over("fg-again", uuid, below.path(), start, 16 * MIB)?;
        Ok(Box::new(device) as Box<dyn Device>)
    };
    reuse(&guard, times()?, || attach("FGTEST-again-1", 0), || attach("FGTEST-again-2", 16 * MIB))
}

#[test]
fn an_iscsi_name_that_comes_to_another_volume_carries_nothing_over() -> Result<()> {
    let guard = Guard::shared()?;
    let (mut blank, mut formatted) = (Iscsi::new(32)?, Iscsi::new(32)?);
    make_ext4(&guard, formatted.path())?;
    let sum = formatted.sha256()?;
    blank.log_out()?;
    formatted.log_out()?;
    formatted.log_in()?;
    for time in 0..times()?.div_ceil(10) {
        let node = formatted.path().to_owned();
        formatted.log_out()?;
        blank.log_in()?;
        ensure!(blank.path() == node, "another node: the scenario shows nothing");
        guard.wait_for_state(blank.path(), "blank")?;
        blank.log_out()?;
        formatted.log_in()?;
        ensure!(formatted.path() == node, "another node: the scenario shows nothing");
        refused_at_once(formatted.path()).with_context(|| format!("time {time}"))?;
        ensure!(formatted.sha256()? == sum, "bytes changed at time {time}");
    }
    Ok(())
}

#[test]
fn partitions_that_are_read_again_are_the_volumes_that_they_were() -> Result<()> {
    let guard = Guard::shared()?;
    let disk = ScsiDisk::new("delay=0")?;
    guard.wait_for_state(disk.path(), "blank")?;
    must_with(&format!("sfdisk -q {}", disk.path().display()), "label: gpt\n,24M\n,24M\n")?;
    guard.wait_for_state(disk.path(), "formatted")?;
    let partition = PathBuf::from(format!("{}1", disk.path().display()));
    make_ext4(&guard, &partition)?;
    for _ in 0..5 {
        // Busy while a probe has one of the partitions open.
        wait_for("the partitions to be read again", || {
            let ran = run(&format!("blockdev --rereadpt {}", disk.path().display()))?;
            Ok((ran.status == 0).then_some(()))
        })?;
        wait_for("the partition", || Ok(partition.exists().then_some(())))?;
        refused_at_once(&partition)?;
        guard.wait_for_state(&partition, "formatted")?;
    }
    refused(&guard, &format!("mkfs.ext4 -F {}", partition.display()), "").map(drop)
}

#[test]
fn a_volume_that_grew_or_shrank_is_the_same_volume() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(64)?;
    let table = |mib: u64| format!("0 {} linear {} 0", mib * MIB / 512, below.path().display());
    let device = Linear::over("fg-grows", "FGTEST-grows", below.path(), 0, 32 * MIB)?;
    make_ext4(&guard, device.path())?;
    let known = guard.volume(device.path())?;
    let id = |volume: &serde_json::Value| volume["id"].clone();
    for mib in [48, 40] {
        device.reload(&table(mib))?;
        refused_at_once(device.path())?;
        must(&format!("e2fsck -fp {}", device.path().display()))?;
        must(&format!("resize2fs {} {}M", device.path().display(), mib.min(40)))?;
        let volume = guard.wait_for_state(device.path(), "formatted")?;
        ensure!(id(&volume) == id(&known) && volume["discrepancy"].is_null(), "{volume}");
        refused(&guard, &format!("mkfs.ext4 -F {}", device.path().display()), "")?;
    }
    Ok(())
}

#[test]
fn uevents_that_are_lost_are_made_good_and_counted() -> Result<()> {
    let guard = Guard::start()?;
    let (image, gone) = (Image::new(16)?, Loop::new(16)?);
    let number = PathBuf::from("/dev/loop40");
    let old = Loop::at(&number, image.path())?;
    make_ext4(&guard, old.path())?;
    guard.wait_for_state(gone.path(), "blank")?;
    ensure!(count(&guard, "lost_uevents")? == 0, "uevents were lost before");
    guard.pause_agent()?;
    drop(old);
    let mut uevent = OpenOptions::new().write(true).open("/sys/class/block/loop0/uevent")?;
    // More than the agent's socket holds.
    for _ in 0..40_000 {
        uevent.write_all(b"change")?;
    }
    // What the agent has not heard of.
    let new = Loop::new(16)?;
    let back = Loop::at(Path::new("/dev/loop41"), image.path())?;
    refused_at_once(back.path())?;
    guard.resume_agent()?;
    wait_for("the loss to be counted", || Ok((count(&guard, "lost_uevents")? > 0).then_some(())))?;
    guard.wait_for_state(back.path(), "formatted")?;
    make_ext4(&guard, new.path())?;
    refused(&guard, &format!("mkfs.ext4 -F {}", back.path().display()), "").map(drop)
}

/// This many processes, each of which is refused a write to a mark.
fn refuse_processes(path: &Path, count: u32) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    for number in 0..count {
        // SAFETY: the child makes one system call and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above; two bytes of static memory.
            unsafe {
                let written = libc::pwrite(file.as_raw_fd(), [0_u8; 2].as_ptr().cast(), 2, 1080);
                libc::_exit(i32::from(written != -1));
            }
        }
        let mut status = 0;
        // SAFETY: waits for that child.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        ensure!(ended == child && status == 0, "process {number} was not refused: {status}");
    }
    Ok(())
}

#[test]
fn kernel_events_that_are_lost_are_made_good_and_counted() -> Result<()> {
    let guard = Guard::start()?;
    let (known, new) = (Loop::new(16)?, Loop::new(16)?);
    make_ext4(&guard, known.path())?;
    guard.wait_for_state(new.path(), "blank")?;
    guard.pause_agent()?;
    // More than the ring holds: the rest are lost. A process is reported once.
    refuse_processes(known.path(), 12_000)?;
    must(&format!("mkfs.ext4 -F -q {}", new.path().display()))?;
    let sum = sha256(new.path())?;
    let again = run(&format!("mkfs.ext4 -F -q {}", new.path().display()))?;
    ensure!(again.status != 0 && sha256(new.path())? == sum, "a second format went through: {again:?}");
    guard.resume_agent()?;
    guard.wait_for_state(new.path(), "formatted")?;
    ensure!(count(&guard, "lost_events")? > 0, "none were lost: the scenario shows nothing");
    refused(&guard, &format!("mkfs.ext4 -F {}", new.path().display()), "").map(drop)
}
