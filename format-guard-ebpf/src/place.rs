//! Where a write goes. The kernel passes `file_permission` neither place nor bytes. They are found in what
//! belongs to this very call and to no other: the arguments of the running system call, the entry that the
//! call has taken from a ring, or the request that a worker carries out.
//!
//! No program may note a place for a later one: the kernel can skip the program that would replace the note,
//! and an old note would then decide another write.

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{
        bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user, bpf_task_pt_regs,
    },
};
pub(crate) use format_guard_common::form as what;
use format_guard_common::opaque;

use crate::{
    kernel::{
        FILE_F_POS, IO_KIOCB_OPCODE, IO_KIOCB_WORK, IO_RW_ADDR, IO_RW_LEN, IO_TASK_LAST, IO_WORKER_CUR_WORK,
        KIOCB_KI_FILP, KIOCB_KI_POS, MM_TASK_SIZE, RING_FLAGS, RING_HEAD, RING_LOCK_OWNER,
        RING_QUEUE_ENTRIES, RING_QUEUE_HEAD, RING_QUEUE_INDEX, RING_QUEUE_SQES, RING_RINGS, TASK_FLAGS,
        TASK_IO_URING, TASK_MM, TASK_THREAD_STATUS, TASK_WORKER_PRIVATE, field, probed,
    },
    stacking,
};

// include/linux/sched.h
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x0020_0000;
// arch/x86/include/asm/thread_info.h
const TS_COMPAT: u32 = 2;

// arch/x86/entry/syscalls/syscall_64.tbl
const SYS_WRITE: u64 = 1;
const SYS_IOCTL: u64 = 16;
const SYS_PWRITE64: u64 = 18;
const SYS_WRITEV: u64 = 20;
const SYS_SENDFILE: u64 = 40;
const SYS_IO_SUBMIT: u64 = 209;
const SYS_SPLICE: u64 = 275;
const SYS_FALLOCATE: u64 = 285;
const SYS_PWRITEV: u64 = 296;
const SYS_PWRITEV2: u64 = 328;
/// 32-bit callers use the same number.
const SYS_IO_URING_ENTER: u64 = 426;
// arch/x86/entry/syscalls/syscall_32.tbl
const SYS_IOCTL_COMPAT: u64 = 54;

// struct pt_regs, arch/x86/include/asm/ptrace.h: 64-bit user space, the same in all kernels that have BPF
// LSM.
const REGS_R10: usize = 56;
const REGS_R8: usize = 72;
const REGS_AX: usize = 80;
const REGS_CX: usize = 88;
const REGS_DX: usize = 96;
const REGS_SI: usize = 104;
const REGS_ORIG_AX: usize = 120;

/// What `ax` holds from the entry of a system call to its end (`arch/x86/entry/entry_64.S`). The arguments
/// count only as long: at the end of a system call `io_uring` may go on with a linked write, as task work.
const RUNNING: u64 = (-38_i64).cast_unsigned();

/// A length that covers everything behind the position.
const UNBOUNDED: u64 = u32::MAX as u64;

// include/uapi/linux/io_uring.h
const IORING_OP_WRITEV: u8 = 2;
const IORING_OP_WRITE_FIXED: u8 = 5;
const IORING_OP_WRITE: u8 = 23;
const IORING_OP_WRITEV_FIXED: u8 = 61;
/// `IOSQE_IO_LINK`, `IOSQE_IO_HARDLINK`.
const LINKS: u64 = 1 << 2 | 1 << 3;
const IORING_SETUP_SQE128: u32 = 1 << 10;
const IORING_SETUP_NO_SQARRAY: u32 = 1 << 16;
/// `IORING_SETUP_SQPOLL`, and all flags from `IORING_SETUP_SQE_MIXED` on: they change, or may change, how
/// entries are taken from the queue.
const TAKEN_OTHERWISE: u32 = 1 << 1 | !((1 << 19) - 1);

// include/uapi/linux/aio_abi.h
const IOCB_CMD_PWRITE: u64 = 1;
const IOCB_CMD_PWRITEV: u64 = 8;
/// The part of a `struct iocb` that is read begins here: command and descriptor, address, length, position.
const IOCB_COMMAND: u64 = 16;

