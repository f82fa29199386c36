//! The initial file system of a guest: a static busybox, the modules that reach the root file system, and an
//! init.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::busybox;
use crate::{
    command::{command, find, read},
    kernels::Kernel,
};

const INIT: &str = include_str!("init.sh");
const RUN: &str = include_str!("run.sh");
/// Modules that init loads, with the modules that they need.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// The initramfs for a kernel, made anew after its parts have changed.
pub(super) fn of(kernel: &Kernel) -> Result<PathBuf> {
    let path = kernel.directory.join("initramfs.cpio");
    let stamp = kernel.directory.join("initramfs.parts");
    let parts = format!("{INIT}\n{RUN}\n{MODULES:?}");
    if path.exists() && fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == parts) {
        return Ok(path);
    }
    let mut archive = Archive(Vec::new());
    for directory in ["bin", "modules", "proc", "sys", "dev", "lower", "upper", "new"] {
        archive.entry(directory, 0o040_755, &[]);
    }
    archive.entry("bin/busybox", 0o100_755, &fs::read(busybox::program()?)?);
    archive.entry("init", 0o100_755, INIT.as_bytes());
    archive.entry("run.sh", 0o100_755, RUN.as_bytes());
    for (i, module) in modules(kernel)?.iter().enumerate() {
        let name = module.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        let name = name.split('.').next().unwrap_or(&name);
        archive.entry(&format!("modules/{i:02}-{name}.ko"), 0o100_644, &unpacked(module)?);
    }
    // Guests start side by side, and each may make it: a finished file replaces another in one step.
    let mut partial = tempfile::NamedTempFile::new_in(&kernel.directory)?;
    partial.write_all(&archive.end())?;
    partial.persist(&path)?;
    fs::write(stamp, parts)?;
    Ok(path)
}

/// Files of the modules, each after those that it needs.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    let modprobe = find("modprobe").context("modprobe is missing: cargo xtask setup")?;
    for module in MODULES {
        let mut show = command(&modprobe.to_string_lossy(), ["--show-depends", "-S", &kernel.release, "-d"]);
        show.arg(&kernel.directory).arg(module);
        for line in read(show)?.lines() {
            // Other modules are built into the kernel.
            if let Some(file) = line.strip_prefix("insmod ").and_then(|rest| rest.split(' ').next()) {
                let file = PathBuf::from(file);
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
    }
    Ok(files)
}

fn unpacked(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return Ok(fs::read(module)?),
    };
    let mut unpack = command(program, ["-dc"]);
    unpack.arg(module);
    Ok(crate::command::output(&mut unpack)?.stdout)
}

/// A cpio archive in the format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive(Vec<u8>);

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        let inode = self.0.len();
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            0,
            0,
            1,
            0,
            data.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0
        );
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.0
    }
}
