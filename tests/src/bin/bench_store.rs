//! What sharing costs: claims beside bare etcd transactions, transitions beside bare `SQLite` commits, and a
//! thousand nodes at one etcd. `cargo xtask bench store` runs it; each figure is a ratio, or a measurement of
//! one run.

use std::{
    collections::VecDeque,
    env, fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};
use format_guard::{
    agent::{
        claims::ClaimWorker,
        desired_claims::DesiredClaims,
        message::{Input, KnownFormats, StoreUpdate},
    },
    config,
    record::{
        Claim, Now, Record, Volume,
        shared::{
            Armed, ClaimStatus, Desired, Format, NodeLease, Observed, Shared,
            etcd::Etcd,
            store::{Connect, Session, converge},
        },
        sqlite::SqliteStore,
        store::Store,
        transition::{self, Event},
    },
    volume::{VolumeId, identity::Strength, probe::Finding},
};
use format_guard_tests_etcd::{Members, Plan};
use rusqlite::Connection;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

/// The clock stands still.
const START: Now = Now { wall: 0, boot: 0 };

/// Claims, and transactions, in one turn and side by side.
const TURN: u32 = 500;
const TOGETHER: usize = 32;
const TURNS: u32 = 6;
/// How long one thing may take.
const PATIENCE: Duration = Duration::from_mins(5);

fn settings(etcd: &Members) -> config::Store {
    config::Store { endpoints: etcd.endpoints(), timeout: 60, ..config::Store::default() }
}

/// Resident memory of a process, in MiB.
fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}

fn main() -> Result<()> {
    let number = |name: &str, default: usize| -> Result<usize> {
        env::var(name)
            .map_or(Ok(default), |text| text.parse().with_context(|| format!("{name} is no number")))
    };
    let (nodes, volumes) = (number("FORMAT_GUARD_NODES", 1000)?, number("FORMAT_GUARD_VOLUMES", 100)?);
    transitions()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        Box::pin(claims()).await?;
        Box::pin(many_nodes(nodes, volumes)).await
    })
}

/// Runs this many tasks side by side, each with a number.
async fn together<F: Future<Output = Result<()>> + Send + 'static>(
    first: u32,
    what: impl Fn(u32) -> F,
) -> Result<Duration> {
    let start = Instant::now();
    let (mut jobs, mut waiting): (JoinSet<Result<()>>, VecDeque<u32>) =
        (JoinSet::new(), (first..first + TURN).collect());
    loop {
        while jobs.len() < TOGETHER
            && let Some(number) = waiting.pop_front()
        {
            jobs.spawn(what(number));
        }
        match jobs.join_next().await {
            Some(done) => done??,
            None => return Ok(start.elapsed()),
        }
    }
}

/// A transaction that puts two keys if neither is there, one of them under a lease, if there is one.
async fn bare(client: Client, number: u32, value: Vec<u8>, lease: Option<u64>) -> Result<()> {
    let (one, other) = (format!("/bare/{number}/record"), format!("/bare/{number}/claim"));
    let absent = [&one, &other].map(|key| Compare::mod_revision(key.clone(), CompareOp::Equal, 0));
    let options = lease.map(|lease| PutOptions::new().with_lease(lease.cast_signed()));
    let claim = "{\"version\":1,\"node\":\"node\"}";
    let puts = [TxnOp::put(one, value, None), TxnOp::put(other, claim, options)];
    let done = client.kv_client().txn(Txn::new().when(absent).and_then(puts)).await?;
    ensure!(done.succeeded(), "a bare transaction found its keys");
    Ok(())
}

/// A claim of a volume that the node looked at when it was attached. Beside it, transactions of two keys as
/// large, with and without a lease.
async fn claims() -> Result<()> {
    let etcd = Members::start(&Plan::default())?;
    etcd.wait_until_healthy()?;
    let member = Arc::new(Etcd::new(settings(&etcd)).connect().await?);
    let client = Client::connect(etcd.endpoints(), None).await?;
    let lease = member.grant(3600).await?.id;
    let armed = Armed { node: "node".to_owned(), lease, by_permit: false, doubted: false, at: 0 };
    let value = Shared { armed: Some(armed), ..Shared::default() }.value();
    let mut took = [Duration::ZERO; 3];
    for turn in 0..TURNS {
        let first = 2 * turn * TURN;
        took[0] += together(first, |number| {
            let member = Arc::clone(&member);
            async move {
                let id = VolumeId::from(format!("iscsi:iqn.2020-01.org:pvc-{number},lun=1"));
                let me = NodeLease { node: "node", lease: Some(lease) };
                let stands =
                    converge(&*member, &id, Desired::Claim { doubted: false }, Observed::default(), me, 0)
                        .await?;
                ensure!(stands.status == Some(ClaimStatus::Claimed { doubted: false }), "{stands:?}");
                Ok(())
            }
        })
        .await?;
        for (bare_took, first, lease) in [(1, first, None), (2, first + TURN, Some(lease))] {
            took[bare_took] +=
                together(first, |number| bare(client.clone(), number, value.clone(), lease)).await?;
        }
    }
    let [ours, free, leased] = took.map(|took| f64::from(TURN * TURNS) / took.as_secs_f64());
    println!(
        "claims: {ours:.0} a second; bare transactions {free:.0}: {:.2} of them; under a lease {leased:.0}: {:.2} of them \
         ({TOGETHER} at a time, one member)",
        ours / free,
        ours / leased
    );
    Ok(())
}

