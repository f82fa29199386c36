//! A fresh volume is formatted at once, as provisioners do it, without a second try. A formatter that is too
//! early all the same gets a message that says so.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Linear, Loop, Mapped},
    guard::{Guard, binary},
    tool::{module, must, must_with, open_as_formatter, run},
    wait_for,
};

const MIB: u64 = 64;
/// How long formatters may wait.
const LIMIT: Duration = Duration::from_secs(10);

/// Makes an ext4 at once.
fn format(guard: &Guard, path: &Path) -> Result<()> {
    guard.before_format(path)?;
    must(&format!("mkfs.ext4 -F -m0 -q {}", path.display())).map(drop).with_context(|| guard.log())
}

/// Checks that nothing was refused.
fn nobody_was(guard: &Guard) -> Result<()> {
    let refusals = guard.events("denied")?;
    ensure!(refusals.is_empty(), "{refusals:#?}");
    Ok(())
}

#[test]
fn who_comes_before_a_volume_is_read_is_told_so_and_is_not_cut_off() -> Result<()> {
    let guard = Guard::shared()?;
    let before = guard.newest_refusal()?;
    guard.pause_agent()?;
    let device = Loop::new(MIB)?;
    let opened = open_as_formatter(device.path());
    guard.resume_agent()?;
    ensure!(opened.is_err(), "nobody has read it");
    wait_for("the event of a refusal", || Ok((guard.newest_refusal()? > before).then_some(())))?;
    let events = guard.events("denied")?;
    let refusal = &events.last().context("an event")?["refusal"];
    ensure!(refusal["reason"] == "not-read-yet", "{refusal}");
    ensure!(
        refusal["way_out"].as_str().is_some_and(|way| way.contains("try again in a moment")),
        "{refusal}"
    );
    ensure!(refusal["permit"].is_null(), "{refusal}");
    let metrics = guard.get("/metrics")?;
    let counter = |line: &str| line.contains("denials_total{reason=\"not-read-yet\",operation=\"open\"");
    ensure!(metrics.lines().any(counter), "{metrics}");
    guard.wait_for_state(device.path(), "blank")?;
    // By the same process.
    open_as_formatter(device.path()).map(drop).context("it was cut off")
}

#[test]
fn a_loop_device_is_formatted_at_once() -> Result<()> {
    let guard = Guard::patient()?;
    for _ in 0..3 {
        let device = Loop::new(MIB)?;
        format(&guard, device.path())?;
        guard.wait_for_state(device.path(), "formatted")?;
    }
    nobody_was(&guard)
}

#[test]
fn a_mapping_is_formatted_at_once() -> Result<()> {
    let guard = Guard::patient()?;
    for number in 0..3 {
        let below = Loop::new(MIB)?;
        let (name, uuid) = (format!("fg-first-{number}"), format!("FGTEST-first-{number}"));
        let device = Linear::over(&name, &uuid, below.path(), 0, MIB << 20)?;
        format(&guard, device.path())?;
        guard.wait_for_state(device.path(), "formatted")?;
    }
    nobody_was(&guard)
}

#[test]
fn a_logical_volume_is_made_and_formatted_at_once() -> Result<()> {
    let guard = Guard::patient()?;
    let disk = Loop::new(4 * MIB)?;
    must(&format!("vgcreate fgfirst {}", disk.path().display())).with_context(|| guard.log())?;
    let made = ["one", "two"].into_iter().try_for_each(|name| {
        must(&format!("lvcreate -y -n {name} -L 48M fgfirst"))?;
        let path = Path::new("/dev/fgfirst").join(name);
        format(&guard, &path)?;
        guard.wait_for_state(&path, "formatted").map(drop)
    });
    // Where an earlier volume of the group has left its format.
    let again = made.and_then(|()| {
        must("lvremove -y fgfirst/one")?;
        must("lvcreate -y -n three -L 48M fgfirst")?;
        format(&guard, Path::new("/dev/fgfirst/three"))
    });
    must("vgremove -y fgfirst")?;
    again?;
    nobody_was(&guard)
}

