//! Which volume a device holds: the strongest identity that it offers.
//!
//! Device numbers, names and by-id links are never an identity: all of them are reused. Nor are tgt's SCSI serial
//! (one constant for all) and wwid (made from the target's number): an iSCSI volume is its target and LUN. What is
//! only a name, a slot or a constant makes a weak identity at best, and two volumes must never come to share a strong
//! one.

mod loop_device;
mod nbd;

pub(super) use loop_device::Loops;

use std::{fs, os::unix::fs::FileTypeExt, path::Path};

use super::{
    Dev, VolumeId,
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
    /// It says where the device is, not what it holds: another volume may come to have it.
    Weak,
    /// Its own identity exists and is not known yet: nothing is armed by what it goes by meanwhile.
    Pending,
    /// Memory: nothing on it outlives a reset or a reboot, so there is nothing to remember.
    Memory,
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
}

impl Identity {
    /// An identity of the volume's own.
    #[must_use]
    pub fn strong(scheme: &str, value: &str, origin: impl Into<String>) -> Self {
        Self::new(scheme, value, origin, Strength::Strong)
    }

    fn new(scheme: &str, value: &str, origin: impl Into<String>, strength: Strength) -> Self {
        Self { id: VolumeId(format!("{scheme}:{}", clean(value))), origin: origin.into(), strength }
    }

    fn weak(value: &str, origin: impl Into<String>) -> Self {
        Self::new("path", value, origin, Strength::Weak)
    }
}

/// The value as it goes into an id: bounded, without control characters.
fn clean(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).take(MAX_VALUE).collect()
}

pub(super) fn of(sysfs: &Sysfs, node: &Node) -> Identity {
    of_layer(sysfs, node, MAX_DEPTH)
}

fn of_layer(sysfs: &Sysfs, node: &Node, depth: usize) -> Identity {
    if depth == 0 {
        return by_place(node);
    }
    let own = partition(sysfs, node, depth)
        .or_else(|| memory(node))
        .or_else(|| device_mapper(sysfs, node, depth))
        .or_else(|| md(node))
        .or_else(|| loop_over(sysfs, node, depth))
        .or_else(|| iscsi(sysfs, node))
        .or_else(|| nvme(node))
        .or_else(|| rbd(node))
        .or_else(|| virtio(node))
        .or_else(|| nbd(sysfs, node))
        .or_else(|| scsi(node))
        .unwrap_or_else(|| by_place(node));
    if own.strength == Strength::Weak { longhorn(sysfs, node).unwrap_or(own) } else { own }
}

/// By start, not by PARTUUID: sysfs names the latter on new kernels only, and an upgrade must not lose a record.
fn partition(sysfs: &Sysfs, node: &Node, depth: usize) -> Option<Identity> {
    let parent = of_layer(sysfs, &node.parent()?, depth - 1);
    let start = node.number("start")?;
    Some(Identity {
        id: VolumeId(format!("part:{}#{start}", parent.id)),
        origin: format!("partition that starts at sector {start} of the disk ({})", parent.origin),
        strength: parent.strength,
    })
}

/// The disk that a volume is a partition of, if it is one.
#[must_use]
pub fn disk_of(id: &VolumeId) -> Option<VolumeId> {
    let (disk, _) = id.as_str().strip_prefix("part:")?.rsplit_once('#')?;
    Some(VolumeId(disk.to_owned()))
}

/// zram and RAM disks: an earlier boot's swap space on them must not stand in the way of this boot's.
fn memory(node: &Node) -> Option<Identity> {
    let name = node.name()?;
    let driver = ["zram", "ram"].into_iter().find(|driver| {
        name.strip_prefix(driver)
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    })?;
    Some(Identity::new(driver, name, "memory: nothing on it outlives a reset or a reboot", Strength::Memory))
}

