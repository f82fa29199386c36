//! What the guard costs per system call, in guest instructions: bare, with an LSM program that does nothing on the
//! same hooks, and guarded.
//!
//! `cargo xtask bench hook` runs it in a guest whose clock counts instructions (qemu's `-icount`): a number means
//! nothing anywhere else.

use std::{
    arch::asm,
    fs::{self, File, OpenOptions},
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use btf_rs::{Btf, Type};
use format_guard_tests::{
    device::{Device, Loop},
    guard::Guard,
    tool::must,
};

/// Calls of one round, and rounds of which the cheapest counts: an interrupt falls into some.
const CALLS: u32 = 500;
const ROUNDS: u32 = 25;
/// Where the guarded volume has no mark.
const BEYOND: u64 = 12 << 20;

/// Above the program that does nothing, in instructions.
const PREAD_GOAL: i64 = 12;
const PWRITE_GOAL: i64 = 30;
/// Against it, on a guarded device beyond its marks, in percent.
const BEYOND_GOAL: i64 = 110;

fn main() -> Result<()> {
    let clock = Clock::calibrate()?;
    let devices = [Loop::new(32)?, Loop::new(32)?];
    for device in &devices {
        must(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
    }
    let bench = Bench::new(devices.each_ref().map(Device::path))?;
    let bare = bench.measure(&clock)?;
    let noop = {
        let _programs = [NoOp::attach("file_open")?, NoOp::attach("file_permission")?];
        bench.measure(&clock)?
    };
    let guard = Guard::start()?;
    for device in &devices {
        guard.wait_for_state(device.path(), "formatted")?;
    }
    guard.json(&format!("volume exempt {} --reason bench", devices[1].path().display()))?;
    let guarded = bench.measure(&clock)?;
    println!(
        "kernel {}: guest instructions per call",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    );
    println!("{:<42} {:>7} {:>7} {:>7} {:>7}", "call", "bare", "no-op", "guard", "above");
    for (i, (name, _)) in CASES.iter().enumerate() {
        println!("{name:<42} {:>7} {:>7} {:>7} {:>7}", bare[i], noop[i], guarded[i], guarded[i] - noop[i]);
    }
    let ratio = 100 * guarded[3] / noop[3];
    let goals = [
        ("pread of a file", guarded[0] - noop[0], PREAD_GOAL, "above no-op"),
        ("pwrite of a file", guarded[1] - noop[1], PWRITE_GOAL, "above no-op"),
        ("pwrite beyond the marks", ratio, BEYOND_GOAL, "percent of no-op"),
    ];
    let mut met = true;
    for (name, value, goal, unit) in goals {
        let verdict = if value <= goal { "met" } else { "NOT MET" };
        met &= value <= goal;
        println!("goal {name}: {value} {unit}, at most {goal}: {verdict}");
    }
    ensure!(met, "a goal is not met");
    Ok(())
}

/// How long a million instructions take by the guest's clock.
struct Clock {
    million: Duration,
}

impl Clock {
    /// By a loop of two instructions.
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
    /// What the superblock holds: written back as it is.
    superblock: Vec<u8>,
    data: Vec<u8>,
}

type Case = fn(&Bench) -> io::Result<()>;

const CASES: [(&str, Case); 6] = [
    ("pread of a file (tmpfs, 512 bytes)", |bench| bench.file.read_exact_at(&mut [0; 512], 0)),
    ("pwrite of a file (tmpfs, 512 bytes)", |bench| bench.file.write_all_at(&bench.data, 0)),
    ("pwrite of an unguarded device", |bench| bench.unguarded.write_all_at(&bench.data, BEYOND)),
    ("pwrite of a guarded one beyond its marks", |bench| bench.guarded.write_all_at(&bench.data, BEYOND)),
    ("pwrite of its superblock", |bench| bench.guarded.write_all_at(&bench.superblock, 1024)),
    ("open and close of a file", |bench| File::open(bench.path).map(drop)),
];

impl Bench {
    fn new(devices: [&Path; 2]) -> Result<Self> {
        let path = Path::new("/run/fg-bench");
        fs::write(path, vec![0; 8192])?;
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let guarded = open(devices[0])?;
        let mut superblock = vec![0; 1024];
        guarded.read_exact_at(&mut superblock, 1024)?;
        Ok(Self {
            path,
            file: open(path)?,
            guarded,
            unguarded: open(devices[1])?,
            superblock,
            data: vec![0; 512],
        })
    }

    fn measure(&self, clock: &Clock) -> Result<[i64; CASES.len()]> {
        let mut results = [0; CASES.len()];
        for (result, (name, case)) in results.iter_mut().zip(CASES) {
            *result = clock.instructions(|| case(self)).with_context(|| name.to_owned())?;
        }
        Ok(results)
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
