//! Logical units of one target, whose numbers are used again; places where one medium follows another; and
//! several paths to one volume.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Image, Linear, Loop, Units, device_number},
    guard::Guard,
    tool::{must, must_with, run},
    wait_for,
};

use crate::make_ext4;

const MIB: u64 = 1 << 20;

fn id(guard: &Guard, path: &Path) -> Result<String> {
    Ok(guard.volume(path)?["id"].as_str().context("no id")?.to_owned())
}

/// An array that maps volumes to a host gives the number of a removed volume to the next one.
#[test]
fn a_used_unit_number_is_a_new_volumes_and_the_old_one_is_known_under_another() -> Result<()> {
    let guard = Guard::shared()?;
    let Some(mut units) = Units::of_kernel_target()? else {
        println!("not tried: this kernel has no target_core_mod and iscsi_target_mod");
        return Ok(());
    };
    let (first, second) = (units.volume(32)?, units.volume(32)?);
    let path = units.map(first, 1)?;
    make_ext4(&guard, &path)?;
    let known = id(&guard, &path)?;
    ensure!(known.starts_with("scsi:naa.6001405"), "{known}");
    units.unmap(1)?;
    // At once, as a provisioner does it.
    let path = units.map(second, 1)?;
    make_ext4(&guard, &path)?;
    ensure!(id(&guard, &path)? != known, "the number is the volume's");
    let moved = units.map(first, 2)?;
    // A unit that has just come may fail its first reads.
    let volume = guard.wait_for_volume(&moved, "formatted, and read", |volume| {
        volume["state"] == "formatted" && volume["discrepancy"].is_null()
    })?;
    ensure!(volume["id"] == known.as_str(), "{volume}");
    let names: Vec<&str> = volume["names"]
        .as_array()
        .context("no names")?
        .iter()
        .filter_map(|name| name["worth"].as_str())
        .collect();
    ensure!(names.starts_with(&["own", "address"]), "{volume}");
    refused(&guard, &format!("mkfs.ext4 -F {}", moved.display()), "")?;
    refused(&guard, &format!("mkfs.xfs -f {}", path.display()), "").map(drop)
}

/// tgt makes every designator from the numbers of target and unit.
#[test]
fn units_of_one_target_that_counts_are_places() -> Result<()> {
    let mut guard = Guard::unstarted(None)?;
    guard.replace("quarantine", "3")?;
    guard.start_agent()?;
    let mut units = Units::of_tgt()?;
    let (first, second, third) = (units.volume(32)?, units.volume(32)?, units.volume(32)?);
    let beside = units.map(second, 2)?;
    let path = units.map(first, 1)?;
    guard.wait_for_volume(&path, "a place", |volume| volume["weak"] == true && volume["state"] == "blank")?;
    make_ext4(&guard, &path)?;
    units.unmap(1)?;
    let path = units.map(third, 1)?;
    let refusal = run(&format!("mkfs.ext4 -F {}", path.display()))?;
    ensure!(refusal.status != 0, "another volume was there a moment ago: {}", refusal.text);
    make_ext4(&guard, &path)?;
    let moved = units.map(first, 3)?;
    guard.wait_for_state(&moved, "formatted")?;
    for path in [&moved, &path] {
        refused(&guard, &format!("mkfs.xfs -f {}", path.display()), "")?;
    }
    guard.wait_for_volume(&beside, "a place", |volume| volume["weak"] == true).map(drop)
}

/// A multipath map, loaded as multipathd loads it.
struct Map(&'static str);

impl Map {
    fn over(name: &'static str, uuid: &str, paths: &[&Path]) -> Result<Self> {
        must("modprobe -a dm-multipath dm-round-robin")?;
        let sectors = must(&format!("blockdev --getsz {}", paths[0].display()))?.trim().to_owned();
        let list: Vec<String> = paths.iter().map(|path| format!("{} 1", path.display())).collect();
        let table =
            format!("0 {sectors} multipath 0 0 1 1 round-robin 0 {} 1 {}", paths.len(), list.join(" "));
        must_with(&format!("dmsetup create {name} --uuid {uuid}"), &table)?;
        Ok(Self(name))
    }

    fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.0)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let _ = run(&format!("dmsetup remove --retry {}", self.0));
    }
}

#[test]
fn a_map_and_its_paths_are_one_volume() -> Result<()> {
    let guard = Guard::shared()?;
    let Some(mut units) = Units::of_kernel_target()? else {
        println!("not tried: this kernel has no target_core_mod and iscsi_target_mod");
        return Ok(());
    };
    let volume = units.volume(32)?;
    let paths = [units.map(volume, 1)?, units.map(volume, 2)?];
    let known = id(&guard, &paths[0])?;
    ensure!(known == id(&guard, &paths[1])?, "two paths are two volumes");
    let wwid = known.strip_prefix("scsi:naa.").context("no designator")?;
    let map = Map::over("fg-mpath", &format!("mpath-3{wwid}"), &[&paths[0], &paths[1]])?;
    let shown = guard.wait_for_state(&map.path(), "blank")?;
    ensure!(shown["id"] == known.as_str(), "{shown}");
    make_ext4(&guard, &map.path())?;
    for path in paths.iter().chain([&map.path()]) {
        let shown = guard.wait_for_state(path, "formatted")?;
        ensure!(shown["devices"].as_array().is_some_and(|devices| devices.len() == 3), "{shown}");
        refused(&guard, &format!("mkfs.xfs -f {}", path.display()), "")?;
    }
    // One path is down; the map goes on, and reports it.
    must(&format!("dmsetup message fg-mpath 0 fail_path {}", device_number(&paths[0])?))?;
    let shown = guard.volume(&map.path())?;
    ensure!(shown["state"] == "formatted" && shown["discrepancy"].is_null(), "{shown}");
    drop(map);
    guard.wait_for_volume(&paths[0], "on their own", |shown| {
        shown["devices"].as_array().is_some_and(|devices| devices.len() == 2) && shown["state"] == "formatted"
    })?;
    refused(&guard, &format!("mkfs.ext4 -F {}", paths[1].display()), "").map(drop)
}

