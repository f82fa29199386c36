//! That refusals are carried out was proven when the agent started, and is proven again every hour: what was
//! in force then may have been taken away since. A proof that fails ends nothing: the host goes on, and
//! everybody who asks is told.

use tracing::{error, info};

use super::Reconciler;
use crate::{
    agent::clocks,
    enforce::error::ProgramStatus,
    record::{Now, Seconds},
};

/// How long a proof lasts, in seconds.
pub(super) const LASTS: Seconds = 3600;

/// What is attached, and when the canary has proven it last.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Every kernel program of the tier.
    programs: Vec<ProgramStatus>,
    /// `None`: never.
    at: Option<Now>,
    /// Why it was not, at the last try.
    failure: Option<String>,
}

impl Proof {
    pub(super) const fn of(programs: Vec<ProgramStatus>, now: Now) -> Self {
        Self { programs, at: Some(now), failure: None }
    }

    pub(super) fn programs(&self) -> &[ProgramStatus] {
        &self.programs
    }

    /// Whether the newest try was a proof.
    pub(super) const fn holds(&self) -> bool {
        self.at.is_some() && self.failure.is_none()
    }

    /// In seconds since 1970; zero: never.
    pub(super) fn at(&self) -> Seconds {
        self.at.map_or(0, |at| at.wall)
    }

    /// What that means for who asks.
    pub(super) fn degraded(&self) -> Option<String> {
        let failure = self.failure.as_ref()?;
        Some(format!(
            "the guard does not refuse what it must: {failure}; restart the agent: systemctl restart format-guard"
        ))
    }

    /// One that failed is tried again at each look.
    fn is_due(&self, now: Now) -> bool {
        self.failure.is_some() || self.at.is_some_and(|at| at.boot + LASTS <= now.boot)
    }
}

impl Reconciler {
    /// Tries the canary again, when that is due.
    pub(super) fn prove_again(&mut self) {
        let now = clocks();
        if !self.proof.is_due(now) {
            return;
        }
        let before = self.proof.failure.take();
        match self.enforcer.prove() {
            Ok(()) => {
                self.proof.at = Some(now);
                if before.is_some() {
                    info!("the canary is refused again");
                    self.append_history(String::new(), "proven", "the canary is refused again".to_owned());
                }
            }
            Err(failure) => {
                let failure = failure.to_string();
                if before.as_ref() != Some(&failure) {
                    error!("enforcement is not proven any more: {failure}");
                    let text = format!("enforcement is not proven any more: {failure}");
                    self.append_history(String::new(), "not-proven", text);
                }
                self.proof.failure = Some(failure);
            }
        }
    }
}
