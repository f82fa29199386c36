//! Runs a command as root under another kernel, in qemu.
//!
//! The guest's root is an overlay: this machine's own root over 9p, read-only, and memory above it. Every
//! program is at its usual path. The guest writes nothing to the host except through disks that are named.

mod accelerator;
pub(crate) mod busybox;
pub(crate) mod emulator;
mod initramfs;

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    slice,
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempPath;

use accelerator::Accelerator;

use crate::{
    command::{command, quote},
    kernels::{Kernel, chosen},
    packages::cache,
    setup,
};

/// Exit status of a guest that ran out of time, as of timeout(1).
const TIMED_OUT: u8 = 124;
/// Exit status of a guest that ended without a status: a panic, or a hang of its init.
const DIED: u8 = 125;
/// Exit status of a guest that its emulator killed.
pub(crate) const EMULATOR_FAILED: u8 = 126;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel to run: 6.1, 6.12, 6.18, 7 or all
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Seconds until the guest is ended
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Disk image to attach, as [virtio:|scsi:|nvme:]FILE (may be repeated)
    #[arg(long)]
    disk: Vec<Disk>,
    /// Boot parameters besides those that every guest has
    #[arg(long, default_value = "")]
    parameters: String,
    /// Command to run, after --
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// `cargo xtask vm`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::root("a guest reads this machine's root")?;
    setup::ready()?;
    let keys = chosen(slice::from_ref(&arguments.kernel), &[]);
    let mut result = ExitCode::SUCCESS;
    for key in &keys {
        let kernel = Kernel::get(key)?;
        if keys.len() > 1 {
            println!("== kernel {key} ({})", kernel.release);
        }
        let guest = Guest {
            kernel,
            command: arguments.command.clone(),
            disks: arguments.disk.clone(),
            timeout: Duration::from_secs(arguments.timeout),
            clock: Clock::Host,
            parameters: arguments.parameters.clone(),
            network: false,
        };
        let status = guest.run(&mut io::stdout())?;
        if status != 0 {
            result = ExitCode::from(status);
        }
    }
    Ok(result)
}

/// A raw image, and the kind of disk that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The image.
    pub(crate) path: PathBuf,
    /// The controller that the disk is attached to.
    pub(crate) bus: Bus,
}

/// Kinds of controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    Virtio,
    Scsi,
    Nvme,
}

impl Disk {
    /// A virtio disk.
    pub(crate) fn virtio(path: PathBuf) -> Self {
        Self { path, bus: Bus::Virtio }
    }

    /// The arguments for a bus's one controller, and for the disk itself. Each disk has an identity of its
    /// own, made from its number.
    fn devices(&self, number: usize) -> (Option<&'static str>, String) {
        match self.bus {
            Bus::Virtio => (None, format!("virtio-blk-pci,drive=disk{number},serial=disk{number}")),
            Bus::Scsi => (
                Some("virtio-scsi-pci,id=scsi"),
                format!(
                    "scsi-hd,bus=scsi.0,drive=disk{number},wwn={:#x}",
                    0x5000_c500_0000_0000_u64 + number as u64
                ),
            ),
            Bus::Nvme => (
                Some("nvme,id=nvme,serial=format-guard"),
                format!("nvme-ns,bus=nvme,drive=disk{number},uuid=6f8d1d60-2f7e-4b59-9d3c-{number:012x}"),
            ),
        }
    }
}

impl FromStr for Disk {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (bus, path) = match text.split_once(':') {
            Some(("virtio", path)) => (Bus::Virtio, path),
            Some(("scsi", path)) => (Bus::Scsi, path),
            Some(("nvme", path)) => (Bus::Nvme, path),
            _ => (Bus::Virtio, text),
        };
        Ok(Self { path: path.into(), bus })
    }
}

/// Boot parameters of every guest. Not zeroing memory on allocation, and expedited RCU, save 9 % of the
/// scenarios' time, side by side.
const PARAMETERS: &str = "console=ttyS0 panic=-1 loglevel=5 mitigations=off no_timer_check nowatchdog audit=0 \
                          init_on_alloc=0 rcupdate.rcu_expedited=1";

/// Memory of this machine that one guest takes, in MiB: the guest's 2 GiB, and what qemu needs beside it (512
/// MiB of translated code in an emulated guest).
pub(crate) const MEMORY: u64 = 2048 + 768;

/// Guests that may run at the same time: each keeps one core busy.
pub(crate) fn at_a_time() -> Result<usize> {
    let cores = thread::available_parallelism()?.get();
    let memory = usize::try_from(available_memory()? / MEMORY)?;
    Ok(cores.min(memory).max(1))
}

/// Memory that this machine can give, in MiB.
pub(crate) fn available_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .context("/proc/meminfo has no MemAvailable")?;
    Ok(kib >> 10)
}

