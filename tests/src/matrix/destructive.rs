//! What must be refused on every kind of volume. Tools whose purpose or mistake destroys the volume, under
//! their names and as copies; every system call that reaches a mark; and the same through a device over or
//! under the volume.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, Row, Selection, difference, has, shell,
    volume::{Copy, Golden, HEAD, KINDS, MIB},
};
use crate::{
    attack,
    device::{Device, flush},
    guard::{Guard, PRELOAD, tier},
    road::{Aim, GARBAGE, ROADS, Road, documented, in_child},
    tool::{must, run as run_tool},
};

/// A tool and its command line. `$N` is the node; `$P` the program, under its name or as a copy.
struct Tool {
    name: &'static str,
    program: &'static str,
    line: &'static str,
    /// The kinds of volumes that it is tried on; empty means every kind.
    on: &'static [&'static str],
    /// It is tried as a copy under another name, too: with this line.
    copied: Option<&'static str>,
}

const fn tool(name: &'static str, program: &'static str, line: &'static str) -> Tool {
    Tool { name, program, line, on: &[], copied: Some(line) }
}

const fn on(on: &'static [&'static str], mut tool: Tool) -> Tool {
    tool.on = on;
    tool
}

const fn by_name(mut tool: Tool) -> Tool {
    tool.copied = None;
    tool
}

/// luksFormat of a type.
macro_rules! luks_format {
    ($type:literal) => {
        concat!(
            "printf secret | $P luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file - --type ",
            $type,
            " $N"
        )
    };
}

