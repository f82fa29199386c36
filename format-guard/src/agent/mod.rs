//! The agent: one process, few tasks, each with one job and a channel between.
//!
//! Only the reconciler changes records and rules. A task that ends is an error that ends the process, for the
//! service manager to start it again; enforcement stays pinned in the kernel meanwhile.

pub mod claims;
mod closing;
mod container;
pub mod desired_claims;
pub mod detach;
mod holding;
pub(crate) mod kernel_events;
mod kernel_lines;
mod kernel_log;
mod kubernetes;
#[cfg(feature = "kubernetes")]
mod kubernetes_events;
mod mappings;
pub mod message;
pub(crate) mod metrics;
mod prober;
mod process_exit;
mod queue;
pub mod reconciler;
mod server;
mod service_manager;
mod tiers;
pub(crate) mod uevents;

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use tokio::{
    runtime::Handle,
    signal::unix,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time,
};
use tracing::{info, warn};

use crate::{
    config::Config,
    enforce::{bpf::pins, preload, since_boot},
    process::OURSELVES,
    record::{Now, Seconds, history::HistoryEvent, shared::store::Connect, sqlite::SqliteStore},
    tier::Tier,
    volume::device::Devices,
};
use desired_claims::DesiredClaims;
use kernel_log::KernelLog;
use message::Input;
use metrics::Metrics;
use reconciler::{Host, Reconciler, Settings};
use server::{control, metrics::Scraped};
use tiers::{EventSource, TierSelector};

/// How long the records may take to be closed at a stop; a service manager waits longer
/// (`DefaultTimeoutStopSec`, 90 s).
const STOPPING: Duration = Duration::from_secs(30);

/// How long claims may take to be given up at a stop: those that are not end with their lease.
const GIVING_UP: Duration = Duration::from_secs(3);

/// The boot parameter that keeps the guard from starting: the way out of a host that it would not let come
/// up.
const SWITCHED_OFF: &str = "format_guard=off";

fn is_switched_off(boot_parameters: &str) -> bool {
    boot_parameters.split_whitespace().any(|word| word == SWITCHED_OFF)
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> Seconds {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

/// Both clocks.
pub(crate) fn clocks() -> Now {
    Now { wall: now(), boot: since_boot().as_secs().cast_signed() }
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

/// What the configuration says of the reconciler's work.
fn settings(config: &Config, forced_audit: bool) -> Settings {
    Settings {
        mode: config.mode,
        forced_audit,
        quarantine: config.quarantine.cast_signed(),
        raw_content: config.raw_content,
        protect: config.protect,
        first_format_wait: config.first_format_wait(),
        resync_interval: config.interval(),
        forget_after: config.forget_after(),
        copied: config.copied(),
        strict: config.strict.clone(),
        policies: config.policy.clone(),
        trusted: config.trusted.clone(),
    }
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
    // Pins do not outlive a boot: whoever made them had records.
    let another = pins::are_there(&config.pin_dir)
        .with_context(|| format!("cannot look for pins at {}", config.pin_dir.display()))?;
    let (mut store, _) = SqliteStore::open_after(&config.state_dir, now(), another)?;
    store.keep_lines(config.history_lines);
    info!("the agent has read the records");
    let mut selector = TierSelector::new(&start)?;
    let (enforcer, events) = selector.next()?;
    info!("the tier is ready to be put in force");
    // Before the devices are listed, so that none is missed between.
    let uevents = uevents::Socket::open().context("cannot listen to the kernel's uevents")?;

    // Before anything is in force: what is misconfigured is told now.
    let metrics = Metrics::default();
    let scraper = config.metrics_listen().map_err(anyhow::Error::msg)?;
    let (senders, received) = queue::channels();
    let (prober, answers) = prober::Prober::new(OURSELVES, config.deadline(), metrics.clone());
    prober.prepare();
    let (ends, watched) = process_exit::Watcher::new();
    let closing = closing::Closing::new().context("cannot watch for closes of devices")?;
    let mut tasks = JoinSet::new();
    let settings = settings(&config, start.audit);
    let host = Host {
        devices: Devices::host(config.longhorn_dir()),
        boot: boot_id()?,
        kubelet_dir: config.kubelet_dir(),
        closing: closing.clone(),
        kernel_log: config.kernel_log.then(KernelLog::default),
        cluster: cluster(&config, &metrics, &mut tasks),
    };
    let mut reconciler =
        Reconciler::new(Box::new(store), enforcer, settings, host, prober.clone(), ends, metrics.clone());
    let desired_claims = share(&config, &mut reconciler, &senders.urgent, &mut tasks);
    let history_seq = reconciler.history_seq();
    let reconciler = tiers::blocking(move || {
        // Rules come before refusals: nothing legitimate is refused for want of a rule.
        reconciler.start().map(|()| reconciler)
    })
    .await??;
    info!("every device has its rule");
    let (mut reconciler, events) =
        selector.put_in_force(reconciler, events, &mut tasks, &senders.urgent).await?;
    let tier = reconciler.enforcer_mut().tier();
    if tier != Tier::Preload {
        preload::publish_that_all_passes(&config.run_dir)?;
    }
    let socket = control::listen(&config.socket(), control::MODE)?;
    service_manager::ready();
    info!(socket = %config.socket().display(), tier = tier.name(), "format-guard is in force");

    tasks.spawn(uevents::run(uevents, senders.others.clone()));
    if let EventSource::Kernel(ring, lines) = events {
        tasks.spawn(kernel_events::run(ring, senders.urgent.clone()));
        lines.map(|lines| tasks.spawn(kernel_lines::run(*lines)));
    }
    tasks.spawn(prober::run(answers, senders.others.clone()));
    tasks.spawn(process_exit::run(watched, senders.urgent.clone()));
    tasks.spawn(closing::run(closing, senders.others.clone()));
    let (interval, intervals) = watch::channel(config.resync_interval);
    tasks.spawn(ticks(intervals, senders.others.clone()));
    tasks.spawn(reloads(start, interval, senders.others.clone()));
    if let Some(address) = scraper {
        let answers = Scraped { inputs: senders.urgent.clone(), metrics: metrics.clone() };
        tasks.spawn(server::metrics::run(address, answers));
    }
    tasks.spawn(service_manager::keep_alive(senders.urgent.clone()));
    tasks.spawn(control::run(
        socket,
        control::Agent { inputs: senders.urgent.clone(), metrics, prober, history_seq },
    ));
    let runtime = Handle::current();
    tasks.spawn_blocking(move || reconciler.run(received, &runtime));

    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    tokio::select! {
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => Err(error.context("a task of the agent ended; enforcement stays")),
            Some(Err(error)) => Err(anyhow::Error::new(error).context("a task of the agent broke; enforcement stays")),
            Some(Ok(Ok(()))) | None => bail!("a task of the agent ended without an error; enforcement stays"),
        },
        _ = terminate.recv() => stop(&senders.urgent, desired_claims).await,
        _ = interrupt.recv() => stop(&senders.urgent, desired_claims).await,
    }
}

/// Where refusals are put that a cluster is told, if it is told any.
#[cfg_attr(not(feature = "kubernetes"), expect(unused_variables, reason = "no cluster is told of anything"))]
fn cluster(
    config: &Config,
    metrics: &Metrics,
    tasks: &mut JoinSet<Result<()>>,
) -> Option<mpsc::Sender<HistoryEvent>> {
    #[cfg(feature = "kubernetes")]
    if config.kubernetes.events {
        let (sender, refusals) = mpsc::channel(kubernetes_events::WAITING);
        tasks.spawn(kubernetes_events::Cluster::new(refusals, metrics.clone()).run());
        return Some(sender);
    }
    None
}

/// Has the reconciler share its records with other nodes, if it is to.
#[cfg_attr(
    not(any(feature = "etcd", feature = "kubernetes")),
    expect(unused_variables, reason = "nothing is shared")
)]
fn share(
    config: &Config,
    reconciler: &mut Reconciler,
    inputs: &mpsc::Sender<Input>,
    tasks: &mut JoinSet<Result<()>>,
) -> Option<DesiredClaims> {
    #[cfg(feature = "kubernetes")]
    if config.store.kubernetes {
        let api = crate::record::shared::kubernetes::Kubernetes::new(config.store.clone(), node_name());
        return Some(share_through(api, config, reconciler, inputs, tasks));
    }
    #[cfg(feature = "etcd")]
    if !config.store.endpoints.is_empty() {
        let etcd = crate::record::shared::etcd::Etcd::new(config.store.clone());
        return Some(share_through(etcd, config, reconciler, inputs, tasks));
    }
    None
}

