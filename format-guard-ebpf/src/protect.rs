//! Keeps other processes from taking the guard away while its agent lives: its pins, maps, programs and
//! links, and the agent. Only the agent's own executable, process 1 and the kernel itself may do so. Anybody
//! else asks the agent, whose answer names the way out.
//!
//! Nothing here judges a block device. An object that is not the guard's own leaves by the first branches.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task_btf, bpf_ktime_get_boot_ns},
    macros::lsm,
    programs::LsmContext,
};
use format_guard_common::{
    event::{EventKind, KernelEvent},
    protection::{DIRECTORIES, Object, Protection, Tampering},
};

use crate::{
    caller,
    gate::{EPERM, send},
    kernel::{
        DENTRY_D_INODE, FILE_F_INODE, INODE_I_INO, INODE_I_SB, MAP_ID, MM_EXE_FILE, MNT_NS_INUM,
        NSPROXY_MNT_NS, PROG_AUX, PROG_AUX_ID, SUPER_S_DEV, TASK_FLAGS, TASK_GROUP_LEADER, TASK_MM,
        TASK_NSPROXY, TASK_START_BOOTTIME, TASK_TGID, VFSMOUNT_MNT_SB, probed,
    },
    maps::{OURS, PROTECTION},
};

/// Nanoseconds in a tick (`USER_HZ`, 100 on `x86_64`).
const TICK: u64 = 10_000_000;
/// `BPF_LINK_GET_FD_BY_ID` (include/uapi/linux/bpf.h).
const LINK_GET_FD_BY_ID: i32 = 30;
/// `FMODE_WRITE` (include/linux/fs.h).
const FMODE_WRITE: u32 = 2;
/// `PF_KTHREAD` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;
/// `PTRACE_MODE_ATTACH` (include/linux/ptrace.h); reading /proc is another mode.
const PTRACE_MODE_ATTACH: u32 = 2;
/// 0, SIGHUP, SIGCHLD, SIGCONT, SIGURG and SIGWINCH neither end nor stop the agent.
const HARMLESS: u64 = 1 | 1 << 1 | 1 << 17 | 1 << 18 | 1 << 23 | 1 << 28;

/// What is protected at this moment.
#[inline(always)]
fn in_force() -> Option<&'static Protection> {
    let protection = PROTECTION.get(0)?;
    // SAFETY: no arguments.
    (protection.until != 0 && unsafe { bpf_ktime_get_boot_ns() } < protection.until).then_some(protection)
}

fn pointer(base: *const u8, offset: u32) -> *const u8 {
    probed::<u64>(base, offset) as *const u8
}

fn current() -> *const u8 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task_btf() as *const u8 }
}

/// Inode number and file system of the calling process's executable.
#[inline(always)]
fn executable() -> (u64, u32) {
    let mm = pointer(current(), TASK_MM.load());
    let file = pointer(mm, MM_EXE_FILE.load());
    let inode = pointer(file, FILE_F_INODE.load());
    let super_block = pointer(inode, INODE_I_SB.load());
    (probed(inode, INODE_I_INO.load()), probed(super_block, SUPER_S_DEV.load()))
}

/// Refuses, unless the caller may do anything to the guard.
#[inline(never)]
fn refuse(protection: &Protection, what: Tampering, detail: u64) -> i32 {
    let flags: u32 = probed(current(), TASK_FLAGS.load());
    if caller::tgid() == 1
        || flags & PF_KTHREAD != 0
        || executable() == (protection.executable, protection.executable_device)
    {
        return 0;
    }
    send(|| KernelEvent {
        kind: EventKind::Tampered as u32,
        operation: what as u32,
        offset: detail,
        process: caller::process(),
        cgroup: caller::cgroup(),
        // SAFETY: no arguments.
        at: unsafe { bpf_ktime_get_boot_ns() },
        comm: caller::comm(),
        ..KernelEvent::default()
    });
    -EPERM
}

#[inline(always)]
fn is_ours(kind: Object, id: u32) -> bool {
    // SAFETY: only its presence counts.
    unsafe { OURS.get(kind.key(id)) }.is_some()
}

/// The agent introduces itself: it asks for one of its links before anything is protected. Only the kernel
/// knows for certain which process the agent is, and which executable it runs.
#[inline(never)]
fn introduced() {
    let Some(protection) = PROTECTION.get_ptr_mut(0) else { return };
    let process = caller::process();
    // SAFETY: a map value; nothing else writes to it before the agent has seen the answer.
    unsafe {
        if (*protection).until == 0
            && (*protection).executable == 0
            && (*protection).ticks == process.started / TICK
        {
            let (inode, device) = executable();
            (*protection).agent = process;
            (*protection).executable_device = device;
            (*protection).executable = inode;
        }
    }
}

// int bpf(int cmd, union bpf_attr *attr, unsigned int size)
#[lsm(hook = "bpf")]
pub(crate) fn bpf(ctx: LsmContext) -> i32 {
    let command: i32 = ctx.arg(0);
    if command != LINK_GET_FD_BY_ID {
        return 0;
    }
    let attributes: *const u8 = ctx.arg(1);
    let id: u32 = probed(attributes, 0);
    if !is_ours(Object::Link, id) {
        return 0;
    }
    if let Some(protection) = in_force() {
        return refuse(protection, Tampering::Link, id.into());
    }
    introduced();
    0
}

// int bpf_map(struct bpf_map *map, fmode_t fmode): called before the kernel gives out a descriptor of the
// map. Reading is allowed.
#[lsm(hook = "bpf_map")]
pub(crate) fn bpf_map(ctx: LsmContext) -> i32 {
    let mode: u32 = ctx.arg(1);
    if mode & FMODE_WRITE == 0 {
        return 0;
    }
    let Some(protection) = in_force() else { return 0 };
    let map: *const u8 = ctx.arg(0);
    let id: u32 = probed(map, MAP_ID.load());
    if is_ours(Object::Map, id) { refuse(protection, Tampering::Map, id.into()) } else { 0 }
}

