//! Lines of the history, kept until nothing else waits, and then stored together.

use tokio::sync::watch;
use tracing::error;

use super::Reconciler;
use crate::{
    agent::now,
    record::{history::HistoryEvent, store::Store},
};

/// Lines that wait to be stored together at most.
const MAX_TOGETHER: usize = 256;
/// Lines that wait while the store takes none: the oldest are dropped.
const MAX_WAITING: usize = 4096;

/// The lines that are not stored yet, and how many there have been.
pub(super) struct History {
    pending: Vec<HistoryEvent>,
    /// The store took none of them: they wait for the next resync.
    held_up: bool,
    /// Goes up with every line.
    seq: watch::Sender<u64>,
}

impl Default for History {
    fn default() -> Self {
        Self { pending: Vec::new(), held_up: false, seq: watch::Sender::new(0) }
    }
}

impl History {
    /// Goes up with every line.
    pub(super) fn seq(&self) -> watch::Receiver<u64> {
        self.seq.subscribe()
    }

    /// A line was stored together with what it is about.
    pub(super) fn advance(&self) {
        self.seq.send_modify(|seq| *seq += 1);
    }

    /// The store is tried again, though it took no line the last time.
    pub(super) fn try_again(&mut self) {
        self.held_up = false;
    }

    /// Keeps a line; a flood of refusals must not hold up what follows it by a commit for each.
    fn append(&mut self, event: HistoryEvent, store: &mut dyn Store) {
        self.pending.push(event);
        if self.pending.len() >= MAX_TOGETHER {
            self.store(store);
        }
        if self.pending.len() > MAX_WAITING {
            error!("the agent dropped {MAX_TOGETHER} events: the store takes none");
            self.pending.drain(..MAX_TOGETHER);
        }
    }

    fn store(&mut self, store: &mut dyn Store) {
        if self.pending.is_empty() || self.held_up {
            return;
        }
        if let Err(error) = store.append_history(&self.pending) {
            error!("{} events cannot be stored yet: {error}", self.pending.len());
            self.held_up = true;
            return;
        }
        self.pending.clear();
        self.advance();
    }
}

impl Reconciler {
    /// Adds a line to the history; `volume` is empty where it is about the guard itself.
    pub(super) fn append_history(&mut self, volume: String, kind: &str, text: String) {
        self.append_event(HistoryEvent::new(now(), volume, kind, text));
    }

    pub(super) fn append_event(&mut self, event: HistoryEvent) {
        self.history.append(event, &mut *self.store);
    }

    /// Stores the lines that wait.
    pub(super) fn store_history(&mut self) {
        self.history.store(&mut *self.store);
    }
}
