//! Commands past the block layer, if the configuration refuses those that may write: they are refused on
//! every road, and commands that only read go on.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Loop, ScsiDisk, Snapshot},
    guard::Guard,
    tool::{must, run},
    wait_for,
};

use crate::make_ext4;

/// A guard with this configuration.
fn guard() -> Result<Guard> {
    // Never with another configuration: the guard would load programs of another build for it.
    let mut guard = Guard::unstarted(None)?;
    guard.replace("passthrough", "'refuse'")?;
    guard.start_agent()?;
    Ok(guard)
}

#[test]
fn scsi_commands_that_write_are_refused_and_others_are_not() -> Result<()> {
    let guard = guard()?;
    let disk = ScsiDisk::new("delay=0")?;
    make_ext4(&guard, disk.path())?;
    let before = Snapshot::of(&disk)?;
    for node in [disk.path(), disk.generic()].map(|node| node.display()) {
        for line in [
            format!("sg_dd if=/dev/zero of={node} bs=512 count=64 blk_sgio=1 oflag=sgio"),
            format!("sg_write_same --lba=0 --num=64 --16 {node}"),
            format!("sg_unmap --lba=0 --num=64 --force {node}"),
            // FORMAT UNIT, and WRITE(10) of one block.
            format!("sg_raw {node} 04 00 00 00 00 00"),
            format!("sg_raw -s 512 -i /dev/zero {node} 2a 00 00 00 00 02 00 00 01 00"),
        ] {
            refused(&guard, &line, "")?;
        }
        for line in ["sg_inq", "sg_turs", "sg_readcap", "sg_luns", "sg_vpd", "sg_modes -p 8", "sg_requests"] {
            must(&format!("{line} {node}"))?;
        }
        must(&format!("sg_raw -r 512 {node} 28 00 00 00 00 02 00 00 01 00"))?;
    }
    before.unchanged(&disk)?;
    let told = guard.events("denied")?;
    let generic = disk.generic().file_name().context("no name")?.to_string_lossy();
    let of = |command: &str, name: &str| {
        told.iter().any(|event| {
            let text = event["text"].as_str().unwrap_or_default();
            event["refusal"]["reason"] == "passthrough" && text.contains(command) && text.contains(name)
        })
    };
    ensure!(of("SCSI command 0x2a", &generic) && of("SCSI command 0x04", "/dev/sd"), "{told:#?}");
    // The file system's own commands to the disk are no passthrough.
    fs::create_dir_all("/run/fg-passthrough")?;
    must(&format!("mount -o discard {} /run/fg-passthrough", disk.path().display()))?;
    let trimmed = must("fstrim /run/fg-passthrough");
    must("umount /run/fg-passthrough")?;
    trimmed.map(drop)
}

/// write(2) to a node of sg sends a command, too: the interface of its version 3.
#[test]
fn a_command_written_to_a_generic_node_is_refused() -> Result<()> {
    let guard = guard()?;
    let disk = ScsiDisk::new("delay=0")?;
    make_ext4(&guard, disk.path())?;
    let before = Snapshot::of(&disk)?;
    let line = format!("sg_dd if=/dev/zero of={} bs=512 count=64", disk.generic().display());
    refused(&guard, &line, "")?;
    let written =
        run(&format!("dd if=/dev/zero of={} bs=64 count=1 conv=notrunc", disk.generic().display()))?;
    ensure!(written.status != 0 && written.text.contains("not permitted"), "{written:?}");
    before.unchanged(&disk)
}

#[test]
fn they_pass_where_they_are_allowed() -> Result<()> {
    let guard = Guard::start()?;
    let disk = ScsiDisk::new("delay=0")?;
    make_ext4(&guard, disk.path())?;
    must(&format!("sg_write_same --lba=8192 --num=64 --16 {}", disk.path().display()))?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    Ok(())
}

/// A namespace of a target on this host, served from a loop device.
struct NvmeDisk {
    path: PathBuf,
    below: Loop,
}

const SUBSYSTEM: &str = "/sys/kernel/config/nvmet/subsystems/format-guard";
const PORT: &str = "/sys/kernel/config/nvmet/ports/1";

