//! Real block devices that belong to one test, and are removed when the value is dropped.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{
    tool::{module, must, must_with, run},
    wait_for,
};

static COUNTER: AtomicU32 = AtomicU32::new(1);

/// A number that no other device of this test run has.
fn number() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Something with a device node.
pub trait Device {
    /// The node.
    fn path(&self) -> &Path;

    /// sha256 of the whole device, from the medium and not from the page cache.
    ///
    /// # Errors
    /// When it cannot be read.
    fn sha256(&self) -> Result<String> {
        sha256(self.path())
    }
}

/// sha256 of everything in the device at `path`: of the length, and of every block that is not zero, with its
/// place. Two devices have the same sum if sha256sum(1) gives them the same sum. Hashing zeros would cost
/// most of the time under emulation.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    const BLOCK: usize = 4096;
    let mut file = flush(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut place = 0_u64;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        ensure!(length.is_multiple_of(512), "{} was read in part", path.display());
        for block in buffer[..length].chunks(BLOCK) {
            if *block != [0; BLOCK][..block.len()] {
                hash.update(place.to_le_bytes());
                hash.update(block);
            }
            place += block.len() as u64;
        }
    }
    hash.update(place.to_le_bytes());
    Ok(format!("{:x}", hash.finalize()))
}

/// Flushes the page cache of a device and drops it, and opens the device for reading.
///
/// # Errors
/// When it cannot be flushed.
pub fn flush(path: &Path) -> Result<File> {
    /// _IO(0x12, 97), include/uapi/linux/fs.h
    const BLKFLSBUF: libc::Ioctl = 0x1261;
    let what = format!("{} to open", path.display());
    let file = wait_for(&what, || match File::open(path) {
        // The node of a new disk exists before the disk can be opened (device_add and bdev_add in
        // block/genhd.c).
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        opened => opened.map(Some).with_context(|| path.display().to_string()),
    })?;
    // SAFETY: an ioctl without an argument on an open descriptor.
    let flushed = unsafe { libc::ioctl(file.as_raw_fd(), BLKFLSBUF, 0) };
    ensure!(flushed == 0, "cannot flush {}", path.display());
    Ok(file)
}

/// A snapshot of a device: its sha256, and a copy that shows where bytes have changed.
pub struct Snapshot {
    sha256: String,
    copy: Image,
}

impl Snapshot {
    /// Takes a snapshot of a whole device.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(device: &impl Device) -> Result<Self> {
        let copy = Image::new(0)?;
        let sha256 = device.sha256()?;
        std::io::copy(
            &mut File::open(device.path())?,
            &mut OpenOptions::new().write(true).open(copy.path())?,
        )?;
        Ok(Self { sha256, copy })
    }

    /// Checks that not one byte has changed.
    ///
    /// # Errors
    /// When one has: with the places.
    pub fn unchanged(&self, device: &impl Device) -> Result<()> {
        if device.sha256()? == self.sha256 {
            return Ok(());
        }
        let places = run(&format!("cmp -l {} {}", self.copy.path().display(), device.path().display()))?;
        let lines: Vec<&str> = places.text.lines().collect();
        let shown = lines[..lines.len().min(10)].join("\n");
        bail!(
            "{} bytes of {} changed (place from 1, was, is):\n{shown}",
            lines.len(),
            device.path().display()
        )
    }
}

/// A sparse file below `/var/tmp`, in the guest's memory.
pub struct Image(PathBuf);

impl Image {
    /// A file of this many MiB.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(mib: u64) -> Result<Self> {
        let path = PathBuf::from(format!("/var/tmp/fg-image-{}-{}", std::process::id(), number()));
        File::create(&path)?.set_len(mib << 20)?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A loop device over a file.
pub struct Loop {
    path: PathBuf,
    /// The backing file, if it belongs to this device.
    image: Option<Image>,
}

impl Loop {
    /// A blank device of this many MiB.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(mib: u64) -> Result<Self> {
        let image = Image::new(mib)?;
        let mut device = Self::over(image.path())?;
        device.image = Some(image);
        Ok(device)
    }

