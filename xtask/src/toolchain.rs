//! What building the kernel programs needs beyond cargo: the sources of core for the rustc in use, and
//! bpf-linker.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, output, read, show},
    packages::Archive,
};

/// The last line of bpf-linker that links with rustc's own LLVM; later ones need a system LLVM.
const LINKER: &str = "0.10.3";
/// Suites that may have the sources of a recent rustc.
const SUITES: [&str; 3] = ["debian/trixie-backports", "debian/trixie", "debian/sid"];

/// Installs rust-src for the toolchain in use.
pub(crate) fn rust_src() -> Result<()> {
    let sysroot = PathBuf::from(read(command("rustc", ["--print", "sysroot"]))?.trim());
    let sources = sysroot.join("lib/rustlib/src/rust");
    if sources.join("library/core/src/lib.rs").is_file() {
        println!("setup: rust-src is there");
        return Ok(());
    }
    println!("setup: adding rust-src by rustup");
    let added = output(&mut command("rustup", ["component", "add", "rust-src"]));
    if added.is_ok_and(|output| output.status.success()) && sources.join("library/core/src/lib.rs").is_file()
    {
        return Ok(());
    }
    println!("setup: rustup cannot; taking the distribution's package of this very version");
    let version = rustc_version()?;
    let (archive, package) = packaged(&version)?;
    let parent = sources.parent().context("the sysroot has no parent")?;
    fs::create_dir_all(parent)?;
    let unpacked = tempfile::tempdir_in(parent)?;
    // What cargo fetches from its registry, and tests, are not unpacked.
    let exclude = ["*/library/vendor/*", "*/library/stdarch/intrinsics_data/*", "*/library/*tests/tests/*"];
    archive.unpack(&format!("rust-src={package}"), unpacked.path(), &exclude)?;
    let library = unpacked.path().join(format!("usr/src/rustc-{version}/library"));
    if !library.join("core/src/lib.rs").is_file() {
        bail!("the package rust-src {package} has no library where it is expected");
    }
    fs::create_dir_all(&sources)?;
    let _ = fs::remove_dir_all(sources.join("library"));
    fs::rename(library, sources.join("library"))?;
    println!("setup: rust-src {package} is installed");
    Ok(())
}

/// The distribution's package with the sources of the rustc in use. A suite whose index cannot be read, such
/// as one that has expired on a mirror, is skipped: the next one may have them.
fn packaged(version: &str) -> Result<(Archive, String)> {
    for suite in SUITES {
        let archive = match Archive::open(&[suite]) {
            Ok(archive) => archive,
            Err(error) => {
                println!("setup: {suite} is left out: {error:#}");
                continue;
            }
        };
        let versions = archive.versions("rust-src")?;
        if let Some(package) = versions.into_iter().find(|each| each.starts_with(&format!("{version}+"))) {
            return Ok((archive, package));
        }
    }
    bail!(
        "no suite of {} has rust-src {version}: rustup component add rust-src brings it where rustup has a network",
        SUITES.join(", ")
    )
}

/// Installs bpf-linker, built for rustc's own LLVM.
pub(crate) fn bpf_linker() -> Result<()> {
    let there = output(&mut command("bpf-linker", ["--version"]))
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == format!("bpf-linker {LINKER}"));
    if there {
        println!("setup: bpf-linker {LINKER} is there");
        return Ok(());
    }
    let verbose = read(command("rustc", ["-vV"]))?;
    let llvm = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next())
        .context("rustc -vV names no LLVM version")?;
    println!("setup: building bpf-linker {LINKER} for LLVM {llvm} (a minute or two)");
    let features = format!("llvm-{llvm},rust-llvm-{llvm}");
    show(command(
        "cargo",
        [
            "install",
            "bpf-linker",
            "--version",
            LINKER,
            "--locked",
            "--force",
            "--no-default-features",
            "--features",
            &features,
            "--config",
            "profile.release.debug=false",
        ],
    ))
}

/// Builds and installs a program with these features, if it is missing.
pub(crate) fn cargo_tool(program: &str, version: &str, features: &[&str]) -> Result<()> {
    if crate::command::exists(program) {
        println!("setup: {program} is there");
        return Ok(());
    }
    println!("setup: building {program} {version} (some minutes)");
    // Used for seconds, while optimising it would take minutes.
    let mut install = command("cargo", ["install", program, "--version", version, "--locked"]);
    install.args(features);
    for setting in ["lto=false", "codegen-units=256", "opt-level=0", "debug=false"] {
        install.args(["--config", &format!("profile.release.{setting}")]);
    }
    show(install)
}

fn rustc_version() -> Result<String> {
    let text = read(command("rustc", ["--version"]))?;
    text.split(' ').nth(1).map(str::to_owned).context("rustc --version names no version")
}
