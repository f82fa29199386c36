//! What the guard costs for each system call, in guest instructions: without a program, with an LSM program
//! on the same hooks that does nothing, and guarded.
//!
//! `cargo xtask bench hook` runs it in a guest whose clock counts instructions (qemu's `-icount`); the
//! numbers mean nothing anywhere else.

use std::{
    arch::asm,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    ptr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use btf_rs::{Btf, Type};
use format_guard_common::clear::slots;
use format_guard_tests::{
    device::{Device, Image, Loop, make_many},
    guard::Guard,
    road::{in_child, pieces, ring_write, submit},
    tool::must,
};
use io_uring::IoUring;

/// Calls of one round, and rounds. The cheapest round counts, since an interrupt falls into some.
const CALLS: u32 = 500;
const ROUNDS: u32 = 25;
/// Where a guarded ext4 has no mark.
const BEYOND: u64 = 12 << 20;
/// Between two of eleven copies of a superblock, in a stretch that is not among the longest.
const BETWEEN: u64 = 6720 << 10;
/// Volumes on a host with many volumes.
const MANY: u32 = 2000;
/// Bytes of an XFS, and of each of its four allocation groups.
const XFS: u64 = 320 << 20;
const GROUP: u64 = XFS / 4;

/// What a call may cost more than with the program that does nothing.
#[derive(Clone, Copy)]
enum Goal {
    /// This many instructions more.
    Above(i64),
    /// This many percent more.
    Percent(i64),
}

impl Goal {
    /// Prints whether the goal is met.
    fn judge(self, name: &str, cost: i64, noop: i64) -> bool {
        let (value, most, unit) = match self {
            Self::Above(most) => (cost - noop, most, "above no-op"),
            Self::Percent(most) => (100 * cost / noop, most, "percent of no-op"),
        };
        let verdict = if value <= most { "met" } else { "NOT MET" };
        println!("goal {name}: {value} {unit}, at most {most}: {verdict}");
        value <= most
    }
}

/// Beyond the marks of a guarded device.
const BEYOND_GOAL: Goal = Goal::Percent(110);

fn main() -> Result<()> {
    let clock = Clock::calibrate()?;
    let xfs = Loop::new(XFS >> 20)?;
    must(&format!("mkfs.xfs -f -q -d agcount=4 {}", xfs.path().display()))?;
    let [guarded, exempt, strict] = [Loop::new(32)?, Loop::new(32)?, Loop::new(32)?];
    let image = Image::new(32)?;
    let colliding = Loop::at(&beside(guarded.path())?, image.path())?;
    for device in [&guarded, &exempt, &strict, &colliding] {
        must(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
    }
    // Copies in groups 1, 3, 5, 7, 9, 25, 27, 49, 81 and 125 of 256 KiB.
    let copies = Loop::new(32)?;
    must(&format!("mkfs.ext4 -F -q -b 1024 -g 256 {}", copies.path().display()))?;
    let devices = [&guarded, &exempt, &strict, &xfs, &colliding, &copies];
    let bench = Bench::new(devices.map(Device::path))?;
    let bare = bench.measure(&clock, &CASES)?;
    let noop = {
        let _programs = [NoOp::attach("file_open")?, NoOp::attach("file_permission")?];
        bench.measure(&clock, &CASES)?
    };
    let mut guard = Guard::start()?;
    for device in devices {
        guard.wait_for_state(device.path(), "formatted")?;
    }
    guard.json(&format!("volume exempt {} --reason bench", exempt.path().display()))?;
    guard.json(&format!("mode strict --volume {} --reason bench", strict.path().display()))?;
    let costs = bench.measure(&clock, &CASES)?;
    println!(
        "kernel {}: guest instructions per call",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    );
    println!("{:<52} {:>7} {:>7} {:>7} {:>7}", "call", "bare", "no-op", "guard", "above");
    let row = |name: &str, cost: i64, like: &str| {
        let (bare, noop) = (bare[like], noop[like]);
        println!("{name:<52} {bare:>7} {noop:>7} {cost:>7} {:>7}", cost - noop);
    };
    for case in &CASES {
        row(case.name, costs[case.name], case.name);
    }
    let mut met = true;
    let mut goals = Vec::new();
    for case in &CASES {
        goals.extend(case.goal.map(|goal| (case.name, goal, costs[case.name], noop[case.name])));
    }
    // What a call costs after an event that it must not feel: a refusal, a restart of the agent, more
    // devices.
    let beyond = CASES.iter().find(|case| case.name == PWRITE_BEYOND).context("no such case")?;
    let refuse = || bench.guarded.write_all_at(&[0; 1024], 1024);
    let refused = |result: io::Result<()>| {
        let errno = result.err().and_then(|error| error.raw_os_error());
        ensure!(errno == Some(libc::EPERM), "errno {errno:?} over the superblock");
        Ok(())
    };
    let again = || -> Result<i64> { Ok(bench.measure(&clock, std::slice::from_ref(beyond))?[beyond.name]) };
    refused(in_child(refuse)?.wait()?)?;
    let mut later = vec![("the same, after another process was refused", again()?)];
    refused(refuse())?;
    guard.json(&format!("volume untaint {} --reason bench", guarded.path().display()))?;
    later.push(("the same, refused and untainted", again()?));
    guard.stop_agent()?;
    guard.start_agent()?;
    later.push(("the same, after a restart of the agent", again()?));
    guard.stop_agent()?;
    make_many(0, MANY)?;
    guard.start_agent()?;
    ensure!(guard.json("status")?["devices"].as_u64() > Some(MANY.into()), "not all devices are there");
    later.push(("the same, beside 2,000 other devices", again()?));
    for (name, cost) in later {
        row(name, cost, beyond.name);
        goals.push((name, BEYOND_GOAL, cost, noop[beyond.name]));
    }
    for (name, goal, cost, noop) in goals {
        met &= goal.judge(name, cost, noop);
    }
    ensure!(met, "a goal is not met");
    Ok(())
}

/// A node of a loop device whose first slot in the table of clear stretches is taken already, by this device.
fn beside(node: &Path) -> Result<PathBuf> {
    let number = |dev: u64| libc::major(dev) << 20 | libc::minor(dev);
    let taken = number(std::os::unix::fs::MetadataExt::rdev(&fs::metadata(node)?));
    let loops = taken & !0xf_ffff;
    let minor =
        (64..1 << 20).find(|minor| slots(loops | minor)[0] == slots(taken)[0] && loops | minor != taken);
    Ok(PathBuf::from(format!("/dev/loop{}", minor.context("no such number")?)))
}

/// How long a million instructions take by the guest's clock.
struct Clock {
    million: Duration,
}

impl Clock {
    /// Measured by a loop of two instructions.
    fn calibrate() -> Result<Self> {
        const TURNS: u64 = 5_000_000;
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            // SAFETY: counts a register down; nothing else is touched.
            unsafe {
                asm!("2:", "dec {turns}", "jnz 2b", turns = inout(reg) TURNS => _, options(nomem, nostack));
            }
            best = best.min(start.elapsed());
        }
        let million = best / 10;
        ensure!(
            (Duration::from_micros(200)..Duration::from_millis(5)).contains(&million),
            "{million:?} for a million instructions: this clock does not count them"
        );
        Ok(Self { million })
    }

    /// Instructions of one call, the cheapest round of many.
    fn instructions(&self, call: impl Fn() -> io::Result<()>) -> Result<i64> {
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..CALLS {
                call()?;
            }
            best = best.min(start.elapsed());
        }
        let instructions = best.as_nanos() * 1_000_000 / self.million.as_nanos() / u128::from(CALLS);
        Ok(i64::try_from(instructions)?)
    }
}