    /// A blank device of this many MiB, made by two system calls and without starting a program.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at_once(mib: u64) -> Result<Self> {
        // include/uapi/linux/loop.h
        const LOOP_SET_FD: libc::Ioctl = 0x4c00;
        const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
        module("loop")?;
        let image = Image::new(mib)?;
        let control = File::open("/dev/loop-control")?;
        // SAFETY: it takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        ensure!(number >= 0, "no free loop device: {}", std::io::Error::last_os_error());
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let (device, file) = (open(&path)?, open(image.path())?);
        // SAFETY: its argument is a descriptor.
        let failed = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd()) };
        ensure!(failed == 0, "{} is not set up: {}", path.display(), std::io::Error::last_os_error());
        Ok(Self { path, image: Some(image) })
    }

    /// A device over this file, at the first free number.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn over(file: &Path) -> Result<Self> {
        module("loop")?;
        let free = must("losetup --find")?;
        Self::at(Path::new(free.trim()), file)
    }

    /// A device over this file, at this node.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at(node: &Path, file: &Path) -> Result<Self> {
        module("loop")?;
        must(&format!("losetup {} {}", node.display(), file.display()))?;
        Ok(Self { path: node.to_owned(), image: None })
    }

    /// The backing file, if it belongs to this device.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.image.as_ref().map(Image::path)
    }

    /// Detaches the device; the file stays.
    ///
    /// # Errors
    /// When it stays attached.
    pub fn detach(mut self) -> Result<Option<Image>> {
        let image = self.image.take();
        detach_loop(&self.path)?;
        Ok(image)
    }
}

fn detach_loop(path: &Path) -> Result<()> {
    must(&format!("losetup --detach {}", path.display()))?;
    let name = path.file_name().context("no name")?.to_string_lossy().into_owned();
    // The device goes with its last opener.
    wait_for("the loop device to be free", || {
        Ok((!Path::new(&format!("/sys/block/{name}/loop/backing_file")).exists()).then_some(()))
    })
}

impl Device for Loop {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if Path::new(&format!("/sys/block/{name}/loop/backing_file")).exists() {
            // The kernel keeps partitions for the next file, and a scenario that failed has removed none.
            if has_partitions(&name) {
                let _ = remove_partitions(&self.path);
            }
            let _ = detach_loop(&self.path);
        }
    }
}

/// A device mapper device over a loop device, whose data path can be broken.
pub struct Mapped {
    name: String,
    path: PathBuf,
    sectors: u64,
    below: Loop,
}

impl Mapped {
    /// A blank dm-linear of this many MiB.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(mib: u64) -> Result<Self> {
        let device = Self::unmade(mib)?;
        device.create(&device.linear())?;
        Ok(device)
    }

    /// A blank device on which every access fails until it is recovered.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn failing(mib: u64) -> Result<Self> {
        let device = Self::unmade(mib)?;
        device.create(&device.errors())?;
        Ok(device)
    }

    fn unmade(mib: u64) -> Result<Self> {
        module("dm_mod")?;
        let below = Loop::new(mib)?;
        let name = format!("fg{}-{}", std::process::id(), number());
        Ok(Self { path: Path::new("/dev/mapper").join(&name), name, sectors: mib << 11, below })
    }

    fn errors(&self) -> String {
        format!("0 {} error", self.sectors)
    }

    fn linear(&self) -> String {
        format!("0 {} linear {} 0", self.sectors, self.below.path().display())
    }

    /// Swaps the table of the device; its number, name and uuid stay.
    fn reload(&self, table: &str) -> Result<()> {
        // Without a flush: a swap must not wait for writes that cannot end.
        must(&format!("dmsetup suspend --noflush {}", self.name))?;
        must_with(&format!("dmsetup reload {}", self.name), table)?;
        must(&format!("dmsetup resume {}", self.name))?;
        self.drop_cache()
    }

    /// Every read gives zeros, every write is lost (S2).
    ///
    /// # Errors
    /// When the table cannot be swapped.
    pub fn read_zeros(&self) -> Result<()> {
        self.reload(&format!("0 {} zero", self.sectors))
    }

    /// Every access fails with EIO (S3).
    ///
    /// # Errors
    /// When the table cannot be swapped.
    pub fn fail(&self) -> Result<()> {
        self.reload(&self.errors())
    }

    /// Restores the data path.
    ///
    /// # Errors
    /// When the table cannot be swapped.
    pub fn recover(&self) -> Result<()> {
        self.reload(&self.linear())
    }

    /// Drops the caches, so that what was read before must be read again.
    fn drop_cache(&self) -> Result<()> {
        must(&format!("blockdev --flushbufs {}", self.path.display())).map(drop)
    }

    /// Removes the device and makes it again, possibly under another number.
    ///
    /// # Errors
    /// When it cannot be made again.
    pub fn remake(&mut self) -> Result<()> {
        must(&format!("dmsetup remove --retry {}", self.name))?;
        self.create(&self.linear())
    }

    fn create(&self, table: &str) -> Result<()> {
        must_with(&format!("dmsetup create {} --uuid FGTEST-{}", self.name, self.name), table).map(drop)
    }
}

