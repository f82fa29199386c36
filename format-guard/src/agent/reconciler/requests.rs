//! What clients ask and operators say: looked up, checked, and carried to the transition function.

use anyhow::Result;
use format_guard_common::State;

use super::{
    Reconciler,
    failure::{bad, failed, reason_of},
};
use crate::{
    agent::{
        kernel_log::KernelLog,
        message::{GuardRequest, OperatorCommand, Reply, ReplySender, Request, VolumeRequest},
        now,
    },
    api::{self, Condition, Failure, FailureKind},
    config::Config,
    enforce::error::{MapError, ProgramStatus},
    policy::Action,
    record::{Permit, Record, history::HistoryEvent, store::Wanted, transition::Event},
    volume::{Dev, VolumeId, device::Device},
};

/// Longest permit that is given, in seconds: a week.
pub(super) const MAX_PERMIT: u64 = 7 * 24 * 3600;
/// Candidates that an ambiguous selector is answered with at most.
const MAX_CANDIDATES: usize = 10;

impl Reconciler {
    /// Answers a client. What concerns every node goes to the store that they share: who asked is answered by
    /// what comes of it.
    pub(super) fn serve(&mut self, request: Request, uid: u32, reply: ReplySender) {
        let answer = match request {
            Request::Volume { selector, what } => match self.resolve(&selector, &what) {
                Ok(id) => match (self.desired_claims_for(&id), what) {
                    (Some(claims), VolumeRequest::Permit { seconds, reason }) => {
                        match self.permit_for(&id, seconds, &reason, uid) {
                            Ok(permit) => {
                                return claims.command(OperatorCommand::Permit { id, permit, reply });
                            }
                            Err(failure) => Err(failure),
                        }
                    }
                    (Some(claims), VolumeRequest::Forget { reason }) => {
                        match self.to_be_forgotten(&id, &reason) {
                            Ok(reason) => {
                                return claims.command(OperatorCommand::Forget { id, reason, uid, reply });
                            }
                            Err(failure) => Err(failure),
                        }
                    }
                    (_, what) => self.answer_of(&id, what, uid),
                },
                Err(failure) => Err(failure),
            },
            Request::Guard(what) => self.answer(what, uid),
        };
        // The client may have gone.
        let _ = reply.send(answer);
    }

    pub(super) fn answer(&mut self, what: GuardRequest, uid: u32) -> Result<Reply, Failure> {
        Ok(match what {
            GuardRequest::Alive => Reply::Alive,
            GuardRequest::Status => Reply::Status(Box::new(self.status()?)),
            GuardRequest::Volumes => Reply::Volumes(self.volumes()?),
            GuardRequest::Protect(request) => {
                let reason = reason_of(&request.reason, "a change of protection")?;
                Reply::Done(self.set_protection(request.on, &reason, uid))
            }
            GuardRequest::EndLoss(request) => Reply::Done(self.end_loss(&request, uid)?),
            GuardRequest::Mode(request) => Reply::Done(self.set_mode(&request, uid)?),
            GuardRequest::Events(query) => {
                let volume = query.volume.map(|selector| self.select(&selector)).transpose()?;
                let wanted = Wanted {
                    after: query.after,
                    limit: query.limit.min(api::MAX_LINES),
                    volume: volume.map(|id| id.to_string()),
                    since: query.since,
                };
                let events = self.store.history(&wanted).map_err(|error| failed(&error))?;
                Reply::Events(api::Events { events })
            }
        })
    }

