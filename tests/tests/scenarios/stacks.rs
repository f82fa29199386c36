//! Devices on, below or beside a guarded volume: the volume's bytes are kept whichever device is written to.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{self, refused},
    device::{Device, Linear, Loop, Mirror, Snapshot, remove_partitions, write_at},
    guard::Guard,
    tool::{command, module, must, run},
    wait_for,
};

use crate::make_ext4;

const MIB: u64 = 1 << 20;

/// Writes that the guard must refuse on a volume whose first byte is at `start` of a device: zeros over its
/// ext4 magic, other bytes over its UUID, another format's magic at its place, and the whole of its
/// beginning.
fn writes_refused(guard: &Guard, path: &Path, start: u64) -> Result<()> {
    for (offset, bytes) in [
        (1080, vec![0_u8; 2]),
        (1128, vec![0xaa; 16]),
        (0, b"XFSB".to_vec()),
        (0, b"LUKS\xba\xbe".to_vec()),
        (0, vec![0; 65536]),
    ] {
        let before = guard.newest_refusal()?;
        // In a process of its own: a taint belongs to a process.
        let result = thread_of_its_own(path, start + offset, &bytes)?;
        ensure!(!result, "a write at {start}+{offset} went through {}", path.display());
        wait_for("the refusal", || Ok((guard.newest_refusal()? > before).then_some(())))?;
    }
    let discard = format!("blkdiscard -f -o {start} -l {} {}", MIB, path.display());
    ensure!(run(&discard)?.status != 0, "{discard} succeeded");
    Ok(())
}

/// Whether dd could write these bytes there.
fn thread_of_its_own(path: &Path, offset: u64, bytes: &[u8]) -> Result<bool> {
    let source = "/run/fg-bytes";
    std::fs::write(source, bytes)?;
    let ran = run(&format!(
        "dd if={source} of={} bs={} seek={offset} oflag=seek_bytes conv=notrunc,fsync",
        path.display(),
        bytes.len()
    ))?;
    Ok(ran.status == 0)
}

/// A disk with two partitions, the first one with an ext4.
fn partitioned(guard: &Guard) -> Result<(Loop, PathBuf)> {
    let disk = Loop::new(64)?;
    let node = disk.path().display();
    guard.wait_for_state(disk.path(), "blank")?;
    must(&format!("parted -s {node} mklabel gpt mkpart one 1MiB 32MiB mkpart two 32MiB 60MiB"))?;
    guard.wait_for_state(disk.path(), "formatted")?;
    let one = PathBuf::from(format!("{node}p1"));
    make_ext4(guard, &one)?;
    Ok((disk, one))
}

#[test]
fn a_partition_is_kept_from_whoever_writes_to_the_disk() -> Result<()> {
    let guard = Guard::shared()?;
    let (disk, one) = partitioned(&guard)?;
    let node = disk.path().display();
    let before = Snapshot::of(&disk)?;
    writes_refused(&guard, disk.path(), MIB)?;
    for line in [
        format!("mkfs.ext4 -F {node}"),
        format!("wipefs -a -f {node}"),
        format!("blkdiscard -f {node}"),
        format!("{} -f {node}", attack::copy("blkdiscard")?),
        // Over the border between the partitions.
        format!("dd if=/dev/zero of={node} bs=2M seek=31M count=1 oflag=seek_bytes conv=notrunc,fsync"),
    ] {
        refused(&guard, &line, "")?;
    }
    before.unchanged(&disk)?;
    let told = guard.events("denied")?;
    let through = told.iter().filter(|event| event["refusal"]["through"].is_string());
    for event in through {
        let (device, below) = (&event["refusal"]["device"], &event["refusal"]["through"]);
        ensure!(one.ends_with(device.as_str().context("no device")?), "{event}");
        ensure!(disk.path().ends_with(below.as_str().context("no device")?), "{event}");
    }
    ensure!(told.iter().any(|event| event["refusal"]["reason"] == "across-volumes"), "{told:#?}");
    // Bytes without a mark may be written as ever: through the disk, into the partition's data, and into the
    // table's slack.
    let refusals = guard.events("denied")?.len();
    write_at(disk.path(), 20 * MIB, b"data")?;
    write_at(disk.path(), 61 * MIB, b"slack")?;
    // The other partition is still blank, and takes its format.
    make_ext4(&guard, &PathBuf::from(format!("{node}p2")))?;
    ensure!(guard.events("denied")?.len() == refusals, "{:#?}", guard.events("denied")?);
    remove_partitions(disk.path())
}