/// A device mapper name without a uuid, for one loop device after another.
#[test]
fn the_second_medium_in_a_place_is_formatted_after_the_quarantine() -> Result<()> {
    let mut guard = Guard::unstarted(None)?;
    guard.replace("quarantine", "3")?;
    guard.start_agent()?;
    let (first, second) = (Loop::new(32)?, Loop::new(32)?);
    let place = |below: &Loop| Linear::over("fg-slot", "", below.path(), 0, 32 * MIB);
    let device = place(&first)?;
    make_ext4(&guard, device.path())?;
    let sum = device.sha256()?;
    drop(device);
    // The same device, again and again.
    let device = place(&first)?;
    guard.wait_for_state(device.path(), "formatted")?;
    refused(&guard, &format!("mkfs.xfs -f {}", device.path().display()), "")?;
    ensure!(device.sha256()? == sum, "bytes changed");
    guard.json(&format!("volume exempt {} --reason test", device.path().display()))?;
    drop(device);
    let device = place(&second)?;
    let refusal = run(&format!("mkfs.ext4 -F {}", device.path().display()))?;
    ensure!(refusal.status != 0, "the exemption was for the one before: {}", refusal.text);
    make_ext4(&guard, device.path())?;
    ensure!(!guard.events("another-medium")?.is_empty());
    drop(device);
    let device = place(&first)?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["discrepancy"].is_null(), "{volume}");
    refused(&guard, &format!("mkfs.xfs -f {}", device.path().display()), "")?;
    ensure!(device.sha256()? == sum, "bytes changed");
    Ok(())
}

/// crypttab with `swap`, at each boot: the key is new each time, and so is what the mapping reads as.
#[test]
fn swap_with_a_random_key_is_made_at_each_opening() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(64)?;
    let mapping = Path::new("/dev/mapper/fg-random");
    for _ in 0..3 {
        must(&format!(
            "cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 256 --key-file /dev/urandom -q {} fg-random",
            below.path().display()
        ))?;
        let made = (|| {
            guard.wait_for_state(mapping, "blank")?;
            must(&format!("mkswap {}", mapping.display()))?;
            guard.wait_for_state(mapping, "formatted")?;
            must(&format!("swapon {}", mapping.display()))?;
            must(&format!("swapoff {}", mapping.display()))
        })();
        must("cryptsetup close fg-random")?;
        made?;
        wait_for("the mapping to go", || Ok((!mapping.exists()).then_some(())))?;
    }
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    // Over a volume that holds something the mapping is never armed, whatever it held before.
    let data = Loop::new(64)?;
    make_ext4(&guard, data.path())?;
    let sum = data.sha256()?;
    must(&format!(
        "cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 256 --key-file /dev/urandom -q {} fg-random",
        data.path().display()
    ))?;
    let refusal = refused(&guard, "mkswap /dev/mapper/fg-random", "");
    must("cryptsetup close fg-random")?;
    refusal?;
    ensure!(data.sha256()? == sum, "bytes changed");
    Ok(())
}

/// Snapshots and clones have names of their own, and tools may give them a UUID of their own.
#[test]
fn clones_are_given_uuids_of_their_own() -> Result<()> {
    let guard = Guard::shared()?;
    let original = Loop::new(320)?;
    guard.wait_for_state(original.path(), "blank")?;
    must(&format!("mkfs.xfs -q {}", original.path().display()))?;
    let known = guard.wait_for_state(original.path(), "formatted")?;
    let image = Image::new(320)?;
    must(&format!("dd if={} of={} bs=1M conv=notrunc", original.path().display(), image.path().display()))?;
    let clone = Loop::over(image.path())?;
    let shown = guard.wait_for_state(clone.path(), "formatted")?;
    ensure!(shown["content"]["uuid"] == known["content"]["uuid"] && shown["id"] != known["id"], "{shown}");
    must(&format!("xfs_admin -U generate {}", clone.path().display()))?;
    guard.wait_for_volume(clone.path(), "a UUID of its own", |volume| {
        volume["content"]["uuid"] != known["content"]["uuid"]
            && volume["state"] == "formatted"
            && volume["discrepancy"].is_null()
    })?;
    let kept = guard.volume(original.path())?;
    ensure!(kept["content"] == known["content"] && kept["discrepancy"].is_null(), "{kept}");
    for device in [&original, &clone] {
        refused(&guard, &format!("mkfs.ext4 -F {}", device.path().display()), "")?;
    }
    Ok(())
}
