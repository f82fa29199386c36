//! Fields of kernel structures, at offsets that user space found in the kernel's BTF.
//!
//! Offsets live in `.rodata`, which is frozen before load: that lets the verifier take direct loads through
//! BTF pointers at them. Nothing here may be a map value or a constant of one kernel version.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_copy_from_user, bpf_probe_read_user},
    },
};

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: Global<u32> = Global::new(0);)*
    };
}

// The same names, with the structure and field of each, stand in format-guard/src/enforce/bpf/offsets.rs.
offsets! {
    FILE_F_INODE, FILE_F_MODE, FILE_F_POS, FILE_F_MAPPING, MAPPING_HOST, INODE_I_MODE, INODE_I_RDEV,
    KIOCB_KI_POS, KIOCB_KI_FILP, IO_RW_ADDR, IO_RW_LEN, IO_KIOCB_OPCODE, IO_KIOCB_WORK,
    TASK_WORKER_PRIVATE, IO_WORKER_CUR_WORK, TASK_IO_URING, IO_TASK_LAST, RING_LOCK_OWNER, RING_FLAGS, RING_RINGS,
    RING_HEAD, RING_QUEUE_HEAD, RING_QUEUE_ENTRIES, RING_QUEUE_INDEX, RING_QUEUE_SQES, MM_TASK_SIZE,
    URING_CMD_FILE, URING_CMD_SQE, URING_CMD_OP,
    BDEV_INODE_VFS_INODE, BDEV_BD_DISK, BDEV_BD_DEV, DISK_DISKSEQ, DISK_MAJOR,
    DISK_FIRST_MINOR, TASK_FILES, FILES_FDT, FDTABLE_FD, FDTABLE_MAX_FDS, SUPER_S_BDEV,
    TASK_FLAGS, TASK_COMM, TASK_TGID, TASK_GROUP_LEADER, TASK_START_BOOTTIME, TASK_EXIT_CODE, TASK_SIGNAL, SIGNAL_LIVE,
    TASK_THREAD_STATUS, TASK_MM, MM_ARG_START, MM_ARG_END, VMA_VM_FILE, VMA_VM_FLAGS,
    INODE_I_INO, INODE_I_SB, SUPER_S_DEV, MM_EXE_FILE, DENTRY_D_INODE, VFSMOUNT_MNT_SB, TASK_NSPROXY, NSPROXY_MNT_NS,
    MNT_NS_INUM, MAP_ID, PROG_AUX, PROG_AUX_ID,
}

/// Not zero in tier `fmod_ret`: the programs that judge stand at the functions `security_*`, and not at the
/// hooks of BPF LSM. Set before load.
#[unsafe(no_mangle)]
pub(crate) static MODIFY_RETURN: Global<u32> = Global::new(0);

/// Copies from the caller's memory; zero when all was read. A program at a hook of BPF LSM may wait for a
/// page that is not there. A program at a function `security_*` may not.
///
/// # Safety
/// `into` must have room for `length` bytes, and the program must be sleepable at its hook of BPF LSM.
#[inline(always)]
pub(crate) unsafe fn from_user(into: *mut c_void, length: u32, address: u64) -> i64 {
    let address = address as *const c_void;
    // SAFETY: as above; the helpers check the user address.
    unsafe {
        if MODIFY_RETURN.load() == 0 {
            bpf_copy_from_user(into, length, address)
        } else {
            bpf_probe_read_user(into, length, address)
        }
    }
}

const S_IFMT: u16 = 0o170_000;
const S_IFBLK: u16 = 0o060_000;
const S_IFCHR: u16 = 0o020_000;

/// A field read directly through a BTF pointer.
///
/// # Safety
/// `base` must come from a program argument, a helper or such a read, all of type BTF pointer, and `offset`
/// from BTF: the verifier proves the rest.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(base: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: as above; a fault is handled by the kernel (exception table) and reads as zero.
    unsafe { core::ptr::read_volatile(base.add(offset.load() as usize).cast::<T>()) }
}

/// A field read by helper, from any address; zero when it cannot be read.
#[inline(always)]
pub(crate) fn probed<T: Copy + Default>(base: *const u8, offset: u32) -> T {
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()) }.unwrap_or_default()
}

/// Kernel `dev_t` of the block device that `file` (a BTF pointer) is a node of; zero for all other files.
#[inline(always)]
pub(crate) fn block_device(file: *const u8) -> u32 {
    // SAFETY: `file` is a program argument.
    unsafe {
        let inode: *const u8 = field(file, &FILE_F_INODE);
        let mode: u16 = field(inode, &INODE_I_MODE);
        if mode & S_IFMT != S_IFBLK {
            return 0;
        }
        field(inode, &INODE_I_RDEV)
    }
}

/// The same for a `file` that the verifier does not know as a BTF pointer.
#[inline(always)]
pub(crate) fn block_device_probed(file: *const u8) -> u32 {
    device_probed(file, S_IFBLK)
}

/// Kernel `dev_t` of the character device that `file` is a node of; zero for all other files.
#[inline(always)]
pub(crate) fn character_device(file: *const u8) -> u32 {
    device_probed(file, S_IFCHR)
}

#[inline(always)]
fn device_probed(file: *const u8, kind: u16) -> u32 {
    let inode = probed::<u64>(file, FILE_F_INODE.load()) as *const u8;
    let mode: u16 = probed(inode, INODE_I_MODE.load());
    if mode & S_IFMT != kind {
        return 0;
    }
    probed(inode, INODE_I_RDEV.load())
}

/// The `struct gendisk` of an opened block device file.
#[inline(always)]
pub(crate) fn disk(file: *const u8) -> *const u8 {
    let mapping = probed::<u64>(file, FILE_F_MAPPING.load()) as *const u8;
    let host = probed::<u64>(mapping, MAPPING_HOST.load()) as *const u8;
    // struct bdev_inode { struct block_device bdev; struct inode vfs_inode; } (block/bdev.c)
    let bdev = host.wrapping_sub(BDEV_INODE_VFS_INODE.load() as usize);
    probed::<u64>(bdev, BDEV_BD_DISK.load()) as *const u8
}

/// `diskseq` of the medium behind an opened block device file.
#[inline(always)]
pub(crate) fn diskseq(file: *const u8) -> u64 {
    probed(disk(file), DISK_DISKSEQ.load())
}
