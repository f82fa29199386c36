use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::*;
use crate::volume::{
    Dev,
    device::{Device, Devices},
};

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
    Devices::recorded(root).device(name).expect("device").identity
}

/// The identity of one disk with these attributes.
fn of_disk(device: &str, attributes: &[(&str, &str)]) -> (String, Strength) {
    let root = tree(device, attributes);
    let name = device.rsplit('/').next().expect("a name");
    let identity = identity(root.path(), name);
    (identity.id.to_string(), identity.strength)
}

fn strong(id: &str) -> (String, Strength) {
    (id.to_owned(), Strength::Strong)
}

fn weak(id: &str) -> (String, Strength) {
    (id.to_owned(), Strength::Weak)
}

/// What each name is worth, in order.
fn names(identity: &Identity) -> Vec<(&str, Kind)> {
    identity.names.iter().map(|name| (name.id.as_str(), name.kind)).collect()
}

/// Adds a device to a tree, and a name of it that the tests look it up by.
fn add(root: &Path, device: &str, attributes: &[(&str, &str)]) -> PathBuf {
    let path = root.join("devices").join(device);
    for (name, value) in attributes {
        let file = path.join(name);
        fs::create_dir_all(file.parent().expect("below the root")).expect("directory");
        fs::write(file, format!("{value}\n")).expect("attribute");
    }
    for class in ["class/block", "dev/block"] {
        fs::create_dir_all(root.join(class)).expect("directory");
    }
    symlink(&path, root.join("class/block").join(path.file_name().expect("name"))).expect("link");
    for (_, dev) in attributes.iter().filter(|(name, _)| *name == "dev") {
        symlink(&path, root.join("dev/block").join(dev)).expect("link");
    }
    path
}

/// A unit of an iSCSI target, whose designator is this.
fn unit(root: &Path, disk: &str, target: &str, number: u32, wwid: &str) {
    let minor = format!("8:{number}");
    let device = format!("platform/host0/session3/target0:0:0/0:0:0:{number}/block/{disk}");
    add(root, &device, &[("dev", &minor), ("size", "2048"), ("diskseq", "5"), ("device/wwid", wwid)]);
    let session = root.join("class/iscsi_session/session3");
    fs::create_dir_all(&session).expect("directory");
    fs::write(session.join("targetname"), target).expect("attribute");
}

const TARGET: &str = "iqn.2019-10.io.longhorn:pvc-1";
const COUNTER: &str = "naa.60000000000000000e00000000010001";
const LIO: &str = "naa.6001405f0e7a4d1c2b3a4d5e6f708192";

#[test]
fn an_iscsi_volume_whose_wwid_counts_is_its_target_as_long_as_that_has_one_unit() {
    for wwid in ["t10.IET     00010001", COUNTER] {
        let root = tempfile::tempdir().expect("directory");
        unit(root.path(), "sda", TARGET, 1, wwid);
        let one = identity(root.path(), "sda");
        assert_eq!((one.id.as_str(), one.strength), (&*format!("iscsi:{TARGET},lun=1"), Strength::Strong));
        assert_eq!(one.names[1].kind, Kind::Place, "the counter is shown for what it is");
        // Units of one target are numbered anew as they come and go.
        unit(root.path(), "sdb", TARGET, 2, "naa.60000000000000000e00000000010002");
        for (disk, number) in [("sda", 1), ("sdb", 2)] {
            let one = identity(root.path(), disk);
            assert_eq!(
                (one.id.as_str(), one.strength),
                (&*format!("iscsi:{TARGET},lun={number}"), Strength::Weak)
            );
        }
    }
}