/// Command and argument of the ioctl that the running task makes; zeros if it makes none.
#[inline(always)]
pub(crate) fn ioctl() -> (u32, u64) {
    // SAFETY: BTF pointers of the running task; pt_regs lies on its stack.
    unsafe {
        let current = bpf_get_current_task_btf();
        let regs = bpf_task_pt_regs(current) as *const u64;
        let register = |offset: usize| regs.add(offset / size_of::<u64>()).read_volatile();
        let status: u32 = field(current as *const u8, &TASK_THREAD_STATUS);
        let compat = status & TS_COMPAT != 0;
        let number = if compat { SYS_IOCTL_COMPAT } else { SYS_IOCTL };
        if register(REGS_ORIG_AX) & 0xffff_ffff != number || register(REGS_AX) != RUNNING {
            return (0, 0);
        }
        let command = register(if compat { REGS_CX } else { REGS_SI });
        (command as u32, register(REGS_DX))
    }
}

/// A write, as far as it is known.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Write {
    /// One of [`what`].
    pub(crate) what: u64,
    pub(crate) offset: u64,
    pub(crate) count: u64,
    pub(crate) address: u64,
}

impl Write {
    pub(crate) const UNPLACED: Self = Self::of(what::UNPLACED, 0, 0, 0);
    const LATER: Self = Self::of(what::LATER, 0, 0, 0);

    #[inline(always)]
    const fn of(what: u64, offset: u64, count: u64, address: u64) -> Self {
        Self { what, offset, count, address }
    }
}

/// Finds the write to `file` (a BTF pointer) that is about to be made. A function of its own, for the stack
/// of its caller.
#[inline(never)]
pub(crate) fn find(file: *const u8, write: &mut Write) {
    // SAFETY: a program argument.
    let unknown: u64 = unsafe { field(file, &FILE_F_POS) };
    *write = forget(found(file), unknown);
}

#[inline(always)]
fn found(file: *const u8) -> Write {
    // SAFETY: BTF pointers of the running task; pt_regs lies on its stack.
    unsafe {
        let current = bpf_get_current_task_btf();
        let task = current as *const u8;
        let flags: u32 = field(task, &TASK_FLAGS);
        if flags & PF_KTHREAD != 0 {
            return Write::of(what::KERNEL, 0, 0, 0);
        }
        if flags & PF_IO_WORKER != 0 {
            return of_worker(task, file);
        }
        let regs = bpf_task_pt_regs(current) as *const u64;
        let register = |offset: usize| regs.add(offset / size_of::<u64>()).read_volatile();
        let number = register(REGS_ORIG_AX) & 0xffff_ffff;
        let status: u32 = field(task, &TASK_THREAD_STATUS);
        if register(REGS_AX) != RUNNING || status & TS_COMPAT != 0 {
            return otherwise(task, register(REGS_AX), number);
        }
        let (r10, r8) = (register(REGS_R10), register(REGS_R8));
        let (dx, si) = (register(REGS_DX), register(REGS_SI));
        let f_pos: u64 = field(file, &FILE_F_POS);
        match number {
            SYS_PWRITE64 => Write::of(what::BYTES, r10, dx, si),
            SYS_WRITE => Write::of(what::BYTES, f_pos, dx, si),
            SYS_WRITEV => Write::of(what::VECTOR, f_pos, dx, si),
            SYS_PWRITEV => Write::of(what::VECTOR, r10, dx, si),
            SYS_PWRITEV2 => Write::of(what::VECTOR, if r10 == u64::MAX { f_pos } else { r10 }, dx, si),
            SYS_IO_SUBMIT if si == 1 => of_iocb(dx, 0),
            SYS_IO_SUBMIT => Write::of(what::BATCH, 0, si, dx),
            SYS_IO_URING_ENTER => of_ring(current, f_pos),
            SYS_FALLOCATE => Write::of(what::ERASURE, dx, r10, 0),
            SYS_SENDFILE => Write::of(what::HIDDEN, f_pos, r10, 0),
            SYS_SPLICE => {
                // If the position behind an offset pointer cannot be read, the write counts as one to the
                // start: a mark always lies there.
                let mut offset = if r10 == 0 { f_pos } else { 0 };
                if r10 != 0 {
                    bpf_probe_read_user((&raw mut offset).cast(), 8, r10 as *const _);
                }
                Write::of(what::HIDDEN, offset, r8, 0)
            }
            _ => otherwise(task, 0, number),
        }
    }
}

