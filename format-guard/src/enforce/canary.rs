//! The self-test that proves that this kernel really refuses.
//!
//! A kernel whose `lsm=` lacks bpf loads and attaches every program and never runs it, without an error. So
//! one open is tried that enforcement must refuse, and one beside it that it must not. Nothing is read or
//! written.

use std::{
    fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    process, thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open},
    io::Errno,
    thread::{CpuSet, sched_getcpu, sched_setaffinity, set_name},
};

use serde::{Deserialize, Serialize};

use crate::volume::Dev;

/// Name of the thread that tries; the agent lists it among the formatters.
pub const NAME: &str = "fg-canary";
/// Name of the thread that must not be refused.
const INNOCENT: &str = "fg-innocent";

/// Directories in which a node can be made and opened: not on a `nodev` mount, as /run often is.
const PLACES: [&str; 2] = ["/dev", "/var/tmp"];

/// Between two looks at whether one waits.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

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
        Self::make_number(0)
    }

    /// Another one beside it.
    pub fn make_second() -> Result<Self, CanaryError> {
        Self::make_number(1)
    }

    fn make_number(number: u32) -> Result<Self, CanaryError> {
        let mut last = io::Error::from(ErrorKind::NotFound);
        for place in PLACES {
            match Self::make_in(Path::new(place), number) {
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

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Proves that the rule for this node refuses a formatter, and that nobody else is refused.
    pub fn prove(&self) -> Result<(), CanaryError> {
        let [innocent, formatter] = [INNOCENT, NAME].map(|name| open_as(name, &self.path));
        judge(innocent, Errno::NXIO, formatter)
    }

    fn make_in(place: &Path, number: u32) -> io::Result<Self> {
        let path = place.join(format!(".format-guard-canary-{}-{number}", process::id()));
        // 240 to 254 are for local use (Documentation/admin-guide/devices.txt); the last minors of one that
        // no driver has registered.
        let taken = fs::read_to_string("/proc/devices")?;
        let block = taken.split("Block devices:").nth(1).unwrap_or("");
        let major = (240..=254_u32)
            .find(|major| !block.lines().any(|line| line.trim_start().starts_with(&format!("{major} "))))
            .ok_or_else(|| io::Error::other("every device number for local use is taken"))?;
        let dev = Dev { major, minor: 0xf_ffff - number };
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

/// Whether a formatter that opens the first of two nodes waits, and one that opens the second meanwhile, on
/// the same processor, is refused at once; the first one waits no longer then, and is refused, too.
/// `is_waiting` says whether one waits, `end` has it wait no longer.
pub fn prove_waiting(
    [held, refused]: [&Node; 2],
    limit: Duration,
    is_waiting: impl Fn() -> bool,
    end: impl FnOnce(),
) -> bool {
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    let open_here = |node: &Path| {
        let begun = Instant::now();
        let pinned = sched_setaffinity(None, &here);
        let error = pinned.map_or_else(|error| error, |()| error_of(opened_as(NAME, node)));
        (error, begun.elapsed())
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| open_here(&held.path));
        let begun = Instant::now();
        while !is_waiting() && !first.is_finished() && begun.elapsed() < limit {
            thread::sleep(LOOK_AGAIN);
        }
        let waited = is_waiting();
        let second = waited.then(|| scope.spawn(|| open_here(&refused.path)).join());
        let still_waited = is_waiting();
        end();
        let first = first.join();
        let is_refused = |tried: thread::Result<(Errno, Duration)>| {
            tried.is_ok_and(|(error, took)| error == Errno::PERM && took < limit)
        };
        still_waited && is_refused(first) && second.is_some_and(is_refused)
    })
}

/// What writes by a formatter and by nobody in particular failed with, in a process under the `LD_PRELOAD`
/// library.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Tried {
    innocent: i32,
    formatter: i32,
}

impl Tried {
    /// Tries both, in the calling thread, through the C library's functions. No driver has the node, and a
    /// descriptor that names it only (`O_PATH`) takes no write: what is not refused before it comes to the
    /// kernel gives EBADF.
    #[must_use]
    pub fn at(node: &Path) -> Self {
        let [innocent, formatter] = [INNOCENT, NAME].map(|name| {
            error_of(done_as(name, || {
                let mut file = fs::File::from(open(node, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
                let written = file.write(b"canary").map(drop);
                written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
            }))
            .raw_os_error()
        });
        Self { innocent, formatter }
    }

    /// Whether they prove that the library refuses.
    pub fn judge(self) -> Result<(), CanaryError> {
        let [innocent, formatter] = [self.innocent, self.formatter].map(Errno::from_raw_os_error);
        judge(innocent, Errno::BADF, formatter)
    }
}

/// Only a formatter is refused; nobody else comes further than to where it `ends` for want of a driver.
fn judge(innocent: Errno, ends: Errno, formatter: Errno) -> Result<(), CanaryError> {
    if innocent != ends {
        return Err(CanaryError::RefusedByOther(innocent));
    }
    match formatter {
        Errno::PERM => Ok(()),
        other => Err(CanaryError::NotEnforced(other)),
    }
}

/// What an open for writing by a thread of this name fails with.
fn open_as(name: &str, path: &Path) -> Errno {
    thread::scope(|scope| {
        let tried = scope.spawn(|| opened_as(name, path));
        error_of(tried.join().unwrap_or(Ok(())))
    })
}

/// Opens it for writing in the calling thread, under this name.
fn opened_as(name: &str, path: &Path) -> Result<(), Errno> {
    done_as(name, || open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map(drop))
}

/// Does this by the name of a program.
fn done_as(name: &str, what: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
    set_name(&name)?;
    what()
}

/// The number is nobody's: what succeeds, or a panic, proves nothing.
fn error_of(tried: Result<(), Errno>) -> Errno {
    tried.err().unwrap_or(Errno::INVAL)
}