#[cfg(any(feature = "etcd", feature = "kubernetes"))]
fn share_through<C: Connect + Sync>(
    store: C,
    config: &Config,
    reconciler: &mut Reconciler,
    inputs: &mpsc::Sender<Input>,
    tasks: &mut JoinSet<Result<()>>,
) -> DesiredClaims {
    let (lease, seconds) = (reconciler.lease(), config.store.lease);
    let (claim_worker, desired_claims) =
        claims::ClaimWorker::new(store, node_name(), seconds, lease, inputs.clone());
    reconciler.share(desired_claims.clone(), config.store.required);
    tasks.spawn(claim_worker.run());
    desired_claims
}

/// This node's name among others: the pod's specification has it, by the downward API.
#[cfg_attr(
    not(any(feature = "etcd", feature = "kubernetes")),
    expect(dead_code, reason = "no other node is told of anything")
)]
pub(crate) fn node_name() -> String {
    env::var("NODE_NAME")
        .unwrap_or_else(|_| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// What names this boot of the host.
fn boot_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot id")?;
    Ok(id.trim().to_owned())
}

/// Lets nobody begin what no agent would record. Enforcement stays.
async fn stop(inputs: &mpsc::Sender<Input>, desired_claims: Option<DesiredClaims>) -> Result<()> {
    let closed = async {
        let (done, closed) = oneshot::channel();
        inputs.send(Input::Stop(done)).await.context("the reconciler is gone")?;
        closed.await.context("the reconciler ended")
    };
    time::timeout(STOPPING, closed)
        .await
        .context("the records could not be closed in time; enforcement stays")??;
    if let Some(desired_claims) = desired_claims {
        desired_claims.released(GIVING_UP).await;
    }
    Ok(())
}

async fn ticks(mut seconds: watch::Receiver<u64>, inputs: mpsc::Sender<Input>) -> Result<()> {
    loop {
        let pause = time::Duration::from_secs(*seconds.borrow_and_update());
        tokio::select! {
            () = time::sleep(pause) => inputs.send(Input::Tick).await.context("the reconciler is gone")?,
            changed = seconds.changed() => changed.context("the configuration is no longer read")?,
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
    bail!("no more signals can be received")
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
