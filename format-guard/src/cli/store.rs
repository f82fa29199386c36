//! `format-guard store`: exports what is known of formats from the store that nodes share or from this node's
//! own, and imports it into either. An import never replaces a newer format by an older one.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::{CommandError, client};
use crate::{
    agent::{clocks, node_name, now},
    api,
    config::Config,
    record::{
        Record, Volume,
        history::HistoryEvent,
        shared::{
            self, ClaimStatus, Desired, Format, MAX_VALUE, NodeLease, Shared, ValueError,
            etcd::{Etcd, Member},
            store::{Connect, Session, SharedError, converge},
        },
        sqlite::SqliteStore,
        store::Store,
        transition::{self, Event},
    },
    volume::VolumeId,
};

/// Records that are looked up together.
const AT_ONCE: usize = 32;
/// Bytes of a line: a record and an id.
const MAX_LINE: u64 = 2 * MAX_VALUE as u64;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print what the shared store knows, one volume a line, as JSON
    #[command(after_help = "Example: format-guard store export > volumes.jsonl")]
    Export {
        #[command(flatten)]
        of: Of,
        /// Export what this node knows of every volume instead (asks the agent)
        #[arg(long)]
        embedded: bool,
    },
    /// Add what export printed to the shared store
    #[command(after_help = "Example: format-guard store import volumes.jsonl")]
    Import {
        #[command(flatten)]
        of: Of,
        /// The file to import
        file: PathBuf,
        /// Import into this node's own store instead (its agent must be stopped)
        #[arg(long)]
        embedded: bool,
    },
    /// Add to the shared store what this node knows
    #[command(
        after_help = "Example: format-guard store migrate\nAn agent does the same whenever it reaches the store."
    )]
    Migrate {
        #[command(flatten)]
        of: Of,
    },
}

/// Which store.
#[derive(Debug, clap::Args)]
pub(super) struct Of {
    /// Configuration file [default: /etc/format-guard/config.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Of {
    fn config(&self) -> Result<Config> {
        Ok(Config::read(self.config.as_deref())?)
    }
}

/// One volume, as a line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: VolumeId,
    record: Shared,
}

pub(super) fn run(socket: &Path, command: Command) -> Result<(), CommandError> {
    match command {
        Command::Export { embedded: true, .. } => {
            for (id, format) in known_here(socket)? {
                print_line(id, Shared { format: Some(format), ..Shared::default() })?;
            }
        }
        Command::Export { of, .. } => with_member(&of.config()?, export)?,
        Command::Import { of, file, embedded } => {
            let lines = read(&file)?;
            let config = of.config()?;
            if embedded {
                println!("{}", put_here(&config, &lines)?);
            } else {
                println!("{}", with_member(&config, async |member| add(member, &lines).await)?);
            }
        }
        Command::Migrate { of } => {
            let known = known_here(socket)?;
            println!("{}", with_member(&of.config()?, async |member| add(member, &known).await)?);
        }
    }
    Ok(())
}

