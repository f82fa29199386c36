//! The desired state of each volume that nodes share, as the reconciler wants it now: only the last word
//! counts.
//!
//! The reconciler writes it, the claim worker reads it; neither waits for the other.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};

use super::message::OperatorCommand;
use crate::{record::shared::Desired, volume::VolumeId};

/// What the reconciler wants of each volume, as it is now: only the last word counts.
#[derive(Clone)]
pub struct DesiredClaims(pub(super) Arc<Link>);

pub(super) struct Link {
    pub(super) state: Mutex<State>,
    pub(super) changed: Notify,
    pub(super) commands: mpsc::Sender<OperatorCommand>,
    pub(super) node: String,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) desired: HashMap<VolumeId, Desired>,
    /// Volumes whose desired state is new, or to be looked at again.
    pub(super) changed: BTreeSet<VolumeId>,
    /// Volumes that went and came again before that was carried out, and that may have been formatted by
    /// then.
    pub(super) touched: BTreeSet<VolumeId>,
    /// The number of the last report that these follow from.
    pub(super) acknowledged: u64,
    /// Other names of volumes, under which nodes of an earlier version keep what they know of them.
    pub(super) names: HashMap<VolumeId, Vec<VolumeId>>,
}

impl DesiredClaims {
    /// This node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.0.node
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the desired state of a volume. `again`: its status is to be reported again, even if it is the
    /// same.
    pub fn set(&self, id: &VolumeId, desired: Desired, again: bool) {
        let mut state = self.state();
        if state.desired.get(id) == Some(&desired) && !again {
            return;
        }
        let before = state.desired.insert(id.clone(), desired);
        if !state.changed.insert(id.clone()) && matches!(before, Some(Desired::Gone { clean: false, .. })) {
            state.touched.insert(id.clone());
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// The volume has these names, too.
    pub fn name(&self, id: &VolumeId, others: Vec<VolumeId>) {
        let mut state = self.state();
        if others.is_empty() {
            state.names.remove(id);
        } else {
            state.names.insert(id.clone(), others);
        }
    }

    /// Everything until this number was taken into account.
    pub fn acknowledge(&self, number: u64) {
        self.state().acknowledged = number;
        self.0.changed.notify_one();
    }

    /// Whether nothing of this volume is wanted any more.
    #[must_use]
    pub fn is_gone(&self, id: &VolumeId) -> bool {
        matches!(self.state().desired.get(id), None | Some(Desired::Gone { .. }))
    }

    /// Waits until what is not wanted any more is given up, or so long.
    pub async fn released(&self, patience: Duration) {
        let released = async {
            while self.state().desired.values().any(|desired| matches!(desired, Desired::Gone { .. })) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        // What is left ends with the lease.
        let _ = timeout(patience, released).await;
    }

    /// Asks for what an operator wants; where that is not possible, whoever asked is told why.
    pub fn command(&self, command: OperatorCommand) {
        if let Err(error) = self.0.commands.try_send(command) {
            error.into_inner().fail("too many other requests wait for the store: try again");
        }
    }
}
