//! Every road by which a program without a known name reaches the bytes of a mark: one function each, which
//! tries to change the mark without a tool and returns what the kernel answered.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Seek, SeekFrom, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::{FileExt, MetadataExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::Path,
    process, ptr, thread,
};

use anyhow::{Context, Result, bail, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::{
    cmsg_space,
    fs::{CWD, FileType, Mode, mknodat},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};

/// The target of a try: a mark on a device.
#[derive(Clone, Copy, Debug)]
pub struct Aim<'a> {
    /// A node of the device.
    pub path: &'a Path,
    /// First byte of the mark.
    pub offset: u64,
    /// Bytes of the mark.
    pub length: u64,
}

impl Aim<'_> {
    /// Start of the page that holds the mark: direct I/O, discards and mappings work on whole pages.
    const fn page(&self) -> u64 {
        self.offset / PAGE * PAGE
    }

    /// The same, as the kernel counts positions.
    const fn place(&self) -> libc::off_t {
        self.page().cast_signed()
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path)
    }
}

/// A try to change the mark.
pub type Road = fn(&Aim) -> io::Result<()>;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// The bytes that are written.
pub const GARBAGE: [u8; PAGE as usize] = [0xa5; PAGE as usize];
// include/uapi/linux/fs.h
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKSECDISCARD: libc::Ioctl = 0x127d;
const BLKZEROOUT: libc::Ioctl = 0x127f;

fn done(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn write(aim: &Aim) -> io::Result<()> {
    let mut file = aim.open()?;
    file.seek(SeekFrom::Start(aim.page()))?;
    file.write_all(&GARBAGE)
}

fn pwrite(aim: &Aim) -> io::Result<()> {
    aim.open()?.write_all_at(&GARBAGE, aim.page())
}

fn direct(aim: &Aim) -> io::Result<()> {
    #[repr(align(4096))]
    struct Page([u8; PAGE as usize]);
    let page = Box::new(Page(GARBAGE));
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(aim.path)?;
    file.write_all_at(&page.0, aim.page())
}

/// The kernel moves the position to the end of the device after it has asked the guard.
fn append(aim: &Aim) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(aim.path)?;
    file.seek(SeekFrom::Start(aim.page()))?;
    file.write_all(&GARBAGE)
}

fn writev(aim: &Aim) -> io::Result<()> {
    let mut file = aim.open()?;
    file.seek(SeekFrom::Start(aim.page()))?;
    file.write_vectored(&[IoSlice::new(&GARBAGE[..1]), IoSlice::new(&GARBAGE[1..])]).map(drop)
}

/// These bytes in iovecs of `length` bytes.
#[must_use]
pub fn pieces(bytes: &[u8], length: usize) -> Vec<libc::iovec> {
    let each = bytes.chunks(length);
    each.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }).collect()
}

/// As many iovecs of `length` bytes as fit into a page.
fn iovecs(length: usize) -> Vec<libc::iovec> {
    pieces(&GARBAGE, length)
}

/// Writes by pwritev2 in iovecs of this many bytes.
fn in_iovecs(aim: &Aim, length: usize) -> io::Result<()> {
    let (file, parts) = (aim.open()?, iovecs(length));
    let count = libc::c_int::try_from(parts.len()).map_err(io::Error::other)?;
    // SAFETY: iovecs over a constant.
    done(unsafe { libc::pwritev2(file.as_raw_fd(), parts.as_ptr(), count, aim.place(), 0) })
}

fn pwritev(aim: &Aim) -> io::Result<()> {
    let (file, parts) = (aim.open()?, iovecs(2048));
    // SAFETY: two iovecs over a constant.
    done(unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr(), 2, aim.place()) })
}

fn pwritev2(aim: &Aim) -> io::Result<()> {
    in_iovecs(aim, 1024)
}

fn many_iovecs(aim: &Aim) -> io::Result<()> {
    in_iovecs(aim, 100)
}

fn one_byte(aim: &Aim) -> io::Result<()> {
    aim.open()?.write_all_at(&[0xa5], aim.offset + aim.length / 2)
}

fn up_to_the_last_byte(aim: &Aim) -> io::Result<()> {
    let end = aim.offset + aim.length;
    let length = end.min(700);
    aim.open()?.write_all_at(&GARBAGE[..length as usize], end - length)
}

fn from_the_first_byte(aim: &Aim) -> io::Result<()> {
    aim.open()?.write_all_at(&GARBAGE[..128], aim.offset)
}

