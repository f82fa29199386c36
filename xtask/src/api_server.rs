//! An API server of Kubernetes on this host, with Debian's etcd: `cargo xtask api-server` starts one to look
//! at, and the part "API server" of the plan tests against one.
//!
//! The server is built from its published Go modules (`tests/kubernetes/go.mod`), with the Go of this machine
//! or Debian's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use format_guard_tests_kubernetes::{ApiServer, MANIFESTS, PROGRAMS};

use crate::{
    chart,
    command::{command, find, output, workspace},
    packages::{Archive, cache, fill},
};

/// The file that names the version.
const MODULE: &str = "tests/kubernetes/go.mod";
/// The programs that are built.
const BUILT: [&str; 2] = ["kube-apiserver", "kubectl"];
/// The Go that `go.mod` asks for, and where Debian has it.
const GO: (u32, u32) = (1, 24);
const GO_SUITES: [&str; 1] = ["debian/trixie"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long the server runs, in seconds
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=86400))]
    seconds: u64,
}

/// Whether the API server could be built here.
pub(crate) enum Programs {
    /// The directory with its programs.
    There(PathBuf),
    /// Why it could not be built, in a sentence.
    NotHere(String),
}

/// Builds the programs that are not built yet: some minutes, once for each version.
pub(crate) fn programs() -> Result<Programs> {
    let version = version()?;
    let directory = cache()?.join("kubernetes").join(&version);
    if BUILT.iter().all(|name| directory.join(name).is_file()) {
        return Ok(Programs::There(directory));
    }
    let go = match go() {
        Ok(go) => go,
        Err(error) => {
            return Ok(Programs::NotHere(format!("there is no Go {}.{} here ({error:#})", GO.0, GO.1)));
        }
    };
    let module = workspace().join("tests/kubernetes");
    println!("setup: fetching the Go modules of Kubernetes {version}");
    let mut download = go.command(&["mod", "download"]);
    let downloaded = output(download.current_dir(&module))?;
    if !downloaded.status.success() {
        let said = String::from_utf8_lossy(&downloaded.stderr);
        let last = said.trim().lines().last().unwrap_or_default();
        return Ok(Programs::NotHere(format!(
            "the Go modules of Kubernetes {version} cannot be fetched here ({last})"
        )));
    }
    fs::create_dir_all(directory.parent().context("no parent")?)?;
    fill(&directory, |into| {
        for name in BUILT {
            println!("setup: building {name} {version} (some minutes, once)");
            let stamp = "k8s.io/component-base/version.gitVersion";
            let flags =
                format!("-s -w -X {stamp}={version} -X k8s.io/client-go/pkg/version.gitVersion={version}");
            // One package at a time: tests that run beside the build have deadlines.
            let mut build = go.command(&["build", "-p", "1", "-trimpath", "-ldflags", &flags, "-o"]);
            build.arg(into.join(name)).arg(format!("k8s.io/kubernetes/cmd/{name}"));
            crate::command::show({
                build.current_dir(&module).env("CGO_ENABLED", "0");
                build
            })?;
        }
        Ok(())
    })?;
    Ok(Programs::There(directory))
}

/// The version of Kubernetes that is built.
fn version() -> Result<String> {
    let text = fs::read_to_string(workspace().join(MODULE))?;
    let found = text.lines().find_map(|line| line.trim().strip_prefix("require k8s.io/kubernetes "));
    let found =
        found.or_else(|| text.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes ")));
    // A tool's module is an indirect requirement, and a comment behind the version says so.
    let version = found.and_then(|rest| rest.split_whitespace().next());
    Ok(version.with_context(|| format!("{MODULE} requires no k8s.io/kubernetes"))?.to_owned())
}

/// A Go that is new enough.
struct Go {
    program: PathBuf,
    /// The directory of a Go that is unpacked; none if Go is installed.
    root: Option<PathBuf>,
}

impl Go {
    fn command(&self, words: &[&str]) -> Command {
        let mut go = command(&self.program.to_string_lossy(), words);
        // Go must not fetch another version of itself.
        go.env("GOTOOLCHAIN", "local").env("GOFLAGS", "-buildvcs=false");
        if let Some(root) = &self.root {
            go.env("GOROOT", root);
        }
        go
    }
}

fn go() -> Result<Go> {
    let installed =
        find("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|path| path.is_file()));
    if let Some(program) = installed {
        let go = Go { program, root: None };
        let said = output(&mut go.command(&["env", "GOVERSION"]))?;
        if is_new_enough(String::from_utf8_lossy(&said.stdout).trim()) {
            return Ok(go);
        }
    }
    let directory = cache()?.join("go");
    let root = directory.join(format!("usr/lib/go-{}.{}", GO.0, GO.1));
    if !root.join("bin/go").is_file() {
        println!("setup: unpacking Debian's Go {}.{} below {}", GO.0, GO.1, directory.display());
        let archive = Archive::open(&GO_SUITES)?;
        fill(&directory, |into| {
            for part in ["go", "src"] {
                archive.unpack(&format!("golang-{}.{}-{part}", GO.0, GO.1), into, &["./usr/share/doc/*"])?;
            }
            Ok(())
        })?;
    }
    Ok(Go { program: root.join("bin/go"), root: Some(root) })
}

/// Whether `go version` names a version that is new enough: `go1.26.8` is.
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.strip_prefix("go").unwrap_or_default().split('.').map(|number| {
        let digits = number.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u32>().unwrap_or(0)
    });
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= GO
}

/// The variables by which tests find an API server.
pub(crate) fn variables(programs: &Path) -> Result<[(&'static str, PathBuf); 2]> {
    let manifests = workspace().join("target/store-manifests.json");
    fs::create_dir_all(manifests.parent().context("no parent")?)?;
    fs::write(&manifests, chart::manifests(&["--set", "store.kubernetes=true"])?)?;
    Ok([(PROGRAMS, programs.to_owned()), (MANIFESTS, manifests)])
}

/// `cargo xtask api-server`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let programs = match programs()? {
        Programs::There(programs) => programs,
        Programs::NotHere(why) => bail!("no API server: {why}"),
    };
    let [_, (_, manifests)] = variables(&programs)?;
    let server = ApiServer::start(&programs)?;
    server.install(&manifests)?;
    let admin = server.kubeconfig_file("admin", server.port(), server.token())?;
    println!(
        "An API server runs for {} s, with the chart's kind and rules. For another shell:",
        arguments.seconds
    );
    println!("  export KUBECONFIG={} PATH={}:$PATH", admin.display(), programs.display());
    for node in ["node-a", "node-b"] {
        let file = server.kubeconfig_file(node, server.port(), &server.node_token(node)?)?;
        println!("  NODE_NAME={node} KUBECONFIG={} is an agent's", file.display());
    }
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200).min(end.saturating_duration_since(Instant::now())));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_is_known_by_its_version() {
        for (version, new) in
            [("go1.26.8", true), ("go1.24rc1", true), ("go1.24.0", true), ("go1.19.8", false), ("", false)]
        {
            assert_eq!(is_new_enough(version), new, "{version}");
        }
        let version = version().expect("a version");
        assert!(version.starts_with("v1.") && !version.contains(' '), "{version}");
    }
}
