//! A device appears, changes, goes, or was probed.

use std::time::{Duration, Instant};

use anyhow::Result;
use format_guard_common::{State, event::FormatOwner};
use tracing::{error, info};

use super::{MAX_ENDS, Reconciler, batch::Batch, copying::Taken};
use crate::{
    agent::{clocks, message::ProbeAnswer, now},
    config::MAX_WAIT,
    policy::Action,
    record::{
        Record, Seconds, Volume, Wrote,
        transition::{self, Effect, Event},
    },
    volume::{
        Dev, VolumeId,
        device::Device,
        identity::{self, Strength},
        probe::{Finding, ProbeError},
    },
};

/// For how long a formatter waits at most.
const AWAITED: Duration = Duration::from_millis(MAX_WAIT);
/// How long a device without an identity of its own may wait for a node that names it, in seconds: Longhorn
/// makes the node after the device, and no uevent tells of it.
pub(super) const NAMING: Seconds = 10;

impl Reconciler {
    /// Completes an identity that sysfs alone does not tell. An array goes by the UUID in its members'
    /// superblocks, once one member was probed. A device that a node may come to name goes by no other name
    /// meanwhile.
    pub(super) fn identify(&mut self, device: &mut Device) {
        match device.identity.strength {
            Strength::Pending if device.name.starts_with("md") => {
                let uuid = device.below.iter().find_map(|member| {
                    let content = self.records.get(self.graph.id(member.dev)?)?.content.as_ref()?;
                    content.is_md_member().then(|| content.uuid.clone())?
                });
                if let Some(uuid) = uuid {
                    device.identity = identity::md_of_uuid(&uuid, "a member's superblock");
                }
            }
            Strength::Weak if self.host.devices.names_devices() => {
                let at = clocks().boot;
                let seen = self.unnamed_since.entry(device.dev).or_insert((device.diskseq, at));
                if seen.0 != device.diskseq {
                    *seen = (device.diskseq, at);
                }
                if at < seen.1 + NAMING {
                    device.identity.strength = Strength::Pending;
                }
            }
            Strength::Pending | Strength::Weak | Strength::Strong | Strength::Memory => {}
        }
        self.find_by_names(device);
    }

    /// A device appeared, or something about it changed.
    pub(super) fn device_changed(&mut self, mut device: Device) {
        self.identify(&mut device);
        let dev = device.dev;
        self.overtake_comparison(dev);
        let id = device.identity.id.clone();
        let known = self.graph.get(dev).cloned();
        if !may_hold(&device) {
            if known.is_some() {
                self.device_gone(dev);
            }
            return;
        }
        let same = known.as_ref().is_some_and(|old| {
            old.identity.id == id
                && old.identity.strength == device.identity.strength
                && old.diskseq == device.diskseq
        });
        // A better identity of the same medium must not take the volume out of its formatter's hands.
        let formatting = known.as_ref().is_some_and(|old| {
            old.diskseq == device.diskseq
                && self
                    .records
                    .get(&old.identity.id)
                    .is_some_and(|record| record.state == State::Formatting && record.attachment.is_running())
        });
        if !same && formatting {
            return;
        }
        if known.is_some() && !same {
            // A device that shows a better name, or no name any more, holds the same medium.
            let stays =
                known.as_ref().is_some_and(|old| old.diskseq == device.diskseq && device.diskseq != 0);
            self.device_leaves(dev, if stays { Event::Disarmed } else { Event::Detached });
        }
        if same {
            let moved = known.is_some_and(|old| old.below != device.below || old.size != device.size);
            let mut around: Vec<Dev> = vec![dev];
            if moved {
                around.extend(self.graph.related(dev).into_iter().map(|related| related.dev));
            }
            self.graph.insert(device);
            if moved {
                self.put_rules_around(dev);
                for dev in around {
                    self.put_rule(dev);
                    self.propagate(dev);
                }
            }
            let probed_by_now = self.records.get(&id).is_some_and(|record| record.state != State::Exempt);
            if probed_by_now && let Some(device) = self.path(&id) {
                self.prober.ask_changed(device, self.wanted_copy(&id));
            }
            return;
        }
        let mut on_record = true;
        if !self.records.contains_key(&id) {
            self.look_for_copy(&id);
            match self.load(&device) {
                Ok((record, found)) => {
                    on_record = found;
                    self.records.insert(id.clone(), record);
                }
                Err(error) => {
                    // Judged as unknown until the store answers: formatters are refused.
                    error!("{}: its record cannot be read: {error}", device.name);
                    return;
                }
            }
        }
        // Volumes on another medium are other volumes: a partition is known by its disk.
        let above = self.graph.above(dev);
        for upper in &above {
            self.device_gone(*upper);
        }
        info!(device = device.name, volume = %id, "attached");
        self.share_names(&device);
        self.forget_dropped(None, Some(&id));
        self.graph.insert(device);
        if let Some(event) = self.policy_event(&id) {
            self.step(&id, event);
        }
        // A format that began while no agent ran is recorded first: it may still go on, and must not be
        // refused half-way.
        if let Some(entry) = self.formatter_of(dev) {
            self.format_began(&entry);
            if entry.mounted != 0 {
                self.apply(&id, Event::Mounted);
            }
        }
        if let Some(device) = self.graph.get(dev) {
            let event = self.attached_event(device);
            self.step(&id, event);
        }
        self.probe_new_path(&id, dev);
        if !on_record {
            self.take_over_rule(dev);
        }
        self.word_on_disk(&id);
        self.put_rules_around(dev);
        self.put_rules_of_members(&id);
        self.propagate(dev);
        for upper in above {
            if let Some(device) = self.host.devices.by_number(upper) {
                self.device_changed(device);
            }
        }
    }

