//! Tables of device mapper on their way to the kernel: what it will make of the devices that they name, noted
//! for when it opens them (`kernel_open`).
//!
//! Devices are named by paths as well as by numbers, and only the kernel finds the device of a path: so
//! nothing is refused here. The note is of this thread and for this call alone; one that an earlier call left
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
/// Of how many targets of a table the first one counts that has a header. Those of layers that have one have
/// a single target.
const TARGETS: u32 = 4;

/// Notes what a table will do; false where this is none, which is judged otherwise.
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
    // The verifier forgets which one it is: else it reads the arguments of each.
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

/// A target that has a header: whose, the roles of its arguments, and where they are.
struct Target {
    header: u64,
    roles: u64,
    address: u64,
}

/// The first such target of a table. A function of its own, for the stack of its caller.
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

/// So many words of the caller's memory; `None` where they cannot be read.
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
