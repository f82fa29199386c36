//! The store that nodes share, in a Kubernetes API server: an object a volume, with its record and its claim,
//! and a Lease a node.
//!
//! Nothing ends by itself there. A Lease that its node has not renewed for as long as it lasts, by the clock
//! of whoever waits for it, is ended by a write that the node's next renewal collides with. Never is a claim
//! taken over before that.

mod leases;
pub mod object;
mod watches;

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::PersistentVolume};
use kube::{Api, Client, Config, Error, api::PostParams, core::Status};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::warn;

use super::{
    Claim, ClaimChange, Format, Observed, Shared, ValueError, Write,
    store::{Connect, Elsewhere, Granted, Session, SharedError},
};
use crate::{config::Store as Settings, volume::VolumeId};
use leases::Leases;
use object::{GuardedVolume, Read, SpecPermit};

/// Requests that are under way at once.
const AT_ONCE: usize = 8;
/// Bytes of what a server says that are shown.
const MAX_TEXT: usize = 512;

/// Where the API server is, and how it is asked.
pub struct Kubernetes {
    settings: Settings,
    node: String,
    config: Option<Config>,
    leases: Arc<Leases>,
    told: Arc<Formats>,
}

/// The formats that the store is known to have: asked for once, and not on every connection.
#[derive(Default)]
struct Formats(Mutex<HashMap<VolumeId, u64>>);

impl Formats {
    fn generations(&self) -> MutexGuard<'_, HashMap<VolumeId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, id: &VolumeId, shared: Option<&Shared>) {
        if let Some(format) = shared.and_then(|shared| shared.format.as_ref()) {
            self.generations().insert(id.clone(), format.generation);
        }
    }
}

impl Kubernetes {
    /// As the account of the pod or `KUBECONFIG` names it.
    #[must_use]
    pub fn new(settings: Settings, node: String) -> Self {
        Self { settings, node, config: None, leases: Arc::default(), told: Arc::default() }
    }

    /// At this server, in the place of what the surroundings name.
    #[must_use]
    pub fn at(self, config: Config) -> Self {
        Self { config: Some(config), ..self }
    }
}

impl Connect for Kubernetes {
    type Session = Server;

    async fn connect(&mut self) -> Result<Server, SharedError> {
        let failed =
            |endpoint: &str, reason: String| SharedError::Failed { endpoint: endpoint.to_owned(), reason };
        let mut config = match &self.config {
            Some(config) => config.clone(),
            None => Config::infer().await.map_err(|error| {
                failed(
                    "the cluster's API",
                    format!("neither a pod's account nor KUBECONFIG names a cluster: {}", whole(&error)),
                )
            })?,
        };
        config.connect_timeout = Some(Duration::from_secs(self.settings.timeout));
        let endpoint = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| failed(&endpoint, plain(&error)))?;
        Ok(Server {
            volumes: Api::all(client.clone()),
            persistent_volumes: Api::all(client.clone()),
            lease_objects: Api::default_namespaced(client),
            endpoint,
            seconds: self.settings.timeout,
            lease: self.settings.lease,
            node: self.node.clone(),
            leases: self.leases.clone(),
            told: self.told.clone(),
            looked_at: Mutex::default(),
        })
    }
}

/// What was in an object when this node looked at it, or wrote it, last.
#[derive(Clone)]
struct LookedAt {
    version: String,
    permit: Option<SpecPermit>,
}

/// The API server that is asked.
pub struct Server {
    volumes: Api<GuardedVolume>,
    persistent_volumes: Api<PersistentVolume>,
    lease_objects: Api<Lease>,
    endpoint: String,
    /// How long an answer may take.
    seconds: u64,
    /// How long a Lease lasts.
    lease: u64,
    node: String,
    leases: Arc<Leases>,
    told: Arc<Formats>,
    looked_at: Mutex<HashMap<VolumeId, LookedAt>>,
}

/// What is wrong, in a sentence.
fn plain(error: &Error) -> String {
    match error {
        Error::Api(status) => bounded(&status.message),
        other => whole(other),
    }
}

/// An error with what is behind it.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    bounded(&text)
}

