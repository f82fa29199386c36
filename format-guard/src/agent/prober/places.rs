//! Who probes next: devices that somebody waits for come before all others, and those that nobody has read
//! before those that only have changed; but not for ever.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::volume::Dev;

/// Of each queue so many have their turn in a row before one that comes after it has.
const IN_A_ROW: u32 = 4;

/// Which queue a device waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    /// Somebody waits for what it holds.
    Awaited,
    /// It is to be read.
    First,
    /// It has changed since it was read.
    Again,
}

const RANKS: [Rank; 3] = [Rank::Awaited, Rank::First, Rank::Again];

/// Places for so many probes at a time.
#[derive(Clone)]
pub(super) struct Places(Arc<Mutex<Queue>>);

/// One of them, for as long as it is kept.
pub(super) struct Place(Places);

struct Queue {
    free: usize,
    /// By [`Rank`]: who waits, and how many of them have had their turn while others behind them waited.
    queues: [(VecDeque<Waiting>, u32); RANKS.len()],
}

struct Waiting {
    attachment: (Dev, u64),
    turn: oneshot::Sender<()>,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue { free: count, queues: Default::default() })))
    }

    /// Waits for a place.
    pub(super) async fn acquire(&self, attachment: (Dev, u64), rank: Rank) -> Place {
        let turn = self.queue().queue_up(attachment, rank);
        if let Some(turn) = turn {
            // Whoever is taken from the queue is told.
            let _ = turn.await;
        }
        Place(self.clone())
    }

    /// Somebody waits for what a probe of this device says.
    pub(super) fn hurry(&self, attachment: (Dev, u64)) {
        let [(awaited, _), others @ ..] = &mut self.queue().queues;
        for (others, _) in others {
            let place = others.iter().position(|waiting| waiting.attachment == attachment);
            awaited.extend(place.and_then(|place| others.remove(place)));
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
    fn queue_up(&mut self, attachment: (Dev, u64), rank: Rank) -> Option<oneshot::Receiver<()>> {
        if self.free > 0 {
            self.free -= 1;
            return None;
        }
        let (turn, told) = oneshot::channel();
        self.queues[rank as usize].0.push_back(Waiting { attachment, turn });
        Some(told)
    }

    fn next(&mut self) -> Option<Waiting> {
        for rank in 0..self.queues.len() {
            let others_wait = self.queues[rank + 1..].iter().any(|(queue, _)| !queue.is_empty());
            let (queue, in_a_row) = &mut self.queues[rank];
            if others_wait && *in_a_row == IN_A_ROW {
                *in_a_row = 0;
            } else if let Some(waiting) = queue.pop_front() {
                *in_a_row = if others_wait { *in_a_row + 1 } else { 0 };
                return Some(waiting);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(minor: u32) -> (Dev, u64) {
        (Dev { major: 7, minor }, 1)
    }

    /// The order in which those are served that wait for one place, of which some are read already and some
    /// are hurried.
    async fn served(count: u32, read: &[u32], hurried: impl Iterator<Item = u32>) -> Vec<u32> {
        let places = Places::new(1);
        let first = places.acquire(attachment(u32::MAX), Rank::First).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting: Vec<_> = (0..count)
            .map(|minor| {
                let rank = if read.contains(&minor) { Rank::Again } else { Rank::First };
                let turn = places.queue().queue_up(attachment(minor), rank).expect("the place is taken");
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
        assert_eq!(served(4, &[], [3].into_iter()).await, [3, 0, 1, 2]);
        assert_eq!(served(3, &[], [9].into_iter()).await, [0, 1, 2]);
    }

    #[tokio::test]
    async fn what_was_never_read_comes_before_what_has_changed() {
        assert_eq!(served(4, &[0, 1], [].into_iter()).await, [2, 3, 0, 1]);
        assert_eq!(served(4, &[0, 1], [1].into_iter()).await, [1, 2, 3, 0]);
    }

    #[tokio::test]
    async fn the_others_have_their_turn_in_a_storm() {
        let order = served(100, &[], 1..100).await;
        assert_eq!(order.iter().position(|minor| *minor == 0), Some(IN_A_ROW as usize), "{order:?}");
        let order = served(100, &[0], [].into_iter()).await;
        assert_eq!(order.iter().position(|minor| *minor == 0), Some(IN_A_ROW as usize), "{order:?}");
        let order = served(100, &[0], 2..100).await;
        let one = order.iter().position(|minor| *minor == 1);
        assert_eq!(one, Some(IN_A_ROW as usize), "{order:?}");
        assert!(order.iter().position(|minor| *minor == 0) < Some(3 * IN_A_ROW as usize), "{order:?}");
    }
}
