//! One agent takes over from another: enforcement has no gap, and a takeover that fails changes nothing.

use std::{
    env,
    fs::{self, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{FileExt, MetadataExt},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop},
    guard::{Guard, PINS, binary},
    tool::{must, open_as_formatter, run},
};

use crate::make_ext4;

/// Takeovers during the attack, unless `FORMAT_GUARD_HANDOVERS` names a number.
const HANDOVERS: u32 = 2;

/// The inode of the link that is in force for opens: a new link has a new inode.
fn link() -> Result<u64> {
    let layouts = fs::read_dir(PINS)?.collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    for layout in layouts {
        for directory in fs::read_dir(layout.path())? {
            let path = directory?.path().join("file_open");
            if let Ok(pin) = fs::metadata(path) {
                found.push(pin.ino());
            }
        }
    }
    ensure!(found.len() == 1, "links of {} agents are there", found.len());
    found.pop().context("no link")
}

#[test]
fn an_agent_of_the_same_build_keeps_the_programs_that_are_in_force() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = (device.sha256()?, link()?);
    guard.kill_agent()?;
    guard.start_agent()?;
    attack::all_refused(&guard, device.path())?;
    ensure!(before == (device.sha256()?, link()?), "bytes or links changed");
    // Programs that read maps which this agent does not write would not learn of a new volume.
    guard.kill_agent()?;
    for layout in fs::read_dir(PINS)? {
        fs::remove_file(layout?.path().join("maps/WINDOWS"))?;
    }
    guard.start_agent()?;
    ensure!(before.1 != link()?, "programs were kept whose maps are gone");
    attack::some_refused(&guard, device.path())?;
    ensure!(before.0 == device.sha256()?, "bytes changed");
    Ok(())
}

#[test]
fn nothing_comes_through_while_agents_take_over_from_each_other() -> Result<()> {
    let wanted = env::var("FORMAT_GUARD_HANDOVERS").ok().map_or(Ok(HANDOVERS), |number| number.parse())?;
    let mut guard = Guard::start()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    let file = OpenOptions::new().read(true).write(true).open(device.path())?;
    let over = AtomicBool::new(false);
    let tried = thread::scope(|scope| -> Result<u64> {
        let attack = scope.spawn(|| -> Result<u64> {
            let mut tried = 0;
            while !over.load(Ordering::Relaxed) {
                for refused in
                    [file.write_at(&[0; 2], 1080).map(drop), open_as_formatter(device.path()).map(drop)]
                {
                    let kind = refused.err().map(|error| error.kind());
                    ensure!(kind == Some(ErrorKind::PermissionDenied), "attempt {tried} gave {kind:?}");
                }
                tried += 1;
            }
            Ok(tried)
        });
        let handed = (0..wanted).try_for_each(|number| {
            let old = link()?;
            let passthrough = if number % 2 == 0 { "'refuse'" } else { "'allow'" };
            guard.replace("passthrough", passthrough)?;
            guard.kill_agent()?;
            guard.start_agent()?;
            ensure!(link()? != old, "the old programs are still in force: the scenario shows nothing");
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        let tried = attack.join().map_err(|_| anyhow::anyhow!("the attack broke"))?;
        handed?;
        tried
    })?;
    println!("{wanted} hand-overs, {tried} attempts, none came through");
    ensure!(tried > u64::from(wanted), "{tried} attempts show nothing");
    ensure!(before == device.sha256()?, "bytes changed");
    Ok(())
}

#[test]
fn an_agent_that_cannot_prove_its_programs_leaves_the_old_ones_in_force() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = (device.sha256()?, link()?);
    guard.kill_agent()?;
    guard.replace("passthrough", "'refuse'")?;
    // Without mknod(2) the canary has no node.
    let said = guard.start_in_vain("setpriv --bounding-set=-mknod", 5)?;
    ensure!(said.contains("cannot make a device node to test with"), "{said}");
    ensure!(before.1 == link()?, "links changed");
    attack::all_fail(device.path())?;
    guard.start_agent()?;
    ensure!(before.0 == device.sha256()?, "bytes changed");
    Ok(())
}

#[test]
fn enforcement_outlives_a_stop_and_ends_by_an_operators_word() -> Result<()> {
    let mut guard = Guard::start()?;
    let (device, blank) = (Loop::new(64)?, Loop::new(64)?);
    make_ext4(&guard, device.path())?;
    guard.wait_for_state(blank.path(), "blank")?;
    let detach = format!(
        "{} agent --config {} --detach --reason maintenance",
        binary()?.display(),
        guard.config().display()
    );
    let beside = run(&detach)?;
    ensure!(beside.status == 1 && beside.text.contains("another agent uses it"), "{beside:?}");
    attack::some_refused(&guard, device.path())?;
    guard.stop_agent()?;
    attack::some_fail(device.path())?;
    let before = device.sha256()?;
    let mkfs = format!("mkfs.ext4 -F -q {}", device.path().display());
    ensure!(run(&mkfs)?.status != 0 && device.sha256()? == before, "a stop let a format through");
    // An unusable configuration file must not block the way out.
    let sound = fs::read_to_string(guard.config())?;
    fs::write(guard.config(), format!("{sound}\nquarantine = soon\n"))?;
    let ended = run(&detach)?;
    ensure!(ended.status == 0 && ended.text.contains("enforcement has ended"), "{ended:?}");
    ensure!(ended.text.contains("the agent looks for pins at"), "{ended:?}");
    fs::write(guard.config(), sound)?;
    must(&mkfs).context("what was said to have ended refuses still")?;
    let again = run(&detach)?;
    ensure!(again.status == 0 && again.text.contains("nothing is enforced"), "{again:?}");
    // Longer than any start takes.
    guard.replace("quarantine", "3600")?;
    guard.start_agent()?;
    let told = guard.events("detached")?;
    ensure!(told.len() == 1 && told[0]["text"] == "enforcement was ended by user 0: maintenance", "{told:?}");
    // A volume that was blank may have been formatted since.
    guard.wait_for_volume(blank.path(), "doubted", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("while no agent saw it"))
    })?;
    guard.stop_agent()?;
    guard.replace("quarantine", "5")?;
    guard.start_agent()?;
    guard.wait_for_state(blank.path(), "blank").map(drop)
}
