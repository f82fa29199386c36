//! `cargo xtask setup`: installs what building and testing needs. It prints what it does, and does nothing
//! twice.

use std::{fs, path::Path};

use anyhow::{Result, bail};

use crate::{
    chart,
    command::{command, exists, output, read, show},
    guest::{busybox, emulator},
    kernels::{self, Kernel},
    toolchain,
};

/// Debian's and Ubuntu's packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("debian-archive-keyring", "to verify kernels and the emulator for guests"),
    ("xz-utils", "kernels"),
    ("zstd", "kernels"),
    ("kmod", "kernels"),
    ("qemu-system-x86", "guests"),
    ("pkg-config", "building"),
    ("libblkid-dev", "building"),
    ("libclang-dev", "building"),
    ("clang", "building"),
    ("protobuf-compiler", "building"),
    ("libprotobuf-dev", "building"),
    ("g++", "fuzzing"),
    ("musl-tools", "tests of the library"),
    ("perl", "tests of the library"),
    ("python3-minimal", "tests of the library"),
    ("python3-venv", "checks of the chart"),
    ("udev", "tests of the library"),
    ("e2fsprogs", "tests"),
    ("xfsprogs", "tests"),
    ("btrfs-progs", "tests"),
    ("dosfstools", "tests"),
    ("cryptsetup-bin", "tests"),
    ("lvm2", "tests"),
    ("dmsetup", "tests"),
    ("mdadm", "tests"),
    ("nbd-client", "tests"),
    ("nbd-server", "tests"),
    ("parted", "tests"),
    ("gdisk", "tests"),
    ("fdisk", "tests"),
    ("f2fs-tools", "tests"),
    ("exfatprogs", "tests"),
    ("ntfs-3g", "tests"),
    ("nilfs-tools", "tests"),
    ("udftools", "tests"),
    ("bcache-tools", "tests"),
    ("thin-provisioning-tools", "tests"),
    ("squashfs-tools", "tests"),
    ("erofs-utils", "tests"),
    ("genisoimage", "tests"),
    ("jfsutils", "tests"),
    ("reiserfsprogs", "tests"),
    ("gfs2-utils", "tests"),
    ("ocfs2-tools", "tests"),
    ("nwipe", "tests"),
    ("gddrescue", "tests"),
    ("bmap-tools", "tests"),
    ("quota", "tests"),
    ("dump", "tests"),
    ("xfsdump", "tests"),
    ("fio", "tests"),
    ("partclone", "tests"),
    ("qemu-utils", "tests"),
    ("cloud-guest-utils", "tests"),
    ("nvme-cli", "tests"),
    ("sg3-utils", "tests"),
    ("tgt", "tests"),
    ("open-iscsi", "tests"),
    ("etcd-server", "tests"),
    ("etcd-client", "tests"),
    ("curl", "tests of what nodes share"),
    ("openssl", "tests"),
    ("runc", "tests of the image"),
    ("rpm", "tests of the packages"),
    ("binutils", "packages"),
    ("shellcheck", "checks"),
];

/// cargo-deny's version.
const CARGO_DENY: &str = "0.20.2";
/// The version of mdBook, which makes a book of the manual. Its features for watching and serving files are
/// left out: they bring twice as many crates.
const MDBOOK: &str = "0.5.4";

/// Tools that make packages. The builds in the Python package index are too old to read this workspace.
const CARGO_DEB: &str = "3.8.0";
const CARGO_GENERATE_RPM: &str = "0.21.1";

/// Installs what the plan of a change needs, for people and for CI. What makes packages is installed when
/// packages are made.
pub(crate) fn run() -> Result<()> {
    ready()?;
    toolchain::cargo_tool("cargo-deny", CARGO_DENY, &[])?;
    toolchain::cargo_tool("mdbook", MDBOOK, &["--no-default-features", "--features", "search"])?;
    chart::tools()?;
    println!("setup: everything is there");
    Ok(())
}

/// Installs the tools that make packages.
pub(crate) fn package_tools() -> Result<()> {
    toolchain::cargo_tool("cargo-deb", CARGO_DEB, &[])?;
    toolchain::cargo_tool("cargo-generate-rpm", CARGO_GENERATE_RPM, &[])
}

/// Fails at once, with the reason, if root is needed and this is another user.
pub(crate) fn root(why: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root: {why}; run it as root, or by sudo with the environment kept (sudo -E)");
    }
    Ok(())
}

/// Installs what building and guests need.
pub(crate) fn ready() -> Result<()> {
    packages()?;
    toolchain::rust_src()?;
    toolchain::bpf_linker()?;
    busybox::ready()?;
    emulator::ready()?;
    for key in kernels::keys() {
        let kernel = Kernel::get(key)?;
        println!("setup: kernel {key} is there ({})", kernel.release);
    }
    Ok(())
}

