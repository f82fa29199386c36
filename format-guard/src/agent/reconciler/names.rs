//! Finds the record of a device by the names that it shows: by any name of its own, and by the strongest one
//! from then on.
//!
//! Records that turn out to be of one volume are merged, with the protection of both. A device that shows
//! another volume's name gets no part in that volume's record: the conflict is told, and the device goes by
//! no name of its own.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use tracing::{error, warn};

use super::Reconciler;
use crate::{
    agent::now,
    record::{
        Record, Volume,
        history::HistoryEvent,
        merge::{disagree, merge},
    },
    volume::{
        Dev, VolumeId,
        device::Device,
        identity::{Kind, Strength},
    },
};

/// Every name of every volume.
#[derive(Default)]
pub(super) struct Names {
    /// The id of the record, by each name of the volume; its id is one of them.
    known: HashMap<VolumeId, VolumeId>,
    /// Those that are not stored yet.
    unstored: BTreeMap<VolumeId, VolumeId>,
    /// Attachments of devices that show another volume's name.
    apart: HashMap<Dev, u64>,
}

impl Names {
    /// The volume of this name.
    pub(super) fn volume(&self, name: &str) -> Option<&VolumeId> {
        self.known.get(&VolumeId::from(name))
    }

    /// Every name of a volume.
    pub(super) fn of(&self, id: &VolumeId) -> Vec<&VolumeId> {
        let mut names: Vec<&VolumeId> =
            self.known.iter().filter(|(_, volume)| *volume == id).map(|(name, _)| name).collect();
        names.sort_unstable();
        names
    }

    /// Forgets the names of a volume.
    pub(super) fn forget(&mut self, id: &VolumeId) {
        self.known.retain(|_, volume| volume != id);
        self.unstored.retain(|_, volume| volume != id);
    }

    /// Adds names of a volume.
    fn add<'a>(&mut self, names: impl Iterator<Item = &'a VolumeId>, id: &VolumeId) {
        for name in names {
            // Another record goes by this name, and by no better one.
            let anothers = self.known.get(name) == Some(name) && name != id;
            if self.known.get(name) != Some(id) && !anothers {
                self.known.insert(name.clone(), id.clone());
                self.unstored.insert(name.clone(), id.clone());
            }
        }
    }

    fn replace(&mut self, gone: &[VolumeId], id: &VolumeId) {
        for names in
            [&mut self.known.values_mut() as &mut dyn Iterator<Item = _>, &mut self.unstored.values_mut()]
        {
            names.filter(|volume| gone.contains(volume)).for_each(|volume| volume.clone_from(id));
        }
        self.known.insert(id.clone(), id.clone());
    }
}

impl Reconciler {
    /// Reads every name that is stored.
    pub(super) fn load_names(&mut self) -> Result<()> {
        self.names.known = self.store.names()?.into_iter().collect();
        self.names.known.extend(self.names.unstored.clone());
        Ok(())
    }

    /// Stores the names that were seen since; nothing waits for that.
    pub(super) fn store_names(&mut self) {
        if self.names.unstored.is_empty() {
            return;
        }
        let names: Vec<_> = self.names.unstored.iter().map(|(name, id)| (name.clone(), id.clone())).collect();
        match self.store.put_names(&names) {
            Ok(()) => self.names.unstored.clear(),
            Err(error) => error!("{} names of volumes cannot be stored yet: {error}", names.len()),
        }
    }

    /// Has a device go by the id of its volume's record.
    pub(super) fn find_by_names(&mut self, device: &mut Device) {
        if device.identity.strength != Strength::Strong {
            return;
        }
        if self.names.apart.get(&device.dev) == Some(&device.diskseq) {
            device.identity = device.identity.clone().in_conflict(&device.name);
            return;
        }
        let id = self.record_of(device);
        if let Some(other) = self.contradicts(device, &id) {
            let text = format!(
                "{} shows the name of {id}, which is on {other}, but has another size: both stay protected, and neither arms the other",
                device.name
            );
            self.tell_apart(device.dev, device.diskseq, &id, text);
            device.identity = device.identity.clone().in_conflict(&device.name);
            return;
        }
        let names = device.identity.names.iter().filter(|name| name.kind != Kind::Place);
        self.names.add(names.map(|name| &name.id), &id);
        device.identity.id = id;
    }

    /// A present device of the volume, if the device that is about to be attached as a path to it differs in
    /// size from every one. Two loop devices over one file may differ: each shows as much as it was told to,
    /// or as there was when it was made.
    fn contradicts(&self, device: &Device, id: &VolumeId) -> Option<String> {
        let is_there = self
            .graph
            .get(device.dev)
            .is_some_and(|known| known.identity.id == *id && known.diskseq == device.diskseq);
        if is_there || device.size == 0 || id.as_str().contains("loop:") {
            return None;
        }
        let others = || self.graph.of(id).filter(|other| other.dev != device.dev);
        let contradicts = others().all(|other| other.size != device.size);
        others().next().filter(|_| contradicts).map(|other| other.name.clone())
    }

    fn tell_apart(&mut self, dev: Dev, diskseq: u64, id: &VolumeId, text: String) {
        warn!(volume = %id, "{text}");
        self.names.apart.insert(dev, diskseq);
        self.append_history(id.to_string(), "discrepancy", text);
    }

