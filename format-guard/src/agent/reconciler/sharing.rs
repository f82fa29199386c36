//! Passes this node's desired states to the claim worker, and what the worker reports to the transition
//! function; nothing is decided here.

use std::time::Duration;

use format_guard_common::{State, claim::Lease};
use tracing::error;

use super::Reconciler;
use crate::{
    agent::{
        desired_claims::DesiredClaims,
        message::{KnownFormats, OperatorCommand, Reply, StoreUpdate},
        now,
    },
    api::StoreStatus,
    enforce::since_boot,
    record::{
        Claim, Seconds, Volume,
        shared::{self, ClaimStatus, Desired, Format},
        transition::Event,
    },
    volume::{
        VolumeId,
        device::Device,
        identity::{Kind, Strength},
    },
};

/// Records that are read at once for the store.
const BATCH: usize = 200;

/// This node's part in the store that nodes share.
pub(super) struct Sharing {
    desired_claims: DesiredClaims,
    /// The host is not ready while the store is away.
    required: bool,
    /// Since when the store answers, or does not.
    since: Seconds,
    /// Why it does not.
    away: Option<String>,
}

impl Sharing {
    pub(super) fn new(desired_claims: DesiredClaims, required: bool) -> Self {
        Self {
            desired_claims,
            required,
            since: now(),
            away: Some("the agent has not asked it yet".to_owned()),
        }
    }

    fn answers(&mut self, away: Option<String>) -> bool {
        let changed = self.away.is_none() != away.is_none();
        if changed {
            self.since = now();
        }
        self.away = away;
        changed
    }
}

impl Reconciler {
    /// Whether a device's volume may be armed without a claim in the cluster's store.
    pub(super) fn claim_needed(&self, device: &Device) -> Claim {
        let identity = &device.identity;
        if self.sharing.is_none() || identity.strength != Strength::Strong || !shared::is_shared(&identity.id)
        {
            return Claim::Unneeded;
        }
        // A formatter that is at work goes on as long as the claim lasts under which it was let through.
        let lease = self.enforcer.lease();
        match self.formatter_of(device.dev) {
            Some(_) if lease.number != 0 => Claim::Held(lease.number),
            _ => Claim::Wanted,
        }
    }

    /// The claims, if the record of this volume is shared with other nodes.
    pub(super) fn desired_claims_for(&self, id: &VolumeId) -> Option<DesiredClaims> {
        let desired_claims = &self.sharing.as_ref()?.desired_claims;
        let shared = match self.records.get(id) {
            Some(record) => record.attachment.claim != Claim::Unneeded,
            None => shared::is_shared(id),
        };
        shared.then(|| desired_claims.clone())
    }

    /// Passes the desired state of a volume on. `again`: its status is to be reported again, even if it is
    /// the same.
    pub(super) fn update_desired(&self, id: &VolumeId, again: bool) {
        if let (Some(sharing), Some(desired)) = (&self.sharing, self.desired(id)) {
            sharing.desired_claims.set(id, desired, again);
        }
    }

    /// The desired state of a volume that other nodes may reach.
    fn desired(&self, id: &VolumeId) -> Option<Desired> {
        let sharing = self.sharing.as_ref()?;
        let record = self.records.get(id).filter(|record| record.attachment.claim != Claim::Unneeded)?;
        let desired = shared::desired(record, sharing.desired_claims.node());
        // The kernel has let a formatter through whose event is under way: the volume is not given to other
        // nodes as untouched.
        if matches!(desired, Desired::Watch { .. } | Desired::Nothing) && self.is_held(id) {
            return Some(Desired::Formatting);
        }
        Some(desired)
    }

    /// Under which other names nodes of an earlier version may keep what they know of a device's volume.
    pub(super) fn share_names(&self, device: &Device) {
        let Some(sharing) = &self.sharing else { return };
        let id = &device.identity.id;
        let others = device.identity.names.iter().filter(|name| name.kind != Kind::Place && name.id != *id);
        let others = others.map(|name| &name.id).filter(|name| shared::is_shared(name)).cloned();
        sharing.desired_claims.name(id, others.collect());
    }

    fn is_held(&self, id: &VolumeId) -> bool {
        self.graph.of(id).any(|device| self.formatter_of(device.dev).is_some())
    }

    /// Its last device is gone, and no rule is left. `untouched`: the kernel let nobody through.
    pub(super) fn desire_nothing_more(&self, record: &Volume, untouched: bool) {
        let Some(sharing) = &self.sharing else { return };
        if record.attachment.claim == Claim::Unneeded {
            return;
        }
        let node = sharing.desired_claims.node();
        let unused = matches!(record.state, State::Unverified | State::Blank | State::Permitted);
        let clean = untouched && unused && !record.attachment.unrecorded_past;
        let format = (record.state == State::Formatted).then(|| Format::of(record, node));
        sharing.desired_claims.set(&record.id, Desired::Gone { clean, format }, true);
    }

