//! What the guard remembers of a volume, whatever becomes of the program that wrote to it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Image, Mapped},
    guard::Guard,
    tool::{command, must, run},
    wait_for,
};

/// A virtual machine's monitor that has a device open: qemu's own block layer.
struct Monitor {
    process: std::process::Child,
    socket: &'static str,
}

impl Monitor {
    fn over(path: &Path) -> Result<Self> {
        let socket = "/run/fg-monitor";
        let line =
            format!("qemu-nbd --format=raw --cache=none --persistent --socket={socket} {}", path.display());
        let process = command(&line).spawn()?;
        wait_for("the monitor to serve", || Ok(Path::new(socket).exists().then_some(())))?;
        Ok(Self { process, socket })
    }

    /// Writes an image over the whole disk, as a guest's installation does.
    fn install(&self, image: &Image) -> Result<()> {
        must(&format!(
            "qemu-img convert -n -f raw -O raw {} nbd+unix:///?socket={}",
            image.path().display(),
            self.socket
        ))
        .map(drop)
    }

    /// Drops the page cache, as the kernel does when memory is short.
    fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        ensure!(!self.process.wait()?.success());
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.socket);
    }
}

fn image_of(line: &str) -> Result<Image> {
    let image = Image::new(64)?;
    must(&format!("{line} {}", image.path().display()))?;
    Ok(image)
}

