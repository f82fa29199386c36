//! A volume is known by its own identity, whatever number, name or path it comes back under.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{self, LUKS_FORMAT, refused},
    device::{Device, Image, Iscsi, Linear, Loop, Snapshot, device_number, sha256},
    guard::Guard,
    tool::{command, module, must, must_with, run},
    wait_for,
};

use crate::make_ext4;

const MIB: u64 = 1 << 20;

fn id(guard: &Guard, path: &Path) -> Result<String> {
    Ok(guard.volume(path)?["id"].as_str().context("no id")?.to_owned())
}

/// Two volumes, each with a file system of its own; their ids and sums.
fn two_iscsi_volumes(guard: &Guard) -> Result<[(Iscsi, String, String); 2]> {
    let make = || -> Result<(Iscsi, String, String)> {
        let volume = Iscsi::new(32)?;
        make_ext4(guard, volume.path())?;
        let (id, sum) = (id(guard, volume.path())?, volume.sha256()?);
        ensure!(id == format!("iscsi:{},lun=1", volume.iqn()), "{id}");
        Ok((volume, id, sum))
    };
    Ok([make()?, make()?])
}

fn both_are_known_and_kept(guard: &Guard, volumes: &[(Iscsi, String, String); 2]) -> Result<()> {
    for (volume, known, sum) in volumes {
        let now = guard.wait_for_state(volume.path(), "formatted")?;
        ensure!(now["id"] == known.as_str() && now["discrepancy"].is_null(), "{known} is {now}");
        refused(guard, &format!("mkfs.ext4 -F {}", volume.path().display()), "")?;
        refused(guard, &format!("{LUKS_FORMAT} {} -", volume.path().display()), "secret")?;
        ensure!(volume.sha256()? == *sum, "bytes changed");
    }
    Ok(())
}

#[test]
fn iscsi_volumes_that_come_back_in_the_other_order_are_known() -> Result<()> {
    let guard = Guard::shared()?;
    let mut volumes = two_iscsi_volumes(&guard)?;
    let before = volumes.each_ref().map(|(volume, _, _)| volume.path().to_owned());
    for (volume, _, _) in &mut volumes {
        volume.log_out()?;
    }
    for (volume, _, _) in volumes.iter_mut().rev() {
        volume.log_in()?;
    }
    let after = volumes.each_ref().map(|(volume, _, _)| volume.path().to_owned());
    ensure!(before != after, "the same names: the scenario shows nothing");
    both_are_known_and_kept(&guard, &volumes)
}

#[test]
fn iscsi_targets_remade_with_swapped_numbers_are_known_though_their_wwids_change_sides() -> Result<()> {
    let guard = Guard::shared()?;
    let mut volumes = two_iscsi_volumes(&guard)?;
    let wwid = |volume: &Iscsi| -> Result<String> {
        let name = volume.path().file_name().context("no name")?;
        Ok(fs::read_to_string(Path::new("/sys/class/block").join(name).join("device/wwid"))?)
    };
    let before = [wwid(&volumes[0].0)?, wwid(&volumes[1].0)?];
    for (volume, _, _) in &mut volumes {
        volume.log_out()?;
    }
    let [first, second] = &mut volumes;
    first.0.swap_numbers(&mut second.0)?;
    for (volume, _, _) in &mut volumes {
        volume.log_in()?;
    }
    let after = [wwid(&volumes[0].0)?, wwid(&volumes[1].0)?];
    ensure!(before[0] == after[1] && before[1] == after[0], "{before:?} became {after:?}: nothing is shown");
    both_are_known_and_kept(&guard, &volumes)
}