/// A write under a system call whose arguments say nothing of it: the call is over, or its caller is a 32-bit
/// process. If `io_uring` makes the write, its worker shows the place later.
///
/// # Safety
/// `task` must be the running task, a BTF pointer.
#[inline(always)]
unsafe fn otherwise(task: *const u8, result: u64, number: u64) -> Write {
    // SAFETY: as above.
    let rings: u64 = unsafe { field(task, &TASK_IO_URING) };
    if rings != 0 && (result != RUNNING || number == SYS_IO_URING_ENTER) {
        Write::LATER
    } else {
        Write::UNPLACED
    }
}

/// The request that a worker of `io_uring` carries out at this moment.
///
/// # Safety
/// `task` must be the running task, a BTF pointer.
#[inline(always)]
unsafe fn of_worker(task: *const u8, file: *const u8) -> Write {
    // SAFETY: as above.
    let (worker, mm): (u64, *const u8) =
        unsafe { (field(task, &TASK_WORKER_PRIVATE), field(task, &TASK_MM)) };
    if worker == 0 {
        // The thread that polls a ring (IORING_SETUP_SQPOLL).
        return Write::LATER;
    }
    let work: u64 = probed(worker as *const u8, IO_WORKER_CUR_WORK.load());
    let request = work.wrapping_sub(IO_KIOCB_WORK.load().into()) as *const u8;
    let target: u64 = probed(request, KIOCB_KI_FILP.load());
    if target != file as u64 {
        return Write::UNPLACED;
    }
    let offset: u64 = probed(request, KIOCB_KI_POS.load());
    let length: u32 = probed(request, IO_RW_LEN.load());
    let address: u64 = probed(request, IO_RW_ADDR.load());
    // SAFETY: a BTF pointer.
    let narrow = unsafe { field::<u64>(mm, &MM_TASK_SIZE) } <= UNBOUNDED;
    match probed::<u8>(request, IO_KIOCB_OPCODE.load()) {
        IORING_OP_WRITE | IORING_OP_WRITE_FIXED => Write::of(what::BYTES, offset, length.into(), address),
        // 32-bit callers have other iovecs.
        IORING_OP_WRITEV | IORING_OP_WRITEV_FIXED if narrow => Write::of(what::HIDDEN, offset, UNBOUNDED, 0),
        IORING_OP_WRITEV | IORING_OP_WRITEV_FIXED => Write::of(what::VECTOR, offset, length.into(), address),
        _ => Write::UNPLACED,
    }
}

/// The one write of an `io_submit`, or one of many.
#[inline(always)]
pub(crate) fn of_iocb(list: u64, number: u64) -> Write {
    iocb(list, number).map_or(Write::UNPLACED, |iocb| iocb.write())
}

/// What an `io_submit` was given, from [`IOCB_COMMAND`] on.
pub(crate) struct Iocb([u64; 4]);

/// One of the submitted writes; `None` if it cannot be read.
#[inline(always)]
pub(crate) fn iocb(list: u64, number: u64) -> Option<Iocb> {
    let (mut at, mut iocb) = (0_u64, Iocb([0; 4]));
    let place = list.wrapping_add(8 * number);
    // SAFETY: as many bytes of stack; the helper checks the user addresses.
    let read = unsafe {
        bpf_probe_read_user((&raw mut at).cast(), 8, place as *const _) == 0
            && bpf_probe_read_user((&raw mut iocb).cast(), 32, at.wrapping_add(IOCB_COMMAND) as *const _) == 0
    };
    read.then_some(iocb)
}

impl Iocb {
    /// Whether it is a write to this file.
    #[inline(always)]
    pub(crate) fn is_of(&self, file: u64) -> bool {
        self.writes() && stacking::file_of_descriptor((self.0[0] >> 32) as u32) as u64 == file
    }

