//! Volumes and the devices that they are present in: identity, sysfs, topology, probing, marks.
//!
//! Everything here only reads; what a device offers is hostile and bounded.

pub mod copies;
pub mod device;
pub mod graph;
mod identities;
pub mod identity;
pub mod lvm;
pub mod marks;
pub mod probe;
pub(crate) mod provisioned;
mod sysfs;
pub mod topology;
mod unwritten;
mod zoned;

use std::fmt;

use serde::{Deserialize, Serialize};

/// What holds the data: `scheme:value`, which outlives re-attach, reboot and renaming.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(String);

impl VolumeId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for VolumeId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for VolumeId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A block device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dev {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Dev {
    /// From the kernel's `dev_t` (`MAJOR << 20 | MINOR`, `include/linux/kdev_t.h`).
    #[must_use]
    pub const fn from_kernel(dev: u32) -> Self {
        Self { major: dev >> 20, minor: dev & 0xf_ffff }
    }

    /// As the kernel's `dev_t`.
    #[must_use]
    pub const fn to_kernel(self) -> u32 {
        self.major << 20 | self.minor & 0xf_ffff
    }

    /// From user space's `dev_t`, as in `struct stat`.
    #[must_use]
    pub fn from_user(dev: u64) -> Self {
        Self { major: rustix::fs::major(dev), minor: rustix::fs::minor(dev) }
    }

    /// From `MAJOR:MINOR`, as sysfs writes it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}
