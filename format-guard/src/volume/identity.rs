//! Which volume a device holds: the strongest identity that it offers.
//!
//! Device numbers, names and by-id links are never an identity: all of them are reused. Nor are tgt's SCSI serial
//! (one constant for all) and wwid (made from the target's number): an iSCSI volume is its target and LUN.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::{
    VolumeId,
    sysfs::{Node, Sysfs},
};

/// Longest value that goes into an id, in bytes.
const MAX_VALUE: usize = 512;

/// A volume's id, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The id.
    pub id: VolumeId,
    /// The facts that it was made of, for people.
    pub origin: String,
    /// It says where the device is, not what it holds: another volume may come to have it.
    pub weak: bool,
}

impl Identity {
    fn strong(scheme: &str, value: &str, origin: impl Into<String>) -> Self {
        Self { id: VolumeId(format!("{scheme}:{}", clean(value))), origin: origin.into(), weak: false }
    }

    fn weak(value: &str, origin: impl Into<String>) -> Self {
        Self { id: VolumeId(format!("path:{}", clean(value))), origin: origin.into(), weak: true }
    }
}

/// The value as it goes into an id: bounded, without control characters.
fn clean(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).take(MAX_VALUE).collect()
}

pub(super) fn of(sysfs: &Sysfs, node: &Node) -> Identity {
    partition(sysfs, node)
        .or_else(|| device_mapper(node))
        .or_else(|| loop_device(node))
        .or_else(|| iscsi(sysfs, node))
        .unwrap_or_else(|| by_place(node))
}

/// By start, not by PARTUUID: sysfs names the latter on new kernels only, and an upgrade must not lose a record.
fn partition(sysfs: &Sysfs, node: &Node) -> Option<Identity> {
    let parent = of(sysfs, &node.parent()?);
    let start = node.number("start")?;
    Some(Identity {
        id: VolumeId(format!("part:{}#{start}", parent.id)),
        origin: format!("partition that starts at sector {start} of the disk ({})", parent.origin),
        weak: parent.weak,
    })
}

fn device_mapper(node: &Node) -> Option<Identity> {
    let name = node.attribute("dm/name")?;
    Some(match node.attribute("dm/uuid") {
        Some(uuid) => Identity::strong("dm", &uuid, format!("device mapper uuid of {name}")),
        None => {
            Identity::weak(&format!("dm/{name}"), format!("device mapper name {name}, which has no uuid"))
        }
    })
}

fn loop_device(node: &Node) -> Option<Identity> {
    let file = node.attribute("loop/backing_file")?;
    let offset = node.number("loop/offset").filter(|offset| *offset != 0);
    let suffix = offset.map_or_else(String::new, |offset| format!("+{offset}"));
    let Some(backing) = backing_file(Path::new(&file)) else {
        return Some(Identity::weak(
            &format!("loop/{file}{suffix}"),
            format!("loop device over {file}, which cannot be seen from here"),
        ));
    };
    Some(Identity::strong(
        "loop",
        &format!("{backing}{suffix}"),
        format!("device, inode and birth of {file}"),
    ))
}

