//! Lines of the history, and the facts of a refusal, as people and machines read them.

use super::Seconds;
use crate::policy::InForce;

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryEvent {
    /// The event's number, which rises. Zero before the event is stored.
    pub id: i64,
    /// When the event happened last, in seconds since 1970.
    pub at: Seconds,
    /// The volume, or empty for the guard itself.
    pub volume: String,
    /// A stable word: `denied`, `would-deny`, `formatted`, ...
    pub kind: String,
    /// What happened, in a sentence.
    pub text: String,
    /// The facts of a refusal: of the newest one, if the line counts several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// How often the event happened: refusals of one program on one volume, of the same operation and for the
    /// same reason, are one line a day.
    #[serde(default = "once")]
    pub count: u64,
    /// When the event happened first, in seconds since 1970; zero from a version that did not count.
    #[serde(default)]
    pub first: Seconds,
    /// An operator caused the event, which is kept for good.
    #[serde(default)]
    pub by_operator: bool,
}

const fn once() -> u64 {
    1
}

impl HistoryEvent {
    /// An event that is not stored yet, and is no refusal.
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

    /// The same event, caused by an operator.
    #[must_use]
    pub fn by_operator(self) -> Self {
        Self { by_operator: true, ..self }
    }
}

/// The facts of a refusal, as the kernel reported them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refusal {
    /// Why the request was refused: a name of `format_guard_common::Reason`, or "unknown".
    pub reason: String,
    /// What the request was: a name of `format_guard_common::Operation`, or "unknown".
    pub operation: String,
    /// First byte of the request's range.
    pub offset: u64,
    /// Bytes in the range.
    pub length: u64,
    /// The device's name, or its number if the device is gone.
    pub device: String,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Name of the program, as the kernel keeps it.
    pub comm: String,
    /// Path of the program's executable, if it could still be read.
    pub exe: Option<String>,
    /// Number of the process's control group (v2).
    pub cgroup: u64,
    /// The container of the process, if it runs in one.
    #[serde(default)]
    pub container: Option<String>,
    /// The tier that refused the request.
    #[serde(default)]
    pub tier: String,
    /// What Kubernetes knows the volume as, if a provisioner gave the volume its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesFacts>,
    /// The declared policy that holds for the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<InForce>,
    /// The lower device through which the request came, if that is another one.
    #[serde(default)]
    pub through: Option<String>,
    /// The state of the volume, or "unknown".
    #[serde(default)]
    pub state: String,
    /// What brought the volume into its state.
    #[serde(default)]
    pub cause: String,
    /// Since when the volume is in its state, in seconds since 1970.
    #[serde(default)]
    pub since: Seconds,
    /// The command that permits one re-format, if a permit would help: the volume reads as it was recorded,
    /// and was about to lose its format.
    #[serde(default)]
    pub permit: Option<String>,
    /// What a person can do about the refusal.
    #[serde(default)]
    pub way_out: String,
}

/// What Kubernetes knows a volume as.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KubernetesFacts {
    /// Name of the `PersistentVolume`.
    pub persistent_volume: String,
    /// UID of the `PersistentVolumeClaim` that the volume was made for.
    pub claim_uid: String,
    /// Pods on this node that use the volume.
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