/// What is called.
struct Bench {
    path: &'static Path,
    file: File,
    guarded: File,
    unguarded: File,
    strict: File,
    xfs: File,
    colliding: File,
    copies: File,
    /// What the superblock holds: written back as it is.
    superblock: Vec<u8>,
    /// The bytes around the superblock.
    start: Vec<u8>,
    data: Vec<u8>,
    aio: Aio,
    ring: RefCell<IoUring>,
    /// Calls until now.
    calls: Cell<u64>,
}

/// One row.
struct Case {
    name: &'static str,
    goal: Option<Goal>,
    call: fn(&Bench) -> io::Result<()>,
}

const PWRITE_BEYOND: &str = "pwrite of a guarded one beyond its marks";

const CASES: [Case; 16] = [
    Case {
        name: "pread of a file (tmpfs, 512 bytes)",
        goal: Some(Goal::Above(12)),
        call: |bench| bench.file.read_exact_at(&mut [0; 512], 0),
    },
    Case {
        name: "pwrite of a file (tmpfs, 512 bytes)",
        goal: Some(Goal::Above(30)),
        call: |bench| bench.file.write_all_at(&bench.data, 0),
    },
    Case {
        name: "aio of a file",
        goal: Some(Goal::Above(60)),
        call: |bench| bench.aio.write(&bench.file, &bench.data, 0),
    },
    Case {
        name: "pwrite of an unguarded device",
        goal: None,
        call: |bench| bench.unguarded.write_all_at(&bench.data, BEYOND),
    },
    Case {
        name: PWRITE_BEYOND,
        goal: Some(BEYOND_GOAL),
        call: |bench| bench.guarded.write_all_at(&bench.data, BEYOND),
    },
    Case { name: "pwritev of 4 pieces there", goal: Some(BEYOND_GOAL), call: |bench| bench.vectored(4) },
    Case { name: "pwritev of 64 pieces there", goal: None, call: |bench| bench.vectored(64) },
    Case {
        name: "aio there",
        goal: Some(Goal::Above(600)),
        call: |bench| bench.aio.write(&bench.guarded, &bench.data, BEYOND),
    },
    Case {
        name: "io_uring there",
        goal: Some(Goal::Above(600)),
        call: |bench| submit(&mut bench.ring.borrow_mut(), &ring_write(&bench.guarded, &bench.data, BEYOND)),
    },
    Case {
        name: "pwrite of one whose number collides with another's",
        goal: Some(BEYOND_GOAL),
        call: |bench| bench.colliding.write_all_at(&bench.data, BEYOND),
    },
    Case {
        name: "pwrite of an XFS in each of its allocation groups",
        goal: Some(BEYOND_GOAL),
        call: |bench| {
            let number = bench.calls.get();
            bench.calls.set(number + 1);
            bench.xfs.write_all_at(&bench.data, number % 4 * GROUP + BEYOND)
        },
    },
    Case {
        name: "pwrite between copies of a superblock",
        goal: None,
        call: |bench| bench.copies.write_all_at(&bench.data, BETWEEN),
    },
    Case {
        name: "pwrite of a strict one by a trusted program",
        goal: Some(Goal::Percent(130)),
        call: |bench| bench.strict.write_all_at(&bench.data, BEYOND),
    },
    Case {
        name: "pwrite of a superblock",
        goal: Some(Goal::Above(2500)),
        call: |bench| bench.guarded.write_all_at(&bench.superblock, 1024),
    },
    Case {
        name: "pwrite of 4096 bytes with a superblock in them",
        goal: None,
        call: |bench| bench.guarded.write_all_at(&bench.start, 0),
    },
    Case { name: "open and close of a file", goal: None, call: |bench| File::open(bench.path).map(drop) },
];

