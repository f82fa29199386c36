//! Runs the real tools and keeps what they print.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
    process::{Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// The outcome of a tool.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command line.
    pub line: String,
    /// Exit status; 128 and the signal when one ended it.
    pub status: i32,
    /// Standard output and error, as one text.
    pub text: String,
}

impl Ran {
    /// The last line that says something: a person would take it for the message.
    #[must_use]
    pub fn message(&self) -> &str {
        self.text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim()
    }
}

/// A command from a line of words. Tools that would wait for udevd are told that there is none.
#[must_use]
pub fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("true"));
    command.args(words).env("DM_DISABLE_UDEV", "1").env("LVM_SUPPRESS_FD_WARNINGS", "1");
    command.env("LVM_SYSTEM_DIR", lvm_directory());
    command
}

/// LVM's configuration for a host without udevd.
fn lvm_directory() -> &'static str {
    const DIRECTORY: &str = "/run/fg-lvm";
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let text = "activation { udev_sync = 0 udev_rules = 0 }\n\
                    devices { obtain_device_list_from_udev = 0 external_device_info_source = \"none\" }\n";
        let _ = std::fs::create_dir_all(DIRECTORY);
        let _ = std::fs::write(format!("{DIRECTORY}/lvm.conf"), text);
    });
    DIRECTORY
}

/// Runs a line of words with this standard input.
///
/// # Errors
/// When it cannot be started.
pub fn run_with(line: &str, input: &str) -> Result<Ran> {
    run_command(command(line), line, input)
}

/// How long one tool may take; a tool that hangs is a finding of its own.
const TIME_LIMIT: Duration = Duration::from_mins(2);

/// Runs a command with this standard input, and kills it, with what it has started, when it takes too long.
/// The line names the command in messages.
///
/// # Errors
/// When it cannot be started.
pub fn run_command(mut command: Command, line: &str, input: &str) -> Result<Ran> {
    use std::{
        io::Write,
        os::unix::process::{CommandExt, ExitStatusExt},
    };

    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let group = rustix::process::Pid::from_child(&child);
    let (done, waiting) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if waiting.recv_timeout(TIME_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    });
    // A tool that was refused at once does not read its input.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    drop(done);
    // The process must have one thread again: some tests fork.
    let _ = watchdog.join();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let status = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    Ok(Ran { line: line.to_owned(), status, text })
}

/// Runs a line of words.
///
/// # Errors
/// When it cannot be started.
pub fn run(line: &str) -> Result<Ran> {
    run_with(line, "")
}

/// Runs a line of words that must succeed, and returns what it printed.
///
/// # Errors
/// When it does not succeed: with what it printed.
pub fn must(line: &str) -> Result<String> {
    must_with(line, "")
}

/// The same with this standard input.
///
/// # Errors
/// When it does not succeed: with what it printed.
pub fn must_with(line: &str, input: &str) -> Result<String> {
    let ran = run_with(line, input)?;
    if ran.status != 0 {
        bail!("{line} ended with {}:\n{}", ran.status, ran.text);
    }
    Ok(ran.text)
}

/// Loads a kernel module.
///
/// # Errors
/// When it cannot be loaded.
pub fn module(name: &str) -> Result<()> {
    // The module may be built into the kernel.
    if Path::new("/sys/module").join(name).exists() {
        return Ok(());
    }
    must(&format!("modprobe {name}")).map(drop)
}

/// Opens a device for writing as mkfs.ext4 does.
///
/// # Errors
/// When that is refused, as it must be.
pub fn open_as_formatter(device: &Path) -> io::Result<File> {
    thread::scope(|scope| {
        let opened = scope.spawn(|| {
            rustix::thread::set_name(c"mkfs.ext4")?;
            OpenOptions::new().write(true).open(device)
        });
        opened.join().unwrap_or_else(|_| Err(io::Error::other("the thread broke")))
    })
}
