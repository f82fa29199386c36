//! The packages on a host that boots. The guard is there before anything mounts or formats a volume, and
//! comes back when it is killed or hangs. It leaves enforcement when it is stopped, is upgraded without a
//! gap, and is gone when it is removed.
//!
//! `cargo xtask test` runs it twice in one guest: once to prepare the host, and once, after systemd has
//! started it, to check. Variables name the packages: `FORMAT_GUARD_DEB`, `FORMAT_GUARD_NEWER_DEB`,
//! `FORMAT_GUARD_RPM` and `FORMAT_GUARD_NEWER_RPM`.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use format_guard_tests::{
    device::sha256,
    tool::{module, must, run},
    wait_for,
};
use serde_json::Value;

const UNIT: &str = "format-guard.service";
/// Holds an ext4 that was made before the guard started.
const VOLUME: &str = "/dev/vda";
/// The same, mounted at boot.
const MOUNTED: &str = "/dev/vdb";
const DROP_IN: &str = "/run/systemd/system/format-guard.service.d";
const DATABASE: &str = "/var/lib/format-guard/volumes.sqlite3";
const CONFIG: &str = "/etc/format-guard/config.toml";
const POLICY: &str = "/usr/sbin/policy-rc.d";
const KNOWN: &str = "/run/fg-service-sha256";
const KUBELET_SAID: &str = "/run/fg-service-kubelet";

#[test]
#[ignore = "it needs a host that boots: cargo xtask test runs it"]
fn a_host_boots_with_the_guard() -> Result<()> {
    if env::var("GUEST_PHASE").is_ok_and(|phase| phase == "prepare") { prepare() } else { look() }
}

fn prepare() -> Result<()> {
    // No init system runs yet, as in an installer or in the build of an image.
    must(&format!("dpkg --no-triggers -i {}", package("DEB")?))?;
    enforce()?;
    // Images for containers have this file, so that no service starts.
    if Path::new(POLICY).exists() {
        fs::remove_file(POLICY)?;
    }
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
    let directory = "/etc/systemd/system/multi-user.target.wants";
    fs::create_dir_all(directory)?;
    symlink("/etc/systemd/system/kubelet.service", format!("{directory}/kubelet.service"))?;
    Ok(())
}

/// The change that an operator makes once the report says that it is safe: a package begins by refusing
/// nothing.
fn enforce() -> Result<()> {
    let config = fs::read_to_string(CONFIG)?;
    let line = "\nmode = \"audit\"\n";
    ensure!(config.contains(line), "{config}");
    Ok(fs::write(CONFIG, config.replace(line, "\nmode = \"enforce\"\n"))?)
}

/// The path of a package.
fn package(name: &str) -> Result<String> {
    env::var(format!("FORMAT_GUARD_{name}")).with_context(|| format!("FORMAT_GUARD_{name} names a package"))
}

/// A property of a unit.
fn property(unit: &str, name: &str) -> Result<String> {
    Ok(must(&format!("systemctl show --value -p {name} {unit}"))?.trim().to_owned())
}

/// When a unit became active, in microseconds since the boot.
fn active_since(unit: &str) -> Result<u64> {
    let value = property(unit, "ActiveEnterTimestampMonotonic")?;
    let since = value.parse().with_context(|| format!("{unit}: {value}"))?;
    ensure!(since > 0, "{unit} has not been active: {}", journal(unit)?);
    Ok(since)
}

/// The journal of a unit in this boot.
fn journal(unit: &str) -> Result<String> {
    Ok(run(&format!("journalctl --no-pager -b -u {unit}"))?.text)
}

fn status() -> Result<Value> {
    Ok(serde_json::from_str(&must("format-guard status --json")?)?)
}

/// Checks that the formatter is refused, and that no byte has changed.
fn is_kept(when: &str) -> Result<()> {
    let ran = run(&format!("mkfs.ext4 -F {VOLUME}"))?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{when}: {ran:?}");
    ensure!(sha256(Path::new(VOLUME))? == fs::read_to_string(KNOWN)?, "{when}: bytes have changed");
    Ok(())
}

