//! What a store that nodes share must do, whichever it is.

use std::{collections::BTreeSet, future::Future, sync::Arc};

use tokio::sync::{mpsc, watch};

use super::{ClaimStatus, Desired, Format, NodeLease, Observed, ValueError, Write, plan};
use crate::{record::Seconds, volume::VolumeId};

/// Why the store that nodes share failed.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// It gave no answer.
    #[error("{endpoint} gave no answer in {seconds} s (store.timeout)")]
    Timeout {
        /// Who.
        endpoint: String,
        /// How long.
        seconds: u64,
    },
    /// It says no, or cannot be reached.
    #[error("{endpoint}: {reason}")]
    Failed {
        /// Who.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// The lease is gone.
    #[error("the lease of this node has ended")]
    LeaseEnded,
    /// A file that the configuration names.
    #[error("{key}: cannot read {path}: {reason}")]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// A lease as the store gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The store's name for it.
    pub id: u64,
    /// How long it lasts from the question on, in seconds.
    pub seconds: u64,
}

/// What an operator is told whose word the whole cluster's store does not take from a node.
#[derive(Clone, Copy, Debug)]
pub struct Elsewhere {
    /// Of a permit.
    pub permit: &'static str,
    /// Of a volume that is to be forgotten.
    pub forget: &'static str,
}

/// A connection to the store.
pub trait Session: Send + Sync + Sized + 'static {
    /// Where operators permit and forget, if that is not at their node.
    const ELSEWHERE: Option<Elsewhere> = None;

    /// A new lease.
    fn grant(&self, seconds: u64) -> impl Future<Output = Result<Granted, SharedError>> + Send;
    /// How long the lease lasts from the question on, in seconds; an error where it is gone.
    fn keep_alive(&self, lease: u64) -> impl Future<Output = Result<Granted, SharedError>> + Send;
    /// What the store has of these volumes, in their order; of one moment for as many as one question takes.
    fn look(
        &self,
        ids: &[VolumeId],
    ) -> impl Future<Output = Result<Vec<Result<Observed, ValueError>>, SharedError>> + Send;
    /// One transaction: the store's revision of it; none where the record or the claim is not as it was seen
    /// any more.
    fn write(
        &self,
        id: &VolumeId,
        observed: &Observed,
        write: &Write,
        node: &str,
    ) -> impl Future<Output = Result<Option<i64>, SharedError>> + Send;
    /// Whether it is known to have this format or a newer one, without being asked.
    fn has(&self, id: &VolumeId, format: &Format) -> bool {
        let _ = (id, format);
        false
    }
    /// Tells of every change of these volumes, and of each once more when it is first watched. Ends with an
    /// error alone.
    fn watch(
        self: Arc<Self>,
        wanted: watch::Receiver<BTreeSet<VolumeId>>,
        changed: mpsc::Sender<VolumeId>,
    ) -> impl Future<Output = SharedError> + Send;
}

/// Makes connections.
pub trait Connect: Send + 'static {
    /// What it makes.
    type Session: Session;

    /// The next one: to another member, if there is one and the last one failed.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Session, SharedError>> + Send;
}

/// Transactions of one volume in a row: another node was faster each time.
pub const TRIES: u32 = 8;

/// Where a volume's way has led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is wanted then.
    pub desired: Desired,
    /// Where the node stands; nothing where others were faster each time.
    pub status: Option<ClaimStatus>,
    /// What the store had last.
    pub observed: Observed,
}

/// Writes what follows from what was seen until nothing more does. What was seen may be old: a write that it
/// leads to is made only if it still is so; where it leads to none, the caller must know that it is new.
pub async fn converge<S: Session>(
    session: &S,
    id: &VolumeId,
    mut desired: Desired,
    mut observed: Observed,
    me: NodeLease<'_>,
    now: Seconds,
) -> Result<Progress, SharedError> {
    for _ in 0..TRIES {
        let (write, status) = plan(&observed, &desired, me, now);
        let Some(write) = write else { return Ok(Progress { desired, status: Some(status), observed }) };
        if let Some(revision) = session.write(id, &observed, &write, me.node).await? {
            desired = desired.after(&write);
            // What was written is what is there.
            observed = observed.after(write, revision, me.node);
            continue;
        }
        match session.look(std::slice::from_ref(id)).await?.pop() {
            Some(Ok(newer)) => observed = newer,
            Some(Err(error)) => {
                return Ok(Progress {
                    desired,
                    status: Some(ClaimStatus::Unreadable(error.to_string())),
                    observed,
                });
            }
            None => break,
        }
    }
    Ok(Progress { desired, status: None, observed })
}