/// Programs that act by the name they are called by (mke2fs, lvm) have a line of their own for a copy. A copy
/// of a program whose name is in no table (`format_guard_common::program`) is the same to the guard.
const TOOLS: &[Tool] = &[
    tool("mkfs.ext2", "mkfs.ext2", "$P -F -q $N"),
    by_name(tool("mkfs.ext3", "mkfs.ext3", "$P -F -q $N")),
    tool("mkfs.ext4", "mkfs.ext4", "$P -t ext4 -F -q $N"),
    by_name(tool("mke2fs", "mke2fs", "$P -F -q $N")),
    tool("mkfs.xfs", "mkfs.xfs", "$P -f -q --unsupported $N"),
    tool("mkfs.btrfs", "mkfs.btrfs", "$P -f -q -M $N"),
    tool("mkfs.f2fs", "mkfs.f2fs", "$P -f -q $N"),
    tool("mkfs.vfat", "mkfs.vfat", "$P -I $N"),
    tool("mkfs.exfat", "mkfs.exfat", "$P $N"),
    tool("mkfs.ntfs", "mkfs.ntfs", "$P -F -Q -q $N"),
    tool("mkfs.nilfs2", "mkfs.nilfs2", "$P -f -q -B 256 $N"),
    tool("mkfs.minix", "mkfs.minix", "$P $N"),
    tool("mkfs.bfs", "mkfs.bfs", "$P $N"),
    tool("mkfs.cramfs", "mkfs.cramfs", "$P /etc/apt $N"),
    tool("mkfs.udf", "mkfs.udf", "$P $N"),
    tool("mkfs.jfs", "jfs_mkfs", "$P -q $N"),
    tool("mkreiserfs", "mkreiserfs", "$P -q -f -f $N"),
    tool("mkfs.reiser4", "mkfs.reiser4", "$P -y -f $N"),
    tool("mkfs.gfs2", "mkfs.gfs2", "$P -O -q -p lock_nolock -j 1 -J 8 $N"),
    tool("mkfs.ocfs2", "mkfs.ocfs2", "$P -x -q -F -M local $N"),
    tool("hformat", "hformat", "$P -f $N"),
    tool("mksquashfs", "mksquashfs", "$P /etc/apt $N -noappend -quiet"),
    tool("mkfs.erofs", "mkfs.erofs", "$P $N /etc/apt"),
    tool("genisoimage", "genisoimage", "$P -quiet -o $N /etc/apt"),
    tool("veritysetup format", "veritysetup", "$P format /proc/self/exe $N"),
    tool("integritysetup format", "integritysetup", "$P format -q --no-wipe $N"),
    by_name(tool("thin_restore", "thin_restore", "$P -q -i /var/tmp/fg-thin.xml -o $N")),
    by_name(tool(
        "sfdisk < dump",
        "sfdisk",
        "printf 'label: gpt\\nlabel-id: 11111111-2222-3333-4444-555555555555\\n\\n,8M\\n' | $P -q --force --no-reread $N",
    )),
    by_name(tool("ddrescue", "ddrescue", "$P -q -f $I $N")),
    by_name(tool("ddrescue -R", "ddrescue", "$P -q -f -R $I $N")),
    by_name(tool(
        "nwipe",
        "nwipe",
        "$P --autonuke --nogui --nowait --noverify --method=zero --logfile=/dev/null $N",
    )),
    by_name(tool("bmaptool copy", "bmaptool", "$P -q copy --nobmap $I $N")),
    tool("mkswap", "mkswap", "$P -f $N"),
    tool("wipefs", "wipefs", "$P -a -f $N"),
    tool("blkdiscard", "blkdiscard", "$P -f $N"),
    tool("blkdiscard -s", "blkdiscard", "$P -f -s $N"),
    tool("blkdiscard -z", "blkdiscard", "$P -f -z $N"),
    tool("luksFormat luks1", "cryptsetup", luks_format!("luks1")),
    tool("luksFormat luks2", "cryptsetup", luks_format!("luks2")),
    on(&["luks1", "luks2"], tool("cryptsetup erase", "cryptsetup", "$P erase --batch-mode $N")),
    Tool {
        name: "pvcreate -ff",
        program: "pvcreate",
        line: "$P -ff -y $N",
        on: &[],
        copied: Some("bash -c 'exec -a pvcreate $P -ff -y $N'"),
    },
    on(&["lvm"], by_name(tool("pvremove -ff", "pvremove", "$P -ff -y $N"))),
    tool(
        "mdadm --create",
        "mdadm",
        "$P --create /dev/md91 --run --force --level=1 --raid-devices=1 --metadata=1.2 $N",
    ),
    on(
        &["md-1.2", "md-1.0", "md-0.90"],
        tool("mdadm --zero-superblock", "mdadm", "$P --zero-superblock --force $N"),
    ),
    by_name(tool("parted mklabel gpt", "parted", "$P -s $N mklabel gpt")),
    by_name(tool("parted mklabel msdos", "parted", "$P -s $N mklabel msdos")),
    by_name(tool("sfdisk label gpt", "sfdisk", "echo label: gpt | $P -q --force --no-reread $N")),
    tool("sgdisk -Z", "sgdisk", "$P -Z $N"),
    by_name(tool("sgdisk -Zo", "sgdisk", "$P -Zo $N")),
    by_name(tool("sgdisk --clear", "sgdisk", "$P -a 1 --clear $N")),
    by_name(tool("dd zeros", "dd", "$P if=/dev/zero of=$N bs=1M count=8 conv=notrunc,fsync")),
    by_name(tool("dd an image", "dd", "$P if=$I of=$N bs=1M conv=notrunc,fsync")),
    by_name(tool("cp an image", "cp", "$P $I $N")),
    by_name(tool("cat > node", "cat", "$P $I > $N")),
    tool("shred", "shred", "$P -n 1 $N"),
    by_name(tool("busybox mkfs.ext2", "busybox", "$P mkfs.ext2 $N")),
    by_name(tool("busybox mkfs.vfat", "busybox", "$P mkfs.vfat $N")),
    by_name(tool("busybox mkswap", "busybox", "$P mkswap $N")),
    by_name(tool("e2image -ra", "e2image", "$P -ra -p $I $N")),
    by_name(tool("qemu-img convert -n", "qemu-img", "$P convert -n -f raw -O raw $I $N")),
    by_name(tool("partclone.dd", "partclone.dd", "$P -q -s $I -o $N -L /dev/null")),
    by_name(tool(
        "fio",
        "fio",
        "$P --name=x --filename=$N --rw=write --bs=1M --size=16M --ioengine=psync --end_fsync=1 --output=/dev/null",
    )),
    by_name(tool("badblocks -w", "badblocks", "$P -w -f -b 4096 $N 2000")),
    by_name(tool(
        "perl",
        "perl",
        "$P -e 'open(F, \"+<\", shift) or die; syswrite(F, \"\\0\" x 1048576) or die' $N",
    )),
    by_name(tool(
        "python",
        "python3",
        "$P -c 'import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), bytes(1048576), 0)' $N",
    )),
];

/// Roads of `programs/raw.c`: system calls that it makes without the C library, in a 64-bit and in a 32-bit
/// process.
const RAW_ROADS: &[&str] = &[
    "write",
    "pwrite",
    "writev",
    "pwritev",
    "pwritev2",
    "sendfile",
    "punch",
    "zero-range",
    "BLKDISCARD",
    "BLKSECDISCARD",
    "BLKZEROOUT",
    "mmap",
    "mprotect",
];

