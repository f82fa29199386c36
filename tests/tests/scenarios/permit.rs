//! A permit is an operator's word for one re-format of one volume, and it ends.

use anyhow::{Result, ensure};
use format_guard_tests::{
    attack::{LUKS_FORMAT, refused},
    device::{Device, Loop},
    guard::Guard,
    tool::{must, must_with},
};

use crate::make_ext4;

#[test]
fn a_permit_lets_one_format_through_and_no_second() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    let permit = guard.json(&format!("volume permit {node} --reason restore --for 10m"))?;
    ensure!(permit["state"] == "permitted" && permit["permit"]["reason"] == "restore", "{permit}");
    must(&format!("mkfs.xfs -f -q --unsupported {node}"))?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["content"]["types"][0] == "xfs" && volume["permit"].is_null(), "{volume}");
    let before = device.sha256()?;
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    refused(&guard, &format!("mkfs.xfs -f {node}"), "")?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn a_permit_serves_a_program_that_is_no_known_formatter() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    guard.json(&format!("volume permit {node} --reason encrypt"))?;
    must_with(&format!("{LUKS_FORMAT} {node} -"), "secret")?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["content"]["types"][0] == "crypto_LUKS", "{volume}");
    refused(&guard, &format!("{LUKS_FORMAT} {node} -"), "secret").map(drop)
}

#[test]
fn a_permit_expires_unused() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    guard.json(&format!("volume permit {node} --reason test --for 1s"))?;
    guard.wait_for_state(device.path(), "formatted")?;
    ensure!(guard.events("permit-expired")?.len() == 1);
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn a_permit_needs_a_reason_and_a_volume_that_needs_it() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    guard.wait_for_state(device.path(), "blank")?;
    for (line, status) in [
        (format!("volume permit {node}"), 2),
        (format!("volume permit {node} --reason x --for 1y"), 2),
        (format!("volume permit {node} --reason x --for 30d"), 2),
        (format!("volume permit {node} --reason x"), 2),
        ("volume permit nobody --reason x".to_owned(), 1),
        ("volume show /dev/null".to_owned(), 1),
    ] {
        let ran = guard.say(&line)?;
        ensure!(ran.status == status, "{line} ended with {}: {}", ran.status, ran.text);
    }
    Ok(())
}

#[test]
fn adopt_takes_what_is_there_and_refuses_what_reads_blank() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    guard.wait_for_state(device.path(), "blank")?;
    let ran = guard.say(&format!("volume adopt {node}"))?;
    ensure!(ran.status == 3 && ran.text.contains("nothing to adopt"), "{ran:?}");
    make_ext4(&guard, device.path())?;
    let volume = guard.json(&format!("volume adopt {node}"))?;
    ensure!(volume["state"] == "formatted" && volume["content"]["types"][0] == "ext4", "{volume}");
    Ok(())
}
