//! Refusals as Events of a cluster's API, for whoever reads `kubectl describe`. The guard never waits for the
//! API: what that does not take in time is dropped, and counted.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, PersistentVolume},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, Config, api::PostParams};
use tokio::{sync::mpsc, time};
use tracing::{info, warn};

use super::{metrics::Metrics, node_name};
use crate::record::history::{HistoryEvent, Pod};

/// Refusals that wait at most; more are dropped.
pub(super) const WAITING: usize = 256;
/// How long one of them may take, with every request that it needs.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often the same is told of one volume: the refusals between are counted.
const APART: Duration = Duration::from_mins(5);
/// Refusals of all volumes that are told at once, and how long until there is place for another.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(6);
/// Volumes that are remembered for that.
const VOLUMES: usize = 1024;
/// Pods of one volume that are told.
const PODS: usize = 4;
/// Bytes of a message, as the API's newer kind of Event has it (pkg/apis/core/validation/events.go,
/// Kubernetes 1.34).
const MESSAGE: usize = 1024;
/// The namespace of Events of objects that are in none.
const NO_NAMESPACE: &str = "default";
const COMPONENT: &str = "format-guard";
/// The kind of a refusal that was carried out.
const DENIED: &str = "denied";

/// How much is told.
struct Limit {
    /// When a volume's last one was told, and how many were not since.
    volumes: HashMap<(String, String), (Instant, u64)>,
    places: u32,
    refilled: Instant,
}

impl Limit {
    fn new() -> Self {
        Self { volumes: HashMap::new(), places: BURST, refilled: Instant::now() }
    }

    /// Whether this one is told, and how many like it were not since the last that was.
    fn take(&mut self, volume: &str, kind: &str, now: Instant) -> Option<u64> {
        let refills = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        if refills > 0 {
            self.refilled = now;
            self.places = self.places.saturating_add(refills.try_into().unwrap_or(BURST)).min(BURST);
        }
        if self.volumes.len() >= VOLUMES {
            self.volumes.retain(|_, (at, _)| now.saturating_duration_since(*at) < APART);
        }
        if self.volumes.len() >= VOLUMES {
            self.volumes.clear();
        }
        let key = (volume.to_owned(), kind.to_owned());
        let since = match self.volumes.get_mut(&key) {
            Some((at, since)) if now.saturating_duration_since(*at) < APART || self.places == 0 => {
                *since += 1;
                return None;
            }
            Some((_, since)) => *since,
            None if self.places == 0 => return None,
            None => 0,
        };
        self.places -= 1;
        self.volumes.insert(key, (now, 0));
        Some(since)
    }
}

/// The task that talks to the API.
pub(super) struct Cluster {
    refusals: mpsc::Receiver<HistoryEvent>,
    metrics: Metrics,
    limit: Limit,
    client: Option<Client>,
    node: String,
    /// The claim of a persistent volume, which it keeps as long as it lives.
    claims: HashMap<String, ObjectReference>,
    /// The last one failed: told once.
    failing: bool,
}

impl Cluster {
    /// Of what the reconciler sends.
    pub(super) fn new(refusals: mpsc::Receiver<HistoryEvent>, metrics: Metrics) -> Self {
        Self {
            refusals,
            metrics,
            limit: Limit::new(),
            client: None,
            node: node_name(),
            claims: HashMap::new(),
            failing: false,
        }
    }

    /// Tells refusals until the reconciler ends. No API, or one that refuses, is no error of the agent.
    pub(super) async fn run(mut self) -> Result<()> {
        while let Some(told) = self.refusals.recv().await {
            let Some(since) = self.limit.take(volume(&told), &told.kind, Instant::now()) else {
                self.metrics.cluster_event("held_back");
                continue;
            };
            let result = match time::timeout(PATIENCE, self.tell(&told, since)).await {
                Ok(result) => result,
                Err(_) => Err(anyhow::anyhow!("the API did not answer in {} s", PATIENCE.as_secs())),
            };
            match result {
                Ok(()) => {
                    self.metrics.cluster_event("sent");
                    if self.failing {
                        info!("the cluster takes events again");
                    }
                    self.failing = false;
                }
                Err(error) => {
                    self.metrics.cluster_event("failed");
                    if !self.failing {
                        warn!(
                            "the agent cannot report refusals to the cluster (kubernetes.events): {error:#}"
                        );
                    }
                    self.failing = true;
                    // Its addresses and tokens may have changed.
                    self.client = None;
                }
            }
        }
        anyhow::bail!("the reconciler is gone")
    }

