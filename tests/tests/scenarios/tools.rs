//! Tools with known names write what belongs to them, and only in its place.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{copy, refused},
    device::{Device, Image, Linear, Loop, Mapped, Snapshot, write_at},
    guard::Guard,
    tool::{module, must, must_with, run},
    wait_for,
};

use crate::make_ext4;

#[test]
fn lvm_labels_no_volume_that_holds_another_format_whatever_its_configuration() -> Result<()> {
    let guard = Guard::shared()?;
    module("btrfs")?;
    let volume = Loop::new(128)?;
    let node = volume.path().display();
    guard.wait_for_state(volume.path(), "blank")?;
    must(&format!("mkfs.btrfs -q -f {node}"))?;
    guard.wait_for_state(volume.path(), "formatted")?;
    let before = Snapshot::of(&volume)?;
    for line in ["vgcreate -y --config allocation/use_blkid_wiping=0 fgforeign", "pvcreate -ff -y"] {
        refused(&guard, &format!("{line} {node}"), "")?;
    }
    before.unchanged(&volume)?;
    must(&format!("btrfs check {node}")).map(drop)
}

/// Two members of a mirror of this metadata version, which is stopped, with an ext4 on it.
fn stopped_mirror(guard: &Guard, version: &str) -> Result<[Loop; 2]> {
    module("raid1")?;
    let members = [Loop::new(64)?, Loop::new(64)?];
    let [one, two] = [members[0].path().display(), members[1].path().display()];
    for member in &members {
        guard.wait_for_state(member.path(), "blank")?;
    }
    must(&format!(
        "mdadm --create /dev/md87 --run --metadata={version} --level=1 --raid-devices=2 --assume-clean {one} {two}"
    ))?;
    let array = Path::new("/dev/md87");
    guard.wait_for_state(array, "blank")?;
    must("mkfs.ext4 -q -F /dev/md87")?;
    guard.wait_for_state(array, "formatted")?;
    must("mdadm --stop /dev/md87")?;
    for member in &members {
        guard.wait_for_state(member.path(), "formatted")?;
    }
    Ok(members)
}

#[test]
fn members_of_an_array_take_writes_of_its_own_tools_alone() -> Result<()> {
    let guard = Guard::shared()?;
    let [one, two] = stopped_mirror(&guard, "1.0")?;
    let before = Snapshot::of(&one)?;
    let node = one.path().display();
    for line in ["tune2fs -L split", "e2fsck -fy"] {
        refused(&guard, &format!("{line} {node}"), "")?;
    }
    let refusals = guard.newest_refusal()?;
    // The tool does not report a failure by its exit status.
    let ran = run(&format!("debugfs -w -R stats {node}"))?;
    wait_for("the refusal", || Ok((guard.newest_refusal()? > refusals).then_some(())))
        .with_context(|| ran.text.clone())?;
    before.unchanged(&one)?;
    must(&format!("mdadm --assemble --run /dev/md87 {node} {}", two.path().display()))?;
    must("e2fsck -fn /dev/md87")?;
    must("mdadm --stop /dev/md87").map(drop)
}