#[test]
fn an_iscsi_volume_with_a_designator_of_its_own_is_that_whatever_its_units_number() {
    let root = tempfile::tempdir().expect("directory");
    unit(root.path(), "sda", "iqn.2010-01.com.array:host-1", 5, LIO);
    let volume = identity(root.path(), "sda");
    let own = format!("scsi:{LIO}");
    assert_eq!((volume.id.as_str(), volume.strength), (&*own, Strength::Strong));
    assert_eq!(
        names(&volume),
        [(&*own, Kind::Own), ("iscsi:iqn.2010-01.com.array:host-1,lun=5", Kind::Address)]
    );
    assert!(volume.names[0].from.ends_with("/block/sda/device/wwid"), "{}", volume.names[0].from);
    assert!(volume.names[1].from.ends_with("class/iscsi_session/session3/targetname"));
    // A partition of it goes by each of them.
    let disk = "platform/host0/session3/target0:0:0/0:0:0:5/block/sda";
    let attributes = [("partition", "1"), ("start", "2048"), ("size", "100"), ("dev", "8:6")];
    add(root.path(), &format!("{disk}/sda1"), &attributes);
    let partition = identity(root.path(), "sda1");
    let own = format!("part:scsi:{LIO}#2048");
    assert_eq!(
        names(&partition),
        [(&*own, Kind::Own), ("part:iscsi:iqn.2010-01.com.array:host-1,lun=5#2048", Kind::Address)]
    );
}

/// A map over paths that are units of one target each.
fn map(wwid: &str, paths: &[(&str, u32, &str)]) -> Identity {
    let root = tempfile::tempdir().expect("directory");
    let uuid = format!("mpath-{wwid}");
    let map = add(
        root.path(),
        "virtual/block/dm-0",
        &[("dev", "253:0"), ("size", "2048"), ("dm/name", "mpatha"), ("dm/uuid", &uuid)],
    );
    fs::create_dir_all(map.join("slaves")).expect("directory");
    for (disk, number, wwid) in paths {
        unit(root.path(), disk, TARGET, *number, wwid);
        fs::write(map.join("slaves").join(disk), "").expect("slave");
    }
    identity(root.path(), "dm-0")
}

#[test]
fn a_multipath_map_is_the_volume_of_its_paths() {
    let own = format!("scsi:{LIO}");
    let alias = "dm:mpath-36001405f0e7a4d1c2b3a4d5e6f708192";
    let over = map("36001405f0e7a4d1c2b3a4d5e6f708192", &[("sda", 1, LIO), ("sdb", 2, LIO)]);
    assert_eq!(over.id.as_str(), own);
    assert_eq!(over.names.last().map(|name| (name.id.as_str(), name.kind)), Some((alias, Kind::Own)));
    // All its paths are gone.
    let alone = map("36001405f0e7a4d1c2b3a4d5e6f708192", &[]);
    assert_eq!(names(&alone), [(&*own, Kind::Own), (alias, Kind::Own)]);
    assert_eq!(map("20025385a61b14a1c", &[]).id.as_str(), "scsi:eui.0025385a61b14a1c");
    assert_eq!(
        map("uuid.b1f9a2ba-1f0f-4c5e-9d3c-2f0c4ad5d1a0", &[]).id.as_str(),
        "nvme:b1f9a2ba-1f0f-4c5e-9d3c-2f0c4ad5d1a0"
    );
    assert_eq!(map("1ATA_ST4000_Z1Z0ABCD", &[]).id.as_str(), "dm:mpath-1ATA_ST4000_Z1Z0ABCD");
}

#[test]
fn a_multipath_map_by_a_counter_is_a_place_unless_its_paths_agree() {
    let wwid = "360000000000000000e00000000010001";
    let place = (format!("path:dm/mpath-{wwid}"), Strength::Weak);
    let of = |map: &Identity| (map.id.to_string(), map.strength);
    assert_eq!(of(&map(wwid, &[])), place);
    assert_eq!(of(&map(wwid, &[("sda", 1, COUNTER)])), strong(&format!("iscsi:{TARGET},lun=1")));
    assert_eq!(of(&map(wwid, &[("sda", 1, COUNTER), ("sdb", 2, COUNTER)])), place);
    let root = tree("virtual/block/dm-3", &[("dm/name", "x"), ("dm/uuid", &format!("part1-mpath-{wwid}"))]);
    assert_eq!(identity(root.path(), "dm-3").strength, Strength::Weak);
}

