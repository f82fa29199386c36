//! Every road by which a program without a known name reaches the bytes of a mark, without a tool between.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    ptr,
};

use anyhow::{Result, bail, ensure};
use format_guard_tests::{
    device::{Device, Loop},
    guard::Guard,
    tool::must,
};
use io_uring::{IoUring, opcode, types};

use crate::make_ext4;

/// A try to destroy the ext4 superblock at 1024.
type Road = fn(&Path) -> io::Result<()>;

const GARBAGE: [u8; 4096] = [0xa5; 4096];
// include/uapi/linux/fs.h
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKSECDISCARD: libc::Ioctl = 0x127d;
const BLKZEROOUT: libc::Ioctl = 0x127f;

fn writer(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn done(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn erase(path: &Path, request: libc::Ioctl) -> io::Result<()> {
    let file = writer(path)?;
    let range = [0_u64, 1 << 20];
    // SAFETY: the request reads two 64-bit integers.
    done(unsafe { libc::ioctl(file.as_raw_fd(), request, &range) } as isize)
}

fn by_write(path: &Path) -> io::Result<()> {
    let mut file = writer(path)?;
    file.seek(SeekFrom::Start(1024))?;
    file.write_all(&GARBAGE)
}

fn by_pwrite(path: &Path) -> io::Result<()> {
    writer(path)?.write_all_at(&GARBAGE, 0)
}

fn by_direct_pwrite(path: &Path) -> io::Result<()> {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let page = Box::new(Page(GARBAGE));
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
    file.write_all_at(&page.0, 0)
}

/// Two iovecs, the mark in the second.
fn by_pwritev(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    let parts = [
        libc::iovec { iov_base: GARBAGE.as_ptr().cast_mut().cast(), iov_len: 1000 },
        libc::iovec { iov_base: GARBAGE.as_ptr().cast_mut().cast(), iov_len: 1000 },
    ];
    // SAFETY: two iovecs over a constant.
    done(unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr(), 2, 0) })
}

/// More iovecs than the programs look into.
fn by_many_iovecs(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    let part = libc::iovec { iov_base: GARBAGE.as_ptr().cast_mut().cast(), iov_len: 200 };
    let parts = [part; 10];
    // SAFETY: ten iovecs over a constant.
    done(unsafe { libc::pwritev2(file.as_raw_fd(), parts.as_ptr(), 10, 0, 0) })
}

/// One byte inside the magic.
fn by_one_byte(path: &Path) -> io::Result<()> {
    writer(path)?.write_all_at(&[0], 1081)
}

fn by_sendfile(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    let source = File::open("/proc/self/exe")?;
    // SAFETY: two open descriptors.
    done(unsafe { libc::sendfile(file.as_raw_fd(), source.as_raw_fd(), ptr::null_mut(), 4096) })
}

fn by_splice(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(&GARBAGE)?;
    let mut offset: libc::loff_t = 0;
    // SAFETY: open descriptors, one offset.
    done(unsafe { libc::splice(reader.as_raw_fd(), ptr::null_mut(), file.as_raw_fd(), &mut offset, 4096, 0) })
}

fn by_punch(path: &Path) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: an open descriptor.
    done(unsafe { libc::fallocate(writer(path)?.as_raw_fd(), mode, 0, 1 << 20) } as isize)
}

fn by_zero_range(path: &Path) -> io::Result<()> {
    let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: an open descriptor.
    done(unsafe { libc::fallocate(writer(path)?.as_raw_fd(), mode, 0, 1 << 20) } as isize)
}

fn by_mapping(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    store(&file, libc::PROT_READ | libc::PROT_WRITE, false)
}

fn by_mprotect(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    store(&file, libc::PROT_READ, true)
}

/// Stores into a shared mapping of the first page.
fn store(file: &File, protection: libc::c_int, unprotect: bool) -> io::Result<()> {
    // SAFETY: a new mapping of one page; it is unmapped below and used by nobody else.
    unsafe {
        let page = libc::mmap(ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let opened = if unprotect {
            done(libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE) as isize)
        } else {
            Ok(())
        };
        if opened.is_ok() {
            ptr::write_bytes(page.cast::<u8>(), 0xa5, 4096);
            libc::msync(page, 4096, libc::MS_SYNC);
        }
        libc::munmap(page, 4096);
        opened
    }
}

