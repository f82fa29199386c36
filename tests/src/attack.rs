//! The destructive tools that incidents name, under their own names and as copies under another name.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    guard::Guard,
    tool::{Ran, run, run_with},
    wait_for,
};

/// luksFormat with the cheapest key derivation: the cipher is not what is tested.
pub const LUKS_FORMAT: &str =
    "cryptsetup luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000";

/// Every tool that must be refused on a volume that holds a format.
///
/// # Errors
/// When a copy cannot be made.
pub fn all(device: &Path) -> Result<Vec<(String, &'static str)>> {
    let node = device.display();
    let mut lines: Vec<(String, &'static str)> = vec![
        (format!("mkfs.ext4 -F {node}"), ""),
        (format!("mkfs.xfs -f {node}"), ""),
        (format!("mkfs.btrfs -f -M {node}"), ""),
        (format!("mkswap -f {node}"), ""),
        (format!("wipefs -a -f {node}"), ""),
        (format!("blkdiscard -f {node}"), ""),
        (format!("pvcreate -ff -y {node}"), ""),
        (format!("{LUKS_FORMAT} {node} -"), "secret"),
        (format!("dd if=/dev/zero of={node} bs=1M count=4 conv=notrunc,fsync"), ""),
    ];
    for (program, options) in [
        ("mkfs.ext4", "-F"),
        // Otherwise the tools find the volume too small before they open it.
        ("mkfs.xfs", "-f --unsupported"),
        ("mkfs.btrfs", "-f -M"),
        ("wipefs", "-a -f"),
        ("mkswap", "-f"),
        ("blkdiscard", "-f"),
    ] {
        lines.push((format!("{} {options} {node}", copy(program)?), ""));
    }
    Ok(lines)
}

/// Attacks of different kinds: a format, a format of another kind, a wipe, a discard, and a copied tool.
fn some(device: &Path) -> Result<Vec<(String, &'static str)>> {
    const SOME: [&str; 5] = ["mkfs.ext4", "mkswap", "wipefs", "blkdiscard", "innocent-mkfs-xfs"];
    let named = |line: &str| {
        line.split(' ').next().is_some_and(|program| SOME.iter().any(|name| program.ends_with(name)))
    };
    Ok(all(device)?.into_iter().filter(|(line, _)| named(line)).collect())
}

/// Runs every attack under the guard, checks that each failed because the guard refused it, and returns what
/// each tool printed.
///
/// # Errors
/// When one succeeded, or failed for another reason.
pub fn all_refused(guard: &Guard, device: &Path) -> Result<Vec<Ran>> {
    all(device)?.into_iter().map(|(line, input)| refused(guard, &line, input)).collect()
}

/// Runs some attacks, for tests that are about something else than the tools: the tables try every tool on
/// every volume.
///
/// # Errors
/// When one succeeded, or failed for another reason.
pub fn some_refused(guard: &Guard, device: &Path) -> Result<Vec<Ran>> {
    some(device)?.into_iter().map(|(line, input)| refused(guard, &line, input)).collect()
}

/// Runs a tool that the guard must refuse.
///
/// # Errors
/// When it succeeds, or fails for another reason.
pub fn refused(guard: &Guard, line: &str, input: &str) -> Result<Ran> {
    let before = guard.newest_refusal()?;
    let ran = run_with(line, input)?;
    ensure!(ran.status != 0, "{line} succeeded:\n{}", ran.text);
    wait_for("the event of a refusal", || Ok((guard.newest_refusal()? > before).then_some(())))
        .with_context(|| format!("{line} failed, but not by the guard:\n{}", ran.text))?;
    Ok(ran)
}

/// Runs every attack while no agent answers, and checks that each failed.
///
/// # Errors
/// When one succeeded.
pub fn all_fail(device: &Path) -> Result<()> {
    all(device)?.into_iter().try_for_each(fails)
}

/// The same with some attacks.
///
/// # Errors
/// When one succeeded.
pub fn some_fail(device: &Path) -> Result<()> {
    some(device)?.into_iter().try_for_each(fails)
}

fn fails((line, input): (String, &str)) -> Result<()> {
    let ran = run_with(&line, input)?;
    ensure!(ran.status != 0, "{line} succeeded:\n{}", ran.text);
    Ok(())
}

/// A copy of a program under a name that is in no table.
///
/// # Errors
/// When it cannot be copied.
pub fn copy(program: &str) -> Result<String> {
    let found = run(&format!("which {program}"))?;
    let path = format!("/var/tmp/innocent-{}", program.replace('.', "-"));
    if !Path::new(&path).exists() {
        fs::copy(found.text.trim(), &path).with_context(|| format!("cannot copy {program}"))?;
    }
    Ok(path)
}