#[test]
fn an_iscsi_disk_whose_session_cannot_be_seen_is_weak_whatever_its_wwid() {
    for wwid in ["t10.IET     00010001", "naa.60000000000000000e00000000010001"] {
        let (id, strength) =
            of_disk("platform/host0/session3/target0:0:0/0:0:0:1/block/sda", &[("device/wwid", wwid)]);
        assert_eq!(strength, Strength::Weak, "{id}");
    }
}

#[test]
fn a_partition_is_where_it_starts_on_its_disk() {
    let root = tree(
        "virtual/block/dm-3",
        &[("dm/name", "disk"), ("dm/uuid", "mpath-36001405f0e7a4d1c2b3a4d5e6f708192")],
    );
    let disk = root.path().join("devices/virtual/block/dm-3");
    let part = disk.join("dm-3p1");
    fs::create_dir_all(&part).expect("directory");
    for (name, value) in [("partition", "1"), ("start", "2048"), ("size", "100"), ("dev", "259:0")] {
        fs::write(part.join(name), value).expect("attribute");
    }
    symlink(&part, root.path().join("class/block/dm-3p1")).expect("link");
    let device = Devices::recorded(root.path()).device("dm-3p1").expect("device");
    assert_eq!(device.identity.id.as_str(), format!("part:scsi:{LIO}#2048"));
    assert_eq!((device.diskseq, device.size), (5, 51200));
    assert_eq!(device.below.len(), 1);
    assert_eq!(device.below[0].extents[0].below, 1 << 20);
}

#[test]
fn a_device_mapper_name_is_no_identity() {
    let dm = |name, uuid| of_disk("virtual/block/dm-0", &[("dm/name", name), ("dm/uuid", uuid)]);
    assert_eq!(dm("scratch", ""), weak("path:dm/scratch"));
    assert_eq!(dm("data", "CRYPT-PLAIN-data"), weak("path:dm/CRYPT-PLAIN-data"));
    for uuid in ["CRYPT-TCRYPT-data", "CRYPT-LOOPAES-data", "CRYPT-INTEGRITY-data"] {
        assert_eq!(dm("data", uuid), weak(&format!("path:dm/{uuid}")));
    }
    assert_eq!(dm("vg-lv", "LVM-AbCd"), strong("dm:LVM-AbCd"));
}

#[test]
fn an_integrity_device_is_the_volume_that_it_lies_on() {
    let root = tree("virtual/block/dm-1", &[("dm/name", "data"), ("dm/uuid", "CRYPT-INTEGRITY-data")]);
    let below = root.path().join("devices/virtual/block/dm-0");
    for (file, value) in [("dev", "8:1"), ("size", "100"), ("dm/name", "lv"), ("dm/uuid", "LVM-AbCd")] {
        fs::create_dir_all(below.join(file).parent().expect("below the root")).expect("directory");
        fs::write(below.join(file), value).expect("attribute");
    }
    fs::create_dir_all(root.path().join("dev/block")).expect("directory");
    symlink(&below, root.path().join("class/block/dm-0")).expect("link");
    symlink(&below, root.path().join("dev/block/8:1")).expect("link");
    let slaves = root.path().join("devices/virtual/block/dm-1/slaves");
    fs::create_dir_all(&slaves).expect("directory");
    symlink(&below, slaves.join("dm-0")).expect("link");
    let identity = identity(root.path(), "dm-1");
    assert_eq!((identity.id.as_str(), identity.strength), ("integrity:dm:LVM-AbCd", Strength::Strong));
}