fn by_discard(path: &Path) -> io::Result<()> {
    erase(path, BLKDISCARD)
}

fn by_secure_discard(path: &Path) -> io::Result<()> {
    erase(path, BLKSECDISCARD)
}

fn by_zeroout(path: &Path) -> io::Result<()> {
    erase(path, BLKZEROOUT)
}

/// Linux aio, without its library.
fn by_aio(path: &Path) -> io::Result<()> {
    // struct iocb, struct io_event: include/uapi/linux/aio_abi.h
    const IOCB_CMD_PWRITE: u64 = 1;
    let file = writer(path)?;
    let mut context: libc::c_ulong = 0;
    let mut iocb = [0_u64; 8];
    iocb[2] = IOCB_CMD_PWRITE | (file.as_raw_fd() as u64) << 32;
    iocb[3] = GARBAGE.as_ptr() as u64;
    iocb[4] = GARBAGE.len() as u64;
    let mut list = [iocb.as_mut_ptr()];
    let mut event = [0_u64; 4];
    // SAFETY: the structures that the system calls want, alive until the event has come.
    unsafe {
        done(libc::syscall(libc::SYS_io_setup, 1, &mut context) as isize)?;
        let submitted = done(libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) as isize);
        if submitted.is_ok() {
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                1,
                1,
                event.as_mut_ptr(),
                ptr::null::<libc::timespec>(),
            );
        }
        let error = submitted.err();
        libc::syscall(libc::SYS_io_destroy, context);
        match error {
            Some(error) => Err(error),
            None if (event[2] as i64) < 0 => Err(io::Error::from_raw_os_error(-(event[2] as i64) as i32)),
            None => Ok(()),
        }
    }
}

