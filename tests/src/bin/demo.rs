//! Shows the guard's main job on real block devices, as a transcript for people; then the same without the
//! guard.
//!
//! `cargo xtask demo` runs it, here or in a guest.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use format_guard_tests::{
    attack::LUKS_FORMAT,
    device::{Device, Mapped, flush},
    guard::Guard,
    tool::{Ran, must, run, run_with},
};

const POINT: &str = "/run/fg-demo";
const COPY: &str = "/var/tmp/fg-demo-copy";
const PROGRAMS: [&str; 6] = ["mkfs.ext4", "mkfs.xfs", "cryptsetup", "wipefs", "blkdiscard", "dd"];
/// The most lines of the transcript for one message.
const MESSAGE_LINES: usize = 3;

fn main() -> Result<()> {
    title("The guard is started: it is in force once its canary was refused");
    let mut guard = Guard::patient()?;
    shell("format-guard status", &guard.say("status")?);

    title("A blank volume is formatted once");
    let device = Mapped::new(64)?;
    let node = device.path().display().to_string();
    say("At once: it appeared this moment.");
    shell_must(&format!("mkfs.ext4 -F -q -L orders {node}"))?;
    guard.wait_for_state(device.path(), "formatted")?;
    fs::create_dir_all(POINT)?;
    shell_must(&format!("mount {node} {POINT}"))?;
    fs::write(format!("{POINT}/orders.db"), "ten years of orders\n".repeat(10_000))?;
    say(&format!("(ten years of orders are written to {POINT}/orders.db)"));
    shell_must(&format!("umount {POINT}"))?;
    let before = sha256sum(device.path())?;
    say(&format!("sha256 of the whole volume: {before}"));
    shell(&format!("format-guard volume show {node}"), &guard.say(&format!("volume show {node}"))?);

    title("The storage engine is degraded: every read gives zeros (longhorn #13668)");
    device.read_zeros()?;
    shell_probe(&node)?;
    say("A CSI plugin takes exit status 2 for \"unformatted\" and goes on:");
    all_refused(&guard, &node, &PROGRAMS)?;

    title("The data path fails: every access gives EIO (kubernetes #142243)");
    device.fail()?;
    shell_probe(&node)?;
    all_refused(&guard, &node, &PROGRAMS)?;

    title("The data path is back");
    device.recover()?;
    guard.wait_for_volume(device.path(), "as recorded", |volume| volume["discrepancy"].is_null())?;
    all_refused(&guard, &node, &PROGRAMS)?;
    let after = sha256sum(device.path())?;
    say(&format!("sha256 of the whole volume: {after}"));
    ensure!(after == before, "the volume has changed");
    say("Not one byte has changed.");
    shell_must(&format!("e2fsck -fn {node}"))?;
    shell_must(&format!("mount {node} {POINT}"))?;
    shell_must(&format!("tail -n 1 {POINT}/orders.db"))?;
    shell_must(&format!("umount {POINT}"))?;

    title("What happened, in the guard's words");
    shell("format-guard events --limit 8", &guard.say("events --limit 8")?);

    title("An operator permits one re-format");
    let permit = guard.say(&format!("volume permit {node} --reason customer-left --for 10m"))?;
    ensure!(permit.status == 0, "{permit:?}");
    say(&format!("$ format-guard volume permit {node} --reason customer-left --for 10m"));
    shell_must(&format!("mkfs.ext4 -F -q {node}"))?;
    guard.wait_for_state(device.path(), "formatted")?;
    say("and no second one:");
    all_refused(&guard, &node, &["mkfs.ext4"])?;

    title("The same without the guard: what would have happened");
    guard.remove()?;
    must(&format!("mount {node} {POINT}"))?;
    fs::write(format!("{POINT}/orders.db"), "ten years of orders\n".repeat(10_000))?;
    must(&format!("umount {POINT}"))?;
    let healthy = device.sha256()?;
    must(&format!("dd if={node} of={COPY} bs=1M"))?;
    for program in PROGRAMS {
        must(&format!("dd if={COPY} of={node} bs=1M conv=fsync"))?;
        ensure!(device.sha256()? == healthy, "the volume cannot be restored for the next one");
        device.read_zeros()?;
        ensure!(run(&format!("blkid -p {node}"))?.status == 2, "blkid is not fooled: the demo shows nothing");
        // The storage engine recovers between the probe and the format.
        device.recover()?;
        let (line, input) = attack(program, &node)?;
        let ran = run_with(&line, input)?;
        say(&format!("$ {line}"));
        ensure!(device.sha256()? != healthy, "{line} lost nothing: the demo shows nothing");
        say(&format!("  exit status {}: THE VOLUME IS DESTROYED", ran.status));
    }
    fs::remove_file(COPY)?;
    say("Ten years of orders would be gone, six times.");
    Ok(())
}

/// The sha256 of the medium, by sha256sum(1).
fn sha256sum(path: &Path) -> Result<String> {
    drop(flush(path)?);
    let text = must(&format!("sha256sum {}", path.display()))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn say(text: &str) {
    println!("{text}");
}

/// A command and its output, as a person would have seen it.
fn shell(line: &str, ran: &Ran) {
    println!("$ {line}");
    for line in ran.text.lines() {
        println!("  {line}");
    }
    if ran.status != 0 {
        println!("  exit status {}", ran.status);
    }
}

fn shell_must(line: &str) -> Result<()> {
    let text = must(line)?;
    println!("$ {line}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in &lines[lines.len().saturating_sub(MESSAGE_LINES)..] {
        println!("  {line}");
    }
    Ok(())
}

/// Asks the question that kubernetes' mount-utils ask.
fn shell_probe(node: &str) -> Result<()> {
    let line = format!("blkid -p -s TYPE -s PTTYPE -o export {node}");
    let ran = run(&line)?;
    shell(&line, &ran);
    ensure!(ran.status == 2, "blkid is not fooled: the demo shows nothing");
    Ok(())
}

/// The command line and the input of a destructive tool.
fn attack(program: &str, node: &str) -> Result<(String, &'static str)> {
    Ok(match program {
        "mkfs.ext4" => (format!("mkfs.ext4 -F {node}"), ""),
        "mkfs.xfs" => (format!("mkfs.xfs -f --unsupported {node}"), ""),
        "cryptsetup" => (format!("{LUKS_FORMAT} {node} -"), "secret"),
        "wipefs" => (format!("wipefs -a {node}"), ""),
        "blkdiscard" => (format!("blkdiscard -f {node}"), ""),
        "dd" => (format!("dd if=/dev/zero of={node} bs=1M count=4 conv=fsync"), ""),
        other => bail!("no such attack: {other}"),
    })
}

/// Runs the tools, shows the output of each, and checks that none succeeded.
fn all_refused(guard: &Guard, node: &str, programs: &[&str]) -> Result<()> {
    for program in programs {
        let (line, input) = attack(program, node)?;
        let before = guard.events("denied")?.len();
        let ran = run_with(&line, input).with_context(|| line.clone())?;
        ensure!(ran.status != 0, "{line} succeeded: {}", ran.text);
        println!("$ {line}");
        let message = ran.text.lines().find(|line| line.contains("ermitted")).unwrap_or(ran.message());
        println!("  {}", message.trim());
        let refused = guard.events("denied")?.len() > before;
        let by = if refused { "refused by the guard" } else { "failed by itself before it wrote" };
        println!("  exit status {}: {by}", ran.status);
    }
    Ok(())
}