#[test]
fn a_luks_volume_opened_under_another_name_is_the_same() {
    let dm = |uuid| of_disk("virtual/block/dm-0", &[("dm/name", "x"), ("dm/uuid", uuid)]);
    let same = strong("dm:CRYPT-LUKS2-0123456789abcdef0123456789abcdef");
    assert_eq!(dm("CRYPT-LUKS2-0123456789abcdef0123456789abcdef-data"), same);
    assert_eq!(dm("CRYPT-LUKS2-0123456789abcdef0123456789abcdef-luks-pvc-1"), same);
    assert_eq!(dm("CRYPT-LUKS2-short-name"), strong("dm:CRYPT-LUKS2-short-name"));
}

#[test]
fn a_loop_device_is_the_file_behind_it() {
    let file = tempfile::NamedTempFile::new().expect("file");
    let path = file.path().to_str().expect("utf-8");
    let root = tree("virtual/block/loop0", &[("loop/backing_file", path), ("loop/offset", "4096")]);
    let first = identity(root.path(), "loop0");
    assert!(first.id.as_str().starts_with("loop:") && first.id.as_str().ends_with("+4096"), "{}", first.id);
    let copy = tempfile::NamedTempFile::new().expect("file");
    fs::rename(copy.path(), file.path()).expect("rename");
    assert_ne!(first.id, identity(root.path(), "loop0").id);
}

#[test]
fn a_loop_device_whose_file_cannot_be_seen_is_weak() {
    assert_eq!(
        of_disk("virtual/block/loop0", &[("loop/backing_file", "/nowhere/image (deleted)")]),
        weak("path:loop//nowhere/image (deleted)")
    );
}

#[test]
fn nvme_takes_the_strongest_identifier_that_is_not_zero() {
    let zeros = "00000000-0000-0000-0000-000000000000";
    let nvme = |attributes: &[(&str, &str)]| of_disk("pci0000:00/nvme/nvme0/nvme0n1", attributes);
    assert_eq!(
        nvme(&[("uuid", "b1f9a2ba-1f0f-4c5e-9d3c-2f0c4ad5d1a0"), ("nguid", "1"), ("wwid", "uuid.x")]),
        strong("nvme:b1f9a2ba-1f0f-4c5e-9d3c-2f0c4ad5d1a0")
    );
    assert_eq!(
        nvme(&[("uuid", zeros), ("eui", "00 25 38 5a 61 b1 4a 1c")]),
        strong("nvme:00 25 38 5a 61 b1 4a 1c")
    );
    assert_eq!(
        nvme(&[("wwid", "nvme.1d0f-766f6c3031-416d617a6f6e-00000001")]),
        strong("nvme:nvme.1d0f-766f6c3031-416d617a6f6e-00000001")
    );
    // What else it shows is kept; what names its place too, for where another kernel believes nothing better.
    let root = tree(
        "pci0000:00/nvme/nvme0/nvme0n1",
        &[
            ("uuid", "b1f9a2ba-1f0f-4c5e-9d3c-2f0c4ad5d1a0"),
            ("nguid", "00112233-4455-6677-8899-aabbccddeeff"),
            ("eui", "00 25 38 5a 61 b1 4a 1c"),
            ("wwid", "uuid.b1f9a2ba-1f0f-4c5e-9d3c-2f0c4ad5d1a0"),
            ("nsid", "1"),
            ("device/serial", "vol01"),
            ("device/model", "Amazon"),
            ("device/device/vendor", "0x1d0f"),
        ],
    );
    assert_eq!(
        names(&identity(root.path(), "nvme0n1")),
        [
            ("nvme:b1f9a2ba-1f0f-4c5e-9d3c-2f0c4ad5d1a0", Kind::Own),
            ("nvme:00112233-4455-6677-8899-aabbccddeeff", Kind::Own),
            ("nvme:00 25 38 5a 61 b1 4a 1c", Kind::Own),
            ("nvme:nvme.1d0f-766f6c3031-416d617a6f6e-00000001", Kind::Address),
        ]
    );
    for constant in ["nvme.1ae0-6e766d655f636172642d7064-6e766d65-00000001", "nvme.1b36--51454d55-00000001"] {
        assert_eq!(nvme(&[("wwid", constant)]).1, Strength::Weak, "{constant}");
    }
}

