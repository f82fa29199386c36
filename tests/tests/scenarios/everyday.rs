//! Everyday work on guarded volumes goes on as it does without the guard.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use format_guard_tests::{
    attack::LUKS_FORMAT,
    device::{Device, Loop, Snapshot, remove_partitions},
    guard::Guard,
    tool::{command, module, must, must_with, run_command},
    wait_for,
};

use crate::make_ext4;

/// A directory to mount on.
fn mount_point() -> Result<String> {
    let path = "/run/fg-mount";
    fs::create_dir_all(path)?;
    Ok(path.to_owned())
}

/// Mounts, writes a file that is checked after a remount, and unmounts.
fn mount_and_write(path: &Path) -> Result<()> {
    let point = mount_point()?;
    must(&format!("mount {} {point}", path.display()))?;
    fs::write(format!("{point}/file"), "kept")?;
    must(&format!("umount {point}"))?;
    must(&format!("mount {} {point}", path.display()))?;
    let text = fs::read_to_string(format!("{point}/file"))?;
    must(&format!("umount {point}"))?;
    ensure!(text == "kept", "the file reads {text:?}");
    Ok(())
}

fn nothing_was_refused(guard: &Guard) -> Result<()> {
    let denied = guard.events("denied")?;
    ensure!(denied.is_empty(), "everyday work was refused: {denied:#?}");
    Ok(())
}

#[test]
fn ext4_is_checked_labelled_resized_and_mounted() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let path = device.path();
    let node = path.display();
    make_ext4(&guard, path)?;
    mount_and_write(path)?;
    must(&format!("e2fsck -fy {node}"))?;
    must(&format!("tune2fs -L data {node}"))?;
    must(&format!("tune2fs -O ^has_journal {node}"))?;
    must(&format!("tune2fs -j {node}"))?;
    must(&format!("e2fsck -fy -E discard {node}"))?;
    must(&format!("resize2fs {node} 40M"))?;
    must(&format!("resize2fs {node}"))?;
    must(&format!("e2fsck -fy {node}"))?;
    mount_and_write(path)?;
    nothing_was_refused(&guard)?;
    let volume = guard.wait_for_volume(path, "labelled", |volume| volume["content"]["label"] == "data")?;
    ensure!(volume["discrepancy"].is_null(), "{volume}");
    ensure!(volume["mounted"] == true, "{volume}");
    Ok(())
}

#[test]
fn a_new_uuid_by_tune2fs_goes_through_whole_and_the_record_follows() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let path = device.path();
    let node = path.display();
    make_ext4(&guard, path)?;
    let uuid = "11111111-2222-3333-4444-555555555555";
    must_with(&format!("tune2fs -f -U {uuid} {node}"), "y\n")?;
    must(&format!("e2fsck -fy {node}"))?;
    nothing_was_refused(&guard)?;
    guard.wait_for_volume(path, "relabelled", |volume| volume["content"]["uuid"] == uuid)?;
    ensure!(guard.events("relabelled")?.len() == 1);
    Ok(())
}

#[test]
fn xfs_is_repaired_labelled_and_mounted() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let path = device.path();
    let node = path.display();
    guard.wait_for_state(path, "blank")?;
    must(&format!("mkfs.xfs -f -q --unsupported {node}"))?;
    guard.wait_for_state(path, "formatted")?;
    mount_and_write(path)?;
    must(&format!("xfs_repair {node}"))?;
    must(&format!("xfs_repair -L {node}"))?;
    must(&format!("xfs_admin -L data {node}"))?;
    mount_and_write(path)?;
    nothing_was_refused(&guard)
}

#[test]
fn luks_is_opened_gets_a_key_and_holds_a_file_system() -> Result<()> {
    let guard = Guard::shared()?;
    module("dm_crypt")?;
    let device = Loop::new(64)?;
    let path = device.path();
    let node = path.display();
    guard.wait_for_state(path, "blank")?;
    must_with(&format!("{LUKS_FORMAT} {node} -"), "secret")?;
    let keyfile = "/run/fg-key";
    fs::write(keyfile, "another")?;
    // At once, while the agent is still learning what was formatted.
    let cheap = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    must_with(&format!("cryptsetup luksAddKey {cheap} --key-file - {node} {keyfile}"), "secret")?;
    let volume = guard.wait_for_state(path, "formatted")?;
    ensure!(volume["content"]["types"][0] == "crypto_LUKS", "{volume}");
    must_with(&format!("cryptsetup luksAddKey {cheap} --key-file - {node} {keyfile}"), "secret")?;
    must_with(&format!("cryptsetup open --key-file - {node} fg-open"), "secret")?;
    let inner = Path::new("/dev/mapper/fg-open");
    let result = make_ext4(&guard, inner).and_then(|()| mount_and_write(inner));
    must("cryptsetup close fg-open")?;
    result?;
    nothing_was_refused(&guard)
}

