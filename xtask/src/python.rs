//! Tools from the Python package index, in a virtual environment of the project's own.

use std::{fs, path::PathBuf};

use anyhow::Result;

use crate::{
    command::{command, show},
    packages::cache,
};

/// Installs these packages, each `NAME==VERSION`, and returns the directory of their programs.
pub(crate) fn programs(packages: &[&str]) -> Result<PathBuf> {
    let environment = cache()?.join("python");
    let bin = environment.join("bin");
    let stamps = environment.join("installed");
    let missing: Vec<&str> =
        packages.iter().copied().filter(|package| !stamps.join(package).exists()).collect();
    if missing.is_empty() {
        return Ok(bin);
    }
    println!("setup: installing {} below {}", missing.join(", "), environment.display());
    if !bin.join("pip").exists() {
        let mut make = command("python3", ["-m", "venv", "--clear"]);
        make.arg(&environment);
        show(make)?;
    }
    let pip = bin.join("pip");
    let mut install = command(&pip.to_string_lossy(), ["install", "--quiet", "--disable-pip-version-check"]);
    install.args(&missing);
    show(install)?;
    fs::create_dir_all(&stamps)?;
    for package in missing {
        fs::write(stamps.join(package), "")?;
    }
    Ok(bin)
}