/// Both paths are armed: of two formatters at the same moment one succeeds.
#[test]
fn a_unit_with_two_paths_is_one_volume_and_formatted_once() -> Result<()> {
    let guard = Guard::shared()?;
    let mut volume = Iscsi::new(32)?;
    let second = volume.second_path()?;
    let first = volume.path().to_owned();
    guard.wait_for_state(&first, "blank")?;
    let shown = guard.wait_for_state(&second, "blank")?;
    ensure!(shown["devices"].as_array().is_some_and(|devices| devices.len() == 2), "{shown}");
    let mut racers = Vec::new();
    for path in [&first, &second] {
        racers.push(command(&format!("mkfs.ext4 -F -q {}", path.display())).spawn()?);
    }
    let mut succeeded = 0;
    for mut racer in racers {
        succeeded += u32::from(racer.wait()?.success());
    }
    ensure!(succeeded == 1, "{succeeded} formatters succeeded");
    guard.wait_for_state(&first, "formatted")?;
    let sums = [sha256(&first)?, sha256(&second)?];
    ensure!(sums[0] == sums[1], "the paths lead to different data");
    for path in [&first, &second] {
        refused(&guard, &format!("mkfs.xfs -f {}", path.display()), "")?;
        refused(&guard, &format!("{} -F {}", attack::copy("mkfs.ext4")?, path.display()), "")?;
        ensure!(sha256(path)? == sums[0], "bytes changed");
    }
    volume.log_out()
}

#[test]
fn a_dm_name_that_comes_back_with_another_uuid_is_another_volume() -> Result<()> {
    let guard = Guard::shared()?;
    let (first, second) = (Loop::new(32)?, Loop::new(32)?);
    let name = "fg-reused";
    let device = Linear::over(name, "FGTEST-reused-1", first.path(), 0, 32 * MIB)?;
    make_ext4(&guard, device.path())?;
    let known = id(&guard, device.path())?;
    drop(device);
    let other = Linear::over(name, "FGTEST-reused-2", second.path(), 0, 32 * MIB)?;
    make_ext4(&guard, other.path())?;
    ensure!(id(&guard, other.path())? != known);
    drop(other);
    let again = Linear::over("fg-renamed", "FGTEST-reused-1", first.path(), 0, 32 * MIB)?;
    let volume = guard.wait_for_state(again.path(), "formatted")?;
    ensure!(volume["id"] == known.as_str(), "{volume}");
    ensure!(guard.events("denied")?.is_empty());
    refused(&guard, &format!("mkfs.ext4 -F {}", again.path().display()), "").map(drop)
}

#[test]
fn a_clone_with_the_same_file_system_uuid_is_a_volume_of_its_own() -> Result<()> {
    let guard = Guard::shared()?;
    let original = Loop::new(32)?;
    make_ext4(&guard, original.path())?;
    let image = Image::new(32)?;
    must(&format!("dd if={} of={} bs=1M conv=notrunc", original.path().display(), image.path().display()))?;
    let clone = Loop::over(image.path())?;
    let (one, other) = (guard.volume(original.path())?, guard.wait_for_state(clone.path(), "formatted")?);
    ensure!(one["content"]["uuid"] == other["content"]["uuid"], "{one} {other}");
    ensure!(one["id"] != other["id"], "{one} {other}");
    for device in [&original, &clone] {
        let before = Snapshot::of(device)?;
        attack::some_refused(&guard, device.path())?;
        before.unchanged(device)?;
    }
    // A permit for one volume is no permit for the other.
    guard.json(&format!("volume permit {} --reason test", clone.path().display()))?;
    refused(&guard, &format!("mkfs.ext4 -F {}", original.path().display()), "")?;
    must(&format!("mkfs.ext4 -F -q {}", clone.path().display())).map(drop)
}

#[test]
fn a_luks_volume_opened_under_another_name_is_known() -> Result<()> {
    let guard = Guard::shared()?;
    module("dm_crypt")?;
    let device = Loop::new(64)?;
    let node = device.path().display();
    guard.wait_for_state(device.path(), "blank")?;
    must_with(&format!("{LUKS_FORMAT} {node} -"), "secret")?;
    guard.wait_for_state(device.path(), "formatted")?;
    must_with(&format!("cryptsetup open --key-file - {node} fg-one"), "secret")?;
    let one = Path::new("/dev/mapper/fg-one");
    let made = make_ext4(&guard, one).and_then(|()| id(&guard, one));
    must("cryptsetup close fg-one")?;
    let known = made?;
    must_with(&format!("cryptsetup open --key-file - {node} fg-other"), "secret")?;
    let other = Path::new("/dev/mapper/fg-other");
    let result = guard.wait_for_state(other, "formatted").and_then(|volume| {
        ensure!(volume["id"] == known.as_str(), "{volume}");
        refused(&guard, &format!("mkfs.ext4 -F {}", other.display()), "")
    });
    must("cryptsetup close fg-other")?;
    result.map(drop)
}

