//! The file behind a loop device. sysfs gives its path, which may be another mount namespace's: the kernel's
//! own word on device and inode decides which file is meant.

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

use rustix::fs::{AtFlags, CWD, FsWord, StatxFlags, statfs, statx};

use crate::volume::{Dev, sysfs::Node};

/// What lies behind a loop device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::volume) enum Backing {
    /// A file: its inode number, and its time of birth in nanoseconds since 1970 or, where the file system
    /// keeps none, the inode's generation. The device that it lies on has no part in it: of btrfs, overlayfs
    /// and most disks the number is another one after a reboot.
    File(String),
    /// A file whose inode may have been another file's: neither is kept.
    Place(String),
    /// A block device.
    Device(Dev),
    /// Not to be seen from here.
    Unseen,
    /// The device or the file system does not tell yet.
    Silent,
}

/// How long a file system may take to tell what a file is: one on a network may hang.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long while another one hangs: it is likely to be the same file system, and who asks has all others to
/// look after.
const LITTLE_PATIENCE: Duration = Duration::from_millis(50);
/// Questions that hang at most: each costs a thread.
const MAX_HANGING: usize = 64;

/// What lies behind each loop device, asked for once per attachment: the question opens the device, and that
/// waits for whoever flushes it. One that has no answer yet is waited for once; its answer is taken when it
/// has come.
#[derive(Clone, Debug, Default)]
pub(in crate::volume) struct Loops(Arc<Mutex<Asked>>);

#[derive(Debug, Default)]
struct Asked {
    answered: HashMap<PathBuf, (Attachment, Backing)>,
    /// By a thread each.
    hanging: HashMap<(PathBuf, Attachment), mpsc::Receiver<Backing>>,
}

/// Which attachment of a device a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Attachment {
    diskseq: u64,
    file: PathBuf,
}

impl Loops {
    /// What lies behind the loop device `node`, which sysfs says is at `file`.
    pub(super) fn backing(&self, node: &Node, file: &Path) -> Backing {
        let attachment = Attachment { diskseq: node.diskseq(), file: file.to_owned() };
        let (file, name) = (file.to_owned(), node.name().map(str::to_owned));
        self.answer(&node.path, attachment, move || look(&file, name.as_deref(), true))
    }

    fn answer(
        &self,
        device: &Path,
        attachment: Attachment,
        look: impl FnOnce() -> Backing + Send + 'static,
    ) -> Backing {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, backing)) = asked.answered.get(device)
            && *of == attachment
        {
            return backing.clone();
        }
        let question = (device.to_owned(), attachment);
        let backing = match asked.hanging.get(&question).map(mpsc::Receiver::try_recv) {
            Some(Err(mpsc::TryRecvError::Empty)) => return Backing::Silent,
            Some(Ok(backing)) => backing,
            Some(Err(mpsc::TryRecvError::Disconnected)) => Backing::Silent,
            None => {
                // Of what is no more nobody takes the answer.
                asked.hanging.retain(|_, answer| answer.try_recv() == Err(mpsc::TryRecvError::Empty));
                if asked.hanging.len() >= MAX_HANGING {
                    return Backing::Silent;
                }
                let patience = if asked.hanging.is_empty() { PATIENCE } else { LITTLE_PATIENCE };
                let Some(answer) = ask(look) else { return Backing::Silent };
                match answer.recv_timeout(patience) {
                    Ok(backing) => backing,
                    Err(mpsc::RecvTimeoutError::Disconnected) => Backing::Silent,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        asked.hanging.insert(question, answer);
                        return Backing::Silent;
                    }
                }
            }
        };
        asked.hanging.remove(&question);
        let (_, attachment) = question;
        // Without a diskseq (before 5.15) another file may have taken the place unnoticed; what did not tell
        // may yet.
        if attachment.diskseq != 0
            && matches!(backing, Backing::File(_) | Backing::Place(_) | Backing::Device(_))
        {
            asked.answered.insert(device.to_owned(), (attachment, backing.clone()));
        }
        backing
    }
}

/// What lies at `file`, of a recorded tree.
pub(super) fn recorded(file: &Path) -> Backing {
    look(file, None, false)
}

/// Looks in a thread of its own, which may hang: the rest of the guard goes on.
fn ask(look: impl FnOnce() -> Backing + Send + 'static) -> Option<mpsc::Receiver<Backing>> {
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new().name("loop identity".into()).spawn(move || {
        // Nobody waits any more: nothing to do.
        let _ = sender.send(look());
    });
    spawned.ok().map(|_| receiver)
}

fn look(path: &Path, name: Option<&str>, live: bool) -> Backing {
    let told = name.and_then(|name| status(&open(name)?));
    // The size and the path of the backing file are set, and a uevent is sent, a moment before the device is
    // bound (drivers/block/loop.c, loop_configure); until then the device reports no status.
    if live && told.is_none() {
        return Backing::Silent;
    }
    places(path).iter().find_map(|path| seen(path, told)).unwrap_or(Backing::Unseen)
}

/// Where a file may be seen that sysfs says is at `path`: in a container it is most likely one of the host's.
fn places(path: &Path) -> [PathBuf; 2] {
    let host = path.strip_prefix("/").map(|rest| Path::new("/proc/1/root").join(rest)).unwrap_or_default();
    [path.to_owned(), host]
}

/// The file behind an open loop device, which sysfs says is at `path`, and the byte of it at which the device
/// begins; nothing where what is behind it is no file, or is not to be seen from here.
pub(in crate::volume) fn file_behind(device: &File, path: &Path) -> Option<(File, u64)> {
    let told = status(device)?;
    places(path).iter().find_map(|path| {
        let is_its = |metadata: &fs::Metadata| metadata.is_file() && told.is(metadata);
        fs::metadata(path).ok().filter(is_its)?;
        let file = File::open(path).ok()?;
        // Another file may have come there meanwhile.
        file.metadata().ok().filter(is_its)?;
        Some((file, told.offset))
    })
}

