//! The library that is loaded before the C library (`LD_PRELOAD`) into programs on hosts whose kernel cannot
//! refuse.
//!
//! It stands at the functions that open and write to block devices, carries each request to `decide()` under
//! the rules that the agent publishes, and carries out the verdict. It must never change what a program sees
//! of anything but a refused request: no allocation, no lock, no thread, no signal, no descriptor that stays,
//! and errno as it was.
//!
//! It is a tier for programs that cooperate. One that makes its system calls by itself (Go, static programs,
//! `io_uring`), or writes by stdio to a descriptor that somebody else opened, passes it.
#![no_std]
#![expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::many_single_char_names,
    reason = "registers of system calls have neither a sign nor a name"
)]

mod agent;
mod aio;
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
    if !next::is_glibc() {
        refuse_to_start();
    }
    environment::read();
    find_what_comes_after();
}

/// Finds the functions that come after each of ours.
fn find_what_comes_after() {
    aio::find();
    open::find();
    write::find();
    erase::find();
    mapping::find();
    stream::find();
    syscall::find();
}

/// musl loads the library too, as it takes itself for whatever is named libc; nobody has held what it does
/// there. A program that is not guarded must not go on as if it were.
fn refuse_to_start() {
    const LINE: &[u8] = b"format-guard: the library is for glibc, and this program is linked to another C library: it is not \
        started, as nobody knows what of it would be refused; start it without LD_PRELOAD\n";
    /// What shells say of a program that cannot be started.
    const CANNOT_START: usize = 127;
    // SAFETY: the line's bytes; then the process ends.
    unsafe {
        system::call3(libc::SYS_write, 2, LINE.as_ptr() as usize, LINE.len());
        system::call3(libc::SYS_exit_group, CANNOT_START, 0, 0);
    }
}

/// Nothing here panics; what would must not go on.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no arguments.
    unsafe { libc::abort() }
}
