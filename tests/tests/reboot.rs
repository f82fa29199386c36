//! What was recorded is known after a reboot. Two boots share two disks: one holds the state directory, the other the
//! volumes. `cargo xtask test` runs one half in each.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Linear, Loop, log_in, serve_target, sha256},
    guard::Guard,
    tool::{command, module, must, must_with},
};

const STATE: &str = "/run/fg-state";
const IQN: &str = "iqn.2019-10.io.longhorn:pvc-reboot";
/// Half of the second disk is an iSCSI volume, the rest a dm volume.
const SECTORS: u64 = 64 << 11;

/// The disk with the state directory, mounted.
fn mount_state(format: bool) -> Result<PathBuf> {
    module("virtio_blk")?;
    if format {
        must("mkfs.ext4 -F -q /dev/vda")?;
    }
    fs::create_dir_all(STATE)?;
    must(&format!("mount /dev/vda {STATE}"))?;
    Ok(PathBuf::from(STATE))
}

/// The volumes: dm-linear over the two halves of the second disk, the second one served as iSCSI; a loop over a file.
fn volumes(state: &Path) -> Result<Vec<PathBuf>> {
    for name in ["dm_mod", "loop"] {
        module(name)?;
    }
    must_with("dmsetup create fg-first --uuid FGTEST-first", &format!("0 {SECTORS} linear /dev/vdb 0"))?;
    must_with(
        "dmsetup create fg-second --uuid FGTEST-second",
        &format!("0 {SECTORS} linear /dev/vdb {SECTORS}"),
    )?;
    serve_target(1, IQN, Path::new("/dev/mapper/fg-second"))?;
    let iscsi = log_in(IQN)?;
    let file = state.join("loop.img");
    if !file.exists() {
        fs::File::create(&file)?.set_len(64 << 20)?;
    }
    let device = Loop::over(&file)?;
    let path = device.path().to_owned();
    // Stays attached until the guest ends.
    std::mem::forget(device);
    Ok(vec![PathBuf::from("/dev/mapper/fg-first"), iscsi, path])
}

#[test]
#[ignore = "the first of two boots: cargo xtask test runs it"]
fn first_boot() -> Result<()> {
    let state = mount_state(true)?;
    let guard = Guard::on_state(&state.join("guard"))?;
    let mut known = String::new();
    for path in volumes(&state)? {
        guard.wait_for_state(&path, "blank")?;
        must(&format!("mkfs.ext4 -F -q {}", path.display()))?;
        let volume = guard.wait_for_state(&path, "formatted")?;
        known.push_str(&format!("{} {}\n", volume["id"].as_str().context("no id")?, sha256(&path)?));
    }
    fs::write(state.join("known"), known)?;
    guard.wait_for_state(&weak()?, "blank")?;
    // The power is cut in the middle of a format: this guest ends while mkfs stands still.
    let below = Path::new("/dev/vdb");
    let third = third()?;
    guard.wait_for_state(third.path(), "blank")?;
    third.slow_writes_at(below, 2 * SECTORS * 512, SECTORS * 512, Duration::from_secs(3))?;
    let mkfs = command(&format!("mkfs.ext4 -F -q -E nodiscard {}", third.path().display())).spawn()?;
    guard.wait_for_state(third.path(), "formatting")?;
    must(&format!("kill -STOP {}", mkfs.id()))?;
    ensure!(guard.volume(third.path())?["state"] == "formatting", "it ended before the power was cut");
    std::mem::forget(third);
    std::mem::forget(guard);
    must("sync").map(drop)
}

/// A device without an identity of its own, which reads as zeros.
fn weak() -> Result<PathBuf> {
    must("modprobe null_blk nr_devices=1 gb=1")?;
    Ok(PathBuf::from("/dev/nullb0"))
}

/// The third part of the second disk.
fn third() -> Result<Linear> {
    Linear::over("fg-third", "FGTEST-third", Path::new("/dev/vdb"), 2 * SECTORS * 512, SECTORS * 512)
}

#[test]
#[ignore = "the second of two boots: cargo xtask test runs it"]
fn second_boot() -> Result<()> {
    let state = mount_state(false)?;
    let known = fs::read_to_string(state.join("known"))?;
    let guard = Guard::on_state(&state.join("guard"))?;
    let paths = volumes(&state)?;
    ensure!(known.lines().count() == paths.len(), "{known}");
    for (path, line) in paths.iter().zip(known.lines()) {
        let volume = guard.wait_for_state(path, "formatted")?;
        ensure!(
            line == format!("{} {}", volume["id"].as_str().context("no id")?, sha256(path)?),
            "known as {line}, now {volume}"
        );
        attack::all_refused(&guard, path)?;
        ensure!(line.ends_with(&sha256(path)?), "bytes changed on {}", path.display());
    }
    // Blank as ever, but nobody knows that it is the same one.
    let weak = weak()?;
    let volume = guard.wait_for_volume(&weak, "held", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("its identity is weak"))
    })?;
    ensure!(volume["state"] == "unverified" && volume["weak"] == true, "{volume}");
    attack::refused(&guard, &format!("mkfs.ext4 -F {}", weak.display()), "")?;
    // What the cut left of a format is found out by probes alone, and then it goes on.
    let third = third()?;
    let volume = guard.wait_for_volume(third.path(), "resolved", |volume| {
        matches!(volume["state"].as_str(), Some("blank" | "formatted"))
    })?;
    if volume["state"] == "blank" {
        must(&format!("mkfs.ext4 -F -q {}", third.path().display()))?;
        guard.wait_for_state(third.path(), "formatted")?;
    }
    attack::refused(&guard, &format!("mkfs.ext4 -F {}", third.path().display()), "").map(drop)
}
