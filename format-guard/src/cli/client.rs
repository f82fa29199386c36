//! Asks the agent: one HTTP request on its Unix socket.

use std::{os::unix::fs::FileTypeExt, path::Path, time::Duration};

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

/// Asks for something.
pub(super) fn get<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    query: &[(&str, String)],
) -> Result<T, CommandError> {
    let query: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    ask(socket, Method::GET, &uri, Bytes::new())
}

/// Asks for something to be done.
pub(super) fn post<B: Serialize, T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &B,
) -> Result<T, CommandError> {
    let body = serde_json::to_vec(body).map_err(anyhow::Error::from)?;
    ask(socket, Method::POST, path, Bytes::from(body))
}

fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    uri: &str,
    body: Bytes,
) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.map_err(|error| CommandError::NoAgent {
            socket: socket.display().to_string(),
            reason: error.to_string(),
        })?;
        let exchanged = timeout(PATIENCE, exchange(stream, method, uri, body)).await;
        let (success, bytes) = exchanged.context("the agent did not answer in time")??;
        if success {
            return Ok(serde_json::from_slice(&bytes)
                .context("the agent's answer cannot be read: is it of another version?")?);
        }
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => Err(failure.into()),
            Err(_) => Err(anyhow!("the agent answered: {}", String::from_utf8_lossy(&bytes)).into()),
        }
    })
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
    use std::os::unix::fs::MetadataExt;

    if !text.starts_with('/') && !text.starts_with("./") {
        return Ok(text.to_owned());
    }
    let metadata = std::fs::metadata(text).with_context(|| format!("cannot look at {text}"))?;
    let dev = if metadata.file_type().is_block_device() {
        Dev::from_user(metadata.rdev())
    } else if metadata.is_dir() {
        Dev::from_user(metadata.dev())
    } else {
        return Err(anyhow!("{text} is neither a block device nor a mount point").into());
    };
    Ok(format!("dev={dev}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_the_query() {
        assert_eq!(encode("part:dm:a b#2048"), "part%3Adm%3Aa%20b%232048");
    }
}
