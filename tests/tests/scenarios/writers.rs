//! The shape of a write changes no verdict: any number of pieces, batches and chains, by every system call
//! that takes them.

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
    guard::{Guard, tier},
    road::{
        Aim, AioWrite, documented, errno_of, in_child, is_absent, pieces, ring_write, submit, write_by_aio,
        write_pieces_by_ring,
    },
    tool::must,
    wait_for,
};
use io_uring::{IoUring, squeue};

use crate::make_ext4;

/// Far from every mark, on a volume with marks behind this place.
const BEYOND: u64 = 3 << 20;
const COUNTS: [usize; 6] = [1, 4, 5, 64, 256, 1024];

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
            // The superblock and its surroundings, unchanged.
            write(&file, &start, start.len() / count, 0).with_context(case)?;
        }
    }
    file.sync_all()?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    let before = device.sha256()?;
    for (name, write) in WRITERS {
        for count in COUNTS {
            // Only the magic's second byte differs; with pieces of 1081 bytes the first byte ends a piece.
            let mut changed = start.clone();
            changed[1081] ^= 1;
            let piece = if count == 5 { 1081 } else { changed.len() / count - usize::from(count > 1) };
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

/// Writes zeros at the file's position by the system call entry of 32-bit programs, whose registers mean
/// something else.
fn write_as_32_bit(file: &File) -> io::Result<()> {
    const SYS_WRITE: u32 = 4;
    // SAFETY: a new page, which nobody else has.
    let page = unsafe {
        let (access, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), 4096, access, how | libc::MAP_32BIT, -1, 0)
    };
    let mut answer = u64::from(SYS_WRITE);
    // SAFETY: a system call that reads 4096 bytes of that page; rbx, which is not to be named here, is put
    // back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {file}", "int 0x80", "xchg rbx, {file}",
            file = inout(reg) u64::from(file.as_raw_fd().cast_unsigned()) => _,
            inout("rax") answer, in("rcx") page, in("rdx") 4096_u64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    match answer as i32 {
        failed @ ..0 => Err(io::Error::from_raw_os_error(-failed)),
        _ => Ok(()),
    }
}

/// The programs cannot place every write, and the agent reports how many they could not place.
#[test]
fn a_write_without_a_place_is_counted() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let count = || guard.json("status")?["unplaced"].as_u64().context("no count");
    let before = count()?;
    let refused = in_child(|| {
        let mut file = writer(device.path())?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(BEYOND))?;
        write_as_32_bit(&file)
    })?;
    let errno = refused.wait()?.err().and_then(|error| error.raw_os_error());
    ensure!(errno == Some(libc::EPERM), "errno {errno:?}");
    ensure!(count()? > before, "it is not counted");
    wait_for("the refusal to be told", || {
        let denied = guard.events("denied")?;
        Ok(denied.iter().any(|event| event["refusal"]["reason"] == "unplaced").then_some(()))
    })
    .with_context(|| format!("{:#?}", guard.events("denied")))?;
    let said = guard.say("status")?;
    ensure!(said.text.contains("writes without a place"), "{said:?}");
    Ok(())
}

/// On the first CPU alone, as all other writers.
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

/// A plain write is judged by its own system call, whatever an earlier one by aio or `io_uring` has left
/// behind: on a preemptible kernel with other writers on the same CPU, the kernel skips the program that
/// would remove it.
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
        // First beyond the marks, then over them, on one descriptor.
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

/// One of many writers: it repeats one write.
type Busy = fn(&File, Instant) -> io::Result<u32>;

fn busy_by_aio(file: &File, end: Instant) -> io::Result<u32> {
    repeat(end, || write_by_aio(file, &[AioWrite { bytes: &[0; 4096], piece: 0, offset: BEYOND }; 3]))
}

fn busy_by_ring(file: &File, end: Instant) -> io::Result<u32> {
    let mut ring = IoUring::new(4)?;
    repeat(end, || submit(&mut ring, &ring_write(file, &[0; 4096], BEYOND)))
}

fn busy_by_worker(file: &File, end: Instant) -> io::Result<u32> {
    let mut ring = IoUring::new(4)?;
    let entry = ring_write(file, &[0; 4096], BEYOND).flags(squeue::Flags::ASYNC);
    repeat(end, || submit(&mut ring, &entry))
}

