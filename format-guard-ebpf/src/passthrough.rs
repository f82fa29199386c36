//! Commands past the block layer: `SG_IO` and `NVMe` passthrough, by ioctl and by `io_uring`, on block and
//! character devices. They are judged only if the configuration refuses those that may write; otherwise the
//! verifier drops this code.

use aya_ebpf::{EbpfContext, Global, programs::LsmContext};
use format_guard_common::{NoContent, Operation, Request, passthrough::Command};

use crate::{
    gate,
    kernel::{block_device_probed, character_device, probed},
};

/// Not zero: commands that may write are refused. Set before load.
#[unsafe(no_mangle)]
pub(crate) static REFUSE_PASSTHROUGH: Global<u32> = Global::new(0);

// include/scsi/sg.h, include/uapi/scsi/scsi_ioctl.h, include/uapi/linux/cdrom.h
const SG_IO: u32 = 0x2285;
const SCSI_IOCTL_SEND_COMMAND: u32 = 1;
const CDROM_SEND_PACKET: u32 = 0x5393;
/// `struct sg_io_hdr`: where it holds the length of the command and its address, of a 64-bit and of a 32-bit
/// caller.
const SG_CMD_LEN: u64 = 8;
const SG_CMDP: u64 = 24;
const SG_CMDP_COMPAT: u64 = 20;
/// `struct sg_io_v4` (include/uapi/linux/bsg.h) begins with a 'Q'.
const SG_V4: u32 = 'Q' as u32;
const SG_V4_REQUEST_LEN: u64 = 12;
const SG_V4_REQUEST: u64 = 16;
/// The command in `struct scsi_ioctl_command` (`drivers/scsi/scsi_ioctl.c`).
const SEND_COMMAND_DATA: u64 = 8;

// include/uapi/linux/nvme_ioctl.h; the opcode is the first byte of each structure.
const NVME_IOCTL_ADMIN_CMD: u32 = 0xc048_4e41;
const NVME_IOCTL_SUBMIT_IO: u32 = 0x4030_4e42;
const NVME_IOCTL_IO_CMD: u32 = 0xc048_4e43;
const NVME_IOCTL_ADMIN64_CMD: u32 = 0xc050_4e47;
const NVME_IOCTL_IO64_CMD: u32 = 0xc050_4e48;
const NVME_IOCTL_IO64_CMD_VEC: u32 = 0xc050_4e49;
const NVME_URING_CMD_IO: u32 = 0xc048_4e80;
const NVME_URING_CMD_IO_VEC: u32 = 0xc048_4e81;
const NVME_URING_CMD_ADMIN: u32 = 0xc048_4e82;
const NVME_URING_CMD_ADMIN_VEC: u32 = 0xc048_4e83;
/// Where an entry of `io_uring` holds its command.
const SQE_CMD: u32 = 48;

/// Major number of the sg driver (include/linux/major.h), whose nodes take commands by write(2), too.
const SCSI_GENERIC_MAJOR: u32 = 21;

/// The caller's memory.
pub(crate) trait Memory {
    /// Fills `into` from a user address; false where it cannot be read.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
}

#[inline(always)]
fn byte(memory: &impl Memory, address: u64) -> Option<u8> {
    let mut byte = [0];
    memory.read(address, &mut byte).then_some(byte[0])
}

#[inline(always)]
fn word(memory: &impl Memory, address: u64) -> Option<u32> {
    let mut word = [0; 4];
    memory.read(address, &mut word).then(|| u32::from_ne_bytes(word))
}

#[inline(always)]
fn long(memory: &impl Memory, address: u64) -> Option<u64> {
    let mut long = [0; 8];
    memory.read(address, &mut long).then(|| u64::from_ne_bytes(long))
}

/// A command descriptor block of so many bytes.
#[inline(always)]
fn block(memory: &impl Memory, address: u64, length: u64) -> Option<Command> {
    // Commands of 6, 10, 12 and 16 bytes are read whole; of a longer one the beginning is judged.
    let mut block = [0; 16];
    let read = match length {
        0..6 => false,
        6..10 => memory.read(address, &mut block[..6]),
        10..12 => memory.read(address, &mut block[..10]),
        12..16 => memory.read(address, &mut block[..12]),
        _ => memory.read(address, &mut block),
    };
    read.then_some(Command::Scsi(block))
}

