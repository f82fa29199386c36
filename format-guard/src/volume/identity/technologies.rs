//! Which technology shows which names, what they are worth, and where that is said: one table, asked from its
//! first row on.
//!
//! Names are read from sysfs, and from files and questions beside it only where sysfs lacks one that exists.
//! Nothing here may take for a volume's own what another volume has, too: such a name is a place.

use std::{fs, os::unix::fs::FileTypeExt, path::Path};

use super::{
    Identity, Kind, Sources, Strength, VolumeId, by_place, lies::lie, loop_device, md_of_uuid, name, nbd,
    of_layer, place,
};
use crate::volume::{Dev, sysfs::Node};

/// A device that is asked for its names.
pub(super) struct Shown<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) node: &'a Node,
    /// Layers that may still be followed down.
    pub(super) depth: usize,
}

impl Shown<'_> {
    /// The identity of a device that it lies on.
    fn below(&self, dev: Dev) -> Option<Identity> {
        Some(of_layer(self.sources, &self.sources.sysfs.node_by_number(dev)?, self.depth - 1))
    }

    fn slaves(&self) -> Vec<Identity> {
        let names = self.node.entries("slaves");
        names.iter().filter_map(|name| self.below(self.sources.sysfs.device_number(name)?)).collect()
    }
}