impl Device for Mapped {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = run(&format!("dmsetup remove --force --retry {}", self.name));
    }
}

/// A device mapper device of one linear target over another device.
pub struct Linear {
    name: String,
    path: PathBuf,
}

impl Linear {
    /// A device of this name and uuid (none if it is empty) over `length` bytes of `below`, from `start` on.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn over(name: &str, uuid: &str, below: &Path, start: u64, length: u64) -> Result<Self> {
        module("dm_mod")?;
        let table = format!("0 {} linear {} {}", length / 512, below.display(), start / 512);
        let uuid = if uuid.is_empty() { String::new() } else { format!("--uuid {uuid}") };
        must_with(&format!("dmsetup create {name} {uuid}"), &table)?;
        Ok(Self { name: name.to_owned(), path: Path::new("/dev/mapper").join(name) })
    }

    /// Delays every write by this long, and no read.
    ///
    /// # Errors
    /// When it cannot be slowed down.
    pub fn slow_writes(&self, below: &Path, length: u64, delay: Duration) -> Result<()> {
        self.slow_writes_at(below, 0, length, delay)
    }

    /// The same over the bytes of `below` from `start` on.
    ///
    /// # Errors
    /// When it cannot be slowed down.
    pub fn slow_writes_at(&self, below: &Path, start: u64, length: u64, delay: Duration) -> Result<()> {
        module("dm_delay")?;
        let (below, start, milliseconds) = (below.display(), start / 512, delay.as_millis());
        self.reload(&format!("0 {} delay {below} {start} 0 {below} {start} {milliseconds}", length / 512))
    }

    /// Holds every access up until [`Linear::resume`].
    ///
    /// # Errors
    /// When it cannot be suspended.
    pub fn suspend(&self) -> Result<()> {
        must(&format!("dmsetup suspend --nolockfs --noflush {}", self.name)).map(drop)
    }

    /// Lets every access go on.
    ///
    /// # Errors
    /// When it cannot be resumed.
    pub fn resume(&self) -> Result<()> {
        must(&format!("dmsetup resume {}", self.name)).map(drop)
    }

    /// Replaces the device's table.
    ///
    /// # Errors
    /// When it cannot be swapped.
    pub fn reload(&self, table: &str) -> Result<()> {
        must(&format!("dmsetup suspend --noflush {}", self.name))?;
        must_with(&format!("dmsetup reload {}", self.name), table)?;
        self.resume()
    }
}

