//! The self-test that proves that this kernel really refuses.
//!
//! A kernel whose `lsm=` lacks bpf loads and attaches every program and never runs it, without an error. So one open
//! is tried that enforcement must refuse, and one beside it that it must not. Nothing is read or written.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process, thread,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open},
    io::Errno,
    thread::set_name,
};

use crate::volume::Dev;

/// Name of the thread that tries; the agent lists it among the formatters.
pub const NAME: &str = "fg-canary";
/// Name of the thread that must not be refused.
const INNOCENT: &str = "fg-innocent";

/// Directories in which a node can be made and opened: not on a `nodev` mount, as /run often is.
const PLACES: [&str; 2] = ["/dev", "/var/tmp"];

/// Why enforcement is not proven.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// A formatter was let through.
    #[error(
        "this kernel attached the guard but does not run it: an open that it must refuse gave {0}; add bpf to the \
         list in the boot parameter lsm="
    )]
    NotEnforced(Errno),
    /// An innocent open was refused too, so the refusal proves nothing.
    #[error("an open that no guard refuses gave {0}: a device control group or another LSM refuses it")]
    RefusedByOther(Errno),
    /// No place where a device node can be made and opened.
    #[error("cannot make a device node to test with in {places}: {source}")]
    NoNode {
        /// The directories tried.
        places: String,
        /// The last one's error.
        source: io::Error,
    },
}

/// A block device node of a number that no driver has; gone with the value.
pub struct Node {
    path: PathBuf,
    dev: Dev,
}

impl Node {
    /// Makes the node in the first place that allows it.
    pub fn make() -> Result<Self, CanaryError> {
        let mut last = io::Error::from(ErrorKind::NotFound);
        for place in PLACES {
            match Self::make_in(Path::new(place)) {
                Ok(node) => return Ok(node),
                Err(error) => last = error,
            }
        }
        Err(CanaryError::NoNode { places: PLACES.join(" and "), source: last })
    }

    /// Its number: under a rule for it a formatter must be refused.
    #[must_use]
    pub const fn dev(&self) -> Dev {
        self.dev
    }

    /// Proves that the rule for this node refuses a formatter, and that nobody else is refused.
    pub fn prove(&self) -> Result<(), CanaryError> {
        let innocent = open_as(INNOCENT, &self.path);
        if innocent != Errno::NXIO {
            return Err(CanaryError::RefusedByOther(innocent));
        }
        match open_as(NAME, &self.path) {
            Errno::PERM => Ok(()),
            other => Err(CanaryError::NotEnforced(other)),
        }
    }

    fn make_in(place: &Path) -> io::Result<Self> {
        let path = place.join(format!(".format-guard-canary-{}", process::id()));
        // 240 to 254 are for local use (Documentation/admin-guide/devices.txt); the last minor of one that no
        // driver has registered.
        let taken = fs::read_to_string("/proc/devices")?;
        let block = taken.split("Block devices:").nth(1).unwrap_or("");
        let major = (240..=254_u32)
            .find(|major| !block.lines().any(|line| line.trim_start().starts_with(&format!("{major} "))))
            .ok_or_else(|| io::Error::other("every device number for local use is taken"))?;
        let dev = Dev { major, minor: 0xf_ffff };
        let _ = fs::remove_file(&path);
        mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, makedev(dev.major, dev.minor))?;
        let node = Self { path, dev };
        // On a nodev mount every open gives EACCES: not a place to test.
        match open_as(INNOCENT, &node.path) {
            Errno::ACCESS => Err(io::Error::from(ErrorKind::PermissionDenied)),
            _ => Ok(node),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What an open for writing by a thread of this name fails with.
fn open_as(name: &str, path: &Path) -> Errno {
    thread::scope(|scope| {
        let tried = scope.spawn(|| {
            let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
            set_name(&name)?;
            open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        });
        match tried.join() {
            Ok(Err(errno)) => errno,
            // The number is nobody's: an open that succeeds, or a panic, proves nothing.
            Ok(Ok(_)) | Err(_) => Errno::INVAL,
        }
    })
}
