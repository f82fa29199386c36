//! A blank volume is formatted once, recorded with type, UUID and marks, and never again: not one byte
//! changes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Iscsi, Loop, Mapped, Snapshot},
    guard::Guard,
    tool::must,
};

/// File systems that Kubernetes' mount-utils make, in the smallest shape that their tools allow.
const FILE_SYSTEMS: [(&str, &str); 3] = [
    ("ext4", "mkfs.ext4 -F -m0 -q"),
    ("xfs", "mkfs.xfs -f -q --unsupported"),
    ("btrfs", "mkfs.btrfs -f -q -M"),
];
const MIB: u64 = 64;

fn once<D: Device>(make: impl Fn() -> Result<D>) -> Result<()> {
    let guard = Guard::shared()?;
    for (name, mkfs) in FILE_SYSTEMS {
        let device = make()?;
        let path = device.path();
        // At once, as provisioners do.
        guard.before_format(path)?;
        must(&format!("{mkfs} {}", path.display()))?;
        let volume = guard.wait_for_state(path, "formatted")?;
        ensure!(volume["content"]["types"][0] == name, "{volume}");
        ensure!(volume["content"]["uuid"] == uuid_by_blkid(path)?, "{volume}");
        ensure!(volume["marks"].as_array().is_some_and(|marks| marks.len() >= 2), "{volume}");
        let before = Snapshot::of(&device)?;
        let refused = if name == FILE_SYSTEMS[0].0 { attack::all_refused } else { attack::some_refused };
        refused(&guard, path)?;
        before.unchanged(&device).context(name)?;
        guard.wait_for_state(path, "formatted")?;
    }
    Ok(())
}

fn uuid_by_blkid(path: &Path) -> Result<String> {
    Ok(must(&format!("blkid -p -s UUID -o value {}", path.display()))?.trim().to_owned())
}

#[test]
fn a_loop_volume_is_formatted_once() -> Result<()> {
    once(|| Loop::new(MIB))
}

#[test]
fn a_dm_linear_volume_is_formatted_once() -> Result<()> {
    once(|| Mapped::new(MIB))
}

#[test]
fn an_iscsi_volume_is_formatted_once() -> Result<()> {
    once(|| Iscsi::new(MIB))
}
