//! What the `LD_PRELOAD` library refuses, what it leaves open, and that it changes nothing else.
//!
//! Run as root under the library, beside an agent of tier preload: `cargo xtask test` does it on this host.

mod programs;
mod roads;
mod without_agent;

use std::{env, path::PathBuf};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    device::{Device, Loop},
    guard::Guard,
    tool::must,
};

/// The library that this process runs under.
fn library() -> Result<PathBuf> {
    let path = PathBuf::from(env::var_os("LD_PRELOAD").context("this runs under the library")?);
    ensure!(path.is_file(), "{} is not there", path.display());
    Ok(path)
}

/// A volume that holds an ext4.
fn formatted(guard: &Guard, mib: u64) -> Result<Loop> {
    let device = Loop::new(mib)?;
    guard.wait_for_state(device.path(), "blank")?;
    must(&format!("mkfs.ext4 -F -m0 -q {}", device.path().display())).with_context(|| guard.log())?;
    guard.wait_for_state(device.path(), "formatted")?;
    Ok(device)
}