#[test]
fn a_partition_that_outlived_its_table_does_not_hold_up_what_took_its_place() -> Result<()> {
    let guard = Guard::shared()?;
    let (disk, _) = partitioned(&guard)?;
    let node = disk.path().to_owned();
    disk.detach()?;
    let image = format_guard_tests::device::Image::new(64)?;
    let other = Loop::at(&node, image.path())?;
    guard.wait_for_state(other.path(), "blank")?;
    // The first open of the new disk may drop the old disk's partitions, depending on the kernel (6.1 does so
    // now and then). The test puts the partition back that it needs.
    if !Path::new(&format!("{}p1", node.display())).exists() {
        must(&format!("addpart {} 1 2048 63488", node.display()))?;
    }
    guard.wait_for_state(Path::new(&format!("{}p1", node.display())), "blank")?;
    let refusals = guard.events("denied")?.len();
    must(&format!("mkfs.xfs -f -q --unsupported {}", node.display()))?;
    guard.wait_for_state(other.path(), "formatted")?;
    must(&format!("xfs_repair -L {}", node.display()))?;
    ensure!(guard.events("denied")?.len() == refusals, "{:#?}", guard.events("denied")?);
    remove_partitions(other.path())
}

#[test]
fn a_layer_over_a_part_of_a_formatted_volume_is_not_blank() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(64)?;
    make_ext4(&guard, below.path())?;
    let before = Snapshot::of(&below)?;
    // In the middle of the file system: at a place that reads as zeros, and at a backup superblock.
    let inside = Linear::over("fg-inside", "FGTEST-inside", below.path(), 40 * MIB, 2 * MIB)?;
    let layer = Linear::over("fg-over", "FGTEST-over", below.path(), 44 * MIB, 16 * MIB)?;
    guard.wait_for_volume(inside.path(), "held", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("shares its bytes"))
    })?;
    let volume = guard.wait_for_volume(layer.path(), "held", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("shares its bytes"))
    })?;
    ensure!(volume["state"] == "unverified", "{volume}");
    refused(&guard, &format!("mkfs.ext4 -F {}", layer.path().display()), "")?;
    refused(&guard, &format!("{} -F {}", attack::copy("mkfs.ext4")?, layer.path().display()), "")?;
    before.unchanged(&below)
}

#[test]
fn a_layer_over_the_whole_of_a_formatted_volume_is_that_format() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(64)?;
    make_ext4(&guard, below.path())?;
    let before = Snapshot::of(&below)?;
    let layer = Linear::over("fg-whole", "FGTEST-whole", below.path(), 0, 64 * MIB)?;
    guard.wait_for_state(layer.path(), "formatted")?;
    attack::all_refused(&guard, layer.path())?;
    let loop_over = Loop::over(layer.path())?;
    guard.wait_for_state(loop_over.path(), "formatted")?;
    attack::some_refused(&guard, loop_over.path())?;
    before.unchanged(&below)
}

/// A volume on a layer that hides what is below: it reads blank, and a formatter that believes this destroys
/// the lower volume.
fn nothing_is_written_through(guard: &Guard, layer: &Path) -> Result<()> {
    let node = layer.display();
    // At once, and again after the rule is there.
    for line in [format!("mkswap {node}"), format!("mkfs.ext4 -F {node}")] {
        refused(guard, &line, "")?;
    }
    guard.wait_for_volume(layer, "known to lie over a format", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("through a layer that writes over it"))
    })?;
    for line in [
        format!("mkswap {node}"),
        format!("mkfs.xfs -f {node}"),
        format!("wipefs -a -f {node}"),
        format!("dd if=/dev/zero of={node} bs=64k count=4 conv=notrunc,fsync"),
        format!("dd if=/dev/urandom of={node} bs=1M seek=8 count=1 conv=notrunc,fsync"),
    ] {
        refused(guard, &line, "")?;
    }
    ensure!(guard.volume(layer)?["state"] == "unverified", "{}", guard.volume(layer)?);
    Ok(())
}