impl NvmeDisk {
    /// `None` where the kernel has no such target.
    fn new() -> Result<Option<Self>> {
        if run("modprobe nvme-loop")?.status != 0 {
            return Ok(None);
        }
        if !Path::new("/sys/kernel/config/nvmet").exists() {
            must("mount -t configfs configfs /sys/kernel/config")?;
        }
        let below = Loop::new(64)?;
        fs::create_dir(SUBSYSTEM)?;
        fs::write(format!("{SUBSYSTEM}/attr_allow_any_host"), "1")?;
        fs::create_dir(format!("{SUBSYSTEM}/namespaces/1"))?;
        fs::write(
            format!("{SUBSYSTEM}/namespaces/1/device_path"),
            below.path().as_os_str().as_encoded_bytes(),
        )?;
        fs::write(format!("{SUBSYSTEM}/namespaces/1/enable"), "1")?;
        fs::create_dir(PORT)?;
        fs::write(format!("{PORT}/addr_trtype"), "loop")?;
        std::os::unix::fs::symlink(SUBSYSTEM, format!("{PORT}/subsystems/format-guard"))?;
        must("nvme connect -t loop -n format-guard")?;
        let path = wait_for("the namespace", || {
            let names = fs::read_dir("/sys/block")?.filter_map(Result::ok).map(|entry| entry.file_name());
            let name = names.into_iter().find(|name| {
                let name = name.to_string_lossy();
                name.starts_with("nvme") && !name.contains('c')
            });
            Ok(name.map(|name| Path::new("/dev").join(name)).filter(|path| path.exists()))
        })?;
        Ok(Some(Self { path, below }))
    }
}

impl Device for NvmeDisk {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for NvmeDisk {
    fn drop(&mut self) {
        let _ = run("nvme disconnect -n format-guard");
        let _ = fs::remove_file(format!("{PORT}/subsystems/format-guard"));
        for directory in [PORT, &format!("{SUBSYSTEM}/namespaces/1"), SUBSYSTEM] {
            let _ = fs::remove_dir(directory);
        }
    }
}

#[test]
fn nvme_commands_that_write_are_refused_and_others_are_not() -> Result<()> {
    let guard = guard()?;
    let Some(disk) = NvmeDisk::new()? else {
        println!("not tried: this kernel has no nvme-loop");
        return Ok(());
    };
    make_ext4(&guard, disk.path())?;
    let before = Snapshot::of(&disk)?;
    let name = disk.path.file_name().context("no name")?.to_string_lossy().into_owned();
    let generic = PathBuf::from(format!("/dev/{}", name.replace("nvme", "ng")));
    fs::write("/run/fg-zeros", [0; 4096])?;
    for node in [&disk.path, &generic].map(|node| node.display()) {
        for line in [
            format!(
                "nvme write {node} --start-block=0 --block-count=7 --data-size=4096 --data=/run/fg-zeros"
            ),
            format!("nvme write-zeroes {node} --namespace-id=1 --start-block=0 --block-count=7"),
            format!("nvme dsm {node} --namespace-id=1 --ad --slbs=0 --blocks=8"),
            format!("nvme io-passthru {node} --opcode=0x08 --namespace-id=1 --cdw10=2"),
            format!("nvme admin-passthru {node} --opcode=0x80 --namespace-id=1"),
        ] {
            refused(&guard, &line, "")?;
        }
        for line in ["nvme id-ns", "nvme id-ctrl", "nvme smart-log"] {
            must(&format!("{line} {node}"))?;
        }
        must(&format!("nvme read {node} --start-block=0 --block-count=7 --data-size=4096"))?;
    }
    ring_is_refused(&guard, &generic)?;
    before.unchanged(&disk)?;
    drop(before);
    ensure!(disk.below.path().exists(), "its device stays");
    Ok(())
}

/// The same by `io_uring`, which generic nodes take.
fn ring_is_refused(guard: &Guard, generic: &Path) -> Result<()> {
    use std::os::fd::AsRawFd;

    use io_uring::{IoUring, cqueue, opcode::UringCmd80, squeue::Entry128, types::Fd};

    // include/uapi/linux/nvme_ioctl.h: struct nvme_uring_cmd: opcode at 0, nsid at 4, cdw10 at 40.
    const NVME_URING_CMD_IO: u32 = 0xc048_4e80;
    const WRITE_ZEROES: u8 = 0x08;
    let mut command = [0_u8; 80];
    command[0] = WRITE_ZEROES;
    command[4] = 1;
    command[40] = 2;
    let file = OpenOptions::new().read(true).write(true).open(generic)?;
    let refusals = guard.newest_refusal()?;
    let mut ring: IoUring<Entry128, cqueue::Entry32> = IoUring::builder().build(4)?;
    let entry = UringCmd80::new(Fd(file.as_raw_fd()), NVME_URING_CMD_IO).cmd(command).build();
    // SAFETY: the entry holds all that it needs.
    unsafe { ring.submission().push(&entry)? };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().context("no answer")?.result();
    ensure!(result == -libc::EPERM, "io_uring answered {result}");
    wait_for("its event", || Ok((guard.newest_refusal()? > refusals).then_some(())))
}
