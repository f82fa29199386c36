//! Those who wait until a device is read, whatever comes of it: what makes links to fresh devices, and
//! whoever formats them.

use tokio::sync::oneshot;

use super::{Reconciler, devices::may_hold, failure::bad};
use crate::{
    api::{Failure, Settled},
    record::transition,
    volume::Dev,
};

/// One who waits.
pub(super) struct Settler {
    dev: Dev,
    reply: oneshot::Sender<Result<Settled, Failure>>,
}

impl Reconciler {
    /// Answers now, or once the device is read.
    pub(super) fn settle_for(&mut self, selector: &str, reply: oneshot::Sender<Result<Settled, Failure>>) {
        let Some(dev) = selector.strip_prefix("dev=").and_then(Dev::parse) else {
            // The client may have gone.
            let _ = reply.send(Err(bad(format!("'{selector}' is no device: write dev=MAJOR:MINOR"))));
            return;
        };
        self.hurry(dev);
        self.settlers.push(Settler { dev, reply });
        self.answer_settlers();
    }

    /// Answers those whose device is read.
    pub(super) fn answer_settlers(&mut self) {
        if self.settlers.is_empty() {
            return;
        }
        for settler in std::mem::take(&mut self.settlers) {
            match self.settled(settler.dev) {
                Some(settled) => drop(settler.reply.send(Ok(settled))),
                None if settler.reply.is_closed() => {}
                None => self.settlers.push(settler),
            }
        }
    }

    /// What is known of a device that is read, or is not going to be; `None` while that is waited for.
    fn settled(&self, dev: Dev) -> Option<Settled> {
        let Some(record) = self.graph.id(dev).and_then(|id| self.records.get(id)) else {
            let device = self.host.devices.by_number(dev).filter(may_hold);
            return device.is_none().then_some(Settled { settled: true, state: None });
        };
        // A device that a node may come to name is unnamed for a while: nobody waits for that.
        let named = self.unnamed_since.contains_key(&dev);
        let settled = named || !transition::is_unread(record);
        settled.then(|| Settled { settled, state: Some(record.state.name().to_owned()) })
    }
}
