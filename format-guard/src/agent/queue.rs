//! What the reconciler reacts to comes in by two queues: thousands of devices that appear at once must hold
//! up neither an operator's question nor what the kernel tells.

use std::time::Duration;

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::message::{Input, ProbeAnswer, Reply, Request};
use crate::api::{Failure, FailureKind};

/// Inputs that wait in each queue at most; who sends more waits.
const QUEUE: usize = 1024;
/// Urgent inputs after which one of the others has its turn.
const IN_A_ROW: u32 = 64;
/// Answers of probes that are taken together at most.
const TOGETHER: usize = 256;

/// Where inputs are sent.
pub(super) struct Senders {
    /// What somebody waits for, or the kernel tells.
    pub(super) urgent: mpsc::Sender<Input>,
    /// Devices, probes and time.
    pub(super) others: mpsc::Sender<Input>,
}

/// Where they come out.
pub struct Inputs {
    urgent: mpsc::Receiver<Input>,
    others: mpsc::Receiver<Input>,
    /// Taken, and not given yet.
    kept: Option<Input>,
    in_a_row: u32,
}

pub(super) fn channels() -> (Senders, Inputs) {
    let ((urgent, urgents), (others, rest)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
    (Senders { urgent, others }, Inputs { urgent: urgents, others: rest, kept: None, in_a_row: 0 })
}

/// Asks the reconciler, and waits for its answer: not longer than this, where that is said.
pub(super) async fn ask(
    inputs: &mpsc::Sender<Input>,
    request: Request,
    uid: u32,
    patience: Option<Duration>,
) -> Result<Reply, Failure> {
    let answer = async {
        let (sender, receiver) = oneshot::channel();
        inputs.send(Input::Asked { request, uid, reply: sender }).await.map_err(|_| stopping())?;
        receiver.await.map_err(|_| stopping())?
    };
    match patience {
        None => answer.await,
        Some(patience) => timeout(patience, answer).await.unwrap_or_else(|_| {
            let text = format!("the agent gave no answer within {} s", patience.as_secs());
            Err(Failure::new(FailureKind::Failed, text))
        }),
    }
}

/// What a client is told whose question nobody takes any more.
pub(super) fn stopping() -> Failure {
    Failure::new(FailureKind::Failed, "the agent is stopping")
}

impl Inputs {
    /// Waits for the next one; `None` when every sender is gone. Blocks: not for a thread that runs tasks.
    pub(super) fn next(&mut self, runtime: &Handle) -> Option<Input> {
        self.waiting().or_else(|| {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    Some(input) = self.urgent.recv() => Some(input),
                    input = self.others.recv() => input,
                }
            })
        })
    }

    /// The next one, if it is there.
    pub(super) fn waiting(&mut self) -> Option<Input> {
        if self.in_a_row >= IN_A_ROW {
            self.in_a_row = 0;
            if let Some(input) = self.kept.take().or_else(|| self.others.try_recv().ok()) {
                return Some(input);
            }
        }
        if let Ok(input) = self.urgent.try_recv() {
            self.in_a_row += 1;
            return Some(input);
        }
        self.in_a_row = 0;
        self.kept.take().or_else(|| self.others.try_recv().ok())
    }

    /// This answer, and the answers that came right behind it.
    pub(super) fn together(&mut self, first: ProbeAnswer) -> Vec<ProbeAnswer> {
        let mut answers = vec![first];
        while self.kept.is_none() && answers.len() < TOGETHER {
            match self.others.try_recv() {
                Ok(Input::Probed(answer)) => answers.push(answer),
                Ok(other) => self.kept = Some(other),
                Err(_) => break,
            }
        }
        answers
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_none() && self.urgent.is_empty() && self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::volume::{Dev, probe::ProbeError};

    fn answer(minor: u32) -> Input {
        let dev = Dev { major: 7, minor };
        Input::Probed(ProbeAnswer {
            dev,
            diskseq: 1,
            begun: Instant::now(),
            result: Err(ProbeError::Deadline),
            twice: false,
            copy: None,
        })
    }

    fn word(input: Option<Input>) -> String {
        match input {
            Some(Input::Probed(answer)) => format!("probed {}", answer.dev.minor),
            Some(Input::Changed { name, .. }) => name,
            Some(Input::Tick) => "tick".to_owned(),
            Some(Input::UeventsLost) => "urgent".to_owned(),
            Some(_) => "other".to_owned(),
            None => "end".to_owned(),
        }
    }

    #[test]
    fn what_is_urgent_comes_first_and_the_others_have_their_turn() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let (senders, mut inputs) = channels();
        for _ in 0..=IN_A_ROW {
            senders.urgent.try_send(Input::UeventsLost).expect("room");
        }
        senders.others.try_send(Input::Tick).expect("room");
        drop(senders);
        let words: Vec<String> = (0..=IN_A_ROW + 2).map(|_| word(inputs.next(runtime.handle()))).collect();
        let place = |wanted: &str| words.iter().position(|word| word == wanted);
        assert_eq!((place("tick"), place("end")), (Some(IN_A_ROW as usize), Some(IN_A_ROW as usize + 2)));
    }

    #[test]
    fn answers_are_taken_together_and_what_comes_behind_them_is_not_lost() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let (senders, mut inputs) = channels();
        for input in [
            answer(0),
            answer(1),
            Input::Changed { name: "sda".to_owned(), received_at: Instant::now() },
            answer(2),
        ] {
            senders.others.try_send(input).expect("room");
        }
        let Some(Input::Probed(first)) = inputs.next(runtime.handle()) else { panic!("no answer") };
        let minors: Vec<u32> = inputs.together(first).into_iter().map(|answer| answer.dev.minor).collect();
        assert_eq!(minors, [0, 1]);
        assert!(!inputs.is_empty());
        senders.urgent.try_send(Input::UeventsLost).expect("room");
        let words: Vec<String> = (0..3).map(|_| word(inputs.next(runtime.handle()))).collect();
        assert_eq!(words, ["urgent", "sda", "probed 2"]);
        assert!(inputs.is_empty());
    }
}
