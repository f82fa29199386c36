//! `kubectl format-guard`: an operator's commands for the volumes of a cluster. The same program, by the name
//! `kubectl-format_guard`.
//!
//! It asks no agent and changes no volume: it writes into the object of a volume, with the rights of its
//! caller, and agents read the object.

use std::{ffi::OsStr, io, io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use k8s_openapi::{
    api::{
        authentication::v1::SelfSubjectReview,
        core::v1::{PersistentVolume, PersistentVolumeClaim},
    },
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::KubeConfigOptions,
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{consent::typed_yes, format::duration};
use crate::{
    record::{
        Content,
        shared::{
            Shared,
            kubernetes::object::{self, GuardedVolume, PERSISTENT_VOLUME_LABEL, Spec, SpecPermit, Status},
        },
    },
    volume::VolumeId,
};

/// The name by which kubectl calls it (kubectl's handling of plugins, 1.12 and later: a dash in a command is
/// an underscore in its file).
const NAME: &str = "kubectl-format_guard";
/// The longest permit, in seconds; the schema of the object has the same limit.
const MAX_PERMIT: u64 = 7 * 24 * 3600;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// The time between two looks whether a node has taken a permit up.
const LOOK: Duration = Duration::from_millis(500);

/// Whether this program was called as kubectl's plugin.
#[must_use]
pub fn is_called() -> bool {
    let called = std::env::args_os().next();
    called.as_deref().map(std::path::Path::new).and_then(std::path::Path::file_name) == Some(OsStr::new(NAME))
}

/// Commands for the volumes that the nodes of a cluster share.
#[derive(Debug, Parser)]
#[command(name = "kubectl format-guard", version, max_term_width = 80)]
pub struct Arguments {
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of a claim [default: the context's]
    #[arg(long, short, global = true, value_name = "NAME")]
    namespace: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Permit one re-format of a volume, on whichever node it is attached to
    #[command(
        after_help = "Examples:\n  kubectl format-guard permit pvc/orders-db-0 -n shop --reason \"restored from backup\"\n  \
                      kubectl format-guard permit iscsi:iqn.2020-01.org:t,lun=1 --reason \"new owner\" --for 1h"
    )]
    Permit {
        /// pvc/NAME, pv/NAME, gvol/NAME, or a volume's id
        volume: String,
        /// Why; kept with the volume's history
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// How long, as 90s, 15m, 2h or 1d
        #[arg(long = "for", default_value = "15m", value_name = "TIME", value_parser = duration)]
        seconds: u64,
        /// How long to wait until a node takes the permit up; 0s does not wait
        #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
        wait: u64,
        /// Do not ask for a typed yes; without a terminal nobody is asked
        #[arg(long)]
        yes: bool,
    },
}

/// Runs the command; the process's exit code.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.context("no runtime").and_then(|runtime| runtime.block_on(asked(arguments)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubectl format-guard: {error:#}");
            ExitCode::from(super::exit::FAILED)
        }
    }
}

async fn asked(arguments: Arguments) -> Result<()> {
    let options = KubeConfigOptions { context: arguments.context, ..KubeConfigOptions::default() };
    let mut config = match &options.context {
        Some(_) => Config::from_kubeconfig(&options).await.context("KUBECONFIG names no cluster")?,
        None => Config::infer().await.context("KUBECONFIG names no cluster")?,
    };
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    config.write_timeout = Some(PATIENCE);
    let namespace = arguments.namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("cannot make a client for the cluster's API")?;
    let Command::Permit { volume, reason, seconds, wait, yes } = arguments.command;
    ensure!(
        (1..=MAX_PERMIT).contains(&seconds),
        "a permit lasts 1 to {MAX_PERMIT} seconds (a week), not {seconds}"
    );
    ensure!(!reason.trim().is_empty(), "--reason is empty: say why");
    let found = find(&client, &volume, &namespace).await?;
    let spec = Spec::deserialize(&found.spec).context("the volume's object has no id")?;
    if !yes && io::stdin().is_terminal() {
        eprintln!("{}: {}", spec.id, described(&found));
        eprint!("Whoever formats it next DESTROYS WHAT IT HOLDS. Type yes to go on: ");
        ensure!(typed_yes()?, "nothing is done: yes was not typed");
    }
    let permit = permit(&client, &found, reason, seconds).await?;
    println!("{}: one re-format is permitted until {}", spec.id, permit.until);
    if wait > 0 {
        println!("{}", taken_up(&client, &found, &permit, wait).await?);
    }
    Ok(())
}

