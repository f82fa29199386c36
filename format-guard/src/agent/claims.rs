//! This node's part in the store that nodes share: the worker claims blank volumes, writes formats, and reads
//! those of other nodes.
//!
//! The worker decides nothing: what it writes follows from the observed and the desired state
//! ([`crate::record::shared::plan`]). Nothing waits for it: while the store is away the reconciler goes on
//! with what it knows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::{info, warn};

use super::{
    desired_claims::{DesiredClaims, Link},
    message::{Input, KnownFormats, OperatorCommand, StoreUpdate},
    now,
};
use crate::{
    api::{Failure, FailureKind},
    enforce::since_boot,
    record::shared::{
        ClaimChange, ClaimStatus, Desired, MOVED, NodeLease, Observed, Shared, Write, plan,
        store::{Connect, Granted, Progress, Session, SharedError, TRIES, converge},
    },
    volume::VolumeId,
};

/// Volumes that one request to the store is about.
const BATCH: usize = 32;
/// How long after a failure the next connection is made.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// How long after it a volume is looked at again, where other nodes were faster or its value is not
/// understood.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Operators' commands that wait at most.
const COMMANDS: usize = 16;

/// What the worker knows of one volume.
struct Volume {
    /// What the reconciler wants.
    requested: Desired,
    /// What that has become by what was written since.
    desired: Desired,
    /// The status that was reported last, and the number of the report.
    reported: Option<(ClaimStatus, u64)>,
    /// What the store had of the volume last, as far as this node knows.
    observed: Option<Observed>,
    /// It is to be looked at.
    due: bool,
}

/// What stands in the way of a claim, under another name of the volume.
enum OldName {
    /// This node has claimed it.
    Claimed(String),
    /// A node that is gone was armed.
    Armed,
}

/// The task.
pub struct ClaimWorker<C> {
    connect: C,
    desired_claims: DesiredClaims,
    commands: mpsc::Receiver<OperatorCommand>,
    inputs: mpsc::Sender<Input>,
    /// How long a lease is asked for, in seconds.
    seconds: u64,
    /// The lease, if there is one, and whatever became of it.
    lease: Option<u64>,
    volumes: BTreeMap<VolumeId, Volume>,
    /// To be looked at again.
    later: BTreeMap<Instant, BTreeSet<VolumeId>>,
    /// Reports so far.
    reports: u64,
}

/// How far the store has been given the formats that are on record here.
#[derive(Debug, PartialEq, Eq)]
enum Backfill {
    FromStart,
    /// The store has the formats up to this volume.
    After(VolumeId),
    Done,
}

/// What became of an operator's command.
enum Changed {
    Done,
    /// It was refused, for this reason.
    Refused(String),
}

/// Why a session is over.
enum End {
    /// The store failed.
    Store(SharedError),
    /// The reconciler is gone.
    Agent(anyhow::Error),
}

impl From<SharedError> for End {
    fn from(error: SharedError) -> Self {
        Self::Store(error)
    }
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> Self {
        Self::Agent(error)
    }
}

/// How much earlier than the store this node lets the lease end: its clock may go slower by as much.
const fn margin(seconds: u64) -> u64 {
    seconds / 4
}

/// When the lease has ended for sure, by this host's clock: counted from the request, not from its answer.
fn end_of(asked: Duration, granted: Granted) -> u64 {
    let lasts = Duration::from_secs(granted.seconds.saturating_sub(margin(granted.seconds)));
    u64::try_from((asked + lasts).as_nanos()).unwrap_or(u64::MAX)
}

