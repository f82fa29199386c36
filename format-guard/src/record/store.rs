//! What a store of records must do, whichever it is.

use std::path::{Path, PathBuf};

use super::{Record, Seconds, State, history::HistoryEvent};
use crate::volume::VolumeId;

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

/// That records were lost. Until an operator ends it nothing is armed but by a permit: what reads blank need
/// not be.
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
    /// The file is not what this program has written: it is set aside.
    #[error("database: damaged: {reason}")]
    Damaged {
        /// What was found.
        reason: String,
    },
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
    /// Stores a record, with its lines of the history, in one transaction.
    fn put(&mut self, record: &Record, events: &[HistoryEvent]) -> Result<(), StoreError> {
        self.put_all(&[(record, events)])
    }
    /// Stores records, each with its lines of the history, in one transaction.
    fn put_all(&mut self, records: &[(&Record, &[HistoryEvent])]) -> Result<(), StoreError>;
    /// Stores a record in the place of others that are the same volume's, with its lines of the history, in
    /// one transaction: their ids and names, copies and history are its own from now on.
    fn replace(
        &mut self,
        gone: &[VolumeId],
        record: &Record,
        events: &[HistoryEvent],
    ) -> Result<(), StoreError>;
    /// Every name, ids among them, with the id of the volume that it names.
    fn names(&self) -> Result<Vec<(VolumeId, VolumeId)>, StoreError>;
    /// Gives volumes that are on record names beside their ids, in one transaction. A name that was another
    /// volume's is no more.
    fn put_names(&mut self, names: &[(VolumeId, VolumeId)]) -> Result<(), StoreError>;
    /// Every record, by id.
    fn list(&self) -> Result<Vec<Record>, StoreError>;
    /// How many records are in each state.
    fn counts(&self) -> Result<Vec<(State, u64)>, StoreError>;
    /// The first volumes, by id, whose id begins with this.
    fn beginning_with(&self, prefix: &str, limit: usize) -> Result<Vec<VolumeId>, StoreError>;
    /// Volumes of which the kernel was told in this boot that they may be formatted, and not yet what came of
    /// it.
    fn armed(&self, boot: &str) -> Result<Vec<VolumeId>, StoreError>;
    /// The first records of volumes that hold a format, by id, after this one.
    fn formatted_after(&self, after: Option<&VolumeId>, limit: usize) -> Result<Vec<Record>, StoreError>;
    /// Adds to the history.
    fn append_history(&mut self, events: &[HistoryEvent]) -> Result<(), StoreError>;
    /// Lines of the history, oldest first.
    fn history(&self, wanted: &Wanted) -> Result<Vec<HistoryEvent>, StoreError>;
    /// Deletes a record, with its lines of the history; its history stays.
    fn forget(&mut self, id: &VolumeId, events: &[HistoryEvent]) -> Result<(), StoreError>;
    /// Deletes the records of volumes that are worth none: never formatted, not armed, of which no operator
    /// has said anything, and not seen since `before`. Those that are `present` are seen `now`. How many were
    /// deleted. A weak identity that was there in an earlier boot is remembered for good: by that it is not
    /// armed.
    fn prune(&mut self, present: &[&VolumeId], now: Seconds, before: Seconds) -> Result<u64, StoreError>;
    /// Keeps copies of volumes that are on record, each in the place of the one before, in one transaction.
    fn put_copies(&mut self, copies: &[(VolumeId, StoredCopy)]) -> Result<(), StoreError>;
    /// The generation that the copy of a volume belongs to, and when it was taken.
    fn copied(&self, id: &VolumeId) -> Result<Option<(u64, Seconds)>, StoreError>;
    /// The copy of a volume.
    fn copy(&self, id: &VolumeId) -> Result<Option<StoredCopy>, StoreError>;
    /// What an operator has set for the whole guard.
    fn setting(&self, name: &str) -> Result<Option<String>, StoreError>;
    /// Sets it, with its lines of the history.
    fn set(&mut self, name: &str, value: &str, events: &[HistoryEvent]) -> Result<(), StoreError>;
}