fn busy_by_polling(file: &File, end: Instant) -> io::Result<u32> {
    let mut ring = IoUring::builder().setup_sqpoll(100).build(4)?;
    repeat(end, || submit(&mut ring, &ring_write(file, &[0; 4096], BEYOND)))
}

fn busy_by_chain(file: &File, end: Instant) -> io::Result<u32> {
    let mut ring = IoUring::new(4)?;
    repeat(end, || chain(&mut ring, file, [BEYOND, BEYOND + 8192], || Ok(())))
}

fn repeat(end: Instant, mut write: impl FnMut() -> io::Result<()>) -> io::Result<u32> {
    let mut count = 0;
    while Instant::now() < end {
        write()?;
        count += 1;
    }
    Ok(count)
}

const BUSY: [(&str, Busy); 5] = [
    ("aio", busy_by_aio),
    ("io_uring", busy_by_ring),
    ("an io_uring worker", busy_by_worker),
    ("the thread that polls a ring", busy_by_polling),
    ("a chain of io_uring", busy_by_chain),
];

/// Writes zeros to these places as a chain, and does `meanwhile` until both writes are done.
fn chain(
    ring: &mut IoUring,
    file: &File,
    places: [u64; 2],
    meanwhile: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let [first, last] = places.map(|place| ring_write(file, &ZEROS, place));
    // SAFETY: the bytes outlive every wait.
    unsafe { ring.submission().push_multiple(&[first.flags(squeue::Flags::IO_LINK), last]) }
        .map_err(io::Error::other)?;
    ring.submit()?;
    let mut done = 0;
    let mut result = Ok(());
    while done < 2 {
        meanwhile()?;
        for entry in ring.completion() {
            done += 1;
            if entry.result() < 0 && result.is_ok() {
                result = Err(io::Error::from_raw_os_error(-entry.result()));
            }
        }
        if done < 2 {
            ring.submit_and_wait(1)?;
        }
    }
    result
}

/// Updates a map of its own by system call, without pause: meanwhile the kernel skips programs that stand at
/// its functions.
fn busy_with_maps(end: Instant) -> io::Result<()> {
    const BPF_MAP_CREATE: libc::c_long = 0;
    const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
    const BPF_MAP_TYPE_HASH: u32 = 1;
    let call = |command: libc::c_long, attributes: *const u8, length: usize| {
        // SAFETY: attributes of this length, of a command that reads them.
        match unsafe { libc::syscall(libc::SYS_bpf, command, attributes, length) } {
            ..0 => Err(io::Error::last_os_error()),
            result => Ok(result),
        }
    };
    let create: [u32; 4] = [BPF_MAP_TYPE_HASH, 4, 4096, 1024];
    let map = call(BPF_MAP_CREATE, create.as_ptr().cast(), size_of_val(&create))?.cast_unsigned();
    let value = [0_u8; 4096];
    let mut key = 0_u32;
    while Instant::now() < end {
        key = (key + 1) % 1024;
        let update: [u64; 4] = [map, std::ptr::from_ref(&key) as u64, value.as_ptr() as u64, 0];
        call(BPF_MAP_UPDATE_ELEM, update.as_ptr().cast(), size_of_val(&update))?;
    }
    Ok(())
}

/// On a preemptible kernel, a skipped program would leave a write without a place.
#[test]
fn writers_on_one_cpu_are_not_refused_beyond_the_marks() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let end = Instant::now() + Duration::from_secs(40);
    let maps: Vec<_> = (0..2)
        .map(|_| {
            in_child(|| {
                pinned()?;
                busy_with_maps(end)
            })
        })
        .collect::<Result<_>>()?;
    let counts = tempfile::tempdir()?;
    let writers: Vec<_> = BUSY
        .iter()
        .chain(&BUSY)
        .enumerate()
        .map(|(number, (name, busy))| {
            let writer = in_child(|| {
                pinned()?;
                let count = busy(&writer(device.path())?, end)?;
                std::fs::write(counts.path().join(number.to_string()), count.to_string())
            });
            Ok((name, number, writer?))
        })
        .collect::<Result<_>>()?;
    for (name, number, writer) in writers {
        writer.wait()?.with_context(|| format!("{name}: {:#?}", guard.events("denied")))?;
        println!("{name}: {} times", std::fs::read_to_string(counts.path().join(number.to_string()))?);
    }
    for child in maps {
        child.wait()??;
    }
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    Ok(())
}

