//! Kernels for guests: Debian's, unpacked into the cache and never installed.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{command, show},
    packages::{Archive, cache, fill},
};

/// The kernels for the keys of a command line: `all` means every kernel, no key means `default`.
pub(crate) fn chosen<'a>(named: &'a [String], default: &[&'a str]) -> Vec<&'a str> {
    match named {
        [] => default.to_vec(),
        [all] if all == "all" => keys(),
        some => some.iter().map(String::as_str).collect(),
    }
}

/// A kernel that guests can run, and where Debian has it.
struct Source {
    key: &'static str,
    suite: &'static str,
    pattern: &'static str,
}

const SOURCES: &[Source] = &[
    Source {
        key: "6.1",
        suite: "debian-security/bookworm-security",
        pattern: r"^linux-image-6\.1\.0-[0-9]+-amd64$",
    },
    Source {
        key: "6.12",
        suite: "debian-security/trixie-security",
        pattern: r"^linux-image-6\.12\.[0-9.]+\+deb13(\.[0-9]+)?-amd64$",
    },
    Source {
        key: "6.18",
        suite: "debian/trixie-backports",
        pattern: r"^linux-image-6\.18\.[0-9.]+\+deb13(\.[0-9]+)?-amd64$",
    },
    Source {
        key: "7",
        suite: "debian/trixie-backports",
        pattern: r"^linux-image-7\.[0-9.]+\+deb13(\.[0-9]+)?-amd64$",
    },
];

/// Every key, oldest kernel first.
pub(crate) fn keys() -> Vec<&'static str> {
    SOURCES.iter().map(|source| source.key).collect()
}

/// An unpacked kernel.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// The key of the kernel.
    pub(crate) key: &'static str,
    /// `uname -r`.
    pub(crate) release: String,
    /// Holds `vmlinux`, `lib/modules` and the initramfs.
    pub(crate) directory: PathBuf,
}

impl Kernel {
    /// The unpacked kernel for this key, which is downloaded if it is missing.
    pub(crate) fn get(key: &str) -> Result<Self> {
        let source = SOURCES
            .iter()
            .find(|source| source.key == key)
            .with_context(|| format!("no kernel {key}: there are {} and all", keys().join(", ")))?;
        let directory = cache()?.join("kernels").join(source.key);
        // Mirrors drop old kernels: an unpacked one is used until somebody removes it.
        if let Ok(release) = fs::read_to_string(directory.join("release")) {
            return Ok(Self { key: source.key, release, directory });
        }
        let suites: Vec<&str> = SOURCES.iter().map(|source| source.suite).collect();
        let archive = Archive::open(&suites)?;
        let image = newest(archive.names(source.pattern)?)
            .with_context(|| format!("{} has no kernel {key}", source.suite))?;
        let release = image.trim_start_matches("linux-image-").to_owned();
        println!("setup: kernel {key} is {release}");
        fill(&directory, |partial| {
            unpack(&archive, &release, partial)?;
            Ok(fs::write(partial.join("release"), &release)?)
        })?;
        Ok(Self { key: source.key, release, directory })
    }
}

/// The name with the highest version numbers.
fn newest(names: Vec<String>) -> Option<String> {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    names.into_iter().max_by_key(|name| numbers(name))
}

fn unpack(archive: &Archive, release: &str, into: &Path) -> Result<()> {
    // From 6.19 on, the image, the modules and their files are packages of their own.
    let pattern =
        format!("^linux-(image|binary|modules|base)-{}$", release.replace('.', r"\.").replace('+', r"\+"));
    for package in archive.names(&pattern)? {
        archive.unpack(&package, into, &["./usr/share/*"])?;
    }
    let merged = into.join("usr/lib/modules");
    if merged.is_dir() && !into.join("lib/modules").is_dir() {
        fs::create_dir_all(into.join("lib"))?;
        fs::rename(merged, into.join("lib/modules"))?;
    }
    let modules = into.join("lib/modules").join(release);
    let image = [into.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file())
        .context("the packages hold no vmlinuz")?;
    show(command("depmod", ["-b".as_ref(), into.as_os_str(), release.as_ref()]))?;
    uncompressed(&fs::read(image)?, &into.join("vmlinux"))
}

/// Extracts the ELF file from a bzImage: qemu starts it directly, which saves seconds of decompression under
/// emulation. Offsets of Documentation/arch/x86/boot.rst: setup sectors at 0x1f1, payload offset and length
/// at 0x248.
fn uncompressed(image: &[u8], vmlinux: &Path) -> Result<()> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("vmlinuz is too short")?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    let sectors = match image.get(0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    let length = word(0x24c)?;
    let payload = image.get(start..start + length).context("vmlinuz is too short")?;
    let program = match payload {
        [0xfd, b'7', b'z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("vmlinuz is packed in an unknown way"),
    };
    let mut unpack = command(program, ["-dc"])
        .stdin(Stdio::piped())
        .stdout(File::create(vmlinux)?)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut input = unpack.stdin.take().context("no pipe")?;
    // The payload ends with its size in four bytes, which unpackers report as trailing garbage.
    let written = input.write_all(&payload[..payload.len() - 4]);
    drop(input);
    unpack.wait()?;
    written
        .or_else(|error| if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
    if !fs::read(vmlinux)?.starts_with(b"\x7fELF") {
        bail!("vmlinuz did not unpack to an ELF file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_found_by_number() {
        let names = [
            "linux-image-6.12.9+deb13-amd64",
            "linux-image-6.12.117+deb13-amd64",
            "linux-image-6.12.90+deb13.1-amd64",
        ];
        assert_eq!(newest(names.map(str::to_owned).to_vec()).as_deref(), Some(names[1]));
    }
}