impl Device for Linear {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Linear {
    fn drop(&mut self) {
        let _ = run(&format!("dmsetup resume {}", self.name));
        let _ = run(&format!("dmsetup remove --force --retry {}", self.name));
    }
}

/// A mirror (md raid1) of two devices.
pub struct Mirror {
    path: PathBuf,
}

impl Mirror {
    /// A new mirror, with its superblock after the first 4 KiB of each member.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(members: [&Path; 2]) -> Result<Self> {
        module("raid1")?;
        let path = PathBuf::from(format!("/dev/md{}", 100 + number()));
        let [first, second] = members.map(Path::display);
        must(&format!(
            "mdadm --create {} --run --assume-clean --level=1 --raid-devices=2 --metadata=1.2 {first} {second}",
            path.display()
        ))?;
        Ok(Self { path })
    }
}

impl Device for Mirror {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = run(&format!("mdadm --stop {}", self.path.display()));
    }
}

/// An iSCSI volume on the loopback, which tgt serves in the same way as a Longhorn volume.
pub struct Iscsi {
    target: u32,
    iqn: String,
    path: PathBuf,
    image: Image,
}

impl Iscsi {
    /// A blank volume of this many MiB, logged in.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn new(mib: u64) -> Result<Self> {
        let target = number();
        let iqn = format!("iqn.2019-10.io.longhorn:pvc-{}-{target}", std::process::id());
        let image = Image::new(mib)?;
        let mut volume = Self { target, iqn, path: PathBuf::new(), image };
        volume.serve()?;
        volume.log_in()?;
        Ok(volume)
    }

    /// The name of the volume's target.
    #[must_use]
    pub fn iqn(&self) -> &str {
        &self.iqn
    }

    fn serve(&self) -> Result<()> {
        serve_target(self.target, &self.iqn, self.image.path())
    }

    /// The command that removes the volume's target.
    fn deletion(&self) -> String {
        format!("tgtadm --lld iscsi --op delete --force --mode target --tid {}", self.target)
    }

    /// Removes the target, but not the session.
    ///
    /// # Errors
    /// When it stays.
    pub fn stop_serving(&self) -> Result<()> {
        let delete = self.deletion();
        wait_for("a target to go", || {
            let ran = run(&delete)?;
            // tgt refuses while a command is under way.
            let busy = ran.text.contains("this logical unit is still active");
            ensure!(ran.status == 0 || busy, "{delete}: {}", ran.text);
            Ok((!busy).then_some(()))
        })
    }

    /// Sets the time after which a session without its target fails pending commands; open-iscsi's default is
    /// two minutes.
    ///
    /// # Errors
    /// When it cannot be set.
    pub fn fail_after(&self, time: Duration) -> Result<()> {
        for session in sessions_of(&self.iqn)? {
            fs::write(session.join("recovery_tmo"), time.as_secs().to_string())?;
        }
        Ok(())
    }

    /// Makes the targets of two logged out volumes anew, each with the other's number: tgt's wwids change
    /// places.
    ///
    /// # Errors
    /// When one cannot be remade.
    pub fn swap_numbers(&mut self, other: &mut Self) -> Result<()> {
        self.stop_serving()?;
        other.stop_serving()?;
        std::mem::swap(&mut self.target, &mut other.target);
        self.serve()?;
        other.serve()
    }

    /// Opens a second session to the same target, and returns the node of its disk.
    ///
    /// # Errors
    /// When none appears.
    pub fn second_path(&self) -> Result<PathBuf> {
        let sessions = must("iscsiadm -m session")?;
        // tcp: [1] 127.0.0.1:3260,1 IQN (non-flash)
        let line = sessions.lines().find(|line| line.contains(&self.iqn)).context("no session")?;
        let id = line.split(['[', ']']).nth(1).context("no number")?;
        must(&format!("iscsiadm -m session -r {id} --op new"))?;
        wait_for("the second path", || Ok(disks_of(&self.iqn)?.into_iter().find(|path| *path != self.path)))
    }

    /// Logs in and waits for the device.
    ///
    /// # Errors
    /// When none appears.
    pub fn log_in(&mut self) -> Result<()> {
        self.path = log_in(&self.iqn)?;
        Ok(())
    }

    /// Logs out; the device is removed.
    ///
    /// # Errors
    /// When it stays.
    pub fn log_out(&mut self) -> Result<()> {
        log_out(&self.iqn)
    }
}