#[test]
fn scsi_takes_a_wwid_that_is_the_disks_own() {
    let scsi = |wwid| of_disk("pci0000:00/host2/target2:0:0/2:0:0:0/block/sdc", &[("device/wwid", wwid)]);
    assert_eq!(scsi("naa.5000c500a1b2c3d4"), strong("scsi:naa.5000c500a1b2c3d4"));
    assert_eq!(scsi("eui.0025385a61b14a1c"), strong("scsi:eui.0025385a61b14a1c"));
    assert_eq!(scsi("t10.ATA     ST4000   Z1Z0ABCD"), strong("scsi:t10.ATA ST4000 Z1Z0ABCD"));
    for constant in [
        "naa.0000000000000000",
        "naa.60000000000000000e00000000010001",
        "naa.33333330000007d0",
        "t10.IET     00010001",
        "t10.ATA     QEMU HARDDISK                           QM00001",
        "",
        "beaf11",
    ] {
        assert_eq!(scsi(constant).1, Strength::Weak, "{constant}");
    }
}

#[test]
fn rbd_takes_the_images_id_and_not_its_name() {
    let rbd = |attributes: &[(&str, &str)]| {
        let root = tree("rbd/0/block/rbd0", &[]);
        for (name, value) in attributes {
            fs::write(root.path().join("devices/rbd/0").join(name), value).expect("attribute");
        }
        let identity = identity(root.path(), "rbd0");
        (identity.id.to_string(), identity.origin)
    };
    let attributes = [
        ("pool", "kube"),
        ("name", "csi-vol-1"),
        ("image_id", "10226b8b4567"),
        ("current_snap", "-"),
        ("cluster_fsid", "c0ffee"),
    ];
    let (id, origin) = rbd(&attributes);
    assert_eq!(id, "rbd:kube/10226b8b4567,cluster=c0ffee");
    assert!(origin.contains("kube/csi-vol-1"), "{origin}");
    // Where the pool's id is told, its name may be another pool's.
    let with_pool = [&attributes[..], &[("pool_id", "7")]].concat();
    let root = tree("rbd/0/block/rbd0", &[]);
    for (name, value) in with_pool {
        fs::write(root.path().join("devices/rbd/0").join(name), value).expect("attribute");
    }
    assert_eq!(
        names(&identity(root.path(), "rbd0")),
        [
            ("rbd:pool=7/10226b8b4567,cluster=c0ffee", Kind::Own),
            ("rbd:kube/10226b8b4567,cluster=c0ffee", Kind::Address)
        ]
    );
    assert_eq!(
        rbd(&[("pool", "kube"), ("pool_ns", "a"), ("name", "x"), ("current_snap", "s1")]).0,
        "rbd:kube/a/x@s1"
    );
}

#[test]
fn virtio_and_nbd_take_what_they_were_told() {
    assert_eq!(of_disk("pci0000:00/virtio1/block/vda", &[("serial", "pvc-1")]), strong("virtio:pvc-1"));
    assert_eq!(of_disk("virtual/block/nbd3", &[("backend", "export-7")]), strong("nbd:export-7"));
    assert_eq!(of_disk("virtual/block/nbd3", &[]), weak("path:virtual/block/nbd3"));
}

#[test]
fn what_shows_no_name_of_its_volume_is_a_place() {
    for device in ["drbd1000", "zd16", "ublkb0", "nullb0", "bcache0", "nbd0"] {
        let place = format!("virtual/block/{device}");
        assert_eq!(of_disk(&place, &[]), weak(&format!("path:{place}")));
    }
    assert_eq!(
        of_disk(
            "virtual/block/bcache0",
            &[("bcache/backing_dev_uuid", "76fb7fb0-a202-3bc6-5235-74b82386e951")]
        ),
        strong("bcache:76fb7fb0-a202-3bc6-5235-74b82386e951")
    );
}