/// Lines that run a caller in another environment. `$R` is the device's number.
const CALLERS: &[(&str, &str)] = &[
    (
        "dd in namespaces with their own /dev",
        "unshare --mount --pid --fork --net --ipc --uts --cgroup sh -c 'mount -t tmpfs dev /dev && mknod /dev/volume b $R \
         && dd if=/proc/self/exe of=/dev/volume bs=4096 seek=$S count=1 conv=notrunc,fsync'",
    ),
    (
        "mkfs.ext4 in namespaces with their own /dev",
        "unshare --mount --pid --fork --net --ipc --uts --cgroup sh -c 'mount -t tmpfs dev /dev && mknod /dev/volume b $R \
         && mkfs.ext4 -F -q /dev/volume'",
    ),
];

/// A device that is attacked instead of the volume's own: lines for a device `$N` that make it and print its
/// node, the byte of it at which the volume begins, and lines that remove it (`$U`).
struct Other {
    name: &'static str,
    up: &'static str,
    start: u64,
    down: &'static str,
}

const fn layer(name: &'static str, up: &'static str, down: &'static str) -> Other {
    Other { name, up, start: 0, down }
}

/// Devices over the volume.
const LAYERS: &[Other] = &[
    layer(
        "dm-linear",
        "echo 0 $SECTORS linear $N 0 | dmsetup create fgover && echo /dev/mapper/fgover",
        "dmsetup remove --retry fgover",
    ),
    layer(
        "dm-snapshot's origin",
        "echo 0 $SECTORS snapshot-origin $N | dmsetup create fgover && echo /dev/mapper/fgover",
        "dmsetup remove --retry fgover",
    ),
    layer(
        "dm-snapshot",
        "rm -f /var/tmp/fg-cow && truncate -s 8M /var/tmp/fg-cow && cow=$(losetup --show -f /var/tmp/fg-cow) &&\
         echo 0 $SECTORS snapshot $N $cow N 8 | dmsetup create fgover && echo /dev/mapper/fgover",
        "dmsetup remove --retry fgover; losetup -j /var/tmp/fg-cow | cut -d: -f1 | xargs losetup -d",
    ),
    layer("loop", "losetup --show -f $N", "losetup -d $U"),
    layer(
        "md",
        "modprobe raid1 && mdadm --build /dev/md91 --force --assume-clean --level=1 --raid-devices=1 $N >/dev/null 2>&1 \
         && echo /dev/md91",
        "mdadm --stop /dev/md91",
    ),
    layer("a partition", "addpart $N 1 0 $SECTORS && echo $Np1", until!("delpart $N 1")),
];

/// Devices below and beside a volume that is a partition and begins [`HEAD`] bytes into its disk, `$N`.
const DISKS: &[Other] = &[
    Other { name: "the whole disk", up: "echo $N", start: HEAD, down: "true" },
    Other {
        name: "a loop device over the disk",
        up: "losetup --show -f $N",
        start: HEAD,
        down: "losetup -d $U",
    },
    Other {
        name: "its partition, moved",
        up: concat!("(", until!("delpart $N 1"), ") && addpart $N 1 2040 131072 && echo $Np1"),
        start: 4096,
        down: until!("delpart $N 1"),
    },
    Other {
        name: "a partition made over it",
        // The one of another copy still exists, and two cannot lie over each other.
        up: concat!(
            "([ ! -e $Np1 ] || (",
            until!("delpart $N 1"),
            ")) && addpart $N 2 1024 131072 && echo $Np2"
        ),
        start: 512 << 10,
        down: until!("delpart $N 2"),
    },
];

/// The input from which `thin_restore` makes a thin pool's metadata.
const THIN_METADATA: &str = "/var/tmp/fg-thin.xml";
const EMPTY_POOL: &str = "<superblock uuid=\"\" time=\"0\" transaction=\"0\" data_block_size=\"128\" nr_data_blocks=\"64\"></superblock>\n";

/// How long the event of a refusal may take to arrive.
const EVENT: Duration = Duration::from_secs(1);

/// One attempt.
enum Attack {
    /// A line for the shell; `$N` is the node, `$O` the byte and `$S` the number of the page that holds a
    /// mark.
    Line(String),
    /// The same, by a program under another name: nothing tells its writes beside the marks from everyday
    /// work.
    Copied(String),
    Road(Road),
    /// Through a descriptor that was opened before the guard knew the volume.
    Early(File),
}

