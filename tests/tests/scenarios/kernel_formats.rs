//! Headers that the kernel writes by itself when a layer is made, or when a device joins a file system. They
//! are refused over what is recorded; blank volumes take them, and a volume that has such a header goes on.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{LUKS_FORMAT, refused},
    device::{Device, Loop, Snapshot, device_number},
    guard::Guard,
    tool::{module, must, must_with, run, run_with},
    wait_for,
};

use crate::make_ext4;

/// Of each device, in MiB: enough for a btrfs.
const SIZE: u64 = 128;
const SECTORS: u64 = SIZE << 11;
const NAME: &str = "fgkernel";

/// Tables that would write over `$V`: module, then the table. `$A` and `$B` are blank.
const TABLES: &[(&str, &str)] = &[
    ("dm-snapshot", "snapshot $A $V P 8"),
    ("dm-snapshot", "snapshot $A $V PO 16"),
    ("dm-snapshot", "snapshot $A $V N 8"),
    ("dm-snapshot", "snapshot-merge $A $V P 8"),
    ("dm-integrity", "integrity $V 0 - J 1 internal_hash:crc32c"),
    ("dm-integrity", "integrity $A 0 4 D 2 internal_hash:crc32c meta_device:$V"),
    ("dm-writecache", "writecache s $A $V 4096 0"),
    ("dm-cache", "cache $V $A $B 128 1 writethrough default 0"),
    ("dm-cache", "cache $A $V $B 128 1 writethrough default 0"),
    ("dm-thin-pool", "thin-pool $V $A 128 0"),
    ("dm-thin-pool", "thin-pool $A $V 128 0"),
    ("dm-era", "era $V $A 8192"),
    ("dm-clone", "clone $V $A $B 8"),
    ("dm-clone", "clone $A $V $B 8"),
    ("dm-mirror", "mirror disk 2 $V 1024 2 $A 0 $B 0"),
    ("dm-log-writes", "log-writes $A $V"),
];

/// The tables for which this kernel has a module.
fn tables() -> Vec<&'static str> {
    let there = |name: &str| module(&name.replace('-', "_")).is_ok();
    let (known, unknown): (Vec<_>, Vec<_>) = TABLES.iter().copied().partition(|(name, _)| there(name));
    for (name, table) in unknown {
        eprintln!("not tried, this kernel has no {name}: {table}");
    }
    known.into_iter().map(|(_, table)| table).collect()
}

fn blank(guard: &Guard) -> Result<Loop> {
    let device = Loop::new(SIZE)?;
    guard.wait_for_state(device.path(), "blank")?;
    Ok(device)
}

fn table(line: &str) -> String {
    let sectors = if line.starts_with("integrity") { 1 } else { SECTORS };
    format!("0 {sectors} {line}\n")
}

/// Loads a table, which must succeed, and removes it again.
fn made(line: &str) -> Result<()> {
    must_with(&format!("dmsetup create {NAME}"), &table(line)).with_context(|| line.to_owned())?;
    gone()
}

fn gone() -> Result<()> {
    wait_for("the layer to be gone", || {
        let ran = run(&format!("dmsetup remove {NAME}"))?;
        Ok((ran.status == 0 || ran.text.contains("No such device")).then_some(()))
    })
}

/// Loads a table that the guard must refuse.
fn table_refused(guard: &Guard, line: &str) -> Result<()> {
    let ran = refused(guard, &format!("dmsetup create {NAME}"), &table(line));
    ran.with_context(|| format!("{line}: {}", guard.log())).inspect_err(|_| drop(gone())).map(drop)
}

/// After a refused table the loading process may hold a blank device for a moment.
fn settled(guard: &Guard, device: &Loop) -> Result<()> {
    guard.wait_for_state(device.path(), "blank").map(drop)
}

/// A volume that this command has formatted.
fn formatted(guard: &Guard, mkfs: &str) -> Result<Loop> {
    let device = blank(guard)?;
    must(&format!("{mkfs} {}", device.path().display())).with_context(|| guard.log())?;
    guard.wait_for_state(device.path(), "formatted")?;
    Ok(device)
}

fn last_refusal(guard: &Guard) -> Result<serde_json::Value> {
    guard.events("denied")?.pop().context("no event")
}

