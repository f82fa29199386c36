//! `cargo xtask dist`: builds a release. A tarball, a Debian package and an RPM of the same files, a bill of
//! materials, and checksums.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    command::{command, output, read, show, workspace},
    preload, python, setup, toolchain,
};

/// The glibc that releases are built for: that of the oldest distributions whose kernels can carry a tier
/// (RHEL 8).
const GLIBC: &str = "2.28";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A linker that knows the symbols of every version of glibc.
const LINKER: [&str; 2] = ["cargo-zigbuild==0.24.1", "ziglang==0.17.1"];
const CARGO_CYCLONEDX: &str = "0.5.9";

/// Files that are installed beside programs, manual and completions: their place in the tree, and where they
/// go.
const FILES: [(&str, &str); 13] = [
    ("deploy/systemd/format-guard.service", "usr/lib/systemd/system/format-guard.service"),
    ("deploy/systemd/format-guard-generator", "usr/lib/systemd/system-generators/format-guard-generator"),
    ("deploy/systemd/tmpfiles.conf", "usr/lib/tmpfiles.d/format-guard.conf"),
    ("deploy/systemd/udev.rules", "usr/lib/udev/rules.d/61-format-guard.rules"),
    ("deploy/systemd/metrics.conf", "usr/share/doc/format-guard/metrics.conf"),
    ("deploy/systemd/store.conf", "usr/share/doc/format-guard/store.conf"),
    ("deploy/packages/config.toml", "etc/format-guard/config.toml"),
    ("README.md", "usr/share/doc/format-guard/README.md"),
    ("CHANGELOG.md", "usr/share/doc/format-guard/CHANGELOG.md"),
    ("docs/configuration.md", "usr/share/doc/format-guard/configuration.md"),
    ("docs/operations.md", "usr/share/doc/format-guard/operations.md"),
    ("LICENSE-MIT", "usr/share/doc/format-guard/LICENSE-MIT"),
    ("LICENSE-APACHE", "usr/share/doc/format-guard/LICENSE-APACHE"),
];
/// Files among these that are executable.
const RUN: [&str; 1] = ["usr/lib/systemd/system-generators/format-guard-generator"];
/// Completions: the shell, and where it looks.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/format-guard"),
    ("zsh", "usr/share/zsh/vendor-completions/_format-guard"),
    ("fish", "usr/share/fish/vendor_completions.d/format-guard.fish"),
];

/// `cargo xtask dist`
pub(crate) fn run() -> Result<()> {
    setup::ready()?;
    toolchain::cargo_tool("cargo-cyclonedx", CARGO_CYCLONEDX, &[])?;
    let version = env!("CARGO_PKG_VERSION");
    println!("dist: building {version} for glibc {GLIBC} and newer");
    // This machine's libblkid needs this machine's glibc, and is not shipped.
    let shared = ["--", "-Clink-arg=-Wl,--allow-shlib-undefined"];
    let guard = ["--release", "--package", "format-guard", "--bin", "format-guard"];
    let guard = build_for_old_glibc(&[&guard[..], &shared].concat())?.join("release/format-guard");
    let library = build_for_old_glibc(&["--profile", "preload", "--package", "format-guard-preload"])?
        .join("preload")
        .join(preload::NAME);
    for file in [&guard, &library] {
        runs_with(file, GLIBC)?;
    }
    let directory = workspace().join("target/dist");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    let root = stage(&guard, &library)?;
    let (deb, rpm) = packages(version, &directory)?;
    let tarball = tarball(&root, version)?;
    image(&root, &directory.join("image"))?;
    let sbom = sbom(version)?;
    let mut sums = command("sha256sum", [&deb, &rpm, &tarball, &sbom].map(|path| name(path)));
    sums.current_dir(&directory);
    let sums = read(sums)?;
    fs::write(directory.join("SHA256SUMS"), &sums)?;
    print!("dist: in {}\n{sums}", directory.display());
    Ok(())
}

fn name(path: &Path) -> OsString {
    path.file_name().map(OsString::from).unwrap_or_default()
}

/// Builds against an old glibc, and returns the directory of what was built.
fn build_for_old_glibc(arguments: &[&str]) -> Result<PathBuf> {
    let bin = python::programs(&LINKER)?;
    let mut build = command(
        &bin.join("cargo-zigbuild").to_string_lossy(),
        ["rustc", "--locked", "--target", &format!("{TARGET}.{GLIBC}")],
    );
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([bin].into_iter().chain(env::split_paths(&path)))?;
    build.args(arguments).env("PATH", path).current_dir(workspace());
    show(build)?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(target.join(TARGET))
}

/// Fails if a program needs a newer glibc than this.
fn runs_with(file: &Path, glibc: &str) -> Result<()> {
    let mut symbols = command("objdump", ["-T"]);
    symbols.arg(file);
    let symbols = read(symbols)?;
    let newest = newest(&symbols).with_context(|| format!("{} names no C library", file.display()))?;
    ensure!(
        newest <= parsed(glibc).context("no version")?,
        "{} wants glibc {}.{}, which is newer than {glibc}",
        file.display(),
        newest.0,
        newest.1
    );
    Ok(())
}