impl Device for Iscsi {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Iscsi {
    fn drop(&mut self) {
        let _ = log_out(&self.iqn);
        let _ = run(&self.deletion());
    }
}

/// The server of [`Units`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    /// LIO, by configfs: each unit has a serial number of its own.
    Kernel,
    /// tgt: each unit has only a counter.
    Tgt(u32),
}

/// One iSCSI target, whose units are mapped and unmapped as an array does it.
pub struct Units {
    server: Server,
    iqn: String,
    images: Vec<Image>,
    mapped: Vec<u32>,
    logged_in: bool,
}

const CORE: &str = "/sys/kernel/config/target/core";
/// tgtd uses the default.
const KERNEL_PORTAL: &str = "127.0.0.1:3261";

impl Units {
    /// A target of the kernel; none if the kernel has no such target.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn of_kernel_target() -> Result<Option<Self>> {
        if run("modprobe -a target_core_mod target_core_file iscsi_target_mod")?.status != 0 {
            return Ok(None);
        }
        start_daemons()?;
        if !Path::new("/sys/kernel/config/target").exists() {
            must("mount -t configfs configfs /sys/kernel/config")?;
        }
        let units = Self::new(Server::Kernel);
        let group = units.group();
        fs::create_dir_all(&group)?;
        fs::create_dir(group.join("np").join(KERNEL_PORTAL))?;
        for (name, value) in [
            ("authentication", "0"),
            ("generate_node_acls", "1"),
            ("demo_mode_write_protect", "0"),
            ("cache_dynamic_acls", "1"),
        ] {
            fs::write(group.join("attrib").join(name), value)?;
        }
        fs::write(group.join("enable"), "1")?;
        Ok(Some(units))
    }

    /// A target of tgt.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn of_tgt() -> Result<Self> {
        start_daemons()?;
        let target = number();
        let units = Self::new(Server::Tgt(target));
        let tgtadm = "tgtadm --lld iscsi --op";
        must(&format!("{tgtadm} new --mode target --tid {target} -T {}", units.iqn))?;
        must(&format!("{tgtadm} bind --mode target --tid {target} -I ALL"))?;
        Ok(units)
    }

    fn new(server: Server) -> Self {
        let iqn = format!("iqn.2010-01.org.array:host-{}-{}", std::process::id(), number());
        Self { server, iqn, images: Vec::new(), mapped: Vec::new(), logged_in: false }
    }

    fn group(&self) -> PathBuf {
        Path::new("/sys/kernel/config/target/iscsi").join(&self.iqn).join("tpgt_1")
    }

    fn backstore(&self, volume: usize) -> PathBuf {
        let name = self.iqn.replace([':', '.'], "-");
        Path::new(CORE).join("fileio_7").join(format!("{name}-{volume}"))
    }

    /// A new volume of this many MiB, not mapped yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn volume(&mut self, mib: u64) -> Result<usize> {
        let (image, volume) = (Image::new(mib)?, self.images.len());
        if self.server == Server::Kernel {
            let backstore = self.backstore(volume);
            fs::create_dir_all(&backstore)?;
            let control = format!("fd_dev_name={},fd_dev_size={}", image.path().display(), mib << 20);
            fs::write(backstore.join("control"), control)?;
            let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
            fs::write(backstore.join("wwn/vpd_unit_serial"), uuid.trim())?;
            fs::write(backstore.join("enable"), "1")?;
        }
        self.images.push(image);
        Ok(volume)
    }

    /// Maps a volume as the unit of this number, and returns its node.
    ///
    /// # Errors
    /// When it does not appear.
    pub fn map(&mut self, volume: usize, unit: u32) -> Result<PathBuf> {
        match self.server {
            Server::Kernel => {
                let directory = self.group().join(format!("lun/lun_{unit}"));
                fs::create_dir(&directory)?;
                std::os::unix::fs::symlink(self.backstore(volume), directory.join("storage"))?;
            }
            Server::Tgt(target) => must(&format!(
                "tgtadm --lld iscsi --op new --mode logicalunit --tid {target} --lun {unit} -b {}",
                self.images.get(volume).context("no such volume")?.path().display()
            ))
            .map(drop)?,
        }
        self.mapped.push(unit);
        if self.logged_in {
            must(&format!("iscsiadm -m node -T {} --rescan", self.iqn))?;
        } else {
            let portal = if self.server == Server::Kernel { KERNEL_PORTAL } else { "127.0.0.1:3260" };
            must(&format!("iscsiadm -m node -T {} -p {portal} --op new", self.iqn))?;
            must(&format!("iscsiadm -m node -T {} --login", self.iqn))?;
            self.logged_in = true;
        }
        wait_for("the unit's disk", || self.node(unit))
    }

    fn node(&self, unit: u32) -> Result<Option<PathBuf>> {
        for session in sessions_of(&self.iqn)? {
            if let Some(node) = disk_of(&session.join("device"), unit)? {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    /// Unmaps a unit, after removing its device from this host.
    ///
    /// # Errors
    /// When it stays.
    pub fn unmap(&mut self, unit: u32) -> Result<()> {
        let node = self.node(unit)?.context("it is not mapped")?;
        let name = node.file_name().context("no name")?;
        fs::write(Path::new("/sys/class/block").join(name).join("device/delete"), "1")?;
        wait_for("the disk to go", || Ok(self.node(unit)?.is_none().then_some(())))?;
        match self.server {
            Server::Kernel => {
                let directory = self.group().join(format!("lun/lun_{unit}"));
                fs::remove_file(directory.join("storage"))?;
                fs::remove_dir(directory)?;
            }
            Server::Tgt(target) => {
                let delete =
                    format!("tgtadm --lld iscsi --op delete --mode logicalunit --tid {target} --lun {unit}");
                wait_for("the unit to go", || Ok((run(&delete)?.status == 0).then_some(())))?;
            }
        }
        self.mapped.retain(|mapped| *mapped != unit);
        Ok(())
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        let _ = log_out(&self.iqn);
        match self.server {
            Server::Kernel => {
                let group = self.group();
                for unit in &self.mapped {
                    let directory = group.join(format!("lun/lun_{unit}"));
                    let _ = fs::remove_file(directory.join("storage"));
                    let _ = fs::remove_dir(directory);
                }
                let _ = fs::remove_dir(group.join("np").join(KERNEL_PORTAL));
                let _ = fs::remove_dir(&group);
                let _ = group.parent().map(fs::remove_dir);
                for volume in 0..self.images.len() {
                    let _ = fs::remove_dir(self.backstore(volume));
                }
            }
            Server::Tgt(target) => {
                let _ = run(&format!("tgtadm --lld iscsi --op delete --force --mode target --tid {target}"));
            }
        }
    }
}

/// Serves a file or device as LUN 1 of a target.
///
/// # Errors
/// When tgt refuses it.
pub fn serve_target(target: u32, iqn: &str, backing: &Path) -> Result<()> {
    start_daemons()?;
    let tgtadm = "tgtadm --lld iscsi --op";
    must(&format!("{tgtadm} new --mode target --tid {target} -T {iqn}"))?;
    must(&format!("{tgtadm} new --mode logicalunit --tid {target} --lun 1 -b {}", backing.display()))?;
    must(&format!("{tgtadm} bind --mode target --tid {target} -I ALL")).map(drop)
}

/// Logs in to a target on the loopback, and returns the node of its LUN 1.
///
/// # Errors
/// When none appears.
pub fn log_in(iqn: &str) -> Result<PathBuf> {
    must("iscsiadm -m discovery -t st -p 127.0.0.1")?;
    log_in_by_record(iqn)
}

/// Logs in to a target at this portal, without a discovery of other targets, and returns the node of its LUN
/// 1.
///
/// # Errors
/// When none appears.
pub fn log_in_at(iqn: &str, portal: &str) -> Result<PathBuf> {
    must(&format!("iscsiadm -m node -T {iqn} -p {portal} --op new"))?;
    log_in_by_record(iqn)
}

fn log_in_by_record(iqn: &str) -> Result<PathBuf> {
    must(&format!("iscsiadm -m node -T {iqn} --login"))?;
    wait_for("the disk of the iSCSI session", || Ok(disks_of(iqn)?.into_iter().next()))
}

/// The nodes of a target's LUN 1, one for each session.
fn disks_of(iqn: &str) -> Result<Vec<PathBuf>> {
    let mut disks = Vec::new();
    for session in sessions_of(iqn)? {
        disks.extend(disk_of(&session.join("device"), 1)?);
    }
    disks.sort();
    Ok(disks)
}

/// The sessions of a target, as directories of sysfs.
fn sessions_of(iqn: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir("/sys/class/iscsi_session")?;
    let sessions = entries.flatten().map(|entry| entry.path());
    let ours = |session: &PathBuf| {
        fs::read_to_string(session.join("targetname")).is_ok_and(|name| name.trim() == iqn)
    };
    Ok(sessions.filter(ours).collect())
}

/// The node of the disk with this LUN below a session's directory.
fn disk_of(session: &Path, unit: u32) -> Result<Option<PathBuf>> {
    let number = format!(":{unit}");
    for target in fs::read_dir(session)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("target"))
    {
        for unit in fs::read_dir(target.path())?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(&number))
        {
            if let Ok(mut disks) = fs::read_dir(unit.path().join("block"))
                && let Some(Ok(disk)) = disks.next()
            {
                let node = Path::new("/dev").join(disk.file_name());
                return Ok(node.exists().then_some(node));
            }
        }
    }
    Ok(None)
}

