//! The file behind a loop device. sysfs gives its path, which may be another mount namespace's: the kernel's own word
//! on device and inode decides which file is meant.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::volume::{Dev, sysfs::Node};

/// What lies behind a loop device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::volume) enum Backing {
    /// A file: its inode number and time of birth in nanoseconds since 1970. The device that it lies on has no part in
    /// it: of btrfs, overlayfs and most disks the number is another one after a reboot.
    File(String),
    /// A block device.
    Device(Dev),
    /// Not to be seen from here.
    Unseen,
    /// The device or the file system does not tell yet.
    Silent,
}

/// How long a file system may take to tell what a file is: one on a network may hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// What lies behind each loop device, asked for once per attachment: the question opens the device, and that waits for
/// whoever flushes it.
#[derive(Clone, Debug, Default)]
pub(in crate::volume) struct Loops(Arc<Mutex<HashMap<PathBuf, Known>>>);

/// An answer, and the attachment that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    diskseq: u64,
    file: PathBuf,
    backing: Backing,
}

impl Loops {
    /// What lies behind the loop device `node`, which sysfs says is at `file`.
    pub(super) fn backing(&self, node: &Node, file: &Path) -> Backing {
        let diskseq = node.diskseq();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&node.path)
            && known.diskseq == diskseq
            && known.file == file
        {
            return known.backing.clone();
        }
        let backing = in_time(file, node.name());
        // Without a diskseq (before 5.15) another file may have taken the place unnoticed; what did not answer may yet.
        if diskseq != 0 && matches!(backing, Backing::File(_) | Backing::Device(_)) {
            let fresh = Known { diskseq, file: file.to_owned(), backing: backing.clone() };
            known.insert(node.path.clone(), fresh);
        }
        backing
    }
}

/// What lies at `file`, of a recorded tree.
pub(super) fn recorded(file: &Path) -> Backing {
    look(file, None, false)
}

fn in_time(file: &Path, name: Option<&str>) -> Backing {
    let (sender, receiver) = mpsc::channel();
    let (file, name) = (file.to_owned(), name.map(str::to_owned));
    // A thread that hangs is left behind: the rest of the guard goes on.
    let spawned = thread::Builder::new().name("loop identity".into()).spawn(move || {
        // Nobody waits any more: nothing to do.
        let _ = sender.send(look(&file, name.as_deref(), true));
    });
    if spawned.is_err() {
        return Backing::Silent;
    }
    receiver.recv_timeout(PATIENCE).unwrap_or(Backing::Silent)
}

fn look(path: &Path, name: Option<&str>, live: bool) -> Backing {
    let told = name.and_then(status);
    // Its size and its file's path are there, and told by a uevent, a moment before it is bound (drivers/block/loop.c,
    // loop_configure): until then it does not tell.
    if live && told.is_none() {
        return Backing::Silent;
    }
    // In a container the path is most likely one of the host's.
    let host = path.strip_prefix("/").map(|rest| Path::new("/proc/1/root").join(rest)).unwrap_or_default();
    [path.to_owned(), host].iter().find_map(|path| seen(path, told)).unwrap_or(Backing::Unseen)
}

fn seen(path: &PathBuf, told: Option<Status>) -> Option<Backing> {
    let metadata = fs::metadata(path).ok()?;
    if told.is_some_and(|told| !told.is(&metadata)) {
        return None;
    }
    if metadata.file_type().is_block_device() {
        return Some(Backing::Device(Dev::from_user(metadata.rdev())));
    }
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::BTIME).ok()?;
    // Without a time of birth (FAT, some network file systems) the file's place has to do.
    Some(Backing::File(if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
        format!("{}:{}:{}", stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)
    } else {
        let birth = i128::from(stat.stx_btime.tv_sec) * 1_000_000_000 + i128::from(stat.stx_btime.tv_nsec);
        format!("{}:{birth}", stat.stx_ino)
    }))
}

/// The beginning of `struct loop_info64` (include/uapi/linux/loop.h).
#[derive(Clone, Copy)]
struct Status {
    /// Device of the file system that the file lies on, as `huge_encode_dev` writes it.
    device: u64,
    inode: u64,
    /// Number of the block device that the file is a node of, in the same encoding; zero else.
    rdevice: u64,
}

impl Status {
    fn is(self, metadata: &fs::Metadata) -> bool {
        if metadata.file_type().is_block_device() {
            return self.rdevice == encode(Dev::from_user(metadata.rdev()));
        }
        self.inode == metadata.ino() && self.device == encode(Dev::from_user(metadata.dev()))
    }
}

/// As the kernel's `new_encode_dev` does (`include/linux/kdev_t.h`).
fn encode(dev: Dev) -> u64 {
    u64::from(dev.minor & 0xff | dev.major << 8 | (dev.minor & !0xff) << 12)
}

fn status(name: &str) -> Option<Status> {
    /// include/uapi/linux/loop.h
    const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
    const WORDS: usize = 29;
    let device: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(Path::new("/dev").join(name))
        .ok()?;
    let mut info = [0_u64; WORDS];
    // SAFETY: struct loop_info64 is 232 bytes, the array's size; the kernel fills it.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
    (done == 0).then_some(Status { device: info[0], inode: info[1], rdevice: info[2] })
}