/// One row.
#[cfg_attr(not(test), expect(dead_code, reason = "what the page of the book is compared with"))]
pub(super) struct Technology {
    /// For people.
    pub(super) name: &'static str,
    /// The names, best first: scheme, worth, and where it is read.
    pub(super) shows: &'static [(&'static str, Kind, &'static str)],
    /// Where that is said.
    pub(super) source: &'static str,
    /// Reads them; nothing where the device is none of these, or shows nothing.
    read: fn(&Shown<'_>) -> Option<Identity>,
}

/// The identity by the first row that knows one.
pub(super) fn identity(device: &Shown<'_>) -> Option<Identity> {
    TECHNOLOGIES.iter().find_map(|technology| (technology.read)(device))
}

use Kind::{Address, Own, Place};

pub(super) const TECHNOLOGIES: &[Technology] = &[
    Technology {
        name: "partition",
        shows: &[("part", Own, "each name of the disk, and start")],
        source: "Linux, Documentation/ABI/stable/sysfs-block; PARTUUID stands in sysfs on new kernels only",
        read: partition,
    },
    Technology {
        name: "zram, RAM disk",
        shows: &[("zram", Place, "its kernel name"), ("ram", Place, "its kernel name")],
        source: "Linux, Documentation/admin-guide/blockdev/zram.rst: memory",
        read: memory,
    },
    Technology {
        name: "multipath map",
        shows: &[
            ("scsi", Own, "the names of its paths; without paths its wwid, of NAA and EUI-64"),
            ("dm", Own, "dm/uuid, unless the wwid lies"),
            ("path", Place, "dm/uuid, where the wwid lies and the paths disagree"),
        ],
        source: "multipath-tools 0.9, libmultipath/discovery.c: 3 and the NAA, 2 and the EUI-64, 1 and the T10 designator",
        read: multipath,
    },
    Technology {
        name: "device mapper",
        shows: &[
            ("dm", Own, "dm/uuid (LVM-, CRYPT-LUKS1-, CRYPT-LUKS2- without the mapping's name)"),
            ("integrity", Own, "the names of the one device below, of CRYPT-INTEGRITY-"),
            ("path", Place, "dm/name without a uuid, or a uuid that is made of the name"),
        ],
        source: "Linux, Documentation/ABI/testing/sysfs-block-dm; cryptsetup 2.7, lib/libdevmapper.c, dm_prepare_uuid",
        read: device_mapper,
    },
    Technology {
        name: "md array",
        shows: &[
            ("md", Own, "md/uuid, or the superblock of a member"),
            ("path", Place, "its kernel name, of an array without a superblock"),
        ],
        source: "Linux, Documentation/admin-guide/md.rst",
        read: md,
    },
    Technology {
        name: "loop device",
        shows: &[
            ("loop", Own, "loop/backing_file: its inode and time of birth, or generation"),
            ("loop", Own, "loop/backing_file: the names of a block device"),
            ("path", Place, "loop/backing_file on FAT, NFS and SMB, or without either"),
        ],
        source: "statx(2), ioctl_iflags(2) FS_IOC_GETVERSION; Linux, fs/fat/inode.c: inode numbers of a mount",
        read: loop_over,
    },
    Technology {
        name: "iSCSI unit",
        shows: &[
            ("scsi", Own, "device/wwid, unless it lies"),
            (
                "iscsi",
                Address,
                "class/iscsi_session/*/targetname and the unit's number; its own beside a wwid that lies, of one unit",
            ),
            ("iscsi", Place, "the same, of a target with several units whose wwids lie"),
        ],
        source: "RFC 7143; kubernetes #90982, NetApp/trident #101, seagate-exos-x-csi #138: numbers of units are recycled",
        read: iscsi,
    },
    Technology {
        name: "NVMe namespace",
        shows: &[
            ("nvme", Own, "uuid"),
            ("nvme", Own, "nguid"),
            ("nvme", Own, "eui"),
            (
                "nvme",
                Address,
                "vendor, serial, model and namespace number (wwid); its own beside none of these",
            ),
        ],
        source: "NVM Express Base Specification 2.0, 4.5.1; longhorn-spdk-engine: its NGUID is random for each exposure, and \
                 the name of the device above it is the volume's",
        read: nvme,
    },
    Technology {
        name: "RADOS block device",
        shows: &[
            ("rbd", Own, "cluster_fsid, pool_id, pool_ns, image_id, current_snap"),
            ("rbd", Address, "the same with pool and name, which may be another's after it"),
        ],
        source: "Linux, Documentation/ABI/testing/sysfs-bus-rbd",
        read: rbd,
    },
    Technology {
        name: "virtio disk",
        shows: &[("virtio", Own, "serial"), ("path", Place, "its slot, without one")],
        source: "Virtual I/O Device 1.2, 5.2.6.1: VIRTIO_BLK_T_GET_ID, 20 bytes",
        read: virtio,
    },
    Technology {
        name: "network block device",
        shows: &[
            ("nbd", Own, "backend, unless rbd-nbd made it up"),
            ("nbd", Own, "the image that qemu-nbd serves: inode and time of birth"),
            ("path", Place, "its kernel name"),
        ],
        source: "Linux, include/uapi/linux/nbd-netlink.h: NBD_ATTR_BACKEND_IDENTIFIER; ceph #41323: a random one for each map",
        read: nbd_device,
    },
    Technology {
        name: "bcache",
        shows: &[("bcache", Own, "bcache/backing_dev_uuid"), ("path", Place, "its kernel name")],
        source: "Linux, drivers/md/bcache/sysfs.c",
        read: bcache,
    },
    Technology {
        name: "SCSI disk",
        shows: &[("scsi", Own, "device/wwid, unless it lies"), ("path", Place, "its place")],
        source: "SPC-5, 7.7.6; Linux, drivers/scsi/scsi_lib.c, scsi_vpd_lun_id",
        read: scsi,
    },
    Technology {
        name: "DRBD, zvol, ublk, null_blk",
        shows: &[("path", Place, "its kernel name: what names the volume stands not in sysfs")],
        source: "LINBIT drbd 9, OpenZFS 2.2 zvol_os.c, Linux drivers/block/ublk_drv.c",
        read: |device| virtual_disk(device.node),
    },
];

/// By start, not by PARTUUID: sysfs names the latter on new kernels only, and an upgrade must not lose a
/// record.
fn partition(device: &Shown<'_>) -> Option<Identity> {
    let node = device.node;
    let parent = of_layer(device.sources, &node.parent()?, device.depth - 1);
    let start = node.number("start")?;
    Some(parent.of_upper(
        |disk| format!("part:{disk}#{start}"),
        |disk| format!("partition that starts at sector {start} of the disk ({disk})"),
    ))
}

/// zram and RAM disks: an earlier boot's swap space on them must not stand in the way of this boot's.
fn memory(device: &Shown<'_>) -> Option<Identity> {
    let kernel_name = device.node.name()?;
    let driver = ["zram", "ram"].into_iter().find(|driver| {
        kernel_name
            .strip_prefix(driver)
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    })?;
    let origin = "memory: nothing on it outlives a reset or a reboot";
    Some(Identity::new(driver, kernel_name, origin, Strength::Memory).read(device.node.file("")))
}

/// The name that a multipath wwid is of: `3` and the NAA, `2` and the EUI-64. Of others the paths alone tell.
fn of_wwid(wwid: &str) -> Option<VolumeId> {
    let is_hex = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    match (wwid.get(..1)?, wwid.get(1..)?) {
        ("3", digits) if is_hex(digits) => Some(name("scsi", &format!("naa.{digits}"))),
        ("2", digits) if is_hex(digits) => Some(name("scsi", &format!("eui.{digits}"))),
        _ => wwid.strip_prefix("uuid.").map(|uuid| name("nvme", uuid)),
    }
}

/// A map is one more path to the volume of its paths, and so is what it is called by that volume's own
/// designator.
fn multipath(device: &Shown<'_>) -> Option<Identity> {
    let node = device.node;
    let uuid = node.attribute("dm/uuid")?;
    let wwid = uuid.strip_prefix("mpath-")?;
    let (from, alias) = (node.file("dm/uuid"), name("dm", &uuid));
    let by_wwid = of_wwid(wwid);
    let lies = by_wwid.as_ref().and_then(|id| lie(id.as_str()));
    let paths = device.slaves();
    let agreed = paths
        .first()
        .filter(|first| first.strength == Strength::Strong && paths.iter().all(|path| path.id == first.id));
    if let Some(volume) = agreed {
        let origin = format!("multipath map of the paths to the volume ({})", volume.origin);
        let identity = Identity { origin, ..volume.clone() };
        return Some(if lies.is_none() { identity.also(Kind::Own, alias, from) } else { identity });
    }
    if let Some(lie) = lies {
        let origin = format!("multipath map by a wwid that names nothing: {}", lie.told());
        return Some(Identity::weak(&format!("dm/{uuid}"), origin).read(from));
    }
    let origin = "wwid of the multipath map";
    Some(match by_wwid {
        Some(id) => {
            let (scheme, value) = id.as_str().split_once(':')?;
            Identity::strong(scheme, value, origin).read(from.clone()).also(Kind::Own, alias, from)
        }
        None => Identity::strong("dm", &uuid, origin).read(from),
    })
}

fn device_mapper(device: &Shown<'_>) -> Option<Identity> {
    let node = device.node;
    let dm_name = node.attribute("dm/name")?;
    let Some(uuid) = node.attribute("dm/uuid") else {
        let origin = format!("device mapper name {dm_name}, which has no uuid");
        return Some(Identity::weak(&format!("dm/{dm_name}"), origin).read(node.file("dm/name")));
    };
    let from = node.file("dm/uuid");
    if uuid.starts_with("CRYPT-INTEGRITY-")
        && let [below] = &node.entries("slaves")[..]
        && let Some(below) = device.sources.sysfs.device_number(below).and_then(|dev| device.below(dev))
    {
        // An integrity device has no key: its content is told by the device below alone.
        return Some(below.of_upper(
            |below| format!("integrity:{below}"),
            |below| format!("integrity device {dm_name} over the volume ({below})"),
        ));
    }
    // cryptsetup makes these of the mapping's name alone (lib/libdevmapper.c, dm_prepare_uuid).
    if BY_NAME.iter().any(|prefix| uuid.starts_with(prefix)) {
        let origin = format!("device mapper uuid of {dm_name}, which cryptsetup makes of its name alone");
        return Some(Identity::weak(&format!("dm/{uuid}"), origin).read(from));
    }
    // kpartx: a partition of a map.
    let wwid = uuid.strip_prefix("part").and_then(|rest| rest.split_once("-mpath-")).map(|(_, wwid)| wwid);
    if let Some(lie) = wwid.and_then(of_wwid).and_then(|id| lie(id.as_str())) {
        let origin = format!("partition of a multipath map by a wwid that names nothing: {}", lie.told());
        return Some(Identity::weak(&format!("dm/{uuid}"), origin).read(from));
    }
    let origin = format!("device mapper uuid of {dm_name}");
    Some(Identity::strong("dm", without_mapping_name(&uuid), origin).read(from))
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
fn md(device: &Shown<'_>) -> Option<Identity> {
    let node = device.node;
    let metadata = node.attribute("md/metadata_version")?;
    if let Some(uuid) = node.attribute("md/uuid") {
        let uuid = if metadata.starts_with("0.90") { words_swapped(&uuid) } else { uuid };
        return Some(md_of_uuid(&uuid, "sysfs").read(node.file("md/uuid")));
    }
    // `mdadm --build` makes arrays without a superblock.
    if metadata == "none" {
        return Some(Identity::weak(&place(node), "an md array without a superblock").read(node.file("")));
    }
    Some(Identity::new(
        "path",
        &place(node),
        format!("an md array (metadata {metadata}) whose UUID is not known before a member was probed"),
        Strength::Pending,
    ))
}

/// A UUID of metadata 0.90 as mdadm and libblkid write it: four numbers, which sysfs gives byte by byte as
/// they lie there.
fn words_swapped(uuid: &str) -> String {
    let digits: Vec<char> = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    digits.chunks(8).flat_map(|word| word.chunks(2).rev().flatten()).collect()
}

fn loop_over(device: &Shown<'_>) -> Option<Identity> {
    let (sysfs, node) = (device.sources.sysfs, device.node);
    let file = node.attribute("loop/backing_file")?;
    let offset = node.number("loop/offset").filter(|offset| *offset != 0);
    let suffix = offset.map_or_else(String::new, |offset| format!("+{offset}"));
    let backing = if sysfs.is_live() {
        device.sources.loops.backing(node, Path::new(&file))
    } else {
        loop_device::recorded(Path::new(&file))
    };
    let identity = match backing {
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
            let origin = format!("loop device over {file}");
            return Some(device.below(dev).map_or_else(
                || {
                    Identity::weak(&format!("loop/{file}{suffix}"), origin.clone())
                        .read(node.file("loop/backing_file"))
                },
                |below| {
                    below.of_upper(
                        |below| format!("loop:{below}{suffix}"),
                        |below| format!("{origin} ({below})"),
                    )
                },
            ));
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
    };
    Some(identity.read(node.file("loop/backing_file")))
}

/// `/sys/devices/platform/host0/session1/target0:0:0/0:0:0:1/block/sda`: the session names the target, the
/// last part of the SCSI address is the unit.
fn iscsi(device: &Shown<'_>) -> Option<Identity> {
    let (sysfs, node) = (device.sources.sysfs, device.node);
    let parts: Vec<&str> = node.path.iter().filter_map(|part| part.to_str()).collect();
    let session = parts.iter().find(|part| {
        part.strip_prefix("session").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })?;
    let block = parts.iter().rposition(|part| *part == "block")?;
    let lun: u64 = parts.get(block.checked_sub(1)?)?.split(':').nth(3)?.parse().ok()?;
    let targetname = format!("class/iscsi_session/{session}/targetname");
    let target = sysfs.attribute(&targetname).filter(|target| !target.is_empty());
    let (designated, lies) = designator(node);
    let address = target.map(|target| (format!("{target},lun={lun}"), sysfs.file(&targetname)));
    if let Some(own) = designated {
        return Some(match address {
            Some((address, from)) => {
                let origin = format!("{} of the unit at {address}", own.origin);
                Identity { origin, ..own }.also(Kind::Address, name("iscsi", &address), from)
            }
            None => own,
        });
    }
    // Without the target's name nothing else is a help: of tgt the designator is made from the target's
    // number.
    let (address, from) = address?;
    let several = units(node) > 1;
    let origin = format!(
        "target name and logical unit of iSCSI {session}{}",
        if several { ", which has several" } else { "" }
    );
    let strength = if several { Strength::Weak } else { Strength::Strong };
    let identity = Identity::new("iscsi", &address, origin, strength).read(from);
    Some(match lies {
        Some(lie) => identity.also(Kind::Place, lie.id, lie.from),
        None => identity,
    })
}

/// Logical units of a disk's target that are block devices here.
fn units(node: &Node) -> usize {
    let Some(target) = node.up(3) else { return 1 };
    target.entries("").iter().filter(|unit| target.path.join(unit).join("block").is_dir()).count().max(1)
}

/// A namespace's own identifiers, in the order of their strength (NVM Express Base Specification 2.0, 4.5.1).
/// The kernel gives zeros for what a namespace lacks.
fn nvme(device: &Shown<'_>) -> Option<Identity> {
    let node = device.node;
    node.name()?.strip_prefix("nvme")?;
    let mut identity: Option<Identity> = None;
    for (attribute, what) in [("uuid", "UUID"), ("nguid", "NGUID"), ("eui", "EUI-64")] {
        let found = [attribute.to_owned(), format!("device/{attribute}")]
            .into_iter()
            .find_map(|file| Some((node.attribute(&file)?, node.file(&file))));
        let Some((value, from)) = found else { continue };
        let id = name("nvme", &value);
        if lie(id.as_str()).is_some() {
            continue;
        }
        identity = Some(match identity {
            Some(identity) => identity.also(Kind::Own, id, from),
            None => Identity::strong("nvme", &value, format!("{what} of the NVMe namespace")).read(from),
        });
    }
    let Some((by_serial, from)) = nvme_by_serial(node) else { return identity };
    let id = name("nvme", &by_serial);
    if lie(id.as_str()).is_some() {
        return identity;
    }
    Some(match identity {
        Some(identity) => identity.also(Kind::Address, id, from),
        None => Identity::strong(
            "nvme",
            &by_serial,
            "vendor, serial, model and namespace number: the namespace has no UUID, NGUID or EUI-64",
        )
        .read(from),
    })
}

/// What the kernel makes of vendor, serial, model and namespace (nvme/host/sysfs.c, `wwid_show`) where it
/// knows no better; made alike where it does, so that a volume is found by it whose better names another
/// kernel does not believe.
fn nvme_by_serial(node: &Node) -> Option<(String, String)> {
    if let Some(wwid) = node.attribute("wwid").filter(|wwid| wwid.starts_with("nvme.")) {
        return Some((wwid, node.file("wwid")));
    }
    let vendor = node.attribute("device/device/vendor")?;
    let (serial, model) = (node.attribute("device/serial")?, node.attribute("device/model")?);
    let number = node.number("nsid")?;
    let hex = |text: &str| text.bytes().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let vendor = vendor.strip_prefix("0x")?;
    Some((format!("nvme.{vendor}-{}-{}-{number:08x}", hex(&serial), hex(&model)), node.file("device/serial")))
}

/// By the ids of pool and image, which outlive their renaming, and not by names, which others may have after
/// them.
fn rbd(device: &Shown<'_>) -> Option<Identity> {
    let node = device.node;
    let number = node.name()?.strip_prefix("rbd")?;
    number.parse::<u32>().ok()?;
    // The block device lies at /sys/devices/rbd/0/block/rbd0.
    let node = node.up(2)?;
    let (pool, image) = (node.attribute("pool")?, node.attribute("name")?);
    let namespace = node.attribute("pool_ns").map_or_else(String::new, |namespace| format!("{namespace}/"));
    let snapshot = node
        .attribute("current_snap")
        .filter(|snap| snap != "-")
        .map_or_else(String::new, |s| format!("@{s}"));
    let id = node.attribute("image_id");
    let cluster = node.attribute("cluster_fsid").map_or_else(String::new, |fsid| format!(",cluster={fsid}"));
    let of = |pool: &str| {
        let image = id.as_deref().unwrap_or(&image);
        format!("{pool}/{namespace}{image}{snapshot}{cluster}")
    };
    let origin = format!("pool and image id of the RADOS block device {pool}/{namespace}{image}{snapshot}");
    Some(match node.attribute("pool_id").filter(|_| id.is_some()) {
        Some(pool_id) => Identity::strong("rbd", &of(&format!("pool={pool_id}")), origin)
            .read(node.file("image_id"))
            .also(Kind::Address, name("rbd", &of(&pool)), node.file("pool")),
        None => Identity::strong("rbd", &of(&pool), origin).read(node.file("name")),
    })
}

fn virtio(device: &Shown<'_>) -> Option<Identity> {
    let node = device.node;
    node.name()?.strip_prefix("vd")?;
    let serial = node.attribute("serial")?;
    Some(Identity::strong("virtio", &serial, "serial of the virtio disk").read(node.file("serial")))
}

/// What the client said that it is connected to (`NBD_ATTR_BACKEND_IDENTIFIER`, Linux 5.14); most say
/// nothing. Of `qemu-nbd` the file that it serves.
fn nbd_device(device: &Shown<'_>) -> Option<Identity> {
    let node = device.node;
    node.name()?.strip_prefix("nbd")?;
    let number = node.number("pid").filter(|_| device.sources.sysfs.is_live());
    let process = number.map(|number| Path::new("/proc").join(number.to_string()));
    if let Some(backend) = node.attribute("backend") {
        let from = node.file("backend");
        if process.as_deref().is_some_and(nbd::is_made_up) {
            let origin = "its kernel name; rbd-nbd makes up an identifier for each mapping";
            let made_up = name("nbd", &backend);
            return Some(Identity { origin: origin.to_owned(), ..by_place(node) }.also(
                Kind::Place,
                made_up,
                from,
            ));
        }
        let origin = "identifier of the nbd backend, as its client gave it";
        return Some(Identity::strong("nbd", &backend, origin).read(from));
    }
    let process = process?;
    let file = nbd::image(&process)?;
    let origin = "inode and time of birth of the image that qemu-nbd serves";
    Some(
        Identity::strong("nbd", &format!("file={file}"), origin)
            .read(process.join("fd").display().to_string()),
    )
}

fn bcache(device: &Shown<'_>) -> Option<Identity> {
    const UUID: &str = "bcache/backing_dev_uuid";
    let node = device.node;
    node.name()?.strip_prefix("bcache")?;
    let uuid = node.attribute(UUID)?;
    Some(Identity::strong("bcache", &uuid, "UUID of the bcache backing device").read(node.file(UUID)))
}

fn scsi(device: &Shown<'_>) -> Option<Identity> {
    let (own, lies) = designator(device.node);
    own.or_else(|| {
        let lie = lies?;
        let origin = format!("its place among the devices; its designator is {}", lie.told);
        Some(Identity { origin, ..by_place(device.node) }.also(Kind::Place, lie.id, lie.from))
    })
}

/// A designator that names nothing.
struct Lying {
    id: VolumeId,
    from: String,
    told: String,
}

/// The designators of SCSI's device identification page, as the kernel shows them (`wwid` in
/// `drivers/scsi/scsi_sysfs.c`): the unit's own, or what is known to lie.
fn designator(node: &Node) -> (Option<Identity>, Option<Lying>) {
    const WWID: &str = "device/wwid";
    let Some(wwid) = node.attribute(WWID) else { return (None, None) };
    let Some((kind @ ("naa" | "eui" | "t10"), value)) = wwid.split_once('.') else { return (None, None) };
    let words = value.split_whitespace().collect::<Vec<_>>().join(" ");
    let (value, from) = (format!("{kind}.{words}"), node.file(WWID));
    let id = name("scsi", &value);
    match lie(id.as_str()) {
        Some(lie) => (None, Some(Lying { id, from, told: lie.told() })),
        None => {
            (Some(Identity::strong("scsi", &value, "SCSI device identification (wwid)").read(from)), None)
        }
    }
}

fn virtual_disk(node: &Node) -> Option<Identity> {
    let kernel_name = node.name()?;
    let is_one = ["drbd", "zd", "ublkb", "nullb"].iter().any(|driver| {
        kernel_name
            .strip_prefix(driver)
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    is_one.then(|| by_place(node))
}

/// A node below the configured directory. It may be a stale one of an earlier device under this number, so it
/// serves only where the device itself offers nothing of its own, and only if it is the only one.
pub(super) fn longhorn(device: &Shown<'_>) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;

    let (directory, dev) = (device.sources.longhorn?, device.node.dev()?);
    let mut names = fs::read_dir(directory).ok()?.flatten().filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        (metadata.file_type().is_block_device() && Dev::from_user(metadata.rdev()) == dev)
            .then(|| entry.file_name().to_string_lossy().into_owned())
    });
    let node = names.next()?;
    if names.next().is_some() {
        return None;
    }
    let origin = format!("name of its node below {}", directory.display());
    Some(Identity::strong("longhorn", &node, origin).read(directory.join(&node).display().to_string()))
}