/// A transition is a step of the pure function and a commit; beside it, the commit of a row as large.
fn transitions() -> Result<()> {
    const COMMITS: u32 = 300;
    let directory = tempfile::tempdir()?;
    let (mut store, _) = SqliteStore::open(&directory.path().join("ours"), 0)?;
    let raw = Connection::open(directory.path().join("bare.sqlite3"))?;
    raw.pragma_update(None, "journal_mode", "WAL")?;
    raw.pragma_update(None, "synchronous", "FULL")?;
    raw.execute_batch("CREATE TABLE volumes (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT")?;
    let attached = Event::Attached {
        boot: "boot".to_owned(),
        strength: Strength::Strong,
        records_lost: false,
        quarantine: 0,
        raw_content: config::RawContent::Written,
        claim: Claim::Unneeded,
        diskseq: 5,
    };
    let (mut ours, mut bare) = (Duration::ZERO, Duration::ZERO);
    for number in 0..COMMITS {
        let id = format!("iscsi:iqn.2020-01.org:pvc-{number},lun=1");
        let start = Instant::now();
        let volume = Volume::of(Record::new(id.clone().into(), "bench".to_owned(), false, 0));
        let volume = transition::next(&volume, attached.clone(), START).0;
        let volume = transition::next(&volume, Event::Probed(Ok(Finding::Blank)), START).0;
        store.put(&transition::next(&volume, Event::Probed(Ok(Finding::Blank)), START).0, &[])?;
        ours += start.elapsed();
        let start = Instant::now();
        raw.prepare_cached("INSERT INTO volumes VALUES (?1, ?2)")?.execute((&id, "x".repeat(300)))?;
        bare += start.elapsed();
    }
    let of = |took: Duration| f64::from(COMMITS) / took.as_secs_f64();
    println!(
        "transitions: {:.0} a second, bare commits {:.0}: {:.2} of them",
        of(ours),
        of(bare),
        of(ours) / of(bare)
    );
    Ok(())
}

/// A node, reduced to its part in the store.
struct Node {
    desired_claims: DesiredClaims,
    inputs: mpsc::Receiver<Input>,
}

impl Node {
    /// Waits for an update that satisfies this.
    async fn until(&mut self, mut told: impl FnMut(&StoreUpdate) -> bool) -> Result<()> {
        let waited = async {
            while let Some(input) = self.inputs.recv().await {
                let Input::Store(word) = input else { continue };
                let done = told(&word);
                match word {
                    // The node that asked may have gone.
                    StoreUpdate::KnownFormats { reply, .. } => drop(reply.send(KnownFormats::default())),
                    StoreUpdate::ClaimStatus { number, .. } => self.desired_claims.acknowledge(number),
                    _ => {}
                }
                if done {
                    return Ok(());
                }
            }
            anyhow::bail!("its task has ended")
        };
        timeout(PATIENCE, waited).await.context("waited in vain")?
    }
}

fn id_of(node: usize, nodes: usize, number: usize) -> VolumeId {
    // Each volume is attached to a node and to its neighbour.
    let owner = if number.is_multiple_of(2) { node } else { (node + 1) % nodes };
    format!("iscsi:iqn.2020-01.org:pvc-{owner}-{},lun=1", number / 2).into()
}

async fn many_nodes(nodes: usize, volumes: usize) -> Result<()> {
    let etcd = Members::start(&Plan::default())?;
    etcd.wait_until_healthy()?;
    let etcd_pid = etcd.members[0].process.pid().as_raw_pid().unsigned_abs();
    let (etcd_before, own_before) = (memory(etcd_pid)?, memory(std::process::id())?);
    let start = Instant::now();
    let mut all = Vec::new();
    let mut tasks = JoinSet::new();
    for node in 0..nodes {
        let (sender, inputs) = mpsc::channel(1024);
        let (claim_worker, desired_claims) =
            ClaimWorker::new(Etcd::new(settings(&etcd)), format!("node-{node}"), 600, None, sender);
        for number in 0..volumes {
            desired_claims.set(&id_of(node, nodes, number), Desired::Watch { doubted: false }, false);
        }
        tasks.spawn(claim_worker.run());
        all.push(Node { desired_claims, inputs });
    }
    for node in &mut all {
        let (mut status, mut asked) = (0, false);
        node.until(|told| {
            status += usize::from(matches!(told, StoreUpdate::ClaimStatus { .. }));
            // The worker asks for the formats that the node knows, and waits for the answer.
            asked |= matches!(told, StoreUpdate::KnownFormats { .. });
            status == volumes && asked
        })
        .await?;
    }
    println!(
        "{nodes} nodes with {volumes} volumes each: up in {:.1} s; etcd {} MiB (before {etcd_before}), all nodes {} MiB ({own_before})",
        start.elapsed().as_secs_f64(),
        memory(etcd_pid)?,
        memory(std::process::id())?,
    );
    let mut took = Vec::new();
    let samples = nodes.min(200);
    for node in 0..samples {
        let id = id_of(node, nodes, 0);
        let format =
            Format { generation: 1, content: None, marks: Vec::new(), node: format!("node-{node}"), at: 0 };
        let start = Instant::now();
        all[node].desired_claims.set(&id, Desired::Formatted(format), false);
        // The neighbour below has the volume attached, too.
        let other = (node + nodes - 1) % nodes;
        all[other]
            .until(|told| matches!(told, StoreUpdate::ClaimStatus { id: of, status: ClaimStatus::Formatted(_), .. } if *of == id))
            .await?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    let at = |part: usize| took[(took.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    println!(
        "a record reaches the other node that has the volume in {:.0} ms (p50), {:.0} ms (p99), of {samples}",
        at(50),
        at(99)
    );
    Ok(())
}
