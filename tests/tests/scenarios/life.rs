//! Refusals outlive the agent, and follow the volume, not its number.

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop, Mapped, Snapshot, device_number},
    guard::Guard,
    tool::must,
};

use crate::make_ext4;

#[test]
fn refusals_go_on_when_the_agent_is_killed_and_when_it_is_back() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    guard.kill_agent()?;
    attack::all_fail(device.path())?;
    ensure!(device.sha256()? == before, "bytes changed without an agent");
    must(&format!("e2fsck -fn {}", device.path().display()))?;
    guard.start_agent()?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["content"]["types"][0] == "ext4", "{volume}");
    attack::all_refused(&guard, device.path())?;
    ensure!(device.sha256()? == before, "bytes changed after the restart");
    Ok(())
}

#[test]
fn a_volume_is_known_again_under_another_number() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    let id = guard.volume(device.path())?["id"].clone();
    let old = device.path().to_owned();
    let image = device.detach()?.context("no image")?;
    let in_the_way = Loop::at(&old, &std::path::PathBuf::from("/etc/hostname"))?;
    let again = Loop::over(image.path())?;
    ensure!(again.path() != old, "the number is the same: the scenario shows nothing");
    let volume = guard.wait_for_state(again.path(), "formatted")?;
    ensure!(volume["id"] == id, "{volume}");
    attack::some_refused(&guard, again.path())?;
    ensure!(again.sha256()? == before, "bytes changed");
    drop(in_the_way);
    Ok(())
}

#[test]
fn another_volume_under_an_old_number_is_not_held_up() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let (node, number) = (device.path().to_owned(), device_number(device.path())?);
    let old = device.detach()?.context("no image")?;
    let image = format_guard_tests::device::Image::new(64)?;
    let other = Loop::at(&node, image.path())?;
    ensure!(device_number(other.path())? == number, "another number: the scenario shows nothing");
    make_ext4(&guard, other.path())?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    drop(old);
    Ok(())
}

#[test]
fn an_armed_rule_does_not_let_a_formatter_at_another_volume_under_its_number() -> Result<()> {
    let mut guard = Guard::start()?;
    let formatted = Loop::new(64)?;
    make_ext4(&guard, formatted.path())?;
    let before = Snapshot::of(&formatted)?;
    let image = formatted.detach()?.context("no image")?;
    let blank = Loop::new(64)?;
    guard.wait_for_state(blank.path(), "blank")?;
    let node = blank.path().to_owned();
    // No agent is there to see the exchange: the kernel programs know of it only by diskseq.
    guard.kill_agent()?;
    let _blank = blank.detach()?;
    let swapped = Loop::at(&node, image.path())?;
    for (line, input) in attack::all(swapped.path())? {
        // Zeros from a program without a known name are no format; without an agent nobody knows what is
        // there.
        if !line.starts_with("dd ") {
            let ran = format_guard_tests::tool::run_with(&line, input)?;
            ensure!(ran.status != 0, "{line} succeeded:\n{}", ran.text);
        }
    }
    before.unchanged(&swapped)
}

#[test]
fn a_dm_volume_is_known_again_when_it_is_made_again() -> Result<()> {
    let guard = Guard::shared()?;
    let mut device = Mapped::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    let id = guard.volume(device.path())?["id"].clone();
    device.remake()?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["id"] == id, "{volume}");
    attack::some_refused(&guard, device.path())?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn a_format_that_began_while_no_agent_ran_is_recorded_by_the_next_one() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(64)?;
    guard.wait_for_state(device.path(), "blank")?;
    guard.kill_agent()?;
    must(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
    let before = device.sha256()?;
    // The device was armed for one format: the kernel programs alone refuse the second one.
    let ran = format_guard_tests::tool::run(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
    ensure!(ran.status != 0, "a second format went through without an agent");
    ensure!(device.sha256()? == before, "bytes changed");
    guard.start_agent()?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["content"]["types"][0] == "ext4", "{volume}");
    Ok(())
}
