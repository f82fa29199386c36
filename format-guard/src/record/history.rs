//! Lines of the history, and the facts of a refusal: what people and machines are told, today and later.

use super::Seconds;
use crate::policy::InForce;

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryEvent {
    /// Its number, rising. Zero before it is stored.
    pub id: i64,
    /// When it happened last, in seconds since 1970.
    pub at: Seconds,
    /// The volume, or empty for the guard itself.
    pub volume: String,
    /// A stable word: `denied`, `would-deny`, `formatted`, ...
    pub kind: String,
    /// A sentence.
    pub text: String,
    /// The facts of a refusal; the newest, where it is told of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// How often it happened: refusals of one program on one volume, of the same operation and for the same
    /// reason, are one line a day.
    #[serde(default = "once")]
    pub count: u64,
    /// When it happened first, in seconds since 1970; zero: of a version that did not count.
    #[serde(default)]
    pub first: Seconds,
    /// An operator did it: kept for good.
    #[serde(default)]
    pub by_operator: bool,
}

const fn once() -> u64 {
    1
}

impl HistoryEvent {
    /// One that is not stored yet, and no refusal.
    #[must_use]
    pub fn new(at: Seconds, volume: String, kind: &str, text: String) -> Self {
        Self {
            id: 0,
            at,
            volume,
            kind: kind.to_owned(),
            text,
            refusal: None,
            count: 1,
            first: at,
            by_operator: false,
        }
    }

    /// The same as an operator's doing.
    #[must_use]
    pub fn by_operator(self) -> Self {
        Self { by_operator: true, ..self }
    }
}

/// The facts of a refusal, as the kernel told them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refusal {
    /// Why: a name of `format_guard_common::Reason`.
    pub reason: String,
    /// What was tried: a name of `format_guard_common::Operation`.
    pub operation: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The device's name, or its number when it is gone.
    pub device: String,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Name of the program, as the kernel keeps it.
    pub comm: String,
    /// Path of its executable, where it could still be read.
    pub exe: Option<String>,
    /// Its control group (v2), by number.
    pub cgroup: u64,
    /// The container that it runs in, if it runs in one.
    #[serde(default)]
    pub container: Option<String>,
    /// The tier that refused it.
    #[serde(default)]
    pub tier: String,
    /// The volume in Kubernetes' words, where its name is one that a provisioner gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesFacts>,
    /// The declared policy that holds for the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<InForce>,
    /// The device below through which it was tried, where that is another one.
    #[serde(default)]
    pub through: Option<String>,
    /// State of the volume, what brought it there, and since when.
    #[serde(default)]
    pub state: String,
    /// What brought the volume into its state.
    #[serde(default)]
    pub cause: String,
    /// Since when it is in its state, in seconds since 1970.
    #[serde(default)]
    pub since: Seconds,
    /// The command that would permit one re-format, where that is what would help: a volume that reads as it
    /// was recorded was about to lose its format.
    #[serde(default)]
    pub permit: Option<String>,
    /// What can be done about it, for people.
    #[serde(default)]
    pub way_out: String,
}

/// What a node knows of a volume in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KubernetesFacts {
    /// Name of the `PersistentVolume`.
    pub persistent_volume: String,
    /// UID of the `PersistentVolumeClaim` that it was made for.
    pub claim_uid: String,
    /// Pods on this node that use it.
    pub pods: Vec<Pod>,
}

/// A pod on this node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its namespace, once it has logs.
    pub namespace: Option<String>,
    /// Its name, once it has logs.
    pub name: Option<String>,
}