fn from_the_last_byte(aim: &Aim) -> io::Result<()> {
    aim.open()?.write_all_at(&GARBAGE[..128], aim.offset + aim.length - 1)
}

/// The range neither begins nor ends at a sector.
fn unaligned(aim: &Aim) -> io::Result<()> {
    let start = aim.offset.saturating_sub(3);
    aim.open()?.write_all_at(&GARBAGE[..(aim.offset + aim.length - start + 5) as usize], start)
}

/// One thread keeps writing the present bytes while another tries to change them.
fn two_writers(aim: &Aim) -> io::Result<()> {
    let file = aim.open()?;
    let mut page = GARBAGE;
    file.read_exact_at(&mut page, aim.page())?;
    thread::scope(|scope| {
        let same = scope.spawn(|| (0..20).try_for_each(|_| file.write_all_at(&page, aim.page())));
        let other = (0..20).try_for_each(|_| pwrite(aim));
        // The first thread is refused, too, once the process is.
        let _ = same.join();
        other
    })
}

fn sendfile(aim: &Aim) -> io::Result<()> {
    let mut file = aim.open()?;
    file.seek(SeekFrom::Start(aim.page()))?;
    let source = File::open("/proc/self/exe")?;
    // SAFETY: two open descriptors.
    done(unsafe { libc::sendfile(file.as_raw_fd(), source.as_raw_fd(), ptr::null_mut(), PAGE as usize) })
}

fn copy_file_range(aim: &Aim) -> io::Result<()> {
    let (file, source) = (aim.open()?, File::open("/proc/self/exe")?);
    let mut offset = aim.place();
    // SAFETY: two open descriptors, one offset.
    done(unsafe {
        libc::copy_file_range(
            source.as_raw_fd(),
            ptr::null_mut(),
            file.as_raw_fd(),
            &raw mut offset,
            PAGE as usize,
            0,
        )
    })
}

fn splice(aim: &Aim) -> io::Result<()> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(&GARBAGE)?;
    splice_from(&reader, aim)
}

/// The pipe holds the caller's own pages.
fn vmsplice(aim: &Aim) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    let part = libc::iovec { iov_base: GARBAGE.as_ptr().cast_mut().cast(), iov_len: GARBAGE.len() };
    // SAFETY: an iovec over a constant.
    done(unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const part, 1, 0) })?;
    splice_from(&reader, aim)
}

fn splice_from(pipe: &impl AsRawFd, aim: &Aim) -> io::Result<()> {
    let file = aim.open()?;
    let mut offset = aim.place();
    // SAFETY: open descriptors, one offset.
    done(unsafe {
        libc::splice(pipe.as_raw_fd(), ptr::null_mut(), file.as_raw_fd(), &raw mut offset, PAGE as usize, 0)
    })
}

fn fallocate(aim: &Aim, mode: libc::c_int) -> io::Result<()> {
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: an open descriptor.
    done(unsafe { libc::fallocate(aim.open()?.as_raw_fd(), mode, aim.place(), PAGE.cast_signed()) } as isize)
}

fn punch(aim: &Aim) -> io::Result<()> {
    fallocate(aim, libc::FALLOC_FL_PUNCH_HOLE)
}

fn zero_range(aim: &Aim) -> io::Result<()> {
    fallocate(aim, libc::FALLOC_FL_ZERO_RANGE)
}

fn erase(aim: &Aim, request: libc::Ioctl, range: [u64; 2]) -> io::Result<()> {
    let file = aim.open()?;
    // SAFETY: the request reads two 64-bit integers.
    done(unsafe { libc::ioctl(file.as_raw_fd(), request, &range) } as isize)
}

fn discard(aim: &Aim) -> io::Result<()> {
    erase(aim, BLKDISCARD, [aim.page(), PAGE])
}

/// The range has the mark somewhere in the middle.
fn wide_discard(aim: &Aim) -> io::Result<()> {
    let mut file = aim.open()?;
    let start = aim.page().saturating_sub(16 * PAGE);
    let end = file.seek(SeekFrom::End(0))?.min(aim.page() + 16 * PAGE);
    erase(aim, BLKDISCARD, [start, end - start])
}

fn secure_discard(aim: &Aim) -> io::Result<()> {
    erase(aim, BLKSECDISCARD, [aim.page(), PAGE])
}

fn zeroout(aim: &Aim) -> io::Result<()> {
    erase(aim, BLKZEROOUT, [aim.page(), PAGE])
}