impl Bench {
    fn new([guarded, unguarded, strict, xfs, colliding, copies]: [&Path; 6]) -> Result<Self> {
        let path = Path::new("/run/fg-bench");
        fs::write(path, vec![0; 8192])?;
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let guarded = open(guarded)?;
        let mut start = vec![0; 4096];
        guarded.read_exact_at(&mut start, 0)?;
        // Opened before the guard starts: an open is judged by the name that the process has then.
        Ok(Self {
            path,
            file: open(path)?,
            guarded,
            unguarded: open(unguarded)?,
            strict: open(strict)?,
            xfs: open(xfs)?,
            colliding: open(colliding)?,
            copies: open(copies)?,
            superblock: start[1024..2048].to_vec(),
            start,
            data: vec![0; 512],
            aio: Aio::new()?,
            ring: RefCell::new(IoUring::new(4)?),
            calls: Cell::new(0),
        })
    }

    /// This many pieces, 512 bytes in all.
    fn vectored(&self, count: usize) -> io::Result<()> {
        let parts = pieces(&self.data, self.data.len() / count);
        let count = libc::c_int::try_from(parts.len()).map_err(io::Error::other)?;
        // SAFETY: iovecs over bytes that outlive the call.
        match unsafe { libc::pwritev(self.guarded.as_raw_fd(), parts.as_ptr(), count, BEYOND.cast_signed()) }
        {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn measure(&self, clock: &Clock, cases: &[Case]) -> Result<BTreeMap<&'static str, i64>> {
        let cost = |case: &Case| {
            // A thread may call itself by any name, such as one that the configuration trusts.
            let named = case.name.contains("trusted").then(Named::as_trusted).transpose()?;
            let cost = clock.instructions(|| (case.call)(self)).with_context(|| case.name.to_owned())?;
            drop(named);
            Ok((case.name, cost))
        };
        cases.iter().map(cost).collect()
    }
}

/// This thread under another name, until it is dropped.
struct Named(String);

impl Named {
    const COMM: &str = "/proc/thread-self/comm";

