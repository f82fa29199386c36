//! Chooses the tier: the best one that this host proves by the canary, and none weaker than is required.

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, RingBuf};
use format_guard_common::preload_request::SOCKET;
use tokio::{net::UnixListener, sync::mpsc, task::JoinSet};
use tracing::{info, warn};

use super::{
    Start,
    message::Input,
    reconciler::Reconciler,
    server::{control, preload as preload_server},
};
use crate::{
    enforce::{
        Enforcer,
        bpf::{BpfEnforcer, lines::Lines, pins},
        error::LoadError,
        preload::{PreloadEnforcer, Questions},
    },
    mode::Mode,
    tier::{self, Tier},
};

/// Does what blocks where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(what).await.context("the start was cut off")
}

/// What tells of events where a tier is in force.
pub(super) enum EventSource {
    /// The kernel programs' ring buffer, and the lines that they write.
    Kernel(RingBuf<MapData>, Option<Box<Lines>>),
    /// The socket that the library asks at.
    Questions(UnixListener, Questions),
    /// A task reads them already.
    Running,
}

type Candidate = (Box<dyn Enforcer + Send>, EventSource);

/// The ways to refuse that this host may have, best first.
pub(super) struct TierSelector {
    start: Start,
    left: Vec<Tier>,
    failures: Vec<String>,
}

impl TierSelector {
    pub(super) fn new(start: &Start) -> Result<Self> {
        let left = start.config.tiers(tier::modules().as_deref());
        if left.is_empty() {
            bail!(
                "not started: require = \"{}\", and the active security modules do not list bpf; format-guard check says what \
                 to change",
                start.config.require.name()
            );
        }
        Ok(Self { start: start.clone(), left, failures: Vec::new() })
    }

    /// The best of those that are left and can be made ready.
    pub(super) fn next(&mut self) -> Result<Candidate> {
        loop {
            let error = match self.make() {
                Err(error) => error,
                Ok(way) => return Ok(way),
            };
            match error.downcast_ref::<LoadError>() {
                Some(failure) if self.may_be_weaker() => self.note_failure(failure),
                _ => return Err(error),
            }
        }
    }

    /// Whether another one may be tried: not where an earlier agent's programs are in force, which are
    /// better, and stay.
    fn may_be_weaker(&self) -> bool {
        !self.left.is_empty() && pins::enforce(&self.start.config.pin_dir).is_ok_and(|enforced| !enforced)
    }

    fn note_failure(&mut self, error: &LoadError) {
        warn!("{error}; a weaker tier is tried");
        self.failures.push(format!("no better tier can be in force: {error}"));
        // Maps that nobody reads.
        if let Err(error) = pins::take_away(&self.start.config.pin_dir) {
            warn!("the pins at {} cannot be removed: {error}", self.start.config.pin_dir.display());
        }
    }

    /// Proves what is ready, or else what is left.
    pub(super) async fn put_in_force(
        mut self,
        mut reconciler: Reconciler,
        mut events: EventSource,
        tasks: &mut JoinSet<Result<()>>,
        inputs: &mpsc::Sender<Input>,
    ) -> Result<(Reconciler, EventSource)> {
        loop {
            // The canary is told of.
            if let EventSource::Questions(listener, questions) = events {
                tasks.spawn(preload_server::run(listener, questions, inputs.clone()));
                events = EventSource::Running;
            }
            let attached = blocking(move || {
                let attached = reconciler.enforcer_mut().attach();
                (reconciler, attached)
            });
            let error = match attached.await? {
                (mut reconciler, Ok(parts)) => {
                    for part in parts.iter().filter(|part| !part.attached) {
                        info!(
                            program = part.program,
                            open = part.open,
                            "this kernel has no place for a program"
                        );
                    }
                    reconciler.degrade(self.failures);
                    reconciler.proven(parts);
                    return Ok((reconciler, events));
                }
                (back, Err(error)) => {
                    reconciler = back;
                    error
                }
            };
            if !self.may_be_weaker() {
                return Err(error.into());
            }
            self.note_failure(&error);
            let enforcer;
            (enforcer, events) = self.next()?;
            let replaced = blocking(move || reconciler.replace_enforcer(enforcer).map(|()| reconciler));
            reconciler = replaced.await??;
        }
    }

    /// Makes the first of those that are left ready; the kernel's tiers try each other.
    fn make(&mut self) -> Result<Candidate> {
        let config = &self.start.config;
        let audit = self.start.audit || config.mode == Mode::Audit;
        // Those that need the kernel's types try each other; the next one must do without.
        let alike = |tier: &Tier| matches!(tier, Tier::Lsm | Tier::FmodRet);
        let count = self.left.iter().take_while(|tier| alike(tier)).count().max(1);
        let now: Vec<Tier> = self.left.drain(..count.min(self.left.len())).collect();
        let [tier, weaker @ ..] = now.as_slice() else { bail!("no tier is left") };
        if *tier != Tier::Preload {
            let mut enforcer = BpfEnforcer::load(&config.pin_dir, config, audit, *tier, weaker.to_vec())?;
            let events = EventSource::Kernel(enforcer.events()?, enforcer.lines().map(Box::new));
            return Ok((Box::new(enforcer), events));
        }
        let enforcer =
            PreloadEnforcer::new(&config.run_dir, &config.trusted, audit).map_err(LoadError::from)?;
        let socket = control::listen(&config.run_dir.join(SOCKET), preload_server::MODE)?;
        let events = EventSource::Questions(socket, enforcer.questions());
        Ok((Box::new(enforcer), events))
    }
}
