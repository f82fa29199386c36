//! Lines of the history, kept until nothing else waits, and then stored together.

use tokio::sync::watch;
use tracing::error;

use super::Reconciler;
use crate::{agent::now, record::store::HistoryEvent};

/// Lines of the history that wait to be stored together at most.
const MAX_UNTOLD: usize = 256;
/// Lines that wait while the store takes none: the oldest are dropped.
const MAX_WAITING: usize = 4096;

impl Reconciler {
    pub(super) fn tell(&mut self, volume: String, kind: &str, text: String) {
        self.tell_event(HistoryEvent::new(now(), volume, kind, text));
    }

    /// Keeps a line until nothing else waits: a flood of refusals must not hold up what follows it by a commit for each.
    pub(super) fn tell_event(&mut self, told: HistoryEvent) {
        self.untold.push(told);
        if self.untold.len() >= MAX_UNTOLD {
            self.store_untold();
        }
        if self.untold.len() > MAX_WAITING {
            error!("{MAX_UNTOLD} events are dropped: the store takes none");
            self.untold.drain(..MAX_UNTOLD);
        }
    }

    pub(super) fn store_untold(&mut self) {
        if self.untold.is_empty() || self.untold_waits {
            return;
        }
        if let Err(error) = self.store.tell(&self.untold) {
            error!("{} events cannot be stored yet: {error}", self.untold.len());
            self.untold_waits = true;
            return;
        }
        self.untold.clear();
        self.told.send_modify(|count| *count += 1);
    }

    /// Goes up with every line of the history.
    pub fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }
}