    fn as_trusted() -> io::Result<Self> {
        let before = fs::read_to_string(Self::COMM)?;
        fs::write(Self::COMM, "losetup")?;
        Ok(Self(before))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = fs::write(Self::COMM, self.0.trim());
    }
}

/// Linux aio, without its library: one write at a time.
struct Aio(libc::c_ulong);

impl Aio {
    fn new() -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes a number.
        match unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) } {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(Self(context)),
        }
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        // struct iocb, struct io_event: include/uapi/linux/aio_abi.h
        const IOCB_CMD_PWRITE: u64 = 1;
        let head = IOCB_CMD_PWRITE | u64::from(file.as_raw_fd().cast_unsigned()) << 32;
        let mut iocb = [0, 0, head, bytes.as_ptr() as u64, bytes.len() as u64, offset, 0, 0];
        let mut list = [iocb.as_mut_ptr()];
        let mut event = [0_u64; 4];
        // SAFETY: the structures that the system calls want, alive until the event has come.
        unsafe {
            if libc::syscall(libc::SYS_io_submit, self.0, 1, list.as_mut_ptr()) != 1 {
                return Err(io::Error::last_os_error());
            }
            let forever = ptr::null::<libc::timespec>();
            libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, event.as_mut_ptr(), forever);
        }
        match event[2].cast_signed() {
            failed @ ..0 => Err(io::Error::from_raw_os_error(-failed as i32)),
            _ => Ok(()),
        }
    }
}

/// An LSM program that returns 0 and does nothing else.
struct NoOp {
    _link: OwnedFd,
    _program: OwnedFd,
}

impl NoOp {
    fn attach(hook: &str) -> Result<Self> {
        // include/uapi/linux/bpf.h
        const BPF_PROG_LOAD: i32 = 5;
        const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
        const BPF_PROG_TYPE_LSM: u32 = 29;
        const BPF_LSM_MAC: u32 = 27;
        #[repr(C)]
        #[derive(Default)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            ifindex: u32,
            attach_type: u32,
            btf_fd: u32,
            func_info_size: u32,
            func_info: u64,
            func_count: u32,
            line_info_size: u32,
            line_info: u64,
            line_count: u32,
            attach_btf_id: u32,
        }
        #[repr(C)]
        struct Open {
            name: u64,
            program: u32,
            zero: u32,
        }
        // r0 = 0; exit
        let instructions: [u64; 2] = [0xb7, 0x95];
        let load = Load {
            kind: BPF_PROG_TYPE_LSM,
            count: 2,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            attach_type: BPF_LSM_MAC,
            attach_btf_id: btf_id(&format!("bpf_lsm_{hook}"))?,
            ..Load::default()
        };
        let program = bpf(BPF_PROG_LOAD, &load).context("cannot load a program that does nothing")?;
        let open = Open { name: 0, program: program.as_raw_fd().cast_unsigned(), zero: 0 };
        let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &open).context("cannot attach it")?;
        Ok(Self { _link: link, _program: program })
    }
}

fn bpf<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: attributes of this size, of a command that reads them and gives a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

/// The number of a kernel function in the kernel's types.
fn btf_id(function: &str) -> Result<u32> {
    let btf = Btf::from_file("/sys/kernel/btf/vmlinux")?;
    let ids = btf.resolve_ids_by_name(function)?;
    let id = ids.into_iter().find(|id| matches!(btf.resolve_type_by_id(*id), Ok(Type::Func(_))));
    id.with_context(|| format!("this kernel has no {function}"))
}
