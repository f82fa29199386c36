//! A database that cannot be used: nothing is loosened, nothing is overwritten, and the message names the way out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop},
    guard::Guard,
    tool::{must, run},
};

use crate::make_ext4;

/// A small file system of its own; unmounted with the value.
struct Small(PathBuf);

impl Small {
    fn mount() -> Result<Self> {
        let path = PathBuf::from("/run/fg-small");
        fs::create_dir_all(&path)?;
        must(&format!("mount -t tmpfs -o size=4m small {}", path.display()))?;
        Ok(Self(path))
    }

    fn remount(&self, options: &str) -> Result<()> {
        must(&format!("mount -o remount,{options} {}", self.0.display())).map(drop)
    }

    /// Takes all room that is left.
    fn fill(&self) -> Result<()> {
        let ran = run(&format!("dd if=/dev/zero of={}/fill bs=4k", self.0.display()))?;
        ensure!(ran.text.contains("No space left on device"), "{ran:?}");
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("fill"))?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = run(&format!("umount -l {}", self.0.display()));
    }
}

/// Overwrites the database below this directory; what is there now. Its log would put everything right again.
pub(crate) fn damage(directory: &Path) -> Result<Vec<u8>> {
    let file = directory.join("volumes.sqlite3");
    let damaged = vec![0x5a; usize::try_from(fs::metadata(&file)?.len())?];
    fs::write(&file, &damaged)?;
    fs::remove_file(directory.join("volumes.sqlite3-wal"))?;
    Ok(damaged)
}

#[test]
fn a_file_system_that_is_full_or_read_only_loosens_nothing() -> Result<()> {
    let place = Small::mount()?;
    let mut guard = Guard::on_state(&place.0.join("state"))?;
    let device = Loop::new(32)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    place.fill()?;
    // What cannot be stored as armed is not armed.
    let blank = Loop::new(32)?;
    let refused = format!("mkfs.ext4 -F -q {}", blank.path().display());
    guard.wait_for_volume(blank.path(), "not storable", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("the store failed"))
    })?;
    // No event of it can be stored.
    let ran = run(&refused)?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{ran:?}");
    // What is recorded can be read: it is guarded by the next one, too.
    guard.kill_agent()?;
    guard.start_agent()?;
    guard.wait_for_state(device.path(), "formatted")?;
    ensure!(run(&refused)?.status != 0, "what cannot be stored as armed was armed");
    guard.kill_agent()?;
    place.make_room()?;
    place.remount("ro")?;
    let said = guard.start_in_vain("", 1)?;
    ensure!(said.contains("/run/fg-small/state") && said.contains("Read-only file system"), "{said}");
    attack::all_fail(device.path())?;
    ensure!(run(&refused)?.status != 0, "{refused} succeeded without an agent");
    place.remount("rw")?;
    guard.start_agent()?;
    guard.wait_for_state(device.path(), "formatted")?;
    ensure!(device.sha256()? == before, "bytes changed");
    make_ext4(&guard, blank.path())
}

#[test]
fn a_damaged_database_is_set_aside_and_no_blank_volume_is_armed() -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    let mut guard = Guard::on_state(directory.path())?;
    let (device, blank) = (Loop::new(32)?, Loop::new(32)?);
    make_ext4(&guard, device.path())?;
    guard.wait_for_state(blank.path(), "blank")?;
    let before = device.sha256()?;
    guard.kill_agent()?;
    let damaged = damage(directory.path())?;
    guard.start_agent()?;
    let status = guard.json("status")?;
    let degraded = status["degraded"][0].as_str().context("no word of the damage")?;
    let aside = degraded.split(" is kept at ").nth(1).and_then(|rest| rest.split(';').next());
    ensure!(fs::read(aside.context("no path")?)? == damaged, "what was damaged was overwritten");
    let found = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(found["cause"] == "a probe found it", "{found}");
    attack::some_refused(&guard, device.path())?;
    ensure!(device.sha256()? == before, "bytes changed");
    guard.wait_for_volume(blank.path(), "held", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("the database was damaged"))
    })?;
    attack::refused(&guard, &format!("mkfs.ext4 -F -q {}", blank.path().display()), "")?;
    guard.json(&format!("volume permit {} --reason new", blank.path().display()))?;
    must(&format!("mkfs.ext4 -F -q {}", blank.path().display()))?;
    guard.wait_for_state(blank.path(), "formatted").map(drop)
}
