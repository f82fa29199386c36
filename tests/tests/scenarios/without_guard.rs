//! The same attack with the guard, and after its removal: only the guard refuses.

use anyhow::{Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop},
    guard::Guard,
    tool::{must, run_with},
};

#[test]
fn without_the_guard_the_same_attack_succeeds() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(32)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    must(&format!("mkfs.ext4 -F -q {}", path.display()))?;
    guard.wait_for_state(path, "formatted")?;
    let before = device.sha256()?;
    attack::all_refused(&guard, path)?;
    ensure!(device.sha256()? == before, "bytes changed under the guard");
    guard.remove()?;
    let zeros = format!("dd if=/dev/zero of={} bs=1M count=1 conv=notrunc", path.display());
    for (line, input) in attack::all(path)? {
        // mkfs.xfs wants a larger volume, with or without a guard.
        if line.contains("xfs") {
            continue;
        }
        must(&zeros)?;
        must(&format!("mkfs.ext4 -F -q -U clear {}", path.display()))?;
        let before = device.sha256()?;
        let ran = run_with(&line, input)?;
        ensure!(ran.status == 0, "{line} failed without the guard: {}", ran.text);
        ensure!(device.sha256()? != before, "{line} changed nothing without the guard");
    }
    Ok(())
}