// int bpf_prog(struct bpf_prog *prog)
#[lsm(hook = "bpf_prog")]
pub(crate) fn bpf_prog(ctx: LsmContext) -> i32 {
    let Some(protection) = in_force() else { return 0 };
    let program: *const u8 = ctx.arg(0);
    let id: u32 = probed(pointer(program, PROG_AUX.load()), PROG_AUX_ID.load());
    if is_ours(Object::Program, id) { refuse(protection, Tampering::Program, id.into()) } else { 0 }
}

/// Whether this inode is a directory of pins.
#[inline(always)]
fn holds_pins(protection: &Protection, inode: *const u8) -> bool {
    let super_block = pointer(inode, INODE_I_SB.load());
    let device: u32 = probed(super_block, SUPER_S_DEV.load());
    if device != protection.pins_device {
        return false;
    }
    let number: u64 = probed(inode, INODE_I_INO.load());
    let mut found = false;
    let mut at = 0;
    while at < DIRECTORIES {
        found |= protection.directories[at] == number;
        at += 1;
    }
    found && number != 0
}

// int inode_unlink(struct inode *dir, struct dentry *dentry)
#[lsm(hook = "inode_unlink")]
pub(crate) fn inode_unlink(ctx: LsmContext) -> i32 {
    let Some(protection) = in_force() else { return 0 };
    let directory: *const u8 = ctx.arg(0);
    if holds_pins(protection, directory) { refuse(protection, Tampering::Pin, 0) } else { 0 }
}

// int inode_rmdir(struct inode *dir, struct dentry *dentry)
#[lsm(hook = "inode_rmdir")]
pub(crate) fn inode_rmdir(ctx: LsmContext) -> i32 {
    let Some(protection) = in_force() else { return 0 };
    let (directory, entry): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    if holds_pins(protection, directory) || holds_pins(protection, pointer(entry, DENTRY_D_INODE.load())) {
        return refuse(protection, Tampering::Pin, 0);
    }
    0
}

// int inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct dentry
// *new_dentry)
#[lsm(hook = "inode_rename")]
pub(crate) fn inode_rename(ctx: LsmContext) -> i32 {
    let Some(protection) = in_force() else { return 0 };
    let (from, entry, to): (*const u8, *const u8, *const u8) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if holds_pins(protection, from)
        || holds_pins(protection, to)
        || holds_pins(protection, pointer(entry, DENTRY_D_INODE.load()))
    {
        return refuse(protection, Tampering::Pin, 0);
    }
    0
}

// int sb_umount(struct vfsmount *mnt, int flags): umount(2) alone. A mount namespace that ends takes its
// mounts with it.
#[lsm(hook = "sb_umount")]
pub(crate) fn sb_umount(ctx: LsmContext) -> i32 {
    let Some(protection) = in_force() else { return 0 };
    let mount: *const u8 = ctx.arg(0);
    let device: u32 = probed(pointer(mount, VFSMOUNT_MNT_SB.load()), SUPER_S_DEV.load());
    if device != protection.pins_device {
        return 0;
    }
    let namespace = pointer(pointer(current(), TASK_NSPROXY.load()), NSPROXY_MNT_NS.load());
    let namespace: u32 = probed(namespace, MNT_NS_INUM.load());
    if namespace == protection.mount_namespace { refuse(protection, Tampering::Unmount, 0) } else { 0 }
}

/// Whether a task is a thread of the agent.
#[inline(always)]
fn is_agent(protection: &Protection, task: *const u8) -> bool {
    let tgid: u32 = probed(task, TASK_TGID.load());
    let leader = pointer(task, TASK_GROUP_LEADER.load());
    tgid == protection.agent.tgid
        && probed::<u64>(leader, TASK_START_BOOTTIME.load()) == protection.agent.started
}

// int task_kill(struct task_struct *p, struct kernel_siginfo *info, int sig, const struct cred *cred): the
// kernel's own signals are not judged.
#[lsm(hook = "task_kill")]
pub(crate) fn task_kill(ctx: LsmContext) -> i32 {
    let Some(protection) = in_force() else { return 0 };
    let signal: u32 = ctx.arg(2);
    if protection.signals == 0 || signal < 64 && HARMLESS & 1 << signal != 0 {
        return 0;
    }
    let task: *const u8 = ctx.arg(0);
    if is_agent(protection, task) { refuse(protection, Tampering::Signal, signal.into()) } else { 0 }
}

// int ptrace_access_check(struct task_struct *child, unsigned int mode): called for process_vm_writev(2),
// pidfd_getfd(2) and writes to /proc/PID/mem, too.
#[lsm(hook = "ptrace_access_check")]
pub(crate) fn ptrace_access_check(ctx: LsmContext) -> i32 {
    let Some(protection) = in_force() else { return 0 };
    let mode: u32 = ctx.arg(1);
    let task: *const u8 = ctx.arg(0);
    if mode & PTRACE_MODE_ATTACH != 0 && is_agent(protection, task) {
        return refuse(protection, Tampering::Trace, 0);
    }
    0
}

/// The agent has ended: anybody may take the guard away.
#[inline(always)]
pub(crate) fn ended(tgid: u32) {
    let Some(protection) = PROTECTION.get_ptr_mut(0) else { return };
    // SAFETY: a map value; one aligned store.
    unsafe {
        if (*protection).agent.tgid == tgid {
            (*protection).until = 0;
        }
    }
}