#[test]
fn a_weak_identity_is_shown_as_one_and_every_identity_says_where_it_came_from() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(16)?;
    let nameless = Linear::over("fg-nameless", "", below.path(), 0, 16 * MIB)?;
    let volume = guard.wait_for_state(nameless.path(), "blank")?;
    ensure!(volume["weak"] == true && volume["id"] == "path:dm/fg-nameless", "{volume}");
    let shown = guard.say(&format!("volume show {}", nameless.path().display()))?;
    ensure!(shown.text.contains("which has no uuid (weak)"), "{}", shown.text);
    let strong = guard.wait_for_state(below.path(), "blank")?;
    ensure!(strong["weak"] == false, "{strong}");
    ensure!(
        strong["origin"].as_str().is_some_and(|text| text.contains("inode and time of birth")),
        "{strong}"
    );
    Ok(())
}

/// Swap on zram is made at each boot, at once, and again after each reset.
#[test]
fn memory_is_left_alone() -> Result<()> {
    let guard = Guard::shared()?;
    module("zram")?;
    let (node, sysfs) = (Path::new("/dev/zram0"), Path::new("/sys/block/zram0"));
    guard.wait_for_state(node, "exempt")?;
    for _ in 0..2 {
        fs::write(sysfs.join("disksize"), "16M")?;
        must("mkswap /dev/zram0")?;
        must("swapon /dev/zram0")?;
        must("swapoff /dev/zram0")?;
        fs::write(sysfs.join("reset"), "1")?;
    }
    must("rmmod zram")?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    Ok(())
}

/// A volume of Longhorn, under the name that its provisioner gives it.
const PV: &str = "pvc-0123abcd-4567-89ab-cdef-0123456789ab";

/// Longhorn first makes a device mapper device without a uuid, and then a node with the volume's name.
#[test]
fn a_node_below_the_longhorn_directory_names_what_has_no_identity_of_its_own() -> Result<()> {
    let nodes = Path::new("/dev/fg-longhorn");
    fs::create_dir_all(nodes)?;
    let mut guard = Guard::unstarted(None)?;
    // kubelet and a runtime have these on a node where a pod uses the volume.
    let kubelet = tempfile::tempdir()?;
    guard.replace("kubelet_dir", &format!("'{}'", kubelet.path().display()))?;
    fs::create_dir_all(kubelet.path().join("pods/fg-uid-1/volumes/kubernetes.io~csi").join(PV))?;
    let logs = Path::new("/var/log/pods/shop_orders-0_fg-uid-1");
    fs::create_dir_all(logs)?;
    guard.start_agent()?;
    guard.configure(&format!("longhorn_dir = '{}'", nodes.display()))?;
    let name = |name: &str, path: &Path| -> Result<()> {
        must(&format!("mknod {} b {}", nodes.join(name).display(), device_number(path)?.replace(':', " ")))
            .map(drop)
    };
    let below = Loop::new(32)?;
    let device = Linear::over("fg-pvc-1", "", below.path(), 0, 32 * MIB)?;
    name(PV, device.path())?;
    make_ext4(&guard, device.path())?;
    let volume = guard.volume(device.path())?;
    ensure!(volume["id"] == format!("longhorn:{PV}") && volume["weak"] == false, "{volume}");
    let before = device.sha256()?;
    drop(device);
    fs::remove_file(nodes.join(PV))?;

    // The volume is back, degraded, and reads as zeros; its node does not exist yet.
    let back = Linear::over("fg-pvc-1-again", "", below.path(), 0, 32 * MIB)?;
    back.reload(&format!("0 {} zero", 32 * MIB / 512))?;
    let refused_at_once = run(&format!("mkfs.ext4 -F {}", back.path().display()))?;
    ensure!(refused_at_once.status != 0, "{refused_at_once:?}");
    name(PV, back.path())?;
    guard.wait_for_volume(back.path(), "known by its node", |volume| {
        volume["id"] == format!("longhorn:{PV}") && volume["state"] == "formatted"
    })?;
    refused(&guard, &format!("mkfs.ext4 -F {}", back.path().display()), "")?;
    let events = guard.events("denied")?;
    let facts = &events.last().context("no event")?["refusal"]["kubernetes"];
    ensure!(facts["persistent_volume"] == PV, "{facts}");
    ensure!(facts["pods"][0]["namespace"] == "shop" && facts["pods"][0]["name"] == "orders-0", "{facts}");
    fs::remove_dir(logs)?;
    back.reload(&format!("0 {} linear {} 0", 32 * MIB / 512, below.path().display()))?;
    guard.wait_for_volume(back.path(), "as recorded", |volume| volume["discrepancy"].is_null())?;
    ensure!(back.sha256()? == before, "bytes changed");

    // A stale node of that number says nothing about a device with an identity of its own.
    let other = Loop::new(32)?;
    name("pvc-2", other.path())?;
    let volume = guard.wait_for_state(other.path(), "blank")?;
    ensure!(volume["id"].as_str().is_some_and(|id| id.starts_with("loop:")), "{volume}");
    fs::remove_dir_all(nodes)?;
    Ok(())
}

