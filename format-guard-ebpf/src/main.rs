//! The kernel programs of format-guard: BPF LSM programs that judge opens, writes, erasures and mappings of
//! block devices.
//!
//! Threat model: a caller of any name, in any namespace, that takes a volume for blank. Every hook carries
//! its request to `decide()` of `format-guard-common` and the verdict back; no other place here refuses
//! anything. What is no block device leaves by the first branch. A failure to look something up is never an
//! error to the caller unless a mark lies under it.
//!
//! | Program | What it is asked for, and what it does | File |
//! |---|---|---|
//! | `file_open` | an open for writing: refuses formatters, and has an early one wait | `open.rs`, `wait.rs` |
//! | `file_permission` | a write by any system call or by `io_uring`: refuses changed marks and foreign magics | `write.rs` |
//! | `file_ioctl`, `file_ioctl_compat`, `uring_cmd` | discards, zero-outs, zone resets, passthrough commands | `erase.rs`, `passthrough.rs` |
//! | `mmap_file`, `file_mprotect` | a shared writable mapping of a device: refused over marks | `mapping.rs` |
//! | `kernel_open` | the kernel's own open for writing, before it writes a header | `kernel_open.rs`, `table.rs` |
//! | `device_access` | tier `cgroup`: an open by a known formatter | `device_access.rs` |
//! | `bd_link_disk_holder` | a device is made over another: remembers who made it | `stacking.rs` |
//! | `sb_kern_mount` | a mount proves a format | `lifecycle.rs` |
//! | `sched_process_exit` | the owner of a format ends, or the agent | `lifecycle.rs` |
//! | `bdev_free_security` | a device is gone: its rule goes | `lifecycle.rs` |
//! | `bpf`, `bpf_map`, `bpf_prog` | who opens the guard's own links, maps and programs | `protect.rs` |
//! | `inode_unlink`, `inode_rmdir`, `inode_rename`, `sb_umount` | who takes the guard's pins away | `protect.rs` |
//! | `task_kill`, `ptrace_access_check` | who ends, stops or traces the agent | `protect.rs` |
//!
//! `gate.rs` carries a request to `decide()`, `caller.rs` knows the calling process, `place.rs` finds the
//! range of a write, `user_content.rs` reads its bytes, `maps.rs` has every map, `kernel.rs` the fields of
//! the kernel's structures.
//!
//! `x86_64` only: system call numbers and `struct pt_regs` are that architecture's.
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "aya's macros hand a program its context by value")]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod caller;
mod device_access;
mod erase;
mod gate;
mod kernel;
mod kernel_open;
mod lifecycle;
mod log;
mod mapping;
mod maps;
mod open;
mod passthrough;
mod place;
mod protect;
mod stacking;
mod table;
mod user_content;
mod wait;
mod write;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