fn seen(path: &Path, told: Option<Status>) -> Option<Backing> {
    let metadata = fs::metadata(path).ok()?;
    if told.is_some_and(|told| !told.is(&metadata)) {
        return None;
    }
    if metadata.file_type().is_block_device() {
        return Some(Backing::Device(Dev::from_user(metadata.rdev())));
    }
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::BTIME).ok()?;
    let inode = stat.stx_ino;
    if statfs(path).is_ok_and(|statfs| numbers_inodes_anew(statfs.f_type)) {
        return Some(Backing::Place(format!("{}:{}:{inode}", stat.stx_dev_major, stat.stx_dev_minor)));
    }
    if stat.stx_mask & StatxFlags::BTIME.bits() != 0 {
        let birth = i128::from(stat.stx_btime.tv_sec) * 1_000_000_000 + i128::from(stat.stx_btime.tv_nsec);
        return Some(Backing::File(format!("{inode}:{birth}")));
    }
    // ext4 with inodes of 128 bytes gives each a random generation instead.
    Some(match generation(path) {
        Some(generation) => Backing::File(format!("{inode}:generation={generation}")),
        None => Backing::Place(format!("{}:{}:{inode}", stat.stx_dev_major, stat.stx_dev_minor)),
    })
}

/// Whether a file system gives an inode its number when it is looked at, or leaves that to a server: it is
/// another one after the next mount, whatever time of birth it tells (fs/fat/inode.c, fs/exfat/namei.c:
/// `iunique`).
fn numbers_inodes_anew(magic: FsWord) -> bool {
    // statfs(2): MSDOS, exFAT, NFS, SMB, CIFS, SMB2.
    const KNOWN: [FsWord; 6] = [0x4d44, 0x2011_bab0, 0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42];
    KNOWN.contains(&magic)
}

/// The generation of the file's inode number, which tells a file from earlier ones of the same number;
/// `None` where the file system does not count generations.
fn generation(path: &Path) -> Option<u32> {
    /// include/uapi/linux/fs.h: `_IOR('v', 1, long)`, of which file systems write an int.
    const FS_IOC_GETVERSION: libc::Ioctl = 0x8008_7601;
    let file = File::open(path).ok()?;
    let mut generation = [0_u32; 2];
    // SAFETY: eight bytes, as many as the request's number says; the kernel writes no more.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETVERSION, generation.as_mut_ptr()) };
    (done == 0 && generation[0] != 0).then_some(generation[0])
}

/// The beginning of `struct loop_info64` (include/uapi/linux/loop.h).
#[derive(Clone, Copy)]
struct Status {
    /// Device of the file system that the file lies on, as `huge_encode_dev` writes it.
    device: u64,
    inode: u64,
    /// Number of the block device that the file is a node of, in the same encoding; zero else.
    rdevice: u64,
    /// First byte of the file that is the device's.
    offset: u64,
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

fn open(name: &str) -> Option<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(Path::new("/dev").join(name))
        .ok()
}

fn status(device: &File) -> Option<Status> {
    /// include/uapi/linux/loop.h
    const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
    const WORDS: usize = 29;
    let mut info = [0_u64; WORDS];
    // SAFETY: struct loop_info64 is 232 bytes, the array's size; the kernel fills it.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
    (done == 0).then_some(Status { device: info[0], inode: info[1], rdevice: info[2], offset: info[3] })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    use super::*;

    #[test]
    fn file_systems_that_number_inodes_anew_are_known() {
        assert!([0x4d44, 0x2011_bab0, 0x6969].into_iter().all(numbers_inodes_anew));
        // ext4, XFS, btrfs, tmpfs, overlayfs.
        assert!(
            ![0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630]
                .into_iter()
                .any(numbers_inodes_anew)
        );
    }

    #[test]
    fn a_device_that_does_not_answer_costs_once_and_one_thread() {
        let loops = Loops::default();
        let threads = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Mutex::new(()));
        let hold = gate.lock().expect("a lock");
        let ask = |device: &str, diskseq| {
            let (threads, gate) = (Arc::clone(&threads), Arc::clone(&gate));
            let attachment = Attachment { diskseq, file: "/nfs/file".into() };
            loops.answer(Path::new(device), attachment, move || {
                threads.fetch_add(1, Ordering::SeqCst);
                drop(gate.lock());
                Backing::File("1:2".into())
            })
        };
        assert_eq!(ask("loop1", 5), Backing::Silent);
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(ask("loop1", 5), Backing::Silent);
        }
        for device in 0..200 {
            assert_eq!(ask(&format!("loop{device}"), 5), Backing::Silent);
        }
        assert!(start.elapsed() < LITTLE_PATIENCE * 64 + PATIENCE, "{:?}", start.elapsed());
        assert!(threads.load(Ordering::SeqCst) <= MAX_HANGING);
        drop(hold);
        let start = Instant::now();
        while ask("loop1", 5) == Backing::Silent {
            assert!(start.elapsed() < Duration::from_secs(10), "its answer is not taken");
        }
        // Answered for good, and another attachment is asked anew.
        assert_eq!(ask("loop1", 5), Backing::File("1:2".into()));
        let before = threads.load(Ordering::SeqCst);
        assert_eq!(ask("loop1", 6), Backing::File("1:2".into()));
        assert_eq!(threads.load(Ordering::SeqCst), before + 1);
    }
}
