//! A loss that the guard cannot prevent: a backend overwrites a volume. Its marks are restored from their
//! copy.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    device::{Device, Loop, flush},
    guard::Guard,
    tool::{must, must_with, run, run_with},
    wait_for,
};

/// Zeroes the first MiB of a device's backing file, where no hook of this host sees it.
fn zero_behind(device: &Loop) -> Result<()> {
    let file = device.file().context("no file")?;
    must(&format!("dd if=/dev/zero of={} bs=1M count=1 conv=notrunc,fsync status=none", file.display()))?;
    flush(device.path())?;
    // An event of the device makes the agent probe it again.
    let name = device.path().file_name().context("no name")?;
    Ok(fs::write(Path::new("/sys/class/block").join(name).join("uevent"), "change")?)
}

/// Waits until the marks of the volume in a device are copied.
fn wait_for_copy(guard: &Guard, path: &Path) -> Result<()> {
    wait_for("a copy", || {
        Ok((guard.ask(&format!("volume rescue {}", path.display()))?.status == 0).then_some(()))
    })
}

/// Puts back what differs, with a permit and a typed yes; then the volume is as it was recorded.
fn put_back(guard: &Guard, path: &Path) -> Result<()> {
    let line = guard.line(&format!("volume rescue {} --write", path.display()))?;
    let before = guard.volume(path)?;
    let refused = run_with(&line, "yes\n")?;
    ensure!(refused.status == 3 && refused.text.contains("volume permit"), "{refused:?}");
    guard.json(&format!("volume permit {} --reason rescue", path.display()))?;
    for word in ["no\n", "", "YES\n"] {
        let ran = run_with(&line, word)?;
        ensure!(ran.status == 1 && ran.text.contains("nothing is written"), "{ran:?}");
    }
    must_with(&line, "yes\n")?;
    let after = guard.wait_for_volume(path, "as it was recorded", |volume| {
        volume["state"] == "formatted" && volume["discrepancy"].is_null()
    })?;
    ensure!(after["content"] == before["content"] && after["marks"] == before["marks"], "{before}\n{after}");
    ensure!(after["permit"].is_null(), "it was used: {after}");
    let ran = run_with(&line, "yes\n")?;
    ensure!(ran.status == 0 && ran.text.contains("the volume is as it was copied"), "{ran:?}");
    Ok(())
}

#[test]
fn an_ext4_whose_first_bytes_were_zeroed_behind_the_guard_is_found_again() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(256)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    // The file system reserves the rest of the first MiB for growing: nothing else is lost with it.
    must(&format!("mkfs.ext4 -F -q -b 4096 -E resize=4294967295 {}", path.display()))?;
    guard.wait_for_state(path, "formatted")?;
    wait_for_copy(&guard, path)?;
    let place = tempfile::tempdir_in("/run")?;
    let mount = format!("mount {} {}", path.display(), place.path().display());
    let unmount = format!("umount {}", place.path().display());
    let data = vec![0x5a; 3 << 20];
    must(&mount)?;
    fs::write(place.path().join("data"), &data)?;
    must(&unmount)?;
    zero_behind(&device)?;
    guard.wait_for_volume(path, "a discrepancy", |volume| !volume["discrepancy"].is_null())?;
    ensure!(run(&mount)?.status != 0, "it was not destroyed");
    let report = guard.json(&format!("volume rescue {}", path.display()))?;
    ensure!(report["pieces"][0]["differ"].as_u64() > Some(0) && report["written"] == false, "{report}");
    // The copy as a new file, readable for root alone.
    let file = Path::new("/run/fg-rescued");
    let save = format!("volume rescue {} --to {}", path.display(), file.display());
    ensure!(guard.say(&save)?.status == 0, "not saved");
    let mode = fs::metadata(file)?.permissions().mode() & 0o777;
    let saved = fs::read(file)?;
    ensure!(mode == 0o600 && saved.len() == 256 << 20 && saved[1080..1082] == *b"\x53\xef", "{mode:o}");
    ensure!(guard.say(&save)?.status == 1, "it was written over");
    fs::remove_file(file)?;
    put_back(&guard, path)?;
    let checked = run(&format!("e2fsck -f -y {}", path.display()))?;
    ensure!(checked.status <= 1, "{checked:?}");
    must(&mount)?;
    let read = fs::read(place.path().join("data"));
    must(&unmount)?;
    ensure!(read? == data, "the data is not what it was");
    Ok(())
}

#[test]
fn a_luks2_whose_first_bytes_were_zeroed_behind_the_guard_opens_again_where_keys_are_copied() -> Result<()> {
    let mut guard = Guard::unstarted(None)?;
    guard.add_to_configuration("copy_key_areas = true\n")?;
    guard.start_agent()?;
    let device = Loop::new(64)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    let format =
        "cryptsetup luksFormat --type luks2 --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    must_with(&format!("{format} --key-file - {}", path.display()), "secret")?;
    guard.wait_for_state(path, "formatted")?;
    wait_for_copy(&guard, path)?;
    let open = format!("cryptsetup open --key-file - {} fg-rescue", path.display());
    let mapped = Path::new("/dev/mapper/fg-rescue");
    must_with(&open, "secret")?;
    must(&format!("dd if=/dev/urandom of={} bs=1M count=4 oflag=direct status=none", mapped.display()))?;
    let before = format_guard_tests::device::sha256(mapped)?;
    wait_for("the mapping to close", || Ok((run("cryptsetup close fg-rescue")?.status == 0).then_some(())))?;
    zero_behind(&device)?;
    guard.wait_for_volume(path, "a discrepancy", |volume| !volume["discrepancy"].is_null())?;
    ensure!(run_with(&open, "secret")?.status != 0, "it was not destroyed");
    put_back(&guard, path)?;
    must_with(&open, "secret")?;
    let after = format_guard_tests::device::sha256(mapped);
    wait_for("the mapping to close", || Ok((run("cryptsetup close fg-rescue")?.status == 0).then_some(())))?;
    ensure!(after? == before, "the data is not what it was");
    Ok(())
}