    pub(super) fn answer_of(
        &mut self,
        id: &VolumeId,
        what: VolumeRequest,
        uid: u32,
    ) -> Result<Reply, Failure> {
        Ok(match what {
            VolumeRequest::Show => Reply::Volume(Box::new(self.volume(id)?)),
            VolumeRequest::Copy => Reply::Copy(Box::new(self.copy(id)?)),
            VolumeRequest::Simulate { program } => Reply::Simulation(Box::new(self.simulate(id, &program)?)),
            VolumeRequest::Device => Reply::Device(Box::new(self.device_of(id)?.clone())),
            VolumeRequest::Adopt { found, marks, reason } => {
                let reason = reason_of(&reason, "to adopt a volume")?;
                self.device_of(id)?;
                self.may_be_adopted(id)?;
                self.apply(id, Event::Adopted { found, marks, reason, uid });
                self.guard_partitions(id);
                Reply::Volume(Box::new(self.volume(id)?))
            }
            VolumeRequest::AdoptRaw { zeros, reason } => {
                let reason = reason_of(&reason, "to adopt a volume")?;
                self.device_of(id)?;
                self.may_be_adopted(id)?;
                self.adopt_raw(id, zeros, reason, uid)?;
                Reply::Volume(Box::new(self.volume(id)?))
            }
            VolumeRequest::Permit { seconds, reason } => {
                Reply::Volume(Box::new(self.permit(id, seconds, &reason, uid)?))
            }
            VolumeRequest::Exempt { reason } => Reply::Volume(Box::new(self.exempt(id, &reason, uid)?)),
            VolumeRequest::Forget { reason } => Reply::Done(self.forget(id, &reason, uid)?),
            VolumeRequest::Revoke { reason } => Reply::Volume(Box::new(self.revoke(id, &reason, uid)?)),
            VolumeRequest::Untaint { reason } => Reply::Done(self.untaint(id, &reason, uid)?),
        })
    }

    /// The configuration is changed by changing it: what it exempts would be exempt again.
    fn may_be_adopted(&self, id: &VolumeId) -> Result<(), Failure> {
        match self.policy_of(id).filter(|policy| policy.action == Action::Exempt) {
            Some(policy) => Err(Failure::new(
                FailureKind::Refused,
                format!("{id} is exempt by {policy} of the configuration: change that, and reload the agent"),
            )),
            None => Ok(()),
        }
    }

    fn adopt_raw(&mut self, id: &VolumeId, zeros: bool, reason: String, uid: u32) -> Result<(), Failure> {
        // A recorded format is worth more than a reading of zeros.
        if zeros
            && let Some(record) = self.records.get(id)
            && record.ever_formatted
            && let Some(content) = record.content.as_ref().filter(|content| !content.is_raw())
        {
            return Err(Failure::new(
                FailureKind::Refused,
                format!(
                    "{id} is recorded as {} and reads as zeros: its record stays as it is",
                    content.name()
                ),
            ));
        }
        self.apply(id, Event::AdoptedRaw { reason, uid });
        Ok(())
    }