fn device_mapper(sysfs: &Sysfs, node: &Node, depth: usize) -> Option<Identity> {
    let name = node.attribute("dm/name")?;
    let Some(uuid) = node.attribute("dm/uuid") else {
        return Some(Identity::weak(
            &format!("dm/{name}"),
            format!("device mapper name {name}, which has no uuid"),
        ));
    };
    if uuid.starts_with("CRYPT-INTEGRITY-")
        && let [below] = &node.entries("slaves")[..]
        && let Some(below) = sysfs.device_number(below).and_then(|dev| sysfs.node_by_number(dev))
    {
        // What it holds is its device's alone, without a key.
        let below = of_layer(sysfs, &below, depth - 1);
        return Some(Identity {
            id: VolumeId(format!("integrity:{}", below.id)),
            origin: format!("integrity device {name} over the volume ({})", below.origin),
            strength: below.strength,
        });
    }
    // cryptsetup makes these of the mapping's name alone (lib/libdevmapper.c, dm_prepare_uuid).
    if BY_NAME.iter().any(|prefix| uuid.starts_with(prefix)) {
        return Some(Identity::weak(
            &format!("dm/{uuid}"),
            format!("device mapper uuid of {name}, which cryptsetup makes of its name alone"),
        ));
    }
    Some(Identity::strong("dm", without_mapping_name(&uuid), format!("device mapper uuid of {name}")))
}

/// Mappings of which cryptsetup says nothing but their names.
const BY_NAME: &[&str] =
    &["CRYPT-PLAIN-", "CRYPT-TEMP-", "CRYPT-INTEGRITY-", "CRYPT-TCRYPT-", "CRYPT-LOOPAES-"];

/// cryptsetup adds the mapping's name to the container's UUID: under another name it is the same volume.
fn without_mapping_name(uuid: &str) -> &str {
    const HEX: usize = 32;
    for prefix in ["CRYPT-LUKS1-", "CRYPT-LUKS2-"] {
        if let Some(rest) = uuid.strip_prefix(prefix)
            && rest.len() > HEX
            && rest.as_bytes()[..HEX].iter().all(u8::is_ascii_hexdigit)
            && rest.as_bytes()[HEX] == b'-'
        {
            return &uuid[..prefix.len() + HEX];
        }
    }
    uuid
}

/// The array's UUID stands in its members' superblocks, and in sysfs (`md/uuid`) on new kernels only.
fn md(node: &Node) -> Option<Identity> {
    let metadata = node.attribute("md/metadata_version")?;
    if let Some(uuid) = node.attribute("md/uuid") {
        let uuid = if metadata.starts_with("0.90") { words_swapped(&uuid) } else { uuid };
        return Some(md_of_uuid(&uuid, "sysfs"));
    }
    // `mdadm --build` makes arrays without a superblock.
    if metadata == "none" {
        return Some(Identity::weak(&place(node), "an md array without a superblock"));
    }
    Some(Identity::new(
        "path",
        &place(node),
        format!("an md array (metadata {metadata}) whose UUID is not known before a member was probed"),
        Strength::Pending,
    ))
}

/// A UUID of metadata 0.90 as mdadm and libblkid write it: four numbers, which sysfs gives byte by byte as they lie there.
fn words_swapped(uuid: &str) -> String {
    let digits: Vec<char> = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    digits.chunks(8).flat_map(|word| word.chunks(2).rev().flatten()).collect()
}

/// The identity of an md array of this UUID, wherever that was found. sysfs and libblkid write it differently.
#[must_use]
pub fn md_of_uuid(uuid: &str, found_in: &str) -> Identity {
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    Identity::strong("md", &digits.to_ascii_lowercase(), format!("UUID of the md array, from {found_in}"))
}

