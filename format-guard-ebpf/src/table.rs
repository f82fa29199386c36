//! Tables that a process loads into device mapper. What the kernel will do to the devices of a table is
//! noted, for the moment when the kernel opens them (`kernel_open`).
//!
//! A table names devices by paths as well as by numbers, and only the kernel finds the device of a path, so
//! nothing is refused here. A note is for this thread and this call alone; a note that an earlier call left
//! is removed first.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::LsmContext};
use format_guard_common::{
    event::Counter,
    header::{Header, Text, of_target, plan},
    opaque,
};

use crate::{
    maps::{TABLES, count},
    passthrough::Memory,
};

// include/uapi/linux/dm-ioctl.h
pub(crate) const DM_TABLE_LOAD: u32 = 0xc138_fd09;
/// `struct dm_ioctl`: three numbers of the version, then the size of all, where the targets begin, and how
/// many there are.
const HEAD: usize = 24;
/// `struct dm_target_spec`: first sector, sectors, status, where the next one begins, name; then the
/// arguments as text.
const SPEC: usize = 40;
/// How many targets of a table are searched for the first one that has a header. A layer that has a header is
/// a table of a single target.
const TARGETS: u32 = 4;

/// Notes what a table will do; false if the ioctl loads no table.
#[inline(always)]
pub(crate) fn by_ioctl(ctx: &LsmContext, memory: &impl Memory) -> bool {
    let request: u32 = ctx.arg(1);
    if request != DM_TABLE_LOAD {
        return false;
    }
    note(memory, ctx.arg(2));
    true
}

/// A target's arguments in the caller's memory.
struct Arguments<'a, M> {
    memory: &'a M,
    address: u64,
}

impl<M: Memory> Text for Arguments<'_, M> {
    #[inline(always)]
    fn byte(&self, at: u32) -> Option<u8> {
        let mut byte = [0];
        self.memory.read(self.address.wrapping_add(at.into()), &mut byte).then_some(byte[0])
    }
}

/// A function of its own, for the stack of the program that calls it.
#[inline(never)]
fn note<M: Memory>(memory: &M, argument: u64) {
    let thread = bpf_get_current_pid_tgid();
    let _ = TABLES.remove(thread);
    let mut target = Target { header: 0, roles: 0, address: 0 };
    first(memory, argument, &mut target);
    // The verifier must not know which target it is: otherwise it follows the arguments of each.
    let (header, roles) = (opaque(target.header, argument), opaque(target.roles, argument));
    if roles == 0 {
        return;
    }
    let text = Arguments { memory, address: opaque(target.address, argument) };
    let plan = plan(argument, Header(header as u32), roles as u32, &text);
    if TABLES.insert(thread, plan, 0).is_err() {
        count(Counter::FullMaps);
    }
}

/// A target that has a header: whose header, the roles of the target's arguments, and where they are.
struct Target {
    header: u64,
    roles: u64,
    address: u64,
}

/// The first target of a table that has a header. A function of its own, for the stack of its caller.
#[inline(never)]
fn first<M: Memory>(memory: &M, argument: u64, target: &mut Target) {
    let Some([_, _, _, _, start, targets]) = words::<HEAD, 6>(memory, argument) else { return };
    let mut place = argument.wrapping_add(start.into());
    let mut number = 0;
    while number < TARGETS && number < targets {
        let Some(spec) = words::<SPEC, 10>(memory, place) else { return };
        let long = |at: usize| u64::from(spec[at]) | u64::from(spec[at + 1]) << 32;
        let (header, roles) = of_target([long(6), long(8)]);
        if roles != 0 {
            let address = place.wrapping_add(SPEC as u64);
            *target = Target { header: header.0.into(), roles: roles.into(), address };
            return;
        }
        place = opaque(place.wrapping_add(spec[5].into()), argument);
        number += 1;
    }
}

/// This many words of the caller's memory; `None` if they cannot be read.
#[inline(always)]
fn words<const BYTES: usize, const WORDS: usize>(memory: &impl Memory, address: u64) -> Option<[u32; WORDS]> {
    let mut bytes = [0_u8; BYTES];
    if !memory.read(address, &mut bytes) {
        return None;
    }
    Some(core::array::from_fn(|i| {
        u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    }))
}
