//! Builds the programs that run in guests and on the host, and returns their paths.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{command, output, workspace};

/// Tests that cargo builds only by name: they need a guest, a library or a control group.
pub(crate) const NAMED_TESTS: [&str; 7] =
    ["scenarios", "reboot", "preload", "cgroup", "service", "container", "cluster"];

/// The executable that cargo makes of a target of this kind (`bin`, `test`) and name.
///
/// Every build selects all default members, whatever it is for: what they depend on then always has the same
/// features, and is built once.
pub(crate) fn executable(kind: &str, name: &str) -> Result<PathBuf> {
    let how: &[&str] = if kind == "test" { &["test", "--no-run"] } else { &["build"] };
    one(&[how, &[&format!("--{kind}"), name]].concat(), kind, name)
}

/// A program of a package, built as it is released with that package's own features: for figures.
pub(crate) fn released(package: &str, name: &str) -> Result<PathBuf> {
    one(&["build", "--release", "--package", package, "--bin", name], "bin", name)
}

fn one(arguments: &[&str], kind: &str, name: &str) -> Result<PathBuf> {
    let built = cargo(arguments).with_context(|| format!("{name} does not build"))?;
    let mut executables = built.into_iter().filter(|built| built.name == name && built.kind == kind);
    match (executables.next(), executables.next()) {
        (Some(built), None) => Ok(built.path),
        (None, _) => bail!("cargo names no executable for {name}"),
        (Some(_), Some(_)) => bail!("more than one package has a {kind} of the name {name}"),
    }
}

/// An executable that cargo has made.
pub(crate) struct Executable {
    /// The name of the target; `format_guard` for the library.
    pub(crate) name: String,
    /// `bin`, `lib` or `test`.
    kind: String,
    /// The executable runs the tests that are in the target itself.
    is_test: bool,
    /// The folder of the target's package: cargo runs the executable in it.
    pub(crate) package: PathBuf,
    /// The path of the executable.
    pub(crate) path: PathBuf,
}

/// Runs cargo, and returns the executables that it names.
fn cargo(arguments: &[&str]) -> Result<Vec<Executable>> {
    let mut cargo = command("cargo", arguments);
    cargo.args(["--quiet", "--message-format=json-render-diagnostics"]);
    cargo.current_dir(workspace()).stderr(Stdio::inherit());
    let built = output(&mut cargo)?;
    if !built.status.success() {
        bail!("cargo {} ended with {}", arguments.join(" "), built.status);
    }
    let executable = |message: Value| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Executable {
            name: text(&message["target"]["name"])?,
            kind: text(&message["target"]["kind"][0])?,
            is_test: message["profile"]["test"] == true,
            package: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
            path: message["executable"].as_str()?.into(),
        })
    };
    let text = String::from_utf8_lossy(&built.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(executable).collect())
}

/// Everything that the plan runs, built by as few calls of cargo as possible, so that no part of the plan
/// waits for cargo.
pub(crate) struct Programs {
    /// Programs by name.
    bins: BTreeMap<String, PathBuf>,
    /// Tests that a part of the plan names, by name.
    tests: BTreeMap<String, PathBuf>,
    /// Tests that run on this host without further ado.
    pub(crate) units: Vec<Executable>,
}

impl Programs {
    /// Builds all programs and tests.
    pub(crate) fn build() -> Result<Self> {
        let mut programs = Self { bins: BTreeMap::new(), tests: BTreeMap::new(), units: Vec::new() };
        // `--tests` selects every target whose tests run by default, and takes no names beside it.
        let mut named = vec!["test", "--no-run"];
        named.extend(NAMED_TESTS.iter().flat_map(|name| ["--test", name]));
        for arguments in [&named[..], &["build", "--bins"], &["test", "--no-run", "--tests"]] {
            for built in cargo(arguments)? {
                programs.add(built)?;
            }
        }
        Ok(programs)
    }

    fn add(&mut self, built: Executable) -> Result<()> {
        if built.is_test && !(built.kind == "test" && NAMED_TESTS.contains(&built.name.as_str())) {
            self.units.push(built);
            return Ok(());
        }
        let of_kind = if built.is_test { &mut self.tests } else { &mut self.bins };
        let (name, path) = (built.name, built.path);
        match of_kind.insert(name.clone(), path.clone()) {
            Some(other) if other != path => bail!("two packages have a target of the name {name}"),
            _ => Ok(()),
        }
    }

    /// A program of this name.
    pub(crate) fn program(&self, name: &str) -> Result<&Path> {
        self.bins.get(name).map(PathBuf::as_path).with_context(|| format!("no program {name} was built"))
    }

    /// The tests of this name.
    pub(crate) fn test(&self, name: &str) -> Result<&Path> {
        self.tests.get(name).map(PathBuf::as_path).with_context(|| format!("no tests {name} were built"))
    }
}