fn mmap(aim: &Aim) -> io::Result<()> {
    store(aim, libc::PROT_READ | libc::PROT_WRITE, false)
}

fn mprotect(aim: &Aim) -> io::Result<()> {
    store(aim, libc::PROT_READ, true)
}

/// Stores into a shared mapping of the page.
fn store(aim: &Aim, protection: libc::c_int, unprotect: bool) -> io::Result<()> {
    const LENGTH: usize = PAGE as usize;
    let file = aim.open()?;
    // SAFETY: a new mapping of one page; it is unmapped below and used by nobody else.
    unsafe {
        let page =
            libc::mmap(ptr::null_mut(), LENGTH, protection, libc::MAP_SHARED, file.as_raw_fd(), aim.place());
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let opened = if unprotect {
            done(libc::mprotect(page, LENGTH, libc::PROT_READ | libc::PROT_WRITE) as isize)
        } else {
            Ok(())
        };
        if opened.is_ok() {
            ptr::write_bytes(page.cast::<u8>(), 0xa5, LENGTH);
            libc::msync(page, LENGTH, libc::MS_SYNC);
        }
        libc::munmap(page, LENGTH);
        opened
    }
}

/// One write by Linux aio: these bytes, in pieces of this length, at this offset. A length of zero means one
/// piece.
#[derive(Clone, Copy, Debug)]
pub struct AioWrite<'a> {
    /// What is written.
    pub bytes: &'a [u8],
    /// Bytes of a piece.
    pub piece: usize,
    /// First byte.
    pub offset: u64,
}

/// Submits these writes at once by Linux aio, without its library.
///
/// # Errors
/// What the kernel answered to the first that failed.
pub fn write_by_aio(file: &File, writes: &[AioWrite]) -> io::Result<()> {
    // struct iocb, struct io_event: include/uapi/linux/aio_abi.h
    const IOCB_CMD_PWRITE: u64 = 1;
    const IOCB_CMD_PWRITEV: u64 = 8;
    let pieces: Vec<Vec<libc::iovec>> = writes
        .iter()
        .map(|write| if write.piece == 0 { Vec::new() } else { pieces(write.bytes, write.piece) })
        .collect();
    let mut iocbs: Vec<[u64; 8]> = writes
        .iter()
        .zip(&pieces)
        .map(|(write, pieces)| {
            let (command, address, length) = if pieces.is_empty() {
                (IOCB_CMD_PWRITE, write.bytes.as_ptr() as u64, write.bytes.len())
            } else {
                (IOCB_CMD_PWRITEV, pieces.as_ptr() as u64, pieces.len())
            };
            let head = command | u64::from(file.as_raw_fd().cast_unsigned()) << 32;
            [0, 0, head, address, length as u64, write.offset, 0, 0]
        })
        .collect();
    let mut list: Vec<*mut u64> = iocbs.iter_mut().map(|iocb| iocb.as_mut_ptr()).collect();
    let mut context: libc::c_ulong = 0;
    let mut result = Ok(());
    // SAFETY: the structures that the system calls want, alive until the events have come.
    unsafe {
        done(libc::syscall(libc::SYS_io_setup, list.len(), &raw mut context) as isize)?;
        let mut submitted = 0;
        while submitted < list.len() && result.is_ok() {
            let rest = &mut list[submitted..];
            match libc::syscall(libc::SYS_io_submit, context, rest.len(), rest.as_mut_ptr()) {
                failed @ ..=0 => result = done(failed as isize).and(Err(io::ErrorKind::WriteZero.into())),
                count => submitted += count.unsigned_abs() as usize,
            }
        }
        for _ in 0..submitted {
            let mut event = [0_u64; 4];
            let forever = ptr::null::<libc::timespec>();
            libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), forever);
            if let written @ ..0 = event[2].cast_signed() {
                result = Err(io::Error::from_raw_os_error(-written as i32));
            }
        }
        libc::syscall(libc::SYS_io_destroy, context);
    }
    result
}

fn aio(aim: &Aim) -> io::Result<()> {
    write_by_aio(&aim.open()?, &[AioWrite { bytes: &GARBAGE, piece: 0, offset: aim.page() }])
}

fn aio_pieces(aim: &Aim) -> io::Result<()> {
    write_by_aio(&aim.open()?, &[AioWrite { bytes: &GARBAGE, piece: 64, offset: aim.page() }])
}

