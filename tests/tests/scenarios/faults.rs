//! The agent is killed between any two of its writes: what was recorded stays known, and no volume is
//! formatted twice.

use std::{env, path::Path};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Image, Loop},
    guard::Guard,
    tool::run,
    wait_for,
};

use crate::{database::damage, make_ext4};

/// Points of `format_guard::fault` that any agent passes, and how often: only the first time, or each time
/// with `FORMAT_GUARD_FAULTS=all`.
const POINTS: [(&str, &[u32]); 9] = [
    ("BeforeCommit", &[1, 2, 3, 4, 6, 8]),
    ("AfterCommit", &[1, 2, 3, 4, 6, 8]),
    ("AfterWindows", &[1, 4, 7]),
    ("AfterRule", &[1, 4, 7]),
    ("AfterSlot", &[1, 4, 7]),
    ("BeforeRemoval", &[1, 2]),
    ("AfterRemoval", &[1, 2]),
    ("BeforeRelease", &[1, 2]),
    ("AfterRelease", &[1, 2]),
];
/// Points that an agent passes when it takes over from an agent of another build.
const TAKING_OVER: [(&str, &[u32]); 4] =
    [("AfterPin", &[1, 12]), ("AfterProof", &[1]), ("AfterLinksAside", &[1]), ("AfterLinksMoved", &[1])];

/// A volume that a provisioner, believing it blank, tried again and again to format.
struct Formatted {
    volume: Loop,
    /// One format succeeded.
    done: bool,
}

fn mkfs(path: &Path) -> Result<bool> {
    Ok(run(&format!("mkfs.ext4 -F -m0 -q {}", path.display()))?.status == 0)
}

/// Makes a new volume, and formats it until one format succeeds or the agent dies.
fn provision(guard: &mut Guard) -> Result<Formatted> {
    let volume = Loop::new(16)?;
    let done = wait_for("a format to go through or the agent to die", || {
        let done = mkfs(volume.path())?;
        Ok((done || guard.is_dead()?).then_some(done))
    })?;
    Ok(Formatted { volume, done })
}

/// Checks that the volume takes one format in all, and that the format is known then.
fn takes_no_second(guard: &Guard, formatted: &Formatted) -> Result<()> {
    let path = formatted.volume.path();
    if !formatted.done {
        guard.wait_for_volume(path, "settled", |volume| {
            matches!(volume["state"].as_str(), Some("blank" | "permitted"))
        })?;
        ensure!(mkfs(path)?, "what is armed took no format");
    }
    guard.wait_for_state(path, "formatted")?;
    let before = formatted.volume.sha256()?;
    attack::refused(guard, &format!("mkfs.ext4 -F {}", path.display()), "")?;
    ensure!(formatted.volume.sha256()? == before, "bytes changed");
    Ok(())
}

/// Runs everything that an agent does in its life, until it dies.
fn live(guard: &mut Guard, known: Loop, permitted: &Loop) -> Result<(Formatted, (Loop, Image), bool)> {
    let new = provision(guard)?;
    let image = known.detach()?.context("no image")?;
    let known = Loop::over(image.path())?;
    if !guard.is_dead()? {
        wait_for("the volume to be known again or the agent to die", || {
            let known = guard.shown(known.path()).is_ok_and(|volume| volume["state"] == "formatted");
            Ok((known || guard.is_dead()?).then_some(()))
        })?;
    }
    let path = permitted.path().display();
    let given = guard.say(&format!("volume permit {path} --reason test"))?.status == 0;
    let used = mkfs(permitted.path())?;
    ensure!(given || guard.is_dead()? || !used, "a format went through without a permit");
    if !guard.is_dead()? {
        wait_for("the format to be known or the agent to die", || {
            let known = guard.shown(permitted.path()).is_ok_and(|volume| volume["state"] == "formatted");
            Ok((known || guard.is_dead()?).then_some(()))
        })?;
    }
    Ok((new, (known, image), used))
}

