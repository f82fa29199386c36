//! How much of the kernel's memory the guard takes.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, AsRawFd},
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::loaded_maps;
use format_guard_tests::{
    attack::refused,
    device::{Device, Loop},
    guard::Guard,
    wait_for,
};

use crate::make_ext4;

/// The most that all maps may take, on a host with three devices.
const GOAL: u64 = 3 << 20;

/// Bytes that the kernel keeps for each of the guard's maps; no other maps exist here.
fn maps() -> Result<BTreeMap<u32, (String, u64)>> {
    let mut maps = BTreeMap::new();
    for map in loaded_maps() {
        // A map that disappears meanwhile belonged to an earlier guard.
        let Ok(map) = map else { continue };
        let Ok(fd) = map.fd() else { continue };
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let text = fs::read_to_string(&path)?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        let bytes = bytes.with_context(|| format!("{path} has no memlock: {text}"))?.trim().parse()?;
        maps.insert(map.id(), (map.name_as_str().unwrap_or_default().to_owned(), bytes));
    }
    Ok(maps)
}

fn memory() -> Result<u64> {
    let maps = maps()?;
    for (name, bytes) in maps.values().filter(|(_, bytes)| *bytes >= 1 << 16) {
        println!("{name}: {bytes} bytes");
    }
    Ok(maps.values().map(|(_, bytes)| bytes).sum())
}

/// Whether this kernel reports, for a map, what it would take if all entries were in use: kernels before 6.4
/// do (`map_mem_usage`, include/linux/bpf.h).
fn is_guessed() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("a release like {release}")
    };
    Ok((major, minor) < (6, 4))
}

/// The limit in the configuration costs memory only for devices that exist.
#[test]
fn a_host_with_three_devices_takes_little_of_the_kernels_memory() -> Result<()> {
    let mut guard = Guard::start()?;
    let devices = [Loop::new(32)?, Loop::new(32)?, Loop::new(32)?];
    for device in &devices {
        make_ext4(&guard, device.path())?;
    }
    let taken = memory()?;
    println!("{taken} bytes of maps");
    ensure!(taken < GOAL || is_guessed()?, "{taken} bytes of maps, at most {GOAL}");
    // Another limit needs another set of maps, which holds every rule before a program reads it.
    guard.stop_agent()?;
    guard.add_to_configuration("max_devices = 64\n")?;
    guard.start_agent()?;
    for device in &devices {
        refused(&guard, &format!("mkfs.ext4 -F {}", device.path().display()), "")?;
    }
    // The kernel frees the other maps some time later.
    let least = wait_for("maps for fewer devices", || Ok(Some(memory()?).filter(|least| *least < taken)))?;
    println!("{least} bytes of maps for 64 devices");
    Ok(())
}
