//! The way out for each reason to refuse, in a sentence. A permit destroys data: it is named only if it would
//! help, and if nothing else is wrong.

use format_guard_common::{Operation, Reason, State};

use crate::{policy::Action, record::Volume};

/// What to do about a refusal for this reason of this operation.
pub(super) fn of(reason: Option<Reason>, operation: Option<Operation>, record: Option<&Volume>) -> String {
    if operation == Some(Operation::Passthrough) {
        return "to allow such commands: passthrough = \"allow\" in the configuration, or format-guard volume exempt"
            .to_owned();
    }
    let early = reason == Some(Reason::NotReadYet);
    let Some(record) = record.filter(|record| !early || record.state == State::Formatted) else {
        return "the agent has not read the volume yet: try again in a moment".to_owned();
    };
    let id = &record.id;
    if let Some(way) = of_policy(reason, record) {
        return way;
    }
    if let Some(discrepancy) = record.discrepancy.as_deref().filter(|_| is_destruction(reason)) {
        return format!(
            "the volume does not read as it was recorded ({discrepancy}): look at the storage first, its data may be there; \
             format-guard volume show {id}"
        );
    }
    if let Some(overlay) = record.attachment.overlay.as_ref().filter(|_| reason == Some(Reason::Unverified)) {
        return format!("a write here destroys {}: format-guard volume show {id}", overlay.by);
    }
    match reason {
        Some(Reason::Tainted) => format!(
            "this process was refused on this device before: format-guard volume untaint {id} --reason TEXT lets it write again"
        ),
        Some(Reason::Unverified) => format!(
            "the agent does not know yet what the volume holds: try again in a moment; format-guard volume show {id} says why"
        ),
        Some(Reason::BeingFormatted) => {
            "another process formats the volume: try again when that has ended".to_owned()
        }
        Some(Reason::Claim) => format!(
            "another node may be formatting the volume, or has: try again; format-guard volume show {id} says who has the claim"
        ),
        Some(Reason::Mapping) => format!(
            "the guard cannot see stores through a mapping: write by system calls, or format-guard volume exempt {id} --reason TEXT"
        ),
        Some(Reason::Unreadable | Reason::Unplaced) => {
            "the guard cannot read the bytes or find their place: write from plain memory, away from the volume's marks".to_owned()
        }
        Some(Reason::Strict) => format!(
            "the volume is strict: name the program under `trusted` in the configuration, or format-guard mode enforce --volume {id} \
             --reason TEXT"
        ),
        _ => match permit(reason, Some(record)) {
            Some(permit) => format!(
                "format-guard volume show {id} says what the volume holds; to re-format it, with all of its data lost: {permit}"
            ),
            None => format!("format-guard volume show {id} says what is known of the volume"),
        },
    }
}

/// What to do where a declared policy is why it is refused, and no command changes that.
fn of_policy(reason: Option<Reason>, record: &Volume) -> Option<String> {
    let policy = record.attachment.policy.in_force()?;
    match policy.action {
        Action::NeverFormat if is_destruction(reason) || reason == Some(Reason::Unverified) => Some(format!(
            "nobody formats it by {policy}: if that is wrong, change the configuration; format-guard volume show {} says what \
             is on it",
            record.id
        )),
        Action::Strict if reason == Some(Reason::Strict) => Some(format!(
            "the volume is strict by {policy}: name the program under `trusted` in the configuration, or change the policy there"
        )),
        _ => None,
    }
}

/// The command that permits one re-format, where that is what would help.
pub(super) fn permit(reason: Option<Reason>, record: Option<&Volume>) -> Option<String> {
    let record = record.filter(|record| {
        record.state == State::Formatted
            && record.discrepancy.is_none()
            && !record.attachment.policy.is(Action::NeverFormat)
    })?;
    is_destruction(reason).then(|| format!("format-guard volume permit {} --reason TEXT", record.id))
}

/// Whether somebody was about to replace what the volume holds.
fn is_destruction(reason: Option<Reason>) -> bool {
    matches!(
        reason,
        Some(
            Reason::Formatter
                | Reason::Identity
                | Reason::ForeignFormat
                | Reason::Discard
                | Reason::Across
                | Reason::KernelFormat
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::{Choice, InForce},
        record::Record,
        volume::VolumeId,
    };

    fn record(state: State) -> Volume {
        let id: VolumeId = serde_json::from_str("\"dm:LVM-x\"").expect("an id");
        Volume::of(Record { state, ..Record::new(id, String::new(), false, 0) })
    }

    fn ways(record: &Volume) -> impl Iterator<Item = (Reason, String)> {
        Reason::ALL
            .into_iter()
            .filter(|reason| *reason != Reason::Passthrough)
            .map(|reason| (reason, of(Some(reason), Some(Operation::Write), Some(record))))
    }

    #[test]
    fn a_permit_is_named_where_a_known_format_was_about_to_be_replaced_and_nowhere_else() {
        for state in [State::Unverified, State::Blank, State::Formatting, State::Permitted] {
            for (reason, way) in ways(&record(state)) {
                assert!(!way.contains("permit "), "{state:?}, {reason:?}: {way}");
            }
        }
        for (reason, way) in ways(&record(State::Formatted)) {
            let permit = is_destruction(Some(reason));
            assert_eq!(way.contains("volume permit dm:LVM-x"), permit, "{reason:?}: {way}");
            assert_eq!(way.contains("data lost"), permit, "{reason:?}: {way}");
        }
    }

    #[test]
    fn what_reads_otherwise_than_recorded_is_the_storages_matter() {
        let mut record = record(State::Formatted);
        record.discrepancy = Some("it reads blank".to_owned());
        for (reason, way) in ways(&record) {
            assert!(!way.contains("permit "), "{reason:?}: {way}");
            assert_eq!(permit(Some(reason), Some(&record)), None);
        }
        let way = of(Some(Reason::Formatter), Some(Operation::Open), Some(&record));
        assert!(way.contains("look at the storage first"), "{way}");
    }

    #[test]
    fn where_a_policy_refuses_the_way_out_is_the_configuration() {
        let by = |action, state| {
            let mut record = record(state);
            record.attachment.policy = Choice::Policy(InForce { name: "keep".into(), action });
            record
        };
        for state in [State::Formatted, State::Unverified] {
            for (reason, way) in ways(&by(Action::NeverFormat, state)) {
                assert!(!way.contains("volume permit"), "{reason:?}: {way}");
                let of_policy = is_destruction(Some(reason)) || reason == Reason::Unverified;
                assert_eq!(way.contains("policy 'keep' (never-format)"), of_policy, "{reason:?}: {way}");
            }
        }
        let way =
            of(Some(Reason::Strict), Some(Operation::Open), Some(&by(Action::Strict, State::Formatted)));
        assert!(way.contains("policy 'keep' (strict)"), "{way}");
    }

    #[test]
    fn who_was_too_early_is_told_to_try_again() {
        for record in [Some(&record(State::Unverified)), None] {
            for reason in [Reason::Unverified, Reason::NotReadYet] {
                let way = of(Some(reason), Some(Operation::Open), record);
                assert!(way.contains("try again in a moment"), "{way}");
            }
        }
        // It has been read since.
        let way = of(Some(Reason::NotReadYet), Some(Operation::Open), Some(&record(State::Formatted)));
        assert!(way.contains("volume show") && !way.contains("try again"), "{way}");
    }
}
