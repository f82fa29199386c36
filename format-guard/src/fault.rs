//! Points between any two of the agent's writes at which a test kills it, as a power cut or a kill would.
//!
//! They are there in builds with debug assertions alone, which nobody installs: a release has none.

/// After which write, or before which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A record is written, its transaction open.
    BeforeCommit,
    /// A record is on disk, nothing else knows of it.
    AfterCommit,
    /// The windows of a device are put, its rule is not.
    AfterWindows,
    /// A rule is in its slot, its device is not led there.
    AfterRule,
    /// A rule is in force, what else is to be done is not.
    AfterSlot,
    /// The rule of a device that is gone is to be taken away.
    BeforeRemoval,
    /// It is away, and its windows are not.
    AfterRemoval,
    /// A formatter is to be forgotten.
    BeforeRelease,
    /// It is forgotten.
    AfterRelease,
    /// A program is attached, and others are not.
    AfterPin,
    /// All programs are attached and proven, and have no other's place yet.
    AfterProof,
    /// An earlier agent's links are moved aside.
    AfterLinksAside,
    /// The new links are in their place, and the old ones are there, too.
    AfterLinksMoved,
    /// The log of a damaged database is moved aside, and the database is not.
    AfterLogAside,
}

/// Where a test's agent is killed, if this is the point and the time it was told.
#[cfg(debug_assertions)]
pub fn point(here: Point) {
    use std::{
        env, process,
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    /// `FORMAT_GUARD_FAULT=AfterCommit:3`: when it comes there for the third time.
    static TOLD: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
        let told = env::var("FORMAT_GUARD_FAULT").ok()?;
        let (point, time) = told.split_once(':')?;
        Some((point.to_owned(), time.parse().ok()?))
    });
    static TIMES: AtomicU32 = AtomicU32::new(0);

    if let Some((point, time)) = &*TOLD
        && *point == format!("{here:?}")
        && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *time
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // Not to go on while the signal is under way.
        process::abort();
    }
}

/// Nothing: no test runs this build.
#[cfg(not(debug_assertions))]
pub const fn point(_: Point) {}