#[test]
fn no_table_writes_its_header_over_a_recorded_volume() -> Result<()> {
    let guard = Guard::shared()?;
    module("btrfs")?;
    let (a, b) = (blank(&guard)?, blank(&guard)?);
    // The kernel looks for its header at a place that reads as zeros: 512 bytes in one case, 64 KiB in the
    // other.
    for mkfs in ["mkfs.ext4 -F -m0 -q", "mkfs.btrfs -q"] {
        let victim = formatted(&guard, mkfs)?;
        let before = Snapshot::of(&victim)?;
        for line in tables() {
            let paths = [&a, &b, &victim].map(|device| device.path().display().to_string());
            let numbers = [a.path(), b.path(), victim.path()].map(device_number);
            let [first, second, third] = numbers;
            for [a_name, b_name, name] in [paths, [first?, second?, third?]] {
                let line = line.replace("$A", &a_name).replace("$B", &b_name).replace("$V", &name);
                table_refused(&guard, &line)?;
                let told = last_refusal(&guard)?;
                ensure!(told["refusal"]["reason"] == "kernel-format", "{line}: {told}");
                let device = told["refusal"]["device"].as_str().unwrap_or_default();
                ensure!(victim.path().ends_with(device), "{line}: {told}");
                settled(&guard, &a)?;
                settled(&guard, &b)?;
            }
        }
        before.unchanged(&victim)?;
        let told = last_refusal(&guard)?["text"].to_string();
        ensure!(told.contains("the header of dm-log-writes"), "{told}");
        ensure!(told.contains("format-guard volume permit "), "{told}");
    }
    Ok(())
}

/// The kernel takes zeros for a new device, also the zeros of degraded storage.
#[test]
fn a_layer_whose_header_reads_as_zeros_stays_what_it_was() -> Result<()> {
    use format_guard_tests::device::Mapped;

    let guard = Guard::shared()?;
    module("dm_snapshot")?;
    let origin = blank(&guard)?;
    let store = Mapped::new(SIZE)?;
    make_ext4(&guard, store.path())?;
    let before = Snapshot::of(&store)?;
    store.read_zeros()?;
    let line = format!("snapshot {} {} P 8", origin.path().display(), store.path().display());
    table_refused(&guard, &line)?;
    store.recover()?;
    before.unchanged(&store)
}

#[test]
fn what_is_not_verified_takes_no_header_of_the_kernel() -> Result<()> {
    let guard = Guard::shared()?;
    module("dm_snapshot")?;
    let origin = blank(&guard)?;
    // A device that is new to the guard holds a format that nobody recorded.
    let image = format_guard_tests::device::Image::new(SIZE)?;
    must(&format!("mkfs.ext4 -F -q {}", image.path().display()))?;
    let before = fs::read(image.path())?;
    guard.pause_agent()?;
    let device = Loop::over(image.path())?;
    let line = format!("snapshot {} {} P 8", origin.path().display(), device.path().display());
    let ran = run_with(&format!("dmsetup create {NAME}"), &table(&line));
    guard.resume_agent()?;
    let ran = ran?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{ran:?}");
    device.sha256()?;
    ensure!(fs::read(image.path())? == before, "it was written over");
    Ok(())
}

/// `BTRFS_IOC_ADD_DEV` and `BTRFS_IOC_DEV_REPLACE` (include/uapi/linux/btrfs.h), as programs other than
/// btrfs(8) request them.
fn take_in(mounted: &Path, device: &Path, replace: bool) -> Result<i32> {
    let (command, size, at): (libc::Ioctl, usize, usize) =
        if replace { (0xca28_9435, 2600, 1057) } else { (0x5000_940a, 4096, 8) };
    let mut argument = vec![0_u8; size];
    if replace {
        // Replaces the device of number one.
        argument[16] = 1;
    }
    let name = device.as_os_str().as_bytes();
    argument[at..at + name.len()].copy_from_slice(name);
    let directory = File::open(mounted)?;
    // SAFETY: an ioctl on an open descriptor, with an argument of its size.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), command, argument.as_mut_ptr()) };
    if result >= 0 { Ok(0) } else { Ok(std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)) }
}

