//! Has the kernel programs keep others from taking the guard away while this agent lives.
//!
//! Which process the agent is, and of which executable, user space cannot say so that the kernel knows it
//! again: a container has process ids of its own, and overlayfs and btrfs tell another device than the
//! kernel's. So the agent introduces itself, by a system call that the kernel programs know.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use aya::{
    maps::{Array, HashMap, MapData, MapError as AyaMapError, MapInfo},
    programs::{
        links::{FdLink, PinnedLink},
        loaded_links,
    },
};
use format_guard_common::protection::{DIRECTORIES, Object, Protection};
use rustix::process::{Pid, getppid};

use super::{pins::Pins, slots::Rules};
use crate::{enforce::error::ProtectionError, process::start_of, volume::Dev};

/// Inode number of the initial pid namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The maps, and what they hold.
pub(super) struct Protected {
    value: Array<MapData, Protection>,
    ours: HashMap<MapData, u64, u32>,
    introduced: Option<Protection>,
}

impl Protected {
    pub(super) fn new(value: Array<MapData, Protection>, ours: HashMap<MapData, u64, u32>) -> Self {
        Self { value, ours, introduced: None }
    }

    /// Puts off the end of the protection to this time, in nanoseconds of `CLOCK_BOOTTIME`; zero ends it now.
    pub(super) fn keep(
        &mut self,
        pins: &Pins,
        links: &Path,
        rules: &Rules,
        until: u64,
    ) -> Result<(), ProtectionError> {
        let introduced = match self.introduced {
            Some(introduced) => introduced,
            None if until == 0 => return Ok(()),
            None => self.introduce(pins, links, rules)?,
        };
        self.introduced = Some(introduced);
        self.put(&Protection { until, ..introduced })
    }

    /// Protects one more map.
    pub(super) fn add(&mut self, map: u32) -> Result<(), AyaMapError> {
        match self.introduced {
            Some(_) => self.ours.insert(Object::Map.key(map), 1, 0),
            None => Ok(()),
        }
    }

    fn put(&mut self, protection: &Protection) -> Result<(), ProtectionError> {
        self.value.set(0, protection, 0).map_err(|source| ProtectionError::Map { name: "PROTECTION", source })
    }

    /// Tells the kernel programs what is to be protected, and has them look at this process.
    fn introduce(&mut self, pins: &Pins, links: &Path, rules: &Rules) -> Result<Protection, ProtectionError> {
        let map_error = |source| ProtectionError::Map { name: "OURS", source };
        let earlier: Vec<u64> = self.ours.keys().filter_map(Result::ok).collect();
        for key in earlier {
            self.ours.remove(&key).map_err(map_error)?;
        }
        let segments = rules.ids().map_err(|source| ProtectionError::Map { name: "RULES", source })?;
        let segments = segments.into_iter().map(|id| Object::Map.key(id));
        for key in objects(pins, links)?.into_iter().chain(segments) {
            self.ours.insert(key, 1, 0).map_err(map_error)?;
        }
        let mut directories = [0; DIRECTORIES];
        let mut pins_device = 0;
        for (number, directory) in
            directories.iter_mut().zip([pins.root(), pins.layout(), pins.maps(), links])
        {
            let metadata = look(directory, fs::metadata)?;
            *number = metadata.ino();
            pins_device = Dev::from_user(metadata.dev()).to_kernel();
        }
        let asked = Protection {
            // Without /proc nothing is seen, which is an error below.
            ticks: start_of(std::process::id()).unwrap_or_default(),
            directories,
            pins_device,
            mount_namespace: look(Path::new("/proc/1/ns/mnt"), fs::metadata)?.ino() as u32,
            signals: u32::from(is_a_service()?),
            ..Protection::default()
        };
        self.put(&asked)?;
        // Asks for every link by its id. One of ours is enough, and others may go meanwhile.
        loaded_links().for_each(|_| {});
        let seen =
            self.value.get(&0, 0).map_err(|source| ProtectionError::Map { name: "PROTECTION", source })?;
        if seen.executable == 0 { Err(ProtectionError::Unseen) } else { Ok(seen) }
    }
}

fn look<'a, T>(path: &'a Path, how: impl FnOnce(&'a Path) -> io::Result<T>) -> Result<T, ProtectionError> {
    how(path).map_err(|source| ProtectionError::Unreadable { path: path.to_owned(), source })
}

/// Keys of the pinned maps, of the pinned links, and of their programs.
fn objects(pins: &Pins, links: &Path) -> Result<Vec<u64>, ProtectionError> {
    let mut keys = Vec::new();
    for pin in look(pins.maps(), fs::read_dir)? {
        let path = pin.map(|pin| pin.path());
        let path =
            path.map_err(|source| ProtectionError::Unreadable { path: pins.maps().to_owned(), source })?;
        let map =
            MapInfo::from_pin(path).map_err(|source| ProtectionError::Map { name: "(pinned)", source })?;
        keys.push(Object::Map.key(map.id()));
    }
    for pin in look(links, fs::read_dir)? {
        let path = pin.map(|pin| pin.path());
        let path = path.map_err(|source| ProtectionError::Unreadable { path: links.to_owned(), source })?;
        let info = FdLink::from(PinnedLink::from_pin(path)?).info()?;
        keys.push(Object::Link.key(info.id()));
        keys.push(Object::Program.key(info.program_id()));
    }
    Ok(keys)
}

/// Whether process 1 of the host started this one and stops it: container runtimes must be able to stop
/// theirs. The first process of a container with the host's process ids may be left to process 1 as well, but
/// has a root directory of its own.
fn is_a_service() -> Result<bool, ProtectionError> {
    let namespace = look(Path::new("/proc/self/ns/pid"), fs::metadata)?;
    let [ours, of_host] =
        ["/proc/self/root/", "/proc/1/root/"].map(|root| look(Path::new(root), fs::metadata));
    let (ours, of_host) = (ours?, of_host?);
    Ok(namespace.ino() == INITIAL_PID_NAMESPACE
        && getppid() == Some(Pid::INIT)
        && (ours.dev(), ours.ino()) == (of_host.dev(), of_host.ino()))
}
