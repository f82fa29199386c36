//! What was recorded is known after a reboot. Two boots share two disks: one holds the state directory, the other the
//! volumes. `cargo xtask test` runs one half in each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop, log_in, serve_target, sha256},
    guard::Guard,
    tool::{module, must, must_with},
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
    must("sync").map(drop)
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
    Ok(())
}