/// Logs out of a target, and deletes its record.
///
/// # Errors
/// When its session stays.
pub fn log_out(iqn: &str) -> Result<()> {
    must(&format!("iscsiadm -m node -T {iqn} --logout"))?;
    must(&format!("iscsiadm -m node -T {iqn} --op delete")).map(drop)
}

/// Starts tgtd and iscsid, once in a boot.
fn start_daemons() -> Result<()> {
    if run("tgtadm --lld iscsi --op show --mode target")?.status != 0 {
        crate::tool::command("tgtd").spawn().context("cannot start tgtd")?.wait()?;
    }
    wait_for("tgtd", || Ok((run("tgtadm --lld iscsi --op show --mode target")?.status == 0).then_some(())))?;
    start_initiator("iqn.1993-08.org.debian:01:fg")
}

/// Starts iscsid, once in a boot, with this initiator name.
///
/// # Errors
/// When it does not answer.
pub fn start_initiator(name: &str) -> Result<()> {
    for name in ["iscsi_tcp", "sd_mod"] {
        module(name)?;
    }
    if run("pidof iscsid")?.status != 0 {
        fs::create_dir_all("/run/lock/iscsi")?;
        fs::create_dir_all("/etc/iscsi")?;
        fs::write("/etc/iscsi/initiatorname.iscsi", format!("InitiatorName={name}\n"))?;
        crate::tool::command("iscsid").spawn().context("cannot start iscsid")?.wait()?;
    }
    wait_for("iscsid", || Ok((run("iscsiadm -m session")?.status != 20).then_some(())))
}