fn loop_over(sysfs: &Sysfs, node: &Node, depth: usize) -> Option<Identity> {
    let file = node.attribute("loop/backing_file")?;
    let offset = node.number("loop/offset").filter(|offset| *offset != 0);
    let suffix = offset.map_or_else(String::new, |offset| format!("+{offset}"));
    let backing = if sysfs.is_live() {
        sysfs.loops().backing(node, Path::new(&file))
    } else {
        loop_device::recorded(Path::new(&file))
    };
    Some(match backing {
        loop_device::Backing::File(birth) => Identity::strong(
            "loop",
            &format!("{birth}{suffix}"),
            format!("inode and time of birth, or generation, of {file}, the file behind the loop device"),
        ),
        loop_device::Backing::Place(place) => Identity::weak(
            &format!("loop/{place}{suffix}"),
            format!("inode of {file}, the file behind the loop device, which another file may have after it"),
        ),
        loop_device::Backing::Device(dev) => {
            let below = sysfs.node_by_number(dev).map(|node| of_layer(sysfs, &node, depth - 1));
            below.map_or_else(
                || Identity::weak(&format!("loop/{file}{suffix}"), format!("loop device over {file}")),
                |below| Identity {
                    id: VolumeId(format!("loop:{}{suffix}", below.id)),
                    origin: format!("loop device over {file} ({})", below.origin),
                    strength: below.strength,
                },
            )
        }
        loop_device::Backing::Unseen => Identity::weak(
            &format!("loop/{file}{suffix}"),
            format!("loop device over {file}, which cannot be seen from here"),
        ),
        loop_device::Backing::Silent => Identity::new(
            "path",
            &format!("loop/{file}{suffix}"),
            format!("loop device over {file}, which does not tell yet what is behind it"),
            Strength::Pending,
        ),
    })
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
    // Without the target's name its wwid is no help: of tgt it is made from the target's number.
    if target.is_empty() {
        return None;
    }
    Some(Identity::strong(
        "iscsi",
        &format!("{target},lun={lun}"),
        format!("target name and logical unit of iSCSI {session}"),
    ))
}

/// A namespace's own identifier, in the order of their strength (NVM Express Base Specification 2.0, 4.5.1). The
/// kernel gives zeros for what a namespace lacks.
fn nvme(node: &Node) -> Option<Identity> {
    node.name()?.strip_prefix("nvme")?;
    for (attribute, what) in [("uuid", "UUID"), ("nguid", "NGUID"), ("eui", "EUI-64")] {
        let value = node.attribute(attribute).or_else(|| node.attribute(&format!("device/{attribute}")));
        if let Some(value) = value {
            let digits: String = value.chars().filter(char::is_ascii_hexdigit).collect();
            if digits.bytes().any(|digit| digit != b'0') {
                return Some(Identity::strong("nvme", &value, format!("{what} of the NVMe namespace")));
            }
        }
    }
    // Else the kernel makes one of vendor, serial, model and namespace (nvme/host/sysfs.c, wwid_show): an identity
    // where the serial is one, as on Amazon EBS.
    let wwid = node.attribute("wwid").filter(|wwid| wwid.starts_with("nvme."))?;
    let serial = wwid.split('-').nth(1)?;
    if is_constant_serial(serial) {
        return None;
    }
    Some(Identity::strong(
        "nvme",
        &wwid,
        "vendor, serial, model and namespace number: the namespace has no UUID, NGUID or EUI-64",
    ))
}

/// Serials, in hexadecimal, that every disk of a kind shares, and none at all. Google's is `nvme_card` with or without
/// a suffix (its udev rules take the disk's name from vendor data instead).
fn is_constant_serial(hex: &str) -> bool {
    const GOOGLE: &str = "6e766d655f63617264";
    hex.is_empty() || hex.bytes().all(|digit| digit == b'0') || hex.starts_with(GOOGLE)
}