/// The command that runs a test program against this guard.
pub(crate) fn with_guard(
    guard: &Path,
    program: &Path,
    arguments: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let mut words: Vec<OsString> =
        vec!["env".into(), format!("FORMAT_GUARD_BINARY={}", guard.display()).into(), program.into()];
    words.extend(arguments);
    words
}

/// Whether a guest's last lines show flags that no processor has: bits 22 to 31 of EFLAGS are reserved and
/// zero (Intel SDM, volume 1, 3.4.3). qemu 7.2 without KVM sets them once in some hours of guests. The guest
/// then reports a double fault; or, if the direction flag was set as well, whatever a string instruction does
/// that runs backwards.
fn is_the_emulators(console: &str) -> bool {
    console
        .split_once("Oops: ")
        .and_then(|(_, oops)| oops.split_once("EFLAGS: "))
        .and_then(|(_, flags)| u32::from_str_radix(flags.get(..8)?, 16).ok())
        .is_some_and(|flags| flags >> 22 != 0)
}

/// One boot.
pub(crate) struct Guest {
    /// The kernel.
    pub(crate) kernel: Kernel,
    /// The command.
    pub(crate) command: Vec<OsString>,
    /// Raw images, attached in this order.
    pub(crate) disks: Vec<Disk>,
    /// The time after which the guest is killed.
    pub(crate) timeout: Duration,
    /// The guest's clock.
    pub(crate) clock: Clock,
    /// Boot parameters besides those that every guest has.
    pub(crate) parameters: String,
    /// Whether the guest reaches this host at 10.0.2.2.
    pub(crate) network: bool,
}

/// The clock of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The host's clock.
    Host,
    /// One nanosecond for each instruction: the same in every run.
    Instructions,
}

/// How a boot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The command ended, with this status.
    With(u8),
    /// The guest was killed.
    Killed,
    /// The guest ended by itself, without a status.
    Died,
}

impl Guest {
    /// Boots, runs the command with its output to `output`, and returns its exit status.
    pub(crate) fn run(&self, output: &mut (impl Write + Send)) -> Result<u8> {
        self.run_known(output, |_| ())
    }