/// The object of the volume that was named.
async fn find(client: &Client, volume: &str, namespace: &str) -> Result<GuardedVolume> {
    let all: Api<GuardedVolume> = Api::all(client.clone());
    let persistent_volume = match volume.split_once('/') {
        Some(("pvc" | "persistentvolumeclaim" | "persistentvolumeclaims", name)) => {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            let claim = claims.get(name).await.with_context(|| format!("the claim {namespace}/{name}"))?;
            claim
                .spec
                .and_then(|spec| spec.volume_name)
                .with_context(|| format!("the claim {namespace}/{name} is bound to no PersistentVolume"))?
        }
        Some(("pv" | "persistentvolume" | "persistentvolumes", name)) => {
            let volumes: Api<PersistentVolume> = Api::all(client.clone());
            volumes.get(name).await.with_context(|| format!("the PersistentVolume {name}"))?;
            name.to_owned()
        }
        Some(("gvol" | "guardedvolume" | "guardedvolumes", name)) => {
            return all.get(name).await.with_context(|| format!("the GuardedVolume {name}"));
        }
        _ => {
            let name = object::name(&VolumeId::from(volume));
            return all.get(&name).await.with_context(|| {
                format!("no node has reported {volume}; kubectl get guardedvolumes lists all volumes")
            });
        }
    };
    let named = ListParams::default().labels(&format!("{PERSISTENT_VOLUME_LABEL}={persistent_volume}"));
    let mut found = all.list(&named).await.context("GuardedVolumes cannot be listed")?.items;
    match (found.pop(), found.len()) {
        (Some(volume), 0) => Ok(volume),
        (None, _) => bail!(
            "the PersistentVolume {persistent_volume} has no GuardedVolume: no node has reported the volume, or its id does not have that \
             name. kubectl get guardedvolumes lists all; name the volume by its id, or as gvol/NAME"
        ),
        (Some(_), more) => bail!(
            "the PersistentVolume {persistent_volume} has {} GuardedVolumes: name one of them as gvol/NAME (kubectl get guardedvolumes \
             -l {PERSISTENT_VOLUME_LABEL}={persistent_volume})",
            more + 1
        ),
    }
}

/// What an object says of its volume, for people.
fn described(volume: &GuardedVolume) -> String {
    let status = Status::deserialize(&volume.status).unwrap_or_default();
    let bytes = status.record.and_then(|record| serde_json::to_vec(&record).ok());
    let record = bytes.and_then(|bytes| Shared::read(&bytes).ok()).unwrap_or_default();
    let holds = match &record.format {
        Some(format) => {
            let content =
                format.content.as_ref().map_or("a file system that a mount has shown", Content::name);
            format!("holds {content}, as {} reported", format.node)
        }
        None => "holds nothing that is known".to_owned(),
    };
    match status.claim {
        Some(claim) => format!("{holds}; claimed by {}", claim.node),
        None => holds,
    }
}

/// Writes a permit into a volume's object, unless the object has changed since it was read.
async fn permit(client: &Client, volume: &GuardedVolume, reason: String, seconds: u64) -> Result<SpecPermit> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let me = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let me = me.context("the cluster does not say who you are")?;
    let by = me
        .status
        .and_then(|status| status.user_info?.username)
        .context("the cluster does not say who you are")?;
    let now = Timestamp::from_second(Timestamp::now().as_second())?;
    let until = now.checked_add(SignedDuration::from_secs(seconds.try_into()?))?;
    let permit = SpecPermit { reason, by, from: now.to_string(), until: until.to_string() };
    let name = volume.metadata.name.as_deref().context("the volume's object has no name")?;
    let change = json!({
        "metadata": {"resourceVersion": volume.metadata.resource_version},
        "spec": {"permit": permit},
    });
    let all: Api<GuardedVolume> = Api::all(client.clone());
    all.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 409 => {
            anyhow!("nothing was done: the volume's object has just changed; look at the volume, and call this again")
        }
        kube::Error::Api(status) => anyhow!("nothing was done: {}", status.message),
        other => anyhow::Error::from(other).context("nobody knows whether it was done"),
    })?;
    Ok(permit)
}

/// Waits for a node to take a permit up, and returns what came of the permit.
async fn taken_up(client: &Client, volume: &GuardedVolume, permit: &SpecPermit, wait: u64) -> Result<String> {
    let name = volume.metadata.name.as_deref().context("the volume's object has no name")?;
    let all: Api<GuardedVolume> = Api::all(client.clone());
    let end = Instant::now() + Duration::from_secs(wait);
    loop {
        let now = all
            .get(name)
            .await
            .context("the permit is given; nobody knows whether a node has taken it up")?;
        let status = Status::deserialize(&now.status).unwrap_or_default();
        if status.permit.as_ref() == Some(permit) {
            return Ok(status.claim.map_or_else(
                || "a node has taken the permit up, and the permit is over already".to_owned(),
                |claim| format!("{} has taken the permit up: a formatter may begin there", claim.node),
            ));
        }
        if Instant::now() >= end {
            return Ok("no node has taken the permit up yet: the node that has the volume, or gets it until then, will"
                .to_owned());
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        let words =
            ["kubectl-format_guard", "permit", "pvc/orders", "-n", "shop", "--reason", "x", "--for", "1h"];
        let Command::Permit { seconds, .. } = Arguments::try_parse_from(words).expect("understood").command;
        assert_eq!(seconds, 3600);
        assert!(
            Arguments::try_parse_from(["kubectl-format_guard", "permit", "pvc/orders"]).is_err(),
            "without a reason"
        );
    }
}
