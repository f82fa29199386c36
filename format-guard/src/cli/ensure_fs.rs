//! `format-guard ensure-fs`: formats a blank volume once, succeeds if the volume holds that type already, and
//! refuses everything else. It is safe to call again at any time: by several callers at once, and after a
//! call was killed half-way.
//!
//! It never looks at the device itself. The agent knows whether the volume is blank, and the kernel decides
//! who may format it, for this command as for every other.

use std::{
    env,
    ffi::OsString,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::{CommandError, client, format::duration, print_json};
use crate::api::{Events, Failure, FailureKind, Selector, Volume};

/// How long a lock that another holds is left alone before it is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// How long one question for a change may wait, in seconds.
const CHANGE_WAIT: u64 = 5;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The block device
    device: PathBuf,
    /// File system: ext4, xfs, btrfs, or TYPE of any mkfs.TYPE
    #[arg(long = "type", value_name = "TYPE", value_parser = kind)]
    kind: String,
    /// How long to wait until the volume is verified, as 90s, 15m, 2h or 1d
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = duration)]
    wait: u64,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
    /// Options for mkfs.TYPE, after --
    #[arg(last = true, value_name = "MKFS ARGS")]
    options: Vec<OsString>,
}

/// The result of ensure-fs.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Outcome {
    /// The volume.
    volume: String,
    /// libblkid's name of what it holds.
    holds: String,
    /// Its UUID.
    uuid: Option<String>,
    /// This call formatted it; else it held that type already.
    formatted: bool,
}

/// A name that can be part of a program's.
fn kind(text: &str) -> Result<String, anyhow::Error> {
    let sound = !text.is_empty()
        && text.len() <= 32
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !text.starts_with(['.', '-']);
    if sound { Ok(text.to_owned()) } else { Err(anyhow!("'{text}' is no file system type")) }
}

/// libblkid's name of what mkfs.TYPE makes.
fn probed_name(kind: &str) -> &str {
    match kind {
        "fat" | "msdos" => "vfat",
        other => other,
    }
}

