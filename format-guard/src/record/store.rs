//! What a store of records must do, whichever it is.

use std::path::{Path, PathBuf};

use super::{Record, Seconds, State};
use crate::volume::VolumeId;

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
    /// How often it happened: refusals of one program on one volume, of the same operation and for the same reason, are one
    /// line a day.
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
    /// The command that would permit one re-format, where that is what would help: a volume that reads as it was recorded was about
    /// to lose its format.
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

/// A copy of the bytes that make a volume findable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCopy {
    /// The generation of the record that it belongs to.
    pub generation: u64,
    /// When it was taken, in seconds since 1970.
    pub at: Seconds,
    /// Size of the device then, in bytes.
    pub size: u64,
    /// The bytes, as `volume::copies::pack` makes them.
    pub packed: Vec<u8>,
}

/// That records were lost. Until an operator ends it nothing is armed but by a permit: what reads blank need not be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Loss {
    /// When that was found out, in seconds since 1970.
    pub at: Seconds,
    /// What was lost, for people.
    pub cause: String,
}

impl Loss {
    /// Name of the setting that holds an `Option<Loss>` as JSON; none: it was ended, or never was.
    pub const SETTING: &'static str = "records-lost";

    /// The database was damaged, and is kept at `aside`.
    #[must_use]
    pub fn of_damaged(aside: &Path, at: Seconds) -> Self {
        Self { at, cause: format!("the database was damaged and is kept at {}", aside.display()) }
    }

    /// It is not there any more.
    #[must_use]
    pub fn of_missing(path: &Path, at: Seconds) -> Self {
        let path = path.display();
        Self {
            at,
            cause: format!("the database {path} was missing, though an agent ran in this boot before"),
        }
    }
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file cannot be used.
    #[error("cannot use the database {path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the way out.
        reason: String,
    },
    /// Written by another version.
    #[error("the database {path} has version {found}, this program knows up to {known}: install a newer one")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest known here.
        known: i64,
    },
    /// `SQLite` says no.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row is not what this program writes.
    #[error("database: volume {volume}: {reason}")]
    Row {
        /// The volume.
        volume: String,
        /// What is wrong.
        reason: String,
    },
}

/// Which lines of the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those after this number.
    pub after: i64,
    /// The newest so many of them.
    pub limit: u32,
    /// Of this volume alone.
    pub volume: Option<String>,
    /// Not before this time.
    pub since: Seconds,
}

/// Keeps records and their history. Every write is durable when it returns.
pub trait Store {
    /// The record of a volume.
    fn get(&self, id: &VolumeId) -> Result<Option<Record>, StoreError>;
    /// Stores a record, with what is to be told of it, in one transaction.
    fn put(&mut self, record: &Record, told: &[HistoryEvent]) -> Result<(), StoreError> {
        self.put_all(&[(record, told)])
    }
    /// Stores records, each with what is to be told of it, in one transaction.
    fn put_all(&mut self, records: &[(&Record, &[HistoryEvent])]) -> Result<(), StoreError>;
    /// Stores a record in the place of others that are the same volume's, with what is to be told of it, in one transaction: their
    /// ids and names, copies and history are its own from now on.
    fn replace(
        &mut self,
        gone: &[VolumeId],
        record: &Record,
        told: &[HistoryEvent],
    ) -> Result<(), StoreError>;
    /// Every name, ids among them, with the id of the volume that it names.
    fn names(&self) -> Result<Vec<(VolumeId, VolumeId)>, StoreError>;
    /// Gives volumes that are on record names beside their ids, in one transaction. A name that was another volume's is no more.
    fn put_names(&mut self, names: &[(VolumeId, VolumeId)]) -> Result<(), StoreError>;
    /// Every record, by id.
    fn list(&self) -> Result<Vec<Record>, StoreError>;
    /// How many records are in each state.
    fn counts(&self) -> Result<Vec<(State, u64)>, StoreError>;
    /// The first volumes, by id, whose id begins with this.
    fn beginning_with(&self, prefix: &str, limit: usize) -> Result<Vec<VolumeId>, StoreError>;
    /// Volumes of which the kernel was told in this boot that they may be formatted, and not yet what came of it.
    fn armed(&self, boot: &str) -> Result<Vec<VolumeId>, StoreError>;
    /// The first records of volumes that hold a format, by id, after this one.
    fn formatted_after(&self, after: Option<&VolumeId>, limit: usize) -> Result<Vec<Record>, StoreError>;
    /// Adds to the history.
    fn tell(&mut self, told: &[HistoryEvent]) -> Result<(), StoreError>;
    /// Lines of the history, oldest first.
    fn history(&self, wanted: &Wanted) -> Result<Vec<HistoryEvent>, StoreError>;
    /// Deletes a record, with what is to be told of it; its history stays.
    fn forget(&mut self, id: &VolumeId, told: &[HistoryEvent]) -> Result<(), StoreError>;
    /// Deletes the records of volumes that are worth none: never formatted, not armed, of which no operator has said anything,
    /// and not seen since `before`. Those that are `present` are seen `now`. How many were deleted. A weak identity that
    /// was there in an earlier boot is remembered for good: by that it is not armed.
    fn prune(&mut self, present: &[&VolumeId], now: Seconds, before: Seconds) -> Result<u64, StoreError>;
    /// Keeps copies of volumes that are on record, each in the place of the one before, in one transaction.
    fn put_copies(&mut self, copies: &[(VolumeId, StoredCopy)]) -> Result<(), StoreError>;
    /// The generation that the copy of a volume belongs to, and when it was taken.
    fn copied(&self, id: &VolumeId) -> Result<Option<(u64, Seconds)>, StoreError>;
    /// The copy of a volume.
    fn copy(&self, id: &VolumeId) -> Result<Option<StoredCopy>, StoreError>;
    /// What an operator has set for the whole guard.
    fn setting(&self, name: &str) -> Result<Option<String>, StoreError>;
    /// Sets it, with what is to be told of it.
    fn set(&mut self, name: &str, value: &str, told: &[HistoryEvent]) -> Result<(), StoreError>;
}
