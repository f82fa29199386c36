//! No road by system calls reaches a superblock, and requests that do not concern the guard pass.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    ptr,
};

use anyhow::{Result, ensure};
use format_guard_tests::{
    device::{Device, Loop},
    guard::{Guard, tier},
    road::{Aim, GARBAGE, documented, refused_as_documented, write_by_ring},
    tool::must,
};

use crate::make_ext4;

fn writer(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

#[test]
fn no_road_reaches_the_superblock() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    // The magic of an ext4.
    let aim = Aim { path: device.path(), offset: 1080, length: 2 };
    for (name, _, refused) in documented(&tier())? {
        ensure!(refused, "{name} is documented as open");
    }
    // A road that this kernel lacks must not have changed anything all the same.
    refused_as_documented(&tier(), &aim)?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn a_descriptor_opened_before_the_format_is_refused_after_it() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    guard.wait_for_state(device.path(), "blank")?;
    let early = writer(device.path())?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    let error = early.write_all_at(&GARBAGE, 0).err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(libc::EPERM), "{error:?}");
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn writes_beyond_the_marks_and_of_the_same_bytes_pass() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let file = writer(device.path())?;
    let mut superblock = [0; 1024];
    file.read_exact_at(&mut superblock, 1024)?;
    file.write_all_at(&superblock, 1024)?;
    file.write_all_at(&GARBAGE, 40 << 20)?;
    write_by_ring(&file, &superblock, 1024, false)?;
    write_by_ring(&file, &GARBAGE, 41 << 20, true)?;
    file.sync_all()?;
    must(&format!("blkid -p {}", device.path().display()))?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    Ok(())
}

/// Stores into the mapping pass no hook, so that nothing else can be done.
#[test]
fn a_mapping_that_is_older_than_the_agent_is_told() -> Result<()> {
    let device = Loop::new(16)?;
    let file = writer(device.path())?;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of one page; it is unmapped below and used by nobody else.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, rights, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    ensure!(page != libc::MAP_FAILED, "{}", io::Error::last_os_error());
    let guard = Guard::start()?;
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(page, 4096) };
    let told = guard.events("mapped-before")?;
    let words = [format!("(pid {})", std::process::id()), device.path().display().to_string()];
    let ours = told.iter().filter(|event| {
        event["text"].as_str().is_some_and(|text| words.iter().all(|word| text.contains(word)))
    });
    ensure!(ours.count() == 1, "{told:#?}");
    Ok(())
}