#[test]
fn an_encrypted_volume_is_made_and_formatted_at_once() -> Result<()> {
    let guard = Guard::patient()?;
    module("dm_crypt")?;
    let device = Loop::new(MIB)?;
    let node = device.path().display();
    must_with(&format!("{} {node} -", attack::LUKS_FORMAT), "secret").with_context(|| guard.log())?;
    must_with(&format!("cryptsetup open --key-file - {node} fg-first"), "secret")
        .with_context(|| guard.log())?;
    let formatted = format(&guard, Path::new("/dev/mapper/fg-first"));
    let known = formatted.and_then(|()| guard.wait_for_state(Path::new("/dev/mapper/fg-first"), "formatted"));
    must("cryptsetup close fg-first")?;
    known?;
    nobody_was(&guard)
}

#[test]
fn several_volumes_are_formatted_at_once() -> Result<()> {
    let guard = Guard::patient()?;
    let devices: Vec<Loop> = (0..6).map(|_| Loop::at_once(MIB)).collect::<Result<_>>()?;
    thread::scope(|scope| {
        let all: Vec<_> =
            devices.iter().map(|device| scope.spawn(|| format(&guard, device.path()))).collect();
        all.into_iter().try_for_each(|each| each.join().map_err(|_| anyhow!("a thread broke"))?)
    })?;
    for device in &devices {
        guard.wait_for_state(device.path(), "formatted")?;
    }
    nobody_was(&guard)
}

#[test]
fn a_volume_is_formatted_at_once_by_who_has_just_started_the_agent() -> Result<()> {
    let mut guard = Guard::patient()?;
    let device = Loop::new(MIB)?;
    guard.wait_for_state(device.path(), "blank")?;
    guard.kill_agent()?;
    guard.start_agent()?;
    // A new agent does not trust what an earlier one armed.
    format(&guard, device.path())?;
    guard.wait_for_state(device.path(), "formatted")?;
    let fresh = Loop::new(MIB)?;
    format(&guard, fresh.path())?;
    guard.wait_for_state(fresh.path(), "formatted")?;
    nobody_was(&guard)
}

#[test]
fn a_formatter_waits_for_no_agent_that_is_gone() -> Result<()> {
    let mut guard = Guard::patient()?;
    guard.kill_agent()?;
    let refused = |device: &Loop| -> Result<Duration> {
        let begun = Instant::now();
        ensure!(open_as_formatter(device.path()).is_err(), "nobody has read it");
        Ok(begun.elapsed())
    };
    let device = Loop::new(MIB)?;
    // Until the agent knows that the device is gone.
    wait_for("formatters to wait no longer", || Ok((refused(&device)? < LIMIT / 10).then_some(())))?;
    let begun = Instant::now();
    for _ in 0..10 {
        refused(&device)?;
    }
    ensure!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn a_formatter_waits_for_no_volume_that_cannot_be_read() -> Result<()> {
    let guard = Guard::patient()?;
    let device = Mapped::failing(MIB)?;
    let begun = Instant::now();
    ensure!(open_as_formatter(device.path()).is_err(), "nobody has read it");
    ensure!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    guard.wait_for_volume(device.path(), "unverified by a read that failed", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("read failed"))
    })?;
    let begun = Instant::now();
    ensure!(open_as_formatter(device.path()).is_err(), "nobody has read it");
    ensure!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
    Ok(())
}

/// Time that a process has spent in the kernel, in ticks of 10 ms (field 15 of `proc_pid_stat(5)`).
fn ticks_in_kernel(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    Ok(rest.split_whitespace().nth(12).context("too short")?.parse()?)
}