    #[inline(always)]
    pub(crate) fn writes(&self) -> bool {
        matches!(self.0[0] & 0xffff, IOCB_CMD_PWRITE | IOCB_CMD_PWRITEV)
    }

    #[inline(always)]
    pub(crate) fn write(&self) -> Write {
        let what = if self.0[0] & 0xffff == IOCB_CMD_PWRITE { what::BYTES } else { what::VECTOR };
        Write::of(what, self.0[3], self.0[2], self.0[1])
    }
}

/// The entry that the running `io_uring_enter` took from its ring last, if the call works on that entry at
/// this moment. Two cases are excluded: work that the call takes up while it waits, and a chain, in which
/// that entry is the last one and the running write is the first.
#[inline(always)]
unsafe fn of_ring(current: *const task_struct, f_pos: u64) -> Write {
    // SAFETY: BTF pointers of the running task.
    unsafe {
        let rings: *const u8 = field(current.cast(), &TASK_IO_URING);
        // The ring of the last submission: io_uring_enter sets it before it takes an entry.
        let ring: *const u8 = field(rings, &IO_TASK_LAST);
        let owner: u64 = field(ring, &RING_LOCK_OWNER);
        let flags: u32 = field(ring, &RING_FLAGS);
        let taken: u32 = field(ring, &RING_QUEUE_HEAD);
        let count: u32 = field(ring, &RING_QUEUE_ENTRIES);
        let shared: *const u8 = field(ring, &RING_RINGS);
        let told: u32 = field(shared, &RING_HEAD);
        // The task holds the ring's lock, and has not published yet how far it has come.
        if owner & !7 != current as u64 || taken == told || flags & TAKEN_OTHERWISE != 0 {
            return Write::LATER;
        }
        let index: u64 = field(ring, &RING_QUEUE_INDEX);
        let queue: u64 = field(ring, &RING_QUEUE_SQES);
        let [mut entry, mut before] = [[0_u64; 4], [0; 4]];
        let read = sqe(queue, index, flags, count, taken.wrapping_sub(1), &mut entry);
        if taken.wrapping_sub(told) > 1 {
            sqe(queue, index, flags, count, taken.wrapping_sub(2), &mut before);
        }
        if !read || (entry[0] | before[0]) >> 8 & LINKS != 0 {
            return Write::LATER;
        }
        let offset = if entry[1] == u64::MAX { f_pos } else { entry[1] };
        let length = entry[3] & 0xffff_ffff;
        match entry[0] as u8 {
            IORING_OP_WRITE | IORING_OP_WRITE_FIXED => Write::of(what::BYTES, offset, length, entry[2]),
            IORING_OP_WRITEV | IORING_OP_WRITEV_FIXED => Write::of(what::VECTOR, offset, length, entry[2]),
            _ => Write::LATER,
        }
    }
}

/// Reads an entry of a ring's queue: opcode and flags, offset, address, length.
#[inline(always)]
fn sqe(queue: u64, index: u64, flags: u32, count: u32, number: u32, into: &mut [u64; 4]) -> bool {
    let mut at = number & count.wrapping_sub(1);
    if flags & IORING_SETUP_NO_SQARRAY == 0 {
        at = probed(index as *const u8, at.wrapping_mul(4));
    }
    let size = if flags & IORING_SETUP_SQE128 == 0 { 64 } else { 128 };
    let place = queue.wrapping_add(u64::from(at) * size);
    // SAFETY: 32 bytes of stack; the helper checks the address.
    at < count && unsafe { bpf_probe_read_kernel(into.as_mut_ptr().cast(), 32, place as *const _) == 0 }
}

/// The same write, without what the verifier knows of it: otherwise the verifier follows each branch above
/// through all code behind it. `unknown` must come from a field or a map value.
#[inline(always)]
fn forget(write: Write, unknown: u64) -> Write {
    Write {
        what: opaque(write.what, unknown),
        offset: opaque(write.offset, unknown),
        count: opaque(write.count, unknown),
        address: opaque(write.address, unknown),
    }
}