/// Submits one entry to a ring and returns its result.
fn submit(entry: &io_uring::squeue::Entry, poll: bool) -> io::Result<()> {
    let mut builder = IoUring::builder();
    if poll {
        builder.setup_sqpoll(100);
    }
    let mut ring = builder.build(4)?;
    // SAFETY: buffers of the entry outlive the wait.
    unsafe { ring.submission().push(entry).map_err(io::Error::other)? };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(-libc::EIO, |entry: io_uring::cqueue::Entry| entry.result());
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

fn uring_write(file: &File) -> io_uring::squeue::Entry {
    opcode::Write::new(types::Fd(file.as_raw_fd()), GARBAGE.as_ptr(), GARBAGE.len() as u32).offset(0).build()
}

fn by_uring(path: &Path) -> io::Result<()> {
    submit(&uring_write(&writer(path)?), false)
}

/// In a worker thread of the kernel's.
fn by_uring_worker(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    submit(&uring_write(&file).flags(io_uring::squeue::Flags::ASYNC), false)
}

/// In the kernel's polling thread.
fn by_uring_sqpoll(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    submit(&uring_write(&file), true)
}

fn by_uring_writev(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    let part = libc::iovec { iov_base: GARBAGE.as_ptr().cast_mut().cast(), iov_len: GARBAGE.len() };
    submit(&opcode::Writev::new(types::Fd(file.as_raw_fd()), &part, 1).offset(0).build(), false)
}

fn by_uring_fallocate(path: &Path) -> io::Result<()> {
    let file = writer(path)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    submit(&opcode::Fallocate::new(types::Fd(file.as_raw_fd()), 1 << 20).offset(0).mode(mode).build(), false)
}

/// Block discard by io_uring, from 6.12: start in the entry's addr, length in addr3.
fn by_uring_discard(path: &Path) -> io::Result<()> {
    const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;
    let file = writer(path)?;
    let mut entry = opcode::UringCmd16::new(types::Fd(file.as_raw_fd()), BLOCK_URING_CMD_DISCARD).build();
    // SAFETY: struct io_uring_sqe: addr at 16, addr3 at 48; 64 bytes of plain integers.
    unsafe {
        let raw = ptr::from_mut(&mut entry).cast::<u8>();
        raw.add(16).cast::<u64>().write_unaligned(0);
        raw.add(48).cast::<u64>().write_unaligned(1 << 20);
    }
    submit(&entry, false)
}

/// Opened before the volume was formatted, and so before its rule.
fn by_reopened_descriptor(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let again = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    again.write_all_at(&GARBAGE, 0)
}

const ROADS: &[(&str, Road)] = &[
    ("write", by_write),
    ("pwrite", by_pwrite),
    ("O_DIRECT", by_direct_pwrite),
    ("pwritev", by_pwritev),
    ("pwritev2, ten iovecs", by_many_iovecs),
    ("one byte", by_one_byte),
    ("sendfile", by_sendfile),
    ("splice", by_splice),
    ("punch", by_punch),
    ("zero range", by_zero_range),
    ("mmap", by_mapping),
    ("mprotect", by_mprotect),
    ("BLKDISCARD", by_discard),
    ("BLKSECDISCARD", by_secure_discard),
    ("BLKZEROOUT", by_zeroout),
    ("aio", by_aio),
    ("io_uring", by_uring),
    ("io_uring worker", by_uring_worker),
    ("io_uring sqpoll", by_uring_sqpoll),
    ("io_uring writev", by_uring_writev),
    ("io_uring fallocate", by_uring_fallocate),
    ("io_uring discard", by_uring_discard),
    ("/proc/self/fd", by_reopened_descriptor),
];

/// Runs a road in a process of its own: a refusal taints the process that met it.
fn in_child(road: Road, path: &Path) -> Result<i32> {
    // SAFETY: the child makes system calls and exits; it allocates, which glibc allows after fork.
    match unsafe { libc::fork() } {
        -1 => bail!(io::Error::last_os_error()),
        0 => {
            let errno = match road(path) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(255),
            };
            // SAFETY: ends the child without running the test harness's exit handlers.
            unsafe { libc::_exit(errno.min(255)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for the child made above.
            unsafe { libc::waitpid(child, &mut status, 0) };
            ensure!(libc::WIFEXITED(status), "the child was killed: {status:#x}");
            Ok(libc::WEXITSTATUS(status))
        }
    }
}

#[test]
fn no_road_reaches_the_superblock() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    for (name, road) in ROADS {
        let errno = in_child(*road, device.path())?;
        // What this kernel or driver does not have is no road: it must not have changed anything all the same.
        let absent = [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS].contains(&errno)
            && ["BLKSECDISCARD", "io_uring discard"].contains(name);
        println!(
            "{name}: errno {errno}{}",
            if absent { " (not tried: this kernel or device lacks it)" } else { "" }
        );
        ensure!(errno == libc::EPERM || absent, "{name} gave errno {errno}");
    }
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn a_descriptor_opened_before_the_format_is_refused_after_it() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    guard.wait_for_state(device.path(), "blank")?;
    let early = writer(device.path())?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    let error = early.write_all_at(&GARBAGE, 0).err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(libc::EPERM), "{error:?}");
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn writes_beyond_the_marks_and_of_the_same_bytes_pass() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let file = writer(device.path())?;
    let mut superblock = [0; 1024];
    file.read_exact_at(&mut superblock, 1024)?;
    file.write_all_at(&superblock, 1024)?;
    file.write_all_at(&GARBAGE, 40 << 20)?;
    submit(
        &opcode::Write::new(types::Fd(file.as_raw_fd()), superblock.as_ptr(), 1024).offset(1024).build(),
        false,
    )?;
    submit(
        &opcode::Write::new(types::Fd(file.as_raw_fd()), GARBAGE.as_ptr(), 4096).offset(41 << 20).build(),
        true,
    )?;
    file.sync_all()?;
    must(&format!("blkid -p {}", device.path().display()))?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    Ok(())
}

/// Stores into it pass no hook: nothing else can be done about it.
#[test]
fn a_mapping_that_is_older_than_the_agent_is_told() -> Result<()> {
    let device = Loop::new(16)?;
    let file = writer(device.path())?;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of one page; it is unmapped below and used by nobody else.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, rights, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    ensure!(page != libc::MAP_FAILED, "{}", io::Error::last_os_error());
    let guard = Guard::start()?;
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(page, 4096) };
    let told = guard.events("mapped-before")?;
    let words = [format!("(pid {})", std::process::id()), device.path().display().to_string()];
    let ours = told.iter().filter(|event| {
        event["text"].as_str().is_some_and(|text| words.iter().all(|word| text.contains(word)))
    });
    ensure!(ours.count() == 1, "{told:#?}");
    Ok(())
}