#[test]
fn a_formatter_that_waits_can_be_killed() -> Result<()> {
    let guard = Guard::patient()?;
    guard.pause_agent()?;
    let device = Loop::new(MIB)?;
    let begun = Instant::now();
    let spawned = Command::new("mkfs.ext4")
        .args(["-F", "-q"])
        .arg(device.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let ended = spawned.map_err(anyhow::Error::from).and_then(|mut child| {
        // Nothing else that the program does takes so much time in the kernel.
        wait_for("the formatter to wait", || Ok((ticks_in_kernel(child.id())? > 50).then_some(())))?;
        child.kill()?;
        Ok(child.wait()?)
    });
    guard.resume_agent()?;
    let status = ended?;
    ensure!(status.signal() == Some(libc::SIGKILL), "{status}");
    ensure!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn nobody_waits_where_the_configuration_says_so() -> Result<()> {
    let guard = Guard::start()?;
    guard.configure("first_format_wait = 0")?;
    guard.pause_agent()?;
    let made = Loop::new(MIB).and_then(|device| {
        let begun = Instant::now();
        ensure!(open_as_formatter(device.path()).is_err(), "nobody has read it");
        Ok((begun.elapsed(), device))
    });
    guard.resume_agent()?;
    let (took, device) = made?;
    ensure!(took < Duration::from_secs(2), "{took:?}");
    guard.wait_for_state(device.path(), "blank").map(drop)
}

#[test]
fn who_asks_for_a_device_to_settle_may_format_it_then() -> Result<()> {
    let mut guard = Guard::start()?;
    guard.forget_what_was_before()?;
    guard.configure("first_format_wait = 0")?;
    for _ in 0..3 {
        let device = Loop::new(MIB)?;
        let settled = guard.json(&format!("settle {} --timeout 50s", device.path().display()))?;
        ensure!(settled["settled"] == true && settled["state"] == "blank", "{settled}");
        format(&guard, device.path())?;
        let formatted = guard.wait_for_state(device.path(), "formatted")?;
        ensure!(formatted["state"] == "formatted", "{formatted}");
        let again = guard.say(&format!("settle {}", device.path().display()))?;
        ensure!(again.status == 0 && again.text.contains("formatted"), "{again:?}");
    }
    nobody_was(&guard)?;
    guard.pause_agent()?;
    let device = Loop::new(MIB)?;
    let begun = Instant::now();
    let late = guard.say(&format!("settle {} --timeout 1s", device.path().display()));
    guard.resume_agent()?;
    let late = late?;
    ensure!(late.status == 1 && late.text.contains("was not read within 1 s"), "{late:?}");
    ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // Without an agent no formatter waits.
    guard.kill_agent()?;
    let alone = guard.say(&format!("settle {} --timeout 50s", device.path().display()))?;
    ensure!(alone.status == 0 && alone.text.contains("no agent answers"), "{alone:?}");
    Ok(())
}

#[test]
fn a_link_that_udev_makes_is_to_a_device_that_may_be_formatted() -> Result<()> {
    const RULES: &str = "/run/udev/rules.d";
    let mut guard = Guard::start()?;
    guard.forget_what_was_before()?;
    guard.configure("first_format_wait = 0")?;
    let shipped = include_str!("../../../deploy/systemd/udev.rules");
    let here = shipped
        .replace(
            "/usr/bin/format-guard ",
            &format!("{} --socket {} ", binary()?.display(), guard.socket().display()),
        )
        .replace("/run/format-guard/control.sock", &guard.socket().display().to_string())
        // Emulation is slow.
        .replace("--timeout 2s", "--timeout 50s");
    ensure!(here.matches(&guard.socket().display().to_string()).count() == 2, "{here}");
    fs::create_dir_all(RULES)?;
    fs::write(format!("{RULES}/61-format-guard.rules"), here)?;
    fs::write(
        format!("{RULES}/62-link.rules"),
        "SUBSYSTEM==\"block\", KERNEL==\"loop*\", ATTR{size}!=\"0\", SYMLINK+=\"fg-link-$attr{diskseq}\"\n",
    )?;
    let mut udevd =
        Command::new("/lib/systemd/systemd-udevd").stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let tried = wait_for("udevd", || Ok((run("udevadm control --ping")?.status == 0).then_some(())))
        .and_then(|()| {
            for _ in 0..3 {
                let device = Loop::new(MIB)?;
                let name = device.path().file_name().context("a name")?.to_string_lossy().into_owned();
                let diskseq = fs::read_to_string(format!("/sys/block/{name}/diskseq"))?;
                let link = Path::new("/dev").join(format!("fg-link-{}", diskseq.trim()));
                wait_for("the link", || Ok(link.exists().then_some(())))?;
                format(&guard, &link)?;
            }
            nobody_was(&guard)
        });
    udevd.kill()?;
    udevd.wait()?;
    fs::remove_dir_all(RULES)?;
    tried
}
