//! The busybox of guests: Debian's static one, unpacked into the cache. It is not installed, since it would
//! replace a busybox that the machine may have.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    command::{command, read},
    packages::{Archive, cache, fill},
};

const SUITE: &str = "debian/bookworm";
const PACKAGE: &str = "busybox-static";

fn directory() -> Result<PathBuf> {
    Ok(cache()?.join("busybox"))
}

/// Unpacks it, once.
pub(crate) fn ready() -> Result<()> {
    if !program()?.is_file() {
        println!("setup: unpacking {PACKAGE} below {}", directory()?.display());
        let archive = Archive::open(&[SUITE])?;
        fill(&directory()?, |partial| archive.unpack(PACKAGE, partial, &["./usr/share/*"]))?;
    }
    println!("setup: {} is there", version()?);
    Ok(())
}

/// The folder that the program is in, for the paths of guests and of tests on this host.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(directory()?.join("bin"))
}

/// The program.
pub(super) fn program() -> Result<PathBuf> {
    Ok(folder()?.join("busybox"))
}

/// The version line that the program prints: `BusyBox v1.35.0 (Debian 1:1.35.0-4+deb12u1+b1)`.
pub(crate) fn version() -> Result<String> {
    let text = read(command(&program()?.to_string_lossy(), ["--help"]))?;
    let line = text.lines().next().unwrap_or_default();
    Ok(line.split(" multi-call").next().unwrap_or(line).to_owned())
}
