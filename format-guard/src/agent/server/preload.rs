//! Answers the `LD_PRELOAD` library: one question for each connection, each with a deadline.
//!
//! Only root is answered: what is said here makes records and rules. Who asks, the kernel says, not the one
//! who asks.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use format_guard_common::{
    preload_request::{Answer, PreloadRequest},
    program,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::{
    agent::{container, message::Input},
    enforce::{
        preload::{Caller, Questions},
        report::Report,
    },
    process,
};

/// How long one who asks may take to say what.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections that are served at a time.
const AT_A_TIME: usize = 64;

/// Everybody may connect, so that one who is not root learns at once that he gets no answer.
pub(in crate::agent) const MODE: u32 = 0o666;

pub(in crate::agent) async fn run(
    listener: UnixListener,
    questions: Questions,
    inputs: mpsc::Sender<Input>,
) -> Result<()> {
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.context("the semaphore is closed")?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The one who asked has gone, or this process has no descriptors for a moment.
            Err(error) => {
                tracing::debug!("a question of the library was lost: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (questions, inputs) = (questions.clone(), inputs.clone());
        tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(PATIENCE, answer(stream, &questions, &inputs)).await {
                tracing::debug!("the agent did not answer a question of the library: {error:#}");
            }
            drop(place);
        });
    }
}

async fn answer(mut stream: UnixStream, questions: &Questions, inputs: &mpsc::Sender<Input>) -> Result<()> {
    let peer = stream.peer_cred().context("the kernel does not name the process that asks")?;
    if peer.uid() != 0 {
        anyhow::bail!("user {} is not root", peer.uid());
    }
    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let caller = caller(pid.context("the process that asks is in no pid namespace of the agent")?)?;
    let mut bytes = [0; size_of::<PreloadRequest>()];
    stream.read_exact(&mut bytes).await?;
    let (ask, question) = PreloadRequest::read(&bytes).context("the library is of another version")?;
    let (answer, told) = questions.answer(ask, &question, &caller);
    // What follows from it may take its time; the order stays, as one process asks one thing after another.
    if let Some(report) = told.as_ref().and_then(Report::decode) {
        inputs.send(Input::Kernel(report)).await.context("the reconciler is gone")?;
    }
    let answer = if answer { Answer::Yes } else { Answer::No };
    Ok(stream.write_all(&[answer as u8]).await?)
}

fn caller(pid: u32) -> Result<Caller> {
    let process = process::identity(pid).context("the process that asked has ended")?;
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let comm = program::comm(String::from_utf8_lossy(&name).trim_end_matches('\n'));
    Ok(Caller { process, comm, cgroup: container::group_of(pid).unwrap_or(0) })
}
