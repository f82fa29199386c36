//! No write is refused for its shape, and none is let through for it: pieces of any number, batches, chains, by every road that
//! takes them.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    device::{Device, Loop},
    guard::Guard,
    road::{AioWrite, in_child, pieces, write_by_aio, write_pieces_by_ring},
};

use crate::make_ext4;

/// Far from every mark, of a volume with marks behind it.
const BEYOND: u64 = 3 << 20;
const COUNTS: [usize; 6] = [1, 4, 5, 64, 256, 1024];
/// Pieces that are looked into where a mark lies under them.
const LOOKED_INTO: usize = 4;

type Writer = fn(&File, &[u8], usize, u64) -> io::Result<()>;

fn vectored(file: &File, bytes: &[u8], piece: usize, offset: u64) -> io::Result<()> {
    let parts = pieces(bytes, piece);
    let count = libc::c_int::try_from(parts.len()).map_err(io::Error::other)?;
    // SAFETY: iovecs over bytes that outlive the call.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr(), count, offset.cast_signed()) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const WRITERS: [(&str, Writer); 4] = [
    ("pwritev", vectored),
    ("aio", |file, bytes, piece, offset| write_by_aio(file, &[AioWrite { bytes, piece, offset }])),
    ("io_uring", |file, bytes, piece, offset| {
        write_pieces_by_ring(file, &pieces(bytes, piece), offset, false)
    }),
    ("an io_uring worker", |file, bytes, piece, offset| {
        write_pieces_by_ring(file, &pieces(bytes, piece), offset, true)
    }),
];

fn writer(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

#[test]
fn a_write_of_many_pieces_is_judged_by_its_bytes() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let file = writer(device.path())?;
    let mut start = vec![0; 1 << 16];
    file.read_exact_at(&mut start, 0)?;
    for (name, write) in WRITERS {
        for count in COUNTS {
            let case = || format!("{count} pieces by {name}: {:#?}", guard.events("denied"));
            write(&file, &vec![0x5a; 512 * count], 512, BEYOND).with_context(case)?;
            // The superblock, and what lies around it, as it is.
            if count <= LOOKED_INTO {
                write(&file, &start, start.len() / count, 0).with_context(case)?;
            }
        }
    }
    file.sync_all()?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    let before = device.sha256()?;
    for (name, write) in WRITERS {
        for count in COUNTS {
            // The magic's second byte alone is another one.
            let mut changed = start.clone();
            changed[1081] ^= 1;
            let piece = changed.len() / count - usize::from(count > 1);
            let length = (piece * count).min(changed.len());
            let refused =
                in_child(|| write(&writer(device.path())?, &changed[..length], piece, 0))?.wait()?;
            let errno = refused.err().and_then(|error| error.raw_os_error());
            ensure!(errno == Some(libc::EPERM), "{count} pieces by {name} over the magic: errno {errno:?}");
        }
    }
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn a_batch_with_one_write_over_a_mark_passes_if_the_mark_stays() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let file = writer(device.path())?;
    let mut start = vec![0; 4096];
    file.read_exact_at(&mut start, 0)?;
    let mut writes = vec![AioWrite { bytes: &[0x5a; 4096], piece: 0, offset: BEYOND }; 300];
    writes[7] = AioWrite { bytes: &start, piece: 0, offset: 0 };
    writes[150] = AioWrite { bytes: &start, piece: 2048, offset: 0 };
    write_by_aio(&file, &writes).with_context(|| format!("{:#?}", guard.events("denied")))?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    Ok(())
}

/// On the first CPU alone, as all the others.
fn pinned() -> io::Result<()> {
    // SAFETY: a set of CPUs is integers alone, of which zero is a value.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        set
    };
    // SAFETY: a set of this size.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A plain write is judged by its own system call, whatever an earlier one by aio or `io_uring` has left behind: the kernel skips
/// the program that takes it away where it is preemptible and others write on the same CPU.
#[test]
fn what_an_earlier_write_left_behind_lets_no_superblock_go() -> Result<()> {
    let guard = Guard::shared()?;
    let devices = [Loop::new(64)?, Loop::new(64)?];
    for device in &devices {
        make_ext4(&guard, device.path())?;
    }
    let [victim, noise] = devices.each_ref();
    let same = AioWrite { bytes: &[0; 4096], piece: 0, offset: BEYOND };
    write_by_aio(&writer(victim.path())?, &[same])?;
    let before = victim.sha256()?;
    let end = Instant::now() + Duration::from_secs(30);
    let busy: Vec<_> = (0..3)
        .map(|_| {
            in_child(|| {
                pinned()?;
                let file = writer(noise.path())?;
                while Instant::now() < end && write_by_aio(&file, &[same]).is_ok() {}
                Ok(())
            })
        })
        .collect::<Result<_>>()?;
    let mut tried = 0;
    while Instant::now() < end {
        // On one descriptor first beyond the marks, then over them.
        let refused = in_child(|| {
            pinned()?;
            let file = writer(victim.path())?;
            (0..8).try_for_each(|_| write_by_aio(&file, &[same]))?;
            file.write_all_at(&[0; 4096], 0)
        })?;
        let errno = refused.wait()?.err().and_then(|error| error.raw_os_error());
        ensure!(errno == Some(libc::EPERM), "errno {errno:?} after {tried} tries");
        tried += 1;
    }
    for each in busy {
        each.wait()??;
    }
    println!("{tried} tries");
    ensure!(victim.sha256()? == before, "bytes changed");
    Ok(())
}
