//! Tier `cgroup`: known formatters are refused by their name when they open a volume, and nobody else is held
//! up.
//!
//! Run as root in a control group to which the guard is attached. `cargo xtask test` runs it on this host,
//! where it hides the kernel's type information from the guard, and in a guest, at the root of the control
//! groups.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop, Snapshot},
    guard::{CGROUP, Guard},
    road::{Aim, documented, errno_of},
    tool::{must, run},
};

/// A volume that holds an ext4.
fn formatted(guard: &Guard) -> Result<Loop> {
    let device = Loop::new(64)?;
    guard.wait_for_state(device.path(), "blank")?;
    must(&format!("mkfs.ext4 -F -m0 -q {}", device.path().display())).with_context(|| guard.log())?;
    guard.wait_for_state(device.path(), "formatted")?;
    Ok(device)
}

/// Checks that a program with each refused name is refused.
fn by_name(node: &Path) -> [String; 7] {
    let node = node.display();
    [
        format!("mkfs.ext4 -F {node}"),
        format!("mkfs.xfs -f --unsupported {node}"),
        format!("mkfs.btrfs -f -M {node}"),
        format!("mkswap -f {node}"),
        format!("wipefs -a -f {node}"),
        format!("blkdiscard -f {node}"),
        format!("pvcreate -ff -y {node}"),
    ]
}

#[test]
fn a_volume_is_formatted_once_and_everyday_work_goes_on() -> Result<()> {
    let guard = Guard::shared()?;
    let device = formatted(&guard)?;
    let before = Snapshot::of(&device)?;
    for line in by_name(device.path()) {
        attack::refused(&guard, &line, "")?;
    }
    before.unchanged(&device)?;
    let events = guard.events("denied")?;
    let refusal = &events.last().context("no event")?["refusal"];
    ensure!(refusal["operation"] == "open" && refusal["pid"].as_u64() > Some(1), "{refusal}");
    let node = device.path().display();
    let directory = tempfile::tempdir()?;
    must(&format!("mount {node} {}", directory.path().display()))?;
    fs::write(directory.path().join("file"), [7; 4096])?;
    must(&format!("umount {}", directory.path().display()))?;
    must(&format!("e2fsck -f -y {node}"))?;
    must(&format!("resize2fs {node} 32M"))?;
    must(&format!("tune2fs -L label {node}"))?;
    must(&format!("dd if={node} of={node} bs=4096 count=1 conv=notrunc"))?;
    guard.wait_for_state(device.path(), "formatted")?;
    Ok(())
}

#[test]
fn what_is_not_verified_is_not_formatted() -> Result<()> {
    let _guard = Guard::shared()?;
    // A device that is new to the guard holds a format that nobody recorded.
    let image = format_guard_tests::device::Image::new(64)?;
    must(&format!("mkfs.ext4 -F -q {}", image.path().display()))?;
    let device = Loop::over(image.path())?;
    for line in by_name(device.path()) {
        ensure!(run(&line)?.status != 0, "{line} succeeded");
    }
    must(&format!("blkid -p {}", device.path().display()))?;
    Ok(())
}

#[test]
fn one_formatter_begins_and_none_beside_it() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    guard.wait_for_state(device.path(), "blank")?;
    // A program with a formatter's name opens the device and keeps it open until its input ends.
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("mkfs.ext4");
    fs::write(&script, format!("#!/bin/sh\nexec 3<>{}\nread end\nexit 0\n", device.path().display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let mut first = Command::new(&script).stdin(Stdio::piped()).spawn()?;
    guard.wait_for_state(device.path(), "formatting")?;
    for line in by_name(device.path()) {
        ensure!(attack::refused(&guard, &line, "")?.status != 0, "{line}");
    }
    let events = guard.events("denied")?;
    ensure!(events.iter().all(|event| event["refusal"]["reason"] == "being-formatted"), "{events:#?}");
    drop(first.stdin.take());
    ensure!(first.wait()?.success(), "it was refused");
    Ok(())
}

#[test]
fn a_permit_lets_one_format_through_and_no_second() -> Result<()> {
    let guard = Guard::shared()?;
    let device = formatted(&guard)?;
    let node = device.path().display();
    guard.say(&format!("volume permit {node} --reason test"))?;
    must(&format!("mkfs.xfs -f --unsupported -q {node}"))?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["content"]["types"][0] == "xfs", "{volume}");
    attack::refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    Ok(())
}

#[test]
fn refusals_go_on_without_the_agent_and_in_audit_nothing_is_refused() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = formatted(&guard)?;
    let before = Snapshot::of(&device)?;
    guard.kill_agent()?;
    for line in by_name(device.path()) {
        ensure!(run(&line)?.status != 0, "{line} succeeded without an agent");
    }
    before.unchanged(&device)?;
    guard.start_agent()?;
    guard.wait_for_state(device.path(), "formatted")?;
    attack::refused(&guard, &format!("wipefs -a -f {}", device.path().display()), "")?;
    guard.say("mode audit --reason test")?;
    must(&format!("mkswap -f {}", device.path().display()))?;
    ensure!(!guard.events("would-deny")?.is_empty(), "nothing was told");
    Ok(())
}

#[test]
fn a_guard_whose_tier_cannot_be_in_force_does_not_start() -> Result<()> {
    let guard = Guard::unstarted(None)?;
    guard.replace("cgroup_dir", "'/sys/fs/cgroup/no-such-group'")?;
    let said = guard.start_in_vain("", 5)?;
    ensure!(said.contains("cannot open the control group /sys/fs/cgroup/no-such-group"), "{said}");
    guard.replace("tier", "'preload'")?;
    guard.replace("require", "'cgroup'")?;
    let said = guard.start_in_vain("", 1)?;
    ensure!(said.contains("tier is weaker than cgroup, which require asks for"), "{said}");
    Ok(())
}

/// What `status` names as open must be open: otherwise it understates the tier.
#[test]
fn what_it_leaves_open_is_open() -> Result<()> {
    let guard = Guard::shared()?;
    let open = guard.json("status")?["open"].to_string();
    ensure!(open.contains("a copy under another name, dd"), "{open}");
    let device = formatted(&guard)?;
    let node = device.path().display();
    let aim = Aim { path: device.path(), offset: 1080, length: 2 };
    for (name, road, refused) in documented(CGROUP)? {
        let errno = errno_of(road, &aim)?;
        ensure!(refused == (errno == Some(libc::EPERM)), "{name} gave errno {errno:?}");
    }
    must(&format!("dd if=/dev/zero of={node} bs=1M count=1 conv=notrunc"))?;
    let copy: PathBuf = attack::copy("mkfs.xfs")?.into();
    must(&format!("{} -f --unsupported -q {node}", copy.display()))?;
    Ok(())
}