fn refused(text: String) -> CommandError {
    Failure::new(FailureKind::Refused, text).into()
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let deadline = Instant::now() + Duration::from_secs(arguments.wait);
    let selector = client::device_selector(&arguments.device)?;
    let program = program(&arguments.kind)?;
    let _lock = lock(&arguments.device, deadline)?;
    let mut formatted = false;
    let mut probed = false;
    loop {
        let newest = newest(socket)?;
        // The state as a probe finds it now, and not as the last probe found it.
        let asked: Result<Volume, CommandError> = if probed {
            client::get(socket, "/v1/volume", &[("volume", selector.clone())])
        } else {
            client::post(socket, "/v1/volume/probe", &Selector { volume: selector.clone() })
        };
        let volume = match asked {
            Ok(volume) => volume,
            // The device may have appeared a moment ago.
            Err(CommandError::Agent(failure))
                if failure.kind == FailureKind::NotFound && Instant::now() < deadline =>
            {
                wait(socket, newest)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        probed = true;
        match volume.state.as_str() {
            "formatted" => return report(arguments, &held(volume, &arguments.kind)?, formatted),
            "blank" | "permitted" if !formatted => {
                format(&program, arguments, volume.state == "permitted")?;
                formatted = true;
            }
            "exempt" => {
                return Err(refused(format!(
                    "{} is exempt: what it holds is not known; run {} yourself",
                    volume.id,
                    program.display()
                )));
            }
            state if Instant::now() >= deadline => {
                return Err(refused(format!(
                    "{} is still {state} after {} s ({}): it is not formatted",
                    volume.id, arguments.wait, volume.cause
                )));
            }
            _ => wait(socket, newest)?,
        }
    }
}

/// The volume, if it holds what is wanted.
fn held(volume: Volume, kind: &str) -> Result<Volume, CommandError> {
    let holds = volume.content.as_ref().map_or("a format of unknown type", |content| content.name());
    if let Some(discrepancy) = &volume.discrepancy {
        return Err(refused(format!(
            "{} is recorded as {holds}, but {discrepancy}: it is not formatted; see to its data path, or permit a \
             re-format with format-guard volume permit {} --reason TEXT",
            volume.id, volume.id
        )));
    }
    if holds != probed_name(kind) {
        return Err(refused(format!(
            "{} holds {holds}, not {kind}; to allow a re-format: format-guard volume permit {} --reason TEXT",
            volume.id, volume.id
        )));
    }
    Ok(volume)
}

fn report(arguments: &Arguments, volume: &Volume, formatted: bool) -> Result<(), CommandError> {
    let content = volume.content.as_ref();
    let outcome = Outcome {
        volume: volume.id.clone(),
        holds: content.map_or_else(String::new, |content| content.name().to_owned()),
        uuid: content.and_then(|content| content.uuid.clone()),
        formatted,
    };
    if arguments.json {
        return print_json(&outcome);
    }
    let did = if formatted { "formatted" } else { "holds it already" };
    println!("{}: {} ({did})", arguments.device.display(), outcome.holds);
    Ok(())
}

fn program(kind: &str) -> Result<PathBuf, CommandError> {
    let name = format!("mkfs.{kind}");
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let found = env::split_paths(&path).map(|directory| directory.join(&name)).find(|path| path.is_file());
    found.ok_or_else(|| anyhow!("there is no {name} on this host: install the file system's tools").into())
}

/// One call at a time for each device, by the lock that systemd and udev take, too
/// (<https://systemd.io/BLOCK_DEVICE_LOCKING>). mkfs does not inherit the lock: if this call is killed, the
/// guard alone keeps the next call out until mkfs has ended.
fn lock(node: &Path, deadline: Instant) -> Result<File, CommandError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(node)
        .with_context(|| format!("cannot open {}", node.display()))?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(anyhow!("{} is locked by another program (flock)", node.display()).into());
            }
            Err(error) => return Err(anyhow!("cannot lock {}: {error}", node.display()).into()),
        }
    }
}

/// Number of the newest line of the history.
fn newest(socket: &Path) -> Result<i64, CommandError> {
    let events: Events = client::get(socket, "/v1/events", &[("limit", "1".to_owned())])?;
    Ok(events.events.last().map_or(0, |event| event.id))
}

/// Returns when the volume has changed, or after some seconds.
fn wait(socket: &Path, after: i64) -> Result<(), CommandError> {
    let query = [("after", after.to_string()), ("limit", "1".to_owned()), ("wait", CHANGE_WAIT.to_string())];
    client::get::<Events>(socket, "/v1/events", &query).map(drop)
}

fn format(program: &Path, arguments: &Arguments, permitted: bool) -> Result<(), CommandError> {
    let mut mkfs = Command::new(program);
    // The tool must not ask about an old format under a permit; without a permit the tool's own check stays
    // in force.
    if permitted {
        match arguments.kind.as_str() {
            "ext2" | "ext3" | "ext4" => drop(mkfs.arg("-F")),
            "xfs" | "btrfs" | "f2fs" => drop(mkfs.arg("-f")),
            _ => {}
        }
    }
    mkfs.args(&arguments.options).arg(&arguments.device).stdin(Stdio::null());
    // The tool's output must not get between the lines of JSON.
    mkfs.stdout(std::io::stderr());
    let status = mkfs.status().with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        return Err(anyhow!(
            "{} failed ({status}): nothing is recorded as formatted by it; the call can be repeated",
            program.display()
        )
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_a_part_of_a_programs_name_and_nothing_else() {
        for sound in ["ext4", "xfs", "fat", "ext4dev", "reiser4", "a.b-c_d"] {
            assert!(kind(sound).is_ok(), "{sound}");
        }
        for wrong in ["", "../../bin/sh", "a/b", "-x", ".hidden", "ext4 -F", "x\n"] {
            assert!(kind(wrong).is_err(), "{wrong}");
        }
    }
}
