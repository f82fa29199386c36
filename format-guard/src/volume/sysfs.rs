//! What sysfs says of block devices, attribute by attribute. No udevd is asked, so that it works in a
//! container.
//!
//! The ground of this folder: it knows nothing of identities, layers or formats.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Dev;

/// Longest sysfs attribute that is read, in bytes; the kernel's own bound is one page.
const MAX_ATTRIBUTE: usize = 4096;

/// A sysfs tree: the host's, or a recorded one.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    root: PathBuf,
    /// Device nodes, ioctls and files beside the tree belong to it.
    live: bool,
}

impl Sysfs {
    /// The host's.
    pub(super) fn host() -> Self {
        Self { root: PathBuf::from("/sys"), live: true }
    }

    /// A recorded tree below `root`.
    pub(super) fn recorded(root: &Path) -> Self {
        Self { root: root.to_owned(), live: false }
    }

    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Kernel names of all block devices, in order.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(self.root.join("class/block"))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// The directory of the device of this kernel name; `None` when it is gone.
    pub(super) fn node(&self, name: &str) -> Option<Node> {
        Node::open(self, name)
    }

    /// The number of the device of this kernel name.
    pub(super) fn device_number(&self, name: &str) -> Option<Dev> {
        Node::open(self, name)?.dev()
    }

    pub(super) fn node_by_number(&self, dev: Dev) -> Option<Node> {
        let link = fs::read_link(self.root.join("dev/block").join(dev.to_string())).ok()?;
        Node::open(self, link.file_name()?.to_str()?)
    }

    /// The file of such an attribute, for people.
    pub(super) fn file(&self, path: &str) -> String {
        self.root.join(path).display().to_string()
    }

    /// An attribute at a path below the root, trimmed.
    pub(super) fn attribute(&self, path: &str) -> Option<String> {
        read_attribute(&self.root.join(path))
    }
}

/// One directory of `/sys/class/block`, its links resolved.
pub(super) struct Node {
    /// The device's own directory.
    pub(super) path: PathBuf,
}

impl Node {
    fn open(sysfs: &Sysfs, name: &str) -> Option<Self> {
        // The kernel writes a slash in a name as '!': anything else is no name.
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return None;
        }
        let path = fs::canonicalize(sysfs.root.join("class/block").join(name)).ok()?;
        Some(Self { path })
    }

    /// The kernel's name.
    pub(super) fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// An attribute, trimmed; `None` when it is absent or empty.
    pub(super) fn attribute(&self, name: &str) -> Option<String> {
        read_attribute(&self.path.join(name)).filter(|text| !text.is_empty())
    }

    /// The file of an attribute, or without one the directory, for people.
    pub(super) fn file(&self, name: &str) -> String {
        let file = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        file.display().to_string()
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.attribute(name)?.parse().ok()
    }

    pub(super) fn dev(&self) -> Option<Dev> {
        Dev::parse(&self.attribute("dev")?)
    }

    /// The directory so many levels above.
    pub(super) fn up(&self, levels: usize) -> Option<Self> {
        Some(Self { path: self.path.ancestors().nth(levels)?.to_owned() })
    }

    /// The names in a directory of the device, `slaves` for one.
    pub(super) fn entries(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path.join(directory)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The disk of a partition.
    pub(super) fn parent(&self) -> Option<Self> {
        if self.path.join("partition").exists() { self.up(1) } else { None }
    }

    pub(super) fn diskseq(&self) -> u64 {
        self.parent().as_ref().unwrap_or(self).number("diskseq").unwrap_or(0)
    }
}

fn read_attribute(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    if bytes.len() > MAX_ATTRIBUTE {
        return None;
    }
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}