    /// A device shows the name of a volume that it is not: from now on it goes by none of its own.
    pub(super) fn set_apart(&mut self, dev: Dev, why: &str) {
        let Some(device) = self.graph.get(dev).cloned() else { return };
        let id = device.identity.id.clone();
        let text = format!(
            "{0} shows the name of {id} but {why}: both stay protected, and {0} goes by no name of its own",
            device.name
        );
        self.tell_apart(dev, device.diskseq, &id, text);
        self.device_gone(dev);
        if let Some(device) = self.host.devices.by_number(dev) {
            self.device_changed(device);
        }
    }

    /// A new path need not lead where the others lead: it is read once itself. A multipath map knows its
    /// paths.
    pub(super) fn probe_new_path(&self, id: &VolumeId, dev: Dev) {
        let is_one_of_several = self.graph.of(id).nth(1).is_some();
        if let Some(device) = self.graph.get(dev).filter(|_| is_one_of_several && self.map_over(id).is_none())
        {
            self.prober.ask(device, None);
        }
    }

    /// The id of the record that a device's names lead to, which is its strongest one wherever that can be.
    fn record_of(&mut self, device: &Device) -> VolumeId {
        let names = &device.identity.names;
        let Some(strongest) = names.first().map(|name| name.id.clone()) else {
            return device.identity.id.clone();
        };
        let known = |kind: Kind| {
            let of_kind = names.iter().filter(move |name| name.kind == kind);
            of_kind.filter_map(|name| Some((&name.id, self.names.known.get(&name.id)?)))
        };
        let mut ids: Vec<VolumeId> = known(Kind::Own).map(|(_, id)| id.clone()).collect();
        // Records that go by an address alone: the volume has shown nothing better, or an earlier version
        // made the record.
        let by_address: Vec<VolumeId> =
            known(Kind::Address).filter(|(name, id)| name == id).map(|(_, id)| id.clone()).collect();
        let addressed = ids.is_empty();
        if addressed {
            ids.extend(by_address.iter().take(1).cloned());
        }
        ids.extend(by_address.into_iter().filter(|id| !addressed && self.tells_the_same(&strongest, id)));
        ids.dedup();
        // A record may go by a name that this device does not show: another device of the volume does, or
        // did.
        let is_shown = |id: &VolumeId| names.iter().any(|name| name.id == *id);
        let strongest = ids.iter().find(|id| !is_shown(id)).cloned().unwrap_or(strongest);
        ids.retain(|id| *id != strongest);
        let Some(first) = ids.first().cloned() else { return strongest };
        if let Some(busy) = ids.iter().find(|id| self.is_busy(id)) {
            // The records are merged once the volume is detached.
            return if self.is_busy(&strongest) { strongest } else { busy.clone() };
        }
        match self.take_together(&strongest, &ids) {
            Ok(()) => strongest,
            Err(error) => {
                error!("{first}: its record cannot be stored as {strongest}: {error}");
                first
            }
        }
    }

    /// Whether its record is in use, or not stored.
    fn is_busy(&self, id: &VolumeId) -> bool {
        self.records.contains_key(id)
            || self.formats.departed.contains_key(id)
            || self.unstored.record(id).is_some()
            || self.batch.as_ref().is_some_and(|batch| batch.record(id).is_some())
    }

    fn stored(&self, id: &VolumeId) -> Option<Record> {
        self.records.get(id).map(|volume| volume.record.clone()).or_else(|| self.store.get(id).ok().flatten())
    }

    /// Whether the record under an address is, by its content, of the volume that goes by this name of its
    /// own.
    fn tells_the_same(&self, id: &VolumeId, address: &VolumeId) -> bool {
        let (Some(own), Some(other)) = (self.stored(id), self.stored(address)) else { return false };
        own.content.as_ref().is_some_and(|content| content.uuid.is_some())
            && other.content.is_some()
            && !disagree(&own, &other)
    }

    /// Merges the records of these ids into one under the strongest name.
    fn take_together(&mut self, strongest: &VolumeId, ids: &[VolumeId]) -> Result<()> {
        let live = self.records.get(strongest).cloned();
        // A format that is under way is not disturbed: the records are merged when the volume is attached
        // anew.
        if live.as_ref().is_some_and(|record| record.attachment.is_running()) {
            return Ok(());
        }
        let mut record = match &live {
            Some(volume) => Some(volume.record.clone()),
            None => self.store.get(strongest)?,
        };
        for id in ids {
            let Some(other) = self.store.get(id)? else { continue };
            record = Some(match record {
                Some(record) => merge(strongest, &record, &other),
                None => Record { id: strongest.clone(), ..other },
            });
        }
        if let Some(record) = record {
            let before: Vec<&str> = ids.iter().map(VolumeId::as_str).collect();
            let text = format!("known as {} until now", before.join(", "));
            let told = HistoryEvent::new(now(), strongest.to_string(), "renamed", text);
            self.store.replace(ids, &record, &[told])?;
            if let Some(Volume { attachment, .. }) = live {
                let volume = Volume { record, attachment };
                // A change that is put off must not bring back the old record.
                if let Some(batch) = &mut self.batch {
                    batch.store_later(&volume, &volume, &[]);
                }
                self.records.insert(strongest.clone(), volume);
                self.put_rules(strongest);
            }
        }
        self.names.replace(ids, strongest);
        Ok(())
    }
}
