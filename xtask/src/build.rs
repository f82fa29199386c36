//! Builds what runs in guests and on the host, and says where it lies.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::command::{command, output, workspace};

/// The executable that cargo makes of a target of this kind (`bin`, `test`) and name.
///
/// All default members are selected, whatever is wanted of them: what they depend on has the same features each time then, and
/// is built once.
pub(crate) fn executable(kind: &str, name: &str) -> Result<PathBuf> {
    executable_with("", kind, name)
}

/// The same with these features.
pub(crate) fn executable_with(features: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let how: &[&str] = if kind == "test" { &["test", "--no-run"] } else { &["build"] };
    build(how, &["--features", features], kind, name)
}

/// A program of a package as it is released, with that package's own features: for figures.
pub(crate) fn released(package: &str, name: &str) -> Result<PathBuf> {
    build(&["build", "--release"], &["--package", package], "bin", name)
}

fn build(how: &[&str], of: &[&str], kind: &str, name: &str) -> Result<PathBuf> {
    let selector = format!("--{kind}");
    let arguments = [how, of, &["--quiet", &selector, name, "--message-format=json-render-diagnostics"]];
    let mut cargo = command("cargo", arguments.concat());
    cargo.current_dir(workspace()).stderr(std::process::Stdio::inherit());
    let built = output(&mut cargo)?;
    if !built.status.success() {
        bail!("{name} does not build");
    }
    let executables: Vec<PathBuf> = String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name && message["target"]["kind"][0] == kind)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect();
    match executables.as_slice() {
        [executable] => Ok(executable.clone()),
        [] => bail!("cargo names no executable for {name}"),
        some => bail!("{} packages have a {kind} of the name {name}", some.len()),
    }
}
