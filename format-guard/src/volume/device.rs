//! The block devices that are present: each with its number, its medium, its volume's identity and the
//! devices it lies on.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    Dev,
    identity::{self, Identity, Loops, Sources},
    lvm,
    sysfs::Sysfs,
    topology::{self, Below},
};

/// A block device that is present now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name, as below `/sys/class/block`.
    pub name: String,
    /// Its number.
    pub dev: Dev,
    /// Sequence number of the medium, zero where the kernel has none.
    pub diskseq: u64,
    /// Size in bytes; zero means no medium, or a device mapper device without a table.
    pub size: u64,
    /// Which volume it holds.
    pub identity: Identity,
    /// The devices that it lies on.
    pub below: Vec<Below>,
}

/// The block devices of this host, or of a recorded sysfs tree.
#[derive(Clone, Debug)]
pub struct Devices {
    sysfs: Sysfs,
    longhorn: Option<PathBuf>,
    loops: Loops,
}

impl Devices {
    /// The host's. Nodes below `longhorn` name volumes that have no identity of their own.
    #[must_use]
    pub fn host(longhorn: Option<PathBuf>) -> Self {
        Self { sysfs: Sysfs::host(), longhorn, loops: Loops::default() }
    }

    /// Those of a recorded tree below `root`.
    #[must_use]
    pub fn recorded(root: &Path) -> Self {
        Self { sysfs: Sysfs::recorded(root), longhorn: None, loops: Loops::default() }
    }

    /// The same, where nodes below `longhorn` name volumes that have no identity of their own.
    #[must_use]
    pub fn naming(self, longhorn: Option<PathBuf>) -> Self {
        Self { longhorn, ..self }
    }

    /// Whether a node may yet come to name a device that has no identity of its own.
    #[must_use]
    pub fn names_devices(&self) -> bool {
        self.longhorn.as_deref().is_some_and(Path::is_dir)
    }

    /// Kernel names of all block devices, in order.
    pub fn names(&self) -> io::Result<Vec<String>> {
        self.sysfs.names()
    }

    /// The device of this kernel name; `None` when it is gone.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<Device> {
        let node = self.sysfs.node(name)?;
        let sources = Sources { sysfs: &self.sysfs, loops: &self.loops, longhorn: self.longhorn.as_deref() };
        Some(Device {
            name: name.to_owned(),
            dev: node.dev()?,
            diskseq: node.diskseq(),
            size: node.number("size")?.checked_mul(topology::SECTOR)?,
            identity: identity::of(sources, &node),
            below: topology::below(&self.sysfs, &node),
        })
    }

    /// The device of this number; `None` when it is gone.
    #[must_use]
    pub fn by_number(&self, dev: Dev) -> Option<Device> {
        self.device(self.sysfs.node_by_number(dev)?.name()?)
    }

    /// The label that a partition has in its disk's table, as the kernel reads it (`PARTNAME`, GPT alone).
    #[must_use]
    pub fn partition_label(&self, dev: Dev) -> Option<String> {
        let uevent = self.sysfs.node_by_number(dev)?.attribute("uevent")?;
        let label = uevent.lines().find_map(|line| line.strip_prefix("PARTNAME="))?;
        Some(label.to_owned()).filter(|label| !label.is_empty())
    }

    /// Whether LVM has made a device for itself alone, as a part of a volume.
    #[must_use]
    pub fn is_part_of_lvm(&self, dev: Dev) -> bool {
        let Some(node) = self.sysfs.node_by_number(dev) else { return false };
        let (uuid, name) = (node.attribute("dm/uuid"), node.attribute("dm/name"));
        uuid.zip(name).is_some_and(|(uuid, name)| lvm::is_part(&uuid, &name))
    }
}