/// Documentation/ABI/testing/sysfs-bus-rbd. By the image's id, which outlives its renaming, and not by its name, which
/// another image may have after it.
fn rbd(node: &Node) -> Option<Identity> {
    let number = node.name()?.strip_prefix("rbd")?;
    number.parse::<u32>().ok()?;
    // The block device lies at /sys/devices/rbd/0/block/rbd0.
    let device = node.up(2)?;
    let (pool, name) = (device.attribute("pool")?, device.attribute("name")?);
    let namespace = device.attribute("pool_ns").map_or_else(String::new, |namespace| format!("{namespace}/"));
    let snapshot = device
        .attribute("current_snap")
        .filter(|snap| snap != "-")
        .map_or_else(String::new, |s| format!("@{s}"));
    let image = device.attribute("image_id").unwrap_or_else(|| name.clone());
    let cluster =
        device.attribute("cluster_fsid").map_or_else(String::new, |fsid| format!(",cluster={fsid}"));
    Some(Identity::strong(
        "rbd",
        &format!("{pool}/{namespace}{image}{snapshot}{cluster}"),
        format!("pool and image id of the RADOS block device {pool}/{namespace}{name}{snapshot}"),
    ))
}

fn virtio(node: &Node) -> Option<Identity> {
    node.name()?.strip_prefix("vd")?;
    let serial = node.attribute("serial")?;
    Some(Identity::strong("virtio", &serial, "serial of the virtio disk"))
}

/// What the client said that it is connected to (`NBD_ATTR_BACKEND_IDENTIFIER`, Linux 5.14); most say nothing. Of `qemu-nbd`
/// the file that it serves.
fn nbd(sysfs: &Sysfs, node: &Node) -> Option<Identity> {
    node.name()?.strip_prefix("nbd")?;
    if let Some(backend) = node.attribute("backend") {
        return Some(Identity::strong(
            "nbd",
            &backend,
            "identifier of the nbd backend, as its client gave it",
        ));
    }
    let process = node.number("pid").filter(|_| sysfs.is_live())?;
    let file = nbd::image(&Path::new("/proc").join(process.to_string()))?;
    Some(Identity::strong(
        "nbd",
        &format!("file={file}"),
        "inode and time of birth of the image that qemu-nbd serves",
    ))
}

/// The designators of SCSI's device identification page, as the kernel shows them (`wwid` in `drivers/scsi/scsi_sysfs.c`).
fn scsi(node: &Node) -> Option<Identity> {
    let wwid = node.attribute("device/wwid")?;
    let (kind, value) = wwid.split_once('.')?;
    let words = value.split_whitespace().collect::<Vec<_>>().join(" ");
    let usable = match kind {
        // tgt and scsi_debug count: 6000 0000 0000 0000 0e00 TTTT TTTT LLLL, 3333 333H HH00 0LLL.
        "naa" => {
            !value.bytes().all(|digit| digit == b'0')
                && !value.starts_with("60000000")
                && !value.starts_with("3333333")
        }
        "eui" => !value.bytes().all(|digit| digit == b'0'),
        // Vendor, model and serial. tgt's is a number, qemu's names the slot.
        "t10" => !value.starts_with("IET ") && !value.contains("QEMU HARDDISK"),
        _ => false,
    };
    usable.then(|| Identity::strong("scsi", &format!("{kind}.{words}"), "SCSI device identification (wwid)"))
}

/// A node below the configured directory. It may be a stale one of an earlier device under this number, so it serves
/// only where the device itself offers nothing of its own, and only if it is the only one.
fn longhorn(sysfs: &Sysfs, node: &Node) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;

    let (directory, dev) = (sysfs.longhorn()?, node.dev()?);
    let mut names = fs::read_dir(directory).ok()?.flatten().filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        (metadata.file_type().is_block_device() && Dev::from_user(metadata.rdev()) == dev)
            .then(|| entry.file_name().to_string_lossy().into_owned())
    });
    let name = names.next()?;
    if names.next().is_some() {
        return None;
    }
    Some(Identity::strong("longhorn", &name, format!("name of its node below {}", directory.display())))
}

fn place(node: &Node) -> String {
    let text = node.path.to_string_lossy();
    text.split_once("/devices/").map_or(&*text, |(_, place)| place).to_owned()
}

fn by_place(node: &Node) -> Identity {
    Identity::weak(&place(node), "its place among the devices; it offers no identity of its own")
}

#[cfg(test)]
mod tests;