#[test]
fn what_a_plain_mapping_encrypts_over_a_format_destroys_nothing() -> Result<()> {
    let guard = Guard::shared()?;
    module("dm_crypt")?;
    let below = Loop::new(64)?;
    make_ext4(&guard, below.path())?;
    let before = Snapshot::of(&below)?;
    // As crypttab's swap with a random key would do with a wrong volume's name.
    let open = format!(
        "cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 256 --key-file /dev/urandom -q {} fg-plain",
        below.path().display()
    );
    must(&open)?;
    let result = nothing_is_written_through(&guard, Path::new("/dev/mapper/fg-plain"));
    must("cryptsetup close fg-plain")?;
    result?;
    before.unchanged(&below)
}

#[test]
fn what_stripes_scatter_over_formats_destroys_nothing() -> Result<()> {
    let guard = Guard::shared()?;
    let below = [Loop::new(64)?, Loop::new(64)?];
    for volume in &below {
        make_ext4(&guard, volume.path())?;
    }
    let before = [Snapshot::of(&below[0])?, Snapshot::of(&below[1])?];
    // Data that begin behind the superblocks read as nothing at all; the first stripe of a volume reads as
    // its beginning.
    for (name, sector) in [("fg-behind", 2048), ("fg-from-the-start", 0)] {
        let [one, two] = [below[0].path().display(), below[1].path().display()];
        let table = format!("0 126976 striped 2 128 {one} {sector} {two} {sector}");
        let create = ["create", name, "--uuid", &format!("FGTEST-{name}"), "--table", &table];
        let made = command("dmsetup").args(create).status()?;
        ensure!(made.success(), "dmsetup create {name} ended with {made}");
        let layer = Path::new("/dev/mapper").join(name);
        let result = if sector > 0 {
            nothing_is_written_through(&guard, &layer)
        } else {
            let node = layer.display();
            [
                format!("mkfs.ext4 -F {node}"),
                format!("wipefs -a -f {node}"),
                format!("dd if=/dev/zero of={node} bs=64k count=4 conv=notrunc,fsync"),
            ]
            .iter()
            .try_for_each(|line| refused(&guard, line, "").map(drop))
        };
        must(&format!("dmsetup remove {name}"))?;
        result?;
    }
    before[0].unchanged(&below[0])?;
    before[1].unchanged(&below[1])
}

#[test]
fn layers_over_what_is_made_for_them_are_blank_and_take_their_format() -> Result<()> {
    let guard = Guard::shared()?;
    module("dm_crypt")?;
    let (encrypted, swapped) = (Loop::new(64)?, Loop::new(64)?);
    for volume in [&encrypted, &swapped] {
        guard.wait_for_state(volume.path(), "blank")?;
    }
    let key = "/run/fg-layer-key";
    std::fs::write(key, "a key for a test")?;
    let node = encrypted.path().display();
    must(&format!(
        "cryptsetup luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file {key} {node}"
    ))?;
    must(&format!("cryptsetup open --key-file {key} {node} fg-luks"))?;
    let result = make_ext4(&guard, Path::new("/dev/mapper/fg-luks"));
    must("cryptsetup close fg-luks")?;
    result?;
    // Swap space that is encrypted from now on.
    let node = swapped.path().display();
    must(&format!("mkswap {node}"))?;
    guard.wait_for_state(swapped.path(), "formatted")?;
    must(&format!(
        "cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 256 --key-file /dev/urandom -q {node} fg-swap"
    ))?;
    let result = guard
        .wait_for_state(Path::new("/dev/mapper/fg-swap"), "blank")
        .and_then(|_| must("mkswap /dev/mapper/fg-swap"));
    must("cryptsetup close fg-swap")?;
    result.map(drop)
}