#[test]
fn btrfs_takes_in_no_recorded_volume_and_a_blank_one_once() -> Result<()> {
    let guard = Guard::shared()?;
    module("btrfs")?;
    let main = formatted(&guard, "mkfs.btrfs -q")?;
    // One device for each: a second refusal of one process on a volume is not reported.
    let victims = [formatted(&guard, "mkfs.ext4 -F -m0 -q")?, formatted(&guard, "mkfs.ext4 -F -m0 -q")?];
    let more = blank(&guard)?;
    let point = Path::new("/run/fg-kernel");
    fs::create_dir_all(point)?;
    must(&format!("mount {} {}", main.path().display(), point.display()))?;
    let tried = (|| {
        for (victim, replace) in victims.iter().zip([false, true]) {
            let before = Snapshot::of(victim)?;
            let newest = guard.newest_refusal()?;
            let errno = take_in(point, victim.path(), replace)?;
            ensure!(errno == libc::EPERM, "errno {errno}, replace: {replace}");
            wait_for("the refusal", || Ok((guard.newest_refusal()? > newest).then_some(())))
                .with_context(|| guard.log())?;
            before.unchanged(victim)?;
        }
        let told = last_refusal(&guard)?;
        ensure!(told["text"].as_str().is_some_and(|text| text.contains("the header of btrfs")), "{told}");
        // Everyday work.
        let refusals = guard.events("denied")?.len();
        must(&format!("btrfs device add {} {}", more.path().display(), point.display()))?;
        guard.wait_for_volume(more.path(), "btrfs", |volume| volume["content"]["types"][0] == "btrfs")?;
        must(&format!("btrfs device remove {} {}", main.path().display(), point.display()))?;
        ensure!(guard.events("denied")?.len() == refusals, "{:#?}", guard.events("denied")?);
        Ok(())
    })();
    must(&format!("umount {}", point.display()))?;
    tried
}

#[test]
fn md_copies_no_member_over_a_recorded_volume() -> Result<()> {
    let guard = Guard::shared()?;
    module("raid1")?;
    let (first, second) = (blank(&guard)?, formatted(&guard, "mkfs.ext4 -F -m0 -q")?);
    let before = Snapshot::of(&second)?;
    let build = |first: &Loop, second: &Loop| {
        let [first, second] = [first, second].map(|device| device.path().display().to_string());
        format!("mdadm --build /dev/md93 --level=1 --raid-devices=2 {first} {second}")
    };
    refused(&guard, &build(&first, &second), "")?;
    let _ = run("mdadm --stop /dev/md93");
    before.unchanged(&second)?;
    // The first one is the source of the copy. While anybody else reads, md copies a MiB in a second.
    fs::write("/proc/sys/dev/raid/speed_limit_min", "1000000")?;
    must(&build(&second, &first))?;
    must("mdadm --wait /dev/md93").or_else(|_| must("cat /proc/mdstat"))?;
    wait_for("the array to be stopped", || Ok((run("mdadm --stop /dev/md93")?.status == 0).then_some(())))?;
    before.unchanged(&second)
}

#[test]
fn a_blank_volume_takes_a_header_once_and_what_has_one_goes_on() -> Result<()> {
    let guard = Guard::shared()?;
    for name in ["dm_snapshot", "dm_thin_pool", "dm_cache", "dm_writecache"] {
        module(name)?;
    }
    let refusals = guard.events("denied")?.len();
    let origin = formatted(&guard, "mkfs.ext4 -F -m0 -q")?;
    let before = Snapshot::of(&origin)?;
    for (line, content) in [
        ("snapshot $O $H P 8", "DM_snapshot_cow"),
        ("thin-pool $H $D 128 0", "dm_thin_pool"),
        ("cache $H $D $O 128 1 writethrough default 0", "dm_cache"),
        ("writecache s $O $H 4096 0", "dm_writecache"),
    ] {
        let (header, data) = (blank(&guard)?, blank(&guard)?);
        let fill = |header: &Path| {
            line.replace("$O", &origin.path().display().to_string())
                .replace("$H", &header.display().to_string())
                .replace("$D", &data.path().display().to_string())
        };
        made(&fill(header.path())).with_context(|| guard.log())?;
        let is_known = |path: &Path| {
            guard.wait_for_volume(path, content, |volume| {
                volume["state"] == "formatted" && volume["content"]["types"][0] == content
            })
        };
        is_known(header.path())?;
        made(&fill(header.path()))?;
        // After the layer was removed and made again.
        let image = header.detach()?.context("no image")?;
        let back = Loop::over(image.path())?;
        is_known(back.path())?;
        made(&fill(back.path()))?;
        // The header of another layer must not be written over it.
        let other =
            if content == "dm_writecache" { "snapshot $A $V P 8" } else { "writecache s $A $V 4096 0" };
        let spare = blank(&guard)?;
        let other = other
            .replace("$A", &spare.path().display().to_string())
            .replace("$V", &back.path().display().to_string());
        table_refused(&guard, &other)?;
        before.unchanged(&origin)?;
    }
    let told = guard.events("denied")?;
    ensure!(told[refusals..].iter().all(|event| event["refusal"]["reason"] == "kernel-format"), "{told:#?}");
    Ok(())
}