/// The entry comes after a hundred that write elsewhere.
fn aio_batch(aim: &Aim) -> io::Result<()> {
    let file = aim.open()?;
    let elsewhere = aim.page() ^ (8 << 20);
    let mut same = GARBAGE;
    file.read_exact_at(&mut same, elsewhere)?;
    let mut writes = vec![AioWrite { bytes: &same, piece: 0, offset: elsewhere }; 100];
    writes.push(AioWrite { bytes: &GARBAGE, piece: 0, offset: aim.page() });
    write_by_aio(&file, &writes)
}

/// Submits one entry to a ring and returns its result.
///
/// # Errors
/// What the kernel answered.
pub fn submit(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: buffers of the entry outlive the wait.
    unsafe { ring.submission().push(entry).map_err(io::Error::other)? };
    ring.submit_and_wait(1)?;
    match ring.completion().next().map_or(-libc::EIO, |entry| entry.result()) {
        result @ ..0 => Err(io::Error::from_raw_os_error(-result)),
        _ => Ok(()),
    }
}

fn ring() -> io::Result<IoUring> {
    IoUring::new(4)
}

/// An entry that writes these bytes.
#[must_use]
pub fn ring_write(file: &File, bytes: &[u8], offset: u64) -> squeue::Entry {
    opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32).offset(offset).build()
}

/// Writes these bytes by `io_uring`, in a worker thread of the kernel or in the caller.
///
/// # Errors
/// What the kernel answered.
pub fn write_by_ring(file: &File, bytes: &[u8], offset: u64, worker: bool) -> io::Result<()> {
    let entry = ring_write(file, bytes, offset);
    submit(&mut ring()?, &if worker { entry.flags(squeue::Flags::ASYNC) } else { entry })
}

fn uring(aim: &Aim) -> io::Result<()> {
    write_by_ring(&aim.open()?, &GARBAGE, aim.page(), false)
}

/// In a worker thread of the kernel.
fn uring_worker(aim: &Aim) -> io::Result<()> {
    write_by_ring(&aim.open()?, &GARBAGE, aim.page(), true)
}

/// In the kernel's polling thread.
fn uring_sqpoll(aim: &Aim) -> io::Result<()> {
    let file = aim.open()?;
    let mut ring = IoUring::builder().setup_sqpoll(100).build(4)?;
    submit(&mut ring, &ring_write(&file, &GARBAGE, aim.page()))
}

fn uring_writev(aim: &Aim) -> io::Result<()> {
    write_pieces_by_ring(&aim.open()?, &iovecs(2048), aim.page(), false)
}

fn uring_many_iovecs(aim: &Aim) -> io::Result<()> {
    write_pieces_by_ring(&aim.open()?, &iovecs(64), aim.page(), false)
}

/// Writes these pieces by `io_uring`, in a worker thread of the kernel or in the caller.
///
/// # Errors
/// What the kernel answered.
pub fn write_pieces_by_ring(file: &File, parts: &[libc::iovec], offset: u64, worker: bool) -> io::Result<()> {
    let entry = opcode::Writev::new(types::Fd(file.as_raw_fd()), parts.as_ptr(), parts.len() as u32);
    let entry = entry.offset(offset).build();
    submit(&mut ring()?, &if worker { entry.flags(squeue::Flags::ASYNC) } else { entry })
}

/// The kernel carries out the second write at the end of whatever system call runs when the first is done.
fn uring_linked(aim: &Aim) -> io::Result<()> {
    let file = aim.open()?;
    let elsewhere = aim.page() ^ (8 << 20);
    let mut same = GARBAGE;
    file.read_exact_at(&mut same, elsewhere)?;
    let mut ring = ring()?;
    let first = ring_write(&file, &same, elsewhere).flags(squeue::Flags::IO_LINK);
    let last = ring_write(&file, &GARBAGE, aim.page());
    // SAFETY: buffers of the entries outlive the wait.
    unsafe { ring.submission().push_multiple(&[first, last]).map_err(io::Error::other)? };
    ring.submit_and_wait(2)?;
    let results: Vec<i32> = ring.completion().map(|entry| entry.result()).collect();
    match results.iter().find(|result| **result < 0) {
        Some(failed) => Err(io::Error::from_raw_os_error(-failed)),
        None => Ok(()),
    }
}

