//! Asks the agent: one HTTP request on its Unix socket.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    time::Duration,
};

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::CommandError;
use crate::{api::Failure, volume::Dev};

/// A probe that an operator waits for may take as long as its deadline.
const PATIENCE: Duration = Duration::from_mins(1);
/// Largest answer that is read, in bytes: a hundred thousand volumes.
const MAX_ANSWER: usize = 256 << 20;

/// Sends a request that changes nothing.
pub(super) fn get<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    query: &[(&str, String)],
) -> Result<T, CommandError> {
    get_within(socket, path, query, PATIENCE)
}

/// The same, with a deadline for the answer.
pub(super) fn get_within<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    query: &[(&str, String)],
    patience: Duration,
) -> Result<T, CommandError> {
    let query: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    ask(socket, Method::GET, &uri, Bytes::new(), patience)
}

/// Sends a request that changes something.
pub(super) fn post<B: Serialize, T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &B,
) -> Result<T, CommandError> {
    let body = serde_json::to_vec(body).map_err(anyhow::Error::from)?;
    ask(socket, Method::POST, path, Bytes::from(body), PATIENCE)
}

fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    uri: &str,
    body: Bytes,
    patience: Duration,
) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => CommandError::NotRoot,
            kind => CommandError::NoAgent {
                socket: socket.display().to_string(),
                reason: if kind == io::ErrorKind::NotFound {
                    "no such socket".to_owned()
                } else {
                    error.to_string()
                },
            },
        })?;
        let exchanged = timeout(patience, exchange(stream, method, uri, body)).await;
        let (success, bytes) = exchanged.map_err(|_| CommandError::NoAnswer)??;
        if success {
            return serde_json::from_slice(&bytes).map_err(|error| other_version(&error.to_string()));
        }
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => Err(failure.into()),
            Err(error) => Err(other_version(&error.to_string())),
        }
    })
}

fn other_version(finding: &str) -> CommandError {
    anyhow!(
        "the agent's answer cannot be read by this command (version {}), so it is of another version: systemctl restart \
         format-guard ({finding})",
        env!("CARGO_PKG_VERSION")
    )
    .into()
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    uri: &str,
    body: Bytes,
) -> anyhow::Result<(bool, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "format-guard")
        .header("content-type", "application/json")
        .body(Full::new(body))?;
    let response = sender.send_request(request).await?;
    let success = response.status().is_success();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| anyhow!("the agent's answer broke off: {error}"))?;
    Ok((success, body.to_bytes()))
}

/// Percent-encodes everything but unreserved characters (RFC 3986, section 2.3).
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The selector for what a person typed: a device node, a mount point, or (part of) an id.
pub(super) fn selector(text: &str) -> Result<String, CommandError> {
    if !text.starts_with('/') && !text.starts_with("./") {
        return Ok(text.to_owned());
    }
    let path = Path::new(text);
    let metadata = metadata(path)?;
    if metadata.file_type().is_block_device() {
        return device_selector(path);
    }
    let path = fs::canonicalize(path).with_context(|| format!("cannot look at {text}"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    match mounted_at(&mounts, &path) {
        Some(Mounted::Device(dev)) => Ok(format!("dev={dev}")),
        Some(Mounted::Source(source)) => device_selector(Path::new(&source)),
        // The text is nearly the id of a volume: a message about the file system around it would mislead.
        None if metadata.is_dir() => {
            Err(anyhow!("nothing is mounted at {text}: name a mount point, device or id").into())
        }
        None => Err(anyhow!("{text} is neither a block device nor a mount point").into()),
    }
}

/// The selector for a block device node.
pub(super) fn device_selector(path: &Path) -> Result<String, CommandError> {
    let metadata = metadata(path)?;
    if !metadata.file_type().is_block_device() {
        return Err(anyhow!("{} is not a block device", path.display()).into());
    }
    Ok(format!("dev={}", Dev::from_user(metadata.rdev())))
}

fn metadata(path: &Path) -> Result<fs::Metadata, CommandError> {
    fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow!("there is no {}: see format-guard volume list", path.display()).into()
        }
        _ => anyhow!("cannot look at {}: {error}", path.display()).into(),
    })
}

/// What is mounted at a path.
#[derive(Debug, PartialEq, Eq)]
enum Mounted {
    Device(Dev),
    /// The device. btrfs spans several devices and has a number of its own; here it is the device that was
    /// named.
    Source(String),
}

/// The file system that is mounted last at `path`, by `proc_pid_mountinfo(5)`.
fn mounted_at(mounts: &str, path: &Path) -> Option<Mounted> {
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let dev = Dev::parse(fields.nth(2)?)?;
        if Path::new(&unescaped(fields.nth(1)?)) != path {
            return None;
        }
        if dev.major != 0 {
            return Some(Mounted::Device(dev));
        }
        let source = unescaped(line.split(" - ").nth(1)?.split(' ').nth(1)?);
        source.starts_with('/').then_some(Mounted::Source(source))
    })
}

/// The file writes spaces, tabs, newlines and backslashes as octal numbers.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_the_query() {
        assert_eq!(encode("part:dm:a b#2048"), "part%3Adm%3Aa%20b%232048");
    }

    #[test]
    fn a_mount_point_is_what_is_mounted_there_last_and_nothing_else() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      30 22 7:0 / /mnt/a\\040b rw shared:1 - xfs /dev/loop0 rw\n\
                      31 22 7:1 / /mnt/a\\040b rw - ext4 /dev/loop1 rw\n\
                      32 22 0:50 /sub /srv rw - btrfs /dev/sdb rw\n\
                      33 22 0:51 / /run rw - tmpfs tmpfs rw\n";
        let at = |path| mounted_at(mounts, Path::new(path));
        assert_eq!(at("/mnt/a b"), Some(Mounted::Device(Dev { major: 7, minor: 1 })));
        assert_eq!(at("/srv"), Some(Mounted::Source("/dev/sdb".into())));
        assert_eq!(at("/run"), None);
        assert_eq!(at("/mnt"), None, "not the root file system around it");
    }
}
