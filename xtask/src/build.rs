//! Builds what runs in guests and on the host, and says where it lies.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{command, output, workspace};

/// The executable that cargo makes of a target of this kind (`bin`, `test`) and name.
pub(crate) fn executable(package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    executable_with("", package, kind, name)
}

/// The same as it is released: for figures.
pub(crate) fn released(package: &str, name: &str) -> Result<PathBuf> {
    build(&["build", "--release"], "", package, "bin", name)
}

/// The same, of a package with these features.
pub(crate) fn executable_with(features: &str, package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let how: &[&str] = if kind == "test" { &["test", "--no-run"] } else { &["build"] };
    build(how, features, package, kind, name)
}

fn build(how: &[&str], features: &str, package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let mut arguments = how.to_vec();
    let selector = format!("--{kind}");
    arguments.extend([
        "--quiet",
        "--features",
        features,
        "--package",
        package,
        &selector,
        name,
        "--message-format=json-render-diagnostics",
    ]);
    let mut cargo = command("cargo", arguments);
    cargo.current_dir(workspace()).stderr(std::process::Stdio::inherit());
    let built = output(&mut cargo)?;
    if !built.status.success() {
        bail!("{package} does not build");
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo names no executable for {name}"))
}