/// What is tried on a device over or under the volume.
fn through() -> Vec<(String, Attack)> {
    let road = |name: &str| ROADS.iter().find(|(road, _)| *road == name).map(|(_, road)| Attack::Road(*road));
    let mut attacks: Vec<(String, Attack)> =
        ["pwrite", "BLKDISCARD"].iter().filter_map(|name| Some(((*name).to_owned(), road(name)?))).collect();
    for (name, line) in [
        ("dd zeros", "dd if=/dev/zero of=$N bs=1M count=8 conv=notrunc,fsync"),
        ("mkfs.ext4", "mkfs.ext4 -F -q $N"),
    ] {
        attacks.push((name.to_owned(), Attack::Line(line.to_owned())));
    }
    attacks
}

/// The attempts on the device of a volume of this kind; `image` is a volume of another kind. `None` if a tool
/// is missing.
fn attacks(kind: &str, image: &Path) -> Result<Vec<(String, Option<Attack>)>> {
    let image = image.display().to_string();
    let mut attacks = Vec::new();
    for tool in TOOLS.iter().filter(|tool| tool.on.is_empty() || tool.on.contains(&kind)) {
        let there = has(tool.program);
        let fill = |line: &str, program: &str| line.replace("$P", program).replace("$I", &image);
        let line = there.then(|| Attack::Line(fill(tool.line, tool.program)));
        attacks.push((tool.name.to_owned(), line));
        if let Some(line) = tool.copied {
            let program = there.then(|| attack::copy(tool.program)).transpose()?;
            let line = program.map(|program| Attack::Copied(fill(line, &program)));
            attacks.push((format!("{}, copied", tool.name), line));
        }
    }
    for (name, line) in CALLERS {
        attacks.push(((*name).to_owned(), Some(Attack::Line((*line).to_owned()))));
    }
    for (name, road) in ROADS {
        attacks.push(((*name).to_owned(), Some(Attack::Road(*road))));
    }
    for bits in ["64", "32"] {
        let program = raw(bits)?;
        for road in RAW_ROADS {
            let line = program.as_ref().map(|program| Attack::Line(format!("{program} {road} $N $O")));
            attacks.push((format!("static {bits}-bit {road}"), line));
        }
    }
    Ok(attacks)
}

/// `programs/raw.c`, built for a word of this many bits; `None` if the compiler cannot do it.
fn raw(bits: &str) -> Result<Option<String>> {
    let program = format!("/var/tmp/fg-raw{bits}");
    if !Path::new(&program).exists() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/raw.c");
        let built = run_tool(&format!(
            "cc -m{bits} -O1 -nostdlib -static -ffreestanding -fno-stack-protector -fno-pie -no-pie -o {program} {source}"
        ))?;
        if built.status != 0 {
            return Ok(None);
        }
    }
    Ok(Some(program))
}

/// Runs every row, and passes each to `done` when it is there.
pub fn run(only: &Selection, done: &mut dyn FnMut(Row)) -> Result<()> {
    // The volumes are made before a guard exists.
    let mut golden = Vec::new();
    let chosen = KINDS.iter().enumerate().filter(|(i, kind)| only.has(kind.name, *i));
    for (_, kind) in chosen {
        if let Some(made) = Golden::make(kind).with_context(|| format!("volume {}", kind.name))? {
            golden.push((made.in_partition()?, made));
        } else {
            done(row(kind.name, "(volume)", Outcome::NotTried, 0, "its tools are not there".into()));
        }
    }
    let image = Golden::make(&KINDS[0])?.context("no ext4")?;
    fs::write(THIN_METADATA, EMPTY_POOL)?;
    let guard = Guard::start()?;
    for (in_partition, golden) in &golden {
        let kind = golden.kind.name;
        let mut volume = Volume::new(&guard, golden)?;
        for (name, attack) in attacks(kind, image.path())? {
            let Some(attack) = attack else {
                done(row(kind, &name, Outcome::NotTried, 0, "it is not there".into()));
                continue;
            };
            let mut result = volume.attack(&name, &attack, &volume.on_itself())?;
            if result.changed > 0 {
                volume = Volume::new(&guard, golden)?;
                guard.json(&format!(
                    "mode strict --volume {} --reason matrix",
                    volume.copy.path().display()
                ))?;
                let strict = volume.attack(&name, &attack, &volume.on_itself())?;
                let changed = strict.changed;
                // Where marks do not suffice, the strict mode must.
                if changed > 0 && result.outcome != Outcome::Open {
                    result.outcome = Outcome::Failed;
                }
                result.note = format!("{}; under strict policy {changed} bytes", result.note);
                volume = Volume::new(&guard, golden)?;
            }
            done(result);
        }
        done(opened_before(&guard, golden)?);
        for other in LAYERS {
            volume = through_other(&guard, golden, volume, other, done)?;
        }
        volume = Volume::new(&guard, in_partition)?;
        for other in DISKS {
            volume = through_other(&guard, in_partition, volume, other, done)?;
        }
    }
    Ok(())
}