fn parsed(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    let minor = minor.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The newest version of glibc that a table of dynamic symbols names.
fn newest(symbols: &str) -> Option<(u32, u32)> {
    symbols.split("GLIBC_").skip(1).filter_map(parsed).max()
}

/// Lays all files out as they are installed, below `target/dist/root`.
pub(crate) fn stage(guard: &Path, library: &Path) -> Result<PathBuf> {
    let root = workspace().join("target/dist/root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for (from, to, mode) in [
        (guard, Path::new("usr/bin/format-guard"), 0o755),
        (library, &Path::new("usr/lib/format-guard").join(preload::NAME), 0o755),
    ] {
        let to = root.join(to);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        let mut strip = command("strip", ["--strip-unneeded", "-o"]);
        strip.arg(&to).arg(from);
        show(strip)?;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    }
    for (from, to) in FILES {
        let mode = if RUN.contains(&to) { 0o755 } else { 0o644 };
        let to = root.join(to);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::copy(workspace().join(from), &to).with_context(|| from.to_owned())?;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    }
    let program = root.join("usr/bin/format-guard");
    let program = program.to_string_lossy();
    let mut manual = command(&program, ["man"]);
    manual.arg(root.join("usr/share/man"));
    show(manual)?;
    for (shell, to) in COMPLETIONS {
        let to = root.join(to);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::write(to, read(command(&program, ["completions", shell]))?)?;
    }
    Ok(root)
}

/// Packs the laid out files as a Debian package and an RPM.
pub(crate) fn packages(version: &str, into: &Path) -> Result<(PathBuf, PathBuf)> {
    setup::package_tools()?;
    fs::create_dir_all(into)?;
    let deb = into.join(format!("format-guard_{version}_amd64.deb"));
    let mut make =
        command("cargo", ["deb", "--quiet", "--no-build", "--no-strip", "--package", "format-guard"]);
    make.args(["--deb-version", version, "--output"]).arg(&deb);
    make_package(make)?;
    let rpm = into.join(format!("format-guard-{version}.x86_64.rpm"));
    let mut make = command("cargo", ["generate-rpm", "-p", "format-guard", "--auto-req", "no"]);
    make.arg("--set-metadata").arg(format!("version = \"{version}\"")).arg("--output").arg(&rpm);
    make_package(make)?;
    Ok((deb, rpm))
}

fn make_package(mut make: std::process::Command) -> Result<()> {
    if let Some(time) = time_of_source()? {
        make.env("SOURCE_DATE_EPOCH", time);
    }
    make.current_dir(workspace());
    show(make)
}

/// Time of the last commit, in seconds since 1970; none outside a repository.
fn time_of_source() -> Result<Option<String>> {
    let mut log = command("git", ["log", "-1", "--format=%ct"]);
    let said = output(log.current_dir(workspace()))?;
    Ok(said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned()))
}

/// The same files as a tarball for any distribution: `tar -xz --strip-components=1 -C /`.
fn tarball(root: &Path, version: &str) -> Result<PathBuf> {
    let name = format!("format-guard-{version}-x86_64-linux");
    let path = workspace().join("target/dist").join(format!("{name}.tar.gz"));
    let mut tar = command("tar", ["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    if let Some(time) = time_of_source()? {
        tar.arg(format!("--mtime=@{time}"));
    }
    tar.arg(format!("--transform=s,^\\.,{name},")).arg("-czf").arg(&path).arg("-C").arg(root).arg(".");
    show(tar)?;
    Ok(path)
}

/// Lays the image's files out: the program, the library, and the shared libraries of this machine that the
/// program needs.
pub(crate) fn image(root: &Path, image: &Path) -> Result<()> {
    let program = root.join("usr/bin/format-guard");
    for below in ["usr/bin/format-guard", "usr/lib/format-guard/libformat_guard_preload.so"] {
        let to = image.join(below);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::copy(root.join(below), to)?;
    }
    let needs = read(command("ldd", [&program]))?;
    for path in needs.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = image.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("no directory")?)?;
        // The target of a symbolic link, under the name of the link.
        fs::copy(path, to).with_context(|| path.to_owned())?;
    }
    // Mount points of the chart: the image itself is read-only.
    for directory in [
        "dev",
        "etc/format-guard",
        "proc",
        "run/format-guard",
        "sys",
        "var/lib/format-guard",
        "var/lib/kubelet",
        "var/log/pods",
    ] {
        fs::create_dir_all(image.join(directory))?;
    }
    fs::copy(workspace().join("deploy/container/Containerfile"), image.with_file_name("Containerfile"))?;
    Ok(())
}

/// The bill of materials of the program, in the format `CycloneDX`.
fn sbom(version: &str) -> Result<PathBuf> {
    let name = format!("format-guard-{version}.cdx");
    let mut list = command(
        "cargo",
        ["cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5", "--target", TARGET],
    );
    list.arg("--manifest-path").arg(workspace().join("format-guard/Cargo.toml"));
    list.args(["--override-filename", &name]).current_dir(workspace());
    show(list)?;
    // The tool writes a bill beside the manifest of every package of the workspace.
    let name = format!("{name}.json");
    let mut packages = command("cargo", ["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    packages.current_dir(workspace());
    let packages: Value = serde_json::from_str(&read(packages)?).context("cargo metadata")?;
    let manifests = packages["packages"].as_array().into_iter().flatten();
    let mut ours = None;
    for manifest in manifests.filter_map(|package| package["manifest_path"].as_str()) {
        let written = Path::new(manifest).with_file_name(&name);
        if !written.is_file() {
            continue;
        }
        if written.starts_with(workspace().join("format-guard")) {
            let path = workspace().join("target/dist").join(&name);
            fs::copy(&written, &path)?;
            ours = Some(path);
        }
        fs::remove_file(written)?;
    }
    let Some(ours) = ours else { bail!("cargo cyclonedx wrote no {name} for format-guard") };
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_c_library_is_found() {
        let symbols = "0 DF *UND* 0 (GLIBC_2.2.5) pow\n0 DF *UND* 0 (GLIBC_2.29) pow\n0 (GLIBC_2.4) x\n";
        assert_eq!(newest(symbols), Some((2, 29)));
        assert_eq!(newest("nothing"), None);
        assert!(parsed("2.28") < parsed("2.29"));
    }
}