/// `dev:inode:birth` of the file behind a loop device, its birth in nanoseconds since 1970.
fn backing_file(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    if metadata.file_type().is_block_device() {
        return Some(format!("block:{}", super::Dev::from_user(metadata.rdev())));
    }
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = statx(CWD, path, AtFlags::empty(), flags).ok()?;
    let birth = if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
        0
    } else {
        i128::from(stat.stx_btime.tv_sec) * 1_000_000_000 + i128::from(stat.stx_btime.tv_nsec)
    };
    Some(format!("{}:{}:{}:{birth}", stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

/// `/sys/devices/platform/host0/session1/target0:0:0/0:0:0:1/block/sda`: the session names the target, the last
/// part of the SCSI address is the LUN.
fn iscsi(sysfs: &Sysfs, node: &Node) -> Option<Identity> {
    let parts: Vec<&str> = node.path.iter().filter_map(|part| part.to_str()).collect();
    let session = parts.iter().find(|part| {
        part.strip_prefix("session").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })?;
    let block = parts.iter().rposition(|part| *part == "block")?;
    let lun: u64 = parts.get(block.checked_sub(1)?)?.split(':').nth(3)?.parse().ok()?;
    let target = sysfs.attribute(&format!("class/iscsi_session/{session}/targetname"))?;
    if target.is_empty() {
        return None;
    }
    Some(Identity::strong(
        "iscsi",
        &format!("{target},lun={lun}"),
        format!("target name and logical unit of iSCSI {session}"),
    ))
}

fn by_place(node: &Node) -> Identity {
    let text = node.path.to_string_lossy();
    let place = text.split_once("/devices/").map_or(&*text, |(_, place)| place);
    Identity::weak(place, "its place among the devices; it offers no identity of its own")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A sysfs tree of one disk at `device`, with these attributes (paths below the device).
    fn tree(device: &str, attributes: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("devices").join(device);
        for (name, value) in [("dev", "8:0"), ("size", "2048"), ("diskseq", "5")].iter().chain(attributes) {
            let file = path.join(name);
            fs::create_dir_all(file.parent().expect("below the root")).expect("directory");
            fs::write(file, format!("{value}\n")).expect("attribute");
        }
        let class = root.path().join("class/block");
        fs::create_dir_all(&class).expect("directory");
        symlink(&path, class.join(path.file_name().expect("name"))).expect("link");
        root
    }

    fn identity(root: &Path, name: &str) -> Identity {
        Sysfs::at(root).device(name).expect("device").identity
    }

    #[test]
    fn an_iscsi_volume_is_its_target_and_lun_not_its_wwid() {
        let root = tree(
            "platform/host0/session3/target0:0:0/0:0:0:1/block/sda",
            &[("device/wwid", "t10.IET     00010001")],
        );
        let session = root.path().join("class/iscsi_session/session3");
        fs::create_dir_all(&session).expect("directory");
        fs::write(session.join("targetname"), "iqn.2019-10.io.longhorn:pvc-1\n").expect("attribute");
        let identity = identity(root.path(), "sda");
        assert_eq!(identity.id.as_str(), "iscsi:iqn.2019-10.io.longhorn:pvc-1,lun=1");
        assert!(!identity.weak);
    }

    #[test]
    fn a_partition_is_where_it_starts_on_its_disk() {
        let root = tree("virtual/block/dm-3", &[("dm/name", "disk"), ("dm/uuid", "mpath-36001")]);
        let disk = root.path().join("devices/virtual/block/dm-3");
        let part = disk.join("dm-3p1");
        fs::create_dir_all(&part).expect("directory");
        for (name, value) in [("partition", "1"), ("start", "2048"), ("size", "100"), ("dev", "259:0")] {
            fs::write(part.join(name), value).expect("attribute");
        }
        symlink(&part, root.path().join("class/block/dm-3p1")).expect("link");
        let device = Sysfs::at(root.path()).device("dm-3p1").expect("device");
        assert_eq!(device.identity.id.as_str(), "part:dm:mpath-36001#2048");
        assert_eq!((device.diskseq, device.size), (5, 51200));
    }

    #[test]
    fn a_device_mapper_name_without_uuid_is_weak() {
        let root = tree("virtual/block/dm-0", &[("dm/name", "scratch"), ("dm/uuid", "")]);
        let identity = identity(root.path(), "dm-0");
        assert_eq!(identity.id.as_str(), "path:dm/scratch");
        assert!(identity.weak);
    }

    #[test]
    fn a_loop_device_is_the_file_behind_it() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let path = file.path().to_str().expect("utf-8");
        let root = tree("virtual/block/loop0", &[("loop/backing_file", path), ("loop/offset", "4096")]);
        let first = identity(root.path(), "loop0");
        assert!(
            first.id.as_str().starts_with("loop:") && first.id.as_str().ends_with("+4096"),
            "{}",
            first.id
        );
        let copy = tempfile::NamedTempFile::new().expect("file");
        fs::rename(copy.path(), file.path()).expect("rename");
        assert_ne!(first.id, identity(root.path(), "loop0").id);
    }

    #[test]
    fn a_device_that_offers_nothing_is_weak() {
        let root = tree("pci0000:00/virtio1/block/vda", &[]);
        let identity = identity(root.path(), "vda");
        assert_eq!(identity.id.as_str(), "path:pci0000:00/virtio1/block/vda");
        assert!(identity.weak);
    }
}
