//! Who probes next: devices that somebody waits for come before all others, but not for ever.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::volume::Dev;

/// Devices that somebody waits for after which one of the others has its turn.
const IN_A_ROW: u32 = 4;

/// Places for so many probes at a time.
#[derive(Clone)]
pub(super) struct Places(Arc<Mutex<Queue>>);

/// One of them, for as long as it is kept.
pub(super) struct Place(Places);

struct Queue {
    free: usize,
    awaited: VecDeque<Waiting>,
    others: VecDeque<Waiting>,
    in_a_row: u32,
}

struct Waiting {
    attachment: (Dev, u64),
    turn: oneshot::Sender<()>,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        let (awaited, others) = (VecDeque::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(Queue { free: count, awaited, others, in_a_row: 0 })))
    }

    /// Waits for a place.
    pub(super) async fn acquire(&self, attachment: (Dev, u64)) -> Place {
        let turn = self.queue().queue_up(attachment);
        if let Some(turn) = turn {
            // Whoever is taken from the queue is told.
            let _ = turn.await;
        }
        Place(self.clone())
    }

    /// Somebody waits for what a probe of this device says.
    pub(super) fn hurry(&self, attachment: (Dev, u64)) {
        let mut queue = self.queue();
        let place = queue.others.iter().position(|waiting| waiting.attachment == attachment);
        if let Some(waiting) = place.and_then(|place| queue.others.remove(place)) {
            queue.awaited.push_back(waiting);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        while let Some(next) = queue.next() {
            // One that has gone meanwhile takes no place.
            if next.turn.send(()).is_ok() {
                return;
            }
        }
        queue.free += 1;
    }
}

impl Queue {
    /// Takes a place, or a place in the queue, where the turn is told.
    fn queue_up(&mut self, attachment: (Dev, u64)) -> Option<oneshot::Receiver<()>> {
        if self.free > 0 {
            self.free -= 1;
            return None;
        }
        let (turn, told) = oneshot::channel();
        self.others.push_back(Waiting { attachment, turn });
        Some(told)
    }

    fn next(&mut self) -> Option<Waiting> {
        if self.in_a_row < IN_A_ROW
            && let Some(waiting) = self.awaited.pop_front()
        {
            self.in_a_row += 1;
            return Some(waiting);
        }
        self.in_a_row = 0;
        self.others.pop_front().or_else(|| self.awaited.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(minor: u32) -> (Dev, u64) {
        (Dev { major: 7, minor }, 1)
    }

    /// The order in which those are served that wait for one place, of which these are hurried.
    async fn served(count: u32, hurried: impl Iterator<Item = u32>) -> Vec<u32> {
        let places = Places::new(1);
        let first = places.acquire(attachment(u32::MAX)).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting: Vec<_> = (0..count)
            .map(|minor| {
                let turn = places.queue().queue_up(attachment(minor)).expect("the place is taken");
                let (places, order) = (places.clone(), Arc::clone(&order));
                tokio::spawn(async move {
                    turn.await.expect("a turn");
                    order.lock().expect("no panic").push(minor);
                    drop(Place(places));
                })
            })
            .collect();
        hurried.for_each(|minor| places.hurry(attachment(minor)));
        drop(first);
        for task in waiting {
            task.await.expect("no panic");
        }
        assert_eq!(places.queue().free, 1);
        let order = order.lock().expect("no panic");
        order.clone()
    }

    #[tokio::test]
    async fn who_is_waited_for_is_next() {
        assert_eq!(served(4, [3].into_iter()).await, [3, 0, 1, 2]);
        assert_eq!(served(3, [9].into_iter()).await, [0, 1, 2]);
    }

    #[tokio::test]
    async fn the_others_have_their_turn_in_a_storm() {
        let order = served(100, 1..100).await;
        assert_eq!(order.iter().position(|minor| *minor == 0), Some(IN_A_ROW as usize), "{order:?}");
    }
}