#[inline(always)]
fn sg_io(memory: &impl Memory, header: u64, compat: bool) -> Option<Command> {
    if word(memory, header)? == SG_V4 {
        let length = word(memory, header + SG_V4_REQUEST_LEN)?;
        return block(memory, long(memory, header + SG_V4_REQUEST)?, length.into());
    }
    let length = byte(memory, header + SG_CMD_LEN)?;
    let address =
        if compat { word(memory, header + SG_CMDP_COMPAT)?.into() } else { long(memory, header + SG_CMDP)? };
    block(memory, address, length.into())
}

/// The command that an ioctl sends; `None` where it sends none.
#[inline(always)]
fn sent(memory: &impl Memory, request: u32, argument: u64, compat: bool) -> Option<Command> {
    let command = match request {
        SG_IO => sg_io(memory, argument, compat),
        CDROM_SEND_PACKET => block(memory, argument, 12),
        NVME_IOCTL_ADMIN_CMD | NVME_IOCTL_ADMIN64_CMD => byte(memory, argument).map(Command::NvmeAdmin),
        NVME_IOCTL_SUBMIT_IO | NVME_IOCTL_IO_CMD | NVME_IOCTL_IO64_CMD | NVME_IOCTL_IO64_CMD_VEC => {
            byte(memory, argument).map(Command::NvmeIo)
        }
        SCSI_IOCTL_SEND_COMMAND => block(memory, argument + SEND_COMMAND_DATA, 6),
        _ => return None,
    };
    Some(command.unwrap_or(Command::Unreadable))
}

/// Judges an ioctl that erases nothing by itself; the hook's return value.
#[inline(always)]
pub(crate) fn by_ioctl(ctx: &LsmContext, memory: &impl Memory, compat: bool) -> i32 {
    if REFUSE_PASSTHROUGH.load() == 0 {
        return 0;
    }
    let (file, request): (*const u8, u32) = (ctx.arg(0), ctx.arg(1));
    // Other files know an ioctl of this number, too.
    if request == SCSI_IOCTL_SEND_COMMAND && block_device_probed(file) == 0 {
        return 0;
    }
    match sent(memory, request, ctx.arg(2), compat) {
        Some(command) if command.may_write() => judge(file, &command),
        _ => 0,
    }
}

/// Judges a command that `io_uring` sends; the hook's return value.
#[inline(always)]
pub(crate) fn by_ring(file: *const u8, operation: u32, sqe: *const u8) -> i32 {
    if REFUSE_PASSTHROUGH.load() == 0 {
        return 0;
    }
    let opcode: u8 = probed(sqe, SQE_CMD);
    let command = match operation {
        NVME_URING_CMD_IO | NVME_URING_CMD_IO_VEC => Command::NvmeIo(opcode),
        NVME_URING_CMD_ADMIN | NVME_URING_CMD_ADMIN_VEC => Command::NvmeAdmin(opcode),
        _ => return 0,
    };
    if command.may_write() { judge(file, &command) } else { 0 }
}

/// Judges a write to a file that is no block device: a write to a node of sg is a command that no other hook
/// judges.
#[inline(always)]
pub(crate) fn by_write(ctx: &LsmContext) -> i32 {
    if REFUSE_PASSTHROUGH.load() == 0 { 0 } else { to_generic(ctx.as_ptr()) }
}

/// A function of its own, for the stack of the program that calls it.
#[inline(never)]
fn to_generic(ctx: *mut core::ffi::c_void) -> i32 {
    let file: *const u8 = LsmContext::new(ctx).arg(0);
    if character_device(file) >> 20 != SCSI_GENERIC_MAJOR {
        return 0;
    }
    judge(file, &Command::Unreadable)
}

#[inline(always)]
fn judge(file: *const u8, command: &Command) -> i32 {
    let dev = block_device_probed(file);
    let target = if dev != 0 { gate::target_of_file(file, dev) } else { gate::target_of_dev(0) };
    let Some(target) = target else { return 0 };
    let offset = u64::from(character_device(file));
    let request = Request { operation: Operation::Passthrough, offset, length: command.code() };
    gate::judge(&target, request, &NoContent)
}
