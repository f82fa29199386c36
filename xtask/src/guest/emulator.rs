//! The qemu that guests run under: this machine's, or a newer one of Debian's that is unpacked beside the
//! kernels.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{
    command::{command, find, read},
    packages::{Archive, cache, fill},
};

const PROGRAM: &str = "qemu-system-x86_64";
/// The first release that is good enough. Scenarios took 1.4 times as long under 7.2 as under 10.0.2, side by
/// side. 7.2 also gives a guest flags that no processor has, once in some hours: see
/// [`super::is_the_emulators`].
const ENOUGH: u32 = 10;
/// The release of Debian that has a newer qemu, and the packages that it needs.
const SUITE: &str = "debian/bookworm-backports";
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];

/// The emulator to run guests under.
pub(super) fn program() -> Result<PathBuf> {
    let unpacked = directory()?.join("usr/bin").join(PROGRAM);
    // The unpacked qemu needs the libraries of one release of Debian.
    if unpacked.is_file() && version(&unpacked).is_ok() {
        return Ok(unpacked);
    }
    find(PROGRAM).with_context(|| format!("{PROGRAM} is missing: cargo xtask setup"))
}

/// If this machine's emulator is too old, unpacks a newer one, once, and prints which one guests run under.
/// If no newer one runs here, guests are slower.
pub(crate) fn ready() -> Result<()> {
    let mut version = version(&program()?)?;
    if major(&version).is_none_or(|major| major < ENOUGH) && !directory()?.is_dir() {
        match unpack() {
            Ok(newer) => version = newer,
            Err(error) => println!("setup: no newer emulator, guests are slower: {error:#}"),
        }
    }
    println!("setup: the emulator is there (qemu {version})");
    Ok(())
}

fn directory() -> Result<PathBuf> {
    Ok(cache()?.join("qemu"))
}

fn unpack() -> Result<String> {
    let archive = Archive::open(&[SUITE])?;
    fill(&directory()?, |partial| {
        PACKAGES.iter().try_for_each(|package| archive.unpack(package, partial, &["./usr/share/doc/*"]))
    })?;
    version(&program()?)
}

/// The version that the program prints: `QEMU emulator version 7.2.22 (Debian ...)`.
fn version(program: &Path) -> Result<String> {
    let text = read(command(&program.to_string_lossy(), ["--version"]))?;
    let version = text.split_whitespace().nth(3).context("qemu prints no version")?;
    Ok(version.to_owned())
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}