/// A page of the book has a row for each row of the table, and each names a test that is there.
#[test]
fn the_page_of_the_book_has_a_row_for_each_technology() {
    let page = include_str!("../../../../docs/identity.md");
    let tests = [
        include_str!("tests.rs"),
        include_str!("lies.rs"),
        include_str!("loop_device.rs"),
        include_str!("nbd.rs"),
        include_str!("../../../../tests/tests/scenarios/identity.rs"),
        include_str!("../../../../tests/tests/scenarios/units.rs"),
    ];
    for technology in technologies::TECHNOLOGIES {
        let row = page.lines().find(|line| line.starts_with(&format!("| {} |", technology.name)));
        let row = row.unwrap_or_else(|| panic!("docs/identity.md has no row for {}", technology.name));
        for (scheme, kind, _) in technology.shows {
            assert!(row.contains(&format!("`{scheme}:`")) && row.contains(kind.name()), "{scheme} in {row}");
        }
        let quoted = row.split('`').skip(1).step_by(2);
        let named: Vec<&str> =
            quoted.filter(|word| word.contains('_') && !word.contains([':', '/'])).collect();
        assert!(!named.is_empty(), "no test in {row}");
        for test in named {
            assert!(tests.iter().any(|file| file.contains(&format!("fn {test}("))), "no test {test}");
        }
        assert!(!technology.source.is_empty());
    }
}

#[test]
fn an_array_is_its_uuid_and_nothing_before_that_is_known() {
    let md = |attributes: &[(&str, &str)]| of_disk("virtual/block/md127", attributes);
    let uuid = "3d5a9f6e:11112222:33334444:55556666";
    assert_eq!(
        md(&[("md/metadata_version", "1.2"), ("md/uuid", uuid)]),
        strong("md:3d5a9f6e111122223333444455556666")
    );
    assert_eq!(md(&[("md/metadata_version", "1.2")]), ("path:virtual/block/md127".into(), Strength::Pending));
    assert_eq!(md(&[("md/metadata_version", "none")]), weak("path:virtual/block/md127"));
    let known = md_of_uuid("3d5a9f6e-1111-2222-3333-444455556666", "a member");
    assert_eq!(known.id.as_str(), "md:3d5a9f6e111122223333444455556666");
}

#[test]
fn memory_is_known_as_such() {
    for name in ["zram0", "ram15"] {
        assert_eq!(of_disk(&format!("virtual/block/{name}"), &[]).1, Strength::Memory, "{name}");
    }
    assert_eq!(of_disk("virtual/block/zramx", &[]).1, Strength::Weak);
}

#[test]
fn a_device_that_offers_nothing_is_weak() {
    assert_eq!(of_disk("pci0000:00/virtio1/block/vda", &[]), weak("path:pci0000:00/virtio1/block/vda"));
}

#[test]
fn what_goes_into_an_id_is_bounded_and_printable() {
    let serial = format!("a\u{7}b{}", "x".repeat(2000));
    let (id, _) = of_disk("pci0000:00/virtio1/block/vda", &[("serial", &serial)]);
    assert!(id.starts_with("virtio:abx") && id.len() <= "virtio:".len() + MAX_VALUE, "{} bytes", id.len());
}

/// A tree that the record-sysfs program of the scenario tests printed in a guest.
fn replayed(text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("temporary directory");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let make_parent =
            |path: &Path| fs::create_dir_all(path.parent().expect("below the root")).expect("directory");
        if let Some((path, target)) = line.split_once(" -> ") {
            let path = root.path().join(path);
            make_parent(&path);
            symlink(root.path().join(target), path).expect("link");
        } else if let Some((path, value)) = line.split_once(" =") {
            let path = root.path().join(path);
            make_parent(&path);
            fs::write(path, value.trim_start()).expect("attribute");
        }
    }
    root
}

