//! The agent: one process, few tasks, each with one job and a channel between.
//!
//! Only the reconciler changes records and rules. A task that ends is an error that ends the process, for the service
//! manager to start it again; enforcement stays pinned in the kernel meanwhile.

mod container;
mod control;
pub mod detach;
mod formatter_end;
pub(crate) mod kernel_events;
mod mappings;
mod prober;
mod ready;
pub mod reconciler;
pub(crate) mod uevents;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use tokio::{
    signal::unix,
    sync::{mpsc, oneshot, watch},
    time,
};
use tracing::{info, warn};

use crate::{
    config::{Config, Mode},
    enforce::bpf::BpfEnforcer,
    record::{
        Seconds,
        sqlite::{Opened, SqliteStore},
    },
    volume::sysfs::Sysfs,
};
use reconciler::{Input, Reconciler, World};

/// Inputs that wait for the reconciler at most; who sends more waits.
const QUEUE: usize = 1024;

/// How long the records may take to be closed at a stop; a service manager waits longer (`DefaultTimeoutStopSec`, 90 s).
const STOPPING: Duration = Duration::from_secs(30);

/// The boot parameter that keeps the guard from starting: the way out of a host that it would not let come up.
const SWITCHED_OFF: &str = "format_guard=off";

fn is_switched_off(boot_parameters: &str) -> bool {
    boot_parameters.split_whitespace().any(|word| word == SWITCHED_OFF)
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> Seconds {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

/// How the agent was started.
#[derive(Clone, Debug)]
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// The file that it is from, to be read again.
    pub file: Option<PathBuf>,
    /// Audit, whatever the configuration says.
    pub audit: bool,
}

/// Runs the agent until it is told to stop. Enforcement goes on after it.
pub async fn run(start: Start) -> Result<()> {
    let config = start.config.clone();
    // The root of an agent's authority is its uid; the rest fails with a named error of its own.
    if !rustix::process::geteuid().is_root() {
        bail!("the agent must be run as root");
    }
    if is_switched_off(&fs::read_to_string("/proc/cmdline").unwrap_or_default()) {
        bail!("not started: this kernel was booted with {SWITCHED_OFF}");
    }
    info!(version = env!("CARGO_PKG_VERSION"), "format-guard starts");
    fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot make the run directory {}", config.run_dir.display()))?;
    let (store, opened) = SqliteStore::open(&config.state_dir, now())?;
    let mut degraded = Vec::new();
    if let Opened::SetAside(path) = &opened {
        let text = format!(
            "the database was damaged and is kept at {}; volumes are recorded again as they are probed, blank ones \
             are armed only by a permit",
            path.display()
        );
        warn!("{text}");
        degraded.push(text);
    }
    let mut enforcer =
        BpfEnforcer::load(&config.pin_dir, &config, start.audit || config.mode == Mode::Audit)?;
    let kernel_events = enforcer.events()?;
    // Before the devices are listed, so that none is missed between.
    let uevents = uevents::Socket::open().context("cannot listen to the kernel's uevents")?;

    let (inputs, receiver) = mpsc::channel(QUEUE);
    let (prober, answers) = prober::Prober::new(prober::OURSELVES, config.deadline());
    let (ends, watched) = formatter_end::Watcher::new();
    let world = World {
        sysfs: Sysfs::host(config.longhorn_dir()),
        boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("cannot read the boot id")?
            .trim()
            .to_owned(),
        mode: config.mode,
        forced_audit: start.audit,
        degraded,
        never_arm: matches!(opened, Opened::SetAside(_)),
        quarantine: config.quarantine.cast_signed(),
        protect: config.protect,
        resync_interval: config.interval(),
    };
    let mut reconciler = Reconciler::new(Box::new(store), enforcer, world, prober.clone(), ends);
    let told = reconciler.told();
    let running = tokio::task::spawn_blocking(move || -> Result<Reconciler<BpfEnforcer>> {
        // Rules come before refusals: nothing legitimate is refused for want of a rule.
        reconciler.start()?;
        info!("every device has its rule");
        let parts = reconciler.enforcer_mut().attach()?;
        for part in parts.iter().filter(|part| !part.attached) {
            info!(program = part.program, open = part.open, "this kernel has no place for a program");
        }
        reconciler.proven(parts);
        Ok(reconciler)
    });
    let mut reconciler = running.await.context("the start was cut off")??;
    let socket = control::listen(&config.socket())?;
    ready::notify();
    info!(socket = %config.socket().display(), "format-guard is in force");

    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(uevents::run(uevents, inputs.clone()));
    tasks.spawn(kernel_events::run(kernel_events, inputs.clone()));
    tasks.spawn(prober::run(answers, inputs.clone()));
    tasks.spawn(formatter_end::run(watched, inputs.clone()));
    let (interval, intervals) = watch::channel(config.resync_interval);
    tasks.spawn(ticks(intervals, inputs.clone()));
    tasks.spawn(reloads(start, interval, inputs.clone()));
    tasks.spawn(control::run(socket, control::Agent { inputs: inputs.clone(), prober, told }));
    tasks.spawn_blocking(move || reconciler.run(receiver));

    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    tokio::select! {
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => Err(error.context("a task of the agent ended; enforcement stays")),
            Some(Err(error)) => Err(anyhow::Error::new(error).context("a task of the agent broke; enforcement stays")),
            Some(Ok(Ok(()))) | None => bail!("a task of the agent ended without an error; enforcement stays"),
        },
        _ = terminate.recv() => stop(&inputs).await,
        _ = interrupt.recv() => stop(&inputs).await,
    }
}

/// Lets nobody begin what no agent would record. Enforcement stays.
async fn stop(inputs: &mpsc::Sender<Input>) -> Result<()> {
    let closed = async {
        let (done, closed) = oneshot::channel();
        inputs.send(Input::Stop(done)).await.context("the reconciler is gone")?;
        closed.await.context("the reconciler ended")
    };
    time::timeout(STOPPING, closed)
        .await
        .context("the records could not be closed in time; enforcement stays")?
}

async fn ticks(mut seconds: watch::Receiver<u64>, inputs: mpsc::Sender<Input>) -> Result<()> {
    loop {
        let pause = time::Duration::from_secs(*seconds.borrow_and_update());
        tokio::select! {
            () = time::sleep(pause) => inputs.send(Input::Tick).await.context("the reconciler is gone")?,
            changed = seconds.changed() => changed.context("nobody reads the configuration any more")?,
        }
    }
}

/// Reads the configuration again on SIGHUP: all of it takes effect, or none.
async fn reloads(start: Start, interval: watch::Sender<u64>, inputs: mpsc::Sender<Input>) -> Result<()> {
    let mut hangups = unix::signal(unix::SignalKind::hangup())?;
    while hangups.recv().await.is_some() {
        let read = Config::read(start.file.as_deref()).map_err(|error| error.to_string());
        let sound = read.and_then(|new| match start.config.needs_restart(&new) {
            Some(key) => Err(format!("{key} has changed, which needs a restart")),
            None => Ok(new),
        });
        match sound {
            Ok(new) => {
                info!("the configuration was read again");
                interval.send_replace(new.resync_interval);
                inputs.send(Input::Reloaded(Box::new(new))).await.context("the reconciler is gone")?;
            }
            Err(reason) => warn!("the configuration stays as it was: {reason}"),
        }
    }
    bail!("no signals any more")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_switched_off_by_its_own_word_alone() {
        assert!(is_switched_off("ro quiet format_guard=off\n"));
        assert!(!is_switched_off("ro format_guard=offline xformat_guard=off format_guard=on\n"));
    }
}
