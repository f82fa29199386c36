//! `file_permission`: every system call that writes to an opened block device. The kernel passes the hook
//! neither position nor bytes; `place` finds them.

use aya_ebpf::{EbpfContext, macros::lsm, programs::LsmContext};
use format_guard_common::{Operation, Request, each, event::Counter, opaque};

use crate::{
    gate::{self, EAGAIN, EPERM},
    kernel::block_device,
    log, maps, passthrough,
    place::{self, Write, what},
    user_content::{UserContent, total},
};

const MAY_WRITE: i32 = 2;
/// Writes of one `io_submit` that are looked at.
const MAX_BATCH: u64 = 1024;

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

/// The rest of the program, which writes to other files do not need: a function of its own, so that the
/// program above saves no registers for them.
#[inline(never)]
fn to_device(ctx: *mut core::ffi::c_void, dev: u32) -> i32 {
    let ctx = LsmContext::new(ctx);
    let file: *const u8 = ctx.arg(0);
    let mut asked =
        Asked { file: file as u64, dev: dev.into(), write: Write::UNPLACED, list: 0, answer: PASS };
    place::find(file, &mut asked.write);
    let write = &asked.write;
    let passes = match write.what {
        what::KERNEL => true,
        what::BYTES => gate::fast_path(dev, write.offset, write.count),
        what::VECTOR => gate::fast_path(dev, write.offset, total(write.address, write.count)),
        what::BATCH => all_pass(file as u64, dev, write),
        _ => false,
    };
    if passes {
        return 0;
    }
    if write.what == what::BATCH && write.count <= MAX_BATCH {
        // The call fails at its first write if any write of the batch is refused.
        let count = write.count as u32;
        asked.list = write.address;
        each(count, &mut asked, ask);
    } else {
        asked.answer = judge_write(&raw const asked);
    }
    // The verifier assumes any value as the result of a function that it follows by itself.
    match opaque(asked.answer, dev.into()) {
        PASS => 0,
        AGAIN => -EAGAIN,
        _ => -EPERM,
    }
}

/// Writes that one `io_submit` makes. Nothing says which of them the hook is asked about, so all of them are
/// looked at.
struct Batch {
    file: u64,
    list: u64,
    dev: u32,
    /// Not zero if a write of the batch does not pass.
    found: u32,
}

/// Whether all writes of a batch to this file pass.
#[inline(never)]
fn all_pass(file: u64, dev: u32, write: &Write) -> bool {
    if write.count > MAX_BATCH {
        return false;
    }
    let mut batch = Batch { file, list: write.address, dev, found: 0 };
    each(write.count as u32, &mut batch, look);
    batch.found == 0
}

/// Looks at one write of a batch; a vectored one never passes here.
extern "C" fn look(number: u32, batch: *mut Batch) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let batch = unsafe { &mut *batch };
    let Some(iocb) = place::iocb(batch.list, number.into()) else {
        batch.found = 1;
        return 1;
    };
    let write = iocb.write();
    if !iocb.writes()
        || write.what == what::BYTES && gate::fast_path(batch.dev, write.offset, write.count)
        || !iocb.is_of(batch.file)
    {
        return 0;
    }
    batch.found = 1;
    1
}

/// Answers to a write.
const PASS: u64 = 0;
const AGAIN: u64 = EAGAIN as u64;
const REFUSE: u64 = EPERM as u64;

/// A write that is to be judged.
#[repr(C)]
struct Asked {
    file: u64,
    dev: u64,
    write: Write,
    /// The addresses of the entries of a batch.
    list: u64,
    answer: u64,
}

/// Whether one entry of a batch is a write to the file; the entry replaces the one before. A function of its
/// own, for the stack of its caller.
#[inline(never)]
fn is_next(asked: &mut Asked, number: u32) -> bool {
    let iocb = place::iocb(asked.list, number.into());
    asked.write = iocb.as_ref().map_or(Write::UNPLACED, place::Iocb::write);
    iocb.is_none_or(|iocb| iocb.is_of(asked.file))
}

/// Judges one write of a batch.
extern "C" fn ask(number: u32, asked: *mut Asked) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let asked = unsafe { &mut *asked };
    if !is_next(asked, number) {
        return 0;
    }
    asked.answer = judge_write(asked);
    i64::from(asked.answer != PASS)
}

/// Judges one write. Exported, so that the verifier follows it by itself and once, and not again for each
/// branch that leads here or in each turn of the loop over a batch.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_write(asked: *const Asked) -> u64 {
    // SAFETY: null or what the caller has on its stack, which the verifier has proven.
    let Some(asked) = (unsafe { asked.as_ref() }) else { return REFUSE };
    let Some(target) = gate::target_of_file(asked.file as *const u8, asked.dev as u32) else { return PASS };
    judge(target, &asked.write).unsigned_abs().into()
}

#[inline(always)]
fn judge(target: gate::Target<'_>, write: &Write) -> i32 {
    let unknown = target.rule.diskseq;
    let (mut count, mut iovecs, mut address) = (write.count, 0, 0);
    if write.what == what::VECTOR {
        count = total(write.address, write.count);
        (iovecs, address) = (write.count, write.address);
        if gate::fast_path(target.dev, write.offset, count) {
            return 0;
        }
    } else if write.what == what::BYTES {
        address = write.address;
    }
    // All branches above meet here; without this value the verifier follows each of them through every check.
    let content = UserContent::new(address, iovecs, unknown);
    log::write(target.dev, write.what, write.offset, count);
    let operation = match opaque(write.what, unknown) {
        what::BYTES | what::VECTOR | what::HIDDEN => Operation::Write,
        what::ERASURE => Operation::Erase,
        what::LATER => Operation::Later,
        _ => {
            maps::count(Counter::Unplaced);
            Operation::Unplaced
        }
    };
    let request =
        Request { operation, offset: opaque(write.offset, unknown), length: opaque(count, unknown) };
    let (target, request) = gate::resolve_window(target, request);
    gate::judge(&target, request, &content)
}