/// Checks that the agent is another process than this one, and in force.
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
    // systemd omits a unit that waits for itself, such as a mount.
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

    // Only process 1 may do so.
    let pid = property(UNIT, "MainPID")?;
    ensure!(run(&format!("kill -KILL {pid}"))?.status != 0, "the agent could be killed");
    must(&format!("systemctl kill --signal=KILL {UNIT}"))?;
    is_kept("while the agent is gone")?;
    came_back(&pid)?;

    let pid = property(UNIT, "MainPID")?;
    fs::create_dir_all(DROP_IN)?;
    fs::write(format!("{DROP_IN}/watchdog.conf"), "[Service]\nWatchdogSec=4\n")?;
    must("systemctl daemon-reload")?;
    must(&format!("systemctl restart {UNIT}"))?;
    came_back(&pid)?;
    let pid = property(UNIT, "MainPID")?;
    must(&format!("systemctl kill --signal=STOP {UNIT}"))?;
    is_kept("while the agent hangs")?;
    came_back(&pid)?;
    let said = journal(UNIT)?;
    ensure!(said.contains("Watchdog timeout"), "the watchdog was not what ended it: {said}");
    fs::remove_dir_all(DROP_IN)?;
    must("systemctl daemon-reload")?;

    must(&format!("systemctl reload {UNIT}"))?;
    wait_for("the configuration to be read", || {
        Ok(run("format-guard events")?.text.contains("the configuration was read again").then_some(()))
    })?;
    must(&format!("systemctl stop {UNIT}"))?;
    ensure!(run("format-guard status")?.status == 4, "an agent answers");
    is_kept("after the stop")?;
    must(&format!("systemctl start {UNIT}"))?;
    is_kept("after another start")?;
    of_debian()?;
    of_rpm()
}

/// From now on this volume's bytes must be kept.
fn keep() -> Result<()> {
    Ok(fs::write(KNOWN, sha256(Path::new(VOLUME))?)?)
}

/// Upgrades while a formatter tries without pause: at the end another agent is in force, and the formatter
/// never succeeded.
fn upgrade(line: &str) -> Result<()> {
    let pid = property(UNIT, "MainPID")?;
    let (done, tries) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let attack = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                let ran = run(&format!("mkfs.ext4 -F {VOLUME}"))?;
                ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{ran:?}");
                tries.fetch_add(1, Ordering::AcqRel);
                // The new agent needs the only processor, too.
                thread::sleep(Duration::from_millis(250));
            }
            Ok(())
        });
        let upgraded = must(line).and_then(|_| came_back(&pid));
        done.store(true, Ordering::Release);
        let Ok(attacked) = attack.join() else { bail!("the attack broke") };
        attacked.context("during the upgrade")?;
        upgraded
    })?;
    println!("{} formatters were refused during {line}", tries.load(Ordering::Acquire));
    ensure!(tries.load(Ordering::Acquire) > 0, "nothing was tried during {line}");
    is_kept("after the upgrade")
}

/// Checks that nothing refuses any more.
fn is_let_go(when: &str) -> Result<()> {
    ensure!(!Path::new("/usr/bin/format-guard").exists(), "{when}: the program is there");
    ensure!(property(UNIT, "ActiveState")? == "inactive", "{when}: {}", journal(UNIT)?);
    must(&format!("mkfs.ext4 -F -q {VOLUME}")).with_context(|| when.to_owned())?;
    keep()
}

fn of_debian() -> Result<()> {
    let version = || must("dpkg-query -W -f ${Version} format-guard");
    let before = version()?;
    upgrade(&format!("dpkg --no-triggers -i {}", package("NEWER_DEB")?))?;
    ensure!(version()? != before, "{before} is still there");

    must("dpkg --no-triggers --remove format-guard")?;
    is_let_go("after the removal")?;
    ensure!(Path::new(DATABASE).exists(), "the removal took the record");
    // This time the package starts it by itself, on a running host.
    must(&format!("dpkg --no-triggers -i {}", package("DEB")?))?;
    came_back("")?;
    is_kept("installed again")?;
    must("dpkg --no-triggers --purge format-guard")?;
    is_let_go("after the purge")?;
    let left = run("find /etc /usr /var/lib /run /sys/fs/bpf -name *format-guard* -not -path */dpkg/*")?.text;
    ensure!(left.trim().is_empty(), "the purge left {left}");
    Ok(())
}

fn of_rpm() -> Result<()> {
    // Debian's rpm wants a flag that says that this is meant.
    let rpm = "rpm --force-debian --nodeps";
    must(&format!("{rpm} -i {}", package("RPM")?))?;
    came_back("")?;
    ensure!(property(UNIT, "UnitFileState")? == "enabled", "it would not start at the next boot");
    ensure!(status()?["mode"] == "audit", "{}", status()?);
    enforce()?;
    must(&format!("systemctl reload {UNIT}"))?;
    wait_for("it to enforce", || Ok((status()?["mode"] == "enforce").then_some(())))?;
    is_kept("installed from the RPM")?;
    upgrade(&format!("{rpm} -U {}", package("NEWER_RPM")?))?;
    must(&format!("{rpm} -e format-guard"))?;
    is_let_go("after the RPM's removal")?;
    ensure!(Path::new(DATABASE).exists(), "the removal took the record");
    Ok(())
}