#[test]
fn a_permit_lets_the_kernel_write_its_header_once_and_audit_tells() -> Result<()> {
    let guard = Guard::start()?;
    module("dm_snapshot")?;
    let (origin, store) = (blank(&guard)?, formatted(&guard, "mkfs.ext4 -F -m0 -q")?);
    let line = format!("snapshot {} {} P 8", origin.path().display(), store.path().display());
    table_refused(&guard, &line)?;
    guard.say(&format!("volume permit {} --reason test", store.path().display()))?;
    made(&line)?;
    guard.wait_for_volume(store.path(), "a snapshot's store", |volume| {
        volume["content"]["types"][0] == "DM_snapshot_cow" && volume["state"] == "formatted"
    })?;
    let other = formatted(&guard, "mkfs.ext4 -F -m0 -q")?;
    guard.say("mode audit --reason test")?;
    made(&format!("snapshot {} {} P 8", origin.path().display(), other.path().display()))?;
    wait_for("what would have been refused", || {
        let told = guard.events("would-deny")?;
        Ok(told.iter().any(|event| event["refusal"]["reason"] == "kernel-format").then_some(()))
    })
}

#[test]
fn integrity_is_made_and_opened_as_ever() -> Result<()> {
    let guard = Guard::shared()?;
    module("dm_integrity")?;
    module("dm_crypt")?;
    let refusals = guard.events("denied")?.len();
    let device = blank(&guard)?;
    let node = device.path().display();
    must(&format!("integritysetup format -q {node}"))?;
    // At once, as users do.
    for _ in 0..2 {
        must(&format!("integritysetup open {node} {NAME}"))?;
        must(&format!("integritysetup close {NAME}"))?;
    }
    guard.wait_for_state(device.path(), "formatted")?;
    must(&format!("integritysetup open {node} {NAME}"))?;
    must(&format!("integritysetup close {NAME}"))?;
    let device = blank(&guard)?;
    let node = device.path().display();
    must_with(
        &format!("{LUKS_FORMAT} --type luks2 --integrity hmac-sha256 --integrity-no-wipe {node} -"),
        "secret",
    )?;
    for _ in 0..2 {
        must_with(&format!("cryptsetup open --key-file - {node} {NAME}"), "secret")?;
        must(&format!("cryptsetup close {NAME}"))?;
        guard.wait_for_state(device.path(), "formatted")?;
    }
    ensure!(guard.events("denied")?.len() == refusals, "{:#?}", guard.events("denied")?);
    Ok(())
}

/// A volume group over two physical volumes, removed with the value.
struct Group {
    _disks: [Loop; 2],
}

const GROUP: &str = "fgkernel";

impl Group {
    fn new(guard: &Guard) -> Result<Self> {
        let disks = [Loop::new(512)?, Loop::new(512)?];
        let nodes = disks.each_ref().map(|disk| disk.path().to_owned());
        for node in &nodes {
            guard.wait_for_state(node, "blank")?;
        }
        let [first, second] = nodes.map(|node| node.display().to_string());
        must(&format!("vgcreate {GROUP} {first} {second}"))?;
        Ok(Self { _disks: disks })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for line in ["vgchange -an", "vgremove -ff -y"] {
            let _ = wait_for("the group to be free", || {
                Ok((run(&format!("{line} {GROUP}"))?.status == 0).then_some(()))
            });
        }
    }
}

/// Makes an ext4 on a logical volume, with a file.
fn filled(guard: &Guard, name: &str) -> Result<()> {
    make_ext4(guard, &volume(name))?;
    in_mount(name, |point| fs::write(point.join("file"), name).map_err(Into::into))
}