#[test]
fn lvm_makes_volumes_on_a_guarded_physical_volume() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(128)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    must(&format!("pvcreate -y {}", path.display()))?;
    // At once, while the agent is still learning what was made.
    must(&format!("vgcreate fgvg {}", path.display()))?;
    guard.wait_for_state(path, "formatted")?;
    must("lvcreate -y -n one -L 48M fgvg")?;
    let result = lvm_rounds(&guard);
    must("vgchange -an fgvg")?;
    must("vgremove -f fgvg")?;
    result?;
    nothing_was_refused(&guard)
}

/// A file system on a logical volume; then another volume over the same extents, whose stale signature LVM
/// wipes.
fn lvm_rounds(guard: &Guard) -> Result<()> {
    let first = Path::new("/dev/fgvg/one");
    make_ext4(guard, first)?;
    mount_and_write(first)?;
    must("lvextend -L 64M fgvg/one")?;
    must("lvremove -y fgvg/one")?;
    must("lvcreate -y -n two -L 48M fgvg")?;
    make_ext4(guard, Path::new("/dev/fgvg/two"))
}

#[test]
fn partitions_are_made_on_a_blank_disk_and_added_to_a_labelled_one() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let path = device.path();
    let node = path.display();
    guard.wait_for_state(path, "blank")?;
    must(&format!("parted -s {node} mklabel gpt"))?;
    must(&format!("parted -s {node} mkpart one ext4 1MiB 32MiB"))?;
    let volume = guard.wait_for_state(path, "formatted")?;
    ensure!(volume["content"]["types"][0] == "gpt", "{volume}");
    must(&format!("parted -s {node} mkpart two ext4 32MiB 60MiB"))?;
    nothing_was_refused(&guard)?;
    // Another scenario tests partitions that outlive their disk.
    remove_partitions(device.path())
}

#[test]
fn a_first_format_that_fails_may_be_tried_again() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let path = device.path();
    let node = path.display();
    guard.wait_for_state(path, "blank")?;
    // The tool opens the device for writing, and then finds that it cannot do its work.
    let ran = format_guard_tests::tool::run(&format!("mkfs.ext4 -F -q -b 1024 {node} 100000000"))?;
    ensure!(ran.status != 0, "{ran:?}");
    guard.wait_for_state(path, "blank")?;
    make_ext4(&guard, path)?;
    nothing_was_refused(&guard)
}

/// A virtual machine's writes to its disk reach the volume through its monitor. Here qemu's own block layer
/// serves the volume, and the guest's writes come over a socket.
#[test]
fn a_virtual_machine_that_formats_its_disk_is_refused_and_gets_it_back() -> Result<()> {
    const SOCKET: &str = "/run/fg-monitor";
    // `event::Taint::QUIET`
    const QUIET: Duration = Duration::from_secs(10);
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = Snapshot::of(&device)?;
    let mut monitor = command(&format!(
        "qemu-nbd --format=raw --cache=none --persistent --socket={SOCKET} {}",
        device.path().display()
    ))
    .spawn()?;
    wait_for("the monitor", || Ok(Path::new(SOCKET).exists().then_some(())))?;
    let writes = |offset: &str| -> Result<bool> {
        // qemu-io ends with 0 whatever came of its commands.
        let mut client = command("qemu-io -f raw -c");
        client.arg(format!("write -P 1 {offset} 4k")).arg(format!("nbd+unix:///?socket={SOCKET}"));
        let ran = run_command(client, "qemu-io", "")?;
        Ok(ran.text.contains("wrote 4096/4096"))
    };
    ensure!(!writes("0")?, "it formatted its disk");
    ensure!(!writes("9M")?, "it was refused once, and writes again");
    before.unchanged(&device)?;
    ensure!(monitor.try_wait()?.is_none(), "the monitor did not survive");
    guard.json(&format!("volume untaint {} --reason vm", device.path().display()))?;
    ensure!(writes("9M")?, "it did not get its disk back");
    ensure!(!writes("0")?, "it formatted its disk after all");
    // The guest has given up, and starts what is on the disk: nobody has to help it.
    let start = Instant::now();
    ensure!(!writes("9M")? && start.elapsed() < QUIET, "it was refused once, and writes again");
    thread::sleep(QUIET + Duration::from_secs(1));
    ensure!(writes("9M")?, "it did not get its disk back");
    // An operator who permits what was refused need not lift the refusal, too.
    ensure!(!writes("0")?, "it formatted its disk after all");
    guard.json(&format!("volume permit {} --reason vm", device.path().display()))?;
    ensure!(writes("9M")? && writes("0")?, "it may not do what was permitted");
    monitor.kill()?;
    monitor.wait()?;
    fs::remove_file(SOCKET)?;
    Ok(())
}
