//! `cargo xtask newcomer`: runs the README's first command in a new Debian that has only cargo, a C compiler
//! and git. Such a machine has no package, no tool and no cache of this one.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, quote, show, workspace},
    packages::{Archive, cache, fill, mirror},
    setup,
};

/// Packages that a Rust programmer has, beside the smallest Debian.
const HAS: &str = "ca-certificates,gcc,git,libc6-dev";
/// The package that debootstrap comes from.
const SUITE: &str = "debian/trixie";
/// The directory of the sources in the new Debian.
const SOURCES: &str = "/root/format-guard";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Release of Debian: bookworm or trixie (may be repeated) [default: both]
    #[arg(long)]
    suite: Vec<String>,
    /// The command line to run there
    #[arg(default_value = "cargo xtask demo")]
    line: String,
}

/// `cargo xtask newcomer`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::root("it makes a root of its own, and mounts what is in it")?;
    let suites = match arguments.suite.as_slice() {
        [] => vec!["bookworm", "trixie"],
        named => named.iter().map(String::as_str).collect(),
    };
    let mut result = ExitCode::SUCCESS;
    for suite in suites {
        println!("newcomer: {} on {suite}", arguments.line);
        let base = base(suite)?;
        if !types(&base, &arguments.line)? {
            println!("newcomer: {} fails on {suite}", arguments.line);
            result = ExitCode::FAILURE;
        }
    }
    Ok(result)
}

/// The root of a new Debian, made once.
fn base(suite: &str) -> Result<PathBuf> {
    let directory = cache()?.join("newcomer").join(suite);
    if directory.is_dir() {
        return Ok(directory);
    }
    let tool = cache()?.join("debootstrap");
    if !tool.is_dir() {
        let archive = Archive::open(&[SUITE])?;
        fill(&tool, |partial| archive.unpack("debootstrap", partial, &["./usr/share/doc/*"]))?;
    }
    fill(&directory, |partial| {
        let mut make = command(&tool.join("usr/sbin/debootstrap").to_string_lossy(), ["--variant=minbase"]);
        make.env("DEBOOTSTRAP_DIR", tool.join("usr/share/debootstrap"));
        make.arg(format!("--include={HAS}")).arg(suite).arg(partial).arg(format!("{}/debian", mirror()?));
        show(make)
    })?;
    Ok(directory)
}

/// Runs a command line in a copy of that root, where nothing else of this machine is visible; true if it
/// succeeded.
fn types(base: &Path, line: &str) -> Result<bool> {
    let home = env::home_dir().context("HOME is not set")?;
    let (cargo, rustup) = (home.join(".cargo/bin"), home.join(".rustup"));
    if !cargo.is_dir() || !rustup.is_dir() {
        bail!(
            "cargo is not here by rustup: {} and {} are what a newcomer is given",
            cargo.display(),
            rustup.display()
        );
    }
    let work = tempfile::Builder::new().prefix("newcomer-").tempdir_in(cache()?)?;
    let script = work.path().join("script");
    let mut file = fs::File::create(&script)?;
    for (name, value) in [
        ("BASE", base.display().to_string()),
        ("WORK", work.path().display().to_string()),
        ("CARGO", cargo.display().to_string()),
        ("RUSTUP", rustup.display().to_string()),
        ("TREE", workspace().display().to_string()),
        ("SOURCES", SOURCES.to_owned()),
        ("LINE", line.to_owned()),
    ] {
        writeln!(file, "{name}={}", quote(&value))?;
    }
    file.write_all(include_bytes!("newcomer.sh"))?;
    drop(file);
    // Mounts and processes end with their namespaces.
    let mut run = Command::new("unshare");
    run.args(["--mount", "--pid", "--fork", "--kill-child", "bash"]).arg(&script);
    Ok(run.status().context("cannot run unshare")?.success())
}
