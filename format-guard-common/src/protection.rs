//! What others may not do to the guard itself while its agent lives.

use crate::event::Process;

/// Directories of pins that are protected at most: the root, the layout, the maps, the links.
pub const DIRECTORIES: usize = 4;

/// The one value of the map `PROTECTION`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Protection {
    /// Nanoseconds of `CLOCK_BOOTTIME` until which it is in force; zero: it is not. The agent puts it off
    /// again and again: one that hangs protects nothing for long.
    pub until: u64,
    /// When the agent started, in ticks of 10 ms since boot (field 22 of `proc_pid_stat(5)`).
    pub ticks: u64,
    /// Inode numbers of the directories that pins are in; zero where there are fewer.
    pub directories: [u64; DIRECTORIES],
    /// The agent, as the kernel programs saw it when it introduced itself.
    pub agent: Process,
    /// Inode number of its executable, seen at the same time; zero before.
    pub executable: u64,
    /// The executable's file system, as a kernel `dev_t` (`super_block.s_dev`).
    pub executable_device: u32,
    /// The pins' file system, as a kernel `dev_t`.
    pub pins_device: u32,
    /// Inode number of the mount namespace in which that may not be unmounted.
    pub mount_namespace: u32,
    /// Not zero where signals that end or stop the agent are refused.
    pub signals: u32,
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tampering {
    /// To unlink or rename a pin, or a directory of pins.
    Pin = 1,
    /// To unmount the file system of the pins.
    Unmount = 2,
    /// To get a map for writing.
    Map = 3,
    /// To get a program.
    Program = 4,
    /// To get a link by its id.
    Link = 5,
    /// To send a signal to the agent.
    Signal = 6,
    /// To attach to the agent as a debugger does, or to write to its memory.
    Trace = 7,
}

impl Tampering {
    /// The one with this number, if there is one.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Pin,
            2 => Self::Unmount,
            3 => Self::Map,
            4 => Self::Program,
            5 => Self::Link,
            6 => Self::Signal,
            7 => Self::Trace,
            _ => return None,
        })
    }

    /// What was tried, in words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pin => "to unlink or rename a pin of the guard",
            Self::Unmount => "to unmount the file system of the guard's pins",
            Self::Map => "to open a map of the guard",
            Self::Program => "to open a kernel program of the guard",
            Self::Link => "to open a link of the guard",
            Self::Signal => "to send a signal to the agent",
            Self::Trace => "to trace the agent",
        }
    }
}

/// Kinds of kernel objects, in keys of the map `OURS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Object {
    /// A map.
    Map = 1,
    /// A program.
    Program = 2,
    /// A link.
    Link = 3,
}

impl Object {
    /// The key of one of this kind in the map `OURS`, by its id.
    #[must_use]
    #[inline(always)]
    pub const fn key(self, id: u32) -> u64 {
        (self as u64) << 32 | id as u64
    }
}

#[cfg(feature = "aya")]
// SAFETY: repr(C), integers only, no padding.
unsafe impl aya::Pod for Protection {}

const _: () = assert!(size_of::<Protection>() == 8 * (2 + DIRECTORIES) + 16 + 8 + 16);