    /// A device holds its volume from now on.
    pub(super) fn attached_event(&self, device: &Device) -> Event {
        Event::Attached {
            boot: self.host.boot.clone(),
            strength: device.identity.strength,
            records_lost: self.lost.loss.is_some(),
            quarantine: self.settings.quarantine,
            raw_content: self.settings.raw_content,
            claim: self.claim_needed(device),
            diskseq: device.diskseq,
        }
    }

    /// The record of a device's volume, and whether there was one.
    pub(super) fn load(&mut self, device: &Device) -> Result<(Volume, bool)> {
        let identity = &device.identity;
        if let Some(record) = self.formats.departed.remove(&identity.id) {
            return Ok((record, true));
        }
        let weak = identity.strength != Strength::Strong;
        let put_off = self.batch.as_ref().and_then(|batch| batch.record(&identity.id)).cloned();
        let put_off = put_off.or_else(|| self.unstored.record(&identity.id).cloned().map(Volume::of));
        let stored = match put_off {
            Some(volume) => Some(volume),
            None => self.store.get(&identity.id)?.map(Volume::of),
        };
        let found = stored.is_some();
        let mut record = stored.unwrap_or_else(|| {
            Volume::of(Record::new(identity.id.clone(), identity.origin.clone(), weak, now()))
        });
        // True also where an agent found nothing on record and was killed before it claimed the volume.
        record.attachment.unrecorded_past = record.state == State::Unverified && record.armed.is_none();
        record.origin.clone_from(&identity.origin);
        Ok((record, found))
    }

    pub(super) fn device_gone(&mut self, dev: Dev) {
        self.device_leaves(dev, Event::Detached);
    }

    /// Takes a device out of the graph. `event` goes to its volume, if no other device leads to that.
    pub(super) fn device_leaves(&mut self, dev: Dev, event: Event) {
        self.overtake_comparison(dev);
        self.recover_format_on(dev);
        let lock_dev = self.lock_dev(dev);
        let around: Vec<Dev> = self.graph.related(dev).into_iter().map(|related| related.dev).collect();
        self.formats.last_end.remove(&dev);
        let Some(device) = self.graph.remove(dev) else { return };
        self.host.closing.watch(dev, None);
        self.forget_dropped(Some(dev), None);
        self.remember_dropped(&device);
        info!(device = device.name, volume = %device.identity.id, "detached");
        if let Err(error) = self.enforcer.remove_rule(dev) {
            error!("{error}");
        }
        let owner = self.enforcer.owner(lock_dev.0).filter(|entry| entry.dev == dev.to_kernel());
        let held = owner.is_some();
        let id = device.identity.id;
        if self.graph.of(&id).next().is_none() {
            self.step(&id, event);
            self.paths.remove(&id);
            self.copies.remove(&id);
            self.policy_facts.forget(&id);
            self.unread.remove(&id);
            if let Some(mut record) = self.records.remove(&id) {
                self.desire_nothing_more(&record, !held);
                if record.state == State::Formatting
                    && record.attachment.is_running()
                    && self.formats.departed.len() < MAX_ENDS
                {
                    record.attachment.wrote = record
                        .attachment
                        .wrote
                        .max(owner.map_or(Wrote::Bytes, |entry| Wrote::of(entry.wrote)));
                    self.formats.departed.insert(id.clone(), record);
                }
            }
        }
        if let Some(FormatOwner { process, .. }) = owner
            && !self.unstored.release_later(&id, &[(lock_dev.0, process)])
        {
            self.release_owner(lock_dev.0, process);
        }
        for dev in around {
            self.put_rule(dev);
            self.propagate(dev);
        }
        self.put_rules_of_members(&id);
    }

    /// A blank volume, or a slot, is read again when somebody closes it who may have written: by a road that
    /// no hook sees, or bytes that mean nothing by themselves.
    pub(super) fn closed_by_writer(&self, dev: Dev) {
        let Some(id) = self.graph.id(dev) else { return };
        let is_followed = self
            .records
            .get(id)
            .is_some_and(|record| record.state == State::Blank || record.attachment.policy.is(Action::Slot));
        if is_followed && let Some(device) = self.path(id) {
            self.prober.ask_changed(device, self.wanted_copy(id));
        }
    }

