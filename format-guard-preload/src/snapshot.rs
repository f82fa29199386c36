//! The rules as the agent has published them last: mapped once, and again when they were replaced.
//!
//! Nobody waits here, whoever is interrupted: readers count themselves, and only what nobody reads is
//! unmapped.

use core::{
    slice,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
};

use format_guard_common::snapshot::{FILE, SUPERSEDED, Snapshot};

use crate::{
    environment,
    system::{Descriptor, call, call3, status},
};

/// Mappings at a time: the current one, and those that somebody still reads, also one who was forked in two
/// meanwhile.
const SLOTS: usize = 8;
const NONE: usize = SLOTS;
/// Largest file, in bytes: as many rules as the kernel's map has.
const MAX_LENGTH: usize = 1 << 26;

struct Slot {
    taken: AtomicU32,
    readers: AtomicU32,
    address: AtomicUsize,
    length: AtomicUsize,
}

static MAPPED: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicU32::new(0),
        readers: AtomicU32::new(0),
        address: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
    }
}; SLOTS];
static CURRENT: AtomicUsize = AtomicUsize::new(NONE);

/// A file in memory.
#[derive(Clone, Copy)]
struct Mapping {
    address: usize,
    length: usize,
}

impl Mapping {
    /// Maps what is published now, if it is whole.
    fn new() -> Option<Self> {
        let (path, length) = environment::path(FILE);
        let file = Descriptor::open(path.get(..length)?)?;
        let length = usize::try_from(status(file.0)?.st_size).ok()?;
        if length == 0 || length > MAX_LENGTH {
            return None;
        }
        let (read, shared) = (libc::PROT_READ as usize, libc::MAP_SHARED as usize);
        // SAFETY: a new mapping, wherever there is room.
        let address = unsafe { call(libc::SYS_mmap, [0, length, read, shared, file.number(), 0]) };
        let mapping = Self { address: usize::try_from(address).ok()?, length };
        // SAFETY: mapped just now.
        if Snapshot::read(unsafe { mapping.bytes() }).is_err() {
            mapping.unmap();
            return None;
        }
        Some(mapping)
    }

    /// # Safety
    /// It is mapped as long as the bytes are used.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        // SAFETY: mapped, and changed nowhere but where nobody looks without an atomic.
        unsafe { slice::from_raw_parts(self.address as *const u8, self.length) }
    }

    /// # Safety
    /// It is mapped.
    unsafe fn is_superseded(self) -> bool {
        // SAFETY: within the header, which every snapshot has, and aligned.
        unsafe { (*((self.address + SUPERSEDED as usize) as *const AtomicU32)).load(SeqCst) != 0 }
    }

    fn unmap(self) {
        // SAFETY: nobody reads it.
        unsafe { call3(libc::SYS_munmap, self.address, self.length, 0) };
    }
}

impl Slot {
    fn mapping(&self) -> Mapping {
        Mapping { address: self.address.load(SeqCst), length: self.length.load(SeqCst) }
    }
}

/// A mapping that stays until this is dropped.
struct Read {
    mapping: Mapping,
    /// `None`: of this reader alone.
    slot: Option<&'static Slot>,
}

impl Drop for Read {
    fn drop(&mut self) {
        match self.slot {
            Some(slot) => drop(slot.readers.fetch_sub(1, SeqCst)),
            None => self.mapping.unmap(),
        }
    }
}

/// The current mapping, unless it was replaced.
fn current() -> Option<Read> {
    let number = CURRENT.load(SeqCst);
    let slot = MAPPED.get(number)?;
    slot.readers.fetch_add(1, SeqCst);
    // Looked at only if it still is the current one now that this reader is counted: nobody unmaps it from
    // here on.
    let stays = CURRENT.load(SeqCst) == number;
    let read = Read { mapping: slot.mapping(), slot: Some(slot) };
    // SAFETY: as said.
    (stays && !unsafe { read.mapping.is_superseded() }).then_some(read)
}

/// Maps what is published now, for all readers if there is a free slot.
fn renewed() -> Option<Read> {
    let mapping = Mapping::new()?;
    for (number, slot) in MAPPED.iter().enumerate() {
        if slot.taken.compare_exchange(0, 1, SeqCst, SeqCst).is_err() {
            continue;
        }
        // One who counts himself now finds that it is not the current one, and goes.
        if CURRENT.load(SeqCst) == number || slot.readers.load(SeqCst) != 0 {
            slot.taken.store(0, SeqCst);
            continue;
        }
        if slot.length.load(SeqCst) != 0 {
            slot.mapping().unmap();
        }
        slot.address.store(mapping.address, SeqCst);
        slot.length.store(mapping.length, SeqCst);
        slot.readers.fetch_add(1, SeqCst);
        CURRENT.store(number, SeqCst);
        slot.taken.store(0, SeqCst);
        return Some(Read { mapping, slot: Some(slot) });
    }
    Some(Read { mapping, slot: None })
}

/// Does this with the rules as they are now; with `None` where there are none.
pub(crate) fn with<R>(then: impl FnOnce(Option<&Snapshot<'_>>) -> R) -> R {
    let read = current().or_else(renewed);
    // SAFETY: mapped until `read` is dropped; whole when it was mapped, and never changed.
    let snapshot = read.as_ref().and_then(|read| Snapshot::of_whole(unsafe { read.mapping.bytes() }).ok());
    then(snapshot.as_ref())
}
