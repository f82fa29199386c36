//! What must be refused: every tool whose purpose or mistake destroys a volume, by its name and as a copy under another.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, Row, Selection, difference, has, shell,
    volume::{Copy, Golden, KINDS},
};
use crate::{
    attack,
    device::{Device, flush},
    guard::Guard,
};

/// A tool, as it is called. `$N` is the node; `$P` the program, by its name or as a copy.
struct Tool {
    name: &'static str,
    program: &'static str,
    line: &'static str,
    /// It is tried on these kinds of volumes alone; on all where there are none.
    on: &'static [&'static str],
    /// It also is tried as a copy under another name: with this line.
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

const LUKS: &str = "printf secret | $P luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
                    --key-file - --type";

/// Of programs that go by their own name (mke2fs, lvm) a copy is called as it would be by another.
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
    tool("mkswap", "mkswap", "$P -f $N"),
    tool("wipefs", "wipefs", "$P -a -f $N"),
    tool("blkdiscard", "blkdiscard", "$P -f $N"),
    tool("blkdiscard -s", "blkdiscard", "$P -f -s $N"),
    tool("blkdiscard -z", "blkdiscard", "$P -f -z $N"),
    Tool { name: "luksFormat luks1", program: "cryptsetup", line: LUKS, on: &[], copied: Some(LUKS) },
    Tool { name: "luksFormat luks2", program: "cryptsetup", line: LUKS, on: &[], copied: Some(LUKS) },
    on(&["luks1", "luks2"], tool("cryptsetup erase", "cryptsetup", "$P erase --batch-mode $N")),
    Tool {
        name: "pvcreate -ff",
        program: "pvcreate",
        line: "$P -ff -y $N",
        on: &[],
        copied: Some("bash -c 'exec -a pvcreate $LVM -ff -y $N'"),
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
    tool("parted mklabel gpt", "parted", "$P -s $N mklabel gpt"),
    tool("parted mklabel msdos", "parted", "$P -s $N mklabel msdos"),
    tool("sfdisk label gpt", "sfdisk", "echo label: gpt | $P -q --force --no-reread $N"),
    tool("sgdisk -Z", "sgdisk", "$P -Z $N"),
    tool("dd zeros", "dd", "$P if=/dev/zero of=$N bs=1M count=8 conv=notrunc,fsync"),
    tool("dd an image", "dd", "$P if=$I of=$N bs=1M conv=notrunc,fsync"),
    tool("cp an image", "cp", "$P $I $N"),
    tool("cat > node", "cat", "$P $I > $N"),
    tool("shred", "shred", "$P -n 1 $N"),
    by_name(tool("busybox mkfs.ext2", "busybox", "$P mkfs.ext2 $N")),
    by_name(tool("busybox mkfs.vfat", "busybox", "$P mkfs.vfat $N")),
    Tool {
        name: "busybox mkswap",
        program: "busybox",
        line: "$P mkswap $N",
        on: &[],
        copied: Some("bash -c 'exec -a mkswap $P $N'"),
    },
    tool("e2image -ra", "e2image", "$P -ra -p $I $N"),
    tool("qemu-img convert -n", "qemu-img", "$P convert -n -f raw -O raw $I $N"),
    tool("partclone.dd", "partclone.dd", "$P -q -s $I -o $N -L /dev/null"),
    tool(
        "fio",
        "fio",
        "$P --name=x --filename=$N --rw=write --bs=1M --size=16M --ioengine=psync --end_fsync=1 --output=/dev/null",
    ),
    tool("badblocks -w", "badblocks", "$P -w -f -b 4096 $N 2000"),
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

/// Runs every row, and hands each to `done` as it is there.
pub fn run(only: &Selection, done: &mut dyn FnMut(Row)) -> Result<()> {
    // Before there is a guard.
    let mut golden = Vec::new();
    let chosen = KINDS.iter().enumerate().filter(|(i, kind)| only.has(kind.name, *i));
    for (_, kind) in chosen {
        if let Some(made) = Golden::make(kind).with_context(|| format!("volume {}", kind.name))? {
            golden.push(made);
        } else {
            done(row(kind.name, "(volume)", Outcome::NotTried, 0, "its tools are not there".into()));
        }
    }
    let image = Golden::make(&KINDS[0])?.context("no ext4")?;
    let guard = Guard::start()?;
    for golden in &golden {
        let mut copy = known(&guard, golden)?;
        for tool in TOOLS.iter().filter(|tool| tool.on.is_empty() || tool.on.contains(&golden.kind.name)) {
            for copied in [false, true] {
                let Some(line) = line(tool, copied)? else { continue };
                let name = if copied { format!("{}, copied", tool.name) } else { tool.name.to_owned() };
                if !has(tool.program) {
                    done(row(golden.kind.name, &name, Outcome::NotTried, 0, "it is not there".into()));
                    continue;
                }
                let line = line.replace("$I", &image.path().display().to_string());
                let mut result = attack(&guard, golden, &copy, &name, &line)?;
                if result.changed > 0 {
                    copy = known(&guard, golden)?;
                    guard.json(&format!("mode strict --volume {} --reason matrix", copy.path().display()))?;
                    let strict = attack(&guard, golden, &copy, &name, &line)?;
                    let changed = strict.changed;
                    result.note = format!("{}; under strict policy {changed} bytes", result.note);
                    copy = known(&guard, golden)?;
                }
                done(result);
            }
        }
    }
    Ok(())
}

fn row(volume: &str, name: &str, outcome: Outcome, changed: u64, note: String) -> Row {
    Row { table: "destructive", volume: volume.to_owned(), name: name.to_owned(), outcome, changed, note }
}

/// The line of a tool by its name, or of its copy.
fn line(tool: &Tool, copied: bool) -> Result<Option<String>> {
    let Some(line) = (if copied { tool.copied } else { Some(tool.line) }) else { return Ok(None) };
    if !has(tool.program) {
        return Ok(Some(line.to_owned()));
    }
    let program = if copied { attack::copy(tool.program)? } else { tool.program.to_owned() };
    let kind = tool.name.rsplit(' ').next().unwrap_or("");
    let line = if line == LUKS { format!("{LUKS} {kind} $N") } else { line.to_owned() };
    let line = if line.contains("$LVM") { line.replace("$LVM", &attack::copy("lvm")?) } else { line };
    Ok(Some(line.replace("$P", &program)))
}

/// A copy of a volume that the guard knows.
fn known(guard: &Guard, golden: &Golden) -> Result<Copy> {
    let copy = golden.copy()?;
    guard.wait_for_state(copy.path(), "formatted").with_context(|| golden.kind.name)?;
    Ok(copy)
}

fn attack(guard: &Guard, golden: &Golden, copy: &Copy, name: &str, line: &str) -> Result<Row> {
    let before = guard.newest_refusal()?;
    let volume = guard.shown(copy.path())?;
    let ran = shell(&line.replace("$N", &copy.path().display().to_string()))?;
    if Path::new("/sys/block/md91").exists() {
        // An array that was made after all must not hold on to the device.
        let _ = shell("mdadm --stop /dev/md91");
    }
    flush(copy.path())?;
    let (changed, place) = difference(golden.path(), copy.file())?;
    let refused = guard.newest_refusal()? > before;
    let after = guard.shown(copy.path())?;
    ensure!(after["id"] == volume["id"], "{name}: another volume");
    let true_record = after["state"] == "formatted" && after["content"] == volume["content"];
    let marks = marks_are_there(copy.path(), &volume)?;
    let said = ran.message().to_owned();
    let (outcome, note) = match (refused, changed) {
        (_, 0) if !true_record => (Outcome::Failed, format!("the record is {}", after["state"])),
        (true, 0) => (Outcome::Held, String::new()),
        (false, 0) if ran.status != 0 => (Outcome::NotTried, format!("it gave up by itself: {said}")),
        (false, 0) => (Outcome::NotTried, "it changed nothing by itself".to_owned()),
        (true, _) if marks && true_record => (Outcome::Partly, place),
        _ => (Outcome::Failed, format!("{place}; marks {}", if marks { "intact" } else { "LOST" })),
    };
    Ok(row(golden.kind.name, name, outcome, changed, note))
}

/// Every recorded mark reads as it was.
fn marks_are_there(path: &Path, volume: &Value) -> Result<bool> {
    let file = File::open(path)?;
    for mark in volume["marks"].as_array().context("no marks")? {
        let wanted: Vec<u8> = serde_json::from_value(mark["bytes"].clone())?;
        let mut there = vec![0; wanted.len()];
        file.read_exact_at(&mut there, mark["offset"].as_u64().context("no offset")?)?;
        if there != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}