    async fn tell(&mut self, told: &HistoryEvent, since: u64) -> Result<()> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(connect().await?).clone(),
        };
        let mut objects = Vec::new();
        if let Some(facts) = told.refusal.as_ref().and_then(|refusal| refusal.kubernetes.as_ref()) {
            objects.extend(self.claim(&client, &facts.persistent_volume).await);
            objects.extend(facts.pods.iter().filter_map(pod).take(PODS));
        }
        if objects.is_empty() {
            objects.push(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(self.node.clone()),
                // As kubelet names it in its own Events (pkg/kubelet/kubelet.go).
                uid: Some(self.node.clone()),
                ..ObjectReference::default()
            });
        }
        for object in objects {
            let event = event(object, told, since, &self.node, Timestamp::now());
            let namespace = event.metadata.namespace.as_deref().unwrap_or(NO_NAMESPACE);
            let events: Api<Event> = Api::namespaced(client.clone(), namespace);
            events.create(&PostParams::default(), &event).await.context("the API refused an Event")?;
        }
        Ok(())
    }

    /// The claim that a persistent volume is bound to. Without it the pods or the node are told.
    async fn claim(&mut self, client: &Client, volume: &str) -> Option<ObjectReference> {
        if let Some(claim) = self.claims.get(volume) {
            return Some(claim.clone());
        }
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let found = volumes.get(volume).await.ok()?;
        let claim = found.spec?.claim_ref?;
        let claim = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            ..claim
        };
        if self.claims.len() >= VOLUMES {
            self.claims.clear();
        }
        self.claims.insert(volume.to_owned(), claim.clone());
        Some(claim)
    }
}

/// The API as a pod's account or `KUBECONFIG` names it.
async fn connect() -> Result<Client> {
    let mut config =
        Config::infer().await.context("neither a pod's account nor KUBECONFIG names a cluster")?;
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    config.write_timeout = Some(PATIENCE);
    Client::try_from(config).context("cannot make a client for the cluster's API")
}

/// What is told about: a volume, or a device whose volume has no name.
fn volume(told: &HistoryEvent) -> &str {
    match &told.refusal {
        Some(refusal) if told.volume.is_empty() => &refusal.device,
        _ => &told.volume,
    }
}

fn pod(pod: &Pod) -> Option<ObjectReference> {
    Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name.clone()?),
        namespace: Some(pod.namespace.clone()?),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    })
}

fn event(object: ObjectReference, told: &HistoryEvent, since: u64, node: &str, now: Timestamp) -> Event {
    let mut text = told.text.clone();
    if since > 0 {
        text = format!("{since} more since the last Event of this kind; the newest: {text}");
    }
    if let Some((end, _)) = text.char_indices().find(|(i, c)| i + c.len_utf8() > MESSAGE) {
        text.truncate(end);
    }
    let name = object.name.as_deref().unwrap_or(node);
    Event {
        metadata: ObjectMeta {
            // As client-go names them (tools/record/event.go).
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(object.namespace.clone().unwrap_or_else(|| NO_NAMESPACE.to_owned())),
            ..ObjectMeta::default()
        },
        involved_object: object,
        type_: Some("Warning".to_owned()),
        reason: Some(if told.kind == DENIED { "FormatRefused" } else { "FormatWouldBeRefused" }.to_owned()),
        message: Some(text),
        count: Some(i32::try_from(since).unwrap_or(i32::MAX).saturating_add(1)),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> HistoryEvent {
        HistoryEvent::new(0, "v".to_owned(), DENIED, text.to_owned())
    }

    #[test]
    fn a_flood_is_told_once_and_counted() {
        let mut limit = Limit::new();
        let start = Instant::now();
        assert_eq!(limit.take("a", "x", start), Some(0));
        for _ in 0..1000 {
            assert_eq!(limit.take("a", "x", start + Duration::from_secs(1)), None);
        }
        assert_eq!(limit.take("b", "x", start + Duration::from_secs(1)), Some(0), "another volume");
        assert_eq!(limit.take("a", "x", start + APART), Some(1000));
        assert_eq!(limit.take("a", "x", start + APART + APART), Some(0));
    }

    #[test]
    fn many_volumes_at_once_are_told_some_at_a_time() {
        let mut limit = Limit::new();
        let start = Instant::now();
        let told = |limit: &mut Limit, at| {
            (0..5000).filter(|i| limit.take(&format!("volume {i}"), "x", at).is_some()).count()
        };
        assert_eq!(told(&mut limit, start), BURST as usize);
        assert_eq!(told(&mut limit, start + REFILL), 1);
        assert!(limit.volumes.len() <= VOLUMES);
    }

    #[test]
    fn a_message_ends_between_characters_where_the_api_ends_it() {
        let long = "ö".repeat(MESSAGE);
        let event = event(ObjectReference::default(), &told(&long), 3, "node", Timestamp::UNIX_EPOCH);
        let message = event.message.expect("a message");
        assert!(message.len() <= MESSAGE && message.len() > MESSAGE - 2, "{}", message.len());
        assert!(message.starts_with("3 more since"), "{message}");
        assert_eq!(event.count, Some(4));
        assert_eq!(event.metadata.namespace.as_deref(), Some(NO_NAMESPACE));
    }

    #[test]
    fn a_pod_that_has_no_name_yet_is_not_told() {
        let mut facts = Pod { uid: "u".to_owned(), namespace: Some("n".to_owned()), name: None };
        assert_eq!(pod(&facts), None);
        facts.name = Some("p".to_owned());
        assert_eq!(pod(&facts).and_then(|pod| pod.name).as_deref(), Some("p"));
    }
}
