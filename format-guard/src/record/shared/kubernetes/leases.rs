//! One Lease a node: this node renews its own, and ends one that another node has not renewed for as long as
//! it lasts.
//!
//! Who ends a Lease does so by a write that is made only if nobody has renewed it since it was looked at;
//! whoever renews one, by a write that is made only if nobody has ended it. So a claim ends for everybody at
//! once, its own node included. Until this node has seen for itself that a Lease is not renewed, for as long
//! as it lasts by this host's clock, the Lease is in force: times of others are never compared, and a Lease
//! that somebody has deleted still covers what was claimed under it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::api::{ObjectMeta, PostParams};
use sha2::{Digest, Sha256};

use super::{
    Server, bounded,
    object::{holder, revision},
};
use crate::{
    record::shared::{
        Claim,
        store::{Granted, SharedError, TRIES},
    },
    volume::VolumeId,
};

/// A label of every node's Lease: rules of admission find them by it.
const LABEL: (&str, &str) = ("format-guard.io/lease", "node");
/// The holder that was ended last.
const ENDED: &str = "format-guard.io/ended";
/// Nothing random is to be had elsewhere without a new dependency.
const RANDOM: &str = "/proc/sys/kernel/random/uuid";
/// What a Lease lasts at most, as the configuration has it.
const MAX_SECONDS: u64 = 3600;

/// What this node knows of Leases, over all its connections.
#[derive(Default)]
pub(super) struct Leases(Mutex<State>);

#[derive(Default)]
struct State {
    /// This node's own, as it was written last.
    own: Option<Lease>,
    /// The version of that.
    newest: Option<i64>,
    /// Those that claims are under.
    others: HashMap<(String, u64), Watched>,
}

/// A Lease of which this node waits for the end.
struct Watched {
    /// Its version; none where it has another holder, or is gone.
    version: Option<String>,
    /// Since when nobody renews it, as far as this node has seen: time for which this host stands still does
    /// not count.
    since: Instant,
    /// How long it lasts.
    lasts: Duration,
    /// Volumes that were claimed under it.
    volumes: BTreeSet<VolumeId>,
}

impl Leases {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Volumes whose claim may have ended by now: each is told once.
    pub(super) fn due(&self) -> Vec<VolumeId> {
        let now = Instant::now();
        let mut state = self.state();
        let mut due = Vec::new();
        state.others.retain(|_, watched| {
            if now >= watched.since + watched.lasts {
                due.extend(std::mem::take(&mut watched.volumes));
            }
            // Nobody has asked for it for long.
            now < watched.since + 4 * watched.lasts || !watched.volumes.is_empty()
        });
        due
    }
}