/// The monitor that wrote the magic is killed while the storage reads as zeros: no formatter ever "ended
/// well".
#[test]
fn a_virtual_machines_disk_is_remembered_when_its_monitor_is_killed_and_the_storage_reads_zeros() -> Result<()>
{
    let guard = Guard::shared()?;
    let device = Mapped::new(64)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    let monitor = Monitor::over(path)?;
    monitor.install(&image_of("mkfs.ext4 -F -q")?)?;
    // The format is known long before the monitor ends, and the monitor goes on: its guest installs anew.
    let volume = guard.wait_for_state(path, "formatted")?;
    ensure!(volume["formatter"]["comm"] == "qemu-nbd" && volume["content"]["types"][0] == "ext4", "{volume}");
    refused(&guard, &format!("mkfs.ext4 -F {}", path.display()), "")?;
    monitor.install(&image_of("mkfs.xfs -f -q --unsupported")?)?;
    let before = device.sha256()?;
    device.read_zeros()?;
    monitor.kill()?;
    let volume = guard.wait_for_volume(path, "reported", |volume| !volume["discrepancy"].is_null())?;
    ensure!(volume["state"] == "formatted", "{volume}");
    for line in ["mkfs.ext4 -F", "mkfs.xfs -f --unsupported", "wipefs -a -f"] {
        refused(&guard, &format!("{line} {}", path.display()), "")?;
    }
    device.recover()?;
    for line in ["mkfs.ext4 -F", "mkfs.xfs -f --unsupported", "wipefs -a -f"] {
        refused(&guard, &format!("{line} {}", path.display()), "")?;
    }
    ensure!(device.sha256()? == before, "bytes changed");
    let volume = guard.wait_for_volume(path, "as it was left", |volume| volume["discrepancy"].is_null())?;
    ensure!(volume["content"]["types"][0] == "xfs", "{volume}");
    // No process has the device open any more: the guard can tell the next monitor from the one that made the
    // format.
    let monitor = Monitor::over(path)?;
    let ran = run(&format!(
        "qemu-img convert -n -f raw -O raw {} nbd+unix:///?socket={}",
        image_of("mkfs.ext4 -F -q")?.path().display(),
        monitor.socket
    ))?;
    ensure!(ran.status != 0, "{ran:?}");
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

/// udisksd, libparted: one process writes a partition table, and others format the partitions while it lives.
#[test]
fn a_partition_is_formatted_while_the_one_lives_that_wrote_the_table() -> Result<()> {
    let guard = Guard::shared()?;
    let device = format_guard_tests::device::Loop::new(64)?;
    let path = device.path().display().to_string();
    guard.wait_for_state(device.path(), "blank")?;
    let image = image_of("sgdisk -o -n 1:2048:65536")?;
    // Writes the table, closes the disk, has it read again, and formats the partition.
    let script = format!(
        "open my $in, '<', '{}' or die; open my $out, '+<', '{path}' or die; while (sysread $in, my $b, 1 << 20) \
         {{ syswrite $out, $b or die; }} close $out or die; system('partx', '-a', '{path}'); \
         for (1 .. 100) {{ last if system('mkfs.ext4 -F -q {path}p1 2>/dev/null') == 0; \
         select(undef, undef, undef, 0.2); }} exec 'sleep', 'infinity';",
        image.path().display()
    );
    let mut process = std::process::Command::new("perl").args(["-e", &script]).spawn()?;
    let made = wait_for("the partition to be formatted", || {
        let part = format!("{path}p1");
        if !Path::new(&part).exists() {
            return Ok(None);
        }
        Ok(guard.volume(Path::new(&part)).ok().filter(|volume| volume["state"] == "formatted"))
    });
    let disk = guard.volume(device.path());
    process.kill()?;
    process.wait()?;
    let (made, disk) = (made?, disk?);
    ensure!(made["content"]["types"][0] == "ext4" && disk["state"] == "formatted", "{made} {disk}");
    must(&format!("partx -d {path}")).map(drop)
}

/// Writes an image to a device by a road on which nobody sees the bytes.
fn write_unseen(road: &str, image: &Path, device: &Path) -> Result<()> {
    let script = match road {
        "sendfile" => "while os.sendfile(o, i, None, 1 << 20): pass",
        "splice" => {
            "r, w = os.pipe()\nwhile True:\n  n = os.splice(i, w, 1 << 16)\n  if not n: break\n  while n: n -= os.splice(r, o, n)"
        }
        _ => "n = os.fstat(i).st_size\nm = mmap.mmap(o, n)\nm[:] = os.read(i, n)\nm.flush()\nm.close()",
    };
    let script = format!(
        "import os, mmap\ni = os.open('{}', os.O_RDONLY)\no = os.open('{}', os.O_RDWR)\n{script}\nos.fsync(o)\n",
        image.display(),
        device.display()
    );
    let status = std::process::Command::new("python3").args(["-c", &script]).status()?;
    ensure!(status.success(), "{road}: {status}");
    Ok(())
}

#[test]
fn what_is_written_to_a_blank_volume_unseen_is_remembered() -> Result<()> {
    let guard = Guard::shared()?;
    let image = Image::new(16)?;
    must(&format!("mkfs.ext4 -F -q {}", image.path().display()))?;
    for road in ["sendfile", "splice", "mapping"] {
        let device = format_guard_tests::device::Loop::new(16)?;
        let path = device.path();
        guard.wait_for_state(path, "blank")?;
        write_unseen(road, image.path(), path)?;
        let volume = guard.wait_for_state(path, "formatted").with_context(|| road.to_owned())?;
        ensure!(volume["content"]["types"][0] == "ext4", "{road}: {volume}");
        let before = device.sha256()?;
        refused(&guard, &format!("mkfs.ext4 -F {}", path.display()), "")?;
        ensure!(device.sha256()? == before, "{road}: bytes changed");
    }
    Ok(())
}

/// Enforcing begins with what is there now, not with what was there when the audit began.
#[test]
fn a_format_that_went_through_in_audit_is_what_is_guarded_afterwards() -> Result<()> {
    let guard = Guard::start()?;
    let device = format_guard_tests::device::Loop::new(64)?;
    let path = device.path();
    crate::make_ext4(&guard, path)?;
    guard.json("mode audit --reason test")?;
    must(&format!("mkfs.xfs -f -q --unsupported {}", path.display()))?;
    let volume = guard.wait_for_volume(path, "followed", |volume| volume["content"]["types"][0] == "xfs")?;
    ensure!(volume["state"] == "formatted" && volume["discrepancy"].is_null(), "{volume}");
    ensure!(volume["formatter"]["comm"] == "mkfs.xfs", "{volume}");
    let told = guard.events("formatted")?;
    ensure!(
        told.iter()
            .any(|event| event["text"].as_str().is_some_and(|text| text.contains("would have been refused"))),
        "{told:#?}"
    );
    guard.json("mode enforce --reason over")?;
    let before = device.sha256()?;
    for line in ["mkfs.ext4 -F", "wipefs -a -f", "dd if=/dev/zero bs=4096 count=1 conv=notrunc"] {
        let of = if line.starts_with("dd") { "of=" } else { "" };
        refused(&guard, &format!("{line} {of}{}", path.display()), "")?;
    }
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

/// A formatter that writes zeros and fails.
fn fail_to_format(path: &Path) -> Result<()> {
    let directory = tempfile::tempdir_in("/var/tmp")?;
    let script = directory.path().join("mkfs.xfs");
    std::fs::write(
        &script,
        "#!/usr/bin/perl\nopen my $out, '+<', $ARGV[0] or die; syswrite $out, \"\\0\" x 4096 or die; close $out; exit 1;\n",
    )?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let status = command(&format!("{} {}", script.display(), path.display())).spawn()?.wait()?;
    ensure!(status.code() == Some(1), "the formatter ended with {status}");
    Ok(())
}

/// NTP sets the clock of a host without a battery after the boot: that neither ends a quarantine nor makes it
/// longer.
#[test]
fn a_clock_that_is_set_ends_no_quarantine_and_makes_none_longer() -> Result<()> {
    let guard = Guard::shared()?;
    for step in ["2 hours", "4 hours ago", "2 hours"] {
        let device = format_guard_tests::device::Loop::new(16)?;
        let path = device.path();
        guard.wait_for_state(path, "blank")?;
        let start = std::time::Instant::now();
        fail_to_format(path)?;
        let status = std::process::Command::new("date")
            .args(["-s", step])
            .stdout(std::process::Stdio::null())
            .status()?;
        ensure!(status.success(), "the clock cannot be set");
        guard.wait_for_state(path, "blank")?;
        // The configuration of these tests sets five seconds.
        let passed = start.elapsed();
        ensure!(passed.as_millis() > 4500, "{step}: armed after {passed:?}");
    }
    Ok(())
}