/// Checks that the file is there.
fn is_whole(name: &str) -> Result<()> {
    in_mount(name, |point| {
        ensure!(fs::read(point.join("file"))? == name.as_bytes(), "{name}");
        Ok(())
    })
}

fn volume(name: &str) -> PathBuf {
    Path::new("/dev").join(GROUP).join(OsStr::new(name))
}

fn in_mount(name: &str, what: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let point = Path::new("/run/fg-kernel");
    fs::create_dir_all(point)?;
    must(&format!("mount {} {}", volume(name).display(), point.display()))?;
    let done = what(point);
    must(&format!("umount {}", point.display()))?;
    done
}

/// Runs LVM's commands, each of which must succeed, and checks that nothing was refused.
fn lvm(guard: &Guard, lines: &[&str]) -> Result<()> {
    for line in lines {
        must(&line.replace("$G", GROUP)).with_context(|| format!("{:#?}", guard.events("denied")))?;
    }
    let told = guard.events("denied")?;
    ensure!(told.is_empty(), "{told:#?}");
    Ok(())
}

#[test]
fn lvm_makes_snapshots_and_thin_pools_as_ever() -> Result<()> {
    let guard = Guard::shared()?;
    let _group = Group::new(&guard)?;
    lvm(&guard, &["lvcreate -y -L 64M -n one $G"])?;
    filled(&guard, "one")?;
    lvm(&guard, &["lvcreate -y -s -L 16M -n snap $G/one"])?;
    is_whole("one")?;
    lvm(&guard, &["lvcreate -y -L 128M -T $G/pool", "lvcreate -y -V 256M -T $G/pool -n thin"])?;
    filled(&guard, "thin")?;
    lvm(
        &guard,
        &[
            "lvcreate -y -kn -s $G/thin -n thinsnap",
            "lvextend -y --poolmetadatasize +4M $G/pool",
            "lvextend -y -L +32M $G/pool",
            "lvchange -y -an $G/thinsnap",
        ],
    )?;
    is_whole("thin")?;
    // As after a boot.
    for _ in 0..2 {
        lvm(&guard, &["vgchange -an $G", "vgchange -ay $G"])?;
        is_whole("thin")?;
        is_whole("one")?;
    }
    lvm(&guard, &["lvconvert -y --merge $G/snap", "lvremove -y $G/pool", "lvcreate -y -L 64M -T $G/again"])
}

#[test]
fn lvm_attaches_caches_and_keeps_integrity_as_ever() -> Result<()> {
    let guard = Guard::shared()?;
    let _group = Group::new(&guard)?;
    for name in ["dm_cache", "dm_writecache", "dm_integrity", "dm_raid", "raid1"] {
        module(name)?;
    }
    lvm(&guard, &["lvcreate -y -L 64M -n main $G"])?;
    filled(&guard, "main")?;
    lvm(
        &guard,
        &[
            "lvcreate -y --type cache-pool -L 32M -n fast $G",
            "lvconvert -y --type cache --cachepool $G/fast $G/main",
            "vgchange -an $G",
            "vgchange -ay $G",
        ],
    )?;
    is_whole("main")?;
    lvm(
        &guard,
        &[
            "lvconvert -y --splitcache $G/main",
            "lvconvert -y --type cache --cachepool $G/fast $G/main",
            "lvconvert -y --uncache $G/main",
            "lvcreate -y -L 32M -n volume $G",
            "lvconvert -y --type cache --cachevol volume $G/main",
        ],
    )?;
    is_whole("main")?;
    lvm(
        &guard,
        &[
            "lvconvert -y --uncache $G/main",
            "lvcreate -y -L 32M -n writes $G",
            "lvchange -an $G/main $G/writes",
            "lvconvert -y --type writecache --cachevol writes $G/main",
            "lvchange -ay $G/main",
        ],
    )?;
    is_whole("main")?;
    lvm(
        &guard,
        &[
            "vgchange -an $G",
            "vgchange -ay $G",
            "lvconvert -y --splitcache $G/main",
            "lvcreate -y --type raid1 -m1 -L 16M -n twice $G",
        ],
    )?;
    is_whole("main")?;
    filled(&guard, "twice")?;
    lvm(&guard, &["lvconvert -y --raidintegrity y $G/twice"])?;
    is_whole("twice")?;
    lvm(&guard, &["vgchange -an $G", "vgchange -ay $G"])?;
    is_whole("twice")
}