#[test]
fn what_lies_below_a_formatted_volume_is_not_blank_not_even_without_it() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(64)?;
    let layer = Linear::over("fg-upper", "FGTEST-upper", below.path(), 16 * MIB, 32 * MIB)?;
    guard.wait_for_state(below.path(), "blank")?;
    make_ext4(&guard, layer.path())?;
    guard.wait_for_state(below.path(), "formatted")?;
    let before = Snapshot::of(&below)?;
    for there in [true, false] {
        refused(&guard, &format!("wipefs -a -f {}", below.path().display()), "")?;
        refused(&guard, &format!("{} -f {}", attack::copy("blkdiscard")?, below.path().display()), "")?;
        if there {
            writes_refused(&guard, below.path(), 16 * MIB)?;
            must(&format!("dmsetup remove --retry {}", "fg-upper"))?;
        } else {
            // mkfs asks whether the device is in use before it opens it for writing, and the device was.
            refused(&guard, &format!("mkfs.ext4 -F {}", below.path().display()), "")?;
            // The lower volume's marks are now those of the upper one.
            ensure!(!thread_of_its_own(below.path(), 16 * MIB + 1080, &[0; 2])?, "the magic was overwritten");
        }
    }
    before.unchanged(&below)
}

#[test]
fn the_members_of_a_mirror_keep_what_the_array_holds() -> Result<()> {
    let guard = Guard::shared()?;
    let members = [Loop::new(64)?, Loop::new(64)?];
    for member in &members {
        guard.wait_for_state(member.path(), "blank")?;
    }
    let array = Mirror::new([members[0].path(), members[1].path()])?;
    for member in &members {
        guard.wait_for_state(member.path(), "formatted")?;
    }
    let volume = guard.wait_for_state(array.path(), "blank")?;
    ensure!(volume["id"].as_str().is_some_and(|id| id.starts_with("md:")), "{volume}");
    make_ext4(&guard, array.path())?;
    // The members of a mirror differ in their superblocks, where mdadm also notes events, so that their
    // contents are compared.
    let name = array.path().file_name().context("no name")?.to_string_lossy().into_owned();
    let before = array.sha256()?;
    for member in &members {
        let device = member.path().file_name().context("no name")?.to_string_lossy().into_owned();
        let offset = std::fs::read_to_string(format!("/sys/block/{name}/md/dev-{device}/offset"))?;
        writes_refused(&guard, member.path(), offset.trim().parse::<u64>()? * 512)?;
        refused(&guard, &format!("wipefs -a -f {}", member.path().display()), "")?;
        refused(&guard, &format!("{} -f {}", attack::copy("blkdiscard")?, member.path().display()), "")?;
    }
    ensure!(array.sha256()? == before, "bytes changed");
    Ok(())
}

/// A writer exists before the layer does, and before the agent has seen the layer: magics are kept even then.
#[test]
fn a_layer_made_while_a_writer_waits_for_it_lets_nothing_through() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(64)?;
    make_ext4(&guard, below.path())?;
    let before = Snapshot::of(&below)?;
    let (stop, tried, wrote) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let path = Path::new("/dev/mapper/fg-raced");
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Through the node as soon as it exists: devtmpfs makes it, dmsetup links it.
                let Ok(file) = OpenOptions::new().write(true).open(path) else { continue };
                for (offset, bytes) in [(1080, &[0_u8; 2][..]), (0, b"LUKS\xba\xbe"), (0, b"XFSB")] {
                    tried.fetch_add(1, Ordering::Relaxed);
                    wrote.fetch_add(u64::from(file.write_all_at(bytes, offset).is_ok()), Ordering::Relaxed);
                }
            }
        });
        for round in 0..10 {
            let seen = tried.load(Ordering::Relaxed);
            let layer =
                Linear::over("fg-raced", &format!("FGTEST-raced-{round}"), below.path(), 0, 64 * MIB)?;
            let waited = wait_for("the writer", || Ok((tried.load(Ordering::Relaxed) > seen).then_some(())));
            drop(layer);
            waited?;
        }
        stop.store(true, Ordering::Relaxed);
        Ok(())
    })
    .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
    let (tried, wrote) = (tried.into_inner(), wrote.into_inner());
    ensure!(wrote == 0, "{wrote} of {tried} writes went through");
    before.unchanged(&below)
}