/// Runs an operation with the first member that answers.
fn with_member<T>(config: &Config, what: impl AsyncFnOnce(&Member) -> Result<T>) -> Result<T> {
    let settings = &config.store;
    if settings.kubernetes {
        return Err(anyhow!(
            "nodes share through Kubernetes (store.kubernetes): kubectl get guardedvolumes -o yaml has all of it, and an agent tells \
             what its node knows whenever it reaches the API"
        ));
    }
    if settings.endpoints.is_empty() {
        return Err(anyhow!(
            "no shared store is configured: set store.endpoints, or name a file with --config"
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut etcd = Etcd::new(settings.clone());
        let mut failure = None;
        for _ in &settings.endpoints {
            let reached = async {
                let member = etcd.connect().await?;
                // The first request makes the connection.
                member.look(&["none".into()]).await?;
                Ok::<_, SharedError>(member)
            };
            match reached.await {
                Ok(member) => return what(&member).await,
                Err(error) => failure = Some(error),
            }
        }
        Err(failure
            .map_or_else(|| anyhow!("no member answers"), |error| anyhow!("no member answers: {error}")))
    })
}

fn print_line(id: VolumeId, record: Shared) -> Result<()> {
    println!("{}", serde_json::to_string(&Line { id, record })?);
    Ok(())
}

async fn export(member: &Member) -> Result<()> {
    let mut after = None;
    loop {
        let records = member.records(after.as_ref()).await?;
        let Some((last, _)) = records.last() else { return Ok(()) };
        after = Some(last.clone());
        for (id, record) in records {
            match record {
                Ok(record) => print_line(id, record)?,
                Err(ValueError::Moved) => {}
                Err(error) => eprintln!("format-guard: {id}: {error}"),
            }
        }
    }
}

/// What this node's agent knows of formats.
fn known_here(socket: &Path) -> Result<Vec<(VolumeId, Format)>, CommandError> {
    let known: api::Volumes = client::get(socket, "/v1/volumes", &[])?;
    let formatted = known.volumes.into_iter().filter(|volume| volume.state == "formatted" && !volume.weak);
    let node = node_name();
    Ok(formatted
        .map(|volume| {
            let generation = volume.generation.max(1);
            let (content, marks, at) = (volume.content, volume.marks, volume.since);
            (volume.id.into(), Format { generation, content, marks, node: node.clone(), at })
        })
        .collect())
}

/// The formats in a file that export printed.
fn read(file: &Path) -> Result<Vec<(VolumeId, Format)>> {
    let path = file.display();
    let mut lines = BufReader::new(File::open(file).with_context(|| format!("cannot read {path}"))?);
    let (mut formats, mut number) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        number += 1;
        let read = io::Read::take(&mut lines, MAX_LINE).read_line(&mut line);
        if read.with_context(|| format!("cannot read {path}"))? == 0 {
            return Ok(formats);
        }
        let wrong = || format!("{path}, line {number}: no volume as format-guard store export prints it");
        let Line { id, record } = serde_json::from_str(&line).with_context(wrong)?;
        // An imported line must pass the same checks as a value of the store.
        let record = Shared::read(&record.value()).with_context(wrong)?;
        formats.extend(record.format.map(|format| (id, format)));
    }
}

/// Adds formats to the store that nodes share, and returns what was done.
async fn add(member: &Member, formats: &[(VolumeId, Format)]) -> Result<String> {
    let node = node_name();
    let me = NodeLease { node: &node, lease: None };
    let shared: Vec<_> = formats.iter().filter(|(id, _)| shared::is_shared(id)).collect();
    let (mut told, mut known) = (0, 0);
    for batch in shared.chunks(AT_ONCE) {
        let ids: Vec<VolumeId> = batch.iter().map(|(id, _)| id.clone()).collect();
        for ((id, format), seen) in batch.iter().zip(member.look(&ids).await?) {
            let seen = seen.with_context(|| id.to_string())?;
            let has = seen.shared.as_ref().and_then(|shared| shared.format.as_ref());
            if has.is_some_and(|has| has.generation >= format.generation) {
                known += 1;
                continue;
            }
            let desired = Desired::Gone { clean: true, format: Some(format.clone()) };
            match converge(member, id, desired, seen, me, now()).await?.status {
                Some(ClaimStatus::Gone) => told += 1,
                _ => return Err(anyhow!("{id}: other nodes change it all the time: try again")),
            }
        }
        if io::stderr().is_terminal() {
            eprint!("\r{} of {}", told + known, shared.len());
        }
    }
    if io::stderr().is_terminal() {
        eprintln!();
    }
    let local = formats.len() - shared.len();
    Ok(format!("{told} volumes told, {known} known there already, {local} that stay on their node"))
}

/// Adds formats to this node's own store, and returns what was done.
fn put_here(config: &Config, formats: &[(VolumeId, Format)]) -> Result<String> {
    let (mut store, _) = SqliteStore::open(&config.state_dir, now())?;
    let (mut told, mut known) = (0, 0);
    for (id, format) in formats {
        let at = now();
        let old = store.get(id)?;
        let had = old.as_ref().map_or(0, |record| record.generation);
        let record = old.unwrap_or_else(|| Record::new(id.clone(), "imported".to_owned(), false, at));
        let new =
            transition::next(&Volume::of(record.clone()), Event::Shared(format.clone()), clocks()).0.record;
        if new == record || had >= format.generation {
            known += 1;
            continue;
        }
        let text = format!("imported: holds what {} told", format.node);
        store.put(&new, &[HistoryEvent::new(at, id.to_string(), "imported", text)])?;
        told += 1;
    }
    Ok(format!("{told} volumes recorded, {known} known already"))
}
