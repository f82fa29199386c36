//! Records that were lost. Until an operator ends it nothing is armed but by a permit, however often the
//! agent starts; and the rules that an earlier agent of this boot has left in the kernel are taken over as
//! records.

use std::collections::HashMap;

use anyhow::{Context, Result};
use format_guard_common::{CheckKind, Rule, State, flag, format::FORMATS};
use tracing::warn;

use super::{
    Reconciler,
    failure::{bad, failed, reason_of},
};
use crate::{
    agent::now,
    api::{self, Failure},
    record::{Content, history::HistoryEvent, store::Loss, transition::Event},
    volume::{
        Dev, VolumeId,
        marks::{Mark, MarkKind},
    },
};

/// Whether records were lost, and what is left of them.
#[derive(Default)]
pub(super) struct LostRecords {
    /// While this is set nothing is armed but by a permit.
    pub(super) loss: Option<Loss>,
    /// Rules that an earlier agent of this boot left, by device; only while records are lost.
    earlier_rules: HashMap<Dev, Rule>,
}

/// What a loss of records means, and the way out.
pub(super) fn degraded(loss: &Loss) -> String {
    format!(
        "{}; the agent records volumes again as it probes them, and arms a blank volume only by a permit; once every \
         volume that holds data is on record: format-guard loss end --reason TEXT",
        loss.cause
    )
}

impl Reconciler {
    /// Restores a loss that was found out before a restart, or just now.
    pub(super) fn restore_loss(&mut self) -> Result<()> {
        let text = self.store.setting(Loss::SETTING)?;
        let loss: Option<Loss> = serde_json::from_str(text.as_deref().unwrap_or("null"))
            .context("cannot read whether records were lost, and so whether blank volumes may be armed")?;
        self.lost = LostRecords { loss, ..LostRecords::default() };
        if let Some(loss) = &self.lost.loss {
            warn!("{}", degraded(loss));
            let rules = self.enforcer.ruled().into_iter();
            self.lost.earlier_rules = rules.filter_map(|dev| Some((dev, self.enforcer.rule(dev)?))).collect();
        }
        Ok(())
    }

    /// Makes a record of the rule that an earlier agent left for a device whose volume is not on record.
    pub(super) fn take_over_rule(&mut self, dev: Dev) {
        let Some(rule) = self.lost.earlier_rules.remove(&dev) else { return };
        let Some(device) = self.graph.get(dev).filter(|device| device.diskseq == rule.diskseq) else {
            return;
        };
        let id = device.identity.id.clone();
        if let Some(event) = taken_over(&rule) {
            self.step(&id, event);
        }
    }

    pub(super) fn end_loss(&mut self, request: &api::EndLossRequest, uid: u32) -> Result<api::Done, Failure> {
        let reason = reason_of(&request.reason, "to end a loss of records")?;
        if self.lost.loss.is_none() {
            return Err(bad("no records are lost: there is nothing to end".to_owned()));
        }
        let text = format!("the loss of records is ended by user {uid}: {reason}");
        let told = HistoryEvent::new(now(), String::new(), "loss-ended", text).by_operator();
        self.store.set(Loss::SETTING, "null", &[told]).map_err(|error| failed(&error))?;
        self.history.advance();
        self.lost.loss = None;
        self.lost.earlier_rules.clear();
        let held = self.records.values().filter(|record| {
            record.state == State::Unverified && record.attachment.not_armed_because.is_some()
        });
        let ids: Vec<VolumeId> = held.map(|record| record.id.clone()).collect();
        for id in ids {
            let Some(device) = self.graph.of(&id).next() else { continue };
            let event = self.attached_event(device);
            self.apply(&id, event);
        }
        Ok(api::Done { text: "the agent arms blank volumes again".to_owned() })
    }
}

/// What is known of a volume by the rule that guarded it; nothing, if that was no format's.
fn taken_over(rule: &Rule) -> Option<Event> {
    let own = |kind: u32| match kind {
        kind if kind == CheckKind::Magic as u32 => Some(MarkKind::Magic),
        kind if kind == CheckKind::Uuid as u32 => Some(MarkKind::Uuid),
        _ => None,
    };
    let marks: Vec<Mark> = rule
        .checks()
        .iter()
        .filter_map(|check| {
            let bytes: Vec<u8> = check.bytes.iter().flat_map(|word| word.to_le_bytes()).collect();
            let bytes = bytes.get(..check.length as usize)?.to_vec();
            Some(Mark { offset: check.offset, kind: own(check.kind)?, bytes })
        })
        .collect();
    // An unused permit is lost with the records; the format that it was for is not.
    let guarded = rule.state == State::Formatted as u32 || rule.state == State::Permitted as u32;
    if !guarded || marks.is_empty() {
        return None;
    }
    let types: Vec<String> = FORMATS
        .iter()
        .filter(|format| {
            format.magics.iter().any(|magic| {
                marks.iter().any(|mark| mark.offset == magic.offset && mark.bytes == magic.bytes)
            })
        })
        .filter_map(|format| Some((*format.names.first()?).to_owned()))
        .collect();
    // Marks of a layer alone do not say what the volume itself holds.
    let content = (!types.is_empty()).then_some(Content { types, uuid: None, label: None });
    let md = content.as_ref().is_some_and(Content::is_md_member);
    Some(Event::TakenOver { content, marks, strict: rule.flags & flag::STRICT != 0 && !md })
}
