//! Two records that turn out to be one volume's become one: a pure function.
//!
//! It must never lower protection: what either record keeps from being formatted or overwritten, the one that
//! comes of them keeps, too. What an operator allowed of one is not allowed of both.

use super::{Record, State};
use crate::volume::{
    VolumeId,
    marks::{MAX_MARKS, Mark},
};

/// From the least to the most that is refused.
const fn protection(state: State) -> u8 {
    match state {
        State::Exempt => 0,
        State::Blank => 1,
        State::Permitted => 2,
        State::Unverified => 3,
        State::Formatting => 4,
        State::Formatted => 5,
    }
}

/// The record of a volume that two were kept of, under this id.
#[must_use]
pub fn merge(id: &VolumeId, one: &Record, other: &Record) -> Record {
    let rank = |record: &Record| (protection(record.state), record.content.is_some(), record.generation);
    let (kept, lost) = if rank(other) > rank(one) { (other, one) } else { (one, other) };
    // What one was permitted may have been done to the other.
    let permitted = kept.state == State::Permitted && lost.state == State::Permitted;
    let ever_formatted = kept.ever_formatted || lost.ever_formatted;
    let state = match kept.state {
        State::Permitted if permitted => State::Permitted,
        State::Permitted | State::Unverified | State::Blank if ever_formatted => State::Formatted,
        State::Permitted => State::Unverified,
        state => state,
    };
    let conflict = disagree(kept, lost).then(|| {
        let told = |record: &Record| {
            let content = record.content.as_ref();
            let uuid = content.and_then(|content| content.uuid.as_deref()).unwrap_or("no UUID");
            format!("{} {uuid}", content.map_or("unknown", |content| content.name()))
        };
        format!("it was recorded as {} and, by another of its names, as {}", told(kept), told(lost))
    });
    Record {
        id: id.clone(),
        weak: one.weak && other.weak,
        state,
        since: kept.since,
        cause: kept.cause.clone(),
        content: kept.content.clone().or_else(|| lost.content.clone()),
        marks: both(&kept.marks, &lost.marks),
        ends: kept.ends.clone().or_else(|| lost.ends.clone()),
        ever_formatted,
        mounted: kept.mounted || lost.mounted,
        formatter: kept.formatter.clone().or_else(|| lost.formatter.clone()),
        permit: kept.permit.clone().filter(|_| permitted),
        discrepancy: conflict.or_else(|| kept.discrepancy.clone()).or_else(|| lost.discrepancy.clone()),
        first_seen: kept.first_seen.min(lost.first_seen),
        audit: kept.audit && lost.audit,
        strict: kept.strict || lost.strict,
        boot: kept.boot.clone(),
        armed: kept.armed.clone().or_else(|| lost.armed.clone()),
        generation: kept.generation.max(lost.generation),
        medium: None,
        origin: one.origin.clone(),
    }
}

/// Whether two records tell of different content.
#[must_use]
pub fn disagree(one: &Record, other: &Record) -> bool {
    match (&one.content, &other.content) {
        (Some(one), Some(other)) => one.uuid != other.uuid || one.types != other.types,
        _ => false,
    }
}

/// The marks of both, those of the first one first; of two at one place the longer, as one at a place is
/// kept.
fn both(kept: &[Mark], lost: &[Mark]) -> Vec<Mark> {
    let mut marks = kept.to_vec();
    for mark in lost {
        match marks.iter_mut().find(|known| known.offset == mark.offset) {
            Some(known) if known.bytes.len() < mark.bytes.len() => known.clone_from(mark),
            Some(_) => {}
            None => marks.push(mark.clone()),
        }
    }
    marks.truncate(MAX_MARKS);
    marks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        record::{Content, Permit},
        volume::marks::MarkKind,
    };

    fn any_mark() -> impl Strategy<Value = Mark> {
        let kind = prop_oneof![Just(MarkKind::Magic), Just(MarkKind::Uuid)];
        (0..8_u64, kind, prop::collection::vec(any::<u8>(), 1..17)).prop_map(|(place, kind, bytes)| Mark {
            offset: place * 16,
            kind,
            bytes,
        })
    }

    fn any_record(id: &'static str) -> impl Strategy<Value = Record> {
        let state = prop::sample::select(State::ALL.to_vec());
        let marks = prop::collection::vec(any_mark(), 0..5);
        let content =
            prop::option::of(prop_oneof![Just(("ext4", "a")), Just(("ext4", "b")), Just(("xfs", "c"))]);
        let facts = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0..4_u64);
        (state, marks, content, facts).prop_map(move |(state, marks, content, facts)| {
            let (ever_formatted, mounted, audit, strict, generation) = facts;
            let mut record = Record::new(id.into(), id.into(), false, 5);
            // One mark at a place, as the store has it.
            record.marks = both(&[], &marks);
            record.content = content.map(|(name, uuid)| Content {
                types: vec![name.into()],
                uuid: Some(uuid.into()),
                label: None,
            });
            record.permit = (state == State::Permitted).then(|| Permit {
                reason: "test".into(),
                uid: 0,
                at: 1,
                expires: 9,
                used: false,
            });
            record.ever_formatted = ever_formatted || state == State::Formatted;
            (record.state, record.mounted, record.audit) = (state, mounted, audit);
            (record.strict, record.generation) = (strict, generation);
            record
        })
    }

    fn covers(marks: &[Mark], byte: u64) -> bool {
        marks.iter().any(|mark| (mark.offset..mark.offset + mark.bytes.len() as u64).contains(&byte))
    }

    proptest! {
        /// Whatever the order: nothing that either protects is unprotected after.
        #[test]
        fn what_either_protects_the_merged_one_protects(one in any_record("scsi:naa.1"), other in any_record("iscsi:t,lun=1")) {
            for merged in [merge(&one.id, &one, &other), merge(&one.id, &other, &one)] {
                prop_assert_eq!(&merged.id, &one.id);
                for each in [&one, &other] {
                    prop_assert!(protection(merged.state) >= protection(each.state), "{each:?} {merged:?}");
                    prop_assert!(merged.ever_formatted >= each.ever_formatted && merged.mounted >= each.mounted);
                    prop_assert!(merged.strict >= each.strict && merged.audit <= each.audit);
                    prop_assert!(merged.generation >= each.generation);
                    prop_assert!(each.content.is_none() || merged.content.is_some());
                    if merged.marks.len() < MAX_MARKS {
                        prop_assert!((0..200).all(|byte| covers(&merged.marks, byte) || !covers(&each.marks, byte)));
                    }
                }
                prop_assert!(merged.permit.is_none() || merged.state == State::Permitted);
                prop_assert!(!(merged.ever_formatted && merged.state == State::Blank));
                prop_assert!(!disagree(&one, &other) || merged.discrepancy.is_some(), "both are told");
            }
        }

        /// A record and itself are that record.
        #[test]
        fn a_record_merged_with_itself_is_as_protected(one in any_record("scsi:naa.1")) {
            let merged = merge(&one.id, &one, &one);
            prop_assert_eq!((merged.marks, merged.content, merged.permit), (one.marks, one.content, one.permit));
        }
    }
}
