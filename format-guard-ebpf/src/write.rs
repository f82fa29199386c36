//! `file_permission`: every road that writes to an opened block device. The hook carries neither position nor bytes:
//! they come from a stash, or from the system call's arguments.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_user,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    macros::lsm,
    programs::LsmContext,
};
use format_guard_common::{
    Operation, Request,
    event::{Stash, StashKind},
    opaque,
};

use crate::{
    gate,
    kernel::{FILE_F_POS, TASK_FLAGS, TASK_THREAD_STATUS, block_device, field},
    maps::STASHES,
    passthrough,
    user_content::{MAX_IOVECS, Source, UserContent, total, total_of_many},
};

const MAY_WRITE: i32 = 2;
// include/linux/sched.h
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x0020_0000;
// arch/x86/include/asm/thread_info.h
const TS_COMPAT: u32 = 2;

// arch/x86/entry/syscalls/syscall_64.tbl
const SYS_WRITE: u64 = 1;
const SYS_PWRITE64: u64 = 18;
const SYS_WRITEV: u64 = 20;
const SYS_SENDFILE: u64 = 40;
const SYS_SPLICE: u64 = 275;
const SYS_FALLOCATE: u64 = 285;
const SYS_PWRITEV: u64 = 296;
const SYS_PWRITEV2: u64 = 328;

// struct pt_regs, arch/x86/include/asm/ptrace.h: 64-bit user space, the same in all kernels that have BPF LSM.
const REGS_R10: usize = 56;
const REGS_R8: usize = 72;
const REGS_AX: usize = 80;
const REGS_DX: usize = 96;
const REGS_SI: usize = 104;
const REGS_ORIG_AX: usize = 120;

/// What `ax` holds from the entry of a system call to its end (`arch/x86/entry/entry_64.S`): the arguments count no longer than
/// that. At its end `io_uring` may go on with a linked write, as task work.
const RUNNING: u64 = (-38_i64).cast_unsigned();

/// A length that covers whatever lies behind the position.
const UNBOUNDED: u64 = u32::MAX as u64;

/// One write, as far as it is known.
struct Write {
    operation: Operation,
    offset: u64,
    /// Bytes, or iovecs for [`Source::Vector`].
    count: u64,
    address: u64,
    source: Source,
}

impl Write {
    const UNPLACED: Self =
        Self { operation: Operation::Unplaced, offset: 0, count: 0, address: 0, source: Source::Unknown };

    #[inline(always)]
    fn at(offset: u64, count: u64, address: u64, source: Source) -> Self {
        Self { operation: Operation::Write, offset, count, address, source }
    }

    #[inline(always)]
    fn stashed(stash: &Stash, f_pos: u64) -> Self {
        let offset = if stash.position == -1 { f_pos } else { stash.position.cast_unsigned() };
        if stash.kind == StashKind::Bytes as u64 {
            Self::at(offset, stash.count, stash.address, Source::Bytes)
        } else if stash.kind == StashKind::Vector as u64 {
            Self::at(offset, stash.count, stash.address, Source::Vector)
        } else {
            Self::at(offset, UNBOUNDED, 0, Source::Unknown)
        }
    }
}

/// The write that the running system call makes; `None` for the kernel's own threads.
#[inline(always)]
fn from_system_call(f_pos: u64) -> Option<Write> {
    // SAFETY: BTF pointers of the running task; pt_regs lies on its stack.
    unsafe {
        let task = bpf_get_current_task_btf();
        let flags: u32 = field(task as *const u8, &TASK_FLAGS);
        if flags & PF_KTHREAD != 0 {
            return None;
        }
        let status: u32 = field(task as *const u8, &TASK_THREAD_STATUS);
        if flags & PF_IO_WORKER != 0 || status & TS_COMPAT != 0 {
            return Some(Write::UNPLACED);
        }
        let regs = bpf_task_pt_regs(task) as *const u64;
        let register = |offset: usize| regs.add(offset / size_of::<u64>()).read_volatile();
        let (r10, r8) = (register(REGS_R10), register(REGS_R8));
        let (dx, si) = (register(REGS_DX), register(REGS_SI));
        if register(REGS_AX) != RUNNING {
            return Some(Write::UNPLACED);
        }
        let number = register(REGS_ORIG_AX) & 0xffff_ffff;
        Some(match number {
            SYS_WRITE => Write::at(f_pos, dx, si, Source::Bytes),
            SYS_PWRITE64 => Write::at(r10, dx, si, Source::Bytes),
            SYS_WRITEV => Write::at(f_pos, dx, si, Source::Vector),
            SYS_PWRITEV => Write::at(r10, dx, si, Source::Vector),
            SYS_PWRITEV2 => {
                let offset = if r10 == u64::MAX { f_pos } else { r10 };
                Write::at(offset, dx, si, Source::Vector)
            }
            SYS_FALLOCATE => Write { operation: Operation::Erase, ..Write::at(dx, r10, 0, Source::Unknown) },
            SYS_SENDFILE => Write::at(f_pos, r10, 0, Source::Unknown),
            SYS_SPLICE => {
                // The position of an offset pointer that cannot be read is the start: a mark is always there.
                let offset =
                    if r10 == 0 { f_pos } else { bpf_probe_read_user(r10 as *const u64).unwrap_or(0) };
                Write::at(offset, r8, 0, Source::Unknown)
            }
            _ => Write::UNPLACED,
        })
    }
}