#[test]
fn every_device_of_a_guest_is_known_by_its_own() {
    for recorded in [
        include_str!("../recorded/6.1.txt"),
        include_str!("../recorded/6.12.txt"),
        include_str!("../recorded/7.txt"),
    ] {
        let root = replayed(recorded);
        let present = Devices::recorded(root.path());
        let names = present.names().expect("devices");
        let devices: Vec<Device> = names.iter().filter_map(|name| present.device(name)).collect();
        let of = |name: &str| devices.iter().find(|device| device.name == name).expect(name);
        let id = |name: &str| of(name).identity.id.to_string();
        let strength = |name: &str| of(name).identity.strength;
        assert_eq!(id("vda"), "virtio:disk0");
        assert_eq!(id("sda"), "scsi:naa.5000c50000000001", "virtio-scsi");
        // Linux takes no namespace identifier of qemu's controller (NVME_QUIRK_BOGUS_NID): its serial has to
        // do.
        assert_eq!(
            id("nvme0n1"),
            "nvme:nvme.1b36-666f726d61742d6775617264-51454d55204e564d65204374726c-00000001"
        );
        assert!(id("sdb").starts_with("iscsi:iqn.2019-10.io.longhorn:pvc-") && id("sdb").ends_with(",lun=1"));
        assert_eq!(strength("sdc"), Strength::Weak, "scsi_debug counts its wwids");
        assert!(id("dm-0").starts_with("dm:FGTEST-fg"), "{}", id("dm-0"));
        assert!(id("md77").starts_with("md:") && id("md77").len() == "md:".len() + 32, "{}", id("md77"));
        assert_eq!(strength("zram0"), Strength::Memory);
        assert_eq!(strength("nbd0"), Strength::Weak, "nbd-client names no backend");
        assert_eq!(strength("nullb0"), Strength::Weak);
        assert_eq!(strength("loop0"), Strength::Weak, "its file was the guest's");
        assert_eq!(id("loop3p1"), format!("part:{}#2048", id("loop3")));

        let lies_on = |name: &str| -> Vec<(String, Vec<u64>)> {
            let name_of =
                |dev: Dev| devices.iter().find(|device| device.dev == dev).expect("present").name.clone();
            let below = of(name).below.iter();
            below.map(|below| (name_of(below.dev), below.extents.iter().map(|e| e.below).collect())).collect()
        };
        assert_eq!(lies_on("loop3p1"), [("loop3".to_owned(), vec![1 << 20])]);
        assert_eq!(
            lies_on("md77"),
            [("loop1".to_owned(), vec![1 << 20]), ("loop2".to_owned(), vec![1 << 20])]
        );
        assert_eq!(lies_on("dm-0"), [("loop0".to_owned(), vec![])], "a tree has no table");
        assert_eq!(lies_on("sda"), []);
    }
}

#[test]
fn an_array_is_the_same_by_its_members_superblocks_and_by_sysfs() {
    let md = |metadata, uuid| {
        of_disk("virtual/block/md0", &[("md/metadata_version", metadata), ("md/uuid", uuid)])
    };
    // What libblkid, mdadm and the kernel say of one array of 0.90, and of one of 1.2.
    let old = md_of_uuid("895918d0-c5a5-ee66-685e-67357bafb5f4", "");
    assert_eq!(md("0.90", "d0185989-66ee-a5c5-3567-5e68f4b5af7b"), strong(old.id.as_str()));
    let new = md_of_uuid("76fb7fb0-a202-3bc6-5235-74b82386e951", "");
    assert_eq!(md("1.2", "76fb7fb0-a202-3bc6-5235-74b82386e951"), strong(new.id.as_str()));
}
