//! Zoned devices: their zones show what they hold, and resetting a zone erases it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{copy, refused},
    guard::Guard,
    tool::{Ran, must, run},
    wait_for,
};

const CONFIGFS: &str = "/sys/kernel/config";
/// Bytes of a zone.
const ZONE: u64 = 16 << 20;

/// A host-managed device in memory, of 20 zones, all of which must be written in sequence.
struct Zoned {
    directory: PathBuf,
    node: PathBuf,
}

impl Zoned {
    fn new() -> Result<Self> {
        for name in ["null_blk", "btrfs"] {
            // Without null_blk's default devices.
            let options = if name == "null_blk" { " nr_devices=0" } else { "" };
            must(&format!("modprobe {name}{options}"))?;
        }
        if !Path::new(CONFIGFS).join("nullb").exists() {
            must(&format!("mount -t configfs configfs {CONFIGFS}"))?;
        }
        let directory = Path::new(CONFIGFS).join("nullb/fgzoned");
        fs::create_dir(&directory)?;
        for (name, value) in
            [("size", "320"), ("memory_backed", "1"), ("zoned", "1"), ("zone_size", "16"), ("power", "1")]
        {
            fs::write(directory.join(name), value).with_context(|| name.to_owned())?;
        }
        let index = fs::read_to_string(directory.join("index"))?;
        // Kernels from 6.17 on name the device after the directory.
        let names = [format!("/dev/nullb{}", index.trim()), "/dev/fgzoned".to_owned()];
        let node =
            wait_for("the zoned device", || Ok(names.iter().map(PathBuf::from).find(|node| node.exists())))?;
        Ok(Self { directory, node })
    }
}

impl Drop for Zoned {
    fn drop(&mut self) {
        let _ = fs::write(self.directory.join("power"), "0");
        let _ = fs::remove_dir(&self.directory);
    }
}

fn point() -> Result<&'static str> {
    fs::create_dir_all("/run/fg-zoned")?;
    Ok("/run/fg-zoned")
}

fn zone(line: &str, node: &Path) -> Result<Ran> {
    run(&format!("{line} {}", node.display()))
}

#[test]
fn a_zoned_btrfs_is_known_and_no_zone_of_its_superblocks_is_reset() -> Result<()> {
    let device = Zoned::new()?;
    let node = device.node.display();
    let guard = Guard::shared()?;
    let point = point()?;
    guard.wait_for_state(&device.node, "blank")?;
    must(&format!("mkfs.btrfs -q -f -O zoned -d single -m single {node}"))?;
    let known = guard.wait_for_state(&device.node, "formatted")?;
    ensure!(known["content"]["types"][0] == "btrfs" && known["content"]["uuid"].is_string(), "{known}");
    ensure!(known["marks"].as_array().is_some_and(|marks| !marks.is_empty()), "{known}");
    let uuid = must(&format!("blkid -p -s UUID -o value {node}"))?;
    ensure!(known["content"]["uuid"] == uuid.trim(), "{known}");
    // Everyday work: superblocks are appended until the log moves on to its second zone.
    must(&format!("mount {node} {point}"))?;
    fs::write(format!("{point}/file"), "data")?;
    for _ in 0..20 {
        must(&format!("sync -f {point}"))?;
        fs::write(format!("{point}/more"), "more")?;
    }
    must(&format!("umount {point}"))?;
    must(&format!("btrfs check {node}"))?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);

    for line in [
        "blkzone reset".to_owned(),
        format!("{} reset", copy("blkzone")?),
        format!("{} reset -o 0 -c 1", copy("blkzone")?),
        format!("{} finish -o 0 -c 1", copy("blkzone")?),
        "mkfs.btrfs -q -f -O zoned -d single -m single".to_owned(),
        format!("{} -q -f -O zoned -d single -m single", copy("mkfs.btrfs")?),
        "blkdiscard -f".to_owned(),
    ] {
        refused(&guard, &format!("{line} {node}"), "")?;
    }
    // A request that changes no byte goes on, and so does one to a zone without a mark.
    let last = device_zone(19);
    let refusals = guard.events("denied")?.len();
    for line in [
        "blkzone report".to_owned(),
        format!("blkzone open -o {last} -c 1"),
        format!("blkzone close -o {last} -c 1"),
    ] {
        let ran = zone(&line, &device.node)?;
        ensure!(ran.status == 0, "{ran:?}");
    }
    ensure!(guard.events("denied")?.len() == refusals, "{:#?}", guard.events("denied")?);

    must(&format!("btrfs check {node}"))?;
    must(&format!("mount {node} {point}"))?;
    let there = fs::read_to_string(format!("{point}/file"));
    must(&format!("umount {point}"))?;
    ensure!(there? == "data");
    let known = guard.wait_for_state(&device.node, "formatted")?;
    ensure!(known["discrepancy"].is_null(), "{known}");
    Ok(())
}

/// The first sector of a zone.
const fn device_zone(number: u64) -> u64 {
    number * ZONE / 512
}

#[test]
fn a_zoned_btrfs_that_was_there_before_the_guard_is_never_blank() -> Result<()> {
    Guard::start()?.remove()?;
    let device = Zoned::new()?;
    let node = device.node.display();
    // The kernel lets go of the programs some time after the last pin is gone.
    wait_for("the guard to be gone", || {
        let made = run(&format!("mkfs.btrfs -q -f -L older -O zoned -d single -m single {node}"))?;
        Ok((made.status == 0).then_some(()))
    })?;
    let guard = Guard::start()?;
    let known = guard.wait_for_state(&device.node, "formatted")?;
    ensure!(known["content"]["types"][0] == "btrfs" && known["content"]["label"] == "older", "{known}");
    refused(&guard, &format!("mkfs.btrfs -q -f {node}"), "")?;
    refused(&guard, &format!("{} reset {node}", copy("blkzone")?), "")?;
    must(&format!("btrfs check {node}")).map(drop)
}