/// The short way for what a volume in use is written most by: write and pwrite of the task itself. Everything else goes
/// the long way.
#[inline(always)]
fn passes(file: *const u8, dev: u32) -> bool {
    // SAFETY: BTF pointers of the running task; pt_regs lies on its stack.
    let (running, number, offset, length) = unsafe {
        let task = bpf_get_current_task_btf();
        let flags: u32 = field(task as *const u8, &TASK_FLAGS);
        let status: u32 = field(task as *const u8, &TASK_THREAD_STATUS);
        if flags & (PF_KTHREAD | PF_IO_WORKER) != 0 || status & TS_COMPAT != 0 {
            return false;
        }
        let regs = bpf_task_pt_regs(task) as *const u64;
        let register = |offset: usize| regs.add(offset / size_of::<u64>()).read_volatile();
        let number = register(REGS_ORIG_AX) & 0xffff_ffff;
        (register(REGS_AX), number, register(REGS_R10), register(REGS_DX))
    };
    if running != RUNNING {
        return false;
    }
    let offset = match number {
        SYS_PWRITE64 => offset,
        // SAFETY: a program argument.
        SYS_WRITE => unsafe { field(file, &FILE_F_POS) },
        _ => return false,
    };
    gate::passes(dev, offset, length)
}

#[lsm(hook = "file_permission")]
pub(crate) fn file_permission(ctx: LsmContext) -> i32 {
    let mask: i32 = ctx.arg(1);
    if mask & MAY_WRITE == 0 {
        return 0;
    }
    let file: *const u8 = ctx.arg(0);
    let dev = block_device(file);
    if dev == 0 {
        return passthrough::by_write(&ctx);
    }
    to_device(ctx.as_ptr(), dev)
}

/// What no other file pays for: a function of its own, so that the program above saves no registers.
#[inline(never)]
fn to_device(ctx: *mut core::ffi::c_void, dev: u32) -> i32 {
    let ctx = LsmContext::new(ctx);
    let file: *const u8 = ctx.arg(0);
    if passes(file, dev) {
        return 0;
    }
    let Some(target) = gate::opened(file, dev) else { return 0 };
    // SAFETY: a program argument.
    let f_pos: u64 = unsafe { field(file, &FILE_F_POS) };
    // A system call that says where it writes is believed, and no note: one that was left behind, as the program that takes it
    // away was skipped, would decide a later write.
    let Some(mut write) = from_system_call(f_pos) else { return 0 };
    if matches!(write.operation, Operation::Unplaced) {
        // SAFETY: written by this very thread, a moment ago.
        if let Some(stash) = unsafe { STASHES.get(bpf_get_current_pid_tgid()) }
            && stash.file == file as u64
        {
            write = Write::stashed(stash, f_pos);
        }
    }
    judge(target, write)
}

#[inline(always)]
fn judge(target: gate::Target<'_>, write: Write) -> i32 {
    let unknown = target.rule.diskseq;
    let (mut count, mut source, mut iovecs) = (write.count, write.source, 0);
    if matches!(source, Source::Vector) {
        if count > MAX_IOVECS {
            (count, source) = (total_of_many(write.address, count), Source::Unknown);
        } else {
            iovecs = count;
            count = total(write.address, iovecs);
        }
    }
    if matches!(write.operation, Operation::Write) && gate::passes(target.dev, write.offset, count) {
        return 0;
    }
    // All roads above meet here; without this the verifier follows each of them through every check.
    let content = UserContent::new(source, write.address, iovecs, unknown);
    let operation = match opaque(write.operation as u64, unknown) {
        2 => Operation::Write,
        4 => Operation::Erase,
        _ => Operation::Unplaced,
    };
    let request =
        Request { operation, offset: opaque(write.offset, unknown), length: opaque(count, unknown) };
    let (target, request) = gate::placed(target, request);
    gate::judge(&target, request, &content)
}