/// Removes the partitions of a disk, which would outlive a loop device's file. An open partition stays: a
/// probe, or udev's, opens one for a moment.
///
/// # Errors
/// When one stays for good.
pub fn remove_partitions(disk: &Path) -> Result<()> {
    let name = disk.file_name().context("no name")?.to_string_lossy().into_owned();
    wait_for("the partitions to go", || {
        run(&format!("partx -d {}", disk.display()))?;
        Ok((!has_partitions(&name)).then_some(()))
    })
}

/// Whether the kernel has partitions of the disk of this name.
fn has_partitions(name: &str) -> bool {
    let entries = fs::read_dir(format!("/sys/block/{name}")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(name))
}

/// Writes `bytes` at an offset of a device and syncs them, without a tool.
///
/// # Errors
/// What the kernel says.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;

    let file = OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}

/// Number of a device node, `MAJOR:MINOR`.
///
/// # Errors
/// When it is not there.
pub fn device_number(path: &Path) -> Result<String> {
    let rdev = fs::metadata(path)?.rdev();
    Ok(format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev)))
}

/// A disk of the module `scsi_debug`, in memory.
pub struct ScsiDisk {
    path: PathBuf,
    generic: PathBuf,
}

impl ScsiDisk {
    /// A disk of 64 MiB with these parameters of the module.
    ///
    /// # Errors
    /// When it does not appear.
    pub fn new(parameters: &str) -> Result<Self> {
        // No udevd loads the modules.
        module("sd_mod")?;
        module("sg")?;
        must(&format!("modprobe scsi_debug dev_size_mb=64 lbpu=1 lbpws=1 {parameters}"))?;
        let disk = wait_for("the disk", || {
            for entry in fs::read_dir("/sys/class/scsi_generic")?.filter_map(Result::ok) {
                let below = entry.path().join("device");
                if fs::read_to_string(below.join("model")).is_ok_and(|model| model.trim() == "scsi_debug")
                    && let Ok(mut block) = fs::read_dir(below.join("block"))
                    && let Some(Ok(block)) = block.next()
                {
                    let node = |name| Path::new("/dev").join(name);
                    return Ok(Some(Self {
                        path: node(block.file_name()),
                        generic: node(entry.file_name()),
                    }));
                }
            }
            Ok(None)
        })?;
        wait_for("its nodes", || Ok((disk.path.exists() && disk.generic.exists()).then_some(())))?;
        Ok(disk)
    }

