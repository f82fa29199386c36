//! Makes one block device of each kind that a guest offers and prints the sysfs tree around them, for the
//! tests of identity and topology in format-guard/src/volume/recorded.
//!
//! `cargo xtask vm --kernel 6.12 --disk virtio:a.img --disk scsi:b.img --disk nvme:c.img -- target/debug/record-sysfs`

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use format_guard_tests::{
    device::{Device, Image, Iscsi, Loop, Mapped},
    tool::{command, module, must, run},
    wait_for,
};

/// Attributes that say what a device is, below its own directory.
const ATTRIBUTES: &[&str] = &[
    "dev",
    "size",
    "diskseq",
    "partition",
    "start",
    "serial",
    "wwid",
    "uuid",
    "nguid",
    "eui",
    "backend",
    "dm/name",
    "dm/uuid",
    "loop/backing_file",
    "loop/offset",
    "md/metadata_version",
    "md/level",
    "md/uuid",
    "device/wwid",
    "device/vendor",
    "device/model",
    "device/serial",
];

fn main() -> Result<()> {
    // The disks that qemu provides.
    for driver in ["virtio_blk", "virtio_scsi", "sd_mod", "nvme"] {
        module(driver)?;
    }
    wait_for("the guest's disks", || {
        let there =
            ["vda", "sda", "nvme0n1"].iter().all(|name| Path::new("/sys/class/block").join(name).exists());
        Ok(there.then_some(()))
    })?;
    let iscsi = Iscsi::new(16)?;
    let mapped = Mapped::new(16)?;
    let members = [Loop::new(16)?, Loop::new(16)?];
    module("raid1")?;
    let md = format!(
        "mdadm --create /dev/md77 --run --level=1 --raid-devices=2 --metadata=1.2 {} {}",
        members[0].path().display(),
        members[1].path().display()
    );
    must(&md)?;
    let partitioned = Loop::new(16)?;
    must(&format!("parted -s {} mklabel gpt mkpart one 1MiB 8MiB", partitioned.path().display()))?;
    let over = Loop::over(partitioned.path())?;
    must("modprobe scsi_debug dev_size_mb=8")?;
    module("zram")?;
    must("modprobe null_blk nr_devices=1")?;
    let export = Image::new(16)?;
    module("nbd")?;
    command(&format!("nbd-server 127.0.0.1:10809 {}", export.path().display())).spawn()?.wait()?;
    wait_for("nbd-client to connect", || {
        let ran = run("nbd-client 127.0.0.1 10809 /dev/nbd0")?;
        Ok((ran.status == 0).then_some(()))
    })?;
    let mut lines = BTreeMap::new();
    record(&mut lines)?;
    println!(
        "# Recorded by the record-sysfs program of the tests; PATH = VALUE and PATH -> TARGET, below /sys."
    );
    println!("# iscsi {}", iscsi.path().display());
    println!("# dm {}", mapped.path().display());
    println!("# over {}", over.path().display());
    for (path, value) in lines {
        println!("{path}{value}");
    }
    Ok(())
}

fn record(lines: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir("/sys/class/block")? {
        let link = entry?.path();
        let device = fs::canonicalize(&link)?;
        let name = link.file_name().context("a name")?.to_string_lossy().into_owned();
        let number = fs::read_to_string(device.join("dev"))?;
        // An unused device shows nothing that a used one does not.
        let unused = fs::read_to_string(device.join("size"))?.trim() == "0" && !name.starts_with("zram0");
        if unused {
            continue;
        }
        let target = below_sys(&device);
        lines.insert(format!("class/block/{name}"), format!(" -> {target}"));
        lines.insert(format!("dev/block/{}", number.trim()), format!(" -> {target}"));
        for attribute in ATTRIBUTES {
            value(lines, &device.join(attribute));
        }
        for directory in ["slaves", "holders"] {
            for other in names(&device.join(directory)) {
                lines.insert(format!("{target}/{directory}/{other}"), " = ".to_owned());
            }
        }
        for member in names(&device.join("md")).into_iter().filter(|name| name.starts_with("dev-")) {
            value(lines, &device.join("md").join(member).join("offset"));
        }
    }
    for session in names(Path::new("/sys/class/iscsi_session")) {
        value(lines, &PathBuf::from(format!("/sys/class/iscsi_session/{session}/targetname")));
    }
    Ok(())
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn value(lines: &mut BTreeMap<String, String>, path: &Path) {
    if let Ok(text) = fs::read_to_string(path) {
        lines.insert(below_sys(path), format!(" = {}", text.trim().replace('\n', " ")));
    }
}

fn below_sys(path: &Path) -> String {
    path.strip_prefix("/sys").unwrap_or(path).to_string_lossy().into_owned()
}