/// Each road in turn, beside two writers who keep the CPU busy with writes to another volume: nothing that
/// belongs to their writes may decide this one. `FORMAT_GUARD_WRITERS_SECONDS` is how long each road is
/// tried; by default it is tried three times.
#[test]
fn no_road_reaches_a_mark_beside_busy_writers() -> Result<()> {
    let guard = Guard::shared()?;
    let devices = [Loop::new(64)?, Loop::new(64)?];
    for device in &devices {
        make_ext4(&guard, device.path())?;
    }
    let [victim, noise] = devices.each_ref();
    let before = victim.sha256()?;
    let aim = Aim { path: victim.path(), offset: 1080, length: 2 };
    let seconds = std::env::var("FORMAT_GUARD_WRITERS_SECONDS").ok().map(|text| text.parse()).transpose()?;
    let mut tries = 0;
    for (name, road, _) in documented(&tier())?.into_iter().filter(|(_, _, refused)| *refused) {
        let pause = seconds.map(Duration::from_secs);
        let (end, mut left) = (pause.map(|pause| Instant::now() + pause), 3);
        let busy_until = Instant::now() + pause.unwrap_or_default() + Duration::from_secs(2);
        let busy: Vec<_> = [busy_by_aio as Busy, busy_by_ring]
            .into_iter()
            .map(|busy| {
                in_child(|| {
                    pinned()?;
                    busy(&writer(noise.path())?, busy_until).map(drop)
                })
            })
            .collect::<Result<_>>()?;
        while end.map_or(left > 0, |end| Instant::now() < end) {
            let errno = errno_of(|aim| pinned().and_then(|()| road(aim)), &aim)?;
            let refused = errno == Some(libc::EPERM) || is_absent(name, errno);
            ensure!(refused, "{name} gave errno {errno:?} at try {tries}");
            (left, tries) = (left - 1, tries + 1);
        }
        for each in busy {
            each.wait()?.with_context(|| format!("beside {name}: {:#?}", guard.events("denied")))?;
        }
    }
    println!("{tries} tries");
    ensure!(victim.sha256()? == before, "bytes changed");
    Ok(())
}

/// The other scenarios prove a mode of preemption only if the kernel runs in that mode: a kernel that is
/// built without the choice ignores `preempt=`.
#[test]
fn the_kernel_preempts_as_it_was_booted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    must(&format!("mount -t debugfs none {}", directory.path().display()))?;
    let modes = std::fs::read_to_string(directory.path().join("sched/preempt"));
    must(&format!("umount {}", directory.path().display()))?;
    let modes = modes?;
    println!("{modes}");
    let asked = std::env::var("FORMAT_GUARD_PREEMPT").unwrap_or_default();
    ensure!(modes.contains(&format!("({asked}")), "{asked} was asked for, and it is {modes}");
    Ok(())
}

/// The second write of a chain runs as task work at the end of any system call, whose arguments are another
/// write's.
#[test]
fn a_linked_write_is_judged_by_its_own_place() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let mut first = vec![0; 4096];
    writer(device.path())?.write_all_at(&first, BEYOND)?;
    writer(device.path())?.write_all_at(&first, BEYOND + 8192)?;
    writer(device.path())?.read_exact_at(&mut first, 0)?;
    let before = device.sha256()?;
    let end = Instant::now() + Duration::from_secs(10);
    let mut tried = 0;
    while Instant::now() < end {
        let refused = in_child(|| {
            pinned()?;
            let file = writer(device.path())?;
            let mut ring = IoUring::new(8)?;
            let meanwhile = || file.write_all_at(&[0; 4096], BEYOND);
            for _ in 0..5 {
                chain(&mut ring, &file, [BEYOND, BEYOND + 8192], meanwhile)?;
            }
            // The process is cut off once the second is refused.
            let over = chain(&mut ring, &file, [BEYOND, 0], || meanwhile().or(Ok(())));
            over.and(Err(io::ErrorKind::Unsupported.into()))
        })?;
        let errno = refused.wait()?.err().and_then(|error| error.raw_os_error());
        ensure!(errno == Some(libc::EPERM), "errno {errno:?} after {tried} tries");
        tried += 1;
    }
    println!("{tried} tries");
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}
