//! The kernel programs of format-guard: BPF LSM programs that judge opens, writes, erasures and mappings of block
//! devices.
//!
//! Threat model: a caller of any name, in any namespace, that takes a volume for blank. Every hook carries its
//! request to `decide()` of `format-guard-common` and the verdict back; no other place here refuses anything. What
//! is no block device leaves by the first branch. A failure to look something up is never an error to the caller
//! unless a mark lies under it.
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
mod layer;
mod learn;
mod mapping;
mod maps;
mod open;
mod passthrough;
mod place;
mod protect;
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