/// One agent that is killed at this point, and the agent after it.
fn killed_at(guard: &mut Guard, point: &str, time: u32) -> Result<()> {
    let (known, permitted) = (Loop::new(16)?, Loop::new(16)?);
    for volume in [&known, &permitted] {
        make_ext4(guard, volume.path())?;
    }
    let before = (known.sha256()?, permitted.sha256()?);
    guard.kill_agent()?;
    guard.start_doomed(point, time)?;
    let (new, (known, _image), used) = live(guard, known, &permitted)?;
    ensure!(guard.is_dead()?, "the point was not reached");
    // The agent that could answer is dead.
    ensure!(!mkfs(known.path())?, "a format went through without an agent");
    ensure!(!new.done || !mkfs(new.volume.path())?, "a second format went through without an agent");
    guard.start_agent()?;
    ensure!(guard.json("status")?["degraded"].as_array().is_some_and(Vec::is_empty), "it is degraded");
    guard.wait_for_state(known.path(), "formatted")?;
    attack::refused(guard, &format!("mkfs.ext4 -F {}", known.path().display()), "")?;
    ensure!(known.sha256()? == before.0, "bytes changed");
    takes_no_second(guard, &new)?;
    let volume = guard.wait_for_volume(permitted.path(), "settled", |volume| {
        matches!(volume["state"].as_str(), Some("formatted" | "permitted"))
    })?;
    ensure!(used || permitted.sha256()? == before.1, "bytes changed without a permit that was used");
    if volume["state"] == "permitted" {
        ensure!(!used, "a permit that was used is there again");
        ensure!(mkfs(permitted.path())?, "a permit that is there let nothing through");
    }
    takes_no_second(guard, &Formatted { volume: permitted, done: true })
}

/// The first time, or each time.
fn wanted(times: &[u32]) -> &[u32] {
    let all = env::var("FORMAT_GUARD_FAULTS").is_ok_and(|wanted| wanted == "all");
    if all { times } else { &times[..1] }
}

#[test]
fn an_agent_that_is_killed_between_its_writes_loses_nothing() -> Result<()> {
    let mut guard = Guard::start()?;
    for (point, times) in POINTS {
        for time in wanted(times) {
            println!("killed at {point}:{time}");
            killed_at(&mut guard, point, *time).with_context(|| format!("killed at {point}:{time}"))?;
        }
    }
    Ok(())
}

#[test]
fn an_agent_that_is_killed_while_it_takes_over_leaves_no_gap() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(32)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    let mut passthrough = ["'refuse'", "'allow'"].into_iter().cycle();
    for (point, times) in TAKING_OVER {
        for time in times {
            guard.kill_agent()?;
            guard.replace("passthrough", passthrough.next().context("a cycle")?)?;
            guard.start_doomed(point, *time)?;
            wait_for("the agent to die", || Ok(guard.is_dead()?.then_some(())))?;
            attack::some_fail(device.path()).with_context(|| format!("killed at {point}:{time}"))?;
            ensure!(device.sha256()? == before, "bytes changed, killed at {point}:{time}");
            guard.start_agent()?;
        }
    }
    attack::all_refused(&guard, device.path())?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_while_it_sets_a_database_aside_arms_nothing() -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    let mut guard = Guard::on_state(directory.path())?;
    let (device, blank) = (Loop::new(32)?, Loop::new(32)?);
    make_ext4(&guard, device.path())?;
    guard.wait_for_state(blank.path(), "blank")?;
    guard.kill_agent()?;
    damage(directory.path())?;
    guard.start_doomed("AfterLogAside", 1)?;
    wait_for("the agent to die", || Ok(guard.is_dead()?.then_some(())))?;
    guard.start_agent()?;
    ensure!(!guard.json("status")?["degraded"][0].is_null(), "the damage was forgotten");
    guard.wait_for_state(device.path(), "formatted")?;
    attack::refused(&guard, &format!("mkfs.ext4 -F {}", device.path().display()), "")?;
    attack::refused(&guard, &format!("mkfs.ext4 -F {}", blank.path().display()), "").map(drop)
}