    /// The same, and passes qemu's process id to a function again and again while it runs.
    pub(crate) fn run_known(&self, output: &mut (impl Write + Send), known: impl Fn(&Child)) -> Result<u8> {
        let deadline = Instant::now() + self.timeout;
        let (ended, console) = self.run_until(output, |qemu| {
            known(qemu);
            Instant::now() >= deadline
        })?;
        if let End::With(status) = ended {
            return Ok(status);
        }
        let text = fs::read(&console)?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(40)..] {
            eprintln!("{} | {line}", self.kernel.key);
        }
        let (cause, status) = match ended {
            End::Killed => ("ran out of time", TIMED_OUT),
            _ if is_the_emulators(&text) => ("was killed by its emulator", EMULATOR_FAILED),
            _ => ("died", DIED),
        };
        eprintln!("guest {}: {cause}; its console is kept at {}", self.kernel.key, console.keep()?.display());
        Ok(status)
    }

    /// Boots, and runs the command until it ends or this function says to cut the power, by killing qemu.
    /// Returns how the boot ended, and the console's output.
    pub(crate) fn run_until(
        &self,
        output: &mut (impl Write + Send),
        cut: impl Fn(&Child) -> bool,
    ) -> Result<(End, TempPath)> {
        // Only the emulator counts instructions.
        let accelerator = match self.clock {
            Clock::Host => accelerator::proven(&self.kernel)?,
            Clock::Instructions => Accelerator::Emulator,
        };
        self.boot(accelerator, output, cut)
    }

    fn boot(
        &self,
        accelerator: Accelerator,
        output: &mut (impl Write + Send),
        cut: impl Fn(&Child) -> bool,
    ) -> Result<(End, TempPath)> {
        let control = tempfile::tempdir()?;
        let initramfs = initramfs::of(&self.kernel)?;
        self.write_command(control.path())?;
        let consoles = cache()?.join("consoles");
        fs::create_dir_all(&consoles)?;
        let console = tempfile::Builder::new()
            .prefix(&format!("{}-", self.kernel.key))
            .suffix(".log")
            .tempfile_in(&consoles)?
            .into_temp_path();
        let mut qemu = self.qemu(accelerator, control.path(), &initramfs, &console)?;
        qemu.stdout(Stdio::piped());
        let mut child = qemu.spawn().context("cannot start qemu-system-x86_64")?;
        let mut printed = child.stdout.take().context("qemu has no output")?;
        // qemu opens the file anew: with a descriptor of ours it would overwrite what we write.
        let killed = thread::scope(|scope| {
            let copied = scope.spawn(move || io::copy(&mut printed, output));
            let killed = wait(&mut child, cut);
            drop(copied.join());
            killed
        })?;
        let status = fs::read_to_string(control.path().join("status")).unwrap_or_default();
        let ended = match status.trim().parse() {
            Ok(status) => End::With(status),
            Err(_) if killed => End::Killed,
            Err(_) => End::Died,
        };
        Ok((ended, console))
    }

    /// The text that the guest's init reads: the environment, then the command.
    fn write_command(&self, control: &Path) -> Result<()> {
        // Some version managers put scripts on the path that take seconds each under emulation.
        let path: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .filter(|directory| !directory.ends_with("shims"))
            .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
            // Last: if this machine has a busybox of its own, its users' scripts mean that one.
            .chain([busybox::folder()?])
            .collect();
        let mut lines = Vec::new();
        let mut export = |name: &str, value: &str| lines.push(format!("export {name}={}", quote(value)));
        export("PATH", &env::join_paths(path)?.to_string_lossy());
        export("HOME", "/root");
        export("LANG", "C.UTF-8");
        // An error's own chain of causes is enough; backtraces take seconds under emulation.
        export("RUST_LIB_BACKTRACE", "0");
        export("FORMAT_GUARD_GUEST", self.kernel.key);
        for (name, value) in env::vars() {
            if name.starts_with("RUST_") || name.starts_with("FORMAT_GUARD_") || name.starts_with("PROPTEST_")
            {
                export(&name, &value);
            }
        }
        let words: Vec<String> = self.command.iter().map(|word| quote(&word.to_string_lossy())).collect();
        lines.push(format!("cd {} || exit 1", quote(&env::current_dir()?.to_string_lossy())));
        lines.push(format!("exec {}\n", words.join(" ")));
        fs::write(control.join("command"), lines.join("\n"))?;
        Ok(())
    }

    fn qemu(
        &self,
        accelerator: Accelerator,
        control: &Path,
        initramfs: &Path,
        console: &Path,
    ) -> Result<Command> {
        let mut qemu = command(
            &emulator::program()?.to_string_lossy(),
            [
                "-m",
                "2G",
                "-smp",
                "2",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-device",
                "virtio-rng-pci",
                "-device",
                "virtio-serial-pci",
                "-chardev",
                "file,id=out,path=/dev/stdout,append=on",
                "-device",
                "virtserialport,chardev=out,name=out",
            ],
        );
        qemu.args(accelerator.words());
        qemu.arg("-append").arg(format!("{PARAMETERS} {}", self.parameters));
        qemu.arg("-kernel").arg(self.kernel.directory.join("vmlinux"));
        qemu.arg("-initrd").arg(initramfs);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        for (tag, path, options) in [
            ("root", Path::new("/"), ",readonly=on"),
            ("modules", &self.kernel.directory.join("lib/modules"), ",readonly=on"),
            ("control", control, ""),
        ] {
            qemu.arg("-fsdev").arg(format!(
                "local,id={tag},path={},security_model=none,multidevs=remap{options}",
                path.display()
            ));
            qemu.arg("-device").arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
        }
        if self.network {
            // No guest boots from the network, and the boot ROM is in a package of its own.
            qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        if self.clock == Clock::Instructions {
            qemu.args(["-icount", "shift=0"]);
        }
        let mut controllers = Vec::new();
        for (i, disk) in self.disks.iter().enumerate() {
            qemu.arg("-drive").arg(format!(
                "file={},format=raw,if=none,id=disk{i},cache=writethrough",
                disk.path.display()
            ));
            let (controller, device) = disk.devices(i);
            if let Some(controller) = controller.filter(|controller| !controllers.contains(controller)) {
                controllers.push(controller);
                qemu.arg("-device").arg(controller);
            }
            qemu.arg("-device").arg(device);
        }
        Ok(qemu)
    }
}

/// Waits for the process to end; true if it had to be killed.
fn wait(child: &mut Child, cut: impl Fn(&Child) -> bool) -> Result<bool> {
    loop {
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        if cut(child) {
            child.kill()?;
            child.wait()?;
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A file of this many bytes, all of them holes, for a guest's disk.
pub(crate) fn sparse_image(path: &Path, size: u64) -> Result<()> {
    if !size.is_multiple_of(512) {
        bail!("a disk is made of whole sectors");
    }
    File::create(path)?.set_len(size)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_no_processor_has_are_the_emulators() {
        let console = |flags| {
            format!("EFLAGS: 0e929646\nOops: double fault: 0000 [#1]\nRSP: 0018:ffffc9 EFLAGS: {flags}\n")
                + "RSP: 002b:00007f EFLAGS: 00000246 ORIG_RAX: 38\n"
        };
        assert!(is_the_emulators(&console("0e929646")));
        assert!(is_the_emulators(&console("19a25a02")));
        assert!(is_the_emulators(&console("0b44e497")));
        assert!(!is_the_emulators(&console("00010246")), "a fault of the kernel's own");
        assert!(!is_the_emulators(&console("0e9")), "cut off");
        assert!(!is_the_emulators("WARNING: CPU: 0\nRSP: 0018 EFLAGS: 0e929646\n"), "nothing died of it");
    }
}
