//! Which volume a device holds: the names that it shows, and the strongest one that is the volume's own.
//!
//! Device numbers, device names and by-id links are never an identity: all of them are reused. What is only a
//! name, a slot or a constant makes a weak identity at best, and two volumes must never come to share a
//! strong one. Which technology shows which names is one table (`technologies`), which of them lie another
//! (`lies`).

mod lies;
mod loop_device;
mod nbd;
mod technologies;

use std::path::Path;

pub(super) use loop_device::{Loops, file_behind};

use super::{
    VolumeId,
    sysfs::{Node, Sysfs},
};

/// Longest value that goes into an id, in bytes.
const MAX_VALUE: usize = 512;
/// Devices that lie on one another at most: partitions of loop devices over partitions, and so on.
const MAX_DEPTH: usize = 8;

/// How far an identity can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// It is the volume's own and outlives re-attach, reboot and renaming.
    Strong,
    /// The identity says where the device is, not what it holds: another volume may get the same identity.
    Weak,
    /// The device has an identity that is not known yet: nothing is armed under the provisional one.
    Pending,
    /// Memory: nothing on it outlives a reset or a reboot, so there is nothing to remember.
    Memory,
}

/// What a name is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Given by the storage to this volume and to no other, for its whole life.
    Own,
    /// The address at which the storage hands the volume out, or the name that an earlier version of this
    /// program gave it: the volume's own while there is no better name, and free for the next volume there
    /// as soon as there is one.
    Address,
    /// Where it is attached, or a word that is known to name nothing.
    Place,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Address => "address",
            Self::Place => "place",
        }
    }
}

/// A name that a device shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As a volume's id.
    pub id: VolumeId,
    /// What it is worth.
    pub kind: Kind,
    /// Where it was read: a file of sysfs, or the question that was asked.
    pub from: String,
}

/// A volume's id, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The id.
    pub id: VolumeId,
    /// The facts that it was made of, for people.
    pub origin: String,
    /// How far it can be trusted.
    pub strength: Strength,
    /// Every name that the device shows, the strongest first.
    pub names: Vec<Name>,
}

impl Identity {
    /// An identity of the volume's own.
    #[must_use]
    pub fn strong(scheme: &str, value: &str, origin: impl Into<String>) -> Self {
        Self::new(scheme, value, origin, Strength::Strong)
    }

    fn new(scheme: &str, value: &str, origin: impl Into<String>, strength: Strength) -> Self {
        let id = name(scheme, value);
        let kind = if strength == Strength::Strong { Kind::Own } else { Kind::Place };
        let names = vec![Name { id: id.clone(), kind, from: String::new() }];
        Self { id, origin: origin.into(), strength, names }
    }

    fn weak(value: &str, origin: impl Into<String>) -> Self {
        Self::new("path", value, origin, Strength::Weak)
    }

    /// The same of a device that shows the names of another volume: nothing of them is its own, and nothing
    /// better is known.
    #[must_use]
    pub fn in_conflict(self, device: &str) -> Self {
        let id = VolumeId(format!("path:conflict/{device}/{}", self.id));
        let names = self.names.into_iter().map(|name| Name { kind: Kind::Place, ..name });
        let origin = format!("another volume here shows the same name ({})", self.origin);
        Self { id, origin, strength: Strength::Pending, names: names.collect() }
    }

    /// Its first name was read there.
    fn read(mut self, from: impl Into<String>) -> Self {
        if let Some(name) = self.names.first_mut() {
            name.from = from.into();
        }
        self
    }

    /// It shows this one, too.
    fn also(mut self, kind: Kind, id: VolumeId, from: impl Into<String>) -> Self {
        if !self.names.iter().any(|name| name.id == id) {
            self.names.push(Name { id, kind, from: from.into() });
        }
        self
    }

    /// The identity of the device that lies on this one, with each name turned into the upper device's.
    fn of_upper(self, upper: impl Fn(&VolumeId) -> String, origin: impl FnOnce(&str) -> String) -> Self {
        let names = self.names.into_iter().map(|name| Name { id: VolumeId(upper(&name.id)), ..name });
        Self {
            id: VolumeId(upper(&self.id)),
            origin: origin(&self.origin),
            strength: self.strength,
            names: names.collect(),
        }
    }
}

fn name(scheme: &str, value: &str) -> VolumeId {
    VolumeId(format!("{scheme}:{}", clean(value)))
}

/// The value as it goes into an id: bounded, without control characters.
fn clean(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).take(MAX_VALUE).collect()
}

/// Where a device's names are looked for.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) sysfs: &'a Sysfs,
    /// What lies behind loop devices, as far as it was asked for.
    pub(super) loops: &'a Loops,
    /// Nodes here name devices that offer no name of their own.
    pub(super) longhorn: Option<&'a Path>,
}

pub(super) fn of(sources: Sources<'_>, node: &Node) -> Identity {
    of_layer(sources, node, MAX_DEPTH)
}

fn of_layer(sources: Sources<'_>, node: &Node, depth: usize) -> Identity {
    if depth == 0 {
        return by_place(node);
    }
    let device = technologies::Shown { sources, node, depth };
    let own = technologies::identity(&device).unwrap_or_else(|| by_place(node));
    if own.strength == Strength::Weak { technologies::longhorn(&device).unwrap_or(own) } else { own }
}

/// The disk that a volume is a partition of, if it is one.
#[must_use]
pub fn disk_of(id: &VolumeId) -> Option<VolumeId> {
    let (disk, _) = id.as_str().strip_prefix("part:")?.rsplit_once('#')?;
    Some(VolumeId(disk.to_owned()))
}

/// The same, with its first sector (of 512 bytes).
#[must_use]
pub fn partition_of(id: &VolumeId) -> Option<(VolumeId, u64)> {
    let (disk, start) = id.as_str().strip_prefix("part:")?.rsplit_once('#')?;
    Some((VolumeId(disk.to_owned()), start.parse().ok()?))
}

/// The identity of an md array of this UUID, wherever that was found. sysfs and libblkid write it
/// differently.
#[must_use]
pub fn md_of_uuid(uuid: &str, found_in: &str) -> Identity {
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    Identity::strong("md", &digits.to_ascii_lowercase(), format!("UUID of the md array, from {found_in}"))
        .read(found_in)
}

fn place(node: &Node) -> String {
    let text = node.path.to_string_lossy();
    text.split_once("/devices/").map_or(&*text, |(_, place)| place).to_owned()
}

fn by_place(node: &Node) -> Identity {
    Identity::weak(&place(node), "its place among the devices; it offers no identity of its own")
        .read(node.file(""))
}

#[cfg(test)]
mod tests;