/// From a buffer that the kernel has pinned.
fn uring_write_fixed(aim: &Aim) -> io::Result<()> {
    let file = aim.open()?;
    let (mut ring, bytes) = (ring()?, GARBAGE.to_vec());
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the buffer outlives the ring.
    unsafe { ring.submitter().register_buffers(&[part])? };
    let entry = opcode::WriteFixed::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32, 0);
    submit(&mut ring, &entry.offset(aim.page()).build())
}

fn uring_fallocate(aim: &Aim) -> io::Result<()> {
    let file = aim.open()?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let entry = opcode::Fallocate::new(types::Fd(file.as_raw_fd()), PAGE).offset(aim.page()).mode(mode);
    submit(&mut ring()?, &entry.build())
}

/// From 6.12 on: start in the entry's addr, length in addr3.
fn uring_discard(aim: &Aim) -> io::Result<()> {
    const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;
    let file = aim.open()?;
    let mut entry = opcode::UringCmd16::new(types::Fd(file.as_raw_fd()), BLOCK_URING_CMD_DISCARD).build();
    // SAFETY: struct io_uring_sqe: addr at 16, addr3 at 48; 64 bytes of plain integers.
    unsafe {
        let raw = ptr::from_mut(&mut entry).cast::<u8>();
        raw.add(16).cast::<u64>().write_unaligned(aim.page());
        raw.add(48).cast::<u64>().write_unaligned(PAGE);
    }
    submit(&mut ring()?, &entry)
}

/// If the kernel takes the device for swap space, it writes pages into it.
fn swapon(aim: &Aim) -> io::Result<()> {
    let path = std::ffi::CString::new(aim.path.as_os_str().as_encoded_bytes())?;
    // SAFETY: a path.
    done(unsafe { libc::swapon(path.as_ptr(), 0) } as isize)?;
    // SAFETY: the same.
    done(unsafe { libc::swapoff(path.as_ptr()) } as isize)
}

/// A descriptor for reading, opened anew for writing.
fn reopened(aim: &Aim) -> io::Result<()> {
    let file = File::open(aim.path)?;
    let again = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    again.write_all_at(&GARBAGE, aim.page())
}

/// A node that the caller makes.
fn own_node(aim: &Aim) -> io::Result<()> {
    let device = std::fs::metadata(aim.path)?.rdev();
    let node = format!("/var/tmp/node-{}", process::id());
    mknodat(CWD, &node, FileType::BlockDevice, Mode::from(0o600), device)?;
    let file = OpenOptions::new().write(true).open(&node);
    std::fs::remove_file(&node)?;
    file?.write_all_at(&GARBAGE, aim.page())
}

/// Written by a thread that did not open the descriptor.
fn thread_of_many(aim: &Aim) -> io::Result<()> {
    let file = aim.open()?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| file.write_all_at(&GARBAGE, aim.page()));
        writer.join().unwrap_or_else(|_| Err(io::Error::other("the thread broke")))
    })
}

/// Opened by one process, and written to by another that got the descriptor over a socket.
fn passed_descriptor(aim: &Aim) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let writer = in_child(|| {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&theirs, &mut [io::IoSliceMut::new(&mut byte)], &mut message, RecvFlags::empty())?;
        let got = message.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        File::from(got.ok_or(io::ErrorKind::NotFound)?).write_all_at(&GARBAGE, aim.page())
    });
    let opened = aim.open()?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = [opened.as_fd()];
    message.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&ours, &[IoSlice::new(&[0])], &mut message, SendFlags::empty())?;
    writer.and_then(Child::wait).map_err(io::Error::other)?
}

/// Every road, by name.
pub const ROADS: &[(&str, Road)] = &[
    ("write", write),
    ("pwrite", pwrite),
    ("writev", writev),
    ("pwritev", pwritev),
    ("pwritev2", pwritev2),
    ("pwritev2, many iovecs", many_iovecs),
    ("O_DIRECT", direct),
    ("O_APPEND", append),
    ("one byte in a mark", one_byte),
    ("up to a mark's last byte", up_to_the_last_byte),
    ("from a mark's first byte", from_the_first_byte),
    ("from a mark's last byte", from_the_last_byte),
    ("unaligned", unaligned),
    ("two writers at once", two_writers),
    ("sendfile", sendfile),
    ("splice", splice),
    ("vmsplice and splice", vmsplice),
    ("copy_file_range", copy_file_range),
    ("punch", punch),
    ("zero range", zero_range),
    ("BLKDISCARD", discard),
    ("BLKDISCARD, a mark in the middle", wide_discard),
    ("BLKSECDISCARD", secure_discard),
    ("BLKZEROOUT", zeroout),
    ("mmap", mmap),
    ("mprotect", mprotect),
    ("aio", aio),
    ("aio, many iovecs", aio_pieces),
    ("aio, the last of a batch", aio_batch),
    ("io_uring", uring),
    ("io_uring worker", uring_worker),
    ("io_uring sqpoll", uring_sqpoll),
    ("io_uring writev", uring_writev),
    ("io_uring writev, many iovecs", uring_many_iovecs),
    ("io_uring, the last of a chain", uring_linked),
    ("io_uring write_fixed", uring_write_fixed),
    ("io_uring fallocate", uring_fallocate),
    ("io_uring discard", uring_discard),
    ("swapon", swapon),
    ("/proc/self/fd", reopened),
    ("a node made by mknod", own_node),
    ("a thread of many", thread_of_many),
    ("a descriptor passed over a socket", passed_descriptor),
];

