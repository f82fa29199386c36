//! Which devices lie on which, and where: partitions, loop devices, device mapper, md.
//!
//! Where a layer passes bytes on unchanged, an [`Extent`] says where they come to lie; where it transforms or
//! scatters them (encryption, stripes, thin pools), only that it lies there is known, and whether every byte
//! of the device has its fixed place there. What cannot be found out is taken for the least of it, never for
//! nothing.

mod dm_table;

use super::{
    Dev,
    sysfs::{Node, Sysfs},
};

/// Bytes of the sectors that sysfs and device mapper count in, whatever a device's own are.
pub const SECTOR: u64 = 512;

/// A run of bytes of a device that is one of the device below, unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte on the device.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// First byte on the device below.
    pub below: u64,
}

/// One device that another lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Below {
    /// Its number.
    pub dev: Dev,
    /// What is passed on unchanged; empty where nothing is, or where that is not known.
    pub extents: Vec<Extent>,
    /// The device's bytes lie there in other places or as other bytes (stripes, encryption), each at a place
    /// that never changes: a format made on the device destroys what lies here.
    pub transformed: bool,
}

/// The devices that `node` lies on, by number.
pub(super) fn below(sysfs: &Sysfs, node: &Node) -> Vec<Below> {
    let mut all = partition(node)
        .map(|below| vec![below])
        .or_else(|| device_mapper(sysfs, node))
        .or_else(|| md(sysfs, node))
        .or_else(|| Some(vec![loop_device(sysfs, node)?]))
        .unwrap_or_default();
    all.sort_by_key(|below| below.dev);
    all
}

fn bytes(node: &Node, sectors: &str) -> Option<u64> {
    node.number(sectors)?.checked_mul(SECTOR)
}

fn whole(dev: Dev, length: u64, below: u64) -> Below {
    Below { dev, extents: vec![Extent { start: 0, length, below }], transformed: false }
}

fn partition(node: &Node) -> Option<Below> {
    Some(whole(node.parent()?.dev()?, bytes(node, "size")?, bytes(node, "start")?))
}

fn loop_device(sysfs: &Sysfs, node: &Node) -> Option<Below> {
    let file = node.attribute("loop/backing_file")?;
    // A node may lie anywhere; one of a block device is nearly always /dev/NAME. Asked by path, as identity
    // does.
    let dev = block_device_at(&file)?;
    sysfs.node_by_number(dev)?;
    Some(whole(dev, bytes(node, "size")?, node.number("loop/offset").unwrap_or(0)))
}

fn block_device_at(path: &str) -> Option<Dev> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    // Only below /dev: a look at a file on a dead network file system would hang.
    if !path.starts_with("/dev/") {
        return None;
    }
    let metadata = std::fs::metadata(path).ok()?;
    metadata.file_type().is_block_device().then(|| Dev::from_user(metadata.rdev()))
}

fn slaves(sysfs: &Sysfs, node: &Node) -> Vec<Dev> {
    node.entries("slaves").iter().filter_map(|name| sysfs.device_number(name)).collect()
}

fn device_mapper(sysfs: &Sysfs, node: &Node) -> Option<Vec<Below>> {
    node.attribute("dm/name")?;
    let slaves = slaves(sysfs, node);
    if slaves.is_empty() {
        return Some(Vec::new());
    }
    let table = if sysfs.is_live() { dm_table::live(node.dev()?) } else { None };
    let table = table.unwrap_or_default();
    Some(
        slaves
            .into_iter()
            .map(|dev| Below {
                dev,
                extents: table
                    .passed_on
                    .iter()
                    .filter(|(below, _)| *below == dev)
                    .map(|(_, extent)| *extent)
                    .collect(),
                transformed: table.transformed.contains(&dev),
            })
            .collect(),
    )
}

/// A member of a mirror holds the whole array from its data offset on, one of any other array a part of it
/// (Documentation/admin-guide/md.rst).
fn md(sysfs: &Sysfs, node: &Node) -> Option<Vec<Below>> {
    let level = node.attribute("md/level");
    node.attribute("md/metadata_version")?;
    let size = bytes(node, "size")?;
    let members = node.entries("md").into_iter().filter(|name| name.starts_with("dev-"));
    Some(
        members
            .filter_map(|member| {
                let name = member.strip_prefix("dev-")?;
                let dev = sysfs.device_number(name)?;
                let offset = bytes(node, &format!("md/{member}/offset"));
                Some(match (level.as_deref(), offset) {
                    (Some("raid1"), Some(offset)) => whole(dev, size, offset),
                    _ => Below { dev, extents: Vec::new(), transformed: true },
                })
            })
            .collect(),
    )
}