/// ext4 with inodes of 128 bytes keeps no time of birth.
#[test]
fn a_new_file_under_an_old_inode_number_is_another_volume() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Image::new(300)?;
    let point = tempfile::tempdir_in("/run")?;
    must(&format!("mkfs.ext4 -F -q -I 128 {}", below.path().display()))?;
    must(&format!("mount -o loop {} {}", below.path().display(), point.path().display()))?;
    let file = point.path().join("image");
    let mut ids = Vec::new();
    let mut inodes = Vec::new();
    for _ in 0..2 {
        must(&format!("truncate -s 16M {}", file.display()))?;
        inodes.push(fs::metadata(&file)?.ino());
        let volume = Loop::over(&file)?;
        make_ext4(&guard, volume.path())?;
        refused(&guard, &format!("mkfs.ext4 -F {}", volume.path().display()), "")?;
        ids.push(id(&guard, volume.path())?);
        // The same file is the same volume, whichever loop device it is attached to.
        drop(volume);
        let volume = Loop::over(&file)?;
        guard.wait_for_state(volume.path(), "formatted")?;
        ensure!(Some(&id(&guard, volume.path())?) == ids.last(), "{ids:?}");
        drop(volume);
        fs::remove_file(&file)?;
    }
    must(&format!("umount {}", point.path().display()))?;
    ensure!(inodes[0] == inodes[1], "the inode number is not used again: {inodes:?}");
    ensure!(ids[0] != ids[1], "{ids:?}");
    Ok(())
}

/// All of the devices have the same node, and the kernel shows nothing that tells them apart.
#[test]
fn images_that_qemu_serves_one_after_another_are_volumes_of_their_own() -> Result<()> {
    let guard = Guard::shared()?;
    module("nbd")?;
    let images = tempfile::tempdir_in("/run")?;
    let node = Path::new("/dev/nbd0");
    let image = |number: u32| images.path().join(format!("{number}.qcow2")).display().to_string();
    let attach = |number: u32| must(&format!("qemu-nbd -c {} {}", node.display(), image(number)));
    let detach = || -> Result<()> {
        must(&format!("qemu-nbd -d {}", node.display()))?;
        wait_for("the end of its service", || Ok((!Path::new("/sys/block/nbd0/pid").exists()).then_some(())))
    };
    let mut ids = Vec::new();
    for number in 0..2 {
        must(&format!("qemu-img create -q -f qcow2 {} 64M", image(number)))?;
        attach(number)?;
        make_ext4(&guard, node)?;
        ids.push(id(&guard, node)?);
        detach()?;
    }
    ensure!(ids[0] != ids[1], "{ids:?}");
    for (number, known) in (0..).zip(&ids) {
        attach(number)?;
        guard.wait_for_volume(node, "known", |volume| {
            volume["id"] == known.as_str()
                && volume["state"] == "formatted"
                && volume["discrepancy"].is_null()
        })?;
        refused(&guard, &format!("mkfs.ext4 -F {}", node.display()), "")?;
        detach()?;
    }
    Ok(())
}

/// A file system of the test, mounted until the value is dropped.
struct Mounted {
    point: String,
    _below: Option<Loop>,
}

impl Mounted {
    fn new(name: &str, mkfs: &str, guard: &Guard) -> Result<Self> {
        let point = format!("/run/fg-files-{name}");
        fs::create_dir_all(&point)?;
        if mkfs.is_empty() {
            must(&format!("mount -t tmpfs files {point}"))?;
            return Ok(Self { point, _below: None });
        }
        let below = Loop::new(384)?;
        guard.wait_for_state(below.path(), "blank")?;
        must(&format!("{mkfs} {}", below.path().display()))?;
        must(&format!("mount {} {point}", below.path().display()))?;
        Ok(Self { point, _below: Some(below) })
    }