/// Installs the packages that the tests take their tools from.
pub(crate) fn tools() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().filter(|(_, purpose)| *purpose == "tests").map(|(package, _)| *package)
}

fn packages() -> Result<()> {
    if !exists("apt-get") || !exists("dpkg-query") {
        bail!("{}", elsewhere());
    }
    let missing: Vec<&(&str, &str)> = PACKAGES.iter().filter(|(package, _)| !installed(package)).collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    println!("setup: packages are there");
    Ok(())
}

fn install(missing: &[&(&str, &str)]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("packages are missing: as root, run {by_hand}");
    }
    show(command("apt-get", ["update", "-q"]))?;
    let apt = |words: &[&str]| {
        let mut apt = command("apt-get", ["install", "-q", "--no-install-recommends"]);
        apt.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").args(words).args(&names);
        apt
    };
    let changes = Changes::of(&read(apt(&["--simulate"]))?);
    if !changes.removed.is_empty() {
        bail!(
            "nothing is installed: it would remove {} from this machine; where that is all right, run {by_hand}",
            changes.removed.join(", ")
        );
    }
    for (package, purpose) in missing {
        println!("setup: installing {package} ({purpose})");
    }
    if !changes.upgraded.is_empty() {
        println!("setup: these packages need newer versions of {}", changes.upgraded.join(", "));
    }
    let install = apt(&["-y", "--no-remove"]);
    // Services of these packages must not start: tests run their own, in guests.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let result = show(install);
    if ours {
        fs::remove_file(policy)?;
    }
    result
}

/// What an installation changes in the packages of this machine.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    removed: Vec<String>,
    upgraded: Vec<String>,
}

impl Changes {
    /// Reads the output of `apt-get --simulate`: `Remv NAME [VERSION]`, and `Inst NAME [VERSION] (...)` for a
    /// package that is there in another version.
    fn of(simulated: &str) -> Self {
        let (mut removed, mut upgraded) = (Vec::new(), Vec::new());
        for line in simulated.lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("Remv"), Some(name), _) => removed.push(name.to_owned()),
                (Some("Inst"), Some(name), Some(version)) if version.starts_with('[') => {
                    upgraded.push(name.to_owned());
                }
                _ => {}
            }
        }
        Self { removed, upgraded }
    }
}

fn installed(package: &str) -> bool {
    output(&mut command("dpkg-query", ["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// The advice for a machine without apt.
fn elsewhere() -> String {
    let names = |map: &[(&str, &str)]| -> String {
        PACKAGES
            .iter()
            .filter(|(package, _)| *package != "debian-archive-keyring")
            .map(|(package, _)| map.iter().find(|(from, _)| from == package).map_or(*package, |(_, to)| to))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let fedora = names(&[
        ("xz-utils", "xz"),
        ("cloud-guest-utils", "cloud-utils-growpart"),
        ("python3-venv", "python3"),
        ("sg3-utils", "sg3_utils"),
        ("qemu-system-x86", "qemu-system-x86-core"),
        ("pkg-config", "pkgconf"),
        ("libblkid-dev", "libblkid-devel"),
        ("libclang-dev", "clang-devel"),
        ("libprotobuf-dev", "protobuf-devel"),
        ("cryptsetup-bin", "cryptsetup"),
        ("dmsetup", "device-mapper"),
        ("tgt", "scsi-target-utils"),
        ("open-iscsi", "iscsi-initiator-utils"),
        ("shellcheck", "ShellCheck"),
    ]);
    let arch = names(&[
        ("xz-utils", "xz"),
        ("python3-venv", "python"),
        ("sg3-utils", "sg3_utils"),
        ("pkg-config", "pkgconf"),
        ("libblkid-dev", "util-linux-libs"),
        ("libclang-dev", "clang"),
        ("protobuf-compiler", "protobuf"),
        ("libprotobuf-dev", "protobuf"),
        ("cryptsetup-bin", "cryptsetup"),
        ("dmsetup", "device-mapper"),
        ("tgt", "tgt"),
    ]);
    format!(
        "this is neither Debian nor Ubuntu. To build, install:\n  Fedora: dnf install {fedora}\n  Arch: pacman -S \
         {arch}\nthen rustup component add rust-src, and cargo install bpf-linker. Guests run Debian's kernels, which \
         need apt-get and dpkg-deb (package apt on both) and DEBIAN_MIRROR set."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_installation_does_to_this_machine_is_known_before() {
        let simulated = "Reading package lists...\nRemv busybox [1:1.35.0-4]\n\
                         Inst systemd [252.38] (252.39 Debian:12.11/stable [amd64])\n\
                         Inst mdadm (4.2-5 Debian:12.11/stable [amd64])\nConf mdadm (4.2-5)\n";
        let changes = Changes::of(simulated);
        assert_eq!(changes.removed, ["busybox"]);
        assert_eq!(changes.upgraded, ["systemd"]);
    }
}
