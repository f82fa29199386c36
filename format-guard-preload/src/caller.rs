//! What is known of the program that asks: its name, what it was refused, and what it formats.
//!
//! The tables are this process's own. After a fork the child has a copy, in which nothing is its own: each
//! entry carries the process id.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use format_guard_common::{
    Caller, Operation, Owner, Rule,
    arguments::{self, ARGUMENTS},
    preload_request::{Ask, PreloadRequest},
    program::{self, Class},
    snapshot::{Entry, Snapshot},
};

use crate::{
    agent,
    system::{Descriptor, comm, process, since_boot},
};

/// Devices on which one process is refused, or which it formats, at most; what comes after that takes the
/// place of the oldest.
const PLACES: usize = 16;

/// One place: process and device, and what must still be so.
struct Slot {
    key: AtomicU64,
    diskseq: AtomicU64,
    /// [`Entry::forgotten`] of a refusal; of a format not zero once the agent knows that something was
    /// written.
    more: AtomicU64,
}

impl Slot {
    const fn new() -> Self {
        Self { key: AtomicU64::new(0), diskseq: AtomicU64::new(0), more: AtomicU64::new(0) }
    }
}

struct Table {
    next: AtomicUsize,
    places: [Slot; PLACES],
}

impl Table {
    const fn new() -> Self {
        Self { next: AtomicUsize::new(0), places: [const { Slot::new() }; PLACES] }
    }

    fn key(dev: u32) -> u64 {
        u64::from(process()) << 32 | u64::from(dev)
    }

    fn find(&self, dev: u32, diskseq: u64) -> Option<&Slot> {
        let key = Self::key(dev);
        self.places
            .iter()
            .find(|place| place.key.load(SeqCst) == key && place.diskseq.load(SeqCst) == diskseq)
    }

    fn put(&self, dev: u32, diskseq: u64, more: u64) {
        if let Some(place) = self.find(dev, diskseq) {
            return place.more.store(more, SeqCst);
        }
        let Some(place) = self.places.get(self.next.fetch_add(1, SeqCst) % PLACES) else { return };
        place.key.store(0, SeqCst);
        place.diskseq.store(diskseq, SeqCst);
        place.more.store(more, SeqCst);
        place.key.store(Self::key(dev), SeqCst);
    }
}

static REFUSED: Table = Table::new();
static FORMATS: Table = Table::new();

/// A device, the rule that is in force for it, and what else is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Kernel `dev_t`.
    pub(crate) dev: u32,
    /// The device below it through which it was reached; else zero.
    pub(crate) through: u32,
    /// The attachment.
    pub(crate) diskseq: u64,
    pub(crate) rule: &'a Rule,
    pub(crate) entry: Option<&'a Entry>,
    pub(crate) snapshot: Option<&'a Snapshot<'a>>,
}

/// What a program of this name is known as where nothing is published.
fn class_by_tables(comm: [u8; 16]) -> Class {
    let known = program::PROGRAMS.iter().find(|known| program::comm(known.name) == comm);
    known.map_or(Class::UNKNOWN, |known| known.class)
}

/// What the caller is known as by its arguments, too.
fn class_by_arguments(class: Class) -> Class {
    if class.grammar() == 0 {
        return Class::UNKNOWN;
    }
    let mut arguments = [0; ARGUMENTS];
    if let Some(file) = Descriptor::open(b"/proc/self/cmdline\0") {
        let _length = file.read(&mut arguments);
    }
    arguments::class_of(class, &arguments)
}

impl Target<'_> {
    /// A question about it.
    pub(crate) fn question(&self, ask: Ask, operation: Operation) -> PreloadRequest {
        PreloadRequest {
            ask: ask as u32,
            operation: operation as u32,
            dev: self.dev,
            through: self.through,
            diskseq: self.diskseq,
            ..PreloadRequest::default()
        }
    }

    /// Cuts the process off from it.
    pub(crate) fn refuse(&self) {
        REFUSED.put(self.dev, self.diskseq, self.entry.map_or(0, |entry| entry.forgotten));
    }

    /// Makes the process the one that formats it; `false` where it may not, `None` where nobody answers.
    /// `wrote`: what goes through with it.
    pub(crate) fn begin(&self, operation: Operation, wrote: u32) -> Option<bool> {
        let begun = agent::ask(PreloadRequest { reason: wrote, ..self.question(Ask::Begin, operation) });
        if begun == Some(true) {
            FORMATS.put(self.rule.lock_dev, self.rule.lock_diskseq, u64::from(wrote != 0));
        }
        begun
    }

    /// Tells the agent once that the process that formats it has written.
    pub(crate) fn wrote(&self, operation: Operation) {
        let format = FORMATS.find(self.rule.lock_dev, self.rule.lock_diskseq);
        if let Some(format) = format.filter(|format| format.more.swap(1, SeqCst) == 0)
            && agent::ask(self.question(Ask::Wrote, operation)).is_none()
        {
            format.more.store(0, SeqCst);
        }
    }
}

impl Caller for Target<'_> {
    fn class(&self) -> Class {
        let comm = comm();
        let by_name = self.snapshot.map_or_else(|| class_by_tables(comm), |snapshot| snapshot.class(comm));
        by_name.with(class_by_arguments(by_name))
    }

    fn tainted(&self) -> bool {
        let forgotten = self.entry.map_or(0, |entry| entry.forgotten);
        REFUSED.find(self.dev, self.diskseq).is_some_and(|place| place.more.load(SeqCst) == forgotten)
    }

    fn owner(&self) -> Owner {
        let Some(owner) = self.entry.map(|entry| &entry.owner).filter(|owner| owner.process.tgid != 0) else {
            return Owner::None;
        };
        // Known here by id only as another pid namespace has it: the agent knows better.
        let known = FORMATS.find(self.rule.lock_dev, self.rule.lock_diskseq).is_some();
        if known || agent::ask(self.question(Ask::Owner, Operation::Open)) == Some(true) {
            if !known {
                FORMATS.put(self.rule.lock_dev, self.rule.lock_diskseq, u64::from(owner.wrote != 0));
            }
            return Owner::Caller;
        }
        Owner::Another { mounted: owner.mounted != 0 }
    }

    fn claim_lasts(&self) -> bool {
        self.snapshot.is_some_and(|snapshot| snapshot.lease().covers(self.rule.claim, since_boot()))
    }

    fn permit_lasts(&self) -> bool {
        self.rule.permit_lasts(since_boot())
    }
}
