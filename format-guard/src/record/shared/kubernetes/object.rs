//! The object of a volume in a Kubernetes API server, kind `GuardedVolume`: what is read of it, and how it is
//! written. Pure functions.
//!
//! They must never take an object for another volume's, nor let through what no agent writes: whoever may
//! write there is not trusted.

use std::{borrow::Cow, time::Duration};

use k8s_openapi::{
    ClusterResourceScope, api::core::v1::PersistentVolume, apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::Timestamp,
};
use kube::{
    Resource,
    api::{ObjectMeta, TypeMeta},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::{Claim, MAX_VALUE, Observed, Shared, ValueError, is_text};
use crate::{
    record::{Permit, Seconds},
    volume::{VolumeId, provisioned},
};

/// The group of the kind.
pub const GROUP: &str = "format-guard.io";
/// Its version.
pub const VERSION: &str = "v1alpha1";
const KIND: &str = "GuardedVolume";
const PLURAL: &str = "guardedvolumes";
/// A label that repeats the name: by it some objects are watched in one request.
pub const NAME_LABEL: &str = "format-guard.io/volume";
/// A label with the name of the `PersistentVolume`, where the volume's id has it.
pub const PERSISTENT_VOLUME_LABEL: &str = "format-guard.io/persistent-volume";
/// How long rules of admission may go by a Lease that has changed: they read what they are told by a watch.
pub const RULES_LAG: Duration = Duration::from_millis(200);
/// Bytes of a hash that a name has.
const NAME: usize = 16;

/// A volume that nodes share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GuardedVolume {
    /// Version and kind.
    #[serde(flatten, default)]
    pub types: Option<TypeMeta>,
    /// Name, version and labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What operators say: [`Spec`].
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub spec: Value,
    /// What nodes have seen: [`Status`].
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub status: Value,
}

impl Resource for GuardedVolume {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What operators say of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// The volume's id.
    pub id: String,
    /// The `PersistentVolume` that its id names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume: Option<String>,
    /// One re-format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<SpecPermit>,
}

/// An operator's permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecPermit {
    /// Why.
    pub reason: String,
    /// Who gives it, as the cluster knows them.
    pub by: String,
    /// When it was given, as RFC 3339 has it.
    pub from: String,
    /// When it ends, used or not.
    pub until: String,
}

impl SpecPermit {
    fn permit(&self) -> Result<Permit, ValueError> {
        let time = |text: &str| -> Result<Seconds, ValueError> {
            let time: Timestamp =
                text.parse().map_err(|_| malformed("its permit has no time where one belongs"))?;
            Ok(time.as_second())
        };
        if !is_text(&self.reason) || !is_text(&self.by) {
            return Err(malformed("its permit has a text that no terminal should show"));
        }
        Ok(Permit {
            reason: format!("{} ({})", self.reason, self.by),
            uid: Permit::BY_CLUSTER,
            at: time(&self.from)?,
            expires: time(&self.until)?,
            used: false,
        })
    }
}

/// What nodes have seen of a volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The record: [`Shared`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Value>,
    /// Who has claimed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<StatusClaim>,
    /// The permit of the spec that was taken up last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<SpecPermit>,
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusClaim {
    /// The node.
    pub node: String,
    /// The holder of the node's Lease under which it holds.
    pub lease: String,
}

/// How a node signs its Lease.
pub(super) fn holder(node: &str, lease: u64) -> String {
    format!("{node}_{lease:016x}")
}

/// The number in a node's signature.
pub(super) fn number(node: &str, holder: &str) -> Option<u64> {
    let digits = holder.strip_prefix(node)?.strip_prefix('_')?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (self::holder(node, number) == holder).then_some(number)
}

/// The name of a volume's object: an id has more than names may have, and is longer.
#[must_use]
pub fn name(id: &VolumeId) -> String {
    let hash = Sha256::digest(id.as_str().as_bytes());
    hash[..NAME].iter().fold(String::new(), |name, byte| format!("{name}{byte:02x}"))
}

/// The `PersistentVolume` that an id names.
#[must_use]
pub fn persistent_volume(id: &VolumeId) -> Option<&str> {
    provisioned::name_in(id.as_str())
}