#[test]
fn an_array_is_not_made_anew_over_members_whose_superblocks_read_as_zeros() -> Result<()> {
    let guard = Guard::shared()?;
    module("raid1")?;
    let members = [Mapped::new(64)?, Mapped::new(64)?];
    let [one, two] = [members[0].path().display(), members[1].path().display()];
    for member in &members {
        guard.wait_for_state(member.path(), "blank")?;
    }
    let create = "mdadm --create /dev/md88 --run --metadata=1.2 --level=1 --raid-devices=2 --assume-clean";
    must(&format!("{create} {one} {two}"))?;
    let array = Path::new("/dev/md88");
    guard.wait_for_state(array, "blank")?;
    must("mkfs.ext4 -q -F /dev/md88")?;
    guard.wait_for_state(array, "formatted")?;
    must("mdadm --stop /dev/md88")?;
    let mut before = Vec::new();
    for member in &members {
        let known = guard.wait_for_state(member.path(), "formatted")?;
        let marks = known["marks"].as_array().cloned().unwrap_or_default();
        ensure!(marks.iter().any(|mark| mark["kind"] == "uuid"), "{known}");
        before.push(Snapshot::of(member)?);
        member.read_zeros()?;
    }
    let refusals = guard.newest_refusal()?;
    // In another order, as in a script that finds the members blank.
    let ran = run(&format!("{create} {two} {one}"))?;
    ensure!(ran.status != 0, "{ran:?}");
    wait_for("the refusal", || Ok((guard.newest_refusal()? > refusals).then_some(())))
        .with_context(|| ran.text.clone())?;
    ensure!(!array.exists() || run("mkfs.ext4 -q -F /dev/md88")?.status != 0, "{ran:?}");
    for (member, before) in members.iter().zip(&before) {
        member.recover()?;
        before.unchanged(member)?;
    }
    // The rest of the array that was not made.
    let _ = run("mdadm --stop /dev/md88")?;
    // An array that was stopped a moment ago may still be there while another program looks at it.
    let is_sound = || {
        wait_for("the file system on the array", || {
            let ran = run("e2fsck -fn /dev/md88")?;
            Ok((ran.status == 0).then_some(()))
        })
    };
    must(&format!("mdadm --assemble --run /dev/md88 {one} {two}"))?;
    is_sound().context("assembled again")?;
    must("mdadm --stop /dev/md88")?;
    // Its own tool gives the volume another UUID, and the volume stays whole.
    must(&format!(
        "mdadm --assemble --run --update=uuid --uuid=11111111:22222222:33333333:44444444 /dev/md88 {one} {two}"
    ))?;
    is_sound().context("assembled with another UUID")?;
    must("mdadm --stop /dev/md88")?;
    for member in &members {
        guard.wait_for_volume(member.path(), "the array of the new UUID", |volume| {
            volume["discrepancy"].is_null()
                && volume["content"]["uuid"].as_str().is_some_and(|uuid| uuid.starts_with("11111111"))
        })?;
    }
    Ok(())
}

#[test]
fn an_image_of_the_same_type_is_told_from_the_volume() -> Result<()> {
    let guard = Guard::shared()?;
    // A tree of hashes, an image of an optical disc's file system, and a format without a UUID.
    let makers = [
        ("DM_verity_hash", "veritysetup format /run/fg-verity-data"),
        ("udf", "mkfs.udf --media-type=hd"),
        ("bcache", "make-bcache -B"),
        ("cramfs", "mkfs.cramfs"),
    ];
    must("truncate -s 16M /run/fg-verity-data")?;
    for (kind, maker) in makers {
        let [volume, other] = [Loop::new(64)?, Loop::new(64)?];
        for (device, source) in [(&volume, "/etc/apt"), (&other, "/etc/default")] {
            guard.wait_for_state(device.path(), "blank")?;
            let source = if kind == "cramfs" { format!(" {source}") } else { String::new() };
            must(&format!("{maker}{source} {}", device.path().display()))?;
            let known = guard.wait_for_state(device.path(), "formatted")?;
            ensure!(known["content"]["types"][0] == kind, "{known}");
        }
        let before = Snapshot::of(&volume)?;
        let (from, to) = (other.path().display(), volume.path().display());
        refused(&guard, &format!("dd if={from} of={to} bs=1M conv=notrunc,fsync"), "")?;
        // The whole volume must be as it was, and not only its marks.
        before.unchanged(&volume).with_context(|| kind)?;
        // The volume's own bytes pass.
        must(&format!("dd if={to} of={to} bs=4096 count=64 conv=notrunc,fsync"))?;
    }
    Ok(())
}

