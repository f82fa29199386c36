//! What the library is told by its surroundings: read once, before the program can change it.

use core::{
    ffi::CStr,
    sync::atomic::{AtomicU8, AtomicU32, Ordering},
};

/// Names the agent's run directory.
const RUN_DIR: &CStr = c"FORMAT_GUARD_RUN_DIR";
const DEFAULT_RUN_DIR: &[u8] = b"/run/format-guard";
/// `allow`: without an agent known formatters pass, too.
const WITHOUT_AGENT: &CStr = c"FORMAT_GUARD_WITHOUT_AGENT";

/// Longest run directory: with the name of the socket it fits `sockaddr_un`.
const MAX_RUN_DIR: usize = 80;

const UNREAD: u32 = 0;
const BEING_READ: u32 = 1;
const READ: u32 = 2;
static STATE: AtomicU32 = AtomicU32::new(UNREAD);
static FLAGS: AtomicU32 = AtomicU32::new(0);
const IGNORED: u32 = 1;
const ALLOWED: u32 = 2;
static DIRECTORY: [AtomicU8; MAX_RUN_DIR] = [const { AtomicU8::new(0) }; MAX_RUN_DIR];

/// Reads it, if nobody did yet: a static initialiser of the program may come before ours.
pub(crate) fn read() {
    if STATE.compare_exchange(UNREAD, BEING_READ, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return;
    }
    // SAFETY: no memory.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        // A program with more rights than its caller: what the caller says does not count.
        FLAGS.fetch_or(IGNORED, Ordering::SeqCst);
    }
    if variable(WITHOUT_AGENT) == Some(b"allow") {
        FLAGS.fetch_or(ALLOWED, Ordering::SeqCst);
    }
    let named = variable(RUN_DIR).filter(|path| path.len() < MAX_RUN_DIR && path.starts_with(b"/"));
    for (to, from) in DIRECTORY.iter().zip(named.unwrap_or(DEFAULT_RUN_DIR)) {
        to.store(*from, Ordering::SeqCst);
    }
    STATE.store(READ, Ordering::SeqCst);
}

fn variable(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: names end with a NUL; what is returned is used before the program runs.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    }
}

/// Whether the program is one that the library leaves alone.
pub(crate) fn is_ignored() -> bool {
    read();
    FLAGS.load(Ordering::SeqCst) & IGNORED != 0
}

/// Whether formatters pass without an agent.
pub(crate) fn passes_without_agent() -> bool {
    FLAGS.load(Ordering::SeqCst) & ALLOWED != 0
}

/// Bytes that a path in the run directory has at most, its NUL included.
pub(crate) const MAX_PATH: usize = MAX_RUN_DIR + 24;

/// The path of a file in the agent's run directory, and its length with its NUL.
pub(crate) fn path(name: &str) -> ([u8; MAX_PATH], usize) {
    let mut path = [0; MAX_PATH];
    let directory = DIRECTORY.iter().map(|byte| byte.load(Ordering::SeqCst)).take_while(|byte| *byte != 0);
    let bytes = directory.chain([b'/']).chain(name.bytes());
    let mut length = 0;
    for (to, from) in path.iter_mut().take(MAX_PATH - 1).zip(bytes) {
        *to = from;
        length += 1;
    }
    (path, length + 1)
}