/// Whether a tier refuses a road, as the documentation says.
///
/// # Errors
/// When the table there has no such tier, or other roads than these.
pub fn documented(tier: &str) -> Result<Vec<(&'static str, Road, bool)>> {
    let table = include_str!("../../docs/tiers.md");
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let mut lines = table.lines().skip_while(|line| !line.starts_with("| operation "));
    let head = cells(lines.next().context("no table")?);
    let column = head.iter().position(|cell| *cell == tier).with_context(|| format!("no tier {tier}"))?;
    let rows: Vec<_> = lines.take_while(|line| line.starts_with('|')).map(cells).collect();
    let said = |name: &str| {
        let row = rows.iter().find(|row| row[0] == name).with_context(|| format!("no row {name}"))?;
        match row.get(column) {
            Some(&"refused") => Ok(true),
            Some(&"open") => Ok(false),
            other => bail!("{name}: {other:?} is neither refused nor open"),
        }
    };
    ROADS.iter().map(|(name, road)| Ok((*name, *road, said(name)?))).collect()
}

/// Whether an errno means that this kernel or driver does not offer a road. A device node may be refused as
/// swap space by its file system, and as a target of `copy_file_range`.
#[must_use]
pub fn is_absent(name: &str, errno: Option<i32>) -> bool {
    [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS].map(Some).contains(&errno)
        && ["BLKSECDISCARD", "io_uring discard", "swapon", "copy_file_range"].contains(&name)
}

/// The errno of a road in a process of its own; `None` if the road reaches the mark.
///
/// # Errors
/// When that process was killed.
pub fn errno_of(road: impl Fn(&Aim) -> io::Result<()>, aim: &Aim) -> Result<Option<i32>> {
    Ok(in_child(|| road(aim))?.wait()?.err().and_then(|error| error.raw_os_error()))
}

/// Tries every road that the documentation calls refused by a tier, and prints the outcome of each.
///
/// # Errors
/// When one is not refused, and not absent.
pub fn refused_as_documented(tier: &str, aim: &Aim) -> Result<()> {
    for (name, road, _) in documented(tier)?.into_iter().filter(|(_, _, refused)| *refused) {
        let errno = errno_of(road, aim)?;
        let absent = is_absent(name, errno);
        let word = if absent { " (not tried: this kernel or device lacks it)" } else { "" };
        println!("{name}: errno {errno:?}{word}");
        ensure!(errno == Some(libc::EPERM) || absent, "{name} gave errno {errno:?}");
    }
    Ok(())
}

/// A child process.
pub struct Child(libc::pid_t);

/// Runs this in a child process: a refusal cuts off the process that met it.
///
/// # Errors
/// When there can be none.
pub fn in_child(work: impl FnOnce() -> io::Result<()>) -> Result<Child> {
    // SAFETY: the child makes system calls and exits. It allocates and starts threads, which glibc allows
    // after fork if the parent has one thread.
    match unsafe { libc::fork() } {
        -1 => bail!(io::Error::last_os_error()),
        0 => {
            let errno = match work() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(255),
            };
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(errno.min(255)) }
        }
        child => Ok(Child(child)),
    }
}

impl Child {
    /// Waits for the child's end, and returns the result of its work.
    ///
    /// # Errors
    /// When it was killed.
    pub fn wait(self) -> Result<io::Result<()>> {
        let mut status = 0;
        // SAFETY: waits for a child of ours.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        ensure!(waited == self.0 && libc::WIFEXITED(status), "the child was killed: {status:#x}");
        Ok(match libc::WEXITSTATUS(status) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        })
    }
}