#[test]
fn what_its_arguments_call_a_format_is_refused_before_its_first_byte() -> Result<()> {
    let guard = Guard::shared()?;
    must("truncate -s 16M /run/fg-verity-data")?;
    let volume = Loop::new(64)?;
    make_ext4(&guard, volume.path())?;
    let before = Snapshot::of(&volume)?;
    let node = volume.path().display();
    for line in [
        format!("veritysetup format /run/fg-verity-data {node}"),
        format!("integritysetup format -q {node}"),
        format!("sgdisk -Zo {node}"),
        format!("lvm pvcreate -ff -y {node}"),
    ] {
        refused(&guard, &line, "")?;
    }
    let refusals = guard.newest_refusal()?;
    // The tool does not report a failure by its exit status.
    let ran = run(&format!("sgdisk -oZ {node}"))?;
    wait_for("the refusal", || Ok((guard.newest_refusal()? > refusals).then_some(())))
        .with_context(|| ran.text.clone())?;
    before.unchanged(&volume)?;
    // Under another name the tool is refused at the place of its magic, which it writes last; what it wrote
    // before is data beyond the marks.
    refused(&guard, &format!("{} format /run/fg-verity-data {node}", copy("veritysetup")?), "")?;
    let known = guard.wait_for_state(volume.path(), "formatted")?;
    ensure!(known["content"]["types"][0] == "ext4", "{known}");
    // On a disk with a table not even half of one is written.
    let disk = Loop::new(64)?;
    guard.wait_for_state(disk.path(), "blank")?;
    must(&format!("sgdisk -n 1:0:+8M {}", disk.path().display()))?;
    guard.wait_for_state(disk.path(), "formatted")?;
    let before = Snapshot::of(&disk)?;
    refused(&guard, &format!("sgdisk -a 1 --clear {}", disk.path().display()), "")?;
    before.unchanged(&disk)
}

#[test]
fn swapon_puts_back_the_signature_that_a_hibernation_replaced() -> Result<()> {
    let guard = Guard::shared()?;
    let image = Image::new(64)?;
    let file = image.path().display();
    must(&format!("mkswap -q {file}"))?;
    write_at(image.path(), 4086, b"S1SUSPEND\0")?;
    let volume = Loop::over(image.path())?;
    let known = guard.wait_for_state(volume.path(), "formatted")?;
    ensure!(known["content"]["types"][0] == "swsuspend", "{known}");
    let node = volume.path().display();
    must(&format!("swapon {node}"))?;
    must(&format!("swapoff {node}"))?;
    let denied = guard.events("denied")?;
    ensure!(denied.is_empty(), "{denied:#?}");
    guard.wait_for_volume(volume.path(), "swap space", |volume| {
        volume["content"]["types"][0] == "swap" && volume["discrepancy"].is_null()
    })?;
    Ok(())
}

#[test]
fn lvm_commits_to_the_end_of_a_device_with_more_segments_than_windows() -> Result<()> {
    let guard = Guard::shared()?;
    let volume = Loop::new(64)?;
    let node = volume.path().display();
    guard.wait_for_state(volume.path(), "blank")?;
    must(&format!("pvcreate -y --pvmetadatacopies 2 {node}"))?;
    guard.wait_for_state(volume.path(), "formatted")?;
    must(&format!("vgcreate fgends {node}"))?;
    // No mark lies behind the one before it.
    let lines: Vec<String> =
        (0..70).map(|i| format!("{} 8 linear {node} {}\n", i * 8, 40960 - i * 16)).collect();
    let table = lines.concat();
    must_with("dmsetup create --uuid FGTEST-many fg-many", &table)?;
    let many = Path::new("/dev/mapper/fg-many");
    guard.wait_for_state(many, "blank")?;
    must("lvcreate -y -Zn -Wn -L 4M -n one fgends")?;
    must("vgchange -an fgends")?;
    must("dmsetup remove --retry fg-many")?;
    must(&format!("pvck {node}"))?;
    must("vgck fgends")?;
    let denied = guard.events("denied")?;
    ensure!(denied.is_empty(), "{denied:#?}");
    Ok(())
}