/// A version as a number: of one object a newer one is greater. API servers say so since Kubernetes 1.35, and
/// were so before (etcd's revision of the key).
pub(super) fn revision(version: &str) -> Option<i64> {
    version.parse().ok().filter(|number| *number > 0)
}

fn malformed(what: &str) -> ValueError {
    ValueError::Malformed(what.to_owned())
}

impl GuardedVolume {
    fn named(id: &VolumeId) -> Self {
        let metadata = ObjectMeta { name: Some(name(id)), ..ObjectMeta::default() };
        Self { types: Some(TypeMeta::resource::<Self>()), metadata, ..Self::default() }
    }

    /// A new one, which goes with the `PersistentVolume`.
    pub(super) fn new(id: &VolumeId, owner: Option<&PersistentVolume>) -> Self {
        let mut new = Self::named(id);
        let labels = new.metadata.labels.get_or_insert_default();
        labels.insert(NAME_LABEL.to_owned(), name(id));
        let persistent_volume = persistent_volume(id).map(str::to_owned);
        if let Some(name) = &persistent_volume {
            labels.insert(PERSISTENT_VOLUME_LABEL.to_owned(), name.clone());
        }
        new.metadata.owner_references = owner.and_then(|owner| {
            let reference = OwnerReference {
                api_version: "v1".to_owned(),
                kind: "PersistentVolume".to_owned(),
                name: owner.metadata.name.clone()?,
                uid: owner.metadata.uid.clone()?,
                ..OwnerReference::default()
            };
            Some(vec![reference])
        });
        let spec = Spec { id: id.to_string(), persistent_volume, permit: None };
        // Maps with keys that are no text are what cannot be written; it has none.
        new.spec = serde_json::to_value(spec).unwrap_or_default();
        new
    }

    /// One with this status, in the place of this version.
    pub(super) fn with_status(
        id: &VolumeId,
        version: &str,
        record: Option<&Shared>,
        claim: Option<&Claim>,
        permit: Option<&SpecPermit>,
    ) -> Self {
        let status = Status {
            record: record.and_then(|record| serde_json::to_value(record).ok()).map(without_nulls),
            claim: claim.map(|claim| StatusClaim {
                node: claim.node.clone(),
                lease: holder(&claim.node, claim.lease),
            }),
            permit: permit.cloned(),
        };
        let mut new = Self::named(id);
        new.metadata.resource_version = Some(version.to_owned());
        new.status = serde_json::to_value(status).unwrap_or_default();
        new
    }
}

/// An API server takes no null where an object or a text belongs.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(members.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// What an object tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The record, and the claim, in force or not.
    pub seen: Observed,
    /// The permit of the spec.
    pub permit: Option<SpecPermit>,
}

/// Reads a volume's object.
pub fn read(object: &GuardedVolume, id: &VolumeId) -> Result<Read, ValueError> {
    let of_json = |error: serde_json::Error| ValueError::Malformed(error.to_string());
    let spec = Spec::deserialize(&object.spec).map_err(of_json)?;
    if spec.id != id.as_str() {
        return Err(malformed("it is another volume's"));
    }
    let status = match &object.status {
        Value::Null => Status::default(),
        status => Status::deserialize(status).map_err(of_json)?,
    };
    let revision = object.metadata.resource_version.as_deref().and_then(revision);
    let revision = revision.ok_or_else(|| malformed("its version is no number"))?;
    let mut shared = match status.record {
        None => None,
        Some(record) => {
            let bytes = serde_json::to_vec(&record).map_err(of_json)?;
            if bytes.len() > MAX_VALUE {
                return Err(malformed("it is larger than 64 KiB"));
            }
            Some(Shared::read(&bytes)?)
        }
    };
    let claim = match status.claim {
        None => None,
        Some(StatusClaim { node, lease }) => {
            let lease = number(&node, &lease).filter(|_| is_text(&node));
            let lease = lease.ok_or_else(|| malformed("its claim has what no agent writes"))?;
            Some(Claim { lease, node, revision })
        }
    };
    // One that was taken up is the record's, until it is used.
    if let Some(permit) = spec.permit.as_ref().filter(|permit| status.permit.as_ref() != Some(permit)) {
        shared.get_or_insert_default().permit = Some(permit.permit()?);
    }
    Ok(Read { seen: Observed { shared, revision, claim }, permit: spec.permit })
}
