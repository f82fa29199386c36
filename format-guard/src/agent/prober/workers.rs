//! Processes that probe. Some are there before they are needed: to start one takes longer than to read a
//! device.
//!
//! One that has parsed what a device holds is not asked again: hostile content must say nothing of another
//! device.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::volume::{
    copies::MAX_BYTES,
    probe::{Answered, Request},
};

/// Processes that are kept for the next device at most.
const KEPT: usize = 4;
/// Longest answer that is read, in bytes: of what is copied each takes two, and compression may not make it
/// less.
const MAX_ANSWER: u64 = (1 << 20) + 3 * MAX_BYTES;

/// One process.
pub(super) struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// It has parsed what a device holds.
    spent: bool,
    /// It has answered before.
    proven: bool,
}

impl Worker {
    fn start(program: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg("probe").env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let (Some(requests), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Self { child, requests, answers: BufReader::new(output), spent: false, proven: false })
    }

    /// Whether it may have ended since its last answer: another one may be asked in its place.
    pub(super) const fn may_have_ended(&self) -> bool {
        self.proven && !self.spent
    }

    /// Has a device probed.
    pub(super) async fn ask(&mut self, request: &Request) -> Result<Answered> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.requests.write_all(&line).await?;
        let mut line = self.line().await?;
        if line.trim_end().is_empty() {
            self.spent = true;
            line = self.line().await?;
        }
        let answer = serde_json::from_str(&line).context("its answer cannot be read")?;
        self.proven = true;
        Ok(answer)
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        (&mut self.answers).take(MAX_ANSWER).read_line(&mut line).await?;
        if !line.ends_with('\n') {
            let status = self.child.wait().await?;
            bail!("it ended with {status}");
        }
        Ok(line)
    }

    /// Kills the worker; one that hangs in the kernel dies when it returns from there.
    pub(super) fn kill(mut self) -> Child {
        let _ = self.child.start_kill();
        self.child
    }
}

/// Those that wait for a device.
#[derive(Clone)]
pub(super) struct Workers {
    program: PathBuf,
    idle: Arc<Mutex<Vec<Worker>>>,
}

impl Workers {
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, idle: Arc::default() }
    }

    /// One that waits, or a new one.
    pub(super) fn take(&self) -> io::Result<Worker> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| Worker::start(&self.program), Ok)
    }

    /// A new one.
    pub(super) fn start(&self) -> io::Result<Worker> {
        Worker::start(&self.program)
    }

    /// Keeps one for the next device, or another one in its place.
    pub(super) fn give_back(&self, worker: Worker) {
        let worker = if worker.spent { None } else { Some(worker) };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= KEPT {
            return;
        }
        if let Some(worker) = worker {
            idle.push(worker);
            return;
        }
        let enough = !idle.is_empty();
        drop(idle);
        if !enough {
            self.prepare();
        }
    }

    /// Has one wait for the next device. Where it cannot be started, whoever needs it meets the error.
    pub(super) fn prepare(&self) {
        if let Ok(worker) = Worker::start(&self.program) {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        }
    }
}