/// The descriptor is older than the medium, and so is older than the rule.
fn opened_before(guard: &Guard, golden: &Golden) -> Result<Row> {
    let free = must("losetup --find")?;
    let node = Path::new(free.trim());
    let early = File::options().read(true).write(true).open(node).context("a free loop device")?;
    let volume = Volume::of(guard, golden.copy_at(node)?, golden)?;
    let attack = Attack::Early(early);
    volume.attack("a descriptor opened before", &attack, &volume.on_itself())
}

/// Attempts on a device that is made over or beside the volume: the first one at once, before the guard can
/// have looked at the device, the others later. If an attempt succeeds, the rest are made on another copy.
fn through_other<'a>(
    guard: &'a Guard,
    golden: &'a Golden,
    mut volume: Volume<'a>,
    other: &Other,
    done: &mut dyn FnMut(Row),
) -> Result<Volume<'a>> {
    let mut attacks = through().into_iter().peekable();
    while attacks.peek().is_some() {
        let sectors = (MIB * 2048).to_string();
        let made = shell(&volume.fill(&other.up.replace("$SECTORS", &sectors), volume.copy.path()))?;
        let node = PathBuf::from(made.message());
        let mut changed = 0;
        for (name, attack) in attacks.by_ref() {
            let name = format!("{}: {name}", other.name);
            let row = if made.status == 0 {
                volume.attack(&name, &attack, &At { node: &node, start: other.start, new: true })?
            } else {
                row(golden.kind.name, &name, Outcome::NotTried, 0, made.message().to_owned())
            };
            changed = row.changed;
            done(row);
            if changed > 0 {
                break;
            }
        }
        let down = other.down.replace("$U", &node.display().to_string());
        let down = shell(&volume.fill(&down, volume.copy.path()))?;
        ensure!(made.status != 0 || down.status == 0, "{}: {down:?}", other.name);
        if changed > 0 {
            volume = Volume::new(guard, golden)?;
        }
    }
    Ok(volume)
}

fn row(volume: &str, name: &str, outcome: Outcome, changed: u64, note: String) -> Row {
    Row { table: "destructive", volume: volume.to_owned(), name: name.to_owned(), outcome, changed, note }
}

/// Whether the tier of this run cannot see this attempt. The library is in no statically linked program, and
/// some roads do not lead through it. A new device takes writes by unknown programs until its rule is there.
fn is_left_open(name: &str, attack: &Attack, new_device: bool) -> Result<bool> {
    let tier = tier();
    if tier != PRELOAD {
        return Ok(false);
    }
    if new_device {
        return Ok(!name.contains("mkfs"));
    }
    if let Attack::Road(_) = attack {
        return Ok(documented(&tier)?.iter().any(|(road, _, refused)| *road == name && !refused));
    }
    Ok(name.starts_with("static ") || name.starts_with("busybox "))
}

/// The device that is attacked, and the byte of it at which the volume begins.
struct At<'a> {
    node: &'a Path,
    start: u64,
    /// The device was made a moment ago: the guard may not have looked at it yet.
    new: bool,
}

/// A copy of a volume that the guard knows.
struct Volume<'a> {
    guard: &'a Guard,
    golden: &'a Golden,
    copy: Copy,
    /// What the guard knows of the volume.
    known: Value,
    /// The first magic mark: first byte and length.
    mark: (u64, u64),
}

impl<'a> Volume<'a> {
    fn new(guard: &'a Guard, golden: &'a Golden) -> Result<Self> {
        Self::of(guard, golden.copy()?, golden)
    }

