//! Copies of what makes a volume findable: taken by the probe that found it, of a volume that reads as it is
//! recorded, and never of one that does not.

use format_guard_common::State;
use tracing::warn;

use super::{Reconciler, failure::failed};
use crate::{
    agent::now,
    api::{self, Failure, FailureKind},
    record::{Seconds, store::StoredCopy},
    volume::{
        VolumeId,
        copies::{self, Wanted},
        marks::Mark,
    },
};

/// How old a copy gets before the next probe takes another one, in seconds: a day. Tools change labels, keys
/// and tables.
const LASTS: Seconds = 24 * 3600;

/// Of which generation of its record a volume's copy is, and from when.
#[derive(Clone, Copy)]
pub(super) struct Copied {
    generation: u64,
    at: Seconds,
}

/// What a probe has copied.
pub(super) struct Taken {
    pub(super) id: VolumeId,
    /// The marks that it found.
    pub(super) marks: Vec<Mark>,
    /// The copy, as [`copies::pack`] makes it.
    pub(super) packed: Vec<u8>,
}

impl Reconciler {
    /// A volume is attached: what is copied of it?
    pub(super) fn look_for_copy(&mut self, id: &VolumeId) {
        match self.store.copied(id) {
            Ok(Some((generation, at))) => {
                self.copies.insert(id.clone(), Copied { generation, at });
            }
            Ok(None) => {}
            Err(error) => warn!("{id}: its copy cannot be read: {error}"),
        }
    }

    /// What the next probe of a volume is to copy.
    pub(super) fn wanted_copy(&self, id: &VolumeId) -> Option<Wanted> {
        let wanted = self.settings.copied?;
        let record = self.records.get(id)?;
        let at = now();
        let is_fresh = self.copies.get(id).is_some_and(|copied| {
            copied.generation == record.generation
                && (copied.at..copied.at.saturating_add(LASTS)).contains(&at)
        });
        (record.state != State::Exempt && !is_fresh).then_some(wanted)
    }

    /// Keeps what probes have copied, each with the marks that it found.
    pub(super) fn keep_copies(&mut self, taken: Vec<Taken>) {
        let mut copies = Vec::new();
        for Taken { id, marks, packed } in taken {
            let (Some(record), Some(device)) = (self.records.get(&id), self.graph.of(&id).next()) else {
                continue;
            };
            let is_its = record.state == State::Formatted
                && record.discrepancy.is_none()
                && record.content.is_some()
                && !record.marks.is_empty()
                && record.marks.iter().all(|mark| marks.contains(mark));
            if is_its && copies::unpack(&packed).is_some() && self.unstored.record(&id).is_none() {
                let generation = record.generation;
                copies.push((id, StoredCopy { generation, at: now(), size: device.size, packed }));
            }
        }
        if copies.is_empty() {
            return;
        }
        match self.store.put_copies(&copies) {
            Ok(()) => {
                let kept = copies
                    .into_iter()
                    .map(|(id, copy)| (id, Copied { generation: copy.generation, at: copy.at }));
                self.copies.extend(kept);
            }
            Err(error) => warn!("the marks of {} volumes cannot be copied: {error}", copies.len()),
        }
    }

    pub(super) fn copy(&self, id: &VolumeId) -> Result<api::Copy, Failure> {
        let volume = self.volume(id)?;
        let copy = self.store.copy(id).map_err(|error| failed(&error))?;
        let copy = copy.ok_or_else(|| {
            Failure::new(
                FailureKind::NotFound,
                format!("there is no copy of {id}: no probe has found the volume as it is recorded, or copy_limit is 0"),
            )
        })?;
        let pieces = copies::unpack(&copy.packed)
            .ok_or_else(|| Failure::new(FailureKind::Failed, format!("the copy of {id} cannot be read")))?;
        Ok(api::Copy { volume, at: copy.at, generation: copy.generation, size: copy.size, pieces })
    }
}
