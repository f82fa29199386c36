//! Every road by system calls: roads through the C library are refused, and roads past it are those that
//! `status` names.

use std::{ffi::CString, fs::OpenOptions};

use anyhow::{Result, ensure};
use format_guard_tests::{
    device::Device,
    guard::{Guard, PRELOAD},
    road::{Aim, GARBAGE, documented, errno_of, in_child, refused_as_documented},
};

use crate::formatted;

#[test]
fn roads_through_the_c_library_reach_no_superblock() -> Result<()> {
    let guard = Guard::shared()?;
    let device = formatted(&guard, 64)?;
    let before = device.sha256()?;
    // The magic of an ext4.
    let aim = Aim { path: device.path(), offset: 1080, length: 2 };
    refused_as_documented(PRELOAD, &aim)?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

/// The library has no hook for ftruncate: the kernel truncates only files (`do_sys_ftruncate`, fs/open.c).
#[test]
fn a_device_cannot_be_truncated() -> Result<()> {
    let guard = Guard::shared()?;
    let device = formatted(&guard, 64)?;
    let before = device.sha256()?;
    let file = OpenOptions::new().write(true).open(device.path())?;
    let errno = file.set_len(0).err().and_then(|error| error.raw_os_error());
    ensure!(errno == Some(libc::EINVAL), "{errno:?}");
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

/// A road that is refused one day must no longer be called open.
#[test]
fn roads_past_the_c_library_are_open() -> Result<()> {
    let guard = Guard::shared()?;
    let open = guard.json("status")?["open"].to_string();
    ensure!(open.contains("whoever uses io_uring"), "{open}");
    let device = formatted(&guard, 64)?;
    let aim = Aim { path: device.path(), offset: 1080, length: 2 };
    for (name, road, _) in documented(PRELOAD)?.into_iter().filter(|(_, _, refused)| !refused) {
        let errno = errno_of(road, &aim)?;
        println!("{name}: errno {errno:?}");
        ensure!(errno != Some(libc::EPERM), "{name} is refused");
    }
    Ok(())
}

/// The same requests by `syscall`, by streams, and by the functions that a fortified program calls.
#[test]
fn no_other_function_reaches_the_superblock() -> Result<()> {
    type Function = fn(&std::ffi::CStr) -> bool;
    const FUNCTIONS: [(&str, Function); 9] = [
        ("syscall write", |node| {
            // SAFETY: system calls with the program's own memory.
            unsafe {
                let fd = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, node.as_ptr(), libc::O_RDWR);
                libc::syscall(libc::SYS_pwrite64, fd, GARBAGE.as_ptr(), GARBAGE.len(), 0) < 0
            }
        }),
        ("syscall writev", |node| {
            // SAFETY: as above.
            unsafe {
                let fd = libc::syscall(libc::SYS_open, node.as_ptr(), libc::O_RDWR);
                let piece =
                    libc::iovec { iov_base: GARBAGE.as_ptr().cast_mut().cast(), iov_len: GARBAGE.len() };
                libc::syscall(libc::SYS_writev, fd, &raw const piece, 1) < 0
            }
        }),
        ("syscall fallocate", |node| {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: as above.
            unsafe {
                let fd = libc::open(node.as_ptr(), libc::O_RDWR);
                libc::syscall(libc::SYS_fallocate, fd, mode, 0, 4096) < 0
            }
        }),
        ("syscall mmap", |node| {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: as above; nothing is mapped where it is refused.
            unsafe {
                let fd = libc::open(node.as_ptr(), libc::O_RDWR);
                libc::syscall(libc::SYS_mmap, 0, 4096, rights, libc::MAP_SHARED, fd, 0) < 0
            }
        }),
        ("openat2", |node| {
            let how = [libc::O_RDWR as u64, 0, 0];
            // SAFETY: as above, with a struct open_how.
            unsafe {
                let fd = libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, node.as_ptr(), how.as_ptr(), 24);
                libc::write(fd as i32, GARBAGE.as_ptr().cast(), GARBAGE.len()) < 0
            }
        }),
        // SAFETY: strings that end with a NUL.
        ("fopen r+", |node| unsafe { libc::fopen(node.as_ptr(), c"r+".as_ptr()) }.is_null()),
        // SAFETY: as above.
        ("fopen we", |node| unsafe { libc::fopen(node.as_ptr(), c"we".as_ptr()) }.is_null()),
        ("freopen w", |node| {
            // SAFETY: as above; the stream is closed where it is refused.
            unsafe {
                let stream = libc::fopen(c"/dev/null".as_ptr(), c"r".as_ptr());
                libc::freopen(node.as_ptr(), c"w".as_ptr(), stream).is_null()
            }
        }),
        ("fdopen r+", |node| {
            // SAFETY: as above.
            unsafe { libc::fdopen(libc::open(node.as_ptr(), libc::O_RDWR), c"r+".as_ptr()) }.is_null()
        }),
    ];
    let guard = Guard::shared()?;
    let device = formatted(&guard, 64)?;
    let before = device.sha256()?;
    let node = CString::new(device.path().to_string_lossy().as_bytes())?;
    for (name, function) in FUNCTIONS {
        let child = in_child(|| {
            let refused = function(&node);
            let errno = std::io::Error::last_os_error();
            if refused { Err(errno) } else { Ok(()) }
        })?;
        let errno = child.wait()?.err().and_then(|error| error.raw_os_error());
        ensure!(errno == Some(libc::EPERM), "{name} gave errno {errno:?}");
    }
    // SAFETY: strings that end with a NUL.
    let reader = unsafe { libc::fopen(node.as_ptr(), c"r".as_ptr()) };
    ensure!(!reader.is_null(), "one that only reads was refused");
    // SAFETY: the stream that was opened above.
    unsafe { libc::fclose(reader) };
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}