    fn of(guard: &'a Guard, copy: Copy, golden: &'a Golden) -> Result<Self> {
        let known = guard.wait_for_state(copy.volume(), "formatted").with_context(|| golden.kind.name)?;
        let marks = known["marks"].as_array().context("no marks")?;
        let magic = marks.iter().find(|mark| mark["kind"] == "magic").context("no magic")?;
        let length = magic["bytes"].as_array().context("no bytes")?.len() as u64;
        let mark = (magic["offset"].as_u64().context("no offset")?, length);
        Ok(Self { guard, golden, copy, known, mark })
    }

    fn on_itself(&self) -> At<'_> {
        At { node: self.copy.volume(), start: 0, new: false }
    }

    /// A line with what the guard knows of a device.
    fn fill(&self, line: &str, node: &Path) -> String {
        let offset = self.mark.0 / 4096 * 4096;
        line.replace("$N", &node.display().to_string())
            .replace("$O", &offset.to_string())
            .replace("$S", &(offset / 4096).to_string())
    }

    /// Runs one attempt, and returns its outcome.
    fn attack(&self, name: &str, attack: &Attack, at: &At<'_>) -> Result<Row> {
        let before = self.guard.newest_refusal()?;
        let result = match attack {
            Attack::Line(line) | Attack::Copied(line) => {
                let number = fs::metadata(at.node)?.rdev();
                let number = format!("{} {}", libc::major(number), libc::minor(number));
                let ran = shell(&self.fill(line, at.node).replace("$R", &number))?;
                if ran.status == 0 { Ok(()) } else { Err(ran.message().to_owned()) }
            }
            Attack::Road(road) => {
                let aim = Aim { path: at.node, offset: at.start + self.mark.0, length: self.mark.1 };
                in_child(|| road(&aim))?.wait()?.map_err(|error| error.to_string())
            }
            Attack::Early(file) => {
                let write = || file.write_all_at(&GARBAGE, self.mark.0);
                in_child(write)?.wait()?.map_err(|error| error.to_string())
            }
        };
        if Path::new("/sys/block/md91").exists() && at.node != Path::new("/dev/md91") {
            // An array that was made after all must not keep the device.
            let _ = shell("mdadm --stop /dev/md91");
        }
        flush(self.copy.path())?;
        let (changed, place) = difference(self.golden.path(), self.copy.file())?;
        let refused = self.was_refused(before, result.is_err())?;
        let after = self.guard.shown_id(self.known["id"].as_str().context("no id")?)?;
        let true_record = after["state"] == "formatted" && after["content"] == self.known["content"];
        let lost = self.lost_mark()?;
        let marks = lost.is_none();
        let (outcome, note) = match (refused, changed) {
            (_, 0) if !true_record => (Outcome::Failed, format!("the record is {}", after["state"])),
            (true, 0) => (Outcome::Held, String::new()),
            (false, 0) => (
                Outcome::NotTried,
                match result {
                    Err(said) => format!("it gave up by itself: {said}"),
                    Ok(()) => "it changed nothing by itself".to_owned(),
                },
            ),
            (true, _) if marks && true_record => (Outcome::Partly, place),
            (false, _) if marks && true_record && matches!(attack, Attack::Copied(_)) => {
                (Outcome::Partly, format!("{place}, and nothing was refused"))
            }
            _ => {
                let outcome =
                    if is_left_open(name, attack, at.new)? { Outcome::Open } else { Outcome::Failed };
                let marks = lost.map_or_else(|| "intact".to_owned(), |lost| format!("LOST ({lost})"));
                (outcome, format!("{place}; marks {marks}"))
            }
        };
        Ok(row(self.golden.kind.name, name, outcome, changed, note))
    }

    /// Whether a refusal came after this one. The event of an attempt that failed may still be under way.
    fn was_refused(&self, before: i64, failed: bool) -> Result<bool> {
        let deadline = Instant::now() + if failed { EVENT } else { Duration::ZERO };
        loop {
            let refused = self.guard.newest_refusal()? > before;
            if refused || Instant::now() >= deadline {
                return Ok(refused);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A recorded mark that reads differently now, for people.
    fn lost_mark(&self) -> Result<Option<String>> {
        let file = File::open(self.copy.file())?;
        for mark in self.known["marks"].as_array().context("no marks")? {
            let wanted: Vec<u8> = serde_json::from_value(mark["bytes"].clone())?;
            let mut there = vec![0; wanted.len()];
            let offset = mark["offset"].as_u64().context("no offset")?;
            file.read_exact_at(&mut there, self.golden.start + offset)?;
            if there != wanted {
                return Ok(Some(format!("at {offset}: {there:02x?} for {wanted:02x?}")));
            }
        }
        Ok(None)
    }
}