impl<C: Connect> ClaimWorker<C> {
    /// A worker that goes on with this lease, if there is one, and asks for leases of so many seconds.
    pub fn new(
        connect: C,
        node: String,
        seconds: u64,
        lease: Option<u64>,
        inputs: mpsc::Sender<Input>,
    ) -> (Self, DesiredClaims) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let link = Link { state: Mutex::default(), changed: Notify::new(), commands: sender, node };
        let desired_claims = DesiredClaims(Arc::new(link));
        let claim_worker = Self {
            connect,
            desired_claims: desired_claims.clone(),
            commands,
            inputs,
            seconds,
            lease,
            volumes: BTreeMap::new(),
            later: BTreeMap::new(),
            reports: 0,
        };
        (claim_worker, desired_claims)
    }

    /// Works until the reconciler is gone. A store that is away is no error of the agent.
    pub async fn run(mut self) -> Result<()> {
        loop {
            let error = match self.session().await {
                End::Agent(error) => return Err(error),
                End::Store(error) => error,
            };
            warn!("the cluster's store: {error}");
            let reason = error.to_string();
            if matches!(error, SharedError::LeaseEnded) {
                self.lease = None;
                continue;
            }
            self.report(StoreUpdate::Disconnected(reason.clone())).await?;
            let again = Instant::now() + RECONNECT_AFTER;
            loop {
                tokio::select! {
                    () = sleep_until(again) => break,
                    command = self.commands.recv() => command.context("the reconciler is gone")?.fail(&reason),
                }
            }
        }
    }

    async fn report(&self, update: StoreUpdate) -> Result<()> {
        report(&self.inputs, update).await
    }

    /// One connection, until it fails.
    async fn session(&mut self) -> End {
        let mut jobs = JoinSet::new();
        match self.connected(&mut jobs).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn connected(&mut self, jobs: &mut JoinSet<End>) -> Result<std::convert::Infallible, End> {
        let session = Arc::new(self.connect.connect().await?);
        let asked = since_boot();
        let granted = match self.lease {
            Some(lease) => match session.keep_alive(lease).await {
                Err(SharedError::LeaseEnded) => session.grant(self.seconds).await?,
                other => other?,
            },
            None => session.grant(self.seconds).await?,
        };
        self.lease = Some(granted.id);
        self.report(StoreUpdate::Lease { id: granted.id, until: end_of(asked, granted) }).await?;
        self.report(StoreUpdate::Connected).await?;
        info!("the cluster's store answers");
        jobs.spawn(keep_lease(session.clone(), granted, self.inputs.clone()));
        let watched_ids = watch::Sender::new(BTreeSet::new());
        let (sender, mut changed) = mpsc::channel(1024);
        jobs.spawn(watched(session.clone(), watched_ids.subscribe(), sender));
        // What was observed through an earlier connection may have changed since.
        for volume in self.volumes.values_mut() {
            (volume.due, volume.observed) = (true, None);
        }
        let mut backfill = Backfill::FromStart;
        let mut unwatched = true;
        loop {
            unwatched |= self.take_desired();
            if std::mem::take(&mut unwatched) {
                let ids =
                    self.volumes.iter().filter(|(_, volume)| !matches!(volume.desired, Desired::Gone { .. }));
                watched_ids.send_replace(ids.map(|(id, _)| id.clone()).collect());
            }
            let due = self.due();
            if !due.is_empty() {
                self.advance(&session, due).await?;
            } else if backfill != Backfill::Done {
                backfill = self.backfill(&session, backfill).await?;
            } else {
                let later = self.later.keys().next().copied();
                let desired_claims = self.desired_claims.clone();
                tokio::select! {
                    biased;
                    Some(ended) = jobs.join_next() => return Err(ended.unwrap_or_else(|error| End::Agent(error.into()))),
                    command = self.commands.recv() => {
                        let command = command.context("the reconciler is gone")?;
                        self.execute(&session, command).await?;
                    }
                    Some(id) = changed.recv() => self.mark_due(&id),
                    () = desired_claims.0.changed.notified() => {}
                    () = sleep_until(later.unwrap_or_else(Instant::now)), if later.is_some() => self.retry_due(),
                }
                continue;
            }
            while let Ok(id) = changed.try_recv() {
                self.mark_due(&id);
            }
            if let Some(ended) = jobs.try_join_next() {
                return Err(ended.unwrap_or_else(|error| End::Agent(error.into())));
            }
        }
    }

    fn mark_due(&mut self, id: &VolumeId) {
        if let Some(volume) = self.volumes.get_mut(id) {
            (volume.due, volume.observed) = (true, None);
        }
    }

    fn retry_due(&mut self) {
        let rest = self.later.split_off(&Instant::now());
        for id in std::mem::replace(&mut self.later, rest).into_values().flatten() {
            self.mark_due(&id);
        }
    }

    /// Takes the desired states that have changed. Whether they are of other volumes than before. A state
    /// that does not yet take the last report into account is left for later.
    fn take_desired(&mut self) -> bool {
        let mut state = self.desired_claims.state();
        let acknowledged = state.acknowledged;
        let awaited =
            |volume: &Volume| volume.reported.as_ref().is_some_and(|(_, number)| *number > acknowledged);
        let (mut kept, mut others) = (BTreeSet::new(), false);
        for id in std::mem::take(&mut state.changed) {
            let Some(mut desired) = state.desired.get(&id).cloned() else { continue };
            if !self.volumes.get(&id).is_some_and(awaited) && state.touched.remove(&id) {
                desired = Desired::Gone { clean: false, format: None };
                kept.insert(id.clone());
            }
            match self.volumes.get_mut(&id) {
                Some(volume) if awaited(volume) => {
                    kept.insert(id);
                }
                Some(volume) => {
                    others |= matches!(desired, Desired::Gone { .. })
                        != matches!(volume.desired, Desired::Gone { .. });
                    (volume.requested, volume.desired) = (desired.clone(), desired);
                    (volume.reported, volume.due) = (None, true);
                }
                None => {
                    others = true;
                    self.volumes.insert(
                        id,
                        Volume {
                            requested: desired.clone(),
                            desired,
                            reported: None,
                            observed: None,
                            due: true,
                        },
                    );
                }
            }
        }
        state.changed = kept;
        others
    }

    /// The volumes that are to be looked at now.
    fn due(&self) -> Vec<VolumeId> {
        let acknowledged = self.desired_claims.state().acknowledged;
        let due = self.volumes.iter().filter(|(_, volume)| {
            volume.due && volume.reported.as_ref().is_none_or(|(_, number)| *number <= acknowledged)
        });
        due.take(BATCH).map(|(id, _)| id.clone()).collect()
    }

    /// Looks at these volumes in the store, and brings each to its desired state.
    async fn advance(&mut self, session: &Arc<C::Session>, ids: Vec<VolumeId>) -> Result<(), End> {
        let (node, lease) = (self.desired_claims.node().to_owned(), self.lease);
        let mut jobs: JoinSet<Result<_, SharedError>> = JoinSet::new();
        let mut begin = |id: VolumeId, desired: Desired, observed: Observed| {
            let (session, node) = (session.clone(), node.clone());
            jobs.spawn(async move {
                let me = NodeLease { node: &node, lease };
                Ok((id.clone(), converge(&*session, &id, desired, observed, me, now()).await?))
            });
        };
        let named: BTreeSet<VolumeId> = self.desired_claims.state().names.keys().cloned().collect();
        let (mut unseen, mut unreadable, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for id in ids {
            let Some(volume) = self.volumes.get_mut(&id) else { continue };
            volume.due = false;
            // An older observation is enough for a write, which is made only if nothing has changed since.
            let named = named.contains(&id);
            let writes = |observed: &Observed| {
                !named && plan(observed, &volume.desired, NodeLease { node: &node, lease }, now()).0.is_some()
            };
            match volume.observed.take().filter(writes) {
                Some(observed) => begin(id, volume.desired.clone(), observed),
                None => unseen.push(id),
            }
        }
        if !unseen.is_empty() {
            let taken_over = self.take_over(session, &unseen).await?;
            let observed = session.look(&unseen).await?;
            for (id, observed) in unseen.into_iter().zip(observed) {
                let Some(volume) = self.volumes.get(&id) else { continue };
                match (observed, taken_over.get(&id)) {
                    (Ok(observed), Some(OldName::Claimed(by)))
                        if matches!(volume.desired, Desired::Claim { .. }) =>
                    {
                        waiting.push((id, volume.desired.clone(), by.clone(), observed));
                    }
                    (Ok(observed), Some(OldName::Armed))
                        if matches!(volume.desired, Desired::Claim { .. }) =>
                    {
                        begin(id, Desired::Claim { doubted: true }, observed);
                    }
                    (observed, _) => match observed {
                        Ok(observed) => begin(id, volume.desired.clone(), observed),
                        Err(error) => unreadable.push((id, volume.desired.clone(), error)),
                    },
                }
            }
        }
        for (id, desired, node, observed) in waiting {
            self.record_progress(
                id,
                Progress { desired, status: Some(ClaimStatus::Waiting { node }), observed },
            )
            .await?;
        }
        for (id, desired, error) in unreadable {
            let status = Some(ClaimStatus::Unreadable(error.to_string()));
            self.record_progress(id, Progress { desired, status, observed: Observed::default() }).await?;
        }
        while let Some(done) = jobs.join_next().await {
            let (id, progress) = done.map_err(|error| End::Agent(error.into()))??;
            self.record_progress(id, progress).await?;
        }
        Ok(())
    }

    /// Takes over what nodes of an earlier version keep of these volumes under other names. It is taken over
    /// once: afterwards such a name may be another volume's.
    async fn take_over(
        &self,
        session: &Arc<C::Session>,
        ids: &[VolumeId],
    ) -> Result<HashMap<VolumeId, OldName>, SharedError> {
        let names: Vec<(VolumeId, VolumeId)> = {
            let state = self.desired_claims.state();
            let of = |id: &VolumeId| state.names.get(id).cloned().unwrap_or_default();
            ids.iter().flat_map(|id| of(id).into_iter().map(|name| (id.clone(), name))).collect()
        };
        let mut found = HashMap::new();
        if names.is_empty() {
            return Ok(found);
        }
        let all: Vec<VolumeId> = names.iter().map(|(_, name)| name.clone()).collect();
        let node = self.desired_claims.node();
        for ((id, name), observed) in names.into_iter().zip(session.look(&all).await?) {
            // The value is of a newer version, or was taken over already.
            let Ok(observed) = observed else { continue };
            if let Some(claim) = &observed.claim {
                found.insert(id, OldName::Claimed(claim.node.clone()));
                continue;
            }
            let Some(shared) = observed.shared.clone() else { continue };
            if shared.armed.is_some() {
                found.entry(id.clone()).or_insert(OldName::Armed);
            }
            if let Some(format) = shared.format.clone() {
                let Some(Ok(own)) = session.look(std::slice::from_ref(&id)).await?.pop() else { continue };
                let desired = Desired::Gone { clean: true, format: Some(format) };
                converge(&**session, &id, desired, own, NodeLease { node, lease: None }, now()).await?;
            }
            info!(volume = %id, "this name takes over what nodes know under the name {name}");
            let write = Write { shared: Some(Shared { version: MOVED, ..shared }), claim: ClaimChange::Keep };
            session.write(&name, &observed, &write, node).await?;
        }
        Ok(found)
    }

    async fn record_progress(
        &mut self,
        id: VolumeId,
        Progress { desired, status, observed }: Progress,
    ) -> Result<(), End> {
        let Some(status) = status else {
            self.retry_later(id);
            return Ok(());
        };
        if status == ClaimStatus::Gone {
            let mut state = self.desired_claims.state();
            // It may have come back meanwhile.
            if matches!(state.desired.get(&id), None | Some(Desired::Gone { .. })) {
                state.desired.remove(&id);
                self.volumes.remove(&id);
            }
            return Ok(());
        }
        // A notice of the store may be lost: the volume is looked at again.
        if matches!(status, ClaimStatus::Unreadable(_) | ClaimStatus::Waiting { .. }) {
            self.retry_later(id.clone());
        }
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(()) };
        volume.desired = desired;
        volume.observed = (!matches!(status, ClaimStatus::Unreadable(_))).then_some(observed);
        if volume.reported.as_ref().is_some_and(|(reported, _)| *reported == status) {
            return Ok(());
        }
        self.reports += 1;
        volume.reported = Some((status.clone(), self.reports));
        let (lease, number, desired) =
            (self.lease.unwrap_or_default(), self.reports, Box::new(volume.requested.clone()));
        self.report(StoreUpdate::ClaimStatus { id, status, desired, lease, number }).await?;
        Ok(())
    }

    fn retry_later(&mut self, id: VolumeId) {
        self.later.entry(Instant::now() + RETRY_AFTER).or_default().insert(id);
    }

    /// A store that was restored from an older state, or is new, learns what is known here.
    async fn backfill(&mut self, session: &Arc<C::Session>, from: Backfill) -> Result<Backfill, End> {
        let after = match from {
            Backfill::FromStart => None,
            Backfill::After(id) => Some(id),
            Backfill::Done => return Ok(Backfill::Done),
        };
        let (reply, answer) = oneshot::channel();
        self.report(StoreUpdate::KnownFormats { after, reply }).await?;
        let KnownFormats { mut formats, more_after } = answer.await.context("the reconciler is gone")?;
        formats.retain(|(id, format)| !session.has(id, format));
        for batch in formats.chunks(BATCH) {
            let ids: Vec<VolumeId> = batch.iter().map(|(id, _)| id.clone()).collect();
            let observed = session.look(&ids).await?;
            for ((id, format), observed) in batch.iter().zip(observed) {
                let desired = Desired::Gone { clean: true, format: Some(format.clone()) };
                match observed {
                    Ok(observed) => {
                        converge(
                            &**session,
                            id,
                            desired,
                            observed,
                            NodeLease { node: self.desired_claims.node(), lease: None },
                            now(),
                        )
                        .await?;
                    }
                    Err(error) => warn!(volume = %id, "{error}"),
                }
            }
        }
        Ok(more_after.map_or(Backfill::Done, Backfill::After))
    }

    async fn execute(&mut self, session: &Arc<C::Session>, command: OperatorCommand) -> Result<(), End> {
        let (OperatorCommand::Permit { id, .. } | OperatorCommand::Forget { id, .. }) = &command;
        let id = id.clone();
        let (node, elsewhere) = (self.desired_claims.node(), <C::Session as Session>::ELSEWHERE);
        let done = change(&**session, &id, node, |shared, claimed| match (&command, elsewhere) {
            (OperatorCommand::Permit { .. }, Some(elsewhere)) => Err(elsewhere.permit.to_owned()),
            (OperatorCommand::Forget { .. }, Some(elsewhere)) if *shared != Shared::default() => {
                Err(elsewhere.forget.to_owned())
            }
            (OperatorCommand::Permit { permit, .. }, None) => {
                shared.permit = Some(permit.clone());
                Ok(())
            }
            (OperatorCommand::Forget { .. }, _) if claimed => {
                Err("a node has claimed it: detach it there first".to_owned())
            }
            (OperatorCommand::Forget { .. }, _) => {
                *shared = Shared::default();
                Ok(())
            }
        })
        .await;
        match done {
            Err(error) => {
                command.fail(&error.to_string());
                return Err(error.into());
            }
            Ok(Changed::Refused(reason)) => {
                let (OperatorCommand::Permit { reply, .. } | OperatorCommand::Forget { reply, .. }) = command;
                // The client may have gone.
                let _ = reply.send(Err(Failure::new(FailureKind::Refused, format!("{id}: {reason}"))));
            }
            Ok(Changed::Done) => {
                // The volume is claimed at once if it is here and free: who asked is told what came of it.
                if matches!(command, OperatorCommand::Permit { .. }) && self.volumes.contains_key(&id) {
                    self.advance(session, vec![id]).await?;
                }
                self.report(StoreUpdate::Done(command)).await?;
            }
        }
        Ok(())
    }
}