fn holder_of(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

fn version_of(lease: &Lease) -> Option<String> {
    lease.metadata.resource_version.clone()
}

/// A number that no other lease has.
fn new_number() -> Result<u64, SharedError> {
    let random = fs::read(RANDOM)
        .map_err(|error| SharedError::Failed { endpoint: RANDOM.to_owned(), reason: error.to_string() })?;
    let hash = Sha256::digest(random);
    let mut number = [0; 8];
    number.copy_from_slice(&hash[..8]);
    // API servers know signed numbers alone; zero is none.
    Ok((u64::from_be_bytes(number) & i64::MAX.cast_unsigned()).max(1))
}

impl Server {
    fn now() -> MicroTime {
        MicroTime(Timestamp::now())
    }

    /// A new lease: whatever was claimed under an earlier one is claimed no more.
    pub(super) async fn grant_lease(&self, seconds: u64) -> Result<Granted, SharedError> {
        for _ in 0..TRIES {
            let id = new_number()?;
            let found = self.find(self.lease_objects.get(&self.node)).await?;
            let is_new = found.is_none();
            let mut lease = found.unwrap_or_else(|| Lease {
                metadata: ObjectMeta { name: Some(self.node.clone()), ..ObjectMeta::default() },
                spec: None,
            });
            lease.metadata.managed_fields = None;
            let labels = lease.metadata.labels.get_or_insert_default();
            labels.insert(LABEL.0.to_owned(), LABEL.1.to_owned());
            let before = lease.spec.take().unwrap_or_default();
            let now = Self::now();
            lease.spec = Some(LeaseSpec {
                holder_identity: Some(holder(&self.node, id)),
                lease_duration_seconds: i32::try_from(seconds).ok(),
                lease_transitions: Some(before.lease_transitions.unwrap_or_default().saturating_add(1)),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                ..LeaseSpec::default()
            });
            let parameters = PostParams::default();
            let written = if is_new {
                self.ask(self.lease_objects.create(&parameters, &lease)).await?
            } else {
                self.ask(self.lease_objects.replace(&self.node, &parameters, &lease)).await?
            };
            match written {
                Ok(written) => {
                    self.keep(written);
                    return Ok(Granted { id, seconds });
                }
                Err(status) if matches!(status.code, 404 | 409) => {}
                Err(status) => return Err(self.failed(bounded(&status.message))),
            }
        }
        Err(self.failed(format!("others keep changing the Lease {}", self.node)))
    }

    /// Keeps what was written. Where a later version is less than an earlier one, the store was put back to
    /// an older state: what it was known to have is asked for again.
    fn keep(&self, written: Lease) {
        let mut state = self.leases.state();
        let version = written.metadata.resource_version.as_deref().and_then(revision);
        if version < state.newest {
            self.told.generations().clear();
        }
        state.newest = version;
        state.own = Some(written);
    }

    /// Renews it, unless somebody has ended it.
    pub(super) async fn renew(&self, id: u64) -> Result<Granted, SharedError> {
        let signature = holder(&self.node, id);
        for _ in 0..TRIES {
            let known = self.leases.state().own.clone().filter(|own| holder_of(own) == Some(&signature));
            let found = match known {
                Some(own) => Some(own),
                None => self.find(self.lease_objects.get(&self.node)).await?,
            };
            let Some(mut lease) = found.filter(|found| holder_of(found) == Some(&signature)) else {
                return Err(SharedError::LeaseEnded);
            };
            lease.metadata.managed_fields = None;
            if let Some(spec) = &mut lease.spec {
                spec.renew_time = Some(Self::now());
                spec.lease_duration_seconds = i32::try_from(self.lease).ok();
            }
            match self.ask(self.lease_objects.replace(&self.node, &PostParams::default(), &lease)).await? {
                Ok(written) => {
                    self.keep(written);
                    return Ok(Granted { id, seconds: self.lease });
                }
                // An earlier renewal whose answer was lost; or it was ended.
                Err(status) if status.code == 409 => self.leases.state().own = None,
                Err(status) if status.code == 404 => return Err(SharedError::LeaseEnded),
                Err(status) => return Err(self.failed(bounded(&status.message))),
            }
        }
        Err(self.failed(format!("others keep changing the Lease {}", self.node)))
    }

    /// Whether a claim is in force no more. One that this node has waited for long enough ends by this.
    pub(super) async fn has_ended(&self, claim: &Claim, id: &VolumeId) -> Result<bool, SharedError> {
        let signature = holder(&claim.node, claim.lease);
        if self.leases.state().own.as_ref().is_some_and(|own| holder_of(own) == Some(&signature)) {
            return Ok(false);
        }
        let found = self.find(self.lease_objects.get(&claim.node)).await?;
        let annotations = found.as_ref().and_then(|lease| lease.metadata.annotations.as_ref());
        if annotations.and_then(|annotations| annotations.get(ENDED)) == Some(&signature)
            && found.as_ref().and_then(holder_of) != Some(&signature)
        {
            self.forget(claim);
            return Ok(true);
        }
        let held = found.filter(|lease| holder_of(lease) == Some(&signature));
        let told = held.as_ref().and_then(|lease| lease.spec.as_ref()?.lease_duration_seconds);
        let seconds = told.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(self.lease);
        // One that says less than this node's own is not ended sooner: it may say so of late.
        let lasts = Duration::from_secs(seconds.clamp(self.lease, MAX_SECONDS));
        if !self.is_over(claim, held.as_ref().and_then(version_of), lasts, id) {
            return Ok(false);
        }
        if let Some(lease) = held
            && !self.end(lease, &signature).await?
        {
            return Ok(false);
        }
        self.forget(claim);
        Ok(true)
    }

    fn forget(&self, claim: &Claim) {
        self.leases.state().others.remove(&(claim.node.clone(), claim.lease));
    }

    /// Whether this node has seen for so long that nobody renews it.
    fn is_over(&self, claim: &Claim, version: Option<String>, lasts: Duration, id: &VolumeId) -> bool {
        let now = Instant::now();
        let mut state = self.leases.state();
        let watched = state.others.entry((claim.node.clone(), claim.lease)).or_insert_with(|| Watched {
            version: version.clone(),
            since: now,
            lasts,
            volumes: BTreeSet::new(),
        });
        watched.volumes.insert(id.clone());
        watched.lasts = lasts;
        // Renewed since, or gone since: until when it was renewed is not known then.
        if watched.version != version {
            (watched.version, watched.since) = (version, now);
        }
        now >= watched.since + watched.lasts
    }

    /// Ends a Lease that is as it was seen; whether it did.
    async fn end(&self, mut lease: Lease, signature: &str) -> Result<bool, SharedError> {
        let Some(name) = lease.metadata.name.clone() else { return Ok(false) };
        lease.metadata.managed_fields = None;
        let annotations: &mut BTreeMap<String, String> = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(ENDED.to_owned(), signature.to_owned());
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        match self.ask(self.lease_objects.replace(&name, &PostParams::default(), &lease)).await? {
            Ok(_) => Ok(true),
            Err(status) if matches!(status.code, 404 | 409) => Ok(false),
            Err(status) => Err(self.failed(bounded(&status.message))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::object::number, *};

    #[test]
    fn a_lease_is_signed_by_its_node_and_a_number_that_no_other_has() {
        let numbers: BTreeSet<u64> = (0..100).map(|_| new_number().expect("a number")).collect();
        assert_eq!(numbers.len(), 100);
        assert!(numbers.iter().all(|number| i64::try_from(*number).is_ok_and(|number| number > 0)));
        for node in ["node-1", "a_b", "x"] {
            let signature = holder(node, 0x1f);
            assert_eq!(number(node, &signature), Some(0x1f), "{signature}");
            for other in ["node-2", "a", ""] {
                assert_eq!(number(other, &signature), None, "{other}: {signature}");
            }
        }
        assert_eq!([number("n", "n_1f"), number("n", "n_+00000000000001f"), number("n", "n")], [None; 3]);
    }
}