fn bounded(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

impl Server {
    fn looked_at(&self) -> MutexGuard<'_, HashMap<VolumeId, LookedAt>> {
        self.looked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, reason: impl Into<String>) -> SharedError {
        SharedError::Failed { endpoint: self.endpoint.clone(), reason: reason.into() }
    }

    fn unanswered(&self) -> SharedError {
        SharedError::Timeout { endpoint: self.endpoint.clone(), seconds: self.seconds }
    }

    /// Asks one question. What is not there, was changed meanwhile or is refused by a rule is an answer.
    async fn ask<T>(
        &self,
        question: impl Future<Output = kube::Result<T>>,
    ) -> Result<Result<T, Box<Status>>, SharedError> {
        match timeout(Duration::from_secs(self.seconds), question).await {
            Err(_) => Err(self.unanswered()),
            Ok(Ok(answer)) => Ok(Ok(answer)),
            Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409 | 410 | 422) => Ok(Err(status)),
            Ok(Err(error)) => Err(self.failed(plain(&error))),
        }
    }

    /// What is there; nothing where it is not.
    async fn find<T>(
        &self,
        question: impl Future<Output = kube::Result<T>>,
    ) -> Result<Option<T>, SharedError> {
        match self.ask(question).await? {
            Ok(found) => Ok(Some(found)),
            Err(status) if status.code == 404 => Ok(None),
            Err(status) => Err(self.failed(bounded(&status.message))),
        }
    }

    async fn look_at(&self, id: &VolumeId) -> Result<Result<Read, ValueError>, SharedError> {
        let Some(found) = self.find(self.volumes.get(&object::name(id))).await? else {
            self.looked_at().remove(id);
            return Ok(Ok(Read::default()));
        };
        let read = object::read(&found, id);
        if let (Ok(read), Some(version)) = (&read, found.metadata.resource_version) {
            self.looked_at().insert(id.clone(), LookedAt { version, permit: read.permit.clone() });
            self.told.note(id, read.seen.shared.as_ref());
        }
        Ok(read)
    }

    /// Makes a volume's object, without a record; nothing where another node was faster.
    async fn create(&self, id: &VolumeId) -> Result<Option<String>, SharedError> {
        let owner = match object::persistent_volume(id) {
            Some(name) => self.find(self.persistent_volumes.get(name)).await?,
            None => None,
        };
        let new = GuardedVolume::new(id, owner.as_ref());
        let parameters = PostParams::default();
        match self.ask(self.volumes.create(&parameters, &new)).await? {
            Ok(made) => Ok(made.metadata.resource_version),
            Err(status) if status.code == 409 => Ok(None),
            Err(status) => Err(self.failed(bounded(&status.message))),
        }
    }

    /// Whether what was told of an object's change is news.
    fn is_news(&self, id: &VolumeId, version: Option<&str>) -> bool {
        self.looked_at().get(id).map(|looked_at| looked_at.version.as_str()) != version
    }
}

impl Session for Server {
    const ELSEWHERE: Option<Elsewhere> = Some(Elsewhere {
        permit: "the cluster permits what its nodes share: kubectl format-guard permit VOLUME --reason TEXT",
        forget: "the cluster knows it: kubectl delete guardedvolume first (kubectl get guardedvolumes has its name)",
    });

    async fn grant(&self, seconds: u64) -> Result<Granted, SharedError> {
        self.grant_lease(seconds).await
    }

    async fn keep_alive(&self, lease: u64) -> Result<Granted, SharedError> {
        self.renew(lease).await
    }

    async fn look(&self, ids: &[VolumeId]) -> Result<Vec<Result<Observed, ValueError>>, SharedError> {
        let mut all = Vec::with_capacity(ids.len());
        for some in ids.chunks(AT_ONCE) {
            for (id, read) in some.iter().zip(join_all(some.iter().map(|id| self.look_at(id))).await) {
                all.push(match read? {
                    Ok(Read { mut seen, .. }) => {
                        if let Some(claim) = seen.claim.take()
                            && !self.has_ended(&claim, id).await?
                        {
                            seen.claim = Some(claim);
                        }
                        Ok(seen)
                    }
                    Err(error) => Err(error),
                });
            }
        }
        Ok(all)
    }

    async fn write(
        &self,
        id: &VolumeId,
        observed: &Observed,
        write: &Write,
        node: &str,
    ) -> Result<Option<i64>, SharedError> {
        let known = self
            .looked_at()
            .get(id)
            .filter(|known| object::revision(&known.version) == Some(observed.revision))
            .cloned();
        let (version, permit) = match known {
            Some(LookedAt { version, permit }) => (version, permit),
            None if observed.revision == 0 => match self.create(id).await? {
                Some(version) => (version, None),
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let claim = match write.claim {
            ClaimChange::Keep => observed.claim.clone(),
            ClaimChange::Drop => None,
            ClaimChange::Take(lease) => Some(Claim { lease, node: node.to_owned(), revision: 0 }),
        };
        let new =
            GuardedVolume::with_status(id, &version, write.shared.as_ref(), claim.as_ref(), permit.as_ref());
        let (name, parameters) = (object::name(id), PostParams::default());
        match self.ask(self.volumes.replace_status(&name, &parameters, &new)).await? {
            Ok(written) => {
                let version = written.metadata.resource_version.unwrap_or_default();
                let revision = object::revision(&version).ok_or_else(|| {
                    self.failed(format!("an object has the version '{}'", bounded(&version)))
                })?;
                self.looked_at().insert(id.clone(), LookedAt { version, permit });
                self.told.note(id, write.shared.as_ref());
                Ok(Some(revision))
            }
            Err(status) => {
                // It is looked at again: what was seen is not what is there.
                self.looked_at().remove(id);
                if status.code == 422 {
                    warn!(volume = %id, "the cluster refuses a record: {}", bounded(&status.message));
                    // What a rule goes by may be some moments old there: a Lease that was ended.
                    tokio::time::sleep(object::RULES_LAG).await;
                }
                Ok(None)
            }
        }
    }

    fn has(&self, id: &VolumeId, format: &Format) -> bool {
        self.told.generations().get(id).is_some_and(|generation| *generation >= format.generation)
    }

    async fn watch(
        self: Arc<Self>,
        wanted: watch::Receiver<BTreeSet<VolumeId>>,
        changed: mpsc::Sender<VolumeId>,
    ) -> SharedError {
        watches::run(self, wanted, changed).await
    }
}

#[cfg(test)]
mod tests;