    fn status(&self) -> Result<api::Status, Failure> {
        let counts = self.enforcer.counts();
        let by_state = self.store.counts().map_err(|error| failed(&error))?;
        let (proven, mode, degraded) = (self.proof.holds(), self.mode(), self.degraded());
        Ok(api::Status {
            condition: Condition::of(proven, mode, !degraded.is_empty()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tier: self.enforcer.tier().name().to_owned(),
            open: self.enforcer.tier().open().iter().map(|open| (*open).to_owned()).collect(),
            mode,
            protected: self.protection.is_active(),
            configured_mode: self.settings.mode,
            set_mode: self.set_mode.as_ref().map(|set| set.word.clone()),
            proven,
            proven_at: self.proof.at(),
            degraded,
            unstored: self.unstored.count() as u64,
            records_lost: self.lost.loss.clone(),
            programs: self.programs(),
            devices: self.graph.count() as u64,
            discrepancies: self.records.values().filter(|record| record.discrepancy.is_some()).count() as u64,
            volumes: by_state
                .into_iter()
                .map(|(state, count)| api::StateCount { state: state.name().to_owned(), count })
                .collect(),
            judged: counts.judged,
            stale_rules: counts.stale,
            lost_events: counts.lost_events,
            lost_uevents: self.health.lost_uevents,
            full_maps: counts.full_maps,
            unplaced: counts.unplaced,
            repaired: self.health.repaired,
            lag: u64::try_from(self.health.lag.as_millis()).unwrap_or(u64::MAX),
            probing: self.prober.under_way(),
            store: self.store_status(),
        })
    }

    /// Why protection is less than it should be.
    fn degraded(&self) -> Vec<String> {
        let lost = self.lost.loss.as_ref().map(super::loss::degraded);
        let unproven = self.proof.degraded();
        self.health
            .degraded
            .iter()
            .cloned()
            .chain(unproven)
            .chain(lost)
            .chain(self.unstored.degraded())
            .collect()
    }

    /// What became of each program, and how often the kernel has skipped it.
    fn programs(&self) -> Vec<ProgramStatus> {
        let skipped = self.enforcer.skipped();
        let programs = self.proof.programs().iter().map(|program| ProgramStatus {
            skipped: skipped.get(&program.program).copied().unwrap_or_default(),
            ..program.clone()
        });
        programs.collect()
    }

    fn volumes(&self) -> Result<api::Volumes, Failure> {
        let stored = self.store.list().map_err(|error| failed(&error))?;
        let volumes = stored.iter().map(|stored| {
            // The record in memory is newer than the stored one.
            self.shown(self.newest(&stored.id).unwrap_or(stored))
        });
        Ok(api::Volumes { volumes: volumes.collect() })
    }

    pub(super) fn volume(&self, id: &VolumeId) -> Result<api::Volume, Failure> {
        let stored;
        let record = if let Some(record) = self.newest(id) {
            record
        } else {
            stored = self
                .store
                .get(id)
                .map_err(|error| failed(&error))?
                .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("no volume {id} is known")))?;
            &stored
        };
        let mut volume = self.shown(record);
        for name in self.names.of(id) {
            if !volume.names.iter().any(|known| known.name == name.as_str()) {
                volume.names.push(api::VolumeName {
                    name: name.to_string(),
                    worth: "earlier".to_owned(),
                    from: String::new(),
                });
            }
        }
        Ok(volume)
    }

    /// What is known of a volume beyond what is stored.
    fn newest(&self, id: &VolumeId) -> Option<&Record> {
        self.records.get(id).map(|volume| &volume.record).or_else(|| self.unstored.record(id))
    }

    fn shown(&self, record: &Record) -> api::Volume {
        let devices: Vec<&Device> = self.graph.of(&record.id).collect();
        let told = api::Volume::of(record, &devices);
        let policy = self.policy_of(&record.id).cloned();
        let is = |action| policy.as_ref().is_some_and(|policy| policy.action == action);
        api::Volume {
            audit: told.audit || is(Action::Audit),
            strict: told.strict || is(Action::Strict) || self.is_strict_by_configuration(record),
            policy,
            ..told
        }
    }

    pub(super) fn device_of(&self, id: &VolumeId) -> Result<&Device, Failure> {
        self.path(id).ok_or_else(|| {
            Failure::new(FailureKind::NotFound, format!("volume {id} is not attached here: attach it first"))
        })
    }

    /// The volume that a selector means.
    pub(super) fn select(&self, selector: &str) -> Result<VolumeId, Failure> {
        if let Some(dev) = selector.strip_prefix("dev=").and_then(Dev::parse) {
            return self.graph.id(dev).cloned().ok_or_else(|| {
                Failure::new(
                    FailureKind::NotFound,
                    format!("device {dev} holds no volume that is known: see format-guard volume list"),
                )
            });
        }
        if let Some(id) = self.names.volume(selector) {
            return Ok(id.clone());
        }
        let whole = VolumeId::from(selector);
        if self.records.contains_key(&whole) {
            return Ok(whole);
        }
        // One more than are listed, to know whether there are more. The whole id sorts before every id that
        // begins with it.
        let matching = if selector.is_empty() {
            Vec::new()
        } else {
            self.store.beginning_with(selector, MAX_CANDIDATES + 1).map_err(|error| failed(&error))?
        };
        match matching.as_slice() {
            [one] => Ok(one.clone()),
            [whole, ..] if whole.as_str() == selector => Ok(whole.clone()),
            [] => Err(Failure::new(
                FailureKind::NotFound,
                format!("no volume begins with '{selector}': see format-guard volume list"),
            )),
            many => {
                let mut names: Vec<&str> = many.iter().take(MAX_CANDIDATES).map(VolumeId::as_str).collect();
                let mut number = many.len().to_string();
                if many.len() > MAX_CANDIDATES {
                    names.push("...");
                    "many".clone_into(&mut number);
                }
                Err(Failure::new(
                    FailureKind::NotFound,
                    format!("'{selector}' is the beginning of {number} ids:\n  {}", names.join("\n  ")),
                ))
            }
        }
    }

    /// The volume that a request is about. Where data may be lost by the request the selector must be a
    /// device or a whole id, and never the beginning of one, which may be another volume's tomorrow.
    pub(super) fn resolve(&self, selector: &str, what: &VolumeRequest) -> Result<VolumeId, Failure> {
        let id = self.select(selector)?;
        let is_whole = self.names.volume(selector) == Some(&id)
            || id.as_str() == selector
            || selector.starts_with("dev=");
        if is_whole || !what.needs_whole_id() {
            return Ok(id);
        }
        Err(bad(format!("'{selector}' is the beginning of an id: name the whole one, {id}, or its device")))
    }

    /// The permit that is asked for, if it may be given.
    fn permit_for(&mut self, id: &VolumeId, seconds: u64, reason: &str, uid: u32) -> Result<Permit, Failure> {
        let reason = reason_of(reason, "a permit")?;
        if !(1..=MAX_PERMIT).contains(&seconds) {
            return Err(bad(format!("a permit lasts 1 to {MAX_PERMIT} seconds (a week), not {seconds}")));
        }
        let devices: Vec<Dev> = self.graph.of(id).map(|device| device.dev).collect();
        for dev in devices {
            self.recover_format_on(dev);
        }
        let record = self.records.get(id);
        if let Some(formatter) = record
            .filter(|record| record.attachment.is_running())
            .and_then(|record| record.formatter.as_ref())
        {
            let (comm, pid) = (&formatter.comm, formatter.pid);
            return Err(bad(format!("{comm} (pid {pid}) formats {id}: wait for its end, or end it")));
        }
        if let Some(policy) = self.policy_of(id).filter(|policy| policy.action == Action::NeverFormat) {
            return Err(Failure::new(
                FailureKind::Refused,
                format!(
                    "nobody formats {id} by {policy} of the configuration: change that, and reload the agent"
                ),
            ));
        }
        match record.map(|record| record.state) {
            Some(State::Blank) => {
                return Err(bad(format!("{id} is blank: a format may begin without a permit")));
            }
            Some(State::Exempt) => return Err(bad(format!("{id} is exempt: nothing is refused on it"))),
            _ => {}
        }
        let at = now();
        Ok(Permit { reason, uid, at, expires: at + seconds.cast_signed(), used: false })
    }

    pub(super) fn permit(
        &mut self,
        id: &VolumeId,
        seconds: u64,
        reason: &str,
        uid: u32,
    ) -> Result<api::Volume, Failure> {
        self.device_of(id)?;
        let permit = self.permit_for(id, seconds, reason, uid)?;
        self.apply(id, Event::Permitted(permit));
        self.permit_partitions(id);
        let volume = self.volume(id)?;
        if volume.state != State::Permitted.name() {
            return Err(Failure::new(FailureKind::Failed, format!("no permit: {}", volume.cause)));
        }
        Ok(volume)
    }

    fn revoke(&mut self, id: &VolumeId, reason: &str, uid: u32) -> Result<api::Volume, Failure> {
        let reason = reason_of(reason, "to revoke a permit")?;
        let Some(permit) = self.records.get(id).and_then(|record| record.permit.clone()) else {
            return Err(bad(format!("{id} has no permit here that could be revoked")));
        };
        self.apply(id, Event::Revoked { reason: reason.clone(), uid });
        self.revoke_of_partitions(id, &permit, &reason, uid);
        self.volume(id)
    }

    fn exempt(&mut self, id: &VolumeId, reason: &str, uid: u32) -> Result<api::Volume, Failure> {
        let reason = reason_of(reason, "an exemption")?;
        self.device_of(id)?;
        self.apply(id, Event::Exempted { reason, uid });
        self.exempt_partitions(id);
        let volume = self.volume(id)?;
        if volume.state != State::Exempt.name() {
            return Err(Failure::new(FailureKind::Failed, format!("not exempted: {}", volume.cause)));
        }
        Ok(volume)
    }

    /// The reason to forget a volume. A volume that is attached here and holds a format is not forgotten:
    /// that would be a permit by another name.
    fn to_be_forgotten(&self, id: &VolumeId, reason: &str) -> Result<String, Failure> {
        let reason = reason_of(reason, "to forget a volume")?;
        let device = self.graph.of(id).next().cloned();
        let record = self.records.get(id);
        if let (Some(device), Some(record)) = (&device, record)
            && matches!(record.state, State::Formatted | State::Formatting | State::Permitted)
        {
            return Err(Failure::new(
                FailureKind::Refused,
                format!(
                    "{id} holds a format and is attached as {}: detach it first, or permit a re-format with \
                     format-guard volume permit {id} --reason TEXT",
                    device.name
                ),
            ));
        }
        Ok(reason)
    }

    fn forget(&mut self, id: &VolumeId, reason: &str, uid: u32) -> Result<api::Done, Failure> {
        let reason = self.to_be_forgotten(id, reason)?;
        self.delete_record(id, &reason, uid)
    }

    /// Deletes the record of a volume. Its devices are attached anew, as if seen for the first time.
    pub(super) fn delete_record(
        &mut self,
        id: &VolumeId,
        reason: &str,
        uid: u32,
    ) -> Result<api::Done, Failure> {
        let text = format!("forgotten by user {uid}: {reason}");
        let told = HistoryEvent::new(now(), id.to_string(), "forgotten", text).by_operator();
        self.forget_dropped(None, Some(id));
        self.store.forget(id, &[told]).map_err(|error| failed(&error))?;
        self.unstored.forget(id);
        self.names.forget(id);
        self.history.advance();
        let paths: Vec<Device> = self.graph.of(id).cloned().collect();
        for device in &paths {
            self.device_gone(device.dev);
        }
        for device in paths {
            self.device_changed(device);
        }
        Ok(api::Done { text: format!("{id} is forgotten") })
    }

    fn untaint(&mut self, id: &VolumeId, reason: &str, uid: u32) -> Result<api::Done, Failure> {
        let reason = reason_of(reason, "to untaint")?;
        self.device_of(id)?;
        let count = self.forget_refusals(id).map_err(|error| failed(&error))?;
        let text = format!("{count} processes may write again, by user {uid}: {reason}");
        self.append_event(HistoryEvent::new(now(), id.to_string(), "untainted", text).by_operator());
        Ok(api::Done { text: format!("{count} processes may write to {id} again") })
    }

    /// Forgets the refusals on a volume's devices; how many processes may write there again.
    pub(super) fn forget_refusals(&mut self, id: &VolumeId) -> Result<u64, MapError> {
        let devices: Vec<(Dev, u64)> = self.graph.of(id).map(|device| (device.dev, device.diskseq)).collect();
        let mut count = 0;
        for (dev, diskseq) in devices {
            count += self.enforcer.untaint(dev, diskseq)?;
        }
        Ok(count)
    }

    /// Puts the keys of a new configuration in force that take effect at run time.
    pub(super) fn reloaded(&mut self, config: &Config) -> Result<()> {
        self.settings.mode = config.mode;
        self.settings.protect = config.protect;
        self.settings.first_format_wait = config.first_format_wait();
        self.settings.resync_interval = config.interval();
        self.settings.forget_after = config.forget_after();
        self.settings.copied = config.copied();
        self.settings.strict.clone_from(&config.strict);
        self.declare_policies(&config.policy);
        if config.kernel_log != self.host.kernel_log.is_some() {
            self.host.kernel_log = config.kernel_log.then(KernelLog::default);
        }
        self.keep_protected();
        self.keep_waited_for(self.settings.first_format_wait);
        self.host.devices = self.host.devices.clone().naming(config.longhorn_dir());
        self.prober.set_deadline(config.deadline());
        self.put_every_rule()?;
        self.compare_with_sysfs()?;
        let outranked = self.set_mode.as_ref().map(super::mode::outranks).unwrap_or_default();
        let text = format!("the configuration was read again: mode {}{outranked}", self.mode().name());
        self.append_history(String::new(), "reloaded", text);
        Ok(())
    }
}