async fn report(inputs: &mpsc::Sender<Input>, update: StoreUpdate) -> Result<()> {
    inputs.send(Input::Store(update)).await.context("the reconciler is gone")
}

/// Keeps the lease alive, and reports until when it lasts for sure.
async fn keep_lease<S: Session>(session: Arc<S>, granted: Granted, inputs: mpsc::Sender<Input>) -> End {
    loop {
        sleep(Duration::from_secs(granted.seconds.max(6)) / 6).await;
        let asked = since_boot();
        let kept = match session.keep_alive(granted.id).await {
            Ok(kept) => kept,
            Err(error) => return End::Store(error),
        };
        if let Err(error) =
            report(&inputs, StoreUpdate::Lease { id: kept.id, until: end_of(asked, kept) }).await
        {
            return End::Agent(error);
        }
    }
}

async fn watched<S: Session>(
    session: Arc<S>,
    wanted: watch::Receiver<BTreeSet<VolumeId>>,
    changed: mpsc::Sender<VolumeId>,
) -> End {
    End::Store(session.watch(wanted, changed).await)
}

/// Changes the shared record as an operator wants it, unless `how` says why not.
async fn change<S: Session>(
    session: &S,
    id: &VolumeId,
    node: &str,
    how: impl Fn(&mut Shared, bool) -> Result<(), String>,
) -> Result<Changed, SharedError> {
    for _ in 0..TRIES {
        let observed = match session.look(std::slice::from_ref(id)).await?.pop() {
            Some(Ok(observed)) => observed,
            Some(Err(error)) => return Ok(Changed::Refused(error.to_string())),
            None => {
                return Ok(Changed::Refused(
                    "the store gave no answer for this volume: try again".to_owned(),
                ));
            }
        };
        let mut shared = observed.shared.clone().unwrap_or_default();
        if let Err(reason) = how(&mut shared, observed.claim.is_some()) {
            return Ok(Changed::Refused(reason));
        }
        let shared = (shared != Shared::default()).then_some(shared);
        if shared == observed.shared {
            return Ok(Changed::Done);
        }
        let write = Write { shared, claim: ClaimChange::Keep };
        if session.write(id, &observed, &write, node).await?.is_some() {
            return Ok(Changed::Done);
        }
    }
    Ok(Changed::Refused(
        "other nodes keep changing what the store knows of this volume: try again".to_owned(),
    ))
}

#[cfg(test)]
mod tests;
