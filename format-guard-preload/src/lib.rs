//! The library that is loaded before the C library (`LD_PRELOAD`) into programs on hosts whose kernel cannot refuse.
//!
//! It stands at the functions that open and write to block devices, carries each request to `decide()` under the rules that
//! the agent publishes, and carries out the verdict. It must never change what a program sees of anything but a refused
//! request: no allocation, no lock, no thread, no signal, no descriptor that stays, and errno as it was.
//!
//! It is a tier for programs that cooperate. One that makes its system calls by itself (Go, static programs, `io_uring`), or
//! writes by stdio to a descriptor that somebody else opened, passes it.
#![no_std]
#![expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "registers of system calls have neither a sign nor a name"
)]

mod agent;
mod caller;
mod content;
mod environment;
mod erase;
mod gate;
mod mapping;
mod next;
mod open;
mod snapshot;
mod stream;
mod syscall;
mod system;
mod write;

/// Run by the dynamic linker before the program.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    environment::read();
    next::find();
}

/// Nothing here panics; what would must not go on.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no arguments.
    unsafe { libc::abort() }
}