/// What `systemd-repart` makes of a disk.
const PARTITIONS: [&str; 3] = [
    "[Partition]\nType=linux-generic\nFormat=ext4\nSizeMinBytes=32M\nSizeMaxBytes=32M\n",
    "[Partition]\nType=linux-generic\nFormat=vfat\nSizeMinBytes=32M\nSizeMaxBytes=32M\n",
    "[Partition]\nType=swap\nFormat=swap\nSizeMinBytes=16M\nSizeMaxBytes=16M\n",
];

#[test]
fn repart_formats_partitions_before_it_makes_them() -> Result<()> {
    if run("systemd-repart --version").is_err() {
        eprintln!("not tried, there is no systemd-repart");
        return Ok(());
    }
    let guard = Guard::patient()?;
    let definitions = Path::new("/run/fg-repart");
    fs::create_dir_all(definitions)?;
    let disk = Loop::new(192)?;
    let node = disk.path().display();
    let repart =
        format!("systemd-repart --no-pager --dry-run=no --definitions={} {node}", definitions.display());
    fs::write(definitions.join("10-one.conf"), PARTITIONS[0])?;
    must(&format!("{repart} --empty=require")).with_context(|| guard.log())?;
    guard.wait_for_volume(disk.path(), "its table", |volume| volume["content"]["types"][0] == "gpt")?;
    // A disk that has partitions already gets more of them.
    for (number, text) in PARTITIONS.iter().enumerate().skip(1) {
        fs::write(definitions.join(format!("{number}1-more.conf")), text)?;
        must(&repart).with_context(|| guard.log())?;
    }
    must(&format!("sgdisk -v {node}"))?;
    must(&format!("partx -u {node}"))?;
    for (number, kind) in [(1, "ext4"), (2, "vfat"), (3, "swap")] {
        let partition = PathBuf::from(format!("{node}p{number}"));
        let known = guard.wait_for_state(&partition, "formatted")?;
        ensure!(known["content"]["types"][0] == kind, "{known}");
        refused(&guard, &format!("mkfs.xfs -f -q --unsupported {}", partition.display()), "")?;
    }
    must(&format!("e2fsck -fn {node}p1"))?;
    let early = ["formatter", "not-read-yet"];
    let denied = guard.events("denied")?;
    ensure!(
        denied.iter().all(|event| early.iter().any(|reason| event["refusal"]["reason"] == *reason)),
        "{denied:#?}"
    );
    must(&format!("partx -d {node}")).map(drop)
}

#[test]
fn what_only_carries_a_format_takes_a_table_beside_it_and_nothing_else() -> Result<()> {
    let guard = Guard::patient()?;
    let disk = Loop::new(128)?;
    guard.wait_for_state(disk.path(), "blank")?;
    let node = disk.path().display();
    let inside = Linear::over("fg-inside", "FGTEST-inside", disk.path(), 8 << 20, 64 << 20)?;
    make_ext4(&guard, inside.path())?;
    drop(inside);
    guard.wait_for_volume(disk.path(), "what lies on it", |volume| {
        volume["state"] == "formatted" && volume["content"].is_null()
    })?;
    for line in [format!("mkfs.ext4 -F -q {node}"), format!("{} -t ext4 -F -q {node}", copy("mkfs.ext4")?)] {
        refused(&guard, &line, "")?;
    }
    must_with(&format!("sfdisk -q --no-reread {node}"), "label: gpt\nstart=16384, size=64MiB\n")?;
    // Without udevd nothing reports the change.
    let name = disk.path().file_name().context("a name")?;
    fs::write(Path::new("/sys/class/block").join(name).join("uevent"), "change")?;
    guard.wait_for_volume(disk.path(), "its table", |volume| volume["content"]["types"][0] == "gpt")?;
    must(&format!("partx -a {node}"))?;
    let partition = PathBuf::from(format!("{node}p1"));
    let known = guard.wait_for_state(&partition, "formatted")?;
    ensure!(known["content"]["types"][0] == "ext4", "{known}");
    must(&format!("e2fsck -fn {}", partition.display()))?;
    must(&format!("partx -d {node}")).map(drop)
}