    /// Somebody waits until this device is read. Its uevent may still wait behind thousands of others.
    pub(super) fn hurry(&mut self, dev: Dev) {
        if let Some(device) = self.host.devices.by_number(dev)
            && self.graph.get(dev).is_none_or(|known| known.diskseq != device.diskseq)
        {
            self.device_changed(device);
        }
        let Some(id) = self.graph.id(dev).cloned() else { return };
        self.awaited.retain(|_, told| told.elapsed() < AWAITED);
        self.awaited.insert(dev, Instant::now());
        // A probe may have been put off for the sake of the formatter that has just ended.
        if self
            .records
            .get(&id)
            .is_some_and(|record| record.state == State::Formatting && record.attachment.has_exited())
        {
            self.probe(&id);
        }
        if let Some(device) = self.path(&id) {
            self.prober.hurry(device);
        }
    }

    pub(super) fn is_awaited(&self, id: &VolumeId) -> bool {
        let told = |device: &Device| self.awaited.get(&device.dev);
        self.graph.of(id).filter_map(told).any(|told| told.elapsed() < AWAITED)
    }

    pub(super) fn probe(&self, id: &VolumeId) {
        let Some(device) = self.path(id) else { return };
        let unread = self.records.get(id).is_some_and(|record| record.attachment.looked_at.is_none());
        if unread && self.host.devices.is_part_of_lvm(device.dev) {
            self.prober.ask_later(device, self.wanted_copy(id));
        } else {
            self.prober.ask(device, self.wanted_copy(id));
        }
    }

    pub(super) fn apply_probe_batch(&mut self, answers: Vec<ProbeAnswer>) {
        self.batch = (answers.len() > 1).then(Batch::default);
        for answer in answers {
            self.probed(answer);
        }
        self.apply_batch();
    }

    pub(super) fn probed(&mut self, answer: ProbeAnswer) {
        // An answer about an earlier attachment says nothing of this one.
        let Some(device) = self.graph.get(answer.dev).filter(|device| device.diskseq == answer.diskseq)
        else {
            return;
        };
        let id = device.identity.id.clone();
        // This probe was asked for before the multipath map was there.
        if self.map_over(&id).is_some_and(|map| map.dev != answer.dev) {
            self.probe(&id);
            return;
        }
        if self.formats.last_end.get(&answer.dev).is_some_and(|over| answer.begun <= *over) {
            self.probe(&id);
            return;
        }
        if let Ok(finding) = &answer.result
            && self.is_anothers(&id, answer.dev, finding)
        {
            self.set_apart(answer.dev, "holds another file system");
            return;
        }
        let is_map = self.is_map(&id, answer.dev);
        if !is_map && self.is_read_by_another_path(&id, answer.dev, answer.result.is_ok()) {
            return;
        }
        if let Ok(finding) = &answer.result {
            self.compare_with_table(answer.dev, finding);
        }
        // The kernel may have let a formatter through, here or on a layer above, whose event is still under
        // way: the probe has read half of its work.
        if let Some(entry) = self.formatter_around(answer.dev) {
            self.recover_format(&entry);
        }
        // Half of a format of a layer above is no format of this volume.
        if self.is_being_formatted_from_above(answer.dev) {
            return;
        }
        let marks = match &answer.result {
            Ok(Finding::Holds { marks, .. }) => marks.clone(),
            _ => Vec::new(),
        };
        if let Ok(finding) = &answer.result {
            self.learn_for_policies(&id, finding);
        }
        if answer.twice {
            self.count_first_reading(&id, &answer.result);
        }
        for id in self.read_by_map(answer.dev) {
            self.apply(&id, Event::Probed(answer.result.clone()));
        }
        self.apply(&id, Event::Probed(answer.result));
        self.choose_policy(&id);
        if let Some(packed) = answer.copy {
            let taken = Taken { id, marks, packed };
            match &mut self.batch {
                Some(batch) => batch.copy_later(taken),
                None => self.keep_copies(vec![taken]),
            }
        }
    }

    /// A probe that read the device twice counts as two readings; the record is stored and ruled once.
    pub(super) fn count_first_reading(&mut self, id: &VolumeId, result: &Result<Finding, ProbeError>) {
        let Some(old) = self.records.get(id).filter(|record| record.state == State::Unverified) else {
            return;
        };
        let (new, effects) = transition::next(old, Event::Probed(result.clone()), clocks());
        if effects == [Effect::Probe] {
            self.records.insert(id.clone(), new);
        }
    }
}

/// Whether a device can hold a volume: not without a medium. Memory gets its size later, and nobody waits for
/// that.
pub(super) fn may_hold(device: &Device) -> bool {
    device.size > 0 || device.identity.strength == Strength::Memory
}
