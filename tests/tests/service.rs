//! The unit files on a host that boots: the guard is there before anything mounts or formats a volume, comes back when it is
//! killed or hangs, and leaves enforcement when it is stopped.
//!
//! `cargo xtask test` runs it twice in one guest: to prepare the host, and, when systemd has started it, to look.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    device::sha256,
    guard::binary,
    tool::{module, must, run},
    wait_for,
};
use serde_json::Value;

const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd");
const UNIT: &str = "format-guard.service";
/// Holds an ext4 from before there was a guard.
const VOLUME: &str = "/dev/vda";
/// The same, and is mounted at boot.
const MOUNTED: &str = "/dev/vdb";
const KNOWN: &str = "/run/fg-service-sha256";
const KUBELET_SAID: &str = "/run/fg-service-kubelet";

#[test]
#[ignore = "it needs a host that boots: cargo xtask test runs it"]
fn a_host_boots_with_the_guard() -> Result<()> {
    if env::var("GUEST_PHASE").is_ok_and(|phase| phase == "prepare") { prepare() } else { look() }
}

fn prepare() -> Result<()> {
    for (from, to) in [
        (binary()?.as_path(), "/usr/bin/format-guard"),
        (&Path::new(UNITS).join(UNIT), "/usr/lib/systemd/system/format-guard.service"),
        (
            &Path::new(UNITS).join("format-guard-generator"),
            "/usr/lib/systemd/system-generators/format-guard-generator",
        ),
    ] {
        let to = Path::new(to);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::copy(from, to).with_context(|| from.display().to_string())?;
    }
    fs::set_permissions("/usr/lib/systemd/system/format-guard.service", fs::Permissions::from_mode(0o644))?;
    module("virtio_blk")?;
    for node in [VOLUME, MOUNTED] {
        must(&format!("mkfs.ext4 -F -q {node}"))?;
    }
    fs::write(KNOWN, sha256(Path::new(VOLUME))?)?;
    fs::write("/etc/fstab", format!("{MOUNTED} /mnt ext4 defaults 0 0\n"))?;
    fs::write(
        "/etc/systemd/system/kubelet.service",
        format!(
            "[Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=/bin/sh -c 'mkfs.ext4 -F {VOLUME} >{KUBELET_SAID} 2>&1; echo status $? >>{KUBELET_SAID}'\n"
        ),
    )?;
    for (target, unit) in [("sysinit", UNIT), ("multi-user", "kubelet.service")] {
        let directory = format!("/etc/systemd/system/{target}.target.wants");
        fs::create_dir_all(&directory)?;
        let from = if unit == UNIT { "/usr/lib" } else { "/etc" };
        symlink(format!("{from}/systemd/system/{unit}"), format!("{directory}/{unit}"))?;
    }
    Ok(())
}

/// A property of a unit.
fn property(unit: &str, name: &str) -> Result<String> {
    Ok(must(&format!("systemctl show --value -p {name} {unit}"))?.trim().to_owned())
}

/// When a unit came to be active, in microseconds since the boot.
fn active_since(unit: &str) -> Result<u64> {
    let value = property(unit, "ActiveEnterTimestampMonotonic")?;
    let since = value.parse().with_context(|| format!("{unit}: {value}"))?;
    ensure!(since > 0, "{unit} has not been active: {}", journal(unit)?);
    Ok(since)
}

/// What the journal says of a unit in this boot.
fn journal(unit: &str) -> Result<String> {
    Ok(run(&format!("journalctl --no-pager -b -u {unit}"))?.text)
}

fn status() -> Result<Value> {
    Ok(serde_json::from_str(&must("format-guard status --json")?)?)
}

/// The formatter is refused, and no byte has changed.
fn is_kept(when: &str) -> Result<()> {
    let ran = run(&format!("mkfs.ext4 -F {VOLUME}"))?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{when}: {ran:?}");
    ensure!(sha256(Path::new(VOLUME))? == fs::read_to_string(KNOWN)?, "{when}: bytes have changed");
    Ok(())
}

/// The agent is another process than this one, and in force.
fn came_back(before: &str) -> Result<()> {
    wait_for("the agent to come back", || {
        let pid = property(UNIT, "MainPID")?;
        let back = pid != before && pid != "0" && property(UNIT, "ActiveState")? == "active";
        Ok((back && status().is_ok_and(|status| status["proven"] == true)).then_some(()))
    })
    .with_context(|| {
        run(&format!("journalctl --no-pager -n 40 -u {UNIT}")).map_or_else(|_| String::new(), |ran| ran.text)
    })
}

fn look() -> Result<()> {
    let said = journal(UNIT)?;
    ensure!(property(UNIT, "ActiveState")? == "active", "{said}");
    ensure!(said.contains("format-guard is in force"), "nothing in the journal: {said}");
    // systemd leaves out what waits for itself: a mount, for one.
    let cycles = run("journalctl --no-pager -b _PID=1 --grep 'ordering cycle'")?;
    ensure!(cycles.status != 0, "units wait for each other: {}", cycles.text);
    let in_force = status()?;
    ensure!(in_force["tier"] == "lsm" && in_force["protected"] == true, "{in_force}");
    ensure!(in_force["degraded"].as_array().is_some_and(Vec::is_empty), "{in_force}");
    let since = active_since(UNIT)?;
    for later in ["mnt.mount", "kubelet.service"] {
        ensure!(since < active_since(later)?, "{later} came first");
    }
    let kubelet = fs::read_to_string(KUBELET_SAID)?;
    ensure!(kubelet.contains("Operation not permitted") && !kubelet.contains("status 0"), "{kubelet}");
    is_kept("after the boot")?;
    let exposure = run(&format!("systemd-analyze security --no-pager {UNIT}"))?.text;
    println!("{}", exposure.lines().last().unwrap_or_default());

    // Not by anybody: by process 1 alone.
    let pid = property(UNIT, "MainPID")?;
    ensure!(run(&format!("kill -KILL {pid}"))?.status != 0, "the agent could be killed");
    must(&format!("systemctl kill --signal=KILL {UNIT}"))?;
    is_kept("while the agent is gone")?;
    came_back(&pid)?;

    let pid = property(UNIT, "MainPID")?;
    fs::create_dir_all("/run/systemd/system/format-guard.service.d")?;
    fs::write("/run/systemd/system/format-guard.service.d/watchdog.conf", "[Service]\nWatchdogSec=4\n")?;
    must("systemctl daemon-reload")?;
    must(&format!("systemctl restart {UNIT}"))?;
    came_back(&pid)?;
    let pid = property(UNIT, "MainPID")?;
    must(&format!("systemctl kill --signal=STOP {UNIT}"))?;
    is_kept("while the agent hangs")?;
    came_back(&pid)?;
    let said = journal(UNIT)?;
    ensure!(said.contains("Watchdog timeout"), "the watchdog was not what ended it: {said}");

    must(&format!("systemctl reload {UNIT}"))?;
    wait_for("the configuration to be read", || {
        Ok(run("format-guard events")?.text.contains("the configuration was read again").then_some(()))
    })?;
    must(&format!("systemctl stop {UNIT}"))?;
    ensure!(run("format-guard status")?.status == 4, "an agent answers");
    is_kept("after the stop")?;
    must(&format!("systemctl start {UNIT}"))?;
    is_kept("at the end")
}
