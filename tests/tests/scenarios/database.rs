//! An unusable database: nothing is loosened, nothing is overwritten, and the message names the way out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop, flush},
    guard::Guard,
    tool::{must, run},
    wait_for,
};
use rusqlite::{Connection, OpenFlags};

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

    /// Fills the rest of the file system.
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

/// Overwrites the database below this directory, and returns what is there now. Its log is removed, since it
/// would repair everything.
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
    // A volume that cannot be stored as armed is not armed.
    let blank = Loop::new(32)?;
    let refused = format!("mkfs.ext4 -F -q {}", blank.path().display());
    guard.wait_for_volume(blank.path(), "not storable", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("the store failed"))
    })?;
    // No event of the volume can be stored.
    let ran = run(&refused)?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{ran:?}");
    // The earlier records are readable: the next agent guards by them, too.
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

/// The state of the volume in a device as it is on disk. Nobody must use the database.
fn stored_state(state: &Path, id: &str) -> Result<String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let database = Connection::open_with_flags(state.join("volumes.sqlite3"), flags)?;
    Ok(database.query_row("SELECT state FROM volumes WHERE id = ?1", [id], |row| row.get(0))?)
}

#[test]
fn a_format_on_a_full_file_system_is_on_record_once_there_is_room() -> Result<()> {
    let place = Small::mount()?;
    let state = place.0.join("state");
    let mut guard = Guard::on_state(&state)?;
    let (device, other) = (Loop::new(32)?, Loop::new(32)?);
    guard.wait_for_state(other.path(), "blank")?;
    let id = guard.wait_for_state(device.path(), "blank")?["id"].as_str().context("no id")?.to_owned();
    place.fill()?;
    must(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
    guard.wait_for_state(device.path(), "formatted")?;
    let status = guard.json("status")?;
    ensure!(status["unstored"].as_u64() > Some(0), "{status}");
    ensure!(status["degraded"].to_string().contains("could not be stored"), "{status}");
    let metrics = guard.get("/metrics")?;
    ensure!(
        metrics.contains("format_guard_unstored_records ") && !metrics.contains("unstored_records 0"),
        "{metrics}"
    );
    // The volume was armed, and its format could not be recorded either. None of its events can be stored.
    let ran = run(&format!("mkfs.ext4 -F -q {}", other.path().display()))?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{ran:?}");
    // An agent that starts now knows of the format by the kernel's note.
    guard.kill_agent()?;
    ensure!(stored_state(&state, &id)? == "blank", "it was stored on a full file system");
    guard.start_agent()?;
    guard.wait_for_state(device.path(), "formatted")?;
    let before = device.sha256()?;
    place.make_room()?;
    wait_for("all to be stored", || Ok((guard.json("status")?["unstored"] == 0).then_some(())))?;
    guard.kill_agent()?;
    ensure!(stored_state(&state, &id)? == "formatted", "it is not on disk");
    guard.start_agent()?;
    guard.wait_for_state(device.path(), "formatted")?;
    attack::some_refused(&guard, device.path())?;
    ensure!(device.sha256()? == before, "bytes changed");
    make_ext4(&guard, other.path())
}

#[test]
fn a_loss_of_records_outlives_the_agent_and_is_ended_by_an_operator_alone() -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    let mut guard = Guard::on_state(directory.path())?;
    let blank = Loop::new(32)?;
    guard.wait_for_state(blank.path(), "blank")?;
    guard.kill_agent()?;
    damage(directory.path())?;
    let format = format!("mkfs.ext4 -F -q {}", blank.path().display());
    for _ in 0..2 {
        guard.start_agent()?;
        guard.wait_for_volume(blank.path(), "held", |volume| {
            volume["cause"].as_str().is_some_and(|cause| cause.contains("records were lost"))
        })?;
        attack::refused(&guard, &format, "")?;
        let status = guard.json("status")?;
        ensure!(status["records_lost"]["cause"].to_string().contains(" is kept at "), "{status}");
        guard.kill_agent()?;
    }
    guard.start_agent()?;
    ensure!(guard.say("loss end --reason=")?.status == 2, "without a reason");
    guard.json("loss end --reason every-volume-was-attached")?;
    ensure!(guard.say("loss end --reason again")?.status == 2, "there is none");
    make_ext4(&guard, blank.path())?;
    guard.kill_agent()?;
    guard.start_agent()?;
    ensure!(guard.json("status")?["records_lost"].is_null(), "it came back");
    let ended = guard.events("loss-ended")?;
    ensure!(
        ended.len() == 1 && ended[0]["text"].to_string().contains("every-volume-was-attached"),
        "{ended:?}"
    );
    Ok(())
}

#[test]
fn what_the_kernel_still_guards_is_on_record_again_where_the_database_is_gone() -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    let state = directory.path().join("state");
    let mut guard = Guard::on_state(&state)?;
    let (device, blank) = (Loop::new(32)?, Loop::new(32)?);
    make_ext4(&guard, device.path())?;
    guard.wait_for_state(blank.path(), "blank")?;
    let before = device.sha256()?;
    guard.kill_agent()?;
    fs::remove_dir_all(&state)?;
    // The storage reads as zeros at this very moment.
    let file = device.file().context("no file")?;
    let image = fs::read(file)?;
    let zero = |bytes: &[u8]| -> Result<()> {
        fs::write(file, bytes)?;
        flush(device.path()).map(drop)
    };
    zero(&vec![0; image.len()])?;
    guard.start_agent()?;
    let volume =
        guard.wait_for_volume(device.path(), "a discrepancy", |volume| !volume["discrepancy"].is_null())?;
    ensure!(volume["state"] == "formatted", "{volume}");
    ensure!(volume["cause"].to_string().contains("taken over"), "{volume}");
    ensure!(volume["content"]["types"][0].to_string().contains("ext"), "{volume}");
    let status = guard.json("status")?;
    ensure!(status["records_lost"]["cause"].to_string().contains("was missing"), "{status}");
    attack::refused(&guard, &format!("mkfs.ext4 -F -q {}", device.path().display()), "")?;
    attack::refused(&guard, &format!("mkfs.ext4 -F -q {}", blank.path().display()), "")?;
    zero(&image)?;
    let volume =
        guard.wait_for_volume(device.path(), "as recorded", |volume| volume["discrepancy"].is_null())?;
    ensure!(volume["content"]["types"][0] == "ext4" && volume["content"]["uuid"].is_string(), "{volume}");
    ensure!(device.sha256()? == before, "bytes changed");
    guard.json("loss end --reason all-are-attached")?;
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
    ensure!(found["cause"].to_string().contains("taken over"), "{found}");
    attack::some_refused(&guard, device.path())?;
    ensure!(device.sha256()? == before, "bytes changed");
    guard.wait_for_volume(blank.path(), "held", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("records were lost"))
    })?;
    attack::refused(&guard, &format!("mkfs.ext4 -F -q {}", blank.path().display()), "")?;
    guard.json(&format!("volume permit {} --reason new", blank.path().display()))?;
    must(&format!("mkfs.ext4 -F -q {}", blank.path().display()))?;
    guard.wait_for_state(blank.path(), "formatted").map(drop)
}