    /// Its node for SCSI commands.
    #[must_use]
    pub fn generic(&self) -> &Path {
        &self.generic
    }

    /// Removes the disk, as a pulled cable does.
    ///
    /// # Errors
    /// When it stays.
    pub fn pull(&self) -> Result<()> {
        let name = self.path.file_name().context("no name")?;
        let delete = Path::new("/sys/class/block").join(name).join("device/delete");
        fs::write(&delete, "1").with_context(|| delete.display().to_string())
    }
}

impl Device for ScsiDisk {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScsiDisk {
    fn drop(&mut self) {
        // A probe may hold the disk open for a moment.
        let _ = wait_for("scsi_debug to go", || Ok((run("rmmod scsi_debug")?.status == 0).then_some(())));
    }
}

/// Sectors of each of many volumes.
pub const SECTORS_OF_MANY: u32 = 1 << 16;

/// Makes volumes of these numbers, in order: device mapper over one null block device, which reads blank.
///
/// # Errors
/// When device mapper does not take one.
pub fn make_many(first: u32, count: u32) -> Result<()> {
    /// Volumes of one dmsetup call: a command line has a limit.
    const AT_ONCE: u32 = 500;
    module("dm_mod")?;
    must("modprobe null_blk nr_devices=1 gb=1024")?;
    let sectors = SECTORS_OF_MANY;
    for start in (first..first + count).step_by(AT_ONCE as usize) {
        let devices: Vec<String> = (start..(start + AT_ONCE).min(first + count))
            .map(|i| format!("fgbench{i},FGBENCH-{i},,rw,0 {sectors} linear /dev/nullb0 {}", i * sectors))
            .collect();
        let made = Command::new("dmsetup")
            .args(["create", "--concise", &devices.join(";")])
            .env("DM_DISABLE_UDEV", "1")
            .status()?;
        ensure!(made.success(), "dmsetup failed");
    }
    Ok(())
}