    fn file(&self) -> PathBuf {
        Path::new(&self.point).join("image")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = wait_for("the file system to be free", || {
            Ok((run(&format!("umount {}", self.point))?.status == 0).then_some(()))
        });
    }
}

/// An image with an ext4, not attached.
fn formatted_image(guard: &Guard, files: &Mounted) -> Result<PathBuf> {
    let file = files.file();
    fs::File::create(&file)?.set_len(64 * MIB)?;
    let device = Loop::over(&file)?;
    make_ext4(guard, device.path())?;
    device.detach()?;
    Ok(file)
}

fn cut(file: &Path) -> Result<()> {
    must(&format!("truncate -s 0 {}", file.display()))?;
    must(&format!("truncate -s 64M {}", file.display())).map(drop)
}

#[test]
fn an_image_file_that_was_cut_to_nothing_is_a_new_medium() -> Result<()> {
    let guard = Guard::shared()?;
    for name in ["xfs", "btrfs"] {
        module(name)?;
    }
    for (name, mkfs) in
        [("ext4", "mkfs.ext4 -F -q"), ("xfs", "mkfs.xfs -q"), ("btrfs", "mkfs.btrfs -q"), ("tmpfs", "")]
    {
        let files = Mounted::new(name, mkfs, &guard)?;
        let file = formatted_image(&guard, &files)?;
        let before = guard.events("denied")?.len();
        cut(&file)?;
        let device = Loop::over(&file)?;
        guard.wait_for_state(device.path(), "blank").with_context(|| name)?;
        must(&format!("mkfs.ext4 -q {}", device.path().display()))?;
        guard.wait_for_state(device.path(), "formatted")?;
        device.detach()?;
        ensure!(guard.events("denied")?.len() == before, "{:#?}", guard.events("denied")?);
    }
    Ok(())
}

#[test]
fn an_image_file_of_which_nobody_says_that_it_stores_nothing_stays_what_it_was() -> Result<()> {
    let guard = Guard::shared()?;
    let stays = |file: &Path| -> Result<()> {
        let device = Loop::over(file)?;
        guard.wait_for_volume(device.path(), "read and found gone", |volume| {
            volume["state"] == "formatted" && volume["discrepancy"].is_string()
        })?;
        refused(&guard, &format!("mkfs.ext4 -F -q {}", device.path().display()), "").map(drop)
    };
    let zeros = |file: &Path| {
        must(&format!("dd if=/dev/zero of={} bs=1M count=64 conv=notrunc,fsync", file.display())).map(drop)
    };
    // Recorded zeros look like a medium that lies.
    let files = Mounted::new("written", "mkfs.ext4 -F -q", &guard)?;
    let file = formatted_image(&guard, &files)?;
    zeros(&file)?;
    stays(&file).context("zeros that are stored")?;
    // Pointers to blocks are only numbers; and these bytes belong to another file system.
    let files = Mounted::new("ext3", "mkfs.ext3 -F -q", &guard)?;
    let file = formatted_image(&guard, &files)?;
    cut(&file)?;
    stays(&file).context("ext3")?;
    let image = Image::new(64)?;
    let device = Loop::over(image.path())?;
    make_ext4(&guard, device.path())?;
    device.detach()?;
    cut(image.path())?;
    stays(image.path()).context("overlayfs")?;
    // While the volume is attached, a mounted file system may write back what it has in memory.
    let files = Mounted::new("attached", "mkfs.ext4 -F -q", &guard)?;
    let file = formatted_image(&guard, &files)?;
    let device = Loop::over(&file)?;
    guard.wait_for_state(device.path(), "formatted")?;
    cut(&file)?;
    let name = device.path().file_name().context("a name")?;
    fs::write(Path::new("/sys/class/block").join(name).join("uevent"), "change")?;
    guard.wait_for_volume(device.path(), "found gone", |volume| volume["discrepancy"].is_string())?;
    refused(&guard, &format!("mkfs.ext4 -F -q {}", device.path().display()), "").map(drop)
}