    pub(super) fn store_updated(&mut self, update: StoreUpdate) {
        match update {
            StoreUpdate::Connected => self.store_answers(None),
            StoreUpdate::Disconnected(reason) => self.store_answers(Some(reason)),
            StoreUpdate::Lease { id, until } => self.leased(id, until),
            StoreUpdate::ClaimStatus { id, status, desired, lease, number } => {
                // The report may be about an older desired state (a permit that was used since): then the
                // volume is looked at again.
                if self.desired(&id) == Some(*desired) {
                    self.apply_claim_status(&id, status, lease);
                }
                self.update_desired(&id, false);
                if let Some(sharing) = &self.sharing {
                    sharing.desired_claims.acknowledge(number);
                }
            }
            // Who asked may have gone; so with every other reply.
            StoreUpdate::KnownFormats { after, reply } => {
                drop(reply.send(self.known_formats(after.as_ref())));
            }
            StoreUpdate::Done(OperatorCommand::Permit { id, permit, reply }) => {
                let answer = self.volume(&id).map(|mut volume| {
                    volume.permit.get_or_insert(permit);
                    Reply::Volume(Box::new(volume))
                });
                let _ = reply.send(answer);
            }
            StoreUpdate::Done(OperatorCommand::Forget { id, reason, uid, reply }) => {
                let _ = reply.send(self.delete_record(&id, &reason, uid).map(Reply::Done));
            }
        }
    }

    fn store_answers(&mut self, away: Option<String>) {
        let Some(sharing) = &mut self.sharing else { return };
        let text = match &away {
            None => "the cluster's store answers".to_owned(),
            Some(reason) => format!(
                "the cluster's store does not answer ({reason}): what is known stays protected, blank volumes that other \
                 nodes reach are not armed"
            ),
        };
        if sharing.answers(away) {
            let kind = if sharing.away.is_none() { "store-answers" } else { "store-away" };
            self.append_history(String::new(), kind, text);
        }
    }

    /// The kernel's rules last as long as the lease; those of an earlier one have ended with it.
    fn leased(&mut self, id: u64, until: u64) {
        let mut lease = self.enforcer.lease();
        if lease.id != id || lease.number == 0 {
            self.lose_claims();
            lease = Lease { id, number: next_number(lease.number), ..Lease::default() };
        }
        lease.until = until;
        if let Err(error) = self.enforcer.put_lease(&lease) {
            error!("{error}");
            self.lose_claims();
        }
    }

    /// Every claim is lost, or no longer sure.
    fn lose_claims(&mut self) {
        let held = self.records.values().filter(|record| matches!(record.attachment.claim, Claim::Held(_)));
        let ids: Vec<VolumeId> = held.map(|record| record.id.clone()).collect();
        for id in ids {
            self.apply(&id, Event::ClaimLost);
            self.update_desired(&id, true);
        }
    }

    /// After the lease the kernel lets nobody begin on what was claimed under it; the records follow.
    pub(super) fn check_lease(&mut self) {
        let lease = self.enforcer.lease();
        if self.sharing.is_some() && since_boot() >= Duration::from_nanos(lease.until) {
            self.lose_claims();
        }
    }

    fn apply_claim_status(&mut self, id: &VolumeId, status: ClaimStatus, under: u64) {
        let lease = self.enforcer.lease();
        let lasts = lease.id == under && lease.number != 0;
        let claimed = |doubted, permit| Event::Claimed { lease: lease.number, doubted, permit };
        match status {
            ClaimStatus::Claimed { doubted } if lasts => self.apply(id, claimed(doubted, None)),
            ClaimStatus::Permitted(permit) if lasts => self.apply(id, claimed(false, Some(permit))),
            // The claim was made under a lease that has ended since.
            ClaimStatus::Claimed { .. } | ClaimStatus::Permitted(_) => self.update_desired(id, true),
            ClaimStatus::PermitEnded => self.apply(id, Event::PermitLost),
            ClaimStatus::Formatted(format) => self.apply(id, Event::Shared(format)),
            ClaimStatus::Unreadable(reason) => {
                error!(volume = %id, "{reason}");
                self.apply(id, Event::ClaimLost);
            }
            ClaimStatus::Watching | ClaimStatus::Waiting { .. } | ClaimStatus::Gone => {}
        }
    }

    /// The next formats on record of volumes that are not attached; attached ones have a desired state.
    fn known_formats(&self, after: Option<&VolumeId>) -> KnownFormats {
        let Some(sharing) = &self.sharing else { return KnownFormats::default() };
        let records = match self.store.formatted_after(after, BATCH) {
            Ok(records) => records,
            Err(error) => {
                error!("cannot add this node's records to the store that nodes share: {error}");
                return KnownFormats::default();
            }
        };
        let more_after =
            (records.len() == BATCH).then(|| records.last().map(|record| record.id.clone())).flatten();
        let formats = records.into_iter().filter(|record| {
            !record.weak && shared::is_shared(&record.id) && sharing.desired_claims.is_gone(&record.id)
        });
        let node = sharing.desired_claims.node();
        KnownFormats {
            formats: formats.map(|record| (record.id.clone(), Format::of(&record, node))).collect(),
            more_after,
        }
    }

    pub(super) fn store_status(&self) -> Option<StoreStatus> {
        let sharing = self.sharing.as_ref()?;
        let held = self.records.values().filter(|record| matches!(record.attachment.claim, Claim::Held(_)));
        let waiting = self.records.values().filter(|record| record.awaits_claim());
        Some(StoreStatus {
            answers: sharing.away.is_none(),
            since: sharing.since,
            reason: sharing.away.clone(),
            required: sharing.required,
            claims: held.count() as u64,
            waiting: waiting.count() as u64,
        })
    }
}

/// The number of the next lease: never zero, and never the number that no lease has.
const fn next_number(number: u32) -> u32 {
    if number >= u32::MAX - 1 { 1 } else { number + 1 }
}
