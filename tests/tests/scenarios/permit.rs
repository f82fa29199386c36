//! A permit is an operator's word for one re-format of one volume, and it ends.

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{LUKS_FORMAT, refused},
    device::{Device, Loop},
    guard::{Guard, binary},
    tool::{Ran, command, must, must_with, run_command},
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

/// What a person at a terminal sees, who types this.
fn typed(guard: &Guard, words: &str, answer: &str) -> Result<Ran> {
    let line = format!("{} --socket {} {words}", binary()?.display(), guard.socket().display());
    let mut terminal = command("script");
    terminal.args(["-qefc", &line, "/dev/null"]);
    run_command(terminal, &line, answer)
}

#[test]
fn by_what_data_may_be_lost_is_asked_for_and_never_guessed() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let id = guard.volume(device.path())?["id"].as_str().context("no id")?.to_owned();
    let beginning = &id[..id.len() - 1];
    ensure!(
        guard.json(&format!("volume show {beginning}"))?["id"] == id.as_str(),
        "not shown by its beginning"
    );
    for command in ["permit", "exempt", "forget", "adopt"] {
        let ran = guard.say(&format!("volume {command} {beginning} --reason test"))?;
        ensure!(ran.status == 2 && ran.text.contains("name the whole one"), "{command}: {ran:?}");
        let words = format!("volume {command} {id} --reason test");
        let ran = typed(&guard, &words, "y\n")?;
        for told in ["holds ext4", "Type yes to go on", "nothing is done"] {
            ensure!(ran.status == 1 && ran.text.contains(told), "{command}: {ran:?}");
        }
        ensure!(guard.volume(device.path())?["state"] == "formatted", "{command} was done");
    }
    let ran = guard.say(&format!("volume adopt {id}"))?;
    ensure!(ran.status == 2 && ran.text.contains("--reason"), "{ran:?}");
    let ran = typed(&guard, &format!("volume permit {id} --reason test"), "yes\n")?;
    ensure!(ran.status == 0 && guard.volume(device.path())?["state"] == "permitted", "{ran:?}");
    let ran = typed(&guard, &format!("volume adopt {id} --reason test --yes"), "")?;
    ensure!(ran.status == 0 && guard.volume(device.path())?["state"] == "formatted", "{ran:?}");
    Ok(())
}

#[test]
fn adopt_takes_what_is_there_and_refuses_what_reads_blank() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    guard.wait_for_state(device.path(), "blank")?;
    let ran = guard.say(&format!("volume adopt {node} --reason test"))?;
    ensure!(ran.status == 3 && ran.text.contains("nothing to adopt"), "{ran:?}");
    make_ext4(&guard, device.path())?;
    let volume = guard.json(&format!("volume adopt {node} --reason test"))?;
    ensure!(volume["state"] == "formatted" && volume["content"]["types"][0] == "ext4", "{volume}");
    Ok(())
}
